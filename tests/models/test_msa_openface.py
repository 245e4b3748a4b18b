"""Columns of OpenFace's tables by name, and the rows of one person."""

import csv

import numpy as np
import pytest

from hf_msa.models.msa_openface import (
    OPENFACE_AU_COLUMNS,
    OPENFACE_BOOKKEEPING,
    OPENFACE_COLUMNS,
    OPENFACE_SIMSV2_COLUMNS,
    FaceReport,
    face_track,
    select_columns,
)


def test_the_sets_have_the_widths_of_the_data():
    sets = (OPENFACE_COLUMNS, OPENFACE_AU_COLUMNS, OPENFACE_SIMSV2_COLUMNS)
    assert [len(columns) for columns in sets] == [709, 35, 177]
    assert all(len(set(columns)) == len(columns) and set(columns) <= set(OPENFACE_COLUMNS) for columns in sets)
    assert OPENFACE_AU_COLUMNS[:2] == ("AU01_r", "AU02_r") and OPENFACE_AU_COLUMNS[16:18] == ("AU45_r", "AU01_c")
    assert OPENFACE_AU_COLUMNS[-2:] == ("AU28_c", "AU45_c")


def test_a_real_table_has_the_columns_in_this_order(real_data):
    with (real_data / "media" / "openface2_featureextraction.csv").open() as file:
        header = [name.strip() for name in next(csv.reader(file))]
    assert tuple(header) == OPENFACE_BOOKKEEPING + OPENFACE_COLUMNS


def test_columns_are_taken_by_name():
    values = np.arange(6.0).reshape(2, 3)
    assert select_columns(("a", " b", "c "), values, ("c", "b")).tolist() == [[2, 1], [5, 4]]


def test_missing_and_doubled_columns_are_named():
    with pytest.raises(ValueError, match=r"lacks 34 of 35 columns: AU02_r, .*, AU12_r and 26 more; make it"):
        select_columns(("AU01_r",), np.zeros((1, 1)), OPENFACE_AU_COLUMNS)
    with pytest.raises(ValueError, match="'a' twice"):
        select_columns(("a", " a"), np.zeros((1, 2)), ("a",))


def two_people(**columns):
    return {"face_id": np.array([0, 1, 0, 1]), "frame": np.array([1, 1, 2, 2]), **columns}


def test_of_faces_seen_equally_long_the_largest_is_kept():
    for size in ({"p_scale": np.array([1.0, 3, 1, 2])}, {"pose_Tz": np.array([900.0, 500, 900, 500])}):
        kept, report = face_track(two_people(**size))
        assert kept.tolist() == [1, 3] and report == FaceReport(2, 2, 2)
    corners = {f"{axis}_{point}": np.full(4, 5.0) for axis in "xy" for point in range(68)}
    corners |= {"x_3": np.array([7.0, 15, 7, 15]), "y_8": np.array([9.0, 9, 9, 9])}
    # The landmarks are believed before the scale.
    assert face_track(two_people(**corners, p_scale=np.array([9.0, 1, 9, 1])))[0].tolist() == [1, 3]
    assert face_track(two_people())[0].tolist() == [0, 2]


def test_what_is_no_number_says_nothing():
    nan = float("nan")
    kept, report = face_track(
        {"success": np.array([1, nan, 1]), "confidence": np.array([nan, 0.5, 0.25]), "p_scale": np.full(3, nan)}
    )
    assert kept.tolist() == [0, 2] and report == FaceReport(3, 2, 1, 0.25)
    assert face_track({"success": np.zeros(2)})[1].share == 0
