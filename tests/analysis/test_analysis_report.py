"""Reports: what they write, that they write it together, and how their tables show numbers."""

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hf_msa.analysis import tool_report
from hf_msa.analysis.estimates import Estimate, bars, format_bounds, format_number, format_spread, seed_means
from hf_msa.analysis.tool_report import Report, mark_whole_numbers, rows_table
from hf_msa.evaluation.statistics import all_and_resampled, resample_counts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = [{"name": "a", "value": 0.5, "n": 3}, {"name": "b", "value": math.nan, "n": None}]


def draw(figure: "Figure", values: list[float]) -> None:
    figure.set_size_inches(3.0, 2.0)
    figure.subplots().plot(values)


def filled(folder: Path) -> Report:
    report = Report(folder)
    report.csv("table.csv", ROWS)
    report.csv("empty.csv", [])
    report.summary("summary.md", "A title", "A sentence.", "", ROWS, [])
    report.json("facts.json", {"ä": [1]})
    report.section("Parts", [{"x": "1\n2"}], "An end.")
    report.section("Nothing", "", [])
    report.figure("figure", draw, [1.0, 2.0])
    report.file("bytes.bin", lambda path: path.write_bytes(b"\0"))
    return report


def test_all_kinds_of_files(tmp_path: Path) -> None:
    names = ("table.csv", "facts.json", "figure.png", "figure.svg", "bytes.bin", "summary.md")
    assert filled(tmp_path / "new").write() == [tmp_path / "new" / name for name in names]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    assert (tmp_path / "new" / "table.csv").read_bytes() == b"name,value,n\r\na,0.5,3\r\nb,,\r\n"
    assert (tmp_path / "new" / "facts.json").read_text() == '{\n  "ä": [\n    1\n  ]\n}\n'
    assert (tmp_path / "new" / "summary.md").read_text() == (
        "# A title\n\nA sentence.\n\n"
        "| name | value | n |\n|:---|---:|---:|\n| a | 0.500 | 3 |\n| b | - | - |\n\n"
        "## Parts\n\n| x |\n|:---|\n| 1 2 |\n\nAn end.\n"
    )
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert 'width="216pt" height="144pt"' in (tmp_path / "new" / "figure.svg").read_text()


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    first, second = (filled(tmp_path / name).write() for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_nothing_is_written_before_all_of_it_can_be(tmp_path: Path) -> None:
    """A figure that cannot be drawn leaves the files of the last time as they were."""
    filled(tmp_path).write()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(_: "Figure") -> None:
        raise ValueError("no figure")

    report = Report(tmp_path)
    report.csv("table.csv", [{"other": 1}])
    report.summary("summary.md", "Another title")
    report.figure("figure", broken)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="no figure"):
        report.write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="no figure"):
        absent = Report(tmp_path / "absent")
        absent.figure("figure", broken)
        absent.write()
    assert not (tmp_path / "absent").exists()


def test_figures_are_left_out_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find = tool_report.importlib.util.find_spec
    monkeypatch.setattr(
        tool_report.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    with caplog.at_level(logging.WARNING):
        paths = filled(tmp_path).write()
    assert [path.name for path in paths] == ["table.csv", "facts.json", "bytes.bin", "summary.md"]
    assert "'figure' is left out" in caplog.text and "pip install 'hf-msa[plots]'" in caplog.text


def test_numbers_as_tables_show_them() -> None:
    shown = [format_number(value) for value in (0.12345, np.float64(2.0), 7, "x", None, math.inf)]
    assert shown == ["0.123", "2.000", "7", "x", "-", "-"]
    assert format_spread([1.0]) == "1.000" and format_spread([1.0, 3.0], 1) == "2.0 ± 1.4"
    assert format_bounds((0.1, math.nan), 2) == "[0.10, -]"
    assert rows_table([{"a|b": "c|d"}]).splitlines()[-1] == "| c\\|d |"


class TestEstimate:
    def test_by_hand(self) -> None:
        estimate = Estimate(np.array([1.0, 3.0]), np.full(10, 2.0))
        assert (estimate.mean, estimate.std, estimate.bounds) == (2.0, pytest.approx(math.sqrt(2)), (2.0, 2.0))
        assert estimate.text() == format_number(estimate) == "2.000 ± 1.414 [2.000, 2.000]"
        assert estimate.cells("x") == {"x": 2.0, "x sd": estimate.std, "x low": 2.0, "x high": 2.0}
        assert math.isnan(Estimate(np.array([1.0]), np.ones(3)).std)

    def test_arithmetic_is_seed_by_seed_and_resample_by_resample(self) -> None:
        first, second = (Estimate(np.array([1.0, 3.0]) + by, np.array([2.0, 4.0, 6.0]) + by) for by in (0.0, 1.0))
        assert (second - first).difference_text() == "+1.000 [1.000, 1.000]"
        assert (first * 100).per_seed.tolist() == [100.0, 300.0]
        ratio = first / second
        assert ratio.per_seed.tolist() == [0.5, 0.75] and ratio.resampled == pytest.approx([2 / 3, 4 / 5, 6 / 7])

    def test_means_over_samples(self) -> None:
        estimate = Estimate.mean_of([[1.0, 3.0], [5.0, 7.0]])
        assert estimate.per_seed.tolist() == [2.0, 6.0]
        # Means over seeds are 3 and 5: a resample holds the one or the other twice, or both.
        assert set(estimate.resampled.tolist()) == {3.0, 4.0, 5.0}
        assert estimate.resampled == pytest.approx(resample_counts(2) @ [3.0, 5.0] / 2)

    def test_the_first_line_of_counts_is_every_sample_once(self) -> None:
        counts = all_and_resampled(4)
        assert counts[0].tolist() == [1.0] * 4 and (counts[1:] == resample_counts(4)).all()
        values = np.array([[1.0, 2.0, 3.0, 6.0]])
        assert Estimate.of(values @ counts.T / 4).mean == 3.0

    def test_in_a_report(self, tmp_path: Path) -> None:
        report = Report(tmp_path)
        rows = [{"run": "a", "mae": Estimate(np.array([1.0]), np.array([0.5, 0.5])), "n": 3}]
        report.csv("a.csv", rows)
        report.summary("a.md", "A", rows)
        table, summary = report.write()
        assert table.read_text().split() == ["run,mae,mae", "sd,mae", "low,mae", "high,n", "a,1,,0.5,0.5,3"]
        assert "| a | 1.000 [0.500, 0.500] | 3 |" in summary.read_text()

    def test_bars(self) -> None:
        lengths, reach = bars([Estimate(np.array([2.0]), np.array([1.0, 1.0])), Estimate(np.ones(1), np.ones(2))])
        # An interval that leaves out the mean reaches to one side only.
        assert lengths.tolist() == [2.0, 1.0] and reach.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_means_of_seeds_leave_out_what_is_not_defined() -> None:
    rows = [
        {"training seed": seed, "x": value}
        for seed, value in ((5, 1.0), (6, 4.0), (5, 3.0), (6, math.nan), (7, math.nan))
    ]
    first, second, third = seed_means(rows, "x")
    assert (first, second) == (2.0, 4.0) and math.isnan(third)


def test_json_is_read_back(tmp_path: Path) -> None:
    report = Report(str(tmp_path))
    report.json("a.json", {"b": [None, 1.5, math.inf], "c": np.array([1, 2])})
    (path,) = report.write()
    assert json.loads(path.read_text()) == {"b": [None, 1.5, None], "c": [1, 2]}


@pytest.mark.parametrize(("steps", "marked"), [([6], [6]), ([3, 4], [3, 4])])
def test_an_axis_that_counts_is_marked_at_whole_numbers(steps, marked):
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    axes.plot(steps, [0.0] * len(steps), "o")
    mark_whole_numbers(axes.xaxis)
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == marked
