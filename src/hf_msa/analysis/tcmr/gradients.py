"""Angle between the gradients of TCMR's confidence loss and of its task loss on what both train (section 3.7).

The paper holds that the two pull apart within a step, and alternates between the losses for that reason. It means the
gradients on text encoder and ConfNet together, so the task's is taken along every path, that through the predicted
confidence of eq. 10 included. Beside that cosine stand the one on the text encoder alone, and that of the task without the
path through the confidence, which is what the alternating optimisation leaves of it.

All is measured batch by batch on training batches under training masks; nothing is trained. Dropout is off, so that the
angle is that of the losses and not of two dropout draws. The lengths of the gradients on the text encoder say which loss
moves it; those of task and text reconstruction are weighted as in training.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_msa.analysis.common.trained_runs import TrainedRun, find_runs, load_stage_checkpoint
from hf_msa.analysis.estimates import Rows
from hf_msa.analysis.tcmr.judged_model import load_judged, text_regressor
from hf_msa.analysis.tool_report import GREY, Figure, Report, mark_whole_numbers
from hf_msa.analysis.tools import tool
from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import protocol_from_dict
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.statistics import mean_and_std
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis, TcmrPolarityClassifier, TcmrTextRegressor
from hf_msa.models.msa_schema import MODALITIES
from hf_msa.models.processing_msa import MsaProcessor

STEPS = 40
"""Batches per checkpoint."""

BATCH_SIZE = 32

_LENGTHS = ("confidence", "task", "reconstruction")
_OTHERS = ("cosine on the text encoder", "without the path", *(f"{name} gradient" for name in _LENGTHS))


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
    """Summarise cosines and lengths per training step, and over the models that validation chose.

    Args:
        table: One row per batch: step, chosen (whether it is the run's final model), and the columns of `batch_row`.

    Returns:
        Per step in ascending order, then for the chosen models: batches, mean and standard deviation of the cosine, the
        share of negative ones, and the means of the other columns; what is not defined is left out.
    """
    groups = {f"step {step}": [row for row in table if row["step"] == step] for step in _steps(table)}
    groups["chosen"] = [row for row in table if row["chosen"]]
    rows = []
    for name, group in groups.items():
        values = _finite(group, "cosine")
        mean, std = mean_and_std(values) if values else (float("nan"), float("nan"))
        share = float(np.mean([value < 0 for value in values])) if values else float("nan")
        rows.append(
            {"checkpoint": name, "batches": len(values), "cosine": mean, "sd": std, "negative": share}
            | {other: float(np.mean(_finite(group, other) or [float("nan")])) for other in _OTHERS}
        )
    return rows


def _finite(rows: Rows, column: str) -> list[float]:
    return [row[column] for row in rows if np.isfinite(row[column])]


@tool("gradients", "whether confidence and task pull text encoder and ConfNet apart", methods=("tcmr",))
def analyze_gradients(
    runs: Sequence[str], report: Report, *, data: str, split: str = "train", steps: int = STEPS
) -> None:
    """Show the angle between the gradients of confidence and task on text encoder and ConfNet, per batch and checkpoint.

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
        regressor = text_regressor(run)
        batches = training_batches(run, rows, processor, steps)
        chosen = int(run.facts["selection"]["step"] or 0)
        others = [(step, folder) for step, folder in run.checkpoints() if step != chosen]
        for step, folder in [(chosen, None), *others]:
            model = final if folder is None else load_stage_checkpoint(folder)
            key = {"training seed": run.seed, "step": step, "chosen": folder is None}
            bar = tqdm(batches, desc=f"gradients at step {step}", leave=False, disable=None)
            for number, batch in enumerate(bar):
                moved = {name: value.to(model.device) for name, value in batch.items()}
                table.append({**key, "batch": number, **batch_row(model, classifier, regressor, moved)})
    summary = conflict_rows(table)
    report.csv("gradients.csv", table)
    report.csv("gradients_by_checkpoint.csv", summary)
    report.summary(
        "gradients.md",
        "Gradient conflict on text encoder and ConfNet",
        f"{steps} batches of {min(BATCH_SIZE, len(rows))} ({split}) under training masks, "
        f"{counted(len(found), 'training seed')}, dropout off. Cosine between the gradients "
        "of the confidence loss and of the task loss, the path through the predicted confidence included; negative: the "
        "share of batches in which they pull apart. Without that path: on the text encoder, as the second phase sees it. "
        "The lengths are those on the text encoder.",
        summary,
    )
    report.figure("gradients", _draw, table, summary)


def training_batches(run: TrainedRun, rows: MsaRows, processor: MsaProcessor, steps: int) -> list[dict[str, Tensor]]:
    """Make random batches under the run's training masks; every pass over the rows draws new masks."""
    values = dict(run.facts["settings"]["missing"]["train"])
    protocol = protocol_from_dict(values)
    if hasattr(protocol, "seed") and "seed" not in values:
        protocol = protocol_from_dict(values | {"seed": run.seed})
    collator = MsaCollator(processor, protocol.bind(rows.ids), split=rows.split, return_complete=True)
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
    model: MsaPreTrainedModel,
    classifier: TcmrPolarityClassifier,
    regressor: TcmrTextRegressor,
    batch: dict[str, Tensor],
) -> dict[str, tuple[Tensor | None, ...]]:
    """Gradients of the losses on one batch, on the parameters of the text encoder and, behind them, of ConfNet.

    Returns:
        `confidence` (eq. 6); `task` (eq. 12) along every path; `detached task`, without that through the predicted
        confidence; `reconstruction` (eq. 11), as training takes it. None where a loss does not depend on a parameter.
    """
    model = cast(TcmrForSentimentAnalysis, model)
    given, labels = model.inputs_from(batch, predicting=True), batch["labels"]
    if model.config.confidence_target == "completeness":
        targets = 1.0 - batch["missing_rates"][:, MODALITIES.index("text")].nan_to_num(0.0)
    else:
        targets = classifier.true_class_probability(batch["input_ids"], batch["attention_mask"], labels)
    with torch.no_grad():
        wanted = regressor(batch["complete_input_ids"], batch["complete_attention_mask"]).features
    shared = [parameter.requires_grad_(True) for parameter in model.confidence_parameters()]
    whole = model(**given, labels=labels, objective="all")
    losses = {
        "confidence": model(**given, confidence_targets=targets, objective="confidence").loss,
        "task": whole.loss,
        "detached task": model(**given, labels=labels, confidence=whole.confidence.detach(), objective="task").loss,
        "reconstruction": model(**given, text_targets=wanted, objective="other").loss,
    }
    return {name: torch.autograd.grad(loss, shared, allow_unused=True) for name, loss in losses.items()}


def batch_row(
    model: MsaPreTrainedModel,
    classifier: TcmrPolarityClassifier,
    regressor: TcmrTextRegressor,
    batch: dict[str, Tensor],
) -> dict[str, float]:
    """Cosines of one batch, and the lengths of the gradients on the text encoder."""
    found = loss_gradients(model, classifier, regressor, batch)
    count = len(list(cast(nn.Module, model.text_encoder).parameters()))
    on_text = {name: parts[:count] for name, parts in found.items()}
    confidence = on_text["confidence"]
    return {
        "cosine": gradient_angle(found["confidence"], found["task"])[0],
        "cosine on the text encoder": gradient_angle(confidence, on_text["task"])[0],
        "without the path": gradient_angle(confidence, on_text["detached task"])[0],
        **{f"{name} gradient": gradient_angle(confidence, on_text[name])[2] for name in _LENGTHS},
    }


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
    mark_whole_numbers(right.xaxis)
    right.set_title("mean and deviation over batches", fontsize=8)
