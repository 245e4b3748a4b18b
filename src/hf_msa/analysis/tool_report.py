"""Report of an analysis: tables, figures and a summary, written together or not at all."""

import csv
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_msa.analysis.estimates import Estimate, Rows, format_number
from hf_msa.evaluation.report import markdown_table
from hf_msa.evaluation.results import plain
from hf_msa.figures import write_figure
from hf_msa.files import atomic_files, write_json

if TYPE_CHECKING:
    import matplotlib.axis
    import matplotlib.figure

Figure: TypeAlias = "matplotlib.figure.Figure"
"""What is drawn on; a name for annotations, so that matplotlib is imported where it is needed alone."""

GREY = "0.6"
"""The colour of what a figure is not about: reference lines, other words."""


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
        """Add a table; what is not defined becomes an empty cell, an `Estimate` four. Without rows there is no file."""
        if rows:
            self.file(name, lambda path: _write_csv(path, rows))

    def json(self, name: str, value: Any) -> None:
        """Add a JSON file; numbers that are not finite become null."""
        self.file(name, lambda path: write_json(path, plain(value)))

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


def mark_whole_numbers(axis: "matplotlib.axis.Axis") -> None:
    """Put the ticks of an axis that counts at whole numbers, even where that leaves one."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def _write_csv(path: Path, rows: Rows) -> None:
    table = [
        {
            key: cell
            for name, value in row.items()
            for key, cell in (value.cells(name) if isinstance(value, Estimate) else {name: value}).items()
        }
        for row in rows
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in table)


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
