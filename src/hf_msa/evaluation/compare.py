"""Runs side by side: means, differences to the first run with paired bootstrap p-values, and the papers' numbers.

Means over different data, rates or amounts of knowledge are not comparable, so runs that differ in these are refused
rather than put into one table.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.paper_results import PaperEntry, load_paper_results
from hf_msa.evaluation.report import (
    UNDEFINED,
    TerminalTable,
    chosen_metrics,
    cost_texts,
    data_text,
    distinct_names,
    format_estimate,
    format_value,
    letters_text,
    markdown_table,
    metric_groups,
    metric_heading,
    other_training_data,
    setting_heading,
    setting_text,
    split_text,
)
from hf_msa.evaluation.results import Predictions, Results, read_predictions, read_results, result_metrics
from hf_msa.evaluation.statistics import paired_p_value, resample_counts
from hf_msa.files import atomic_write

if TYPE_CHECKING:
    from rich.console import Group

_MARK = "†"
_SHORT = {"validation": "val", "test": "test", "unknown": "?"}
# Two draws of the same protocol are comparable in their means; everything else that differs is another protocol.
_SEEDS = ("seed", "mask_seeds")
_SPREAD = ("mean", "std", "n", "ci_low", "ci_high")
_LATEX = {letter: "\\" + letter for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$\dagger$",
}
_ABSENT = {"mean": None, "std": None}


@dataclass(frozen=True)
class Difference:
    """How a run differs from the first one in a metric's mean over rates.

    Attributes:
        value: The run minus the first, in stored units; None where either is undefined.
        p_value: Two-sided paired bootstrap; None where it could not be computed.
    """

    value: float | None
    p_value: float | None


@dataclass(frozen=True)
class PaperRows:
    """What one paper prints that compares with the runs.

    Attributes:
        name: The paper's own method, as it prints it.
        rows: Its rows of means over the runs' rates or patterns.
        settings: Its own method's rows, ablations included, at single rates or patterns.
    """

    name: str
    rows: tuple[PaperEntry, ...]
    settings: Mapping[float | str, Sequence[PaperEntry]]


@dataclass(frozen=True)
class Comparison:
    """Runs, and perhaps papers' rows, in one table.

    Attributes:
        metrics: The metrics shown; a run may lack those of class logits.
        names: One per run.
        runs: Their results.
        differences: Per run after the first, per metric.
        paper: The rows of each paper.
        notes: What a reader must know, one sentence each.
    """

    metrics: tuple[str, ...]
    names: tuple[str, ...]
    runs: tuple[Results, ...]
    differences: tuple[dict[str, Difference], ...]
    paper: tuple[PaperRows, ...]
    notes: tuple[str, ...]

    def value_rows(
        self, metrics: Sequence[str] | None = None, *, narrow: bool = False
    ) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of the means over rates: our runs, then the papers' rows.

        Args:
            metrics: Some of `metrics`; all of them by default. A paper's row that has none of them is left out.
            narrow: One number per cell, for a terminal of 80 columns: the spread gets a row of its own.
        """
        shown = tuple(metrics or self.metrics)
        rows = []
        for name, run in zip(self.names, self.runs, strict=True):
            estimates = [(metric, run["mean_over_rates"].get(metric, _ABSENT)) for metric in shown]
            split = _selected_on(run)
            if narrow:
                rows.append([name, _SHORT.get(split, split), *(format_value(m, e["mean"]) for m, e in estimates)])
                rows.append(["  ± std", "", *(format_value(m, e["std"]) for m, e in estimates)])
            else:
                rows.append([name, split, *(format_estimate(m, e) for m, e in estimates)])
        for paper in self.paper:
            entries = [entry for entry in paper.rows if any(entry.metrics.get(m) is not None for m in shown)]
            if entries:
                rows.append([f"{paper.name} paper:", *[""] * (len(shown) + 1)])
            for entry in entries:
                split = _SHORT[entry.selected_on] if narrow else entry.selected_on
                name = f"  {entry.variant}" if narrow and entry.variant else _entry_name(entry)
                rows.append([name, split, *(_paper_cell(entry, metric) for metric in shown)])
        return ["", "sel." if narrow else "selected on", *map(metric_heading, shown)], rows

    def difference_rows(
        self, metrics: Sequence[str] | None = None, *, narrow: bool = False
    ) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of the differences to the first run.

        Args:
            metrics: Some of `metrics`; all of them by default.
            narrow: One number per cell: the p-value gets a row of its own.
        """
        shown = tuple(metrics or self.metrics)
        rows = []
        for name, differences in zip(self.names[1:], self.differences, strict=True):
            cells = [(metric, differences[metric]) for metric in shown]
            values = [_difference(metric, cell.value) for metric, cell in cells]
            p_values = [UNDEFINED if cell.p_value is None else f"{cell.p_value:.3f}" for _, cell in cells]
            if narrow:
                rows += [[name, *values], ["  p", *p_values]]
            else:
                pairs = zip(values, p_values, strict=True)
                rows.append([name, *(value if p == UNDEFINED else f"{value} (p {p})" for value, p in pairs)])
        return [f"minus {self.names[0]}", *map(metric_heading, shown)], rows

    def setting_rows(
        self, metrics: Sequence[str] | None = None, *, narrow: bool = False
    ) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of every rate or pattern by itself: our runs, then the papers' own methods.

        Args:
            metrics: Some of `metrics`; all of them by default. Those that no paper prints at single settings are left out;
                where none is left, there are no rows.
            narrow: One number per cell, for a terminal of 80 columns: without the spread.
        """
        entries = [entry for paper in self.paper for found in paper.settings.values() for entry in found]
        shown = tuple(
            metric
            for metric in metrics or self.metrics
            if any(entry.metrics.get(metric) is not None for entry in entries)
        )
        first = self.runs[0]
        rows: list[list[str]] = []
        for index, setting in enumerate(map(_rate, first["protocol"]["rates"]) if shown else ()):
            block = []
            for name, run in zip(self.names, self.runs, strict=True):
                estimates = run["per_rate"][index]["metrics"]
                format_cell = _mean_cell if narrow else format_estimate
                block.append([name, *(format_cell(metric, estimates.get(metric, _ABSENT)) for metric in shown)])
            for paper in self.paper:
                for entry in paper.settings.get(setting, ()):
                    if any(entry.metrics.get(metric) is not None for metric in shown):
                        label = f"  {entry.variant}" if entry.variant else f"{paper.name} paper"
                        block.append([label, *(_paper_cell(entry, metric) for metric in shown)])
            text = setting_text(setting, narrow=narrow)
            rows += [["" if place else text, *row] for place, row in enumerate(block)]
        return [setting_heading(first), "", *map(metric_heading, shown)], rows

    def cost_rows(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of what a sample has cost with each run; no rows where none asked another model."""
        cells = [cost_texts(run) for run in self.runs]
        headings = next((list(row) for row in cells if row), [])
        rows = [
            [name, *(row.get(key, UNDEFINED) for key in headings)] for name, row in zip(self.names, cells, strict=True)
        ]
        return ["cost per sample", *headings], rows if headings else []

    def to_rich(self) -> "Group":
        """Render for the terminal: metrics of the score, then those of class logits where there are any."""
        from rich.console import Group
        from rich.markup import escape

        parts: list[Any] = [escape(self._title())]
        for group in metric_groups(self.metrics):
            parts.append(TerminalTable(*self.value_rows(group, narrow=True)))
            if self.differences:
                parts.append(TerminalTable(*self.difference_rows(group, narrow=True)))
            if (settings := self.setting_rows(group, narrow=True))[1]:
                parts.append(TerminalTable(*settings, names=2))
        if (costs := self.cost_rows())[1]:
            parts.append(TerminalTable(*costs))
        letters = letters_text(self.runs[0])
        legend = f"{letters}sel.: the split that picked the checkpoint (val, test, or ? where it is not known)."
        return Group(*parts, *(escape(note) for note in (legend, *self._explanations(), *self.notes)))

    def to_markdown(self) -> str:
        """Render as Markdown."""
        parts = [self._title(), markdown_table(*self.value_rows())]
        if self.differences:
            parts.append(markdown_table(*self.difference_rows()))
        if (settings := self.setting_rows())[1]:
            parts.append(markdown_table(*settings, names=2))
        if (costs := self.cost_rows())[1]:
            parts.append(markdown_table(*costs))
        parts.append("\n".join(f"- {note}" for note in (*self._explanations(), *self.notes)))
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """Render as CSV: a row per run, setting and metric, in stored units (shares as fractions) and unrounded."""
        file = io.StringIO()
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["run", "dataset", "setting", "metric", *_SPREAD])
        for name, run in zip(self.names, self.runs, strict=True):
            settings = [("mean", run["mean_over_rates"]), *((e["rate"], e["metrics"]) for e in run["per_rate"])]
            for setting, estimates in settings:
                for metric in self.metrics:
                    values = [estimates.get(metric, _ABSENT).get(key) for key in _SPREAD]
                    table.writerow([name, data_text(run["dataset"]["name"]), setting, metric, *values])
        return file.getvalue()

    def to_latex(self) -> str:
        """Render the means as a `tabular` of the package booktabs, below what they are of as a comment."""
        headings, rows = self.value_rows()
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in (headings, *rows)]
        columns = "ll" + "r" * (len(headings) - 2)
        body = [lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
        return "\n".join([f"% {self._title()}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body]) + "\n"

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `comparison.md`, `comparison.csv` and `comparison.tex` into a folder, and return their paths."""
        contents = {".md": self.to_markdown(), ".csv": self.to_csv(), ".tex": self.to_latex()}
        paths = []
        for ending, content in contents.items():
            paths.append(Path(folder) / f"comparison{ending}")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(paths[-1]) as temporary:
                temporary.write_text(content, encoding="utf-8")
        return paths

    def _explanations(self) -> list[str]:
        lines = ["±: standard deviation over training seeds."]
        for name, run in zip(self.names, self.runs, strict=True):
            if run.get("train_rate") == "match":
                lines.append(f"Each missing rate of {name} is that of models trained at it.")
        if any(cell.p_value is not None for row in self.differences for cell in row.values()):
            lines.append(
                "p: paired bootstrap over test samples, of these trained models; it leaves training chance to ±."
            )
        return lines

    def _title(self) -> str:
        first = self.runs[0]
        return (
            f"{data_text(first['dataset']['name'])}, {split_text(first)}, protocol {first['protocol']['name']}: "
            f"mean over {', '.join(str(rate) for rate in first['protocol']['rates'])}"
        )


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def compare_runs(
    folders: Sequence[str | os.PathLike[str]],
    *,
    paper: str | Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    allow_oracle: bool = False,
) -> Comparison:
    """Compare runs with each other, and with papers.

    Differences are between means over rates (and over seeds). Their p-values come from resampling the same test rows
    for both runs, which needs ``predictions.parquet`` of both with the same ids and labels; where that is not so, a
    note says why.

    Args:
        folders: Folders with a ``results.json`` (or such files); the first is what the others are compared with.
        paper: The keys of papers whose rows are shown as well, e.g. ``"tcmr"`` or ``["tcmr", "pglh"]``.
        metrics: Names to show; all that any of the runs has by default.
        allow_oracle: Show runs that saw what a user does not have beside runs that did not, marked as such.

    Raises:
        MsaError: If there is nothing to compare, a result cannot be read, or the runs differ in data set, split,
            subset, protocol or rates, or (without `allow_oracle`) in being an oracle.
    """
    papers = [paper] if isinstance(paper, str) else list(dict.fromkeys(paper or ()))
    if len(folders) < 2 and not (papers and folders):
        raise MsaError(f"A comparison needs two runs, or one run and a paper; got {len(folders)}.")
    runs = [read_results(folder) for folder in folders]
    names = distinct_names(folders, runs)
    for name, run in zip(names[1:], runs[1:], strict=True):
        _check_comparable(names[0], runs[0], name, run, allow_oracle)
    shown = _any_metrics(runs, metrics)
    notes: list[str] = []
    differences = _differences(folders, runs, names, shown, notes) if len(runs) > 1 else []
    blocks = _paper_rows(papers, runs, shown, notes)
    return Comparison(shown, tuple(names), tuple(runs), tuple(differences), tuple(blocks), tuple(notes))


def _any_metrics(runs: Sequence[Results], metrics: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics that are asked for, else all that any of the runs has."""
    # They differ at most in the metrics of class logits, which come last.
    known = dict.fromkeys(name for run in runs for name in result_metrics(run))
    for metric in metrics or ():
        if metric not in known:
            chosen_metrics(runs[0], [metric])
    return tuple(metrics or known)


def _paper_rows(
    papers: Sequence[str], runs: Sequence[Results], metrics: Sequence[str], notes: list[str]
) -> list[PaperRows]:
    """The rows of each paper that compare with the runs; what a reader must know of them goes into `notes`.

    Raises:
        MsaError: If a paper is unknown, or none of them has anything to compare.
    """
    dataset, protocol = runs[0]["dataset"], runs[0]["protocol"]
    source_data = other_training_data(runs[0])
    data = dataset["name"] if source_data is None else f"{source_data}-to-{dataset['name']}"
    rates = [_rate(rate) for rate in protocol["rates"]]
    subset = (dataset["subset"]["name"], dataset["subset"]["rule"]) if dataset.get("subset") else None
    blocks: list[PaperRows] = []
    refusals: list[MsaError] = []
    for source in [load_paper_results(paper) for paper in papers]:
        try:
            rows = source.headline(data, protocol["name"], rates, subset)
        except MsaError as error:
            refusals.append(error)
            continue
        rows = [row for row in rows if not row.oracle or any(run["oracle"] for run in runs)]
        printed = [row for row in rows if any(row.metrics.get(metric) is not None for metric in metrics)]
        if not printed:
            has = dict.fromkeys(METRICS[name].pretty for row in rows for name in row.metrics)
            notes.append(f"The {source.method} paper prints none of these metrics on this data but {', '.join(has)}.")
            continue
        settings = source.by_setting(data, protocol["name"], rates, subset) if len(rates) > 1 else {}
        blocks.append(PaperRows(source.method, tuple(printed), settings))
        single = [row for found in settings.values() for row in found]
        notes += dict.fromkeys(f"{source.method} paper, {row.table}: {row.about}." for row in (*printed, *single))
        notes += _errata_notes(printed, metrics, f"{source.method} paper, " if len(papers) > 1 else "")
    if len(refusals) == len(papers) > 0:
        raise refusals[0]
    notes += map(str, refusals)
    return blocks


def _rate(rate: float | str) -> float | str:
    return rate if isinstance(rate, str) else round(rate, 6)


def _check_comparable(first_name: str, first: Results, name: str, run: Results, allow_oracle: bool) -> None:
    facts = [(key, first["dataset"][key], run["dataset"][key]) for key in ("name", "split", "label_family")]
    differing = [f"data set's {key} ({a!r} against {b!r})" for key, a, b in facts if a != b]
    if first["dataset"].get("subset") != run["dataset"].get("subset"):
        differing.append(f"part of the data set ({split_text(first)} against {split_text(run)})")
    protocols = (first["protocol"], run["protocol"])
    for key in [*protocols[0], *(key for key in protocols[1] if key not in protocols[0])]:
        a, b = (protocol.get(key) for protocol in protocols)
        if key not in _SEEDS and a != b:
            differing.append(f"protocol's {key} ({a!r} against {b!r})")
    if differing:
        raise MsaError(
            f"{first_name} and {name} cannot be compared, for they differ in the {differing[0]}; "
            f"evaluate both on the same data and under the same protocol."
        )
    if first["oracle"] != run["oracle"] and not allow_oracle:
        oracle = first_name if first["oracle"] else name
        raise MsaError(
            f"{oracle} saw labels or other inputs that a user does not have, and the other run did not; "
            f"allow oracle runs explicitly to show both in one table."
        )


def _differences(
    folders: Sequence[str | os.PathLike[str]],
    runs: Sequence[Results],
    names: Sequence[str],
    metrics: Sequence[str],
    notes: list[str],
) -> list[dict[str, Difference]]:
    """Differences of all runs to the first; reasons for absent p-values go into `notes`."""
    family = runs[0]["dataset"]["label_family"]
    bootstrap = runs[0]["bootstrap"]

    def resampled(index: int) -> tuple[Predictions, dict[str, NDArray[np.float64]]]:
        grid = read_predictions(folders[index], runs[index])
        counts = resample_counts(len(grid.ids), bootstrap["resamples"], bootstrap["seed"])
        return grid, {name: values.mean(axis=0) for name, values in grid.resampled(family, counts).items()}

    reference = None
    try:
        reference = resampled(0)
    except MsaError as error:
        notes.append(f"No p-values: {error}")
    rows = []
    for index in range(1, len(runs)):
        drawn = None
        if reference is not None:
            try:
                grid, drawn = resampled(index)
            except MsaError as error:
                notes.append(f"No p-values for {names[index]}: {error}")
            else:
                if grid.fingerprint != reference[0].fingerprint:
                    drawn = None
                    notes.append(
                        f"No p-values for {names[index]}: its predictions are for other ids or labels than those of "
                        f"{names[0]}."
                    )
                elif grid.mask_seeds != reference[0].mask_seeds:
                    notes.append(
                        f"{names[index]} and {names[0]} were evaluated under different mask draws "
                        f"(seeds {list(grid.mask_seeds)} against {list(reference[0].mask_seeds)})."
                    )
        row = {}
        for metric in metrics:
            a, b = (run["mean_over_rates"].get(metric, _ABSENT)["mean"] for run in (runs[0], runs[index]))
            value = None if a is None or b is None else b - a
            p_value = None
            if value is not None and reference and drawn and metric in reference[1] and metric in drawn:
                p_value = paired_p_value(reference[1][metric], drawn[metric])
            row[metric] = Difference(value, p_value)
        rows.append(row)
    return rows


def _selected_on(run: Results) -> str:
    splits = sorted({str(selection.get("split", "unknown")) for selection in run["selection"]})
    return ", ".join(splits) or "unknown"


def _entry_name(entry: PaperEntry) -> str:
    name = f"{entry.method} ({entry.variant})" if entry.variant else entry.method
    return f"{name} [oracle]" if entry.oracle else name


def _mean_cell(metric: str, estimate: Mapping[str, Any]) -> str:
    return format_value(metric, estimate["mean"])


def _paper_cell(entry: PaperEntry, metric: str) -> str:
    text = format_value(metric, entry.metrics.get(metric))
    marked = text != UNDEFINED and any(metric in erratum.metrics for erratum in entry.errata)
    return text + _MARK if marked else text


def _errata_notes(rows: Sequence[PaperEntry], metrics: Sequence[str], paper: str) -> list[str]:
    notes = []
    for row in rows:
        for erratum in row.errata:
            about = [name for name in erratum.metrics if name in metrics]
            if about:
                pretty = ", ".join(METRICS[name].pretty for name in about)
                fixed = [
                    f"{METRICS[n].pretty} {format_value(n, v)}" for n, v in erratum.corrected.items() if n in about
                ]
                correction = f" Corrected: {', '.join(fixed)}." if fixed else ""
                notes.append(f"{_MARK} {paper}{_entry_name(row)}, {row.table}, {pretty}: {erratum.reason}{correction}")
    return notes


def _difference(metric: str, value: float | None) -> str:
    text = format_value(metric, value)
    return text if text == UNDEFINED or text.startswith("-") else f"+{text}"
