"""results.json: what it says, that it survives the disk, and how it refuses what it cannot read."""

import dataclasses
import hashlib
import json
import math
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import CLASS_METRICS, METRICS, class_metrics, family_metrics, regression_metrics
from hf_msa.evaluation.report import (
    format_estimate,
    format_value,
    metric_groups,
    print_results,
    result_rows,
    results_markdown,
    run_name,
    shared_metrics,
)
from hf_msa.evaluation.results import (
    CLASS_COLUMNS,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    SCALE_COLUMNS,
    SCHEMA_VERSION,
    Predictions,
    predictions_table,
    read_predictions,
    read_results,
    result_metrics,
    write_results,
)
from hf_msa.models.msa_label_families import BUILT_IN
from made_results import RATES, make_results, make_table
from nonempty import some

OLD = Path(__file__).parents[1] / "fixtures" / "results"


def part(training_seed, mask_seed, rate, prediction, label=(1.0, -1.0), **extra):
    return {
        "id": ["a", "b"],
        "training_seed": training_seed,
        "mask_seed": mask_seed,
        "rate": rate,
        "prediction": list(prediction),
        "label": list(label),
    } | extra


def test_means_and_spread_by_hand():
    # MAE per pass: seed 1: rate 0 0.1 and 0.3 (two masks), rate 0.5 0.5 and 0.7; seed 2: 0.4, 0.4, 1.0, 1.0.
    errors = {(1, 8, 0.0): 0.1, (1, 9, 0.0): 0.3, (1, 8, 0.5): 0.5, (1, 9, 0.5): 0.7}
    errors |= {(2, 8, 0.0): 0.4, (2, 9, 0.0): 0.4, (2, 8, 0.5): 1.0, (2, 9, 0.5): 1.0}
    table = predictions_table(part(*key, (1 + error, -1 + error)) for key, error in errors.items())
    results = make_results(table)
    first, second = (entry["metrics"]["mae"] for entry in results["per_rate"])
    assert first["mean"] == pytest.approx((0.2 + 0.4) / 2)
    assert first["std"] == pytest.approx(math.sqrt(2 * 0.1**2))
    assert first["n"] == 2
    assert second["mean"] == pytest.approx(0.8)
    overall = results["mean_over_rates"]["mae"]
    # Per seed: (0.2 + 0.6) / 2 and (0.4 + 1.0) / 2.
    assert overall["mean"] == pytest.approx(0.55)
    assert overall["std"] == pytest.approx(math.sqrt(2 * 0.15**2))
    # Every row has the same error, so no resample differs.
    assert overall["ci_low"] == pytest.approx(0.55) and overall["ci_high"] == pytest.approx(0.55)
    assert results["protocol"]["rates"] == [0.0, 0.5] and results["protocol"]["mask_seeds"] == [8, 9]
    assert [run["metrics"]["mae"] for run in results["runs"]] == pytest.approx(
        [0.1, 0.5, 0.3, 0.7, 0.4, 1.0, 0.4, 1.0], abs=1e-6
    )


def test_interval_resamples_the_same_rows_for_all_rates():
    # Two passes whose errors cancel row by row: their mean has no spread at all, though each alone has.
    ids = [str(index) for index in range(40)]
    labels = np.zeros(40)
    error = np.random.default_rng(0).uniform(0, 1, 40)
    common = {"id": ids, "training_seed": 1, "mask_seed": 1, "label": labels}
    table = predictions_table(
        [common | {"rate": 0.0, "prediction": error}, common | {"rate": 0.5, "prediction": 1 - error}]
    )
    results = make_results(table)
    overall = results["mean_over_rates"]["mae"]
    assert overall["ci_low"] == pytest.approx(0.5, abs=1e-6) and overall["ci_high"] == pytest.approx(0.5, abs=1e-6)
    single = results["per_rate"][0]["metrics"]["mae"]
    assert single["ci_high"] - single["ci_low"] > 0.05


@pytest.mark.parametrize("family", BUILT_IN)
def test_numbers_are_the_metrics_of_the_rows(family):
    table = make_table(family=family)
    results = make_results(table, family=family)
    frame = table.to_pylist()
    for run in some(results["runs"]):
        key = (run["training_seed"], run["mask_seed"], run["rate"])
        rows = [row for row in frame if (row["training_seed"], row["mask_seed"], row["rate"]) == key]
        expected = regression_metrics([row["prediction"] for row in rows], [row["label"] for row in rows], family)
        assert run["metrics"] == pytest.approx(expected)
    for estimate in some(results["mean_over_rates"].values()):
        assert estimate["ci_low"] <= estimate["mean"] <= estimate["ci_high"]


def test_order_of_rows_does_not_matter():
    table = make_table()
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    assert make_results(table)["mean_over_rates"] == make_results(shuffled)["mean_over_rates"]
    assert Predictions.from_table(table).fingerprint == Predictions.from_table(shuffled).fingerprint


def test_fingerprint_tells_rows_apart():
    one, other = (Predictions.from_table(make_table(n=n)).fingerprint for n in (20, 21))
    assert one != other
    relabelled = predictions_table([part(1, 1, 0.0, (0, 0)), part(1, 1, 0.5, (0, 0))])
    changed = predictions_table([part(1, 1, 0.0, (0, 0), label=(1.0, -0.5))])
    assert Predictions.from_table(relabelled).fingerprint != Predictions.from_table(changed).fingerprint


def test_undefined_numbers_are_null(tmp_path):
    table = predictions_table([part(1, 1, 0.0, (0.5, 0.5)), part(1, 1, 0.5, (1.0, -1.0))])
    results = make_results(table)
    assert results["per_rate"][0]["metrics"]["corr"]["mean"] is None
    assert results["per_rate"][1]["metrics"]["corr"]["mean"] == pytest.approx(1.0)
    # A mean over the defined rates alone would hide that the model gave up.
    assert results["mean_over_rates"]["corr"] == {"mean": None, "std": None, "n": 1, "ci_low": None, "ci_high": None}
    assert results["mean_over_rates"]["mae"]["std"] is None
    text = write_results(tmp_path, results).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result_rows(results, ["corr"])[1][0] == ["0", "-"]


def test_whole_numbers_among_rates_are_rates():
    for rates in ((0, 0.5), (0, 1)):
        table = predictions_table([part(1, 1, rate, (1.0, -1.0)) for rate in rates])
        assert str(table.schema.field("rate").type) == "double"
        content = json.dumps(make_results(table)["protocol"]["rates"])
        assert content == json.dumps([float(rate) for rate in rates])


def test_patterns_keep_their_order_and_seeds_may_be_unknown():
    rates = ("text", "audio", "text+audio")
    table = predictions_table(part(None, None, rate, (1.0, -1.0)) for rate in rates)
    results = make_results(table, protocol={"name": "fixed"})
    assert results["protocol"]["rates"] == list(rates)
    assert results["runs"][0]["training_seed"] is None


def test_realised_rates_go_to_their_runs():
    table = predictions_table([part(1, 7, rate, (1.0, -1.0)) for rate in (0.0, 0.5)])
    results = make_results(table, realised={(7, 0.0): {"text": 0.0}, (7, 0.5): {"text": np.float32(0.375)}})
    assert [run["realised"] for run in results["runs"]] == [{"text": 0.0}, {"text": 0.375}]


def test_extra_columns_are_kept(tmp_path):
    table = predictions_table([part(1, 1, 0.0, (1.0, -1.0), confidence=[0.25, 0.75], stage="b")])
    write_results(tmp_path, make_results(table), table)
    import pyarrow.parquet as pq

    read = pq.read_table(tmp_path / PREDICTIONS_FILE)
    assert read.column("confidence").to_pylist() == [0.25, 0.75]
    assert read.column("stage").to_pylist() == ["b", "b"]


def test_round_trip(tmp_path):
    table = make_table()
    results = make_results(table, selection=[{"training_seed": 1111, "value": np.float64(0.5)}], seconds=1.5)
    path = write_results(tmp_path, results, table)
    digest = hashlib.sha256((tmp_path / PREDICTIONS_FILE).read_bytes()).hexdigest()
    assert read_results(path) == read_results(tmp_path) == {**results, "predictions_sha256": digest}
    grid = read_predictions(tmp_path)
    assert grid.scores.shape == (3, 2, len(RATES), 60)
    assert grid.rates == RATES
    assert sorted(file.name for file in tmp_path.iterdir()) == [PREDICTIONS_FILE, RESULTS_FILE]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda: predictions_table([]), "no predictions"),
        (lambda: predictions_table([part(1, 1, 0.0, (1.0,))]), "'prediction' has 1 values for 2 ids"),
        (lambda: make_results(make_table().drop_columns("rate")), "lacks the column 'rate'"),
        (lambda: make_results(make_table().slice(0, 0)), "no rows"),
        (lambda: make_results(make_table().slice(1)), "holds 0 predictions for id 'video0"),
        (
            lambda: make_results(pa.concat_tables([make_table(), make_table().slice(5, 1)])),
            "holds 2 predictions for id 'video1",
        ),
        (
            lambda: make_results(
                predictions_table([part(1, 1, 0.0, (0, 0)), part(1, 1, 0.5, (0, 0), label=(1.0, -0.5))])
            ),
            "id 'b' several labels",
        ),
        (lambda: make_results(make_table(), dataset={"name": "mosi"}), "dataset facts of a result lack 'split'"),
        (lambda: make_results(predictions_table([part(1, 1, 0.0, (math.nan, 0))])), "1 of 2 predictions are NaN"),
    ],
)
def test_bad_tables(table, message):
    with pytest.raises(MsaError, match=message):
        table()


def test_files_that_are_no_results(tmp_path):
    with pytest.raises(MsaError, match="no result at"):
        read_results(tmp_path)
    with pytest.raises(MsaError, match="no predictions at"):
        read_predictions(tmp_path)
    (tmp_path / PREDICTIONS_FILE).write_bytes(b"PAR1 and nothing more")
    with pytest.raises(MsaError, match="cannot be read as a prediction table"):
        read_predictions(tmp_path)
    file = tmp_path / RESULTS_FILE
    file.write_text("{")
    with pytest.raises(MsaError, match="not a JSON file"):
        read_results(tmp_path)
    file.write_text("[]")
    with pytest.raises(MsaError, match="no schema_version"):
        read_results(tmp_path)
    good = make_results(make_table())
    for change, message in (
        ({"schema_version": 3}, "schema_version 3, and this version of hf_msa reads up to 2"),
        ({"schema_version": "1"}, "schema_version '1'"),
        ({"runs": None}, "'runs' is absent"),
        ({"dataset": {"name": "mosi"}}, "'dataset' lacks 'split'"),
        ({"mean_over_rates": {}}, "holds no metric that is known"),
        ({"per_rate": [{"rate": 0.3, "metrics": {}}]}, "per_rate 0.3 lacks the metric 'acc7'"),
    ):
        file.write_text(json.dumps(good | change))
        with pytest.raises(MsaError, match=message):
            read_results(file)


def changed(content, path, value):
    """A copy of a result with another value at a path of keys."""
    content = json.loads(json.dumps(content))
    *parents, last = path
    place = content
    for key in parents:
        place = place[key]
    place[last] = value
    return content


@pytest.mark.parametrize("value", [None, True, 7, 1.5, "x", [], [7], {}, {"a": 7}, 10**400, [[]], [{}], [None]])
def test_a_value_of_another_type_is_one_sentence_or_no_damage(tmp_path, value):
    """Every place of a result, one after the other."""
    good = json.loads(json.dumps(make_results(make_table(rates=(0.0, 0.5), training_seeds=(1,)), media=None)))
    places = [(key,) for key in good] + [
        (section, key) for section in ("dataset", "protocol", "bootstrap") for key in good[section]
    ]
    places += [
        ("runs", 0),
        ("per_rate", 0),
        ("runs", 0, "metrics"),
        ("per_rate", 0, "rate"),
        ("per_rate", 0, "metrics"),
    ]
    places += [("runs", 0, key) for key in ("rate", "training_seed", "mask_seed", "realised")]
    places += [("mean_over_rates", "mae"), ("runs", 0, "metrics", "mae"), ("protocol", "rates", 0), ("selection",)]
    places += [("mean_over_rates", "mae", key) for key in good["mean_over_rates"]["mae"]]
    refused = 0
    for place in places:
        (tmp_path / RESULTS_FILE).write_text(json.dumps(changed(good, place, value)))
        try:
            found = read_results(tmp_path)
        except MsaError as error:
            assert str(error).count("\n") == 0 and str(error).endswith((".", "?")), (place, str(error))
            refused += 1
        else:
            # What is read can be shown.
            results_markdown(found), run_name(found)
            print_results(found, console=Console(file=StringIO()))
    assert refused > len(places) / 3


@pytest.mark.parametrize(("family", "message"), [("other.yaml", "Unknown label family"), ({"name": 3}, "is damaged")])
def test_a_result_names_no_files(tmp_path, monkeypatch, family, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("{name: other, low: -3, high: 3}")
    good = make_results(make_table())
    (tmp_path / RESULTS_FILE).write_text(json.dumps(changed(good, ("dataset", "label_family"), family)))
    with pytest.raises(MsaError, match=message):
        read_results(tmp_path)


def test_numbers_that_json_has_not_are_undefined_when_read_and_never_written(tmp_path):
    good = make_results(make_table())
    (tmp_path / RESULTS_FILE).write_text(json.dumps(changed(good, ("mean_over_rates", "mae", "std"), math.nan)))
    assert read_results(tmp_path)["mean_over_rates"]["mae"]["std"] is None
    write_results(tmp_path, changed(good, ("mean_over_rates", "mae", "std"), math.inf))
    assert "Infinity" not in (tmp_path / RESULTS_FILE).read_text()
    (tmp_path / RESULTS_FILE).write_text("[" * 100_000)
    with pytest.raises(MsaError, match="is not a JSON file"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("id", [1, 2]),
        ("prediction", ["a", "b"]),
        ("prediction", [1.0, None]),
        ("label", [True, False]),
        ("training_seed", [0.5, 1.5]),
        ("rate", [None, None]),
    ],
)
def test_columns_of_other_types_are_named(column, values):
    table = predictions_table([part(1, 1, 0.0, (0.0, 0.0))])
    index = table.column_names.index(column)
    with pytest.raises(MsaError, match=f"column '{column}' is of type"):
        Predictions.from_table(table.set_column(index, column, pa.array(values)))


def test_formats():
    assert format_value("acc7", 0.32794) == "32.79"
    assert format_value("mae", 1.07204) == "1.0720"
    assert format_value("corr", None) == "-"
    assert format_estimate("acc7", {"mean": 0.5, "std": 0.0123}) == "50.00 ± 1.23"
    assert format_estimate("acc7", {"mean": 0.5, "std": None}) == "50.00"


def test_markdown_says_what_the_result_says():
    results = make_results(make_table())
    text = results_markdown(results, ["acc7", "mae"])
    lines = text.splitlines()
    assert lines[0] == "| missing | Acc-7 ↑ | MAE ↓ |"
    assert lines[1] == "|:---|---:|---:|"
    assert [line.split(" | ")[0] for line in lines[2:8]] == ["| 0", "| 0.3", "| 0.6", "| 0.9", "| mean", "| 95 %"]
    assert format_estimate("mae", results["mean_over_rates"]["mae"]) in lines[6]
    assert "60 samples" in text and "3 training seeds (1111, 1112, 1113)" in text and "2 mask draws" in text


def test_one_rate_is_its_own_mean():
    rows = result_rows(make_results(make_table(rates=(0.0,))), ["mae"])[1]
    assert [row[0] for row in rows] == ["0", "95 %"]
    assert "±" in rows[0][1]


def test_an_unknown_metric_is_named():
    with pytest.raises(MsaError, match="Did you mean 'acc7'"):
        results_markdown(make_results(make_table()), ["acc_7"])


def test_terminal_table():
    stream = StringIO()
    results = make_results(make_table(), ablation="wo_tce", oracle=True)
    print_results(results, console=Console(file=stream, width=200))
    printed = stream.getvalue()
    assert run_name(results) == "tcmr (wo_tce) [oracle]"
    assert "tcmr (wo_tce) [oracle]" in printed
    assert "Non0 F1 ↑" in printed and "0.9" in printed


@pytest.mark.parametrize("name", ["sample-tcmr", "sample-text"])
def test_results_of_before_the_class_metrics_are_read(name):
    results = read_results(OLD / name)
    assert result_metrics(results) == family_metrics("mosi") and "subset" not in results["dataset"]
    assert results_markdown(results).count("Class") == 0


# --- Class logits ---


@pytest.mark.parametrize("family", BUILT_IN)
def test_class_metrics_come_after_those_of_the_score(family):
    plain, classes = (
        make_results(make_table(family=family, class_logits=with_them), family=family) for with_them in (False, True)
    )
    names = (*family_metrics(family), *CLASS_METRICS)
    assert tuple(classes["mean_over_rates"]) == result_metrics(classes) == names
    assert tuple(plain["mean_over_rates"]) == result_metrics(plain) == family_metrics(family)
    # What does not look at class logits is what it was, its intervals too: the same rows are drawn.
    for place, other in ((plain, classes), (plain["per_rate"][1], classes["per_rate"][1])):
        block = "mean_over_rates" if "mean_over_rates" in place else "metrics"
        for name in family_metrics(family):
            # Linear algebra libraries sum in another order over another number of columns.
            assert place[block][name] == pytest.approx(other[block][name], rel=1e-12)
    for estimate in classes["mean_over_rates"].values():
        assert estimate["ci_low"] < estimate["mean"] < estimate["ci_high"]


def test_class_numbers_are_those_of_the_rows():
    table = make_table(class_logits=True)
    results = make_results(table)
    frame = table.to_pylist()
    for run in some(results["runs"]):
        key = (run["training_seed"], run["mask_seed"], run["rate"])
        rows = [row for row in frame if (row["training_seed"], row["mask_seed"], row["rate"]) == key]
        logits = [[row[name] for name in CLASS_COLUMNS] for row in rows]
        expected = class_metrics(logits, [row["label"] for row in rows], "mosi")
        assert {name: run["metrics"][name] for name in CLASS_METRICS} == pytest.approx(expected)


def test_class_logits_survive_the_disk(tmp_path):
    table = make_table(class_logits=True)
    write_results(tmp_path, make_results(table), table)
    grid = read_predictions(tmp_path)
    assert CLASS_COLUMNS == ("class_logits_negative", "class_logits_neutral", "class_logits_positive")
    assert grid.class_logits.shape == (3, 2, len(RATES), 60, 3)
    np.testing.assert_allclose(grid.class_logits[..., 2], grid.scores)
    assert result_metrics(read_results(tmp_path))[-6:] == CLASS_METRICS
    # Two of three columns are something else that a method wanted to keep.
    assert Predictions.from_table(table.drop_columns("class_logits_neutral")).class_logits is None


def test_seven_class_logits_are_told_from_three(tmp_path):
    table = make_table(scale_logits=True)
    # Three of the seven columns have the names of the three classes.
    assert set(CLASS_COLUMNS) < set(SCALE_COLUMNS) <= set(table.column_names)
    results = make_results(table)
    assert tuple(results["mean_over_rates"]) == (*family_metrics("mosi"), "class_acc7")
    # The made logits are largest at the rounded score, so both ways of counting agree.
    assert results["mean_over_rates"]["class_acc7"] == results["mean_over_rates"]["acc7"]
    write_results(tmp_path, results, table)
    grid = read_predictions(tmp_path)
    assert grid.class_logits.shape == (3, 2, len(RATES), 60, 7)
    np.testing.assert_allclose(grid.class_logits[..., 6], -np.abs(grid.scores - 3), rtol=1e-5, atol=1e-6)
    assert result_metrics(read_results(tmp_path))[-1] == "class_acc7"
    assert "| Corr ↑ | Class Acc-7 ↑ |" in results_markdown(results)
    stream = StringIO()
    print_results(results, console=Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    # The table of the one metric is narrow; the sentence below it is not.
    assert max(map(len, lines[-3:])) > 60
    # Five classes, three of them with the same names, have no metrics here.
    five = table.drop_columns(["class_logits_slightly_negative", "class_logits_slightly_positive"])
    assert set(CLASS_COLUMNS) < set(five.column_names) and Predictions.from_table(five).class_logits is None
    with pytest.raises(MsaError, match="no class_acc3, for its model gives class logits of another number of classes"):
        results_markdown(results, ["class_acc3"])


def test_a_result_with_some_class_metrics_is_damaged(tmp_path):
    good = make_results(make_table(class_logits=True))
    del good["per_rate"][2]["metrics"]["class_f1_3"]
    (tmp_path / RESULTS_FILE).write_text(json.dumps(good))
    with pytest.raises(MsaError, match=r"per_rate 0.6 lacks the metric 'class_f1_3'"):
        read_results(tmp_path)


def test_class_metrics_have_a_table_of_their_own_in_a_terminal():
    results = make_results(make_table(class_logits=True))
    stream = StringIO()
    print_results(results, console=Console(file=stream, width=160))
    printed = stream.getvalue()
    assert printed.index("Corr ↑") < printed.index("Class Acc-3 ↑") and printed.count("60 samples") == 1
    assert metric_groups(result_metrics(results)) == [family_metrics("mosi"), CLASS_METRICS]
    assert "| Corr ↑ | Class Acc-3 ↑ | Class F1-3 ↑ |" in results_markdown(results)


def test_a_class_metric_of_a_model_without_classes():
    plain, classes = make_results(make_table()), make_results(make_table(class_logits=True), method="cmc")
    with pytest.raises(MsaError, match="The result of tcmr has no class_acc3, for its model gives no class logits"):
        results_markdown(plain, ["class_acc3"])
    assert shared_metrics([classes, plain], None) == family_metrics("mosi")
    assert shared_metrics([classes, classes], None) == family_metrics("mosi") + CLASS_METRICS
    with pytest.raises(MsaError, match="tcmr has no class_acc3"):
        shared_metrics([classes, plain], ["class_acc3"])


# --- Subsets ---

SUBSET = {"name": "inconsistent", "rule": "differs_from_M", "n_of": 457}


def test_a_subset_is_named(tmp_path):
    facts = {"name": "sims", "split": "test", "label_family": "sims", "subset": SUBSET}
    results = make_results(make_table(family="sims"), family="sims", dataset=facts)
    write_results(tmp_path, results)
    assert read_results(tmp_path)["dataset"]["subset"] == SUBSET
    assert "sims, test split, inconsistent subset (differs_from_M), 60 of 457 samples;" in results_markdown(results)
    (tmp_path / RESULTS_FILE).write_text(json.dumps(results | {"dataset": results["dataset"] | {"subset": {}}}))
    with pytest.raises(MsaError, match="its 'subset' lacks a name, rule or size"):
        read_results(tmp_path)


# --- Patterns ---


def test_a_table_of_patterns_reads_well():
    patterns = ("audio", "vision", "text", "audio+vision", "text+audio", "text+vision", "text+audio+vision")
    results = make_results(make_table(rates=patterns, mask_seeds=(1,)), protocol={"name": "fixed"})
    headings, rows = result_rows(results, ["acc7", "mae"])
    assert headings == ["available", "Acc-7 ↑", "MAE ↓"]
    assert [row[0] for row in rows] == [*patterns, "mean", "95 %"]
    stream = StringIO()
    print_results(results, console=Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    # In a terminal of 80 columns every pattern stands in one line, with its eight numbers.
    starts = [line.split()[0] for line in lines if len(line.split()) == 9 and "." in line]
    assert starts == ["a", "v", "t", "a+v", "t+a", "t+v", "t+a+v", "mean"], stream.getvalue()
    assert "a: audio, v: vision, t: text; mosi, test split" in stream.getvalue()


OLD = Path(__file__).parents[1] / "fixtures" / "results"


def test_results_of_every_version_are_read() -> None:
    files = sorted(OLD.glob("version-*.json"))
    assert [file.stem for file in files] == [f"version-{number}" for number in range(1, SCHEMA_VERSION + 1)]
    for file in files:
        results = read_results(file)
        assert results["schema_version"] == SCHEMA_VERSION and "expert_input" not in results
        assert results["language_model_input"] == "words" and results["trained_on"] == "mosi"
        assert result_metrics(results) == family_metrics("mosi")
        assert "the language model was given the transcript with a description" in results_markdown(results)


def test_a_metric_more_or_less_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that an earlier or a later version wrote hold other metrics than this one computes."""
    results = make_results(make_table())
    for block in (results["mean_over_rates"], *(entry["metrics"] for entry in results["per_rate"])):
        block["rmse"] = block.pop("acc7")
    (tmp_path / RESULTS_FILE).write_text(json.dumps(results))
    found = read_results(tmp_path)
    assert result_metrics(found) == family_metrics("mosi")[1:]
    assert "Acc-7" not in results_markdown(found) and "Acc-5" in results_markdown(found)
    with pytest.raises(MsaError, match="metric 'acc7'"):
        results_markdown(found, ["acc7"])
    monkeypatch.setitem(METRICS, "rmse", dataclasses.replace(METRICS["mae"], name="rmse", pretty="RMSE"))
    assert result_metrics(read_results(tmp_path)) == (*family_metrics("mosi")[1:], "rmse")
    assert "RMSE" in results_markdown(read_results(tmp_path))
