"""What choosing the checkpoint on the test split would have given (TCMR, appendix D and Table 7).

Public code of the field keeps, for each metric, the checkpoint that is best *on the test split*, which flatters the
numbers. Every checkpoint that a run kept is evaluated on the validation split, under the recipe's selection protocol,
and on the test split over the missing rates; then both ways of choosing are set side by side. The second one is an
oracle, shown for its optimism alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm.auto import tqdm

from hf_msa.data.loading import dataset_facts
from hf_msa.data.missing import FRAME_RATES, Condition, conditions, protocol_from_dict
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS, family_metrics, regression_metrics
from hf_msa.evaluation.report import format_value, markdown_table, metric_heading
from hf_msa.evaluation.statistics import mean_and_std
from hf_msa.evaluation.sweep import sweep
from hf_msa.label_families import AnyFamily
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.processing_msa import MsaProcessor

from .runs import TrainedRun, find_runs, load_split, load_stage_checkpoint
from .writing import counted, drawn_figure, write_csv, write_markdown

_MASK_SEED = 1111


class RowsOfDraw:
    """Rows of one draw, for a sweep whose masks are another of the protocol's fixed draws.

    Args:
        rows: The rows.
        draw: Number of the draw.
    """

    def __init__(self, rows: MsaRows, draw: int) -> None:
        self._rows = rows
        self._draw = draw
        self.ids, self.labels, self.lengths, self.split = rows.ids, rows.labels, rows.lengths, rows.split

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._rows[index], "draw": self._draw}


def audit(checkpoints: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
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


def analyze_selection(
    runs: Sequence[str], *, data: str, output: Path, rates: Sequence[float] = FRAME_RATES
) -> list[Path]:
    """Write how much better a run would look with its checkpoint chosen on the test split.

    Args:
        runs: Run folders of any method whose training kept its checkpoints (``--save_total_limit 1000``).
        data: Folder or Hub name of a prepared data set.
        output: The folder to write to.
        rates: Missing rates of the test.

    Raises:
        MsaError: If a run kept fewer than two checkpoints, or the data will not do.
    """
    found = find_runs(runs)
    kept = [run.checkpoints() for run in found]
    for run, checkpoints in zip(found, kept, strict=True):
        if len(checkpoints) < 2:
            raise MsaError(
                f"{run.folder} kept {counted(len(checkpoints), 'checkpoint')} of a whole "
                "model, so there is nothing to choose from; train with --save_total_limit 1000 to keep one per epoch."
            )
    family = dataset_facts(data).label_family
    metrics = family_metrics(family)
    splits = {split: load_split(data, split, found[0]) for split in ("validation", "test")}
    table: list[dict[str, Any]] = []
    audited: list[dict[str, Any]] = []
    for run, checkpoints in zip(found, kept, strict=True):
        _, processor = run.load(data, splits["test"])
        entries = [
            {"training seed": run.seed, "step": step}
            | evaluate_checkpoint(run, load_stage_checkpoint(folder), processor, splits, rates, family)
            for step, folder in tqdm(checkpoints, desc="checkpoints", leave=False)
        ]
        table += entries
        audited += [{"training seed": run.seed, **row} for row in audit(entries, metrics)]
    written = [write_csv(output / "checkpoints.csv", table), write_csv(output / "selection.csv", audited)]
    written.append(write_markdown(output / "selection.md", *_summary(found, kept, audited, metrics, rates)))
    _draw(output / "selection", table, metrics, written)
    return written


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
    protocol = protocol_from_dict(missing["validation"])
    errors = []
    for draw in range(missing["selection_repeats"]):
        rows = cast(MsaRows, RowsOfDraw(splits["validation"], draw))
        (part,), _ = sweep(model, processor, rows, [Condition(_MASK_SEED, 0.0, protocol)])
        errors.append(float(np.square(part["prediction"].astype(np.float64) - part["label"]).mean()))
    tested = conditions("frame", ("text",), rates, (_MASK_SEED,))
    parts, _ = sweep(model, processor, splits["test"], tested)
    scores = [regression_metrics(part["prediction"], part["label"], family) for part in parts]
    return {"validation": float(np.mean(errors))} | {
        metric: float(np.mean([score[metric] for score in scores])) for metric in family_metrics(family)
    }


def _summary(
    found: Sequence[TrainedRun],
    kept: Sequence[Sequence[Any]],
    audited: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    rates: Sequence[float],
) -> list[str]:
    rows = []
    for metric in metrics:
        entries = [row for row in audited if row["metric"] == metric]
        cells = []
        for column in ("chosen on validation", "test oracle", "optimism"):
            mean, std = mean_and_std([row[column] for row in entries])
            cells.append(_value(metric, mean) + ("" if np.isnan(std) else f" ± {_value(metric, std)}"))
        rows.append([metric_heading(metric), *cells])
    epochs = [
        max(stage["epochs"] for stage in run.facts["stages"] if stage["name"] == run.facts["selection"]["stage"])
        for run in found
    ]
    counts = ", ".join(
        f"{len(c)} of {e:g} epochs (seed {r.seed})" for r, c, e in zip(found, kept, epochs, strict=True)
    )
    return [
        "# Selection audit",
        "**Oracle:** the column *test oracle* chooses a checkpoint per metric by looking at the test labels. It shows "
        "how optimistic that is, and must not be reported as a result.",
        f"{found[0].name}; means over the missing rates {', '.join(f'{rate:g}' for rate in rates)} of the test split; "
        f"{counted(len(found), 'training seed')}, ± is the standard deviation over them. "
        f"Checkpoints that were kept: {counts}. Optimism is positive where the oracle looks better.",
        markdown_table(["", "chosen on validation", "test oracle", "optimism"], rows),
    ]


def _chosen(checkpoints: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The checkpoint with the least error on validation, the earlier one of a tie."""
    return min(checkpoints, key=lambda entry: (entry["validation"], entry["step"]))


def _value(metric: str, value: float) -> str:
    return format_value(metric, None if np.isnan(value) else value)


def _draw(stem: Path, table: Sequence[Mapping[str, Any]], metrics: Sequence[str], written: list[Path]) -> None:
    shown = ("validation", *(metric for metric in metrics if metric in ("mae", "corr")))
    titles = {"validation": "validation: mean squared error"}
    with drawn_figure(stem, 2.8 * len(shown), 2.4, written) as figure:
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
