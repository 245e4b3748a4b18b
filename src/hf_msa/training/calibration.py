"""Making the probabilities of a trained classifier honest on rows that it was not trained on."""

import math

import torch
from torch import Tensor

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
