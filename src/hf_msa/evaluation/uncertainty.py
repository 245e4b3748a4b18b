"""Uncertainty against errors: how well it ranks them, and the error without the least certain samples.

Numpy alone.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.label_families import AnyFamily, find_label_family
from hf_msa.models.msa_label_families import NEUTRAL


def polarity_errors(
    predictions: NDArray[np.floating[Any]], labels: NDArray[np.floating[Any]], family: AnyFamily
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which samples have a polarity, and where the predicted one is not it.

    Args:
        predictions: Scores `(..., samples)`; one that is exactly neutral has no polarity and is wrong.
        labels: True scores `(samples,)`; those that are exactly neutral are not counted.
        family: The label family, which says what is neutral.

    Returns:
        What counts, and what is wrong, both `(..., samples)`.
    """
    known = find_label_family(family)
    true = known.polarity(np.asarray(labels))
    counted = np.broadcast_to(true != NEUTRAL, np.shape(predictions)).copy()
    return counted, known.polarity(np.asarray(predictions)) != true


def auroc(
    uncertainties: NDArray[np.floating[Any]], wrong: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """How likely a wrong sample is more uncertain than a right one; a tie counts half.

    Args:
        uncertainties: `(samples,)`.
        wrong: True = an error `(samples,)`.
        weights: How often each sample is in each resample `(resamples, samples)`; default: each once.

    Returns:
        `(resamples,)`, or `(1,)` without weights; NaN where all samples are right or all wrong.
    """
    counts = np.ones((1, len(wrong))) if weights is None else weights
    if not len(wrong):
        return np.full(len(counts), np.nan)
    order = np.argsort(uncertainties, kind="stable")
    values, flags, counts = uncertainties[order], wrong[order], counts[:, order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    positives = np.add.reduceat(counts * flags, starts, axis=1)
    negatives = np.add.reduceat(counts * ~flags, starts, axis=1)
    below = negatives.cumsum(axis=1) - negatives
    hits = (positives * (below + negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    shares: NDArray[np.float64] = np.divide(hits, pairs, out=np.full_like(hits, np.nan), where=pairs > 0)
    return shares


def coverage_risks(
    uncertainties: NDArray[np.floating[Any]],
    losses: NDArray[np.floating[Any]],
    counts: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Mean loss of the k most certain samples, for k from 1 to all; its mean is the area under the risk-coverage curve.

    Among equal uncertainties the order is left to chance, and the risk is what is to be expected.

    Args:
        uncertainties: `(samples,)`.
        losses: `(samples,)`, e.g. absolute errors.
        counts: How often each sample is there `(samples,)`, whole numbers; default: each once.

    Returns:
        As many risks as there are samples, repeated ones counted.
    """
    _, group = np.unique(uncertainties, return_inverse=True)
    times = np.ones(len(losses)) if counts is None else counts
    size = np.bincount(group, weights=times)
    total = np.bincount(group, weights=times * losses)
    mean = np.divide(total, size, out=np.zeros_like(total), where=size > 0)
    ordered = np.repeat(mean, size.astype(np.int64))
    return np.asarray(ordered.cumsum() / np.arange(1, len(ordered) + 1), dtype=np.float64)


def spearman(
    first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Rank correlation; equal values share their mean rank.

    Args:
        first: One value per sample `(samples,)`.
        second: Another one `(samples,)`.
        weights: How often each sample is in each resample `(resamples, samples)`; default: each once.

    Returns:
        `(resamples,)`, or `(1,)` without weights; NaN where one of both is constant.
    """
    counts = np.ones((1, len(first))) if weights is None else weights
    total = counts.sum(axis=1, keepdims=True)
    centred = []
    for values in (first, second):
        ranks = _mean_ranks(values, counts)
        centred.append(ranks - (counts * ranks).sum(axis=1, keepdims=True) / total)
    (a, b), spreads = centred, [(counts * deviations**2).sum(axis=1) for deviations in centred]
    norm = np.sqrt(spreads[0] * spreads[1])
    found: NDArray[np.float64] = np.full(len(counts), np.nan)
    # Ranks are halves: what is nearly 0 beside their number is 0.
    np.divide((counts * a * b).sum(axis=1), norm, out=found, where=norm > 1e-9 * total[:, 0] ** 3)
    return found


def _mean_ranks(values: NDArray[np.floating[Any]], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each sample in each resample, from 1, equal values sharing their mean, `(resamples, samples)`."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks: NDArray[np.float64] = (sizes.cumsum(axis=1) - sizes + (sizes + 1) / 2)[:, group]
    return ranks
