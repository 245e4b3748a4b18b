"""Comparisons: hand-computed differences, p-values that mean something, and what is refused."""

import json
import re
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from hf_msa.errors import MsaError
from hf_msa.evaluation.compare import compare_runs
from hf_msa.evaluation.metrics import CLASS_METRICS
from hf_msa.evaluation.report import (
    cost_text,
    cost_texts,
    format_estimate,
    markdown_table,
    results_markdown,
    terminal_parts,
)
from hf_msa.evaluation.results import (
    PREDICTIONS_DIGEST,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    predictions_table,
    read_results,
    write_results,
)
from made_results import make_results, make_table
from nonempty import some

SUBSET = {"name": "inconsistent", "rule": "differs_from_M", "n_of": 457}
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
        (
            {},
            {"dataset": {"name": "mosi", "split": "test", "label_family": "mosi", "subset": SUBSET}},
            r"part of the data set \(test split against test split, inconsistent subset \(differs_from_M\)\)",
        ),
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


def test_p_values_and_means_come_from_the_same_numbers(write_run):
    """Of a result beside predictions that it was not made from, there are no p-values, whatever made them differ."""
    first, other = write_run("a"), write_run("b", noise=0.9, facts={"method": "text"})
    tested = compare_runs([first, other])
    assert not tested.notes and all(cell.p_value is not None for cell in tested.differences[0].values())
    own = (other / PREDICTIONS_FILE).read_bytes()

    # The predictions of another run.
    (other / PREDICTIONS_FILE).write_bytes((first / PREDICTIONS_FILE).read_bytes())
    note = "No p-values for text: .*predictions.parquet does not hold the predictions that the results.json beside it"
    for digest in (True, False):
        content = json.loads((other / RESULTS_FILE).read_text())
        if not digest:  # as earlier versions wrote it
            del content[PREDICTIONS_DIGEST]
            (other / RESULTS_FILE).write_text(json.dumps(content))
        swapped = compare_runs([first, other])
        assert re.match(note, some(swapped.notes)[0]) and swapped.differences[0]["mae"].p_value is None
        assert swapped.differences[0]["mae"].value == tested.differences[0]["mae"].value

    # Rows that are another table of the same means.
    (other / PREDICTIONS_FILE).write_bytes(own)
    assert not compare_runs([first, other]).notes
    content[PREDICTIONS_DIGEST] = "0" * 64
    (other / RESULTS_FILE).write_text(json.dumps(content))
    assert re.match(note, some(compare_runs([first, other]).notes)[0])

    # A mean that was typed.
    del content[PREDICTIONS_DIGEST]
    content["mean_over_rates"]["mae"]["mean"] -= 0.01
    (other / RESULTS_FILE).write_text(json.dumps(content))
    assert re.match(note, some(compare_runs([first, other]).notes)[0])
    assert compare_runs([other, first]).notes[0].startswith("No p-values: ")


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


# --- Several papers ---


def test_two_runs_beside_both_papers(write_run):
    folders = [
        write_run(method, rates=TEN_RATES, noise=noise, facts={"method": method})
        for method, noise in (("tcmr", 0.5), ("pglh", 0.4))
    ]
    comparison = compare_runs(folders, paper=["tcmr", "pglh"])
    assert comparison.names == ("tcmr", "pglh")
    assert comparison.differences[0]["mae"].value < 0
    assert [block.name for block in comparison.paper] == ["TCMR", "PGLH"]
    lines = comparison.to_markdown().splitlines()
    starts = [
        next(i for i, line in enumerate(lines) if line.startswith(f"| {name} paper:")) for name in ("TCMR", "PGLH")
    ]
    tcmr, pglh = lines[starts[0] : starts[1]], lines[starts[1] :]
    # Each paper's own row and its own LNLN.
    own = "| TCMR | validation | 32.79 | 36.72 | 70.93 | 70.49 | 72.01 | 71.66 | 1.0720 | 0.5228 |"
    assert own in tcmr and own not in pglh
    assert "| PGLH | unknown | 34.34 | 39.34† | 71.90 | 72.84 | 73.33 | 73.32 | 1.0330 | 0.5330 |" in pglh
    assert sum(line.startswith("| LNLN |") for line in tcmr) == 2 and sum("| LNLN |" in line for line in pglh) == 1
    text = "\n".join(lines)
    assert (
        "| PGLH (w/o reconstruction losses) | unknown | 34.14 | 37.03 | 71.68 | 71.89 | 71.70 | 72.08 | 1.3190† |"
        in text
    )
    assert "- † PGLH paper, CENET, Table 1, Acc-5: " in text and "Corrected: Acc-5 33.62." in text
    assert "- † TCMR paper, LNLN, Table 7, Corr: " in text


@pytest.mark.parametrize("papers", [["pglh"], ["tcmr"]])
def test_the_same_two_runs_beside_one_paper(write_run, papers):
    folders = [write_run(method, rates=TEN_RATES, facts={"method": method}) for method in ("tcmr", "pglh")]
    comparison = compare_runs(folders, paper=papers)
    [block] = comparison.paper
    assert block.name == papers[0].upper() and any(row.method == block.name for row in block.rows)
    assert comparison.names == ("tcmr", "pglh")
    assert compare_runs(folders, paper=papers * 2).paper == comparison.paper, "a paper named twice is shown once"


def test_the_mosei_row_that_repeats_mosi_is_marked(write_run):
    facts = {"dataset": {"name": "mosei", "split": "test", "label_family": "mosi"}}
    text = compare_runs([write_run("a", rates=TEN_RATES, facts=facts)], paper=["tcmr", "pglh"]).to_markdown()
    row = next(line for line in text.split("PGLH paper:")[1].splitlines() if line.startswith("| TETFN |"))
    assert row == "| TETFN | unknown | 30.30† | 47.70 | 67.68† | 63.29† | 69.76† | 65.69† | 1.0870† | 0.5080† |"
    assert "has withdrawn its TETFN result" in text


def test_a_paper_without_this_data_is_a_note_beside_one_with_it(write_run):
    folder = write_run("a", rates=TEN_RATES, family="sims")
    comparison = compare_runs([folder], paper=["tcmr", "pglh"])
    assert [block.name for block in comparison.paper] == ["PGLH"]
    assert any(note.startswith("The TCMR paper has no results on 'sims'") for note in comparison.notes)
    with pytest.raises(MsaError, match="The TCMR paper has no results on 'sims'"):
        compare_runs([folder], paper=["tcmr", "cmc"])
    with pytest.raises(MsaError, match="Unknown paper 'tcrm'"):
        compare_runs([folder], paper=["pglh", "tcrm"])


# --- Class logits and subsets ---


def complete(family, **facts):
    dataset = {"name": family, "split": "test", "label_family": family} | facts.pop("dataset", {})
    return {"dataset": dataset, "protocol": {"name": "complete"}, **facts}


def test_a_model_that_classifies_beside_one_that_does_not(write_run):
    table = {"family": "sims", "rates": (0.0,), "mask_seeds": (1,)}
    tcmr = write_run("a", **table, facts=complete("sims"))
    cmc = write_run("b", **table, noise=0.3, class_logits=True, facts=complete("sims", method="cmc"))
    comparison = compare_runs([tcmr, cmc], paper="cmc")
    assert comparison.metrics[-6:] == CLASS_METRICS
    headings, rows = comparison.value_rows(["class_has0_acc2"])
    assert headings == ["", "selected on", "Class Has0 Acc-2 ↑"]
    mean = read_results(cmc)["mean_over_rates"]["class_has0_acc2"]
    assert [row[2] for row in rows] == ["-", format_estimate("class_has0_acc2", mean), "", "84.90"]
    difference = comparison.differences[0]["class_has0_acc2"]
    assert difference.value is None and difference.p_value is None
    assert comparison.differences[0]["mae"].p_value is not None
    stream = StringIO()
    Console(file=stream, width=200).print(comparison.to_rich())
    printed = stream.getvalue()
    # Two tables for a terminal; the paper, which has class metrics only, stands in the second alone.
    assert printed.index("Corr ↑") < printed.index("Class Acc-3 ↑") < printed.index("CMC paper:")
    assert printed.count("CMC paper:") == 1 and "84.90" in printed


def test_two_models_that_classify_are_tested(write_run):
    table = {"family": "sims", "rates": (0.0,), "mask_seeds": (1,), "class_logits": True}
    folders = [
        write_run(name, **table, noise=noise, facts=complete("sims", method="cmc", ablation=ablation))
        for name, noise, ablation in (("a", 1.5, None), ("b", 0.1, "wo_pfm"))
    ]
    better = compare_runs(folders).differences[0]["class_acc3"]
    assert better.value > 0 and better.p_value < 0.05


def test_three_and_seven_classes_side_by_side(write_run):
    three = write_run("a", class_logits=True, facts={"method": "cmc"})
    seven = write_run("b", scale_logits=True, facts={"method": "omg"})
    comparison = compare_runs([three, seven])
    assert comparison.metrics[-7:] == (*CLASS_METRICS, "class_acc7")
    assert [row[2] == "-" for row in comparison.value_rows(["class_acc7"])[1]] == [True, False]
    assert comparison.differences[0]["class_acc7"].value is None


def test_a_paper_of_metrics_that_no_run_has_is_a_note(write_run):
    folder = write_run("a", family="sims", rates=(0.0,), facts=complete("sims"))
    comparison = compare_runs([folder], paper="cmc")
    assert comparison.paper == ()
    assert comparison.notes == ("The CMC paper prints none of these metrics on this data but Class Has0 Acc-2.",)


def test_a_subset_stands_beside_the_paper_s_row_of_it(write_run):
    table = {"family": "sims", "rates": (0.0,), "class_logits": True}
    folder = write_run("a", **table, facts=complete("sims", method="cmc", dataset={"subset": SUBSET}))
    text = compare_runs([folder], paper="cmc", metrics=["class_has0_acc2"]).to_markdown()
    assert "sims, test split, inconsistent subset (differs_from_M), protocol complete" in text
    assert "| CMC | unknown | 74.77 |" in text and "84.90" not in text
    other = write_run("b", **table, facts=complete("sims", dataset={"subset": SUBSET | {"rule": "not_all_equal"}}))
    with pytest.raises(MsaError, match="no results on the inconsistent subset"):
        compare_runs([other], paper="cmc")


# --- Setting by setting ---

PATTERNS = ("audio", "vision", "text", "audio+vision", "text+audio", "text+vision", "text+audio+vision")
EIGHT_RATES = tuple(index / 10 for index in range(8))


def test_fixed_patterns_stand_beside_the_paper_s(write_run):
    runs = [
        write_run(
            name, rates=PATTERNS, mask_seeds=(1,), noise=0.3, facts={"method": name, "protocol": {"name": "fixed"}}
        )
        for name in ("omg", "text")
    ]
    comparison = compare_runs(runs, paper="omg")
    headings, rows = comparison.setting_rows()
    # The columns are what the paper prints at single patterns.
    assert headings == ["available", "", "Acc-7 ↑", "Non0 Acc-2 ↑", "Non0 F1 ↑"]
    assert [row[0] for row in rows[::3]] == list(PATTERNS) and {row[0] for row in rows} == {"", *PATTERNS}
    assert [row[1] for row in rows] == ["omg", "text", "OMG-Agent paper"] * 7
    assert rows[2][2:] == ["22.60", "64.40", "63.90"] and rows[-1][2:] == ["48.30", "89.20", "89.10"]
    per_rate = read_results(runs[0])["per_rate"]
    assert rows[9][2:] == [
        format_estimate(metric, per_rate[3]["metrics"][metric]) for metric in ("acc7", "non0_acc2", "non0_f1")
    ]
    narrow = comparison.setting_rows(narrow=True)[1]
    assert [row[0] for row in narrow[::3]] == ["a", "v", "t", "a+v", "t+a", "t+v", "t+a+v"]
    assert narrow[2] == rows[2]
    stream = StringIO()
    Console(file=stream, width=80).print(comparison.to_rich())
    assert sum(line.split()[:2] == ["OMG-Agent", "paper"] for line in stream.getvalue().splitlines()) == 7
    assert "a: audio, v: vision, t: text; " in stream.getvalue()
    assert "| text+audio+vision | omg |" in comparison.to_markdown()
    # Means over the patterns: of the paper's own method (22.6 + 23.1 + 45.3 + 25.6 + 47.2 + 48.0 + 48.3) / 7.
    assert "| OMG-Agent | unknown | 37.16 |" in comparison.to_markdown()


def test_rates_stand_beside_the_paper_s_and_ablations_at_theirs(write_run):
    facts = {"method": "omg", "protocol": {"name": "modality"}, "train_rate": "match"}
    comparison = compare_runs([write_run("a", rates=EIGHT_RATES, mask_seeds=(1,), facts=facts)], paper="omg")
    headings, rows = comparison.setting_rows(["non0_acc2"])
    assert headings == ["missing", "", "Non0 Acc-2 ↑"]
    paper = [row for row in rows if row[1] == "OMG-Agent paper"]
    assert [row[2] for row in paper] == ["89.50", "88.50", "85.70", "84.30", "82.20", "78.60", "77.40", "76.40"]
    assert [row[0] for row in rows if row[1] == "omg (match)"] == [
        "0",
        "0.1",
        "0.2",
        "0.3",
        "0.4",
        "0.5",
        "0.6",
        "0.7",
    ]
    ablations = rows[rows.index(paper[-1]) + 1 :]
    assert len(ablations) == 14 and len(rows) == 2 * 8 + 14
    assert ["", "  w/o plan loss", "72.80"] in ablations and ["", "  w/o retriever", "72.80"] in ablations
    text = comparison.to_markdown()
    assert "Each missing rate of omg (match) is that of models trained at it." in text
    assert "OMG-Agent paper, Figure 4: ablations at missing rate 0.7; " in text
    # A metric that the paper does not print at single rates has no such table.
    assert comparison.setting_rows(["mae"])[1] == []


def test_ablations_at_their_one_rate_are_in_the_table_of_means(write_run):
    facts = {"method": "omg", "protocol": {"name": "modality"}}
    comparison = compare_runs([write_run("a", rates=(0.7,), facts=facts)], paper="omg", metrics=["non0_acc2"])
    assert comparison.setting_rows()[1] == []
    rows = comparison.value_rows()[1]
    assert ["OMG-Agent", "unknown", "76.40"] in rows and ["OMG-Agent (single stream)", "unknown", "73.20"] in rows
    assert ["  single stream", "?", "73.20"] in comparison.value_rows(narrow=True)[1]
    assert ["OMG-Agent (w/o planner)", "unknown", "73.20"] in rows


def test_a_transfer_stands_beside_the_paper_s_transfer(write_run):
    facts = {"method": "omg", "protocol": {"name": "fixed"}, "trained_on": "mosei"}
    home = {**facts, "trained_on": "mosi"}
    away = compare_runs([write_run("a", rates=PATTERNS, facts=facts)], paper="omg")
    assert away.names == ("omg (trained on mosei)",)
    assert [row[2] for row in away.setting_rows(["acc7"])[1][1::2]] == [
        "20.90", "21.10", "42.50", "21.90", "42.90", "43.30", "43.70"
    ]  # fmt: skip
    at_home = compare_runs([write_run("b", rates=PATTERNS, facts=home)], paper="omg")
    assert at_home.setting_rows(["acc7"])[1][1][2] == "22.60" and at_home.names == ("omg",)
    # What training elsewhere costs is a question about the same test rows.
    assert compare_runs([write_run("b", rates=PATTERNS, facts=home), write_run("a", rates=PATTERNS, facts=facts)])


def test_a_paper_of_means_alone_adds_no_table_of_settings(write_run):
    comparison = compare_runs([write_run("a", rates=TEN_RATES)], paper="tcmr")
    assert comparison.setting_rows()[1] == [] and "| missing |" not in comparison.to_markdown()


def test_costs_stand_beside_each_other(write_run):
    cost = {
        "calls": 0.31,
        "tokens": 1.24,
        "seconds": 2.5,
        "unreadable": 0.0625,
        "routes": {"fast": 0.69, "mllm": 0.31},
    }
    folders = [write_run("first"), write_run("second", facts={"cost": cost})]
    found = compare_runs(folders)
    headings, rows = found.cost_rows()
    costs = ["calls", "prompt tokens", "tokens", "seconds", "remembered", "unreadable", "routes"]
    assert headings == ["cost per sample", *costs] and rows[0][1:] == ["-"] * 7
    assert rows[1][1:] == ["0.31", "-", "1.24", "2.5", "-", "6.2 %", "fast 69.0 %, mllm 31.0 %"]
    assert "fast 69.0 %, mllm 31.0 %" in found.to_markdown()
    assert (
        compare_runs(folders[:1] * 2).cost_rows()[1] == []
        and "cost per" not in compare_runs(folders[:1] * 2).to_markdown()
    )
    text = cost_text(found.runs[1])
    assert text.startswith(
        "Cost per sample: 0.31 questions to the language model, 1.24 tokens written by it, 2.5 seconds"
    )
    assert text.endswith("unreadable answers: 6.2 %, which is too many to judge the language model by.")
    assert cost_text(found.runs[0]) == "" and text in results_markdown(found.runs[1])
    more = cost | {"prompt_tokens": 81.25, "remembered": 0.5, "unreadable": None, "routes": {}}
    run = read_results(write_run("third", facts={"cost": more}))
    assert list(cost_texts(run).values()) == ["0.31", "81.2", "1.24", "2.5", "50.0 %", "-", "-"]
    assert cost_text(run) == (
        "Cost per sample: 0.31 questions of 81.2 tokens to the language model, 1.24 tokens written by it, 2.5 seconds; "
        "known from before: 50.0 %; unreadable answers: -."
    )


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (5, "cost"),
        ({"calls": "many"}, "cost calls"),
        ({"calls": 1, "tokens": 1, "seconds": 1, "unreadable": None}, "cost routes"),
        ({"calls": 1, "tokens": 1, "seconds": 1, "remembered": "all", "routes": {}}, "cost remembered"),
        ({"calls": 1, "tokens": 1, "seconds": 1, "unreadable": None, "routes": {"fast": "x"}}, "cost routes"),
    ],
)
def test_damaged_costs_are_one_sentence(write_run, damage, place):
    file = write_run("run") / RESULTS_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cost": damage}))
    with pytest.raises(MsaError, match=f"damaged: its {place} is"):
        read_results(file)


def test_files_of_a_comparison_say_that_the_data_are_generated(tmp_path):
    label, words = [1.0, -1.0, 2.0], "generated sample corpus, not a benchmark"
    for name, error in (("a_b", 0.5), ("c", 0.25)):
        part = {"id": ["x", "y", "z"], "training_seed": 1, "mask_seed": 1, "rate": 0.0, "label": label}
        table = predictions_table([part | {"prediction": [value + error for value in label]}])
        results = make_results(table, method=name)
        results["dataset"]["name"] = "sample"
        write_results(tmp_path / name, results, table)
    comparison = compare_runs([tmp_path / "a_b", tmp_path / "c"], metrics=["mae"])
    markdown, rows, latex = (path.read_text(encoding="utf-8") for path in comparison.write(tmp_path / "out"))
    assert words in markdown and words in latex
    lines = rows.splitlines()
    assert lines[0] == "run,dataset,setting,metric,mean,std,n,ci_low,ci_high" and len(lines) == 5
    assert lines[1].startswith(f'a_b,"sample ({words})",mean,mae,0.5,')
    assert r"a\_b & " in latex and r"MAE $\downarrow$" in latex


@pytest.mark.parametrize("width", [40, 60, 80])
def test_words_of_a_narrow_terminal_stay_whole(write_run, width):
    facts = {"method": "late_fusion", "ablation": "wo_modality_dropout"}
    folders = [write_run("a", class_logits=True, facts=facts), write_run("b", facts={"method": "tcmr"})]
    comparison = compare_runs(folders)
    stream = StringIO()
    Console(file=stream, width=width).print(comparison.to_rich())
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    assert {"late_fusion", "(wo_modality_dropout)", "Acc-7", "validation"} - words <= {"validation"}
    # Every number of the table, wherever its column stands.
    assert {cell for row in comparison.value_rows(narrow=True)[1] for cell in row[2:]} <= words


def test_markdown_in_the_terminal_keeps_names_whole():
    table = markdown_table(["run", "a very_long_heading"], [["late_fusion (wo_tce)", "0.123 | x"], ["tcmr", "-"]])
    stream = StringIO()
    Console(file=stream, width=44).print(*terminal_parts(f"# Title\n\nAbout **it**.\n\n{table}\n"))
    printed = stream.getvalue()
    assert {"Title", "it.", "late_fusion", "(wo_tce)", "very_long_heading", "0.123", "tcmr"} <= set(printed.split())
    assert "0.123 | x" in printed
