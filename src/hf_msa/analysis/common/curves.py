"""Metrics over missing rates, several runs in one figure (TCMR, Figure 3), from ``results.json`` alone."""

from collections.abc import Sequence
from typing import Any

from hf_msa.analysis.tool_report import Report
from hf_msa.analysis.tools import tool
from hf_msa.evaluation.plots import draw_curves
from hf_msa.evaluation.report import distinct_names, results_markdown, shared_metrics
from hf_msa.evaluation.results import Results, read_results


@tool("curves", "metrics over missing rates, several runs in one figure")
def analyze_curves(runs: Sequence[str], report: Report, *, metrics: Sequence[str] | None = None) -> None:
    """Draw the curves of several runs: one figure, one long table, and a table per run.

    Args:
        runs: Folders with a ``results.json``.
        report: Takes what is found.
        metrics: Metrics to show; default: all that every run has.

    Raises:
        MsaError: If a result is absent, the runs cannot be drawn together, or a metric is unknown.
    """
    results = [read_results(run) for run in runs]
    names = distinct_names(runs, results)
    shown = shared_metrics(results, metrics)
    report.csv("curves.csv", curve_rows(names, results, shown))
    report.summary("curves.md", "Missing-rate curves")
    for name, result in zip(names, results, strict=True):
        report.section(name, results_markdown(result, shown))
    report.figure("curves", draw_curves, results, shown, names)


def curve_rows(names: Sequence[str], results: Sequence[Results], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One row per run, rate and metric: mean and standard deviation over seeds, and the bootstrap interval."""
    keys = ("mean", "std", "n", "ci_low", "ci_high")
    return [
        {"run": name, "rate": entry["rate"], "metric": metric, **{key: entry["metrics"][metric][key] for key in keys}}
        for name, result in zip(names, results, strict=True)
        for entry in result["per_rate"]
        for metric in metrics
    ]
