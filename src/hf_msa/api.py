"""What the commands do, as functions: each of them is one call, and prints nothing.

Where a command is one function of another module already, `hf_msa` offers that function under its own name; docs/api.md has
the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .clip_scores import explain as explain_score
from .clip_scores import find_clips, plot_explanation, score_clips, write_scores
from .data.sample_corpus import check_corpus, write_sample_corpus
from .data.sample_corpus.corpus_files import read_checks, write_checks
from .errors import MsaError, as_msa_errors
from .evaluation.checkpoints import rate_folder
from .evaluation.compare import Comparison, compare_runs
from .evaluation.evaluate import Evaluation, evaluate_runs
from .evaluation.plots import plot_curves
from .hub.cards import write_card
from .methods import METHODS
from .pipelines import load_pipeline, read_utterance

if TYPE_CHECKING:
    from .training.stages import RunContext


def sample_corpus(
    output: str | Path, preset: str = "small", *, seed: int = 1111, overwrite: bool = False, **options: Any
) -> Path:
    """Generate a sample corpus, and check that it is what it claims to be.

    Args:
        output: The folder to write.
        preset: ``"tiny"``, ``"small"``, ``"mosi"`` or ``"study"``.
        seed: The one seed of all draws.
        overwrite: Whether an existing folder may be replaced, which happens only once the new one is complete.
        **options: What else `write_sample_corpus` takes, e.g. ``recordings=8`` or ``train=10_000``.

    Returns:
        The folder. What was measured of it is in ``planted/checks.json``, see `read_checks`. A folder that holds this very
        corpus is left as it is.

    Raises:
        MsaError: If an option is not allowed, the folder holds something else, or the disk is full.

    Example:
        ```python
        from hf_msa import sample_corpus

        sample_corpus("data/another", "tiny", version=1)
        ```
    """
    folder = write_sample_corpus(output, preset, seed, overwrite=overwrite, **options)
    if read_checks(folder) is None:
        write_checks(folder, check_corpus(folder))
    return folder


def train(
    recipe: str,
    data: str | Path,
    output: str | Path,
    *,
    seeds: Sequence[int] = (1111,),
    ablation: str | None = None,
    assignments: Sequence[str] = (),
    text_model: str | None = None,
    train_rate: str | float = "mixed",
    media: str | None = None,
    stages_from: str | None = None,
    flags: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Train by a recipe: all its stages, once for each seed and training rate; each run gets a model card.

    What is trained already is not trained again, and what was interrupted goes on where it was.

    Args:
        recipe: ``"<method>/<dataset>"``, or a YAML file.
        data: Folder or Hub name of a prepared data set.
        output: Folder of the runs; each seed goes to ``seed-<N>`` in it.
        seeds: Training seeds.
        ablation: A row of the method's ablation table.
        assignments: Changes of the recipe, e.g. ``"model.num_tokens=4"``.
        text_model: Folder or Hub name of a BERT-family checkpoint, in place of the recipe's.
        train_rate: ``"mixed"``: what the recipe drops in training; a rate: whole modalities at it; ``"match"``: a model for
            each of the rates 0.0 to 0.7, in ``rate-<R>`` of the output.
        media: Folder with the clips' recordings, see `MediaFolder`; for methods that ask a language model.
        stages_from: Folder of earlier runs, of which stages that were made of the same things are taken.
        flags: Training arguments by name, e.g. ``{"num_train_epochs": 5, "bf16": True}``; see `MsaTrainingArguments`.

    Returns:
        The folders of the runs, seed by seed.

    Raises:
        MsaError: If recipe, data, a flag or a folder will not do, or training diverges.

    Example:
        ```python
        from hf_msa import train

        runs = train("text/sample", "data/sample", "runs/text", seeds=[1], flags={"num_train_epochs": 1})
        ```
    """
    contexts = train_each(
        recipe,
        data,
        output,
        seeds=seeds,
        ablation=ablation,
        assignments=assignments,
        text_model=text_model,
        train_rate=train_rate,
        media=media,
        stages_from=stages_from,
        flags=flags,
    )
    return [context.folder for context in contexts]


def train_each(
    recipe: str,
    data: str | Path,
    output: str | Path,
    *,
    seeds: Sequence[int],
    ablation: str | None,
    assignments: Sequence[str],
    text_model: str | None,
    train_rate: str | float,
    media: str | None,
    stages_from: str | None,
    flags: Mapping[str, Any] | None,
) -> Iterator["RunContext"]:
    """Do the work of `train`, run by run.

    Yields:
        What each run was made with, when it is finished and has its card.
    """
    # They need accelerate, which a user of trained models may not have.
    from accelerate import PartialState

    from .training.recipes import load_recipe, train_rates
    from .training.stages import run_recipe, tidy_context

    loaded = {
        rate: load_recipe(recipe, ablation=ablation, assignments=assignments, text_model=text_model, train_rate=rate)
        for rate in train_rates(str(train_rate))
    }
    rows = None
    for seed in seeds:
        done: list[RunContext] = []
        for rate, settings in loaded.items():
            place = rate_folder(output, rate) if train_rate == "match" and rate is not None else Path(output)
            shared = done[0].folder if done else None
            # The later ones take over stages of the first, which is tidied when all are finished.
            context = run_recipe(
                settings, str(data), place, seed, flags, rows, media, shared, bool(done), stages_from, seeds
            )
            done.append(context)
            rows = context.rows
            if PartialState().is_main_process:
                write_card(context.folder)
            yield context
        if PartialState().is_main_process:
            tidy_context(done[0])


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    protocol: str | None = None,
    rates: Sequence[float] | None = None,
    mask_seeds: Sequence[int] = (1111,),
    split: str = "test",
    batch_size: int = 128,
    output: str | None = None,
    subset: str | None = None,
    subset_rule: str | None = None,
    changes: Mapping[str, Any] | None = None,
    media: str | None = None,
    protocol_fields: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Test a checkpoint, or all training seeds of a run, over missing rates or patterns.

    It writes results.json, predictions and, where matplotlib is installed, curves, and renders the model cards of the runs
    anew with them.

    Args:
        model: A run folder (one seed or all of them), a saved model, or a Hub name.
        data: Folder or Hub name of a prepared data set.
        protocol: What is missing: a key of `hf_msa.data.missing.PROTOCOLS`; default: that of the recipe.
        rates: Missing rates instead of the protocol's own.
        mask_seeds: Seeds of the masks.
        split: What to evaluate on.
        batch_size: Rows per batch.
        output: Folder of the results; default: the run's folder, and for a subset a folder in it.
        subset: ``"consistent"`` or ``"inconsistent"``, for a part of the split by its unimodal labels; default: all of it.
        subset_rule: What makes a sample inconsistent, see `hf_msa.evaluation.subsets.RULES`.
        changes: Values of the model's configuration to be used instead of its own; `output` must then be given.
        media: Folder with the clips' recordings, see `MediaFolder`; for methods that ask a language model.
        protocol_fields: The protocol's other fields, e.g. ``{"blocks": 2}``.
        trust_remote_code: Whether code that lies in the checkpoint is run, for a method that is not registered here.

    Returns:
        The results, and the files that were written.

    Raises:
        MsaError: If model, data, media or protocol will not do.

    Example:
        ```python
        from hf_msa import evaluate

        results = evaluate("runs/text", "data/sample", protocol="complete", output="results/complete").content
        results["mean_over_rates"]["mae"]["mean"]  # in label units; accuracies are fractions
        ```
    """
    results = evaluate_runs(
        str(model),
        str(data),
        protocol=protocol,
        rates=rates,
        mask_seeds=mask_seeds,
        split=split,
        batch_size=batch_size,
        output=output,
        subset=subset,
        subset_rule=subset_rule,
        changes=changes,
        media=media,
        protocol_fields=protocol_fields,
        trust_remote_code=trust_remote_code,
    )
    # What a card says of a method comes with its registration.
    for run in results.runs if results.content["method"] in METHODS else ():
        write_card(run)
    return results


def compare(
    runs: Sequence[str | Path],
    *,
    paper: str | Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    allow_oracle: bool = False,
    output: str | Path | None = None,
) -> Comparison:
    """Put results side by side, with paired tests, and beside the papers'.

    Args:
        runs: Folders with a results.json; the first is what the others are compared with.
        paper: Keys of papers whose rows are shown as well.
        metrics: Names to show; default: all that any of the runs has.
        allow_oracle: Show upper bounds beside usable models, marked as such.
        output: Folder for the tables (Markdown, CSV, LaTeX) and figures.

    Returns:
        The comparison: numbers, and tables as text (`to_markdown`, `to_rich`).

    Raises:
        MsaError: If a result cannot be read, the runs are not comparable, or matplotlib is needed and not installed.

    Example:
        ```python
        from hf_msa import compare, evaluate

        evaluate("runs/text", "data/sample", rates=[0.0, 0.5], changes={"mask_padding": False}, output="results/padded")
        print(compare(["runs/text", "results/padded"], metrics=["mae"]).to_markdown())
        ```
    """
    comparison = compare_runs(runs, paper=paper, metrics=metrics, allow_oracle=allow_oracle)
    if output is not None:
        comparison.write(output)
        plot_curves(comparison.runs, Path(output) / "curves", names=comparison.names)
    return comparison


def predict(
    model: str | Path,
    *,
    text: str | None = None,
    audio: str | None = None,
    vision: str | None = None,
    video: str | None = None,
    explain: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score one utterance whose features or recordings lie in files; for many, load the pipeline once (`load_pipeline`).

    Args:
        model: A run folder (one seed), a saved model or a Hub name.
        text: The transcript.
        audio: A recording, or features `(frames, width)` in .npy, .csv or .mat.
        vision: A feature file.
        video: A recording, of whose sound and pictures the features are made that are not given.
        explain: A figure to draw, of how much the score changes without each modality and each word.
        **options: As `load_pipeline` takes them, e.g. `changes`, `transcribe` or `face_model`.

    Returns:
        What the pipeline says, see `MsaPipeline`; with `explain` also `explanation`, see `hf_msa.clip_scores.explain`.

    Raises:
        MsaError: If nothing is given, or the model or a file cannot be read, or does not fit.

    Example:
        ```python
        from hf_msa import predict

        predict("runs/text", text="a wonderful film")["score"]  # in label units
        ```
    """
    pipeline = load_pipeline(str(model), **options)
    utterance = read_utterance(pipeline.processor.feature_extractor, text, audio, vision, video)
    with as_msa_errors():
        found: dict[str, Any] = pipeline(utterance)
        if explain is not None:
            found["explanation"] = explain_score(pipeline, utterance)
            plot_explanation(found["explanation"], explain)
    return found


def predict_clips(
    model: str | Path,
    clips: Sequence[str] = (),
    *,
    manifest: str | None = None,
    output: str | Path | None = None,
    batch_size: int = 8,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Score recordings one by one.

    Args:
        model: A run folder (one seed), a saved model or a Hub name.
        clips: Recordings, or folders of them.
        manifest: A CSV or JSONL list of recordings: path, text, start, end, ...
        output: A table to write them to, `.csv`, `.jsonl` or `.parquet`, before the first is given; interrupted, it goes on
            where it was.
        batch_size: Clips at once.
        **options: As `load_pipeline` takes them, e.g. `changes`, `transcribe` or `face_model`.

    Returns:
        For each clip `id`, `path`, and what the pipeline says, or `error`; without `output` each is scored when it is taken.

    Raises:
        MsaError: If there are no recordings, a list is wrong, or the model cannot be read or cannot predict.

    Example:
        ```python
        from hf_msa import predict_clips

        for row in predict_clips("runs/text", ["clips"]):
            print(row["id"], row.get("score"), row.get("error"))
        ```
    """
    if batch_size < 1:
        raise MsaError(f"--batch-size is {batch_size}; give at least 1.")
    if not clips and manifest is None:
        raise MsaError("There is nothing to score; give recordings, or a manifest of them.")
    listed = find_clips(clips, manifest)
    pipeline = load_pipeline(str(model), **options)
    if output is None:
        return score_clips(pipeline, listed, batch_size)
    return iter(write_scores(pipeline, listed, output, model=str(model), batch_size=batch_size))
