"""Parts of a method's error: a shift common to all samples, a wrong spread, or a wrong order.

Splits of public data often differ in their mean label, and a model carries with it the mean that it was trained on. Such
a shift moves the absolute error of every method and no correlation, so that two methods may differ in MAE although they
order samples equally well. The error is shown beside what it would be if the shift were known and taken away, and if the
best line from predictions to labels were known. Both look at test labels: they explain a number, and are no result.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.analysis.estimates import Rows, format_spread, seed_means
from hf_msa.analysis.tool_report import GREY, Figure, Report
from hf_msa.analysis.tools import tool
from hf_msa.evaluation.report import distinct_names
from hf_msa.evaluation.results import Predictions, read_predictions, read_results
from hf_msa.figures import label_lines

PARTS = ("mae", "bias", "spread", "mae without bias", "mae on the best line")
"""The numbers per run, seed and rate; all in label units."""


def error_parts(predictions: NDArray[np.float32], labels: NDArray[np.float32]) -> dict[str, float]:
    """Take the error of N predictions (N,) of N labels (N,) apart.

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


@tool("error-parts", "how much of the error is a common shift, and what it would be without")
def analyze_error_parts(runs: Sequence[str], report: Report) -> None:
    """Show bias, spread and error without bias of one or several runs, over all rates and at each.

    Args:
        runs: Folders with a ``results.json`` and its predictions, of any methods.
        report: Takes what is found.

    Raises:
        MsaError: If a run has no results or no predictions.
    """
    results = [read_results(run) for run in runs]
    names = distinct_names(runs, results)
    tables = {name: part_rows(read_predictions(run)) for name, run in zip(names, runs, strict=True)}
    report.csv("error_parts.csv", [{"run": name, **row} for name, rows in tables.items() for row in rows])
    dataset = results[0]["dataset"]
    report.summary(
        "error_parts.md",
        "Parts of the error",
        f"{dataset['name']}, {dataset['split']} split, mean over the settings of protocol "
        f"{results[0]['protocol']['name']}; ± is the standard deviation over training seeds. Bias is the mean error, "
        "spread the standard deviation of the predictions. The last two columns look at the labels that are tested "
        "on: they explain the error, no model has them.",
        [
            {"run": name} | {part: format_spread(seed_means(rows, part)) for part in PARTS}
            for name, rows in tables.items()
        ],
    )
    report.figure("error_parts", _draw, tables)


def _draw(figure: Figure, tables: Mapping[str, Rows]) -> None:
    figure.set_size_inches(9.0, 3.6)
    panels = figure.subplots(1, 2)
    for panel, part in zip(panels, ("bias", "mae without bias"), strict=True):
        for name, rows in tables.items():
            rates = list(dict.fromkeys(row["rate"] for row in rows))
            means = [np.mean([row[part] for row in rows if row["rate"] == rate]) for rate in rates]
            panel.plot([label_lines(str(rate), 7) for rate in rates], means, marker="o", markersize=3, label=name)
        panel.set_xlabel("missing rate or pattern")
        panel.set_ylabel(f"{part} (label units)")
    panels[0].axhline(0.0, color=GREY, linewidth=0.8)
    panels[0].legend(frameon=False)
