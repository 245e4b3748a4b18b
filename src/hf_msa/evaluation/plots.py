"""Curves over missing rates, drawn from ``results.json`` alone."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.report import count_text, data_text, metric_heading, run_name, shared_metrics, split_text
from hf_msa.evaluation.results import Results
from hf_msa.figures import write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES_FILE = "curves"
"""The name, without ending, of the curves beside a result."""

# Okabe and Ito's colours, told apart by the colour-blind; with markers they also survive a black-and-white print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_COLUMNS = 4


def plot_curves(
    runs: Sequence[Results],
    stem: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Write a figure of `draw_curves`, see `write_figure`."""
    return write_figure(stem, lambda figure: draw_curves(figure, runs, metrics, names))


def draw_curves(
    figure: "Figure",
    runs: Sequence[Results],
    metrics: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Draw one small panel per metric: its mean over missing rates, with the bootstrap interval as a band.

    Availability patterns, which have no order, and a single setting are drawn as points with error bars.

    Args:
        figure: What to draw on.
        runs: Results of the same label family and rates.
        metrics: Names to show; all that every run has by default.
        names: Legend entries; method and ablation by default.

    Raises:
        MsaError: If there are no runs, more of them than can be told apart, or they differ in label family or rates.
    """
    if not 1 <= len(runs) <= len(_COLOURS):
        raise MsaError(f"One to {len(_COLOURS)} runs can be told apart in a plot; got {len(runs)}.")
    rates = [entry["rate"] for entry in runs[0]["per_rate"]]
    for run in runs[1:]:
        family = run["dataset"]["label_family"]
        if family != runs[0]["dataset"]["label_family"] or [entry["rate"] for entry in run["per_rate"]] != rates:
            raise MsaError(
                "Curves can be drawn together only for runs of one label family and the same missing rates."
            )
    shown = shared_metrics(runs, metrics)
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    labels = list(names or map(run_name, runs))
    figure.set_size_inches(2.7 * columns + 0.4, 2.2 * rows + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, metric in zip(axes.flat, shown, strict=False):
        for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
            _draw(axis, run, metric, index, label, len(runs))
        _dress(axis, metric, rates)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    figure.suptitle(_title(runs), fontsize=9)
    handles, texts = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)


def _draw(axis: "Axes", run: Results, metric: str, index: int, label: str, runs: int) -> None:
    scale = 100 if METRICS[metric].percent else 1
    mean, low, high = (
        np.array([entry["metrics"][metric][key] for entry in run["per_rate"]], dtype=float) * scale
        for key in ("mean", "ci_low", "ci_high")
    )
    colour, marker = _COLOURS[index], _MARKERS[index]
    rates = [entry["rate"] for entry in run["per_rate"]]
    if _are_points(rates):
        x = np.arange(len(rates)) + 0.15 * (index - (runs - 1) / 2)
        # A percentile interval can leave out the mean of a small sample; an error bar cannot have a negative length.
        bars = np.clip([mean - low, high - mean], 0, None)
        axis.errorbar(x, mean, yerr=bars, color=colour, marker=marker, markersize=4, linestyle="none", label=label)
        return
    axis.fill_between(rates, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.plot(rates, mean, color=colour, marker=marker, markersize=3.5, linewidth=1.3, label=label)


def _are_points(rates: Sequence[float | str]) -> bool:
    """Whether settings are dots with bars: availability patterns, and a single rate, through which no line goes."""
    return len(rates) == 1 or all(isinstance(rate, str) for rate in rates)


def _dress(axis: "Axes", metric: str, rates: Sequence[float | str]) -> None:
    axis.set_ylabel(metric_heading(metric) + (" (%)" if METRICS[metric].percent else ""))
    axis.grid(axis="y", alpha=0.25, linewidth=0.6)
    if _are_points(rates):
        patterns = all(isinstance(rate, str) for rate in rates)
        axis.set_xticks(range(len(rates)), [str(rate).replace("+", "\n") for rate in rates], fontsize=6)
        axis.set_xlim(-0.6, len(rates) - 0.4)
        axis.set_xlabel("available modalities" if patterns else "missing rate")
    else:
        axis.set_xlabel("missing rate")


def _title(runs: Sequence[Results]) -> str:
    data = dict.fromkeys(f"{data_text(run['dataset']['name'])}, {split_text(run)} ({count_text(run)})" for run in runs)
    protocol, level = runs[0]["protocol"]["name"], 100 * runs[0]["bootstrap"]["confidence"]
    return f"{'; '.join(data)}, protocol {protocol}; shaded or barred: {level:g} % bootstrap intervals over samples"
