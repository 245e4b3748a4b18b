"""Optimism of choosing the checkpoint on the test split (TCMR, appendix D and Table 7).

Public code of the field keeps, for each metric, the checkpoint that is best *on the test split*, which flatters the
numbers. Every checkpoint that a run kept is evaluated on the validation split, under the recipe's selection protocol,
and on the test split over the missing rates; then both ways of choosing are set side by side. The second one is an
oracle, shown for its optimism alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_msa.analysis.common.trained_runs import MASK_SEED, TrainedRun, find_runs, load_stage_checkpoint
from hf_msa.analysis.estimates import Rows
from hf_msa.analysis.tool_report import Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.data.loading import dataset_facts
from hf_msa.data.missing import FRAME_RATES, Condition, conditions, protocol_from_dict
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS, family_metrics, regression_metrics
from hf_msa.evaluation.report import counted, format_value, metric_heading
from hf_msa.evaluation.statistics import mean_and_std
from hf_msa.evaluation.sweep import sweep
from hf_msa.label_families import AnyFamily
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.processing_msa import MsaProcessor


def audit(checkpoints: Rows, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Set choosing on validation beside choosing per metric on test.

    Args:
        checkpoints: One per checkpoint of one run: step, validation (the mean squared error that it is chosen by), and
            each metric's mean over rates on the test split; NaN where undefined.
        metrics: The metrics.

    Returns:
        Per metric: the validation choice's step and value, the test oracle's step and value, and the optimism, which
        is positive where the oracle looks better, whatever the metric's direction. A tie goes to the earlier
        checkpoint.
    """
    chosen = _chosen(checkpoints)
    rows = []
    for metric in metrics:
        sign = 1 if METRICS[metric].higher_is_better else -1
        defined = [entry for entry in checkpoints if np.isfinite(entry[metric])]
        best = max(defined, key=lambda entry: (sign * entry[metric], -entry["step"]), default=chosen)
        rows.append(
            {
                "metric": metric,
                "step chosen on validation": chosen["step"],
                "chosen on validation": chosen[metric],
                "step of the test oracle": best["step"],
                "test oracle": best[metric],
                "optimism": sign * (best[metric] - chosen[metric]),
            }
        )
    return rows


@tool("selection", "what choosing the checkpoint on test instead of validation would have given")
def analyze_selection(runs: Sequence[str], report: Report, *, data: str, rates: Sequence[float] = FRAME_RATES) -> None:
    """Show how much better a run would look with its checkpoint chosen on the test split.

    Args:
        runs: Run folders of any method whose training kept its checkpoints (``--save_total_limit 1000``).
        report: Takes what is found.
        data: Folder or Hub name of a prepared data set.
        rates: Missing rates of the test.

    Raises:
        MsaError: If a run kept fewer than two checkpoints, or the data will not do.
    """
    found = find_runs(runs)
    kept = [run.checkpoints() for run in found]
    for run, checkpoints in zip(found, kept, strict=True):
        if len(checkpoints) < 2:
            raise MsaError(
                f"{run.folder} kept {counted(len(checkpoints), 'checkpoint')} of a whole model, so there is nothing to "
                "choose from; train with --save_total_limit 1000 to keep one per epoch."
            )
    family = dataset_facts(data).family
    metrics = family_metrics(family)
    splits = {split: found[0].rows(data, split) for split in ("validation", "test")}
    table: list[dict[str, Any]] = []
    audited: list[dict[str, Any]] = []
    for run, checkpoints in zip(found, kept, strict=True):
        _, processor = run.load(splits["test"])
        entries = [
            {"training seed": run.seed, "step": step}
            | evaluate_checkpoint(run, load_stage_checkpoint(folder), processor, splits, rates, family)
            for step, folder in tqdm(checkpoints, desc="checkpoints", leave=False, disable=None)
        ]
        table += entries
        audited += [{"training seed": run.seed, **row} for row in audit(entries, metrics)]
    report.csv("checkpoints.csv", table)
    report.csv("selection.csv", audited)
    stage = found[0].facts["selection"]["stage"]
    epochs = [max(one["epochs"] for one in run.facts["stages"] if one["name"] == stage) for run in found]
    counts = ", ".join(
        f"{len(c)} of {e:g} epochs (seed {r.seed})" for r, c, e in zip(found, kept, epochs, strict=True)
    )
    report.summary(
        "selection.md",
        "Selection audit",
        "**Oracle:** the column *test oracle* chooses a checkpoint per metric by looking at the test labels. It shows "
        "how optimistic that is, and must not be reported as a result.",
        f"{found[0].name}; means over the missing rates {', '.join(f'{rate:g}' for rate in rates)} of the test split; "
        f"{counted(len(found), 'training seed')}, ± is the standard deviation over them. "
        f"Checkpoints that were kept: {counts}. Optimism is positive where the oracle looks better.",
        [_summary(metric, [row for row in audited if row["metric"] == metric]) for metric in metrics],
    )
    report.figure("selection", _draw, table, metrics)


def evaluate_checkpoint(
    run: TrainedRun,
    model: MsaPreTrainedModel,
    processor: MsaProcessor,
    splits: Mapping[str, MsaRows],
    rates: Sequence[float],
    family: AnyFamily,
) -> dict[str, float]:
    """Evaluate one checkpoint as it is selected, and as it is tested.

    Returns:
        validation: the mean squared error under the selection protocol, over its draws; and each metric's mean over
        rates on the test split.
    """
    missing = run.facts["settings"]["missing"]
    selection = [Condition(MASK_SEED, 0.0, protocol_from_dict(missing["validation"]))]
    errors = []
    for draw in range(missing["selection_repeats"]):
        (part,), _ = sweep(model, processor, splits["validation"].in_draw(draw), selection)
        errors.append(float(np.square(part["prediction"].astype(np.float64) - part["label"]).mean()))
    parts, _ = sweep(model, processor, splits["test"], conditions("frame", ("text",), rates, (MASK_SEED,)))
    scores = [regression_metrics(part["prediction"], part["label"], family) for part in parts]
    return {"validation": float(np.mean(errors))} | {
        metric: float(np.mean([score[metric] for score in scores])) for metric in family_metrics(family)
    }


def _summary(metric: str, entries: Rows) -> dict[str, str]:
    row = {"": metric_heading(metric)}
    for column in ("chosen on validation", "test oracle", "optimism"):
        mean, std = mean_and_std([entry[column] for entry in entries])
        row[column] = format_value(metric, None if np.isnan(mean) else mean)
        row[column] += "" if np.isnan(std) else f" ± {format_value(metric, std)}"
    return row


def _chosen(checkpoints: Rows) -> Mapping[str, Any]:
    """The checkpoint with the least error on validation, the earlier one of a tie."""
    return min(checkpoints, key=lambda entry: (entry["validation"], entry["step"]))


def _draw(figure: Figure, table: Rows, metrics: Sequence[str]) -> None:
    shown = ("validation", *(metric for metric in metrics if metric in ("mae", "corr")))
    titles = {"validation": "validation: mean squared error"}
    figure.set_size_inches(2.8 * len(shown), 2.4)
    for axis, name in zip(figure.subplots(1, len(shown)), shown, strict=True):
        for seed in dict.fromkeys(row["training seed"] for row in table):
            line = [row for row in table if row["training seed"] == seed]
            steps, values = [row["step"] for row in line], [row[name] for row in line]
            (curve,) = axis.plot(steps, values, marker="o", markersize=3, label=f"seed {seed}")
            chosen = _chosen(line)
            axis.plot(chosen["step"], chosen[name], marker="*", markersize=10, color=curve.get_color())
        axis.set_title(titles.get(name) or f"test: {METRICS[name].pretty}, mean over rates", fontsize=8)
        axis.set_xlabel("step (star: chosen on validation)")
    axis.legend(frameon=False, fontsize=6)
