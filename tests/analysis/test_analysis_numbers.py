"""The numbers of the analyses, on values made by hand: confidence, quadrants, gradients, selection, upper bound."""

import math

import numpy as np
import pytest
import torch

from hf_msa.analysis import TOOLS, run_tool
from hf_msa.analysis.common.selection import audit
from hf_msa.analysis.tcmr.confidence import (
    FILLER_DRAWS,
    calibration,
    confidence_statistics,
    correlation,
    cue_and_filler_masks,
)
from hf_msa.analysis.tcmr.gradients import conflict_rows, gradient_angle
from hf_msa.analysis.tcmr.masked_words import Words
from hf_msa.analysis.tcmr.proxy import FEATURES, SCORES, RateSums
from hf_msa.analysis.tcmr.quadrants import cell_rows, cue_fates
from hf_msa.analysis.tcmr.upper_bound import difference_rows
from hf_msa.errors import MsaError
from hf_msa.evaluation.statistics import paired_difference
from hf_msa.models.msa_label_families import BUILT_IN
from made_results import make_results, make_table


def test_correlations_of_made_numbers():
    confidence, truth, kept = [0.2, 0.4, 0.6, 0.8], [0.1, 0.3, 0.5, 0.7], [1.0, 0.5, 0.5, 0.0]
    numbers = confidence_statistics(confidence, truth, kept)
    assert numbers["confidence"] == pytest.approx(0.5) and numbers["truth"] == pytest.approx(0.4)
    assert numbers["confidence sd"] == pytest.approx(math.sqrt(0.2 / 3))
    assert numbers["squared error"] == pytest.approx(0.01)
    assert numbers["corr with truth"] == pytest.approx(1.0)
    # Sums of products of deviations: -0.3, over sqrt(0.2 * 0.5).
    assert numbers["corr with kept share"] == pytest.approx(-0.3 / math.sqrt(0.1))
    assert math.isnan(correlation([0.5, 0.5], [0.1, 0.9])) and math.isnan(correlation([1.0], [1.0]))


def test_calibration_by_hand():
    rows, gap = calibration([0.0, 0.1, 0.24, 0.5, 1.0], [0.2, 0.2, 0.0, 0.9, 1.0], bins=4)
    assert [(row["from"], row["n"]) for row in rows] == [(0.0, 3), (0.5, 1), (0.75, 1)]
    assert rows[0]["truth"] == pytest.approx(0.4 / 3) and rows[0]["confidence"] == pytest.approx(0.34 / 3)
    # (3 * 0.02 + 1 * 0.4 + 1 * 0) / 5
    assert gap == pytest.approx((0.06 + 0.4) / 5)


def test_paired_difference_sees_what_unpaired_spread_hides():
    base = np.linspace(-5, 5, 40)
    found = paired_difference(base + 0.2 + 0.01 * np.sin(base), base)
    assert found["difference"] == pytest.approx(0.2, abs=0.01)
    assert 0.18 < found["low"] < found["difference"] < found["high"] < 0.22


def words_of(*texts):
    names = [text.split() for text in texts]
    word_of = [np.array([-1, *range(len(row)), -1]) for row in names]
    return Words([np.arange(len(row)) for row in word_of], word_of, names)


def test_cues_and_equally_many_fillers():
    roles = {"good": "cue", "bad": "cue", "the": "filler", "film": "filler", "is": "filler", "not": "negator"}
    words = words_of("the film is not good", "good bad is", "the film", "good or bad the is film")
    variants, owner = cue_and_filler_masks(words, roles, np.random.default_rng(0))
    # The second text has fewer fillers than cues, the third has no cue; "or" has no role.
    kinds = 2 + FILLER_DRAWS
    assert owner.tolist() == [0] * kinds + [3] * kinds
    assert variants[0].tolist() == [] and variants[1].tolist() == [4]
    assert variants[kinds + 1].tolist() == [0, 2]
    for drawn in variants[2:kinds]:
        assert len(drawn) == 1 and set(drawn) <= {0, 1, 2}
    for drawn in variants[kinds + 2 :]:
        assert len(set(drawn.tolist())) == 2 and set(drawn) <= {3, 4, 5}


def test_fates_of_cue_words():
    words = words_of("the good film", "good bad", "good bad", "the film", "good bad")
    masks = [[1, 2], [1, 2], [1], [1], []]
    marks = [np.isin(np.arange(len(row)), lost) for row, lost in zip(words.word_of, masks, strict=True)]
    assert cue_fates(words, frozenset({"good", "bad"}), marks) == ["dropped", "dropped", "mixed", None, "kept"]


def test_a_word_of_two_pieces_is_dropped_with_either():
    words = Words([np.arange(4)], [np.array([-1, 0, 0, -1])], [["loving"]])
    assert cue_fates(words, frozenset({"loving"}), [np.array([False, False, True, False])]) == ["dropped"]


def test_cells_by_hand():
    def row(rate, fate, label, prediction, confidence):
        numbers = {"label": label, "prediction": prediction, "confidence": confidence, "truth": 0.5}
        return {"rate": rate, "fate": fate, **numbers}

    table = [
        row("low", "kept", 2.0, 1.0, 0.9),
        row("low", "kept", -1.0, 1.0, 0.7),
        row("high", "dropped", 1.0, 1.5, 0.2),
        row("high", "mixed", 3.0, -3.0, 0.0),
    ]
    cells = cell_rows(table, BUILT_IN["mosi"])
    assert [cell["n"] for cell in cells] == [2, 0, 0, 1]
    assert cells[0]["mae"] == pytest.approx(1.5) and cells[0]["acc2"] == 0.5
    assert cells[0]["confidence"] == pytest.approx(0.8) and cells[0]["confidence sd"] == pytest.approx(math.sqrt(0.02))
    assert cells[1]["mae"] is None and cells[3]["mae"] == pytest.approx(0.5)


def test_cosine_of_known_gradients():
    # Over both parameters: (3, 4 | 0) against (4, 3 | 0): 24 / 25.
    first, second = [torch.tensor([3.0, 4.0]), None], [torch.tensor([4.0, 3.0]), None]
    assert gradient_angle(first, second) == pytest.approx((24 / 25, 5.0, 5.0))
    # What only one loss depends on counts for its length, not for the product: 24 / (5 * 13).
    longer = [torch.tensor([4.0, 3.0]), torch.tensor([[12.0]])]
    assert gradient_angle(first, longer) == pytest.approx((24 / 65, 5.0, 13.0))
    assert gradient_angle([torch.tensor([1.0, 0.0])], [torch.tensor([-2.0, 0.0])])[0] == -1.0
    assert math.isnan(gradient_angle([None], [torch.ones(2)])[0])


LENGTHS = ("confidence", "task", "reconstruction")


def test_errors_and_spreads_of_features_by_hand():
    target = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]])
    made = torch.tensor([[[1.0, 2.0]], [[1.0, 4.0]]])
    sums = RateSums()
    sums.target.add(target[:1], target[:1])
    sums.target.add(target[1:], target[1:])
    # The mean of other texts, (2, 1): squares 1, 1, 1, 9.
    sums.mean.add(torch.tensor([2.0, 1.0]).expand_as(target), target)
    for name, values in zip(FEATURES, (target, torch.full_like(target, 2.0), made), strict=True):
        sums.features[name].add(values, target)
    sums.numbers["confidence"] += [0.2, 0.6]
    for name, errors in zip(SCORES, ([1.0, 2.0], [1.0, 1.0], [2.0, 2.0], [0.0, 0.5]), strict=True):
        sums.errors[name] += errors
    row = sums.row()
    assert row["error of the mean"] == pytest.approx(3.0)
    assert row["text: error"] == 0.0 and row["text: spread"] == pytest.approx(1.0)
    # The mean of these texts, (2, 2): squares 1, 4, 1, 4.
    assert row["proxy: error"] == pytest.approx(2.5 / 3.0) and row["proxy: spread"] == pytest.approx(0.0)
    # Errors 0, 4, 4, 0; only the second width varies, by 1; those of the complete texts vary by 1 and 4.
    assert row["rebuilt: error"] == pytest.approx(2.0 / 3.0) and row["rebuilt: spread"] == pytest.approx(0.5 / 2.5)
    assert row["confidence"] == pytest.approx(0.4) and row["confidence sd"] == pytest.approx(math.sqrt(0.08))
    assert math.isnan(row["gate"])
    assert [row[f"mae {name}"] for name in SCORES] == [1.5, 1.0, 2.0, 0.25]


def test_share_of_conflicts():
    others = ("cosine on the text encoder", "without the path", *(f"{name} gradient" for name in LENGTHS))

    def row(step, chosen, cosine):
        return {"step": step, "chosen": chosen, "cosine": cosine, **dict.fromkeys(others, 10 * cosine)}

    table = [row(20, True, -0.5), row(20, True, 0.5), row(20, True, float("nan")), row(10, False, -0.1)]
    first, second, chosen = conflict_rows(table)
    assert (first["checkpoint"], first["batches"], first["negative"]) == ("step 10", 1, 1.0)
    assert (second["batches"], second["cosine"], second["negative"]) == (2, 0.0, 0.5)
    assert chosen["checkpoint"] == "chosen" and chosen["batches"] == 2
    assert all(first[name] == -1.0 and second[name] == 0.0 for name in others)


def test_selection_audit_by_hand():
    checkpoints = [
        {"step": 10, "validation": 1.5, "mae": 1.2, "corr": 0.4, "acc7": 0.30},
        {"step": 20, "validation": 1.1, "mae": 1.1, "corr": 0.5, "acc7": 0.28},
        {"step": 30, "validation": 1.3, "mae": 1.0, "corr": float("nan"), "acc7": 0.30},
    ]
    mae, corr, acc7 = audit(checkpoints, ("mae", "corr", "acc7"))
    assert (mae["step chosen on validation"], mae["step of the test oracle"]) == (20, 30)
    assert mae["optimism"] == pytest.approx(0.1) and mae["chosen on validation"] == 1.1
    # An undefined value is never the best; a tie goes to the earlier checkpoint.
    assert corr["step of the test oracle"] == 20 and corr["optimism"] == 0.0
    assert acc7["step of the test oracle"] == 10 and acc7["optimism"] == pytest.approx(0.02)
    assert all(row["optimism"] >= 0 for row in (mae, corr, acc7))


def test_upper_bound_differences():
    ours, oracle = make_results(make_table()), make_results(make_table(noise=0.2), oracle=True)
    rows = difference_rows(ours, oracle)
    (mae,) = [row for row in rows if row["rate"] == "mean" and row["metric"] == "mae"]
    expected = oracle["mean_over_rates"]["mae"]["mean"] - ours["mean_over_rates"]["mae"]["mean"]
    assert mae["difference"] == pytest.approx(expected) and expected < 0
    # Less error is a gain.
    assert mae["gain"] == pytest.approx(-expected)
    assert len(rows) == 5 * 8


def test_upper_bound_files_are_marked(write_run, tmp_path):
    oracle = str(write_run("ub", noise=0.2, facts={"oracle": True, "ablation": "ub"}))
    ours = str(write_run("ours"))
    paths = run_tool("upper-bound", [oracle, ours], output=str(tmp_path / "out"))
    assert sorted(path.suffix for path in paths) == [".csv", ".md", ".png", ".svg"]
    summary = (tmp_path / "out" / "upper_bound.md").read_text()
    assert "Oracle" in summary and summary.index("| tcmr |") < summary.index("[oracle]")
    with pytest.raises(MsaError, match="two results"):
        run_tool("upper-bound", [ours, ours], output=str(tmp_path / "out"))
    with pytest.raises(MsaError, match="two of one method"):
        other = str(write_run("text", facts={"method": "text"}))
        run_tool("upper-bound", [oracle, other], output=str(tmp_path / "out"))


def test_curves_of_two_runs(write_run, tmp_path):
    runs = [str(write_run("a")), str(write_run("b", noise=0.8))]
    paths = run_tool("curves", runs, metrics=["mae", "corr"])
    assert {path.name for path in paths} == {"curves.csv", "curves.md", "curves.png", "curves.svg"}
    assert paths[0].parent == tmp_path / "a" / "analysis" / "curves"
    lines = (paths[0].parent / "curves.csv").read_text().splitlines()
    assert lines[0] == "run,rate,metric,mean,std,n,ci_low,ci_high" and len(lines) == 1 + 2 * 4 * 2
    assert lines[1].startswith('"tcmr, a",0,mae,')


def test_wrong_calls_say_what_is_right(tmp_path):
    with pytest.raises(MsaError, match="Did you mean 'clues'"):
        run_tool("clue", ["x"], data="d")
    with pytest.raises(MsaError, match="needs a run"):
        run_tool("curves", [])
    with pytest.raises(MsaError, match="--data"):
        run_tool("confidence", ["x"])
    with pytest.raises(MsaError, match="no --thresholds; it has --data, --split, --rates, --output"):
        run_tool("confidence", ["x"], data="d", thresholds=[0.5])
    with pytest.raises(MsaError, match="There is no result"):
        run_tool("curves", [str(tmp_path)])
    with pytest.raises(MsaError, match="threshold is 1.5"):
        run_tool("clues", ["x"], data="d", thresholds=[1.5])
    assert all(tool.title and tool.title[0] == tool.title[0].lower() for tool in TOOLS.values())
