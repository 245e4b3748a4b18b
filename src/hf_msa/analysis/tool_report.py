"""Report of an analysis: tables, figures and a summary, written together or not at all; and how its tables show numbers."""

import csv
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_msa.evaluation.plots import write_figure
from hf_msa.evaluation.report import UNDEFINED, markdown_table
from hf_msa.evaluation.statistics import confidence_interval, mean_and_std
from hf_msa.files import atomic_files, write_json

GREY = "0.6"
"""The colour of what a figure is not about: reference lines, other words."""

Rows = Sequence[Mapping[str, Any]]
"""A table: rows of equal keys, which are its headings."""


class Report:
    """What a tool found: CSV tables, figures, and a summary in Markdown.

    Nothing is written before `write`, so an analysis that fails leaves the files of an earlier one as they are.

    Args:
        folder: Where the files shall be.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._writers: list[Callable[[Path], Iterable[Path]]] = []
        self._summary_name = "summary.md"
        self._summary: list[str] = []

    def file(self, name: str, write: Callable[[Path], object]) -> None:
        """Add a file of any kind.

        Args:
            name: Its name.
            write: Writes it to the path that it is called with.
        """

        def make(folder: Path) -> list[Path]:
            write(folder / name)
            return [folder / name]

        self._writers.append(make)

    def csv(self, name: str, rows: Rows) -> None:
        """Add a table; what is not defined becomes an empty cell. Without rows there is no file."""
        if rows:
            self.file(name, lambda path: _write_csv(path, rows))

    def json(self, name: str, value: Any) -> None:
        """Add a JSON file."""
        self.file(name, lambda path: write_json(path, value))

    def figure(self, name: str, draw: Callable[..., None], *given: Any) -> None:
        """Add a figure as PNG and SVG. Without matplotlib it is left out, with a warning in the log.

        Args:
            name: Name of the two files, without ending.
            draw: Takes a `matplotlib.figure.Figure`, sets its size, and draws on it.
            *given: What `draw` takes beside the figure.
        """

        def make(folder: Path) -> list[Path]:
            if importlib.util.find_spec("matplotlib") is None:
                logging.getLogger(__name__).warning(
                    "The figure %r is left out, as matplotlib is not installed: pip install 'hf-msa[plots]'.", name
                )
                return []
            return write_figure(folder / name, lambda figure: draw(figure, *given))

        self._writers.append(make)

    def summary(self, name: str, title: str, *parts: str | Rows) -> None:
        """Begin the summary, a Markdown file.

        Args:
            name: Its name.
            title: Its heading.
            *parts: Paragraphs and tables; empty ones are left out.
        """
        self._summary_name = name
        self._summary += _markdown(f"# {title}", parts)

    def section(self, title: str, *parts: str | Rows) -> None:
        """Add a section to the summary; one whose parts are all empty is left out."""
        if any(parts):
            self._summary += _markdown(f"## {title}", parts)

    def write(self) -> list[Path]:
        """Write all files, the summary last.

        Returns:
            Their paths.
        """
        if self._summary:
            content = "\n\n".join(self._summary) + "\n"
            self.file(self._summary_name, lambda path: path.write_text(content, encoding="utf-8"))
        with atomic_files(self.folder) as work:
            written = [path for make in self._writers for path in make(work)]
        return [self.folder / path.name for path in written]


def _write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""


def _markdown(heading: str, parts: Sequence[str | Rows]) -> list[str]:
    return [heading, *(part if isinstance(part, str) else rows_table(part) for part in parts if part)]


def rows_table(rows: Rows) -> str:
    """Render rows as a Markdown table; a line break in a cell would end the table, and becomes a blank."""
    cells = [[" ".join(format_number(value).split()) for value in row.values()] for row in rows]
    return markdown_table(list(rows[0]), cells)


def format_number(value: Any, digits: int = 3) -> str:
    """Format a table cell: floats with `digits` decimals, what is not defined as ``-``, the rest as it is."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNDEFINED
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def format_spread(values: Sequence[float], digits: int = 3) -> str:
    """Format the mean of one value per training seed, with ± their standard deviation where there are several."""
    mean, std = mean_and_std(values)
    shown = format_number(mean, digits)
    return f"{shown} ± {std:.{digits}f}" if math.isfinite(std) else shown


def format_bounds(bounds: Sequence[float], digits: int = 3) -> str:
    """Format the two ends of an interval, in brackets."""
    return f"[{', '.join(format_number(end, digits) for end in bounds)}]"


def format_estimate(values: Sequence[float], resampled: Any, digits: int = 3) -> str:
    """Format a mean over training seeds with its spread and its 95 % bootstrap interval over samples.

    Args:
        values: One value per training seed.
        resampled: Their mean in each resample of the samples.
        digits: Decimals.
    """
    return f"{format_spread(values, digits)} {format_bounds(confidence_interval(resampled), digits)}"


def format_difference(difference: float, resampled: Any) -> str:
    """Format a difference, with its sign and its 95 % bootstrap interval."""
    return f"{difference:+.3f} {format_bounds(confidence_interval(resampled))}"


def seed_means(rows: Rows, column: str) -> list[float]:
    """The mean of a column over the rows of each training seed; NaN is left out where there are other values.

    Args:
        rows: With the column `training seed`.
        column: Which one.
    """
    values = [
        np.array([row[column] for row in rows if row["training seed"] == seed], dtype=np.float64)
        for seed in dict.fromkeys(row["training seed"] for row in rows)
    ]
    return [float(own[np.isfinite(own)].mean()) if np.isfinite(own).any() else math.nan for own in values]
