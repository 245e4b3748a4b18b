"""The trivial guess of a sequence: the training mean per position, of sequences of the same length where there are enough.

One mean vector for all positions flatters whatever rebuilds a sequence: states of text, frames at the beginning and end of a
clip differ by position alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PositionMeans:
    """Means over training sequences, by length and position.

    Args:
        fewest: With fewer sequences of a length, the mean at a position is taken over all lengths; with fewer than that at
            a position, over all positions.
    """

    def __init__(self, fewest: int = 5) -> None:
        self.fewest = fewest
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._counts: dict[int, int] = {}
        self._guesses: dict[int, NDArray[np.float64]] = {}

    def add(self, sequence: NDArray[Any]) -> None:
        """Add a sequence `(length, width)`; one of length 0 counts for nothing."""
        length = len(sequence)
        if length:
            self._sums[length] = self._sums.get(length, 0.0) + np.asarray(sequence, dtype=np.float64)
            self._counts[length] = self._counts.get(length, 0) + 1
            self._guesses.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return not self._sums

    def __call__(self, length: int) -> NDArray[np.float64]:
        """The guess for a sequence of that length `(length, width)`; at least one sequence has to be added before."""
        if length not in self._guesses:
            self._guesses[length] = self._guess(length)
        return self._guesses[length]

    def _guess(self, length: int) -> NDArray[np.float64]:
        if self._counts.get(length, 0) >= self.fewest:
            return self._sums[length] / self._counts[length]
        longest = max(self._sums)
        total = np.zeros((longest, next(iter(self._sums.values())).shape[1]))
        counts = np.zeros(longest)
        for known, sums in self._sums.items():
            total[:known] += sums
            counts[:known] += self._counts[known]
        guess = np.tile(total.sum(axis=0) / counts.sum(), (length, 1))
        enough = np.flatnonzero(counts[:length] >= self.fewest)
        guess[enough] = total[enough] / counts[enough, None]
        return guess

    def padded(self, lengths: Sequence[int] | NDArray[np.int64], longest: int) -> NDArray[np.float64]:
        """The guesses for sequences of several lengths, zeros behind their ends `(sequences, longest, width)`."""
        width = next(iter(self._sums.values())).shape[1]
        filled = np.zeros((len(lengths), longest, width))
        for row, length in zip(filled, map(int, lengths), strict=True):
            row[:length] = self(length)
        return filled
