"""Do the confidence loss and the task loss pull the shared text encoder apart? See TCMR, section 3.7.

The paper holds that they do within a step, and alternates between the two losses for that reason. Here the cosine
between their gradients on the text encoder is measured, batch by batch, on training batches under training masks;
nothing is trained. Dropout is off, so that the angle is that of the losses and not of two dropout draws.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_msa.analysis.common.trained_runs import TrainedRun, find_runs, load_split, load_stage_checkpoint
from hf_msa.analysis.tool_report import GREY, counted, drawn_figure, rows_table, write_csv, write_markdown
from hf_msa.data.collator import MsaCollator
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.statistics import mean_and_std
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_tcmr import TcmrPolarityClassifier
from hf_msa.models.msa_schema import MODALITIES
from hf_msa.models.processing_msa import MsaProcessor

STEPS = 40
"""Batches per checkpoint."""

BATCH_SIZE = 32


def gradient_angle(first: Iterable[Tensor | None], second: Iterable[Tensor | None]) -> tuple[float, float, float]:
    """Cosine between two gradients, and the length of each.

    Args:
        first: Gradients of one loss, one per parameter; None where the loss does not depend on it.
        second: Gradients of the other loss for the same parameters.

    Returns:
        Cosine (NaN where either gradient is zero), length of the first, length of the second.
    """
    product = lengths = other = 0.0
    for a, b in zip(first, second, strict=True):
        product += 0.0 if a is None or b is None else float((a.double() * b.double()).sum())
        lengths += 0.0 if a is None else float(a.double().square().sum())
        other += 0.0 if b is None else float(b.double().square().sum())
    scale = float(np.sqrt(lengths) * np.sqrt(other))
    return (product / scale if scale else float("nan")), float(np.sqrt(lengths)), float(np.sqrt(other))


def conflict_rows(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarise cosines per training step, and over the models that validation chose.

    Args:
        table: One row per batch: step, chosen (whether it is the run's final model), cosine.

    Returns:
        Per step in ascending order, then for the chosen models: batches, mean and standard deviation, and the share of
        negative cosines; batches without a defined cosine are left out.
    """
    groups = {f"step {step}": [row for row in table if row["step"] == step] for step in _steps(table)}
    groups["chosen"] = [row for row in table if row["chosen"]]
    rows = []
    for name, group in groups.items():
        values = [row["cosine"] for row in group if np.isfinite(row["cosine"])]
        mean, std = mean_and_std(values) if values else (float("nan"), float("nan"))
        share = float(np.mean([value < 0 for value in values])) if values else float("nan")
        rows.append({"checkpoint": name, "batches": len(values), "cosine": mean, "sd": std, "negative": share})
    return rows


def analyze_gradients(
    runs: Sequence[str], *, data: str, output: Path, split: str = "train", steps: int = STEPS
) -> list[Path]:
    """Write the angle between the gradients of confidence and task on the text encoder, per batch and checkpoint.

    The checkpoints are the final model, which validation chose, and those that training kept beside it
    (``--save_total_limit``). Each sees the same batches.

    Args:
        runs: TCMR run folders.
        data: Folder or Hub name of a prepared data set.
        output: The folder to write to.
        split: The split that batches are drawn from.
        steps: Batches per checkpoint.

    Raises:
        MsaError: If a run or the data will not do, or the run is the upper bound.
    """
    if steps < 1:
        raise MsaError(f"The number of steps is {steps}; give at least 1.")
    found = find_runs(runs, "tcmr")
    rows = load_split(data, split, found[0])
    table: list[dict[str, Any]] = []
    for run in found:
        model, processor = run.load(data, rows)
        if model.config.is_oracle:
            raise MsaError(f"{run.folder} is the upper bound, which has no confidence loss; give a run of TCMR.")
        classifier = run.classifier()
        batches = training_batches(run, rows, processor, steps)
        chosen = int(run.facts["selection"]["step"] or 0)
        table += _probe(run, chosen, True, model, classifier, batches)
        for step, folder in run.checkpoints():
            if step != chosen:
                table += _probe(run, step, False, load_stage_checkpoint(folder), classifier, batches)
    summary = conflict_rows(table)
    written = [write_csv(output / "gradients.csv", table), write_csv(output / "gradients_by_checkpoint.csv", summary)]
    written.append(
        write_markdown(
            output / "gradients.md",
            "# Gradient conflict on the text encoder",
            f"{steps} batches of {min(BATCH_SIZE, len(rows))} ({split}) under training masks, "
            f"{counted(len(found), 'training seed')}, dropout off. Cosine between the gradients "
            "of the confidence loss and of the task loss; negative: the share of batches in which they pull apart.",
            rows_table(summary),
        )
    )
    _draw(output / "gradients", table, summary, written)
    return written


def training_batches(run: TrainedRun, rows: MsaRows, processor: MsaProcessor, steps: int) -> list[dict[str, Tensor]]:
    """Make random batches under the run's training masks; every pass over the rows draws new masks."""
    collator = MsaCollator(processor, run.training_protocol().bind(rows.ids), split=rows.split)
    generator = np.random.default_rng(run.seed)
    batches: list[dict[str, Tensor]] = []
    draw = 0
    while len(batches) < steps:
        order = generator.permutation(len(rows))
        size = min(BATCH_SIZE, len(rows))
        for start in range(0, len(order) - size + 1, size):
            members = [{**rows[int(index)], "draw": draw} for index in order[start : start + size]]
            batches.append(collator(members))
        draw += 1
    return batches[:steps]


def loss_gradients(
    model: MsaPreTrainedModel, classifier: TcmrPolarityClassifier, batch: dict[str, Tensor]
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Gradients of the confidence loss and of the task loss on the parameters of the text encoder.

    Args:
        model: TCMR in eval mode.
        classifier: Its frozen polarity classifier, on the same device.
        batch: From the collator, on the same device.
    """
    accepted = inspect.signature(model.forward).parameters
    given = {name: value for name, value in batch.items() if name in accepted}
    if model.config.confidence_target == "completeness":
        targets = 1.0 - batch["missing_rates"][:, MODALITIES.index("text")].nan_to_num(0.0)
    else:
        targets = classifier.true_class_probability(batch["input_ids"], batch["attention_mask"], batch["labels"])
    text_encoder = cast(nn.Module, model.text_encoder)
    shared = [parameter.requires_grad_(True) for parameter in text_encoder.parameters()]
    losses = (
        model(**given, confidence_targets=targets, objective="confidence").loss,
        model(**given, objective="task").loss,
    )
    confidence, task = (torch.autograd.grad(loss, shared, allow_unused=True) for loss in losses)
    return confidence, task


def _steps(table: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({row["step"] for row in table})


def _probe(
    run: TrainedRun,
    step: int,
    chosen: bool,
    model: MsaPreTrainedModel,
    classifier: TcmrPolarityClassifier,
    batches: Sequence[dict[str, Tensor]],
) -> list[dict[str, Any]]:
    device = next(model.parameters()).device
    rows = []
    for number, batch in enumerate(tqdm(batches, desc=f"gradients at step {step}", leave=False)):
        moved = {key: value.to(device) for key, value in batch.items()}
        cosine, confidence, task = gradient_angle(*loss_gradients(model, classifier, moved))
        rows.append(
            {
                "training seed": run.seed,
                "step": step,
                "chosen": chosen,
                "batch": number,
                "cosine": cosine,
                "confidence gradient": confidence,
                "task gradient": task,
            }
        )
    return rows


def _draw(
    stem: Path, table: Sequence[Mapping[str, Any]], summary: Sequence[Mapping[str, Any]], written: list[Path]
) -> None:
    final = [row["cosine"] for row in table if row["chosen"] and np.isfinite(row["cosine"])]
    with drawn_figure(stem, 5.6, 2.6, written) as figure:
        left, right = figure.subplots(1, 2)
        left.hist(final, bins=20, range=(-1, 1))
        left.axvline(0, color=GREY, linewidth=0.8)
        left.set_xlabel("cosine of the two gradients")
        left.set_ylabel("batches")
        left.set_title("model chosen on validation", fontsize=8)
        by_step = summary[:-1]
        means, spread = ([row[key] for row in by_step] for key in ("cosine", "sd"))
        right.errorbar(_steps(table), means, yerr=spread, marker="o", markersize=3.5)
        right.axhline(0, color=GREY, linewidth=0.8)
        right.set_xlabel("training step")
        right.set_title("mean and standard deviation over batches", fontsize=8)
