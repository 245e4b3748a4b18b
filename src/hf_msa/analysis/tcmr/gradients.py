"""Angle between the gradients of TCMR's confidence loss and of its task loss on the shared text encoder (section 3.7).

The paper holds that the two pull apart within a step, and alternates between the losses for that reason. Here the cosine
between their gradients is measured, batch by batch, on training batches under training masks; nothing is trained.
Dropout is off, so that the angle is that of the losses and not of two dropout draws.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_msa.analysis.common.trained_runs import TrainedRun, find_runs, load_stage_checkpoint
from hf_msa.analysis.estimates import Rows
from hf_msa.analysis.tcmr.judged_model import load_judged
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import protocol_from_dict
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.report import counted
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


def conflict_rows(table: Rows) -> list[dict[str, Any]]:
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


@tool("gradients", "whether the confidence and the task pull the text encoder apart", methods=("tcmr",))
def analyze_gradients(
    runs: Sequence[str], report: Report, *, data: str, split: str = "train", steps: int = STEPS
) -> None:
    """Show the angle between the gradients of confidence and task on the text encoder, per batch and checkpoint.

    The checkpoints are the final model, which validation chose, and those that training kept beside it
    (``--save_total_limit``). Each sees the same batches.

    Args:
        runs: TCMR run folders.
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set.
        split: The split that batches are drawn from.
        steps: Batches per checkpoint.
    """
    if steps < 1:
        raise MsaError(f"The number of steps is {steps}; give at least 1.")
    found = find_runs(runs, "tcmr")
    rows = found[0].rows(data, split)
    table: list[dict[str, Any]] = []
    for run in found:
        final, processor, classifier = load_judged(run, rows)
        batches = training_batches(run, rows, processor, steps)
        chosen = int(run.facts["selection"]["step"] or 0)
        others = [(step, folder) for step, folder in run.checkpoints() if step != chosen]
        for step, folder in [(chosen, None), *others]:
            model = final if folder is None else load_stage_checkpoint(folder)
            key = {"training seed": run.seed, "step": step, "chosen": folder is None}
            bar = tqdm(batches, desc=f"gradients at step {step}", leave=False, disable=None)
            for number, batch in enumerate(bar):
                moved = {name: value.to(model.device) for name, value in batch.items()}
                angle = gradient_angle(*loss_gradients(model, classifier, moved))
                columns = ("cosine", "confidence gradient", "task gradient")
                table.append({**key, "batch": number, **dict(zip(columns, angle, strict=True))})
    summary = conflict_rows(table)
    report.csv("gradients.csv", table)
    report.csv("gradients_by_checkpoint.csv", summary)
    report.summary(
        "gradients.md",
        "Gradient conflict on the text encoder",
        f"{steps} batches of {min(BATCH_SIZE, len(rows))} ({split}) under training masks, "
        f"{counted(len(found), 'training seed')}, dropout off. Cosine between the gradients "
        "of the confidence loss and of the task loss; negative: the share of batches in which they pull apart.",
        summary,
    )
    report.figure("gradients", _draw, table, summary)


def training_batches(run: TrainedRun, rows: MsaRows, processor: MsaProcessor, steps: int) -> list[dict[str, Tensor]]:
    """Make random batches under the run's training masks; every pass over the rows draws new masks."""
    values = dict(run.facts["settings"]["missing"]["train"])
    protocol = protocol_from_dict(values)
    if hasattr(protocol, "seed") and "seed" not in values:
        protocol = protocol_from_dict(values | {"seed": run.seed})
    collator = MsaCollator(processor, protocol.bind(rows.ids), split=rows.split)
    generator = np.random.default_rng(run.seed)
    size = min(BATCH_SIZE, len(rows))
    batches: list[dict[str, Tensor]] = []
    draw = 0
    while len(batches) < steps:
        drawn = rows.in_draw(draw).batches(size, generator.permutation(len(rows)))
        batches += [collator(members) for members in drawn if len(members) == size]
        draw += 1
    return batches[:steps]


def loss_gradients(
    model: MsaPreTrainedModel, classifier: TcmrPolarityClassifier, batch: dict[str, Tensor]
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Gradients of the confidence loss and of the task loss on the parameters of the text encoder, for one batch."""
    given = model.inputs_from(batch, predicting=False)
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


def _steps(table: Rows) -> list[int]:
    return sorted({row["step"] for row in table})


def _draw(figure: Figure, table: Rows, summary: Rows) -> None:
    figure.set_size_inches(5.6, 2.6)
    left, right = figure.subplots(1, 2)
    final = [row["cosine"] for row in table if row["chosen"] and np.isfinite(row["cosine"])]
    left.hist(final, bins=20, range=(-1, 1))
    left.axvline(0, color=GREY, linewidth=0.8)
    left.set_xlabel("cosine of the two gradients")
    left.set_ylabel("batches")
    left.set_title("model chosen on validation", fontsize=8)
    means, spread = ([row[key] for row in summary[:-1]] for key in ("cosine", "sd"))
    right.errorbar(_steps(table), means, yerr=spread, marker="o", markersize=3.5)
    right.axhline(0, color=GREY, linewidth=0.8)
    right.set_xlabel("training step")
    right.set_title("mean and standard deviation over batches", fontsize=8)
