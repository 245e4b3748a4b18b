"""What the tools write: CSV tables, Markdown summaries, figures as PNG and SVG; each file whole or not at all."""

import contextlib
import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_msa.errors import require_package
from hf_msa.evaluation.report import UNDEFINED, markdown_table
from hf_msa.evaluation.statistics import mean_and_std
from hf_msa.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "0.6"
"""What is beside the point of a figure: reference lines, other words."""


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


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table; its columns are the keys of the first row. What is not defined becomes an empty cell.

    Args:
        path: The file.
        rows: At least one, all with the same keys.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})
    return path


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""


def rows_table(rows: Sequence[Mapping[str, Any]], digits: int = 3) -> str:
    """Render rows of equal keys as a Markdown table."""
    return markdown_table(list(rows[0]), [[format_number(value, digits) for value in row.values()] for row in rows])


def write_markdown(path: Path, *parts: str) -> Path:
    """Write paragraphs and tables as one Markdown file; empty parts are left out."""
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


@contextlib.contextmanager
def drawn_figure(stem: Path, width: float, height: float, written: list[Path]) -> Iterator["Figure"]:
    """Give an empty figure to draw on, then write it as ``<stem>.png`` and ``<stem>.svg``.

    Args:
        stem: The files without ending.
        width: In inches.
        height: In inches.
        written: The two paths are added here.

    Raises:
        MsaError: If matplotlib is not installed.
    """
    require_package("matplotlib", "plots")
    import matplotlib.style
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.hashsalt": "hf_msa",
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    # Colours that the colour-blind can tell apart, too.
    with matplotlib.style.context(["tableau-colorblind10", style]):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=160)
        yield figure
        for kind in ("png", "svg"):
            path = stem.with_name(f"{stem.name}.{kind}")
            with atomic_write(path) as temporary:
                # Without a date the same numbers give the same file.
                figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else {})
            written.append(path)
