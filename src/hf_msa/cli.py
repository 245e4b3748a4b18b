"""The work of the commands of `hf-msa`, whose arguments are defined in `hf_msa_cli`."""

import codecs
import contextlib
import importlib
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import (
    BUGS,
    MsaError,
    absent_extra,
    is_disk_full,
    network_reason,
    next_step,
    reason,
    redacted,
    require_package,
    unknown_name,
)


def run_command(name: str, target: str, arguments: dict[str, Any]) -> int:
    """Run a command.

    Args:
        name: Its name, for messages.
        target: `module:function` that does it.
        arguments: What the function takes, by name; `output`, where there is one, is what it writes.

    Returns:
        The exit status: 0 done, 2 input that cannot be used, 130 interrupted, 141 nobody reads the output any more.
    """
    _survive_any_encoding()
    try:
        _do(target, arguments)
        print(end="", flush=True)
    except KeyboardInterrupt:
        print(f"hf-msa {name}: interrupted; the same command continues where it can.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except Exception as error:
        sentence = _sentence(error, arguments.get("output"))
        if sentence is None:
            raise
        print(f"hf-msa {name}: {sentence}", file=sys.stderr)
        with contextlib.suppress(AttributeError, OSError):
            sys.stdout.flush()
            return 2
        _drop_output()
        return 2
    return 0


def _do(target: str, arguments: dict[str, Any]) -> None:
    from transformers.utils import logging

    # Bars for writing and reading a few megabytes drown those of the long work.
    logging.disable_progress_bar()
    if sys.stderr is None or not sys.stderr.isatty():
        # Bars are lines without end in a log.
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(**arguments)


def _sentence(error: Exception, output: str | None) -> str | None:
    """What an error says to people; None where it is none that input, disk or network can cause, but a bug."""
    if isinstance(error, MsaError):
        return redacted(str(error))
    if is_disk_full(error):
        place = "" if output is None else f" {output!r}"
        return f"There is no space left to write{place}; free some and run the same command again."
    extra = absent_extra(error)
    if extra is not None:
        return extra
    if isinstance(error, BUGS):
        return None
    network = network_reason(error)
    if network is not None:
        return f"{network[0].upper()}{network[1:]}."
    if not isinstance(error, OSError):
        return None
    if error.errno is None or error.filename is None:
        return f"{redacted(error.strerror or reason(error))}."
    return f"{os.fspath(error.filename)!r} cannot be used: {error.strerror}."


_PLAIN = {"±": "+/-", "†": "*", "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "→": "->", "↑": "^", "↓": "v"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Stand-ins for characters that the terminal's encoding lacks; escapes for those that have none."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(char) or char.encode("ascii", "backslashreplace").decode() for char in text), error.end


def _survive_any_encoding() -> None:
    """Let nothing that is printed fail for its characters: the work before it would be lost."""
    codecs.register_error("hf_msa.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="hf_msa.plain")


def _drop_output() -> None:
    """Send nowhere what is still to be written: the interpreter would try it once more at its end, and say so."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def prepare(*, dataset: str, source: str, output: str, **options: Any) -> None:
    """Prepare a data set; see `prepare_dataset` for the options."""
    from rich.console import Console

    from .data.prepare import prepare_dataset

    Console().print(prepare_dataset(dataset, source, output, **options))
    print(f"Prepared data set: {output}")


def sample_corpus(*, output: str, **options: Any) -> None:
    """Write a sample corpus; see `hf_msa.sample_corpus` for the options, of which None are left out."""
    from .api import sample_corpus as make
    from .data.sample_corpus.corpus_files import is_sample_corpus, read_checks

    begun, there = time.monotonic(), is_sample_corpus(output) and not options.get("overwrite")
    path = make(output, **{name: value for name, value in options.items() if value is not None})
    seconds = time.monotonic() - begun
    measured = read_checks(path) or {}
    clips, spoken = sum(measured["clips"].values()), measured["recordings"]
    if there:
        print(f"{clips} clips, which were there already")
    else:
        print(f"{clips} clips in {seconds:.1f} s ({clips / seconds:.0f} per second)")
    print(f"Sample corpus: {path} (its tiny text encoder: {path / 'text_model'})")
    if spoken:
        print(f"{spoken['count']} recordings: {path / 'recordings' / 'manifest.csv'}")


def extract(*, manifest: str, output: str, **options: Any) -> None:
    """Make a data set of recordings; see `hf_msa.recordings.extract.extract` for the options."""
    from rich.console import Console

    from .recordings.extract import ERRORS_FILE
    from .recordings.extract import extract as run

    made = run(manifest, output, **options)
    Console().print(made.report)
    if made.failed:
        print(f"Could not be read: {len(made.failed)} clips, see {Path(output) / ERRORS_FILE}")
    print(f"Prepared data set: {output}")


def recipes(*, method: str | None) -> None:
    """List the methods with their recipes and ablations, or one of them."""
    from .methods import METHODS

    for known in METHODS.values() if method is None else (METHODS.find(method),):
        print(f"{known.name}: {known.title}")
        print(f"  recipes:   {', '.join(known.recipe_names())}")
        if known.config_class.ABLATIONS:
            print(f"  ablations: {', '.join(known.config_class.ABLATIONS)}")


def training_flags(rest: Sequence[str]) -> dict[str, Any]:
    """Parse command-line flags of `MsaTrainingArguments`, giving only those that were passed.

    Args:
        rest: For example ``["--num_train_epochs", "5", "--bf16"]``.

    Raises:
        MsaError: For a flag that transformers does not know, with the nearest one, or a value that it does not take.
    """
    from transformers import HfArgumentParser

    from .training.arguments import FLAGS, MsaTrainingArguments

    given = []
    for argument in rest:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            if name not in FLAGS:
                raise unknown_name("training argument", name, FLAGS)
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


def train(*, data: str, output: str, train_rate: str, media: str | None, flags: Sequence[str], **options: Any) -> None:
    """Train by a recipe; see `hf_msa.train` for the options, and `training_flags` for the flags."""
    from accelerate import PartialState

    from .api import train_each
    from .data.missing import tested_as

    given = training_flags(flags)
    runs = train_each(data=data, output=output, train_rate=train_rate, media=media, flags=given, **options)
    for run in runs:
        if PartialState().is_main_process:
            print(f"Trained {run.recipe.method} with seed {run.seed}: {run.folder}")
    if PartialState().is_main_process:
        protocol, fields = tested_as(run.recipe.missing.validation)
        # What it has of settings is the default of the command.
        tested = () if fields else ("--protocol", protocol)
        recordings = () if media is None else ("--media", media)
        print(next_step("evaluate", output, "--data", data, *tested, *recordings))


def _changes(assignments: Sequence[str], **named: str) -> dict[str, Any]:
    """Values by name, of assignments such as `route=fast`; see `set_value`."""
    from .assignments import set_value

    values: dict[str, Any] = {}
    for assignment in assignments:
        set_value(values, assignment, **named)
    return values


def _protocol_fields(assignments: Sequence[str]) -> dict[str, Any]:
    """The fields of a protocol that `--protocol-set` gives."""
    return _changes(assignments, option="--protocol-set", example="blocks=2")


def evaluate(*, assignments: Sequence[str], protocol_assignments: Sequence[str], **options: Any) -> None:
    """Evaluate; see `hf_msa.evaluate` for the options, and `set_value` for the assignments."""
    from .api import evaluate as run
    from .evaluation.report import print_results

    results = run(changes=_changes(assignments), protocol_fields=_protocol_fields(protocol_assignments), **options)
    print_results(results.content)
    print("\n".join(f"Wrote {path}" for path in results.files))


def evaluate_predictions(*, output: str, protocol_assignments: Sequence[str], **options: Any) -> None:
    """Score predictions of another program; see `hf_msa.evaluate_predictions` for the options."""
    from .evaluation.foreign import evaluate_predictions as run
    from .evaluation.report import print_results

    results = run(output=output, protocol_fields=_protocol_fields(protocol_assignments), **options)
    print_results(results.content)
    print("\n".join(f"Wrote {path}" for path in results.files))


def baselines(
    *,
    data: str,
    output: str,
    assignments: Sequence[str],
    protocol_assignments: Sequence[str],
    flags: Sequence[str],
    **options: Any,
) -> None:
    """Make the rows beside which a method's numbers mean something; see `make_baselines` for the options."""
    from rich.console import Console

    from .baselines import make_baselines
    from .evaluation.compare import compare_runs

    fields = _protocol_fields(protocol_assignments)
    folders = make_baselines(
        data,
        output,
        assignments=assignments,
        protocol_fields=fields,
        flags=training_flags(flags),
        **options,
    )
    Console().print(compare_runs(folders, allow_oracle=True).to_rich())
    print(next_step("compare", *map(str, folders), "--allow-oracle") + "   # and runs of your own")


def compare(*, output: str | None, **options: Any) -> None:
    """Put results side by side; see `hf_msa.compare` for the options."""
    from rich.console import Console

    from .api import compare as run

    Console().print(run(output=output, **options).to_rich())
    if output is not None:
        print(f"Wrote tables and figures to {output}")


def analyze(*, tool: str | None, wants_help: bool, options: Sequence[str]) -> None:
    """Run an analysis tool with `options` as it takes them, and print its summary; without one, list them."""
    from rich.console import Console

    from .analysis import TOOLS, run_tool, tool_list
    from .evaluation.report import terminal_parts

    if tool in (None, "list"):
        print(tool_list())
        return
    given = TOOLS.find(tool).parse(["--help"] if wants_help else options)
    files = run_tool(tool, **given)
    summaries = [path for path in files if path.suffix == ".md"]
    for summary in summaries:
        Console().print(*terminal_parts(summary.read_text(encoding="utf-8")))
    print("\n".join(f"Wrote {path}" for path in files))


def predict(
    *,
    clips: Sequence[str],
    manifest: str | None,
    output: str | None,
    assignments: Sequence[str],
    explain: str | None,
    batch_size: int,
    text: str | None,
    audio: str | None,
    vision: str | None,
    video: str | None,
    **options: Any,
) -> None:
    """Score an utterance, or many recordings; see `hf_msa.predict` and `hf_msa.predict_clips`."""
    from .api import predict as predict_one
    from .api import predict_clips
    from .clip_scores import flat

    if batch_size < 1:
        raise MsaError(f"--batch-size is {batch_size}; give at least 1.")
    utterance: dict[str, Any] = {"text": text, "audio": audio, "vision": vision, "video": video}
    given = [f"--{name}" for name, value in utterance.items() if value is not None]
    many = bool(clips) or manifest is not None
    if many and (given or explain):
        raise MsaError(
            f"{(given or ['--explain'])[0]} is of a single utterance; leave it out, or give no list of recordings."
        )
    if output and not many:
        raise MsaError("--output is for recordings; give them, or --manifest.")
    if not many and not given:
        raise MsaError("There is nothing to score; give recordings, --text, --audio, --vision or --video.")
    chosen = {name: value for name, value in options.items() if value is not None} | {"changes": _changes(assignments)}
    if not many:
        found = predict_one(**utterance, explain=explain, **chosen)
        explanation = found.pop("explanation", None)
        for name, value in found.items():
            print(f"{name}: {_rounded(value)}")
        if explanation is not None:
            for name, change in [*explanation["modalities"].items(), *explanation["words"]]:
                print(f"  {change:+.3f}  {name}")
            print(f"Figure: {explain}")
        return
    rows = predict_clips(clips=clips, manifest=manifest, output=output, batch_size=batch_size, **chosen)
    if output is None:
        for row in rows:
            print(json.dumps(flat(row), ensure_ascii=False))
        return
    failed = ["error" in row for row in rows]
    hint = " (see its column error)" if any(failed) else ""
    print(f"Scored {failed.count(False)} of {len(failed)} recordings: {output}{hint}")


def _rounded(value: Any) -> Any:
    """A value with its numbers as a reader needs them."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def demo(*, model: str, export: str | None, port: int | None, transcribe: str | None, face_model: str | None) -> None:
    """Serve the demo page of a model, or write a Space; see `hf_msa.demo_page`."""
    from .demo_page import export_space, serve
    from .pipelines import load_pipeline

    if export is not None:
        unused = [name for name, value in (("--port", port), ("--face-model", face_model)) if value is not None]
        if unused:
            raise MsaError(f"{unused[0]} is for the page on this machine, and a Space has none; leave it out.")
        export_space(model, export, transcribe)
        print(f"Wrote {export}: create a Space on the Hub and push the folder to it")
        return
    require_package("gradio", "demo")
    chosen: dict[str, Any] = {} if face_model is None else {"face_model": face_model}
    serve(load_pipeline(model, transcribe=transcribe, **chosen), Path(model).name, port)


def impute(*, output: str, assignments: Sequence[str] = (), **options: Any) -> None:
    """Complete a data set; see `hf_msa.impute` for the options, and `set_value` for the assignments."""
    from rich.console import Console

    from .imputation import impute

    Console().print(impute(output=output, changes=_changes(assignments), **options))
    print(f"Completed data set: {output}")


def push(*, run: str, repo: str, private: bool, no_verify: bool) -> None:
    """Upload a run; see `push`."""
    from .hub.push import push

    print(f"Pushed: {push(run, repo, private=private, verify=not no_verify)}")
