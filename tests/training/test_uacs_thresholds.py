"""Fits of uncertainty by right and wrong polarity, with numbers made by hand."""

import numpy as np
import pytest

from hf_msa.errors import MsaError
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.training.uacs.calibration import budget_threshold
from hf_msa.training.uacs.thresholds import AgreementFit, Gaussian, fit_agreement, require_tau

PREDICTIONS = np.array([1.0, -0.5, 0.2, -0.1, 0.0, 2.0, -1.0])
LABELS = np.array([2.0, -1.0, -0.4, 0.6, 1.0, 0.0, -2.0])
UNCERTAINTIES = np.array([0.3, 0.5, 0.8, 0.9, 1.0, 7.0, np.inf])


def test_groups_and_their_moments() -> None:
    """Right: rows 0, 1. Wrong: rows 2, 3, and 4, whose prediction has no sign. Row 5 has no label, row 6 no answer."""
    fit = fit_agreement(PREDICTIONS, LABELS, UNCERTAINTIES, "mosi")
    assert fit.same is not None and fit.opposite is not None
    assert (fit.same.n, fit.opposite.n) == (2, 3)
    assert fit.same.mean == pytest.approx(0.4) and fit.same.std == pytest.approx(0.1)
    assert fit.opposite.mean == pytest.approx(0.9)
    assert fit.opposite.std == pytest.approx(np.sqrt((0.01 + 0.0 + 0.01) / 3))
    assert fit.opposite.mean == pytest.approx(UNCERTAINTIES[2:5].mean()), "maximum likelihood: the sample mean"


@pytest.mark.parametrize(
    ("weight", "shift", "tau"),
    [(0.5, 0.0, 0.65), (0.0, 0.0, 0.4), (1.0, 0.0, 0.9), (0.25, -0.2, 0.325), (0.5, -0.2, 0.45)],
)
def test_thresholds(weight: float, shift: float, tau: float) -> None:
    fit = fit_agreement(PREDICTIONS, LABELS, UNCERTAINTIES, "mosi")
    assert fit.tau(weight, shift) == pytest.approx(tau)
    assert require_tau(fit, weight, shift, "tau_1") == pytest.approx(tau)


@pytest.mark.parametrize(("kept", "word"), [([0, 1], "wrong"), ([2, 3], "right"), ([5, 6], "right")])
def test_an_empty_group_is_refused(kept: list[int], word: str) -> None:
    fit = fit_agreement(PREDICTIONS[kept], LABELS[kept], UNCERTAINTIES[kept], "mosi")
    assert fit.tau(0.5, 0.0) is None
    with pytest.raises(MsaError, match=f"tau_2 cannot be calibrated: .* the {word} polarity; .*model.tau_2="):
        require_tau(fit, 0.5, 0.0, "tau_2")


def test_what_makes_a_threshold_mean_little_is_said() -> None:
    fit = AgreementFit(Gaussian(0.9, 0.1, 9), Gaussian(0.4, 0.1, 10))
    assert fit.faults() == [
        "only 9 samples of the right polarity are behind it",
        "the uncertainty is not higher where the polarity is wrong (mean 0.4) than where it is right (0.9)",
    ]
    assert AgreementFit(Gaussian(0.4, 0.1, 10), Gaussian(0.9, 0.1, 10)).faults() == []


UNSURE = np.array([0.1, 0.9, 0.5, 0.7, 0.3])
# What the small model takes, and what the expert would.
SMALL, EXPERT = np.full(5, 0.5), np.array([9.0, 1.0, 4.0, 2.0, 9.0])


@pytest.mark.parametrize(
    ("budget", "handed_on"),
    [
        ({"budget_share": 0.0}, 0),
        ({"budget_share": 0.39}, 1),
        ({"budget_share": 0.4}, 2),
        ({"budget_share": 1.0}, 5),
        # (1 + 2) / 5 = 0.6 for two of them, (1 + 2 + 4) / 5 = 1.4 for three, beside 0.5 of the small model.
        ({"budget_seconds": 0.6}, 0),
        ({"budget_seconds": 1.1}, 2),
        ({"budget_seconds": 1.899}, 2),
        ({"budget_seconds": 1.9}, 3),
        ({"budget_seconds": 100}, 5),
    ],
)
def test_a_budget_hands_on_as_many_of_the_most_uncertain_as_it_allows(
    budget: dict[str, float], handed_on: int
) -> None:
    tau = budget_threshold(UNSURE, SMALL, EXPERT, UacsConfig(**budget))
    assert (UNSURE > tau).sum() == handed_on


def test_equally_uncertain_samples_do_not_break_a_budget() -> None:
    tau = budget_threshold(np.array([0.5, 0.5, 0.5, 0.1]), SMALL[:4], EXPERT[:4], UacsConfig(budget_share=0.5))
    assert tau == 0.5


def test_a_budget_below_the_small_model_is_refused() -> None:
    with pytest.raises(MsaError, match="alone takes 0.5 seconds per sample, more than budget_seconds=0.4; give more"):
        budget_threshold(UNSURE, SMALL, EXPERT, UacsConfig(budget_seconds=0.4))


def test_two_budgets_are_one_too_many() -> None:
    with pytest.raises(Exception, match="budget_share and budget_seconds both say"):
        UacsConfig(budget_share=0.1, budget_seconds=1.0)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(MsaError, match="There are 7 predictions, 6 labels and 7 uncertainties"):
        fit_agreement(PREDICTIONS, LABELS[:6], UNCERTAINTIES, "mosi")


def test_a_fit_survives_json() -> None:
    fit = AgreementFit(Gaussian(0.4, 0.1, 2), None)
    assert AgreementFit.from_dict(fit.to_dict()) == fit


def test_polarity_lies_about_the_neutral_score_of_the_family() -> None:
    stars = {"name": "stars", "low": 1, "high": 5}
    assert fit_agreement(PREDICTIONS + 3, LABELS + 3, UNCERTAINTIES, stars) == fit_agreement(
        PREDICTIONS, LABELS, UNCERTAINTIES, "mosi"
    )
