"""Metrics against hand-worked numbers, scikit-learn, and invariants."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import accuracy_score, f1_score

from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import (
    CLASS_METRICS,
    METRICS,
    SCALE_METRICS,
    class_metrics,
    family_metrics,
    is_class_metric,
    regression_metrics,
    resampled_metrics,
    weighted_f1,
)
from hf_msa.evaluation.statistics import resample_counts
from hf_msa.models.msa_label_families import BUILT_IN, SCORE_METRICS
from nonempty import some


def test_mosi_by_hand():
    #            exact  tie->0   tie->2  sign   beyond  zero label, negative score
    labels = [2.0, 0.5, 1.5, -1.0, 3.0, 0.0]
    scores = [2.4, -0.4, 2.5, 0.6, 4.0, -0.2]
    got = regression_metrics(scores, labels, "mosi")
    # Rounded pairs at 7 classes: (2,2) (-0,0) (2,2) (1,-1) (3,3) (-0,0): five equal; the same five at 5 classes.
    assert got["acc7"] == pytest.approx(5 / 6)
    assert got["acc5"] == pytest.approx(5 / 6)
    # >= 0, truth + + + - + +, prediction + - + + + -: right are samples 0, 2, 4.
    assert got["has0_acc2"] == pytest.approx(3 / 6)
    # Non-negative: tp 3, fp 1, fn 2, F1 = 6/9, support 5. Negative: tp 0, F1 = 0, support 1.
    assert got["has0_f1"] == pytest.approx(5 / 6 * 6 / 9)
    # Without the zero label: + + + - + against + - + + +.
    assert got["non0_acc2"] == pytest.approx(3 / 5)
    assert got["non0_f1"] == pytest.approx(4 / 5 * 6 / 8)
    # Distances on unclipped values: .4 + .9 + 1 + 1.6 + 1 + .2.
    assert got["mae"] == pytest.approx(5.1 / 6)
    assert got["corr"] == pytest.approx(np.corrcoef(scores, labels)[0, 1], abs=1e-7)


def test_sims_by_hand():
    labels = [0.0, 0.2, -0.8, -0.1, 0.1, 1.0]
    scores = [0.1, 0.8, -0.7, -0.2, 0.0, 1.7]
    got = regression_metrics(scores, labels, "sims")
    # Zero is non-positive: truth - + - - + +, prediction + + - - - +: right are 1, 2, 3, 5.
    assert got["acc2"] == pytest.approx(4 / 6)
    # Each class: tp 2, fp 1, fn 1, F1 = 4/6.
    assert got["f1"] == pytest.approx(4 / 6)
    # Right-closed at -0.1 and 0.1: truth 0 + - - 0 +, prediction 0 + - - 0 +.
    assert got["acc3"] == 1.0
    # Five bins: truth 2 3 0 1 2 4, prediction 2 4 0 1 2 4.
    assert got["acc5"] == pytest.approx(5 / 6)
    # The last score is clipped to 1 first: .1 + .6 + .1 + .1 + .1 + 0.
    assert got["mae"] == pytest.approx(1.0 / 6)
    assert got["corr"] == pytest.approx(np.corrcoef(np.clip(scores, -1, 1), labels)[0, 1], abs=1e-7)


@pytest.mark.parametrize(("value", "rounded"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2)])
def test_halves_round_to_even(value, rounded):
    assert regression_metrics([rounded, 0], [value, 0], "mosi")["acc7"] == 1.0
    away = math.copysign(math.floor(abs(value) + 0.5), value)
    assert (regression_metrics([away, 0], [value, 0], "mosi")["acc7"] == 1.0) == (away == rounded)


def test_bin_edges_are_float32():
    # As float32, 0.1 lies above the float64 number of the same name; it must still fall into the bin that ends at it.
    edges = np.array([-0.7, -0.1, 0.1, 0.7], dtype=np.float32)
    inside = np.array([-0.9, -0.5, 0.0, 0.5], dtype=np.float32)
    assert regression_metrics(edges, inside, "sims")["acc5"] == 1.0
    above = np.nextafter(edges, np.float32(2))
    assert regression_metrics(above, inside, "sims")["acc5"] == 0.0


def test_no_label_but_zero():
    got = regression_metrics([0.3, -0.2], [0.0, 0.0], "mosi")
    assert math.isnan(got["non0_acc2"]) and math.isnan(got["non0_f1"]) and math.isnan(got["corr"])
    assert got["has0_acc2"] == 0.5


@pytest.mark.parametrize("constant", [0.1, -1.7, 0.0, 1e-30])
def test_constant_prediction_has_no_correlation(constant):
    labels = np.linspace(-3, 3, 101)
    got = regression_metrics(np.full(101, constant), labels, "mosi")
    assert math.isnan(got["corr"])
    assert got["mae"] > 0


def test_nearly_constant_prediction_has_one():
    assert regression_metrics([1.0, 1.0, 1.000001], [0.0, 0.0, 1.0], "mosi")["corr"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("predictions", "labels", "family", "message"),
    [
        ([], [], "mosi", "no predictions"),
        ([1.0, 2.0], [1.0], "mosi", "2 predictions but 1 labels"),
        ([1.0, math.nan], [1.0, 1.0], "mosi", "1 of 2 predictions"),
        ([1.0], [math.inf], "sims", "1 of 1 labels"),
        ([[1.0, 2.0]], [1.0], "mosi", r"\(1, 2\)"),
        ([1.0], [1.0], "simms", "Did you mean 'sims'"),
    ],
)
def test_bad_input(predictions, labels, family, message):
    with pytest.raises(MsaError, match=message):
        regression_metrics(predictions, labels, family)


def test_column_vectors_are_welcome():
    assert regression_metrics([[1.0], [2.0]], [[1.0], [2.0]], "mosi")["mae"] == 0.0


def test_swapped_f1_rewards_one_class():
    # 317 non-positive and 140 positive labels, as in the SIMS test split.
    labels = np.repeat([-0.4, 0.4], [317, 140])
    scores = np.full(457, -0.2)
    right, swapped = (regression_metrics(scores, labels, "sims", legacy_f1=legacy) for legacy in (False, True))
    assert round(100 * right["acc2"], 2) == 69.37
    assert round(100 * right["f1"], 1) == 56.8
    assert round(100 * swapped["f1"], 1) == 81.9


def test_one_class_on_the_real_sims_test_split(real_data: Path):
    with (real_data / "sims" / "label.csv").open(encoding="utf-8-sig", newline="") as file:
        labels = [float(row["label"]) for row in csv.DictReader(file) if row["mode"] == "test"]
    assert len(labels) == 457
    right, swapped = (regression_metrics([-0.2] * 457, labels, "sims", legacy_f1=legacy) for legacy in (False, True))
    assert round(100 * right["acc2"], 2) == 69.37
    assert round(100 * right["f1"], 1) == 56.8
    assert round(100 * swapped["f1"], 1) == 81.9


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_weighted_f1_equals_scikit_learn(pairs):
    truth, prediction = zip(*pairs, strict=True)
    expected = f1_score(truth, prediction, average="weighted", zero_division=0)
    assert weighted_f1(truth, prediction) == pytest.approx(expected)


def test_weighted_f1_depends_on_the_order():
    truth, prediction = [0, 0, 1], [0, 0, 0]
    assert weighted_f1(truth, prediction) == pytest.approx(2 / 3 * 0.8)
    assert weighted_f1(prediction, truth) == pytest.approx(0.8)


def scores(width: float) -> st.SearchStrategy[np.ndarray]:
    values = st.floats(-2 * width, 2 * width, width=32)
    return arrays.arrays(np.float32, st.tuples(st.integers(2, 40), st.just(2)), elements=values)


@pytest.mark.parametrize("family", BUILT_IN)
@given(data=st.data())
def test_ranges_and_order(family, data):
    pairs = data.draw(scores(BUILT_IN[family].high))
    got = regression_metrics(pairs[:, 0], pairs[:, 1], family)
    assert tuple(got) == family_metrics(family)
    for name, value in got.items():
        if math.isnan(value):
            assert name in ("corr", "non0_acc2", "non0_f1")
        else:
            low = -1.0 if name == "corr" else 0.0
            assert value >= low and (name == "mae" or value <= 1.0)
    if family == "mosi":
        # Pairs equal on seven classes stay equal when the outer ones are merged.
        assert got["acc5"] >= got["acc7"]


@pytest.mark.parametrize("family", BUILT_IN)
@given(data=st.data())
def test_order_and_duplication_of_rows_do_not_matter(family, data):
    pairs = data.draw(scores(BUILT_IN[family].high))
    order = data.draw(st.permutations(range(len(pairs))))
    expected = regression_metrics(pairs[:, 0], pairs[:, 1], family)
    for rows in (pairs[order], np.concatenate([pairs, pairs])):
        got = regression_metrics(rows[:, 0], rows[:, 1], family)
        assert got == pytest.approx(expected, nan_ok=True, abs=1e-6)


@pytest.mark.parametrize("family", BUILT_IN)
def test_resamples_equal_scoring_the_drawn_rows(family):
    rng = np.random.default_rng(0)
    low, high = BUILT_IN[family].low, BUILT_IN[family].high
    labels = np.round(rng.uniform(low, high, 60), 1)
    predictions = labels + rng.normal(0, 0.3 * high, 60)
    counts = resample_counts(60, 25, seed=3)
    got = resampled_metrics(predictions, labels, family, counts)
    for resample, count in some(enumerate(counts.astype(int))):
        rows = np.repeat(np.arange(60), count)
        expected = regression_metrics(predictions[rows], labels[rows], family)
        assert {name: values[resample] for name, values in got.items()} == pytest.approx(expected, abs=1e-9)


def test_a_resample_of_one_repeated_row_has_no_correlation():
    counts = np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    got = resampled_metrics([0.1, 0.7, -0.3], [0.3, 0.9, -1.1], "mosi", counts)
    assert math.isnan(got["corr"][0]) and not math.isnan(got["corr"][1])


def test_counts_of_the_wrong_width():
    with pytest.raises(MsaError, match=r"\(resamples, 2\)"):
        resampled_metrics([1.0, 2.0], [1.0, 2.0], "mosi", np.ones((5, 3)))


def test_every_metric_is_described():
    assert {*family_metrics("mosi"), *family_metrics("sims"), *SCORE_METRICS, *CLASS_METRICS, *SCALE_METRICS} == set(
        METRICS
    )
    assert [name for name in METRICS if is_class_metric(name)] == [*SCALE_METRICS, *CLASS_METRICS]
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == ["mae"]


# --- Class logits ---

# Six samples: the label, and the logits of negative, neutral and positive.
CLASS_ROWS = [
    (-2.0, (3.0, 1.0, 0.0)),  # negative, called negative
    (-0.5, (0.0, 2.0, 1.0)),  # negative, called neutral; positive before negative
    (0.0, (1.0, 5.0, 0.0)),  # neutral, called neutral; negative before positive
    (0.0, (0.0, 1.0, 2.0)),  # neutral, called positive
    (1.0, (0.0, 0.5, 1.0)),  # positive, called positive
    (2.5, (1.0, 0.0, 0.5)),  # positive, called negative
]


def test_classes_by_hand():
    labels, logits = zip(*CLASS_ROWS, strict=True)
    mosi, sims = (class_metrics(logits, labels, family) for family in ("mosi", "sims"))
    for got in (mosi, sims):
        assert tuple(got) == CLASS_METRICS
        # Truth - - 0 0 + +, prediction - 0 0 + + -: right are 0, 2, 4. Each class: tp 1, fp 1, fn 1, F1 = 1/2.
        assert got["class_acc3"] == pytest.approx(3 / 6)
        assert got["class_f1_3"] == pytest.approx(1 / 2)
        # Without neutral truth: - - + + against - + + -, the neutral logit out of play: half right in either class.
        assert got["class_non0_acc2"] == pytest.approx(2 / 4)
        assert got["class_non0_f1"] == pytest.approx(1 / 2)
    # MOSI, neutral is non-negative: truth - - + + + +, prediction - + - + + -: right are 0, 3, 4.
    assert mosi["class_has0_acc2"] == pytest.approx(3 / 6)
    # Negative: tp 1, fp 2, fn 1, F1 = 2/5, support 2. Non-negative: tp 2, fp 1, fn 2, F1 = 4/7, support 4.
    assert mosi["class_has0_f1"] == pytest.approx((2 * 2 / 5 + 4 * 4 / 7) / 6)
    # SIMS, neutral is non-positive: truth - - - - + +, prediction - + - + + -: right are 0, 2, 4.
    assert sims["class_has0_acc2"] == pytest.approx(3 / 6)
    # Non-positive: tp 2, fp 1, fn 2, F1 = 4/7, support 4. Positive: tp 1, fp 2, fn 1, F1 = 2/5, support 2.
    assert sims["class_has0_f1"] == pytest.approx((4 * 4 / 7 + 2 * 2 / 5) / 6)


def test_neutral_truth_decides_between_the_families():
    # A model that calls everything negative is right about neutral samples on SIMS, and wrong on MOSI.
    logits, labels = [[1.0, 0.0, 0.0]] * 4, [-1.0, 0.0, 0.0, 1.0]
    assert class_metrics(logits, labels, "mosi")["class_has0_acc2"] == 1 / 4
    assert class_metrics(logits, labels, "sims")["class_has0_acc2"] == 3 / 4
    # The neutral logit has no say in two-class decisions, however large.
    assert class_metrics([[0.0, 9.0, 1.0]], [1.0], "sims")["class_has0_acc2"] == 1.0
    assert class_metrics([[0.0, 9.0, 1.0]], [1.0], "sims")["class_acc3"] == 0.0


def test_a_tie_is_negative_and_non0_can_be_right_on_positives():
    assert class_metrics([[1.0, 0.0, 1.0]] * 2, [-1.0, 1.0], "mosi")["class_non0_acc2"] == 0.5
    # Where truth keeps class 2 and predictions have 0 and 1, as in the public code, this would be 0.
    assert class_metrics([[0.0, 0.0, 1.0]], [2.0], "mosi")["class_non0_acc2"] == 1.0


def test_no_label_but_neutral():
    got = class_metrics([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0.0, 0.0], "sims")
    assert math.isnan(got["class_non0_acc2"]) and math.isnan(got["class_non0_f1"])
    assert got["class_acc3"] == 0.5 and got["class_has0_acc2"] == 1.0


@pytest.mark.parametrize("family", BUILT_IN)
@given(
    st.lists(
        st.tuples(st.sampled_from([-1.0, -0.2, 0.0, 0.2, 1.0]), *[st.integers(-2, 2)] * 3), min_size=1, max_size=30
    )
)
def test_classes_equal_scikit_learn(family, rows):
    labels = np.array([row[0] for row in rows])
    logits = np.array([row[1:] for row in rows], dtype=float)
    got = class_metrics(logits, labels, family)
    true = np.sign(labels).astype(int) + 1
    binary = (logits[:, [0, 2]]).argmax(axis=1)
    nonzero = true != 1
    pairs = {
        "class_acc3": (true, logits.argmax(axis=1)),
        "class_has0_acc2": ((true >= 1).astype(int) if family == "mosi" else (true == 2).astype(int), binary),
        "class_non0_acc2": (true[nonzero] // 2, binary[nonzero]),
    }
    f1_names = {"class_acc3": "class_f1_3", "class_has0_acc2": "class_has0_f1", "class_non0_acc2": "class_non0_f1"}
    for name, (truth, prediction) in some(pairs.items()):
        if not truth.size:
            assert math.isnan(got[name]) and math.isnan(got[f1_names[name]])
            continue
        assert got[name] == pytest.approx(accuracy_score(truth, prediction))
        expected = f1_score(truth, prediction, average="weighted", zero_division=0)
        assert got[f1_names[name]] == pytest.approx(expected)


@pytest.mark.parametrize("family", BUILT_IN)
def test_resampled_classes_equal_scoring_the_drawn_rows(family):
    rng = np.random.default_rng(1)
    labels = np.round(rng.uniform(-1, 1, 50)) / 2
    logits = rng.normal(size=(50, 3))
    counts = resample_counts(50, 25, seed=3)
    plain = resampled_metrics(logits[:, 2], labels, family, counts)
    got = resampled_metrics(logits[:, 2], labels, family, counts, logits)
    assert tuple(got) == family_metrics(family) + CLASS_METRICS
    for name, values in plain.items():
        np.testing.assert_allclose(values, got[name], rtol=1e-12)
    for resample, count in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(50), count)
        expected = class_metrics(logits[rows], labels[rows], family)
        assert {name: got[name][resample] for name in CLASS_METRICS} == pytest.approx(expected, abs=1e-9)


def test_seven_classes_by_hand():
    # The true class: clipped, then rounded with halves to even, counted from -3.
    labels = [-3.4, -2.5, -0.5, 0.0, 0.5, 1.5, 2.6]
    classes = [0, 1, 3, 3, 3, 5, 6]
    logits = np.eye(7)[classes]
    assert class_metrics(logits, labels, "mosi") == {"class_acc7": 1.0}
    for row, label in zip(np.roll(logits, 1, axis=1), labels, strict=True):
        assert class_metrics([row], [label], "mosi") == {"class_acc7": 0.0}
    # The score of a classifier is a mean over classes and may lie in another class than its largest logit.
    assert class_metrics([[9.0, 0, 0, 0, 0, 0, 8.9]], [-3.0], "mosi")["class_acc7"] == 1.0
    assert regression_metrics([-0.1], [-3.0], "mosi")["acc7"] == 0.0


def test_resampled_seven_classes_equal_scoring_the_drawn_rows():
    rng = np.random.default_rng(1)
    labels, logits = rng.uniform(-3, 3, 50), rng.normal(size=(50, 7))
    counts = resample_counts(50, 25, seed=3)
    got = resampled_metrics(labels, labels, "mosi", counts, logits)
    assert tuple(got) == family_metrics("mosi") + SCALE_METRICS
    for resample, count in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(50), count)
        assert got["class_acc7"][resample] == pytest.approx(
            class_metrics(logits[rows], labels[rows], "mosi")["class_acc7"]
        )


@pytest.mark.parametrize(
    ("logits", "labels", "family", "message"),
    [
        ([[1.0, 2.0]], [1.0], "mosi", r"must have the shape \(N, 3\) or \(N, 7\); got \(1, 2\)"),
        ([1.0, 2.0, 3.0], [1.0], "mosi", r"got \(3,\)"),
        (np.empty((0, 3)), [], "mosi", "no class logits"),
        ([[1.0, 2.0, 3.0]], [1.0, 2.0], "mosi", "class logits of 1 samples but 2 labels"),
        ([[1.0, math.nan, 3.0]], [1.0], "sims", "1 of 3 class logits are NaN"),
        ([[1.0, 2.0, 3.0]], [math.inf], "sims", "1 of 1 labels"),
        ([[1.0, 2.0, 3.0]], [1.0], "simms", "Did you mean 'sims'"),
        ([[0.0] * 7], [1.0], "sims", "Seven classes are the scores -3 to 3 of the family 'mosi'"),
    ],
)
def test_bad_class_logits(logits, labels, family, message):
    with pytest.raises(MsaError, match=message):
        class_metrics(logits, labels, family)
