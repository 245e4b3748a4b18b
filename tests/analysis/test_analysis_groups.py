"""Groups of samples: membership by hand, then the files of made predictions."""

import csv

import numpy as np
import pytest

from hf_msa.analysis import run_tool
from hf_msa.analysis.common.sample_groups import group_rows, has_contrast, is_negated, sample_groups
from hf_msa.data.loading import load_split
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.evaluation.results import predictions_table, write_results
from hf_msa.models.msa_label_families import BUILT_IN
from made_results import make_results


@pytest.mark.parametrize(
    "text", ["IT IS NOT GOOD", "i dont know", "don't", "it isn\u2019t", "no way", "cannot", "I CANT"]
)
def test_negations(text):
    assert is_negated(text)


@pytest.mark.parametrize("text", ["a notable film", "i want it", "went", "she can", "knot", ""])
def test_no_negations(text):
    assert not is_negated(text)


def test_contrasts():
    assert has_contrast("nice BUT long") and has_contrast("although it rains")
    assert not has_contrast("butter and yetis")


def test_members_by_hand():
    texts = ["good", "not so good", "good but very very long", "no"]
    groups = sample_groups(texts, [3.0, 0.0, -0.5, -1.5], BUILT_IN["mosi"])
    members = {name: np.flatnonzero(chosen).tolist() for name, chosen in groups.items()}
    assert members == {
        "all": [0, 1, 2, 3],
        "up to 1 words": [0, 3],
        "2 to 3 words": [1],
        "more than 3 words": [2],
        "with negation": [1, 3],
        "without negation": [0, 2],
        "with contrast": [2],
        "without contrast": [0, 1, 3],
        "neutral label": [1],
        "weak label (up to a third)": [2],
        "middle label": [3],
        "strong label (from two thirds)": [0],
        "negative label": [2, 3],
        "positive label": [0],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=3))


@pytest.fixture
def write_run(data, tmp_path):
    """Write predictions of the test split: the labels, further off where a transcript is negated."""

    def write(name, off, off_if_negated, method):
        split = load_split(data, "test")
        labels = np.asarray(split["label"][:], np.float32)
        wrong = np.array([off_if_negated if is_negated(text) else off for text in split["text"][:]], np.float32)
        part = {"id": tuple(split["id"][:]), "training_seed": 1, "mask_seed": 1, "rate": 0.0, "label": labels}
        table = predictions_table([part | {"prediction": labels + wrong}])
        write_results(tmp_path / name, make_results(table, method=method), table)
        return str(tmp_path / name)

    return write


def test_where_one_run_is_better(data, write_run, tmp_path):
    runs = [write_run("first", 0.5, 1.0, "ubm"), write_run("second", 0.75, 0.25, "uacs")]
    paths = run_tool("groups", runs, data=data, output=str(tmp_path / "out"))
    assert {path.name for path in paths} == {f"groups.{kind}" for kind in ("csv", "md", "png", "svg")}
    with (tmp_path / "out" / "groups.csv").open(encoding="utf-8", newline="") as file:
        table = {(row["group"], row["run"]): row for row in csv.DictReader(file)}
    for group, expected in (("with negation", -0.75), ("without negation", 0.25)):
        assert float(table[group, "uacs"]["mae minus first"]) == pytest.approx(expected, abs=1e-5)
        assert table[group, "ubm"]["mae minus first"] == ""
    assert int(table["with negation", "ubm"]["samples"]) + int(table["without negation", "ubm"]["samples"]) == 32
    summary = (tmp_path / "out" / "groups.md").read_text()
    assert "-0.750 [-0.750, -0.750]" in summary and "neutral" in summary


def test_the_sign_of_neutral_labels_is_not_asked_for(data, write_run):
    from hf_msa.analysis.common.prediction_columns import read_named_numbers

    found = read_named_numbers([write_run("first", 10.0, 10.0, "ubm")])
    labels = next(iter(found.values())).labels
    rows = group_rows(
        found,
        {"all": np.ones(len(labels), bool), "neutral": labels == 0}
        if (labels == 0).any()
        else {"all": np.ones(len(labels), bool)},
    )
    assert rows[0]["sign"].mean == pytest.approx((labels[labels != 0] > 0).mean())
    assert all(row["sign"] is None for row in rows[1:])


def test_other_data_is_refused(data, write_run, tmp_path):
    run = write_run("first", 0.5, 0.5, "ubm")
    other = str(write_sample_corpus(tmp_path / "other", preset="tiny", seed=4, train=8, validation=8, test=4))
    with pytest.raises(MsaError, match="has no sample"):
        run_tool("groups", [run], data=other, output=str(tmp_path / "out"))
