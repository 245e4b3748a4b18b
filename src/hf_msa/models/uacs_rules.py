"""The rules of U-ACS as plain functions of numbers: polarity, weights, and who answers."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

ROUTES = ("fast", "mllm", "weighted", "verify")
"""Whose answer a sample got: the small model's, the expert's, an average of both, the expert's second one."""
FAST, MLLM, WEIGHTED, VERIFY = range(len(ROUTES))


def polarity(scores: Floats, neutral_zone: float, neutral: float = 0.0) -> Indices:
    """Sign of each score's distance from neutral; 0 for those that are nearer than `neutral_zone`.

    Args:
        scores: In label units `(samples,)`.
        neutral_zone: Where it ends; a score at this distance has a sign.
        neutral: The neutral score.
    """
    distances = scores - neutral
    return np.where(np.abs(distances) < neutral_zone, 0, np.sign(distances)).astype(np.int64)


def threshold(fit: Mapping[str, Any], weight: float, shift: float) -> float | None:
    """The threshold between two means of an uncertainty (eq. 12); None where a group of samples was empty.

    Args:
        fit: The groups `same` and `opposite`, of right and wrong polarity, with their `mean`; None for an empty one.
        weight: Lambda: 0 gives the mean of `same`, 1 that of `opposite`.
        shift: Beta, added.
    """
    if fit["same"] is None or fit["opposite"] is None:
        return None
    return float((1 - weight) * fit["same"]["mean"] + weight * fit["opposite"]["mean"] + shift)


def threshold_for(uncertainties: Floats, count: int) -> float:
    """The threshold that hands on the `count` most uncertain samples; fewer where some are equally uncertain.

    It lies halfway between the two samples that it parts: in other batches their uncertainties differ in the last digits.

    Args:
        uncertainties: `(samples,)`.
        count: From 0 to the number of samples.
    """
    ordered = np.sort(uncertainties)
    if count == len(ordered):
        return -math.inf
    return float(ordered[-count - 1 :][:2].mean())


def small_weight(small: Floats, expert: Floats, epsilon: float) -> Floats:
    """Weight of the small model's score in the average of both (eq. 15): in inverse proportion to the uncertainties.

    Args:
        small: Uncertainties of the small model `(samples,)`; rounding errors below 0 count as 0.
        expert: Uncertainties of the expert `(samples,)`; infinite ones leave all weight to the small model.
        epsilon: Added to both.
    """
    own, other = 1 / (np.maximum(small, 0) + epsilon), 1 / (np.maximum(expert, 0) + epsilon)
    return np.asarray(own / (own + other), dtype=np.float64)


def answer_routes(
    small: Floats,
    expert: Floats,
    expert_uncertainty: Floats,
    tau_2: float,
    *,
    neutral_zone: float,
    neutral: float = 0.0,
    agreement_rule: str = "weighted",
    disagreement_rule: str = "verify",
) -> Indices:
    """What is done with the expert's answers (eq. 14-16).

    Args:
        small: Scores of the small model `(samples,)`, all of which were handed on.
        expert: First scores of the expert `(samples,)`.
        expert_uncertainty: Theirs `(samples,)`.
        tau_2: Up to and at it, the expert is sure.
        neutral_zone, agreement_rule, disagreement_rule: See `UacsConfig`.
        neutral: The neutral score.

    Returns:
        Indices into `ROUTES` `(samples,)`, never that of ``"fast"``.
    """
    agreed = MLLM if agreement_rule == "accept_mllm" else WEIGHTED
    disagreed = ROUTES.index(disagreement_rule)
    same = polarity(small, neutral_zone, neutral) == polarity(expert, neutral_zone, neutral)
    return np.where(expert_uncertainty <= tau_2, MLLM, np.where(same, agreed, disagreed)).astype(np.int64)


def random_choice(keys: Sequence[str], count: int, seed: int) -> NDArray[np.bool_]:
    """Choose samples at random; a sample's draw depends on the seed and its own key alone.

    Args:
        keys: What tells samples apart, e.g. their ids.
        count: How many to choose.
        seed: Of the draws.

    Returns:
        `(samples,)`, True = chosen.
    """
    draws = [hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest() for key in keys]
    chosen = np.zeros(len(keys), dtype=bool)
    chosen[sorted(range(len(keys)), key=lambda index: draws[index])[:count]] = True
    return chosen
