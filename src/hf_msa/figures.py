"""Figures as files: one style, and the same bytes for the same drawing."""

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_msa.errors import require_package
from hf_msa.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label_lines(name: str, width: int = 12) -> str:
    """Arrange a label in lines, so that neighbours on an axis do not overlap; words stay whole.

    Args:
        name: The label; it is broken at blanks and behind ``+`` alone.
        width: Letters of a line, but for a longer word.
    """
    words = name.replace("+", "+ ")
    return "\n".join(textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)).replace("+ ", "+")


def write_figure(stem: str | os.PathLike[str], draw: Callable[["Figure"], None]) -> list[Path]:
    """Draw a figure and write it as PNG and as SVG; the same drawing gives the same files.

    Args:
        stem: Where to write, without ending: ``.png`` and ``.svg`` are added.
        draw: Sets the size of the empty figure that it is called with, and draws on it.

    Returns:
        The two paths.

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
    paths = [Path(f"{os.fspath(stem)}.{kind}") for kind in ("png", "svg")]
    # Colours that the colour-blind can tell apart, too.
    with matplotlib.style.context(["tableau-colorblind10", style]):
        figure = Figure(layout="constrained", dpi=160)
        draw(figure)
        for path in paths:
            with atomic_write(path) as temporary:
                # Without a date the same numbers give the same file.
                metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
                figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
    return paths
