"""What was found in the recordings of a data set: how long they are, where faces are, and how each feature is spread."""

import csv
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_msa.figures import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEATURES_FILE = "features.csv"
FIGURE = "recordings"
"""The name, without ending, of the figure."""
_NAMED = 5


class RecordingStatistics:
    """Sums over clips, which are shown one by one.

    Args:
        columns: Modality name -> names of its features.
    """

    def __init__(self, columns: Mapping[str, tuple[str, ...]]) -> None:
        self._columns = columns
        self._frames = dict.fromkeys(columns, 0)
        self._sums = {name: np.zeros((2, len(names))) for name, names in columns.items()}
        self._ends = {
            name: np.array([np.full(len(names), math.inf), np.full(len(names), -math.inf)])
            for name, names in columns.items()
        }
        self._seconds: list[float] = []
        self._faces: list[tuple[int, int]] = []

    def add(self, features: Mapping[str, np.ndarray], seconds: float | None, faces: int, pictures: int) -> None:
        """Take one clip.

        Args:
            features: Modality name -> `(frames, width)`, of the modalities that it has.
            seconds: How long it is, if that is known.
            faces, pictures: In how many of so many pictures the face is.
        """
        for name, values in features.items():
            exact = values.astype(np.float64)
            self._frames[name] += len(exact)
            self._sums[name] += [exact.sum(0), (exact**2).sum(0)]
            low, high = self._ends[name]
            self._ends[name] = np.array([np.minimum(low, exact.min(0)), np.maximum(high, exact.max(0))])
        self._seconds += [] if seconds is None else [seconds]
        self._faces += [(faces, pictures)] if pictures else []

    def notes(self) -> list[str]:
        """What a reader should know, in sentences."""
        notes = []
        if self._seconds:
            low, high, total = min(self._seconds), max(self._seconds), sum(self._seconds)
            notes.append(f"The clips last {low:.1f} to {high:.1f} s, {total / 60:.1f} minutes together.")
        if self._faces:
            faces, pictures = (sum(counts) for counts in zip(*self._faces, strict=True))
            notes.append(f"The face that was followed is in {faces / pictures:.0%} of the pictures.")
        for name, names in self._columns.items():
            flat = [one for one, is_flat in zip(names, self._is_flat(name), strict=True) if is_flat]
            if flat and self._frames[name] > 1:
                some = ", ".join(flat[:_NAMED]) + (", ..." if len(flat) > _NAMED else "")
                notes.append(f"{len(flat)} of {len(names)} {name} features are the same in every frame: {some}.")
        return notes

    def write(self, folder: Path) -> None:
        """Write mean, spread and ends of each feature as a table, and a figure where matplotlib is installed."""
        if not any(self._frames.values()):
            return
        with (folder / FEATURES_FILE).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["modality", "feature", "frames", "mean", "std", "lowest", "highest"])
            for name, names in self._columns.items():
                if self._frames[name]:
                    rows = zip(names, *self._spread(name), *self._ends[name], strict=True)
                    for one, *numbers in rows:
                        table.writerow([name, one, self._frames[name], *(f"{number:.6g}" for number in numbers)])
        if find_spec("matplotlib") is not None:
            write_figure(folder / FIGURE, self._draw)

    def _spread(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        total, squares = self._sums[name] / self._frames[name]
        return total, np.sqrt(np.maximum(squares - total**2, 0.0))

    def _is_flat(self, name: str) -> np.ndarray:
        low, high = self._ends[name]
        flat: np.ndarray = low == high
        return flat

    def _draw(self, figure: "Figure") -> None:
        shown = [name for name in self._columns if self._frames[name]]
        figure.set_size_inches(7, 2.2 * (1 + len(shown)))
        grid = figure.add_gridspec(1 + len(shown), 2)
        lasting = figure.add_subplot(grid[0, 0])
        lasting.hist(self._seconds, bins="auto")
        lasting.set(xlabel="seconds", ylabel="clips", title="Length")
        if self._faces:
            seen = figure.add_subplot(grid[0, 1])
            seen.hist([faces / pictures for faces, pictures in self._faces], bins=10, range=(0, 1))
            seen.set(xlabel="share of the pictures with the face", ylabel="clips", title="Faces")
        for row, name in enumerate(shown, 1):
            axes = figure.add_subplot(grid[row, :])
            mean, std = self._spread(name)
            places = np.arange(len(mean))
            axes.errorbar(places, mean, std, fmt=".", markersize=3, linewidth=0.6)
            flat = self._is_flat(name)
            axes.plot(places[flat], mean[flat], "x", color="#D55E00", label="the same in every frame")
            axes.set_yscale("symlog")
            axes.set(ylabel="mean and spread", title=f"{name}: {len(mean)} features")
            if len(mean) <= 40:
                axes.set_xticks(places, self._columns[name], rotation=90)
            if flat.any():
                axes.legend(frameon=False)
