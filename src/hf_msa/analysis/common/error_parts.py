"""What a method's error is made of: a shift common to all samples, a wrong spread, or a wrong order.

Splits of public data often differ in their mean label, and a model carries the mean that it was trained on with it. Such
a shift moves the absolute error of every method and no correlation, so that two methods may differ in MAE although they
order samples equally well. The error is shown beside what it would be if the shift were known and taken away, and if the
best line from predictions to labels were known. Both look at test labels: they explain a number, they are no result.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.common.curves import distinct_names
from hf_msa.analysis.tool_report import drawn_figure, format_spread, rows_table, write_csv, write_markdown
from hf_msa.data.missing import Rate
from hf_msa.evaluation.results import Predictions, read_predictions, read_results
from hf_msa.evaluation.statistics import mean_and_std

PARTS = ("mae", "bias", "spread", "mae without bias", "mae on the best line")
"""The numbers per run, seed and rate; all in label units."""


def error_parts(predictions: NDArray[np.float32], labels: NDArray[np.float32]) -> dict[str, float]:
    """Take the error of N predictions apart.

    Args:
        predictions: Scores, (N,).
        labels: Labels, (N,).

    Returns:
        `PARTS`: the mean absolute error, the mean error, the standard deviation of the predictions, and the mean absolute
        error after the mean error is taken away, and after the least-squares line to the labels.
    """
    predicted, truth = predictions.astype(np.float64), labels.astype(np.float64)
    errors = predicted - truth
    slope = 0.0
    if predicted.std() > 0:
        slope = float(((predicted - predicted.mean()) * (truth - truth.mean())).mean() / predicted.var())
    line = truth.mean() + slope * (predicted - predicted.mean())
    values = (
        np.abs(errors).mean(),
        errors.mean(),
        predicted.std(),
        np.abs(errors - errors.mean()).mean(),
        np.abs(line - truth).mean(),
    )
    return {name: float(value) for name, value in zip(PARTS, values, strict=True)}


def part_rows(grid: Predictions) -> list[dict[str, Any]]:
    """`error_parts` per training seed and rate, averaged over mask seeds."""
    rows = []
    for s, seed in enumerate(grid.training_seeds):
        for r, rate in enumerate(grid.rates):
            found = [error_parts(scores, grid.labels) for scores in grid.scores[s, :, r]]
            means = {name: float(np.mean([parts[name] for parts in found])) for name in PARTS}
            rows.append({"training seed": seed, "rate": rate, **means})
    return rows


def analyze_error_parts(runs: Sequence[str], *, output: Path) -> list[Path]:
    """Write bias, spread and error without bias of one or several runs, over all rates and at each.

    Args:
        runs: Folders with a ``results.json`` and its predictions, of any methods.
        output: The folder to write to.

    Raises:
        MsaError: If a run has no results or no predictions.
    """
    results = [read_results(run) for run in runs]
    names = distinct_names(runs, results)
    tables = {name: part_rows(read_predictions(run)) for name, run in zip(names, runs, strict=True)}
    written = [
        write_csv(output / "error_parts.csv", [{"run": n, **row} for n, rows in tables.items() for row in rows])
    ]
    dataset = results[0]["dataset"]
    written.append(
        write_markdown(
            output / "error_parts.md",
            "# Parts of the error",
            f"{dataset['name']}, {dataset['split']} split, mean over the settings of protocol "
            f"{results[0]['protocol']['name']}; ± is the standard deviation over training seeds. Bias is the mean error, "
            "spread the standard deviation of the predictions. The last two columns look at the labels that are tested "
            "on: they explain the error, no model has them.",
            rows_table([{"run": name, **_summary(rows)} for name, rows in tables.items()]),
        )
    )
    _draw(output / "error_parts", tables, written)
    return written


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    seeds = list(dict.fromkeys(row["training seed"] for row in rows))
    return {
        name: format_spread(
            [float(np.mean([row[name] for row in rows if row["training seed"] == seed])) for seed in seeds]
        )
        for name in PARTS
    }


def _draw(stem: Path, tables: dict[str, list[dict[str, Any]]], written: list[Path]) -> None:
    with drawn_figure(stem, 9.0, 3.6, written) as figure:
        panels = figure.subplots(1, 2)
        for panel, part in zip(panels, ("bias", "mae without bias"), strict=True):
            for name, rows in tables.items():
                rates: list[Rate] = list(dict.fromkeys(row["rate"] for row in rows))
                means = [mean_and_std([row[part] for row in rows if row["rate"] == rate])[0] for rate in rates]
                panel.plot([str(rate) for rate in rates], means, marker="o", markersize=3, label=name)
            panel.set_xlabel("missing rate or pattern")
            panel.set_ylabel(f"{part} (label units)")
        panels[0].axhline(0.0, color="0.6", linewidth=0.8)
        panels[0].legend(frameon=False)
