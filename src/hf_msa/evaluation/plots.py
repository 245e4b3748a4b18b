"""Curves over missing rates, drawn from ``results.json`` alone."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.report import (
    count_text,
    data_text,
    metric_heading,
    run_name,
    setting_heading,
    setting_text,
    shared_metrics,
    split_text,
)
from hf_msa.evaluation.results import Results
from hf_msa.figures import label_lines, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; with markers they also survive a black-and-white print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Each colour once more, dashed and with an open marker.
_MOST_RUNS = 2 * len(_COLOURS)
_COLUMNS = 4
_LETTERS_PER_INCH = 15


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

    Availability patterns, which have no order, are dots with bars. Of a single setting each metric is a row with a dot and
    its bar for each run, and metrics of the same unit share a panel.

    Args:
        figure: What to draw on.
        runs: Results of the same label family and rates.
        metrics: Names to show; all that every run has by default.
        names: Legend entries; method and ablation by default.

    Raises:
        MsaError: If there are no runs, more of them than can be told apart, or they differ in label family or rates.
    """
    if not 1 <= len(runs) <= _MOST_RUNS:
        raise MsaError(f"One to {_MOST_RUNS} runs can be told apart in a plot; got {len(runs)}.")
    rates = [entry["rate"] for entry in runs[0]["per_rate"]]
    for run in runs[1:]:
        family = run["dataset"]["label_family"]
        if family != runs[0]["dataset"]["label_family"] or [entry["rate"] for entry in run["per_rate"]] != rates:
            raise MsaError(
                "Curves can be drawn together only for runs of one label family and the same missing rates."
            )
    shown = shared_metrics(runs, metrics)
    labels = list(names or map(run_name, runs))
    axes = _rows_of_one_setting(figure, runs, shown) if len(rates) == 1 else _panels(figure, runs, shown, rates)
    handles, _ = axes.get_legend_handles_labels()
    width = figure.get_figwidth()
    figure.suptitle(textwrap.fill(_title(runs), int(width * _LETTERS_PER_INCH)), fontsize=8)
    columns = max(1, min(len(labels), int(width * _LETTERS_PER_INCH / (max(map(len, labels)) + 6))))
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _style(index: int) -> dict[str, Any]:
    """Colour and marker of a run."""
    colour = _COLOURS[index % len(_COLOURS)]
    open_marker = {"markerfacecolor": "white"} if index >= len(_COLOURS) else {}
    return {"color": colour, "marker": _MARKERS[index % len(_MARKERS)], "label": str(index), **open_marker}


def _estimates(run: Results, metric: str) -> tuple[NDArray[np.float64], ...]:
    """Mean, lower and upper end of a metric at each rate, as they are shown."""
    scale = 100 if METRICS[metric].percent else 1
    mean, low, high = (
        np.array([entry["metrics"][metric][key] for entry in run["per_rate"]], dtype=float) * scale
        for key in ("mean", "ci_low", "ci_high")
    )
    return mean, low, high


def _bars(mean: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of error bars; an interval can leave out the mean of a small sample, and a bar cannot be negative."""
    return np.clip([mean - low, high - mean], 0, None)


def _rows_of_one_setting(figure: "Figure", runs: Sequence[Results], metrics: Sequence[str]) -> "Axes":
    percentages = [metric for metric in metrics if METRICS[metric].percent]
    groups = [
        group for group in (percentages, *([metric] for metric in metrics if metric not in percentages)) if group
    ]
    row = 0.17 + 0.1 * len(runs)
    figure.set_size_inches(6, 1.0 + row * len(metrics) + 0.4 * len(groups))
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(group) * row + 0.05 for group in groups])
    for axis, group in zip(axes.flat, groups, strict=True):
        for index, run in enumerate(runs):
            columns = (np.concatenate(found) for found in zip(*(_estimates(run, name) for name in group), strict=True))
            mean, low, high = columns
            places = np.arange(len(group)) + 0.7 * ((index + 0.5) / len(runs) - 0.5)
            axis.errorbar(
                mean, places, xerr=_bars(mean, low, high), linestyle="none", markersize=4, capsize=2, **_style(index)
            )
        axis.set_yticks(range(len(group)), [metric_heading(metric) for metric in group])
        axis.set_ylim(len(group) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.25, linewidth=0.6)
        for place in range(1, len(group)):
            axis.axhline(place - 0.5, color="0.9", linewidth=0.6)
        if group is percentages:
            axis.set_xlabel("%")
    first: Axes = axes.flat[0]
    return first


def _panels(figure: "Figure", runs: Sequence[Results], metrics: Sequence[str], rates: Sequence[float | str]) -> "Axes":
    columns = min(_COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    patterns = all(isinstance(rate, str) for rate in rates)
    width = max(2.7, 0.36 * len(rates) + 0.6) if patterns else 2.7
    figure.set_size_inches(max(5.0, width * columns + 0.4), 2.2 * rows + 0.7)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for index, run in enumerate(runs):
            _draw(axis, _estimates(run, metric), rates, index, len(runs))
        axis.set_ylabel(metric_heading(metric) + (" (%)" if METRICS[metric].percent else ""))
        axis.grid(axis="y", alpha=0.25, linewidth=0.6)
        if patterns:
            axis.set_xticks(range(len(rates)), [label_lines(str(rate), 7) for rate in rates], fontsize=6)
            axis.set_xlim(-0.6, len(rates) - 0.4)
        axis.set_xlabel("available modalities" if patterns else "missing rate")
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    first: Axes = axes.flat[0]
    return first


def _draw(
    axis: "Axes", estimates: tuple[NDArray[np.float64], ...], rates: Sequence[float | str], index: int, runs: int
) -> None:
    mean, low, high = estimates
    style = _style(index)
    if all(isinstance(rate, str) for rate in rates):
        x = np.arange(len(rates)) + 0.7 * ((index + 0.5) / runs - 0.5)
        axis.errorbar(x, mean, yerr=_bars(mean, low, high), markersize=3.5, linestyle="none", capsize=1.5, **style)
        return
    axis.fill_between(rates, low, high, color=style["color"], alpha=0.16, linewidth=0)
    # Bands lie on each other; their edges are seen still.
    for edge in (low, high):
        axis.plot(rates, edge, color=style["color"], linewidth=0.6, alpha=0.6)
    line = "--" if index >= len(_COLOURS) else "-"
    axis.plot(rates, mean, markersize=3.5, linewidth=1.3, linestyle=line, **style)


def _title(runs: Sequence[Results]) -> str:
    data = dict.fromkeys(f"{data_text(run['dataset']['name'])}, {split_text(run)} ({count_text(run)})" for run in runs)
    protocol, level = runs[0]["protocol"]["name"], 100 * runs[0]["bootstrap"]["confidence"]
    rates = runs[0]["protocol"]["rates"]
    setting = f", {setting_heading(runs[0])}: {setting_text(rates[0])}" if len(rates) == 1 else ""
    return f"{'; '.join(data)}, protocol {protocol}{setting}; bars and bands: {level:g} % bootstrap intervals over samples"
