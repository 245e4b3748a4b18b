"""Thresholds of U-ACS: fits of the uncertainty where the polarity is right and where it is wrong (eq. 11, 12)."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.errors import MsaError
from hf_msa.evaluation.report import counted
from hf_msa.evaluation.uncertainty import polarity_errors
from hf_msa.label_families import AnyFamily
from hf_msa.models.uacs_rules import threshold

FEW = 10
"""Groups of fewer samples than this are named in a warning."""


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
        """The threshold between the two means; see `uacs_rules.threshold`."""
        return threshold(self.to_dict(), weight, shift)

    def faults(self) -> list[str]:
        """Why a threshold that is made of this means little, one part of a sentence each; empty where nothing is amiss."""
        found = [
            f"only {counted(group.n, 'sample')} of the {kind} polarity {'is' if group.n == 1 else 'are'} behind it"
            for kind, group in (("right", self.same), ("wrong", self.opposite))
            if group is not None and group.n < FEW
        ]
        if self.same is not None and self.opposite is not None and self.same.mean >= self.opposite.mean:
            found.append(
                f"the uncertainty is not higher where the polarity is wrong (mean {self.opposite.mean:.3g}) than where it "
                f"is right ({self.same.mean:.3g})"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AgreementFit":
        """The reverse of `to_dict`."""
        return cls(**{name: None if group is None else Gaussian(**group) for name, group in values.items()})


def fit_agreement(
    predictions: NDArray[np.floating[Any]],
    labels: NDArray[np.floating[Any]],
    uncertainties: NDArray[np.floating[Any]],
    family: AnyFamily,
) -> AgreementFit:
    """Fit the uncertainties of right and of wrong polarity.

    Samples whose label is neutral have no polarity and are left out, as in Acc2 (non-zero). A neutral prediction has none
    either and counts as wrong. Samples without a finite uncertainty are left out: an answer that could not be read.

    Args:
        predictions: Scores `(samples,)` on rows that were not trained on.
        labels: True scores `(samples,)`.
        uncertainties: Of the predictions `(samples,)`.
        family: The label family, which says what is neutral.

    Raises:
        MsaError: If the three differ in length.
    """
    if not len(predictions) == len(labels) == len(uncertainties):
        raise MsaError(
            f"There are {len(predictions)} predictions, {len(labels)} labels and {len(uncertainties)} uncertainties; give "
            "one of each per sample."
        )
    values = np.asarray(uncertainties, dtype=np.float64)
    counted, wrong = polarity_errors(predictions, labels, family)
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
            f"{field} cannot be calibrated: no validation sample with a label that is not neutral and an answer was "
            f"predicted with the {kind} polarity; give {field} itself with --set (hf-msa train: model.{field}=...), or use "
            "more validation rows."
        )
    return tau
