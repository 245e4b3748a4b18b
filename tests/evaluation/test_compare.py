"""Comparisons: hand-computed differences, p-values that mean something, and what is refused."""

import json
from io import StringIO

import numpy as np
import pytest
from made_results import make_results, make_table
from rich.console import Console

from hf_msa.errors import MsaError
from hf_msa.evaluation.compare import compare_runs
from hf_msa.evaluation.results import predictions_table, read_results, write_results

TEN_RATES = tuple(index / 10 for index in range(10))


def test_difference_by_hand(tmp_path):
    labels = [1.0, -1.0, 2.0]
    for name, error in (("a", 0.5), ("b", 0.3)):
        parts = [
            {"id": ["x", "y", "z"], "training_seed": 1, "mask_seed": 1, "rate": rate, "label": labels}
            | {"prediction": [label + error * (1 + rate) for label in labels]}
            for rate in (0.0, 1.0)
        ]
        table = predictions_table(parts)
        write_results(tmp_path / name, make_results(table, method=name), table)
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert comparison.names == ("a", "b")
    # Means over the two rates: 0.75 and 0.45; every row gains, so no resample disagrees: p = 2 / (200 + 1).
    difference = comparison.differences[0]["mae"]
    assert difference.value == pytest.approx(-0.3)
    assert difference.p_value == pytest.approx(2 / 201)


def test_a_better_run_is_told_from_a_worse_one(write_run):
    folders = [write_run("a", noise=0.5), write_run("b", noise=0.1, facts={"method": "text"})]
    comparison = compare_runs(folders, metrics=["mae", "acc7"])
    better = comparison.differences[0]
    assert better["mae"].value < 0 and better["mae"].p_value < 0.05
    assert better["acc7"].value > 0 and better["acc7"].p_value < 0.05
    assert comparison.notes == ()
    means = [read_results(folder)["mean_over_rates"]["mae"]["mean"] for folder in folders]
    assert better["mae"].value == pytest.approx(means[1] - means[0])


def test_a_run_equals_itself(write_run):
    folder = write_run("a")
    comparison = compare_runs([folder, folder / "results.json"])
    assert all(row.value == 0 and row.p_value == 1 for row in comparison.differences[0].values())
    assert comparison.names == ("tcmr, a", "tcmr, a")


def test_tables(write_run):
    comparison = compare_runs(
        [write_run("a", facts={"selection": [{"split": "validation"}]}), write_run("b", facts={"method": "text"})],
        metrics=["mae"],
    )
    headings, rows = comparison.value_rows()
    assert headings == ["", "selected on", "MAE ↓"]
    assert [row[:2] for row in rows] == [["tcmr", "validation"], ["text", "unknown"]]
    assert comparison.difference_rows()[1] == [["text", "+0.0000 (p 1.000)"]]
    assert comparison.difference_rows(narrow=True)[1] == [["text", "+0.0000"], ["  p", "1.000"]]
    narrow = comparison.value_rows(narrow=True)[1]
    assert [row[:2] for row in narrow] == [["tcmr", "val"], ["  ± std", ""], ["text", "?"], ["  ± std", ""]]
    stream = StringIO()
    Console(file=stream, width=160).print(comparison.to_rich())
    for text in (stream.getvalue(), comparison.to_markdown()):
        assert "mosi, test split, protocol frame: mean over 0.0, 0.3, 0.6, 0.9" in text
        assert "minus tcmr" in text


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {},
            {"dataset": {"name": "mosei", "split": "test", "label_family": "mosi"}},
            r"data set's name \('mosi' against",
        ),
        ({}, {"dataset": {"name": "mosi", "split": "validation", "label_family": "mosi"}}, "data set's split"),
        ({}, {"protocol": {"name": "modality"}}, r"protocol's name \('frame' against 'modality'\)"),
        ({}, {"protocol": {"name": "frame", "rate_sampler": "lnln_half_clean"}}, "protocol's rate_sampler"),
        ({}, {"oracle": True}, r"tcmr \[oracle\] saw labels"),
        ({"oracle": True}, {}, r"tcmr \[oracle\] saw labels"),
    ],
)
def test_what_cannot_be_compared(write_run, first, second, message):
    folders = [write_run("a", facts=first), write_run("b", facts=second)]
    with pytest.raises(MsaError, match=message) as error:
        compare_runs(folders)
    assert "\n" not in str(error.value)


def test_other_rates_cannot_be_compared(write_run):
    with pytest.raises(MsaError, match="protocol's rates"):
        compare_runs([write_run("a"), write_run("b", rates=(0.0, 0.5))])


def test_oracles_are_shown_when_asked_for(write_run):
    comparison = compare_runs([write_run("a"), write_run("b", facts={"oracle": True})], allow_oracle=True)
    assert comparison.names == ("tcmr", "tcmr [oracle]")


def test_absent_p_values_are_explained(write_run):
    complete = write_run("a")
    without = write_run("b", predictions=False, facts={"method": "text"})
    other_rows = write_run("c", n=61, facts={"method": "pglh"})
    comparison = compare_runs([complete, without, other_rows])
    assert all(
        cell.p_value is None and cell.value is not None for row in comparison.differences for cell in row.values()
    )
    assert "No p-values for text: There are no predictions" in comparison.notes[0]
    assert "No p-values for pglh: its predictions are for other ids or labels" in comparison.notes[1]
    assert "(p" not in comparison.to_markdown()
    reverse = compare_runs([without, complete])
    assert reverse.notes[0].startswith("No p-values: There are no predictions")


def test_other_mask_draws_are_noted(write_run):
    first, second = write_run("a"), write_run("b", mask_seeds=(3,), facts={"protocol": {"name": "frame", "seed": 3}})
    comparison = compare_runs([first, second])
    assert "different mask draws (seeds [3] against [1, 2])" in comparison.notes[0]
    assert comparison.differences[0]["mae"].p_value is not None


def test_undefined_numbers_have_no_difference(tmp_path):
    for name, prediction in (("a", [0.5, 0.5]), ("b", [0.5, -0.5])):
        part = {"id": ["x", "y"], "training_seed": 1, "mask_seed": 1, "rate": 0.0, "label": [1.0, -1.0]}
        table = predictions_table([part | {"prediction": prediction}])
        write_results(tmp_path / name, make_results(table, method=name), table)
    difference = compare_runs([tmp_path / "a", tmp_path / "b"]).differences[0]["corr"]
    assert difference.value is None and difference.p_value is None


def test_the_paper_stands_beside_our_run(write_run):
    folder = write_run("a", rates=TEN_RATES)
    comparison = compare_runs([folder], paper="tcmr", metrics=["acc7", "mae", "corr"])
    assert comparison.differences == ()
    text = comparison.to_markdown()
    assert "| TCMR paper: |  |  |  |  |" in text
    assert "| TCMR | validation | 32.79 | 1.0720 | 0.5228 |" in text
    assert "| TCMR (w/o TCE) | validation | 32.06 | 1.1378 | 0.5027 |" in text
    assert "| LNLN | test | 33.45 | 1.0700 | 0.5035† |" in text
    assert "† LNLN, Table 7, Corr: " in text
    assert "TCMR-ub" not in text
    assert (
        "TCMR-ub) [oracle]"
        in compare_runs([write_run("b", rates=TEN_RATES, facts={"oracle": True})], paper="tcmr").to_markdown()
    )


def test_errata_are_marked_and_corrected(write_run):
    text = compare_runs([write_run("a", rates=TEN_RATES, family="sims")], paper="pglh").to_markdown()
    assert "| LNLN | test | 72.73 | 57.14 | 34.64 | 79.43† | 0.5140 | 0.3970 |" in text
    assert "Corrected: F1 69.18." in text


def test_a_paper_on_other_data_is_refused(write_run):
    with pytest.raises(MsaError, match="no results on 'sims'"):
        compare_runs([write_run("a", rates=TEN_RATES, family="sims")], paper="tcmr")
    with pytest.raises(MsaError, match="evaluate the runs at the paper's settings"):
        compare_runs([write_run("b")], paper="tcmr")
    with pytest.raises(MsaError, match="Unknown paper 'tcrm'"):
        compare_runs([write_run("c")], paper="tcrm")


def test_nothing_to_compare(write_run):
    for folders in ([], [write_run("a")]):
        with pytest.raises(MsaError, match=f"got {len(folders)}"):
            compare_runs(folders)
    with pytest.raises(MsaError, match="needs two runs"):
        compare_runs([], paper="tcmr")


def test_a_table_written_by_hand_is_still_compared(tmp_path):
    # Rates such as 0.1 + 0.2 come out of a sweep with rounding errors; the paper's 0.3 is meant all the same.
    rates = tuple(float(rate) for rate in np.arange(0, 1, 0.1))
    assert 0.30000000000000004 in rates
    table = make_table(rates=rates)
    write_results(tmp_path, make_results(table), table)
    assert json.loads((tmp_path / "results.json").read_text())["protocol"]["rates"][3] != 0.3
    assert compare_runs([tmp_path], paper="tcmr").paper
