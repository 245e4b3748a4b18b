"""Making a trained model honest on rows that it was not trained on: probabilities, errors to be expected, intervals."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_msa.errors import MsaError

Floats = NDArray[np.float64]

TEMPERATURES = (0.05, 20.0)
"""Lowest and highest temperature that is fitted: where every row is right, the best one would be 0."""

# Of the range's logarithm: its 6 become less than a float can tell.
_HALVINGS = 60


def fit_temperature(class_logits: Tensor, classes: Tensor) -> float:
    """Find the temperature under which softmax(logits / temperature) makes the classes most likely.

    Temperature scaling (Guo et al., ICML 2017): no prediction changes, only how sure it claims to be. The mean negative
    log-likelihood is convex in 1 / temperature, so where its minimum lies outside `TEMPERATURES`, the nearest end is the
    best within.

    Args:
        class_logits (`torch.FloatTensor` of shape `(rows, classes)`): Logits of rows that were not trained on.
        classes (`torch.LongTensor` of shape `(rows,)`): Their true classes.

    Returns:
        The temperature, from 0.05 to 20.

    Raises:
        ValueError: If there are no rows, or logits that are not finite.
    """
    logits = class_logits.detach().double().cpu()
    classes = classes.cpu()
    if not len(logits) or not torch.isfinite(logits).all():
        raise ValueError(
            f"A temperature needs rows with finite logits, but {len(logits)} rows were given; train with a lower learning "
            "rate if the logits are not finite."
        )
    # Differences to the true class first: far out, where every row is right, the slope is tiny but keeps its sign.
    differences = logits - logits.gather(1, classes.unsqueeze(1))

    def slope(temperature: float) -> float:
        """Derivative of the mean negative log-likelihood by 1 / temperature, which only grows as that does."""
        return float(((differences / temperature).softmax(dim=1) * differences).sum(dim=1).mean())

    low, high = TEMPERATURES
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.sqrt(low * high)


# --- Errors to be expected ---

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Penalties of the ridge regression that are tried, in units of the variance of a feature."""

FOLDS = 5
"""Parts into which rows are cut for cross-fitting."""

_LEAST = 0.1


@dataclass(frozen=True)
class ErrorFit:
    """A linear prediction of absolute errors.

    Args:
        weights: Of the features `(features,)`.
        constant: Added.
        least: No error below it is expected: a tenth of the mean error, so that one can divide by it.
        penalty: The one of `PENALTIES` that predicted held-out errors best.
        held_out: What is expected of each row by a regression that did not see it `(rows,)`, at least `least`.
    """

    weights: Floats
    constant: float
    least: float
    penalty: float
    held_out: Floats


def ridge(features: Floats, targets: Floats, penalty: float) -> tuple[Floats, float]:
    """Weights and constant of a ridge regression on standardised features, for the features as they are.

    Args:
        features: `(rows, features)`; those that are constant get no weight.
        targets: `(rows,)`.
        penalty: Added to the variance of each standardised feature, which is 1.
    """
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 1e-8)
    standard = (features - mean) * scale
    covariance = standard.T @ standard / len(targets) + penalty * np.eye(len(mean))
    weights = np.linalg.solve(covariance, standard.T @ (targets - targets.mean()) / len(targets)) * scale
    return weights, float(targets.mean() - mean @ weights)


def fit_errors(features: Floats, errors: Floats, rows: NDArray[Any]) -> ErrorFit:
    """Learn which absolute errors are to be expected, by a ridge regression whose penalty is chosen by cross-fitting.

    Args:
        features: What the errors are predicted by `(items, features)`.
        errors: Absolute errors of a model on rows that it was not trained on `(items,)`.
        rows: The row of each item `(items,)`. Folds are blocks of successive rows, as those are often of one video.

    Raises:
        MsaError: If there are fewer rows than folds.
    """
    order, place = np.unique(rows, return_inverse=True)
    if len(order) < FOLDS:
        raise MsaError(
            f"Errors to be expected cannot be learned from {len(order)} validation rows; give at least {FOLDS}, or choose "
            "another uncertainty_kind."
        )
    fold = place * FOLDS // len(order)
    predicted = np.empty((len(PENALTIES), len(errors)))
    for part in range(FOLDS):
        held = fold == part
        for index, penalty in enumerate(PENALTIES):
            weights, constant = ridge(features[~held], errors[~held], penalty)
            predicted[index, held] = features[held] @ weights + constant
    best = int(np.square(predicted - errors).mean(axis=1).argmin())
    least = float(max(_LEAST * errors.mean(), np.finfo(np.float32).tiny))
    weights, constant = ridge(features, errors, PENALTIES[best])
    return ErrorFit(weights, constant, least, PENALTIES[best], predicted[best].clip(min=least))


def conformal_quantile(ratios: Floats, coverage: float) -> float:
    """The number that a further ratio does not exceed with a given probability (split conformal prediction).

    Of n exchangeable ratios the ceil((n + 1) * coverage)-th smallest (Lei et al., JASA 2018, with errors in units of the
    expected one).

    Args:
        ratios: Errors by what was expected of them, on rows that neither was fitted to `(rows,)`.
        coverage: The probability, above 0 and below 1.

    Raises:
        MsaError: If there are too few for it.
    """
    # A product such as 10 * 0.9 is not to be rounded up for its last bit.
    rank = math.ceil((len(ratios) + 1) * coverage - 1e-9)
    if rank > len(ratios):
        raise MsaError(
            f"Intervals of coverage {coverage:g} cannot be made from {len(ratios)} validation rows; choose a coverage of at "
            f"most {len(ratios) / (len(ratios) + 1):.3g} (model.conformal_coverage)."
        )
    return float(np.sort(ratios)[rank - 1])
