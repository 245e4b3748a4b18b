"""Spread, intervals and paired tests against hand-worked numbers and known distributions."""

import math
import time

import numpy as np
import pytest

from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import resampled_metrics
from hf_msa.evaluation.statistics import confidence_interval, mean_and_std, paired_p_value, resample_counts


def test_mean_and_std_by_hand():
    assert mean_and_std([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)))
    mean, std = mean_and_std([0.5])
    assert mean == 0.5 and math.isnan(std)
    assert all(math.isnan(value) for value in mean_and_std([0.5, math.nan]))
    with pytest.raises(MsaError, match="no values"):
        mean_and_std([])


def test_resamples_are_whole_and_repeatable():
    counts = resample_counts(30, 200, seed=7)
    assert counts.shape == (200, 30)
    assert (counts.sum(axis=1) == 30).all()
    assert (counts == resample_counts(30, 200, seed=7)).all()
    assert (counts != resample_counts(30, 200, seed=8)).any()
    # Each row is drawn once per resample on average, and stays out of about 1/e of them.
    assert counts.mean() == 1.0
    assert (counts == 0).mean() == pytest.approx((1 - 1 / 30) ** 30, abs=0.02)


@pytest.mark.parametrize(("rows", "resamples"), [(0, 10), (10, 0)])
def test_nothing_to_resample(rows, resamples):
    with pytest.raises(MsaError, match="at least one row"):
        resample_counts(rows, resamples)


def test_interval_by_hand():
    assert confidence_interval(np.arange(101.0), level=0.9) == pytest.approx((5.0, 95.0))
    assert confidence_interval([math.nan, 1.0, 3.0], level=1.0) == (1.0, 3.0)
    assert all(math.isnan(bound) for bound in confidence_interval([math.nan]))


def test_interval_of_an_accuracy_is_the_binomial_one():
    labels = np.where(np.arange(400) < 300, 1.0, -1.0)
    resampled = resampled_metrics(np.ones(400), labels, "mosi", resample_counts(400, 4000))["has0_acc2"]
    low, high = confidence_interval(resampled)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.005) and high == pytest.approx(0.75 + half, abs=0.005)


def test_p_value_by_hand():
    # One of nine differences is at or below zero: 2 * (1 + 1) / (1 + 9).
    assert paired_p_value(np.zeros(9), [-1.0, 1, 1, 1, 1, 1, 1, 1, 1]) == pytest.approx(0.4)
    assert paired_p_value(np.ones(5), np.ones(5)) == 1.0
    assert paired_p_value(np.zeros(999), np.ones(999)) == pytest.approx(0.002)
    assert math.isnan(paired_p_value([math.nan], [1.0]))
    with pytest.raises(MsaError, match="same resamples"):
        paired_p_value([1.0], [1.0, 2.0])


def test_p_value_is_symmetric_and_sees_pairing():
    rng = np.random.default_rng(0)
    labels = rng.uniform(-3, 3, 300)
    shared = rng.normal(0, 2, 300)
    counts = resample_counts(300, 500)
    # A tiny gain on every row, hidden under a large error that both runs share.
    first, second = (
        resampled_metrics(labels + np.where(shared > 0, 1, -1) * (np.abs(shared) + extra), labels, "mosi", counts)[
            "mae"
        ]
        for extra in (0.05, 0.0)
    )
    assert paired_p_value(first, second) == paired_p_value(second, first) == pytest.approx(2 / 501)
    assert confidence_interval(first)[0] < confidence_interval(second)[1]  # the two intervals overlap all the same


def test_p_value_of_equal_runs_is_uniform():
    counts = resample_counts(200, 200)
    p_values = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = rng.uniform(-3, 3, 200)
        first, second = (
            resampled_metrics(labels + rng.normal(0, 1, 200), labels, "mosi", counts)["mae"] for _ in range(2)
        )
        p_values.append(paired_p_value(first, second))
    # The standard error of these shares is 0.015, 0.028 and 0.035.
    for level, slack in ((0.05, 0.05), (0.2, 0.09), (0.5, 0.11)):
        assert np.mean(np.array(p_values) < level) == pytest.approx(level, abs=slack)


def test_a_whole_sweep_is_resampled_in_seconds():
    rng = np.random.default_rng(0)
    labels = rng.uniform(-3, 3, 686)
    start = time.perf_counter()
    counts = resample_counts(686)
    for _ in range(10):
        resampled_metrics(rng.normal(0, 1, 686), labels, "mosi", counts)
    assert time.perf_counter() - start < 5
