"""Render the picture of the README from the results under docs/results/: `python scripts/render_picture.py`."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hf_msa.evaluation.plots import plot_curves
from hf_msa.evaluation.results import read_results

DOCS = Path(__file__).resolve().parent.parent / "docs"
PICTURE = DOCS / "missing-rates.png"
RUNS = ("mosi-tcmr", "mosi-pglh", "mosi-text-flags")
METRICS = ("mae", "non0_acc2")


def render(output: Path = PICTURE) -> Path:
    """Draw error and accuracy over the missing rate of the methods that were measured on MOSI.

    Args:
        output: The PNG file.

    Returns:
        Its path.
    """
    with tempfile.TemporaryDirectory() as folder:
        png, _ = plot_curves(
            [read_results(DOCS / "results" / name) for name in RUNS], Path(folder) / "curves", metrics=METRICS
        )
        output.write_bytes(png.read_bytes())
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    """Render it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PICTURE, help="the file (default: that of the README)")
    sys.stdout.write(f"{render(parser.parse_args(arguments).output)}\n")


if __name__ == "__main__":
    main()
