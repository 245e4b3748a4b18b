"""What is said of the recordings of a data set, by numbers that were worked out by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hf_msa.recordings.statistics import RecordingStatistics


def filled() -> RecordingStatistics:
    made = RecordingStatistics({"audio": ("a", "b"), "vision": ("c",)})
    made.add({"audio": np.array([[1, 5], [3, 5]], np.float32), "vision": np.zeros((1, 1), np.float32)}, 60.0, 1, 4)
    made.add({"audio": np.array([[5, 5]], np.float32)}, 30.0, 0, 0)
    return made


def test_notes_name_what_never_changes() -> None:
    assert filled().notes() == [
        "The clips last 30.0 to 60.0 s, 1.5 minutes together.",
        "The face that was followed is in 25% of the pictures.",
        "1 of 2 audio features are the same in every frame: b.",
    ]
    assert RecordingStatistics({"audio": ("a",)}).notes() == []


def test_the_table_and_the_figure(tmp_path: Path) -> None:
    filled().write(tmp_path)
    with (tmp_path / "features.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert rows == [
        # Of 1, 3 and 5 the variance is 8/3.
        ["audio", "a", "3", "3", "1.63299", "1", "5"],
        ["audio", "b", "3", "5", "0", "5", "5"],
        ["vision", "c", "1", "0", "0", "0", "0"],
    ]
    pytest.importorskip("matplotlib")
    assert (tmp_path / "recordings.png").stat().st_size > 1000
    RecordingStatistics({"audio": ("a",)}).write(tmp_path / "none")
    assert not (tmp_path / "none").exists()
