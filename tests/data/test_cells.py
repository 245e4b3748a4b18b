"""Ids, names of splits and texts in the forms of the field's files."""

import numpy as np
import pytest

from hf_msa.data.cells import filled_columns, list_of, split_id, split_name, text_of
from hf_msa.errors import MsaError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("abc$_$12", ("abc$_$12", "abc", "12")),
        (b"abc$_$1", ("abc$_$1", "abc", "1")),
        (np.str_("-x_$_$3_4"), ("-x_$_$3_4", "-x_", "3_4")),
        ("03bSnISJMiM[13]", ("03bSnISJMiM[13]", "03bSnISJMiM", "13")),
        ("03bSnISJMiM_13", ("03bSnISJMiM_13", "03bSnISJMiM", "13")),
        ("_dI--eQ6qVU_1", ("_dI--eQ6qVU_1", "_dI--eQ6qVU", "1")),
        ("video_0001/0003", ("video_0001/0003", "video_0001", "0003")),
        ("dia0_utt12", ("dia0_utt12", "dia0", "utt12")),
        ("plain", ("plain", "plain", "")),
        ("$_$3", ("$_$3", "$_$3", "")),
        (np.int64(7), ("7", "7", "")),
        (7.0, ("7", "7", "")),
        (np.array([b"vid", b"0.5", b"2.5"]), ("vid$_$0.5_2.5", "vid", "0.5_2.5")),
        (np.array([3, 1, 2]), ("3$_$1_2", "3", "1_2")),
        (["vid", 1], ("vid$_$1", "vid", "1")),
        (["vid_3"], ("vid_3", "vid", "3")),
    ],
)
def test_ids_of_every_form_are_split(value, expected):
    assert split_id(value) == expected


@pytest.mark.parametrize(
    "value", [None, "", float("nan"), [], ["v", None], [["v"], 1], list(range(9)), {"a": 1}, True]
)
def test_what_is_no_id_is_refused(value):
    with pytest.raises(MsaError, match="id"):
        split_id(value)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("train", "train"),
        ("Training ", "train"),
        ("val", "validation"),
        ("DEV", "validation"),
        (b"valid", "validation"),
    ]
    + [("Test", "test"), ("testing", "test"), ("devel", "validation")],
)
def test_known_names_of_splits(given, name):
    assert split_name(given, "x") == name


def test_unknown_names_of_splits_are_refused():
    with pytest.raises(MsaError, match="^x.pkl has the split 'trian', and only .* rename it. Did you mean 'train'"):
        split_name("trian", "x.pkl")
    with pytest.raises(MsaError, match="'eval'.*rename it.$"):
        split_name("eval", "x.pkl")


def test_a_missing_text_is_none_and_never_the_word():
    assert [text_of(value, "it") for value in (None, float("nan"), np.float32("nan"))] == [None] * 3
    assert [text_of(value, "it") for value in ("", "nan", "好".encode(), 3, 2.0, 2.5)] == [
        "",
        "nan",
        "好",
        "3",
        "2",
        "2.5",
    ]
    for value in ("好".encode("gb18030"), "\ud83d", ["a"], {}, True, object()):
        with pytest.raises(MsaError, match="^it "):
            text_of(value, "it")


def test_optional_columns_are_kept_together_or_left_out_with_a_word():
    full = {"T": [1.0, None], "A": [0.5, 1]}
    assert filled_columns(("T", "A"), [full, full]) == (True, [])
    assert filled_columns(("T", "A"), [{}, {}]) == (False, [])
    for parts, why in (
        ([{"T": [None, ""], "A": [float("nan")]}], "'T', 'A' has no value, and was left out."),
        ([full, {}], "'T', 'A' is not in every split, and was left out."),
        ([{"T": [1.0]}], "'T' does not come with all of 'T', 'A', and was left out."),
    ):
        assert filled_columns(("T", "A"), parts) == (False, [why])


def test_long_lists_of_names_are_cut():
    assert list_of("abc", 2) == "'a', 'b' and 1 more"
