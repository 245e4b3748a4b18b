"""Tables of a result: for the terminal, and as Markdown for cards and documents. All read from ``results.json``."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_msa.errors import MsaError, unknown_name
from hf_msa.evaluation.metrics import METRICS, is_class_metric
from hf_msa.evaluation.results import LANGUAGE_MODEL_INPUTS, MOST_UNREADABLE, Results, result_metrics
from hf_msa.evaluation.subsets import subset_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.markdown import Markdown
    from rich.table import Table

UNDEFINED = "-"
"""What stands for a number that is not defined or not known."""

SAMPLE_CORPUS = "sample"
"""The name of the sample corpus."""

GENERATED = "generated sample corpus, not a benchmark"
"""The words by which results on it are known wherever they are shown."""

# What stands between the cells of a Markdown table; a bar within one has a backslash.
_CELLS = re.compile(r"(?<!\\)\|")


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
    """Return the metrics to show: those asked for, else all that the result has.

    Raises:
        MsaError: If the result does not have one of them; the nearest is named.
    """
    known = result_metrics(results)
    for metric in metrics or ():
        if is_class_metric(metric) and metric not in known:
            gives = (
                "class logits of another number of classes" if any(map(is_class_metric, known)) else "no class logits"
            )
            raise MsaError(
                f"The result of {run_name(results)} has no {metric}, for its model gives {gives}; leave it out."
            )
        if metric not in known:
            raise unknown_name("metric", metric, known)
    return tuple(metrics or known)


def shared_metrics(runs: Sequence[Results], metrics: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics to show of several results: those asked for, else all that every one of them has.

    Raises:
        MsaError: If one of them lacks a metric that is asked for.
    """
    chosen = [chosen_metrics(results, metrics) for results in runs]
    return tuple(name for name in chosen[0] if all(name in names for names in chosen))


def metric_groups(metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """Part metrics into those of the score and those of class logits: all of them together fill no terminal."""
    groups = (
        tuple(name for name in metrics if not is_class_metric(name)),
        tuple(name for name in metrics if is_class_metric(name)),
    )
    return [group for group in groups if group]


def run_name(results: Results) -> str:
    """The name of a run in tables and legends: method, ablation, training rate and training data where they need saying.

    It is marked where the model saw more than a user has, and where another program made the predictions.
    """
    parts = [str(results["ablation"])] if results["ablation"] else []
    if (rate := results.get("train_rate")) is not None:
        # As short as tables need it; captions and notes say it in full.
        parts.append(rate if isinstance(rate, str) else f"trained at {rate:g}")
    if (source := other_training_data(results)) is not None:
        parts.append(f"trained on {source}")
    name = f"{results['method']} ({', '.join(parts)})" if parts else str(results["method"])
    marks = {"[oracle]": results["oracle"], "[foreign]": results.get("foreign")}
    return " ".join([name, *(mark for mark, holds in marks.items() if holds)])


def distinct_names(folders: Sequence[str | os.PathLike[str]], runs: Sequence[Results]) -> list[str]:
    """Names that tell runs apart: the folder joins where method and ablation do not suffice.

    Args:
        folders: Where the results are.
        runs: The results.
    """
    names = [run_name(run) for run in runs]
    paths = [Path(folder) for folder in folders]
    places = [(path.parent if path.suffix == ".json" else path).name or str(path) for path in paths]
    return [f"{name}, {place}" if names.count(name) > 1 else name for name, place in zip(names, places, strict=True)]


def other_training_data(results: Results) -> str | None:
    """The data set that the model was trained on, where it is known and another than the one of the result."""
    source = results.get("trained_on")
    return None if source in (None, results["dataset"]["name"]) else str(source)


def result_rows(
    results: Results, metrics: Sequence[str] | None = None, *, narrow: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Arrange a result as a table: one row per rate, then the mean over rates with its spread and interval.

    Args:
        results: From `hf_msa.evaluation.results`.
        metrics: Names to show; all by default.
        narrow: One number per cell, for a terminal of 80 columns: spread and interval get rows of their own.

    Returns:
        The headings, and the rows as text.
    """
    names = chosen_metrics(results, metrics)
    by_rate, overall = results["per_rate"], results["mean_over_rates"]
    # One rate is its own mean.
    label = "mean" if len(by_rate) > 1 else setting_text(by_rate[0]["rate"], narrow=narrow)
    rows = [
        [
            setting_text(entry["rate"], narrow=narrow),
            *(format_value(name, entry["metrics"][name]["mean"]) for name in names),
        ]
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
    return [setting_heading(results), *(metric_heading(name) for name in names)], rows


def setting_text(rate: float | str, *, narrow: bool = False) -> str:
    """A missing rate, or the modalities that are available, in a table.

    Args:
        rate: As in results.
        narrow: Modalities by their first letters, see `letters_text`.
    """
    if isinstance(rate, str):
        return "+".join(name[:1] for name in rate.split("+")) if narrow else rate
    return f"{rate:g}"


def letters_text(results: Results) -> str:
    """What the letters of a narrow table stand for; empty where it has none."""
    rates = [rate for rate in results["protocol"]["rates"] if isinstance(rate, str)]
    names = dict.fromkeys(name for rate in rates for name in rate.split("+"))
    return f"{', '.join(f'{name[:1]}: {name}' for name in names)}; " if names else ""


def setting_heading(results: Results) -> str:
    """What the settings of a result say: how much is missing, or which modalities are available."""
    return "available" if isinstance(results["protocol"]["rates"][0], str) else "missing"


def data_text(name: str) -> str:
    """A data set's name, followed by `GENERATED` where it is the sample corpus."""
    return f"{name} ({GENERATED})" if name == SAMPLE_CORPUS else name


def split_text(results: Results) -> str:
    """Which rows a result is of: the split, and the subset where it is not the whole of it."""
    dataset = results["dataset"]
    split = f"{dataset['split']} split"
    return f"{split}, {subset_text(dataset['subset'])}" if dataset.get("subset") else split


def count_text(results: Results) -> str:
    """How many samples a result is of, and of how many where it is not the whole split."""
    dataset = results["dataset"]
    whole = f" of {dataset['subset']['n_of']}" if dataset.get("subset") else ""
    return f"{dataset['n']}{whole} samples"


def caption(results: Results) -> str:
    """One sentence that says what the numbers are means over, and what the spread stands for."""
    seeds = sorted({run["training_seed"] for run in results["runs"]} - {None})
    masks = len(results["protocol"]["mask_seeds"])
    rates = len(results["per_rate"])
    dataset = results["dataset"]
    count = max((results["mean_over_rates"][name]["n"] for name in result_metrics(results)), default=1)
    which = f" ({', '.join(str(seed) for seed in seeds)})" if seeds else ""
    return (
        f"{data_text(dataset['name'])}, {split_text(results)}, {count_text(results)}; "
        f"protocol {results['protocol']['name']}, {counted(rates, 'setting')}, {counted(masks, 'mask draw')}; "
        f"{counted(count, 'training seed')}{which}; "
        f"{training_text(results)}"
        f"{expert_text(results)}"
        f"± is the standard deviation over training seeds, the interval a bootstrap over samples."
    )


def training_text(results: Results) -> str:
    """On what data and at what missing rate it was trained, as parts of a sentence; empty where there is nothing to say."""
    if results.get("foreign"):
        return f"predictions that another program made ({results['foreign']}); "
    source, rate = other_training_data(results), results.get("train_rate")
    text = f"trained on {source}; " if source is not None else ""
    if rate == "match":
        return text + "each missing rate by models trained at it; "
    return text + (f"trained at missing rate {setting_text(rate)}; " if rate is not None else "")


def expert_text(results: Results) -> str:
    """What the language model was given, as a part of a sentence; empty for a model that asks none."""
    given, media = results.get("language_model_input"), results.get("media")
    if given is None:
        return ""
    lacking = f" ({media['without_file']} of {media['clips']} clips have none)" if media else ""
    return f"the language model was given {LANGUAGE_MODEL_INPUTS.get(given, given)}{lacking}; "


def cost_texts(results: Results) -> dict[str, str]:
    """What a sample has cost, as cells of a table by their headings; empty where no other model was asked."""
    cost = results.get("cost")
    if cost is None:
        return {}

    def cell(name: str, factor: int = 1, form: str = ".3g", unit: str = "") -> str:
        """A number that results of earlier versions may lack."""
        return UNDEFINED if cost.get(name) is None else f"{factor * cost[name]:{form}}{unit}"

    return {
        "calls": cell("calls"),
        "prompt tokens": cell("prompt_tokens"),
        "tokens": cell("tokens"),
        "seconds": cell("seconds"),
        **{name: cell(name, 100, ".1f", " %") for name in ("remembered", "unreadable")},
        "routes": ", ".join(f"{name} {100 * share:.1f} %" for name, share in cost["routes"].items()) or UNDEFINED,
    }


def cost_text(results: Results) -> str:
    """One sentence on what a sample has cost; empty where no other model was asked."""
    cells = cost_texts(results)
    if not cells:
        return ""
    much = (results["cost"]["unreadable"] or 0) > MOST_UNREADABLE
    read = "" if cells["prompt tokens"] == UNDEFINED else f"of {cells['prompt tokens']} tokens "
    routes = "" if cells["routes"] == UNDEFINED else f"answered by {cells['routes']}; "
    known = "" if cells["remembered"] == UNDEFINED else f"known from before: {cells['remembered']}; "
    return (
        f"Cost per sample: {cells['calls']} questions {read}to the language model, {cells['tokens']} tokens written by it, "
        f"{cells['seconds']} seconds; {routes}{known}unreadable answers: {cells['unreadable']}"
        + (", which is too many to judge the language model by." if much else ".")
    )


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class TerminalTable:
    """A table for the terminal: names to the left, numbers to the right, a rule above the last rows.

    Words stay whole: where not all columns have room beside each other, the rest follows below, with the names again.

    Attributes:
        headings: One per column.
        rows: The cells as text.
        title: Above the table.
        summary_rows: How many rows at the end are set apart.
        names: How many columns, from the first, hold names.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None
    summary_rows: int = 0
    names: int = 1

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator["Table"]:
        columns = list(zip(self.headings, *self.rows, strict=True))
        least = [max((len(word) for cell in cells for word in cell.split()), default=1) for cells in columns]
        wanted = [max(map(len, cells)) for cells in columns]
        # The edges of the table take one letter each, and so does the space between columns.
        room = options.max_width - 1 - sum(width + 1 for width in least[: self.names])
        parts: list[list[int]] = [[]]
        for place in range(self.names, len(columns)):
            if parts[-1] and sum(least[one] + 1 for one in [*parts[-1], place]) > room:
                parts.append([])
            parts[-1].append(place)
        for part in parts:
            places = [*range(self.names), *part]
            spare = room - sum(least[one] + 1 for one in part)
            widths = {}
            for place in places:
                more = max(0, min(wanted[place] - least[place], spare))
                widths[place] = least[place] + more
                spare -= more
            yield self._part(widths)

    def _part(self, widths: Mapping[int, int]) -> "Table":
        """The table of some columns, by their places, as wide as is said."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=self.title and escape(self.title), box=box.SIMPLE_HEAD, padding=0)
        for place, width in widths.items():
            justify: Literal["left", "right"] = "left" if place < self.names else "right"
            table.add_column(escape(self.headings[place]), justify=justify, overflow="fold", width=width)
        for index, row in enumerate(self.rows):
            ends = bool(self.summary_rows) and index == len(self.rows) - self.summary_rows - 1
            table.add_row(*(escape(row[place]) for place in widths), end_section=ends)
        return table


def results_tables(results: Results, metrics: Sequence[str] | None = None) -> list[TerminalTable]:
    """Build the terminal tables of a result: of the score's metrics, and of those of class logits where it has any.

    Args:
        results: From `hf_msa.evaluation.results`.
        metrics: Names to show; all by default.
    """
    return [
        TerminalTable(*result_rows(results, group, narrow=True), title=run_name(results), summary_rows=4)
        for group in metric_groups(chosen_metrics(results, metrics))
    ]


def print_results(results: Results, metrics: Sequence[str] | None = None, console: "Console | None" = None) -> None:
    """Print the tables of a result, and what its numbers are.

    Args:
        results: From `hf_msa.evaluation.results`.
        metrics: Names to show; all by default.
        console: Where to; the terminal by default.
    """
    from rich.console import Console
    from rich.markup import escape

    # Below the tables and not part of one: a table of one metric would squeeze it.
    about = [letters_text(results) + caption(results), cost_text(results)]
    (console or Console()).print(*results_tables(results, metrics), *map(escape, filter(None, about)), sep="\n")


def results_markdown(results: Results, metrics: Sequence[str] | None = None) -> str:
    """Render a result as a Markdown table and the sentence that explains it.

    Args:
        results: From `hf_msa.evaluation.results`.
        metrics: Names to show; all by default.
    """
    headings, rows = result_rows(results, metrics)
    parts = (markdown_table(headings, rows), caption(results), cost_text(results))
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Render a Markdown table: the first columns, as many as hold `names`, to the left, numbers to the right."""
    lines = ["| " + " | ".join(headings) + " |", "|" + ":---|" * names + "---:|" * (len(headings) - names)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def terminal_parts(markdown: str) -> "list[TerminalTable | Markdown]":
    """Markdown for the terminal, with tables whose words stay whole.

    Args:
        markdown: With tables as `markdown_table` makes them.
    """
    from rich.markdown import Markdown

    parts: list[TerminalTable | Markdown] = []
    for is_table, group in itertools.groupby(markdown.splitlines(), key=lambda line: line.startswith("|")):
        lines = list(group)
        if not is_table:
            parts.append(Markdown("\n".join(lines)))
            continue
        heading, kinds, *rows = (_CELLS.split(line)[1:-1] for line in lines)
        names = max(1, sum(not kind.strip().endswith("-:") for kind in kinds))
        cells = [[cell.strip().replace("\\|", "|") for cell in row] for row in (heading, *rows)]
        parts.append(TerminalTable(cells[0], cells[1:], names=names))
    return parts
