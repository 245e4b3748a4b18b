"""The papers' numbers: spot checks against the print, and what any set of numbers must satisfy."""

import copy
import math

import pytest
import yaml

from hf_msa.errors import MsaError
from hf_msa.evaluation import paper_results
from hf_msa.evaluation.metrics import CLASS_METRICS, family_metrics
from hf_msa.evaluation.paper_results import PaperEntry, load_paper_results, paper_names, parse_paper
from nonempty import some

RATES = tuple(index / 10 for index in range(10))


def find(paper: str, **wanted: object) -> PaperEntry:
    found = [
        entry
        for entry in load_paper_results(paper).entries
        if all(getattr(entry, key) == value for key, value in ({"variant": None, "at": None} | wanted).items())
    ]
    assert len(found) == 1, (wanted, found)
    return found[0]


def test_all_papers_load():
    assert paper_names() == ["cmc", "omg", "pglh", "tcmr", "uacs"]
    for name in paper_names():
        paper = load_paper_results(name)
        assert any(entry.method == paper.method for entry in paper.entries)
    with pytest.raises(MsaError, match="Did you mean 'tcmr'"):
        load_paper_results("tmcr")


def test_tcmr_as_printed():
    entry = find("tcmr", table="Table 2", dataset="mosi", method="TCMR")
    assert entry.metrics == {
        "acc7": 0.3279,
        "acc5": 0.3672,
        "non0_acc2": 0.7201,
        "non0_f1": 0.7166,
        "has0_acc2": 0.7093,
        "has0_f1": 0.7049,
        "mae": 1.072,
        "corr": 0.5228,
    }
    assert entry.selected_on == "validation" and entry.protocol == "frame" and entry.rates == RATES
    assert find("tcmr", table="Table 2", dataset="mosei", method="P-RMF").metrics["non0_acc2"] == 0.7846
    assert find("tcmr", table="Table 3", dataset="mosei", method="TCMR", variant="w/o TCE").metrics["mae"] == 0.6738
    upper = find("tcmr", table="Table 6", dataset="mosi", method="TCMR", variant="TCMR-ub")
    assert upper.metrics["corr"] == 0.6503 and upper.oracle
    assert find("tcmr", table="Table 7", dataset="mosi", method="LNLN").selected_on == "test"


@pytest.mark.parametrize(
    ("method", "dataset", "gains"),
    [
        ("LNLN", "mosi", {"acc7": 2.09, "acc5": 2.70}),
        ("P-RMF", "mosi", {"acc7": 3.55, "acc5": 7.12, "corr": 2.58}),
        ("LNLN", "mosei", {"acc7": 0.56, "acc5": 0.61, "corr": 0.48}),
        ("P-RMF", "mosei", {"acc7": 2.50, "acc5": 2.60, "corr": 1.27}),
    ],
)
def test_table_7_exceeds_table_2_by_what_it_says(method, dataset, gains):
    picked_on_test = find("tcmr", table="Table 7", dataset=dataset, method=method)
    picked_on_validation = find("tcmr", table="Table 2", dataset=dataset, method=method)
    for metric, gain in some(gains.items()):
        difference = picked_on_test.metrics[metric] - picked_on_validation.metrics[metric]
        assert 100 * difference == pytest.approx(gain, abs=0.001)


def test_shared_rows_of_tcmr_agree():
    for dataset in ("mosi", "mosei"):
        main = find("tcmr", table="Table 2", dataset=dataset, method="TCMR").metrics
        for table in ("Table 3", "Table 6"):
            metrics = find("tcmr", table=table, dataset=dataset, method="TCMR").metrics
            assert metrics == {name: main[name] for name in metrics}


@pytest.mark.parametrize("table", ["Table 5", "Table 6", "Table 7"])
def test_the_rates_of_pglh_average_to_the_printed_mean(table):
    rows = [entry for entry in load_paper_results("pglh").entries if entry.table == table]
    printed = next(entry for entry in rows if entry.at is None)
    by_rate = [entry for entry in rows if entry.at is not None]
    assert tuple(entry.at for entry in by_rate) == RATES
    for name, value in printed.metrics.items():
        assert math.fsum(entry.metrics[name] for entry in by_rate) / 10 == pytest.approx(value, abs=6e-4)
    main = find("pglh", table="Table 2" if table == "Table 7" else "Table 1", dataset=printed.dataset, method="PGLH")
    assert main.metrics == printed.metrics


def test_known_errata():
    lnln = find("pglh", table="Table 2", dataset="sims", method="LNLN")
    assert lnln.metrics["f1"] == 0.7943
    assert [(erratum.metrics, erratum.corrected) for erratum in lnln.errata] == [(("f1",), {"f1": 0.6918})]
    assert find("pglh", table="Table 2", dataset="sims", method="ALMT").errata[0].corrected == {"f1": 0.6749}
    assert find("pglh", table="Table 1", dataset="mosi", method="CENET").errata[0].corrected == {"acc5": 0.3362}
    tetfn = find("pglh", table="Table 1", dataset="mosei", method="TETFN")
    on_mosi = find("pglh", table="Table 1", dataset="mosi", method="TETFN")
    for name in tetfn.errata[0].metrics:
        assert tetfn.metrics[name] == pytest.approx(on_mosi.metrics[name], abs=0.0011)
    pglh = [entry for entry in load_paper_results("pglh").entries if entry.method == "PGLH"]
    printed = {
        entry.metrics["acc5"] for entry in pglh if entry.dataset == "mosi" and not entry.variant and not entry.at
    }
    assert {0.3934, 0.3816} <= printed
    for entry in pglh:
        if entry.metrics.get("acc5") == 0.3816:
            assert entry.errata[0].corrected == {"acc5": 0.3934}
        if entry.metrics.get("mae") in (1.319, 1.257):
            assert "suspicious" in entry.errata[0].reason
    dcca = [
        entry for entry in load_paper_results("omg").entries if entry.method == "DCCA" and entry.dataset == "mosei"
    ]
    assert [bool(entry.errata) for entry in dcca if entry.protocol == "modality"] == [True] * 8
    assert not any(entry.errata for entry in dcca if entry.protocol == "fixed")


def test_numbers_fit_their_data_set_and_each_other():
    for name in some(paper_names()):
        for entry in load_paper_results(name).entries:
            family = "sims" if entry.dataset.startswith("sims") else "mosi"
            assert set(entry.metrics) <= {*family_metrics(family), *CLASS_METRICS}, entry
            suspected = {metric for erratum in entry.errata for metric in erratum.metrics}
            for coarse, fine in (("acc5", "acc7"),) if family == "mosi" else (("acc3", "acc5"), ("acc2", "acc5")):
                # A pair that is equal on a fine scale is equal on a coarser one that merges its classes.
                values = entry.metrics.get(coarse), entry.metrics.get(fine)
                if None not in values and coarse not in suspected:
                    assert values[0] >= values[1], entry


def test_headline_takes_each_row_once():
    rows = load_paper_results("tcmr").headline("mosi", "frame", RATES)
    keys = [(row.method, row.variant, row.selected_on) for row in rows]
    assert len(keys) == len(set(keys)) == 10 + 5 + 1 + 2
    own = [row for row in load_paper_results("pglh").headline("mosi", "frame", RATES) if row.variant is None]
    assert [row.metrics["acc5"] for row in own if row.method == "PGLH"] == [0.3934]


def test_headline_averages_printed_rates():
    rows = load_paper_results("omg").headline("mosi", "modality", (0.0, 0.7))
    own = next(row for row in rows if row.method == "OMG-Agent")
    assert own.metrics["non0_acc2"] == pytest.approx((0.895 + 0.764) / 2)
    rows = load_paper_results("omg").headline("mosi", "fixed", ("text", "audio"))
    own = next(row for row in rows if row.method == "OMG-Agent")
    assert own.metrics["acc7"] == pytest.approx((0.453 + 0.226) / 2)


def test_errata_of_averaged_rates_are_given_once():
    rows = load_paper_results("omg").headline("mosei", "modality", (0.0, 0.1, 0.2))
    assert len(next(row for row in rows if row.method == "DCCA").errata) == 1
    row = next(row for row in load_paper_results("pglh").headline("mosei", "frame", (0.6, 0.7, 0.8)))
    assert [erratum.reason[:13] for erratum in row.errata] == ["At 0.7, 0.8: "]


@pytest.mark.parametrize(
    ("paper", "dataset", "protocol", "rates", "message"),
    [
        ("tcmr", "sims", "frame", RATES, r"no results on 'sims' under the protocol 'frame'; it has mosei \(frame\)"),
        ("tcmr", "mosi", "complete", (0.0,), "no results on 'mosi' under the protocol 'complete'"),
        ("tcmr", "mosi", "frame", (0.0, 0.5), r"are over 0.0, 0.1, .* and those of the runs over 0.0, 0.5"),
        ("omg", "mosi", "modality", (0.0, 0.9), "are over 0.0, 0.1"),
    ],
)
def test_nothing_to_compare(paper, dataset, protocol, rates, message):
    with pytest.raises(MsaError, match=message):
        load_paper_results(paper).headline(dataset, protocol, rates)


def test_cmc_is_of_classes_and_its_subset_apart():
    paper = load_paper_results("cmc")
    whole = paper.headline("sims", "complete", (0.0,))
    assert [(row.variant, row.subset, row.metrics) for row in whole] == [(None, None, {"class_has0_acc2": 0.849})]
    # 388 of 457 and 163 of 218 are the right answers that the numbers stand for.
    assert round(388 / 457, 4) == whole[0].metrics["class_has0_acc2"]
    [part] = paper.headline("sims", "complete", (0.0,), ("inconsistent", "differs_from_M"))
    assert part.metrics == {"class_has0_acc2": 0.7477} == {"class_has0_acc2": round(163 / 218, 4)}
    [v2] = paper.headline("simsv2", "complete", (0.0,))
    assert v2.errata[0].metrics == ("class_has0_acc2",)
    assert not any(round(right / 1034, 4) == v2.metrics["class_has0_acc2"] for right in range(1035))
    assert paper.headline("mosi", "complete", (0.0,))[0].metrics == {"class_has0_f1": 0.7623}


@pytest.mark.parametrize(
    ("paper", "dataset", "subset", "message"),
    [
        (
            "cmc",
            "sims",
            ("inconsistent", "not_all_equal"),
            r"no results on the inconsistent subset \(not_all_equal\) of 'sims'; it has them on the inconsistent subset "
            r"\(differs_from_M\), the whole split\.",
        ),
        ("cmc", "mosi", ("inconsistent", "differs_from_M"), "of 'mosi'; it has them on the whole split"),
        ("tcmr", "sims", ("inconsistent", "differs_from_M"), "no results on 'sims' under the protocol 'complete'"),
    ],
)
def test_other_subsets_are_other_data(paper, dataset, subset, message):
    with pytest.raises(MsaError, match=message):
        load_paper_results(paper).headline(dataset, "complete", (0.0,), subset)


PAPER = yaml.safe_load("""
title: A paper
source: somewhere
method: A
tables:
  - table: Table 1
    about: means
    protocol: frame
    selected_on: validation
    metrics: [acc7, mae]
    percent: [acc7]
    rows:
      - {dataset: mosi, method: A, values: [40.5, 0.7]}
    errata:
      - {dataset: mosi, method: A, metrics: [mae], corrected: {mae: 0.8}, reason: misprinted}
""")


def test_a_paper_by_hand():
    entry = parse_paper("a", PAPER).entries[0]
    assert entry.metrics == {"acc7": 0.405, "mae": 0.7}
    assert entry.errata[0].corrected == {"mae": 0.8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.update(metrics=["acc_7", "mae"]), "Did you mean 'acc7'"),
        (lambda table: table.update(protocol="frames"), "Did you mean 'frame'"),
        (lambda table: table.update(selected_on="valid"), "Unknown selection split of a, Table 1"),
        (lambda table: table["rows"][0].update(values=[40.5]), "A has 1 values for 2 metrics"),
        (lambda table: table.update(at=[0.0, 0.1], rows=[table["rows"][0] | {"values": [[1, 2]]}]), "1 of 2 settings"),
        (lambda table: table["rows"][0].update(values=[140.5, 0.7]), "140.5 is no Acc-7"),
        (lambda table: table["errata"][0].update(method="B"), "erratum about B on mosi fits no row"),
        (lambda table: table["rows"][0].update(subset=["inconsistent", "differs"]), "Did you mean 'differs_from_M'"),
        (
            lambda table: table["errata"][0].update(subset=["inconsistent", "differs_from_M"]),
            "erratum about A on mosi fits no row",
        ),
    ],
)
def test_mistakes_in_the_file_are_named(change, message):
    paper = copy.deepcopy(PAPER)
    change(paper["tables"][0])
    with pytest.raises(MsaError, match=message):
        parse_paper("a", paper)


def test_the_file_is_read_once():
    assert paper_results._file() is paper_results._file()
