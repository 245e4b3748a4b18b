"""How uncertainty relates to error: the fits from which U-ACS takes its thresholds (eq. 11, 12), and how well it ranks.

Numpy alone.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.errors import MsaError
from hf_msa.models.uacs_rules import threshold


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution fitted by maximum likelihood.

    Args:
        mean: Mean of the values.
        std: Their standard deviation, with n in the denominator.
        n: How many there were.
    """

    mean: float
    std: float
    n: int

    @classmethod
    def fit(cls, values: NDArray[np.float64]) -> "Gaussian":
        """Fit to values `(n,)`, of which there must be some."""
        return cls(float(values.mean()), float(values.std()), len(values))


@dataclass(frozen=True)
class AgreementFit:
    """Uncertainties of the samples whose polarity is right and of the others, None for a group without samples.

    Args:
        same: Fit where the predicted polarity is the true one.
        opposite: Fit where it is not.
    """

    same: Gaussian | None
    opposite: Gaussian | None

    def tau(self, weight: float, shift: float) -> float | None:
        """The threshold for lambda `weight` and beta `shift`; None where a group is empty."""
        if self.same is None or self.opposite is None:
            return None
        return threshold(self.same.mean, self.opposite.mean, weight, shift)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AgreementFit":
        """The reverse of `to_dict`."""
        return cls(**{name: None if group is None else Gaussian(**group) for name, group in values.items()})


def polarity_errors(
    predictions: NDArray[np.floating[Any]], labels: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which samples have a polarity, and where the predicted one is not it.

    Args:
        predictions: Scores `(..., samples)`; a score of exactly zero has no polarity and is wrong.
        labels: True scores `(samples,)`; those of exactly zero are not counted.

    Returns:
        What counts, and what is wrong, both `(..., samples)`.
    """
    counted = np.broadcast_to(np.asarray(labels) != 0, np.shape(predictions)).copy()
    return counted, np.sign(predictions) != np.sign(labels)


def fit_agreement(
    predictions: NDArray[np.floating[Any]],
    labels: NDArray[np.floating[Any]],
    uncertainties: NDArray[np.floating[Any]],
) -> AgreementFit:
    """Fit the uncertainties of right and of wrong polarity.

    Samples whose label is zero have no polarity and are left out, as in Acc2 (non-zero). A prediction of exactly zero has
    none either and counts as wrong. Samples without a finite uncertainty are left out: an answer that could not be read.

    Args:
        predictions: Scores `(samples,)` on rows that were not trained on.
        labels: True scores `(samples,)`.
        uncertainties: Of the predictions `(samples,)`.

    Raises:
        MsaError: If the three differ in length.
    """
    if not len(predictions) == len(labels) == len(uncertainties):
        raise MsaError(
            f"There are {len(predictions)} predictions, {len(labels)} labels and {len(uncertainties)} uncertainties; give "
            "one of each per sample."
        )
    values = np.asarray(uncertainties, dtype=np.float64)
    counted, wrong = polarity_errors(predictions, labels)
    counted &= np.isfinite(values)
    groups = [values[counted & ~wrong], values[counted & wrong]]
    return AgreementFit(*(Gaussian.fit(group) if len(group) else None for group in groups))


def require_tau(fit: AgreementFit, weight: float, shift: float, field: str) -> float:
    """The threshold of a fit, or one sentence on why there is none.

    Args:
        fit: The fit.
        weight: Lambda.
        shift: Beta.
        field: The configuration's field for this threshold, ``"tau_1"`` or ``"tau_2"``.

    Raises:
        MsaError: If a group is empty.
    """
    tau = fit.tau(weight, shift)
    if tau is None:
        kind = "right" if fit.same is None else "wrong"
        raise MsaError(
            f"{field} cannot be calibrated: no validation sample with a label other than 0 and an answer was predicted with "
            f"the {kind} polarity; give it yourself with --set model.{field}=..., or use more validation data."
        )
    return tau


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
