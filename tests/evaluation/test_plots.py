"""Curves: both files are written, complete, repeatable, and say what they show."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from hf_msa.errors import MsaError
from hf_msa.evaluation.plots import draw_curves, plot_curves
from made_results import make_results, make_table


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
    labels = texts(plot_curves([results, whole], tmp_path / "curves", metrics=["mae"])[1]).replace("\\", "")
    assert "sims, test split, consistent subset (not_all_equal) (60 of 247 samples); " in labels
    assert "; sims, test split (60 samples), protocol frame" in labels


def test_what_cannot_be_drawn_together(tmp_path):
    with pytest.raises(MsaError, match="got 0"):
        plot_curves([], tmp_path / "curves")
    results = make_results(make_table())
    with pytest.raises(MsaError, match="got 8"):
        plot_curves([results] * 8, tmp_path / "curves")
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
    assert container.has_yerr and [text.get_text() for text in axis.get_xticklabels()] == ["0.0"]
