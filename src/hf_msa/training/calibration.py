"""Making the probabilities of a trained classifier honest on rows that it was not trained on."""

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURES = (0.05, 20.0)
"""Lowest and highest temperature that is fitted: where every row is right, the best one would be 0."""


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
    log_inverse = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_inverse], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits * log_inverse.exp(), classes)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        return loss

    optimizer.step(closure)
    low, high = TEMPERATURES
    return min(max(float((-log_inverse.detach()).exp()), low), high)
