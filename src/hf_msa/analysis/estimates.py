"""Estimates, and how tables show numbers: spread over training seeds, bootstrap intervals over samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_msa.evaluation.report import UNDEFINED
from hf_msa.evaluation.statistics import all_and_resampled, confidence_interval, mean_and_std

Floats = NDArray[np.float64]

Rows = Sequence[Mapping[str, Any]]
"""A table: rows of equal keys, which are its headings."""


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is. Arithmetic is done seed by seed and resample by resample, so differences are paired.

    Attributes:
        per_seed: The number of each training seed (S,).
        resampled: Its mean over seeds in each bootstrap resample of the samples (resamples,); NaN where undefined.
    """

    per_seed: Floats
    resampled: Floats

    @classmethod
    def of(cls, counted: ArrayLike) -> "Estimate":
        """Of a number of S seeds under the counts of `all_and_resampled`, (S, 1 + resamples)."""
        values = np.asarray(counted, dtype=np.float64)
        return cls(values[:, 0], values[:, 1:].mean(axis=0))

    @classmethod
    def mean_of(cls, values: ArrayLike) -> "Estimate":
        """The mean over samples of values (S, N)."""
        array = np.asarray(values, dtype=np.float64)
        return cls.of(array @ all_and_resampled(array.shape[1]).T / array.shape[1])

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(self.per_seed.mean())

    @property
    def std(self) -> float:
        """The standard deviation over seeds; NaN for one seed."""
        return mean_and_std(self.per_seed.tolist())[1]

    @property
    def bounds(self) -> tuple[float, float]:
        """The 95 % bootstrap interval over samples."""
        return confidence_interval(self.resampled)

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.per_seed - other.per_seed, self.resampled - other.resampled)

    def __truediv__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.per_seed / other.per_seed, self.resampled / other.resampled)

    def __mul__(self, factor: float) -> "Estimate":
        return Estimate(self.per_seed * factor, self.resampled * factor)

    def text(self, digits: int = 3) -> str:
        """Mean ± standard deviation over seeds, and the interval in brackets."""
        return f"{format_spread(self.per_seed.tolist(), digits)} {format_bounds(self.bounds, digits)}"

    def difference_text(self) -> str:
        """A difference, with its sign and its interval."""
        return f"{self.mean:+.3f} {format_bounds(self.bounds)}"

    def cells(self, name: str) -> dict[str, float]:
        """Its cells in a CSV table."""
        low, high = self.bounds
        return {name: self.mean, f"{name} sd": self.std, f"{name} low": low, f"{name} high": high}


def bars(estimates: Sequence[Estimate]) -> tuple[Floats, Floats]:
    """The lengths of N bars, and how far their intervals reach to both sides (2, N)."""
    means = np.array([estimate.mean for estimate in estimates])
    low, high = np.array([estimate.bounds for estimate in estimates]).T
    # A percentile interval can leave out the mean of a small sample; an error bar cannot have a negative length.
    return means, np.maximum(np.stack([means - low, high - means]), 0)


def seed_means(rows: Rows, column: str) -> list[float]:
    """The mean of a column over the rows of each `training seed`; NaN is left out where there are other values."""
    values = [
        np.array([row[column] for row in rows if row["training seed"] == seed], dtype=np.float64)
        for seed in dict.fromkeys(row["training seed"] for row in rows)
    ]
    return [float(own[np.isfinite(own)].mean()) if np.isfinite(own).any() else math.nan for own in values]


def format_number(value: Any, digits: int = 3) -> str:
    """Format a table cell: floats with `digits` decimals, what is not defined as ``-``, the rest as it is."""
    if isinstance(value, Estimate):
        return value.text(digits)
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
