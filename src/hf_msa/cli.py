"""What the commands of `hf-msa` do; their arguments are defined in `hf_msa_cli`."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import MsaError, is_disk_full, reason, unknown_name

if TYPE_CHECKING:
    from .models.omg_knowledge_base import KnowledgeBase


def run_command(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run one parsed command.

    Args:
        arguments: What `hf_msa_cli.build_parser` parsed.
        rest: Arguments it did not know: training arguments of transformers.

    Returns:
        The exit status: 0 done, 2 input that cannot be used.
    """
    from transformers.utils import logging

    # Bars for writing and reading a few megabytes drown those of the long work.
    logging.disable_progress_bar()
    try:
        _COMMANDS[arguments.command](arguments, list(rest))
    except MsaError as error:
        print(f"hf-msa {arguments.command}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if is_disk_full(error):
            place = getattr(arguments, "output", None)
            place = "" if place is None else f" {place!r}"
            sentence = f"There is no space left to write{place}; free some and run the same command again."
        elif isinstance(error, OSError):
            place = "" if error.filename is None else f"{os.fspath(error.filename)!r} cannot be used: "
            sentence = f"{place}{error.strerror or reason(error)}."
        else:
            raise
        print(f"hf-msa {arguments.command}: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"hf-msa {arguments.command}: interrupted; the same command continues where it can.", file=sys.stderr)
        return 130
    return 0


def _prepare(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from .data.prepare import prepare_dataset

    report = prepare_dataset(
        arguments.dataset,
        arguments.source,
        arguments.output,
        label_family=arguments.label_family,
        features=arguments.features,
        push_to_hub=arguments.push_to_hub,
        private=arguments.private,
        overwrite=arguments.overwrite,
        split_by_video=arguments.split_by_video,
    )
    Console().print(report)
    print(f"Prepared data set: {arguments.output}")


def _sample_corpus(arguments: argparse.Namespace, rest: list[str]) -> None:
    from .data.sample_corpus import check_corpus, write_sample_corpus

    path = write_sample_corpus(
        arguments.output, preset=arguments.preset, seed=arguments.seed, overwrite=arguments.overwrite
    )
    check_corpus(path)
    print(f"Sample corpus: {path} (its tiny text encoder: {path / 'text_model'})")


def _recipes(arguments: argparse.Namespace, rest: list[str]) -> None:
    from .methods import METHODS

    for method in METHODS.values() if arguments.method is None else (METHODS.find(arguments.method),):
        print(f"{method.name}: {method.title}")
        print(f"  recipes:   {', '.join(method.recipe_names())}")
        if method.config_class.ABLATIONS:
            print(f"  ablations: {', '.join(method.config_class.ABLATIONS)}")


def training_flags(rest: Sequence[str]) -> dict[str, Any]:
    """Parse command-line flags of `MsaTrainingArguments`, giving only those that were passed.

    Args:
        rest: For example ``["--num_train_epochs", "5", "--bf16"]``.

    Raises:
        MsaError: For a flag that transformers does not know, with the nearest one, or a value that it does not take.
    """
    from transformers import HfArgumentParser

    from .training.arguments import MsaTrainingArguments

    names = {field.name for field in dataclasses.fields(MsaTrainingArguments)} - {"output_dir", "seed"}
    given = []
    for argument in rest:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            if name not in names:
                raise unknown_name("training argument", name, names)
            given.append(name)
    if rest and not given:
        raise MsaError(f"Unexpected argument {rest[0]!r}; training arguments begin with '--'.")

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise MsaError(f"A training argument is wrong: {message.rstrip('.')}.")

    # The library annotates a data class as an opaque type of its own.
    parser = Parser(MsaTrainingArguments)  # type: ignore[arg-type]
    parsed = vars(parser.parse_args(list(rest)))
    return {name: parsed[name] for name in given}


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    from accelerate import PartialState

    from .evaluation.checkpoints import rate_folder
    from .hub.cards import write_card
    from .training.recipes import load_recipe, train_rates
    from .training.stages import RunContext, run_recipe, tidy_context

    flags = training_flags(rest)
    recipes = {
        rate: load_recipe(
            arguments.recipe,
            ablation=arguments.ablation,
            assignments=arguments.assignments,
            text_model=arguments.text_model,
            train_rate=rate,
        )
        for rate in train_rates(arguments.train_rate)
    }
    matched = arguments.train_rate == "match"
    rows = None
    for seed in arguments.seeds:
        done: list[RunContext] = []
        for rate, recipe in recipes.items():
            output = rate_folder(arguments.output, rate) if matched and rate is not None else Path(arguments.output)
            shared = done[0].folder if done else None
            # The later ones take over stages of the first, which is tidied when all are finished.
            context = run_recipe(
                recipe, arguments.data, output, seed, flags, rows, arguments.media, shared, tidy=bool(done)
            )
            done.append(context)
            rows = context.rows
            if PartialState().is_main_process:
                write_card(context.folder)
                print(f"Trained {recipe.method} with seed {seed}: {context.folder}")
        if PartialState().is_main_process:
            tidy_context(done[0])
    if PartialState().is_main_process:
        protocol = "" if arguments.train_rate == "mixed" else " --protocol modality"
        media = "" if arguments.media is None else f" --media {arguments.media}"
        print(f"Next: hf-msa evaluate {arguments.output} --data {arguments.data}{protocol}{media}")


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from .evaluation.evaluate import evaluate_runs
    from .evaluation.report import print_results
    from .hub.cards import write_card
    from .training.recipes import set_value

    changes: dict[str, Any] = {}
    for assignment in arguments.assignments:
        set_value(changes, assignment)
    fields: dict[str, Any] = {}
    for assignment in arguments.protocol_assignments:
        set_value(fields, assignment, option="--protocol-set", example="blocks=2")
    results = evaluate_runs(
        arguments.model,
        arguments.data,
        protocol=arguments.protocol,
        rates=arguments.rates,
        mask_seeds=arguments.mask_seeds,
        split=arguments.split,
        batch_size=arguments.batch_size,
        output=arguments.output,
        subset=arguments.subset,
        subset_rule=arguments.subset_rule,
        changes=changes,
        media=arguments.media,
        protocol_fields=fields,
    )
    print_results(results.content)
    for run in results.runs:
        write_card(run)
    print("\n".join(f"Wrote {path}" for path in results.files))


def _compare(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from .evaluation.compare import compare_runs
    from .evaluation.plots import plot_curves

    comparison = compare_runs(
        arguments.runs, paper=arguments.paper, metrics=arguments.metrics, allow_oracle=arguments.allow_oracle
    )
    Console().print(comparison.to_rich())
    if arguments.output is not None:
        for path in plot_curves(comparison.runs, Path(arguments.output) / "curves", names=comparison.names):
            print(f"Wrote {path}")


def _analyze(arguments: argparse.Namespace, rest: list[str]) -> None:
    from .evaluation.analysis import TOOLS, run_tool

    if arguments.tool == "list":
        for name, tool in TOOLS.items():
            print(f"{name}: {tool.title} (runs of {tool.method or 'any method'})")
            print(f"  options: {', '.join(tool.flags) or 'none'}")
        return
    options = {k: v for k, v in vars(arguments).items() if k not in ("command", "version", "tool", "runs")}
    for path in run_tool(arguments.tool, arguments.runs, **options):
        print(f"Wrote {path}")


def _predict(arguments: argparse.Namespace, rest: list[str]) -> None:
    from .pipelines import predict_one

    scores = predict_one(arguments.model, arguments.text, audio=arguments.audio, vision=arguments.vision)
    for name, value in scores.items():
        print(f"{name}: {value}")


def _impute(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rich.console import Console

    from .imputation import impute

    options = {k: v for k, v in vars(arguments).items() if k not in ("command", "version")}
    Console().print(impute(**options))
    print(f"Completed data set: {arguments.output}")


def _kb(arguments: argparse.Namespace, rest: list[str]) -> None:
    {"build": _build_kb, "inspect": _inspect_kb}[arguments.action](arguments)


def _build_kb(arguments: argparse.Namespace) -> None:
    from .training.omg.entries import build_knowledge_base

    options = {k: v for k, v in vars(arguments).items() if k not in ("command", "version", "action")}
    _describe(build_knowledge_base(**options), Path(arguments.output))


def _inspect_kb(arguments: argparse.Namespace) -> None:
    from .models.omg_knowledge_base import KnowledgeBase

    if arguments.neighbours < 1:
        raise MsaError(f"--neighbours is {arguments.neighbours}; give at least 1.")
    for folder in knowledge_bases(arguments.folder):
        try:
            base = KnowledgeBase.load(folder)
        except (ImportError, ValueError) as error:
            raise MsaError(f"{folder}: {error}") from error
        _describe(base, folder)
        if arguments.id is not None:
            _show_nearest(base, arguments.id, arguments.neighbours)


def knowledge_bases(folder: str) -> list[Path]:
    """The knowledge bases that a folder stands for: itself, that of a run, or those of all its seeds.

    Args:
        folder: The folder.

    Raises:
        MsaError: If there is none.
    """
    from .models.modeling_omg import KNOWLEDGE_BASE_FOLDER
    from .models.omg_knowledge_base import DESCRIPTION_FILE

    places = [
        str(Path(place, DESCRIPTION_FILE)) for place in ("", KNOWLEDGE_BASE_FOLDER, f"seed-*/{KNOWLEDGE_BASE_FOLDER}")
    ]
    found = (sorted(path.parent for path in Path(folder).glob(place)) for place in places)
    bases = next(filter(None, found), None)
    if bases is None:
        raise MsaError(
            f"{folder!r} holds no knowledge base (no {', no '.join(places)}); give the folder of one, or a run of omg."
        )
    return bases


def _describe(base: "KnowledgeBase", folder: Path) -> None:
    shapes = {name: " x ".join(map(str, value.shape[1:])) for name, value in sorted(base.values.items())}
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"Knowledge base: {folder}")
    print(f"  entries:    {len(base):,}")
    print(f"  latents:    {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")
    print(f"  vectors:    {base.plans.shape[1]}")
    print(f"  on disk:    {size:,.1f} MiB")


def _show_nearest(base: "KnowledgeBase", entry: str, count: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from torch.nn.functional import cosine_similarity

    (own,) = base.rows_of([entry]).tolist()
    if own < 0:
        raise unknown_name("entry", entry, base.ids)
    cosines = [cosine_similarity(vectors[own : own + 1], vectors) for vectors in (base.observations, base.plans)]
    nearest = [row for row in cosines[0].argsort(descending=True).tolist() if row != own][:count]
    table = Table("entry", "cosine of observations", "cosine of plans", title=f"Nearest to {entry}")
    for row in nearest:
        table.add_row(base.ids[row], *(f"{values[row]:.3f}" for values in cosines))
    Console().print(table)


def _push(arguments: argparse.Namespace, rest: list[str]) -> None:
    from .hub.push import push_run

    url = push_run(arguments.run, arguments.repo, private=arguments.private, verify=not arguments.no_verify)
    print(f"Pushed: {url}")


_COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
    "prepare": _prepare,
    "sample-corpus": _sample_corpus,
    "recipes": _recipes,
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "analyze": _analyze,
    "predict": _predict,
    "impute": _impute,
    "kb": _kb,
    "push": _push,
}
