"""Metrics over missing rates, several runs in one figure (TCMR, Figure 3), from ``results.json`` alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_msa.analysis.tool_report import write_csv, write_markdown
from hf_msa.evaluation.plots import plot_curves
from hf_msa.evaluation.report import results_markdown, run_name, shared_metrics
from hf_msa.evaluation.results import Results, read_results


def analyze_curves(runs: Sequence[str], *, output: Path, metrics: Sequence[str] | None = None) -> list[Path]:
    """Write the curves of several runs: one figure, one long table, and a table per run.

    Args:
        runs: Folders with a ``results.json``.
        output: The folder to write to.
        metrics: Names to show; all that every run has by default.

    Raises:
        MsaError: If a result is absent, the runs cannot be drawn together, or a metric is unknown.
    """
    results = [read_results(run) for run in runs]
    names = distinct_names(runs, results)
    shown = shared_metrics(results, metrics)
    figures = plot_curves(results, output / "curves", metrics=shown, names=names)
    table = write_csv(output / "curves.csv", curve_rows(names, results, shown))
    sections = [f"## {name}\n\n{results_markdown(result, shown)}" for name, result in zip(names, results, strict=True)]
    return [table, write_markdown(output / "curves.md", "# Missing-rate curves", *sections), *figures]


def curve_rows(names: Sequence[str], results: Sequence[Results], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One row per run, rate and metric: mean and standard deviation over seeds, and the bootstrap interval."""
    keys = ("mean", "std", "n", "ci_low", "ci_high")
    return [
        {"run": name, "rate": entry["rate"], "metric": metric, **{key: entry["metrics"][metric][key] for key in keys}}
        for name, result in zip(names, results, strict=True)
        for entry in result["per_rate"]
        for metric in metrics
    ]


def distinct_names(runs: Sequence[str], results: Sequence[Results]) -> list[str]:
    """Method and ablation of each run; the folder joins where these do not tell the runs apart."""
    names = [run_name(result) for result in results]
    places = [Path(run).parent.name if Path(run).suffix == ".json" else Path(run).name for run in runs]
    return [f"{name}, {place}" if names.count(name) > 1 else name for name, place in zip(names, places, strict=True)]
