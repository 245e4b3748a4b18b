"""The temperature that makes probabilities honest, by numbers that can be solved by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_msa.training.calibration import TEMPERATURES, fit_temperature


def two_classes(right: int, wrong: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that all claim class 0 by a logit of 2."""
    return torch.tensor([[2.0, 0.0]]).repeat(right + wrong, 1), torch.tensor([0] * right + [1] * wrong)


@pytest.mark.parametrize(("right", "wrong"), [(3, 1), (9, 1), (99, 1)])
def test_the_probability_becomes_the_share_that_is_right(right: int, wrong: int) -> None:
    """sigmoid(2 / T) = right / (right + wrong), so T = 2 / ln(right / wrong)."""
    logits, classes = two_classes(right, wrong)
    assert fit_temperature(logits, classes) == pytest.approx(2 / math.log(right / wrong), rel=1e-4)


@pytest.mark.parametrize(("right", "wrong", "end"), [(4, 0, 0), (1, 1, 1), (1, 3, 1)])
def test_the_end_of_the_range_where_the_best_one_lies_outside(right: int, wrong: int, end: int) -> None:
    assert fit_temperature(*two_classes(right, wrong)) == TEMPERATURES[end]


def test_no_other_temperature_is_likelier() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(300, 3, generator=generator)
    classes = torch.multinomial((logits / 2.5).softmax(dim=1), 1, generator=generator).squeeze(1)
    found = fit_temperature(logits, classes)
    assert 2.0 < found < 3.1
    best = F.cross_entropy(logits.double() / found, classes)
    for other in torch.linspace(0.5, 8, 40).tolist():
        assert best <= F.cross_entropy(logits.double() / other, classes) + 1e-9


def test_scaling_the_logits_scales_the_temperature() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, 0.3, 2.0], [1.0, 0.9, 0.0]])
    classes = torch.tensor([0, 2, 2, 1])
    assert fit_temperature(3 * logits, classes) == pytest.approx(3 * fit_temperature(logits, classes), rel=1e-4)


@pytest.mark.parametrize("logits", [torch.zeros(0, 3), torch.tensor([[0.0, float("nan"), 0.0]])])
def test_nothing_to_fit_is_one_sentence(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="needs rows with finite logits"):
        fit_temperature(logits, torch.zeros(len(logits), dtype=torch.long))
