"""Subsets of a split by whether the modalities agree, found from the unimodal labels of CH-SIMS.

The CMC paper reports a consistent and an inconsistent subset of the CH-SIMS test split without publishing them. The
default rule is the one that its numbers fit: on the real labels 218 of 457 samples are inconsistent under it, and the
reported 74.77 % is 163 of 218. The other rules are the readings that do not fit, kept for comparison.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_msa.errors import MsaError, unknown_name
from hf_msa.label_families import AnyFamily, find_label_family
from hf_msa.models.msa_label_families import NEUTRAL

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SUBSETS = ("consistent", "inconsistent")
SUBSET_FOLDER = "subset-"
"""What the name of a folder with a subset's results begins with."""


def differs_from_m(multimodal: IntArray, unimodal: IntArray) -> BoolArray:
    """Inconsistent: some modality's class differs from the multimodal class.

    Args:
        multimodal: Polarities of the labels of N samples, see `LabelFamily.polarity`; shape (N,).
        unimodal: Polarities of the labels of M single modalities; shape (N, M).

    Returns:
        Whether each sample is inconsistent; shape (N,).
    """
    return np.asarray((unimodal != multimodal[:, None]).any(axis=1))


def not_all_equal(multimodal: IntArray, unimodal: IntArray) -> BoolArray:
    """Inconsistent: the modalities' classes are not all equal; arguments and result as in `differs_from_m`."""
    return np.asarray((unimodal != unimodal[:, :1]).any(axis=1))


def polarity_conflict(multimodal: IntArray, unimodal: IntArray) -> BoolArray:
    """Inconsistent: one modality is negative and another positive; arguments and result as in `differs_from_m`."""
    return np.asarray((unimodal < NEUTRAL).any(axis=1) & (unimodal > NEUTRAL).any(axis=1))


RULES: dict[str, Callable[[IntArray, IntArray], BoolArray]] = {
    "differs_from_M": differs_from_m,
    "not_all_equal": not_all_equal,
    "polarity_conflict": polarity_conflict,
}
"""The rules that say which samples are inconsistent, by name."""

DEFAULT_RULE = "differs_from_M"


@dataclass(frozen=True)
class Subset:
    """Which part of a split to evaluate on.

    Attributes:
        name: ``"consistent"`` or ``"inconsistent"``.
        rule: What makes a sample inconsistent, see `RULES`.
    """

    name: str
    rule: str = DEFAULT_RULE

    def __post_init__(self) -> None:
        if self.name not in SUBSETS:
            raise unknown_name("subset", self.name, SUBSETS)
        if self.rule not in RULES:
            raise unknown_name("subset rule", self.rule, RULES)

    @property
    def folder(self) -> str:
        """The folder of its results in that of the run; another rule is another subset."""
        return f"{SUBSET_FOLDER}{self.name}" + ("" if self.rule == DEFAULT_RULE else f"-{self.rule}")

    def rows(self, labels: ArrayLike, unimodal: Mapping[str, ArrayLike], family: AnyFamily) -> IntArray:
        """Find the subset's rows.

        Args:
            labels: The labels of N samples; shape (N,).
            unimodal: Column name -> the labels of one modality, (N,); those that the data has.
            family: The label family, which says what is neutral.

        Returns:
            The row numbers, ascending.

        Raises:
            MsaError: If there are no unimodal labels, or too few for the rule, one is absent from a sample, or no
                sample belongs to the subset.
        """
        least = 1 if self.rule == DEFAULT_RULE else 2
        if len(unimodal) < least:
            raise MsaError(
                f"The data has {len(unimodal)} columns of unimodal labels, and the subset rule {self.rule!r} needs "
                f"{least} at least; use data that says how each modality by itself was labelled, such as CH-SIMS."
            )
        columns = {name: np.asarray(values, dtype=np.float64) for name, values in unimodal.items()}
        for name, values in columns.items():
            if np.isnan(values).any():
                raise MsaError(
                    f"{int(np.isnan(values).sum())} of {values.size} samples have no {name}, so it is not known "
                    "whether their modalities agree; evaluate the whole split, or complete the labels."
                )
        polarity = find_label_family(family).polarity
        multimodal = polarity(np.asarray(labels, dtype=np.float64))
        inconsistent = RULES[self.rule](multimodal, np.stack(list(map(polarity, columns.values())), axis=1))
        found = np.flatnonzero(inconsistent if self.name == "inconsistent" else ~inconsistent)
        if not found.size:
            raise MsaError(
                f"None of the {multimodal.size} samples is {self.name} under the subset rule {self.rule!r}; use "
                "another rule or split."
            )
        return found


def subset_text(subset: Mapping[str, Any]) -> str:
    """Name a subset as tables and cards do.

    Args:
        subset: What ``results.json`` says of it: ``name`` and ``rule`` at least.
    """
    return f"{subset['name']} subset ({subset['rule']})"
