"""Tables of a result: for the terminal, and as Markdown for cards and documents. All read from ``results.json``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_msa.errors import unknown_name
from hf_msa.evaluation.metrics import METRICS, family_metrics
from hf_msa.evaluation.results import Results

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNDEFINED = "-"
"""What stands for a number that is not defined or not known."""


def format_value(metric: str, value: float | None) -> str:
    """Format one number: percentages with two decimals, the rest with four.

    Args:
        metric: The metric's name, e.g. ``"acc7"``.
        value: The stored value (a fraction for percentages), or None where undefined.
    """
    if value is None:
        return UNDEFINED
    return f"{100 * value:.2f}" if METRICS[metric].percent else f"{value:.4f}"


def format_estimate(metric: str, estimate: Mapping[str, Any]) -> str:
    """Format mean ± standard deviation over training seeds; the mean alone where there is one seed."""
    mean = format_value(metric, estimate["mean"])
    return mean if estimate["std"] is None else f"{mean} ± {format_value(metric, estimate['std'])}"


def format_interval(metric: str, estimate: Mapping[str, Any]) -> str:
    """Format the bootstrap interval over samples."""
    if estimate["ci_low"] is None:
        return UNDEFINED
    return f"{format_value(metric, estimate['ci_low'])} to {format_value(metric, estimate['ci_high'])}"


def metric_heading(metric: str) -> str:
    """The metric's name in a table, with an arrow that points to better."""
    return f"{METRICS[metric].pretty} {'↑' if METRICS[metric].higher_is_better else '↓'}"


def chosen_metrics(results: Results, metrics: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics to show: those asked for, else all of the result's label family.

    Raises:
        MsaError: If one is not a metric of the family; the nearest is named.
    """
    known = family_metrics(results["dataset"]["label_family"])
    for metric in metrics or ():
        if metric not in known:
            raise unknown_name("metric", metric, known)
    return tuple(metrics or known)


def run_name(results: Results) -> str:
    """The name of a run in tables and legends: method, ablation, and a mark where it saw more than a user has."""
    name = str(results["method"])
    if results["ablation"]:
        name += f" ({results['ablation']})"
    return f"{name} [oracle]" if results["oracle"] else name


def result_rows(
    results: Results, metrics: Sequence[str] | None = None, *, narrow: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Arrange a result as a table: one row per rate, then the mean over rates with its spread and interval.

    Args:
        results: From `hf_msa.evaluation.results`.
        metrics: Names to show; all of the label family by default.
        narrow: One number per cell, for a terminal of 80 columns: spread and interval get rows of their own.

    Returns:
        The headings, and the rows as text.
    """
    names = chosen_metrics(results, metrics)
    by_rate, overall = results["per_rate"], results["mean_over_rates"]
    # One rate is its own mean.
    label = "mean" if len(by_rate) > 1 else _rate_text(by_rate[0]["rate"])
    rows = [
        [_rate_text(entry["rate"]), *(format_value(name, entry["metrics"][name]["mean"]) for name in names)]
        for entry in by_rate
        if len(by_rate) > 1
    ]
    level = f"{100 * results['bootstrap']['confidence']:g} %"
    if narrow:
        parts = {label: "mean", "± std": "std", f"{level} low": "ci_low", f"{level} high": "ci_high"}
        rows += [[title, *(format_value(name, overall[name][key]) for name in names)] for title, key in parts.items()]
    else:
        rows.append([label, *(format_estimate(name, overall[name]) for name in names)])
        rows.append([level, *(format_interval(name, overall[name]) for name in names)])
    return ["missing", *(metric_heading(name) for name in names)], rows


def _rate_text(rate: float | str) -> str:
    return rate if isinstance(rate, str) else f"{rate:g}"


def caption(results: Results) -> str:
    """One sentence that says what the numbers are means over, and what the spread stands for."""
    seeds = sorted({run["training_seed"] for run in results["runs"]} - {None})
    masks = len(results["protocol"]["mask_seeds"])
    rates = len(results["per_rate"])
    dataset = results["dataset"]
    count = max((estimate["n"] for estimate in results["mean_over_rates"].values()), default=1)
    which = f" ({', '.join(str(seed) for seed in seeds)})" if seeds else ""
    return (
        f"{dataset['name']}, {dataset['split']} split, {dataset['n']} samples; "
        f"protocol {results['protocol']['name']}, {_counted(rates, 'setting')}, {_counted(masks, 'mask draw')}; "
        f"{_counted(count, 'training seed')}{which}; "
        f"± is the standard deviation over training seeds, the interval a bootstrap over samples."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def results_table(results: Results, metrics: Sequence[str] | None = None) -> "Table":
    """Build the terminal table of a result.

    Args:
        results: From `hf_msa.evaluation.results`.
        metrics: Names to show; all of the label family by default.
    """
    headings, rows = result_rows(results, metrics, narrow=True)
    return rich_table(headings, rows, title=run_name(results), caption=caption(results), summary_rows=4)


def rich_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    caption: str | None = None,
    summary_rows: int = 0,
) -> "Table":
    """Build a terminal table: the first column to the left, numbers to the right, a rule above the last rows.

    Args:
        headings: One per column.
        rows: The cells as text.
        title: Above the table.
        caption: Below it.
        summary_rows: How many rows at the end are set apart.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title and escape(title), caption=caption and escape(caption), box=box.SIMPLE_HEAD, padding=0)
    for index, heading in enumerate(headings):
        table.add_column(escape(heading), justify="right" if index else "left", overflow="fold")
    for index, row in enumerate(rows):
        table.add_row(
            *(escape(cell) for cell in row), end_section=bool(summary_rows) and index == len(rows) - summary_rows - 1
        )
    return table


def print_results(results: Results, metrics: Sequence[str] | None = None, console: "Console | None" = None) -> None:
    """Print the table of a result.

    Args:
        results: From `hf_msa.evaluation.results`.
        metrics: Names to show; all of the label family by default.
        console: Where to; the terminal by default.
    """
    from rich.console import Console

    (console or Console()).print(results_table(results, metrics))


def results_markdown(results: Results, metrics: Sequence[str] | None = None) -> str:
    """Render a result as a Markdown table and the sentence that explains it.

    Args:
        results: From `hf_msa.evaluation.results`.
        metrics: Names to show; all of the label family by default.
    """
    headings, rows = result_rows(results, metrics)
    return f"{markdown_table(headings, rows)}\n\n{caption(results)}\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a Markdown table: the first column to the left, numbers to the right."""
    lines = ["| " + " | ".join(headings) + " |", "|:---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
