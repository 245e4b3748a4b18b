"""Curves: both files are written, complete, repeatable, and say what they show."""

import itertools
import re
from operator import attrgetter
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from hf_msa.errors import MsaError
from hf_msa.evaluation.plots import draw_curves, plot_curves
from hf_msa.figures import label_lines
from made_results import RATES, make_results, make_table


def texts(path: Path) -> str:
    """The labels of a drawing; matplotlib keeps each as a comment beside its outlines."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", path.read_text()))


def test_both_files_and_their_labels(tmp_path):
    runs = [make_results(make_table(noise=noise), ablation=name) for noise, name in ((0.5, None), (0.8, "wo_tce"))]
    png, svg = plot_curves(runs, tmp_path / "deep" / "curves")
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 20_000
    labels = texts(svg)
    for expected in (
        "tcmr",
        "tcmr (wo\\_tce)",
        "Acc-7 ↑ (\\%)",
        "MAE ↓",
        "missing rate",
        "mosi, test split (60 samples)",
    ):
        assert expected in labels or expected.replace("\\", "") in labels
    assert sorted(file.name for file in svg.parent.iterdir()) == ["curves.png", "curves.svg"]


def test_the_same_numbers_give_the_same_files(tmp_path):
    results = make_results(make_table())
    first = plot_curves([results], tmp_path / "a", metrics=["mae"])
    second = plot_curves([results], tmp_path / "b", metrics=["mae"])
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_patterns_one_rate_and_undefined_values(tmp_path):
    patterns = make_results(make_table(rates=("text", "audio", "text+audio")), protocol={"name": "fixed"})
    svg = plot_curves([patterns, patterns], tmp_path / "patterns", metrics=["mae"], names=["one", "two"])[1]
    assert "available modalities" in texts(svg) and "two" in texts(svg)
    assert plot_curves([make_results(make_table(rates=(0.0,)))], tmp_path / "one", metrics=["mae"])[0].is_file()
    undefined = make_results(make_table())
    for entry in undefined["per_rate"]:
        entry["metrics"]["corr"] = {"mean": None, "std": None, "n": 3, "ci_low": None, "ci_high": None}
    assert plot_curves([undefined], tmp_path / "undefined", metrics=["corr"])[0].is_file()


def test_panels_are_of_what_all_runs_have(tmp_path):
    classes = make_results(make_table(class_logits=True, rates=(0.0, 0.5)), method="cmc")
    svg = plot_curves([classes], tmp_path / "one", metrics=["class_non0_f1"])[1]
    assert "Class Non0 F1" in texts(svg)
    svg = plot_curves([classes, make_results(make_table(rates=(0.0, 0.5)))], tmp_path / "two")[1]
    assert "Non0 F1" in texts(svg) and "Class" not in texts(svg)


def test_a_subset_is_in_the_title(tmp_path):
    subset = {"name": "consistent", "rule": "not_all_equal", "n_of": 247}
    facts = {"name": "sims", "split": "test", "label_family": "sims", "subset": subset}
    results = make_results(make_table(family="sims"), family="sims", dataset=facts)
    whole = make_results(make_table(family="sims"), family="sims")
    labels = (
        texts(plot_curves([results, whole], tmp_path / "curves", metrics=["mae"])[1])
        .replace("\\", "")
        .replace("\n", " ")
    )
    assert "sims, test split, consistent subset (not_all_equal) (60 of 247 samples); " in labels
    assert "; sims, test split (60 samples), protocol frame" in labels


def test_what_cannot_be_drawn_together(tmp_path):
    with pytest.raises(MsaError, match="got 0"):
        plot_curves([], tmp_path / "curves")
    results = make_results(make_table())
    with pytest.raises(MsaError, match="got 15"):
        plot_curves([results] * 15, tmp_path / "curves")
    for other in (make_results(make_table(rates=(0.0, 0.5))), make_results(make_table(family="sims"), family="sims")):
        with pytest.raises(MsaError, match="one label family and the same missing rates"):
            plot_curves([results, other], tmp_path / "curves")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MsaError, match=r"pip install 'hf-msa\[plots\]'"):
        plot_curves([make_results(make_table())], tmp_path / "curves")


def test_a_single_setting_is_a_dot_with_its_bar():
    figure = Figure()
    draw_curves(figure, [make_results(make_table(rates=(0.0,)))], ["mae"])
    [axis] = figure.axes
    [container] = axis.containers
    assert container.has_xerr and [text.get_text() for text in axis.get_yticklabels()] == ["MAE ↓"]


def test_metrics_of_a_single_setting_share_panels_by_their_unit():
    figure = Figure()
    runs = [make_results(make_table(rates=(0.3,), noise=noise, class_logits=True)) for noise in (0.2, 0.6)]
    draw_curves(figure, runs)
    percentages, *others = figure.axes
    labels = [[text.get_text() for text in axis.get_yticklabels()] for axis in figure.axes]
    assert len(labels[0]) == 12 and labels[0][0] == "Acc-7 ↑" and labels[1:] == [["MAE ↓"], ["Corr ↑"]]
    # A dot with its bar for each metric and run, above each other; percentages as such.
    for axis, rows in ((percentages, 12), *((axis, 1) for axis in others)):
        assert all(container.has_xerr for container in axis.containers) and len(axis.containers) == 2
        upper, lower = (container.lines[0].get_ydata() for container in axis.containers)
        assert len(upper) == rows and (upper < lower).all()
    shown = percentages.containers[0].lines[0].get_xdata()
    assert shown[0] == pytest.approx(100 * runs[0]["per_rate"][0]["metrics"]["acc7"]["mean"])
    assert percentages.get_xlabel() == "%" and figure._suptitle.get_text().count("missing: 0.3") == 1


@pytest.mark.parametrize("rates", [(0.0,), RATES, ("text", "audio", "vision", "text+audio", "text+audio+vision")])
def test_labels_do_not_overlap(rates):
    figure = Figure(layout="constrained", dpi=160)
    names = [f"late_fusion (wo_tce, trained on mosei), {index}" for index in range(8)]
    draw_curves(figure, [make_results(make_table(rates=rates, n=20))] * 8, ["mae", "acc7"], names)
    figure.draw_without_rendering()
    for axis in figure.axes:
        for ticks, first, last in ((axis.get_xticklabels(), "x0", "x1"), (axis.get_yticklabels(), "y0", "y1")):
            shown = [text.get_window_extent() for text in ticks if text.get_text()]
            boxes = sorted(shown, key=attrgetter(first))
            assert all(getattr(a, last) <= getattr(b, first) for a, b in itertools.pairwise(boxes))
    for text in (figure._suptitle, *figure.legends[0].get_texts()):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_lines_of_a_label_keep_words_whole():
    assert label_lines("text+audio+vision", 7) == "text+\naudio+\nvision"
    assert label_lines("late_fusion (wo_tce)") == "late_fusion\n(wo_tce)" and label_lines("cmc, a-run") == "cmc, a-run"
