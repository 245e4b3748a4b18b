"""Temperature, errors to be expected and intervals, by numbers that can be solved by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_msa.errors import MsaError
from hf_msa.training.calibration import (
    PENALTIES,
    TEMPERATURES,
    conformal_quantile,
    fit_errors,
    fit_temperature,
    ridge,
)


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


class TestErrors:
    @pytest.mark.parametrize(("scale", "penalty", "slope"), [(1, 1.0, 0.5), (10, 1.0, 0.05), (1, 3.0, 0.25)])
    def test_ridge(self, scale: float, penalty: float, slope: float) -> None:
        """Standardised the feature is -1 and 1 and its covariance with the target 1: the slope is 1 / (1 + penalty)."""
        features = scale * np.array([[-1.0, 0.0], [1.0, 0.0]]) + 7
        weights, constant = ridge(features, np.array([1.0, 3.0]), penalty)
        assert weights == pytest.approx([slope, 0]) and constant == pytest.approx(2 - 7 * slope)

    def test_nothing_to_go_by_gives_the_mean_of_the_others(self) -> None:
        fit = fit_errors(np.ones((5, 2)), np.arange(1.0, 6.0), np.arange(5))
        assert fit.weights.tolist() == [0, 0] and fit.constant == pytest.approx(3)
        assert fit.held_out == pytest.approx([14 / 4, 13 / 4, 3, 11 / 4, 10 / 4])
        assert fit.least == pytest.approx(0.3)

    def test_all_draws_of_a_row_are_held_out_together(self) -> None:
        rows = np.array([4, 0, 1, 2, 3, 0, 1, 2, 3, 4])
        fit = fit_errors(np.ones((10, 1)), rows + 1.0, rows)
        assert fit.held_out == pytest.approx(np.array([14, 13, 12, 11, 10])[rows] / 4)

    def test_the_penalty_is_the_one_that_predicts_held_out_errors_best(self) -> None:
        generator = np.random.default_rng(0)
        feature = generator.random((50, 1))
        told = fit_errors(feature, 2 * feature[:, 0] + 1, np.arange(50))
        assert told.penalty == PENALTIES[0] and told.weights == pytest.approx([2 / 1.01])
        assert told.held_out == pytest.approx(2 * feature[:, 0] + 1, abs=0.05)
        noise = generator.normal(size=(50, 40))
        assert fit_errors(noise, generator.random(50), np.arange(50)).penalty == PENALTIES[-1]

    def test_no_less_than_a_tenth_of_the_mean_is_expected(self) -> None:
        feature = np.linspace(-1, 1, 20)[:, None]
        fit = fit_errors(feature, np.abs(feature[:, 0]) * (feature[:, 0] > 0), np.arange(20))
        assert fit.held_out.min() == fit.least == pytest.approx(0.1 * fit.constant)

    def test_too_few_rows(self) -> None:
        with pytest.raises(MsaError, match="from 4 validation rows; give at least 5"):
            fit_errors(np.ones((8, 1)), np.ones(8), np.arange(8) % 4)


class TestIntervals:
    @pytest.mark.parametrize(("coverage", "expected"), [(0.9, 9), (0.5, 5), (0.51, 6), (0.05, 1)])
    def test_the_rank_by_hand(self, coverage: float, expected: float) -> None:
        """Of nine ratios 1 to 9: the ceil(10 * coverage)-th."""
        assert conformal_quantile(np.array([3.0, 1, 9, 8, 2, 7, 4, 6, 5]), coverage) == expected

    def test_too_few_rows(self) -> None:
        with pytest.raises(MsaError, match="coverage 0.95 cannot be made from 9 validation rows; .* at most 0.9 "):
            conformal_quantile(np.arange(9.0), 0.95)

    def test_a_further_one_is_covered_as_often_as_said(self) -> None:
        drawn = np.random.default_rng(0).exponential(size=(3000, 20))
        covered = np.mean([row[0] <= conformal_quantile(row[1:], 0.8) for row in drawn])
        assert covered == pytest.approx(0.8, abs=0.02)
