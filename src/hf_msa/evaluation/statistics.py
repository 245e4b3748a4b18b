"""Certainty of numbers: spread over seeds, bootstrap intervals over samples, paired tests between runs.

Two kinds of chance are kept apart. The spread over *training seeds* says how much a re-trained model would differ; the
bootstrap over *test samples* says how much another test set of the same size would. All resampling draws rows: one
resample uses the same rows for every rate, mask and seed, so that what belongs together stays together.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_msa.errors import MsaError

RESAMPLES = 1000
"""How many bootstrap resamples are drawn unless told otherwise."""

CONFIDENCE = 0.95
"""The coverage of confidence intervals unless told otherwise."""


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (divisor n - 1).

    Args:
        values: One value per training seed.

    Returns:
        (mean, std). The std of a single value is NaN; both are NaN where any value is, since a mean without the runs
        that have no defined score would flatter the method.

    Raises:
        MsaError: If there are no values.
    """
    if not len(values):
        raise MsaError("There are no values to average; give at least one.")
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan


def resample_counts(n: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Draw bootstrap resamples of n rows, as how often each row is drawn.

    Args:
        n: Number of rows.
        resamples: Number of resamples.
        seed: The same seed gives the same resamples.

    Returns:
        (resamples, n) counts; every row of it sums to n.

    Raises:
        MsaError: If `n` or `resamples` is below 1.
    """
    if n < 1 or resamples < 1:
        raise MsaError(f"A bootstrap needs at least one row and one resample; got {n} rows and {resamples} resamples.")
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    flat = (drawn + n * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def all_and_resampled(n: int) -> NDArray[np.float64]:
    """How often each of n rows counts: once in the first line, then as in the lines of `resample_counts`."""
    return np.concatenate([np.ones((1, n)), resample_counts(n)])


def confidence_interval(resampled: ArrayLike, level: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile bootstrap interval.

    Args:
        resampled: The statistic in each resample; resamples where it is undefined (NaN) are left out.
        level: Coverage, between 0 and 1.

    Returns:
        (low, high); NaN where no resample is defined.
    """
    values = np.asarray(resampled, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided paired bootstrap p-value for "both runs score the same".

    Args:
        first: The first run's statistic in each resample.
        second: The second run's statistic in the *same* resamples.

    Returns:
        Twice the smaller share of resamples on one side of zero difference, a tie counting for both sides, with one
        added to count and total so that it is never zero; NaN where no resample is defined for both.

    Raises:
        MsaError: If the two do not hold the same number of resamples.
    """
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise MsaError(f"A paired test needs the same resamples on both sides; got {left.size} and {right.size}.")
    difference = right - left
    difference = difference[~np.isnan(difference)]
    if not difference.size:
        return math.nan
    tail = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (1 + difference.size))


def paired_difference(first: ArrayLike, second: ArrayLike) -> dict[str, float]:
    """Mean of first minus second, with a 95 % bootstrap interval over samples.

    Args:
        first: One value per sample, (N,) with N >= 1.
        second: Another value of the same samples.

    Returns:
        `difference`, `low` and `high`.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    low, high = confidence_interval(resample_counts(len(difference)) @ difference / len(difference))
    return {"difference": float(difference.mean()), "low": low, "high": high}


def resampled_means(
    values: NDArray[Any], counts: NDArray[np.float64], among: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The mean over some of the samples in each resample.

    Args:
        values: One value per sample, or a flag, (N,).
        counts: How often each sample is in each resample (resamples, N).
        among: The samples that count (N,).

    Returns:
        (resamples,); NaN for a resample that holds none of them.
    """
    total = counts @ among.astype(np.float64)
    means: NDArray[np.float64] = np.full(len(counts), math.nan)
    np.divide(counts @ (values * among).astype(np.float64), total, out=means, where=total > 0)
    return means
