"""Subsets by whether the modalities agree: rules by hand, and the sizes on the real CH-SIMS labels."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_msa.errors import MsaError
from hf_msa.evaluation.subsets import DEFAULT_RULE, RULES, SUBSETS, Subset, subset_text

# Multimodal label; text, audio, vision; inconsistent under differs_from_M, not_all_equal, polarity_conflict.
ROWS = [
    (0.4, (0.2, 1.0, 0.6), (False, False, False)),
    (0.4, (0.0, 1.0, 0.6), (True, True, False)),
    (0.0, (0.2, 0.2, 0.2), (True, False, False)),
    (-0.2, (-1.0, 0.2, -0.4), (True, True, True)),
    (0.0, (0.0, 0.0, 0.0), (False, False, False)),
    (-0.4, (-0.2, 0.0, -0.2), (True, True, False)),
]
LABELS = [row[0] for row in ROWS]


def columns(rows: list[tuple[float, ...]]) -> dict[str, list[float]]:
    names = ("label_text", "label_audio", "label_vision")
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


@pytest.mark.parametrize(("index", "rule"), list(enumerate(RULES)))
def test_rules_by_hand(index: int, rule: str) -> None:
    unimodal = columns([row[1] for row in ROWS])
    expected = [number for number, row in enumerate(ROWS) if row[2][index]]
    assert Subset("inconsistent", rule).rows(LABELS, unimodal, "sims").tolist() == expected
    rest = [number for number in range(len(ROWS)) if number not in expected]
    assert Subset("consistent", rule).rows(LABELS, unimodal, "sims").tolist() == rest


@given(st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 0.3])] * 4), min_size=1, max_size=20))
def test_a_conflict_is_unequal_and_unequal_differs(rows: list[tuple[float, ...]]) -> None:
    multimodal = np.sign([row[0] for row in rows]).astype(int)
    unimodal = np.sign([row[1:] for row in rows]).astype(int)
    differs, unequal, conflict = (RULES[name](multimodal, unimodal) for name in RULES)
    assert (conflict <= unequal).all() and (unequal <= differs).all()


@pytest.mark.parametrize(
    ("rule", "size"), [("differs_from_M", 218), ("not_all_equal", 210), ("polarity_conflict", 86)]
)
def test_sizes_on_the_real_sims_test_split(real_data: Path, rule: str, size: int) -> None:
    with (real_data / "sims" / "label.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "test"]
    labels = [float(row["label"]) for row in rows]
    unimodal = {key: [float(row[key]) for row in rows] for key in ("label_T", "label_A", "label_V")}
    assert len(labels) == 457
    found = {name: Subset(name, rule).rows(labels, unimodal, "sims") for name in SUBSETS}
    assert len(found["inconsistent"]) == size and len(found["consistent"]) == 457 - size
    if rule == DEFAULT_RULE:
        # The printed accuracy of CMC on its inconsistent subset.
        assert round(100 * 163 / size, 2) == 74.77


def test_only_the_modalities_that_the_data_has() -> None:
    # Vision disagrees with the rest; without its labels nothing does.
    all_three = {"label_text": [1.0, 1.0], "label_audio": [1.0, 1.0], "label_vision": [1.0, -1.0]}
    assert Subset("inconsistent").rows([1.0, 1.0], all_three, "sims").tolist() == [1]
    with pytest.raises(MsaError, match="None of the 2 samples is inconsistent"):
        Subset("inconsistent").rows([1.0, 1.0], {"label_text": [1.0, 1.0]}, "sims")


@pytest.mark.parametrize(
    ("subset", "unimodal", "message"),
    [
        (Subset("inconsistent"), {}, r"has 0 columns of unimodal labels, and .* 'differs_from_M' needs 1 at least"),
        (Subset("consistent", "not_all_equal"), {"label_text": [1.0]}, "has 1 columns .* needs 2 at least"),
        (Subset("inconsistent"), {"label_text": [None]}, "1 of 1 samples have no label_text"),
        (Subset("inconsistent"), {"label_text": [0.2]}, "None of the 1 samples is inconsistent .* use another rule"),
        (Subset("consistent"), {"label_text": [-0.2]}, "None of the 1 samples is consistent"),
    ],
)
def test_what_has_no_subset(subset: Subset, unimodal: dict[str, list[float]], message: str) -> None:
    with pytest.raises(MsaError, match=message) as error:
        subset.rows([1.0], unimodal, "sims")
    assert "\n" not in str(error.value)


def test_names() -> None:
    with pytest.raises(MsaError, match="Unknown subset 'inconsistant'. Did you mean 'inconsistent'"):
        Subset("inconsistant")
    with pytest.raises(MsaError, match="Unknown subset rule 'all_equal'. Did you mean 'not_all_equal'"):
        Subset("consistent", "all_equal")
    # Every subset has a folder of its own.
    folders = {Subset(name, rule).folder for name in SUBSETS for rule in RULES}
    assert len(folders) == 6 and Subset("inconsistent").folder == "subset-inconsistent"
    assert subset_text({"name": "inconsistent", "rule": "not_all_equal", "n_of": 9}) == (
        "inconsistent subset (not_all_equal)"
    )


def test_classes_lie_about_the_neutral_label_of_the_family():
    stars = {"name": "stars", "low": 1, "high": 5}
    labels, unimodal = [2.0, 4.0, 3.0], {"label_text": [4.0, 5.0, 3.0], "label_audio": [1.0, 3.5, 3.0]}
    for rule in ("differs_from_M", "polarity_conflict"):
        assert Subset("inconsistent", rule).rows(labels, unimodal, stars).tolist() == [0]
