"""Predictions of other programs: the same numbers as our own, and one sentence for what is wrong with them."""

import csv
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_msa.data.loading import load_split
from hf_msa.data.rows import MsaRows
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.evaluation.compare import compare_runs
from hf_msa.evaluation.foreign import evaluate_predictions, read_foreign
from hf_msa.evaluation.report import caption, run_name
from hf_msa.evaluation.results import build_results, predictions_table, read_results, write_results
from made_results import EvaluationFacts
from nonempty import some


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7, version=1))


@pytest.fixture(scope="module")
def test_rows(corpus: str) -> MsaRows:
    return MsaRows(load_split(corpus, "test"), "test")


def predictions(rows: MsaRows, **columns: Any) -> dict[str, list[Any]]:
    """A table whose predictions are a half above each label."""
    labels = rows.labels.tolist()
    return {"id": list(rows.ids), "prediction": [label + 0.5 for label in labels], "label": labels} | columns


def write_csv(path: Path, columns: dict[str, list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def test_numbers_by_hand(tmp_path, corpus, test_rows):
    file = write_csv(tmp_path / "theirs.csv", predictions(test_rows))
    found = evaluate_predictions(file, corpus, tmp_path / "out", name="theirs")
    assert found.content["mean_over_rates"]["mae"]["mean"] == pytest.approx(0.5)
    assert found.content["mean_over_rates"]["mae"]["ci_low"] == pytest.approx(0.5)
    assert found.content["protocol"]["name"] == "complete" and found.content["foreign"] == "theirs.csv"
    assert read_results(tmp_path / "out") == found.content
    assert run_name(found.content) == "theirs [foreign]"
    assert "predictions that another program made (theirs.csv)" in caption(found.content)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_beside_a_run_of_ours(tmp_path, corpus, test_rows, ending):
    """Rates of arithmetic, rows in any order and seeds of one's own compare with a result that our models wrote."""
    rates = (0.0, 0.1, 0.3)
    parts = [
        {"id": test_rows.ids, "training_seed": seed, "mask_seed": 1111, "rate": rate, "label": test_rows.labels}
        | {"prediction": test_rows.labels + rate + seed}
        for seed in (1, 2)
        for rate in rates
    ]
    table = predictions_table(parts)
    facts = EvaluationFacts(
        method="tcmr",
        dataset={"name": "sample", "split": "test", "label_family": "mosi"},
        protocol={"name": "frame", "rate_sampler": "uniform", "rate_range": None},
    )
    columns = table.to_pydict() | {"rate": [0.1 + 0.2 if rate == 0.3 else rate for rate in table["rate"].to_pylist()]}
    columns = {name: values[::-1] for name, values in columns.items()}
    file = tmp_path / f"theirs.{ending}"
    if ending == "csv":
        write_csv(file, columns)
    else:
        pq.write_table(pa.table(columns), file)
    theirs = evaluate_predictions(file, corpus, tmp_path / "theirs", name="lnln", protocol="frame").content
    facts.protocol, facts.dataset = {"name": "frame"}, theirs["dataset"]
    facts.protocol |= {key: value for key, value in theirs["protocol"].items() if key not in ("rates", "mask_seeds")}
    write_results(tmp_path / "ours", build_results(table, facts), table)
    assert theirs["protocol"]["rates"] == list(rates)
    comparison = compare_runs([tmp_path / "ours", tmp_path / "theirs"])
    assert comparison.names == ("tcmr", "lnln [foreign]") and comparison.notes == ()
    assert all(cell.p_value == 1 for cell in some(comparison.differences)[0].values() if cell.p_value is not None)
    assert comparison.differences[0]["mae"].value == 0


def test_patterns_are_arranged_as_ours(tmp_path, corpus, test_rows):
    table = predictions(test_rows, pattern=["audio+text"] * len(test_rows))
    audio = predictions(test_rows, pattern=["audio"] * len(test_rows))
    both = {name: values + audio[name] for name, values in table.items()}
    found = evaluate_predictions(write_csv(tmp_path / "a.csv", both), corpus, tmp_path / "out", name="theirs")
    assert found.content["protocol"]["name"] == "fixed"
    assert found.content["protocol"]["rates"] == ["audio", "text+audio"]


def damaged(columns: dict[str, list[Any]], name: str, value: Any) -> dict[str, list[Any]]:
    return columns | {name: [value, *columns[name][1:]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {k: v for k, v in c.items() if k != "label"}, "lacks the column 'label'; it needs id, prediction"),
        (lambda c: {k: v[:0] for k, v in c.items()}, "has no rows"),
        (lambda c: {k: [*v, v[0]] for k, v in c.items()}, "twice at 0.0; give one prediction"),
        (lambda c: {k: v[1:] for k, v in c.items()}, r"lacks 1 of the \d+ ids of the test split, e.g. '.*', at 0.0"),
        (lambda c: damaged(c, "id", "nobody"), "has the id 'nobody', which is not in the test split"),
        (lambda c: damaged(c, "label", c["label"][0] + 0.1), "and the data .*; give the labels of the data"),
        (lambda c: damaged(c, "prediction", "nan"), "has no value for id .* in row 1; give a finite value"),
        (lambda c: damaged(c, "prediction", "inf"), "has inf for id .* in row 1; give a finite value"),
        (lambda c: damaged(c, "prediction", "good"), "'prediction' of .* must hold numbers"),
        (lambda c: damaged(c, "id", ""), "The column 'id' of .* has no value in row 1"),
        (lambda c: c | {"rate": [0.5] * len(c["id"])}, "say nothing of how data were missing; give the protocol as"),
        (lambda c: c | {"rate": [1.5] * len(c["id"])}, "The missing rate is 1.5; give a number from 0 to 1"),
        (lambda c: c | {"pattern": ["text+smell"] * len(c["id"])}, "must name the modalities that are there"),
        (lambda c: c | {"rate": c["label"], "pattern": c["id"]}, "has the columns rate, pattern at once"),
        (lambda c: c | {"training_seed": ["x"] * len(c["id"])}, "'training_seed' of .* must hold whole numbers"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, corpus, test_rows, change, message):
    file = write_csv(tmp_path / "theirs.csv", change(predictions(test_rows)))
    with pytest.raises(MsaError, match=message) as error:
        evaluate_predictions(file, corpus, tmp_path / "out", name="theirs")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_rates_that_a_protocol_does_not_have(tmp_path, corpus, test_rows):
    file = write_csv(tmp_path / "theirs.csv", predictions(test_rows, pattern=["text"] * len(test_rows)))
    with pytest.raises(MsaError, match="has predictions at 'text', and the protocol 'frame' tests"):
        evaluate_predictions(file, corpus, tmp_path / "out", name="theirs", protocol="frame")
    file = write_csv(tmp_path / "theirs.csv", predictions(test_rows, rate=[0.3] * len(test_rows)))
    evaluate_predictions(file, corpus, tmp_path / "a", name="theirs", protocol="frame")
    file = write_csv(tmp_path / "theirs.csv", predictions(test_rows, rate=[0.5] * len(test_rows)))
    evaluate_predictions(file, corpus, tmp_path / "b", name="theirs", protocol="frame")
    with pytest.raises(MsaError, match=r"differ in the protocol's rates \(\[0.3\] against \[0.5\]\)"):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_files_that_are_no_tables(tmp_path, corpus):
    with pytest.raises(MsaError, match="There is no file"):
        read_foreign(tmp_path / "absent.csv")
    for name, content in (("a.parquet", b"PAR1 and no more"), ("a.csv", b'id,"prediction\n\xff'), ("b.csv", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MsaError, match=r"cannot be read as a table|lacks the column"):
            read_foreign(tmp_path / name)


_NUMBERS = st.one_of(st.floats(width=32), st.sampled_from([None, "", "x", 1e400, True]))
_ROWS = st.lists(
    st.tuples(st.text(max_size=3), _NUMBERS, _NUMBERS, st.one_of(_NUMBERS, st.sampled_from(["text", "audio+text"]))),
    max_size=4,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_ROWS, names=st.permutations(["id", "prediction", "label", "rate", "pattern", "mask_seed"]))
def test_the_reader_gives_finite_numbers_or_one_sentence(tmp_path, rows, names):
    """Whatever a CSV holds, the reader gives as many rows as it has, or says in a sentence what is wrong."""
    file = tmp_path / "any.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([names[:4], *rows])
    try:
        table = read_foreign(file)
    except MsaError as error:
        assert "\n" not in str(error)
        return
    assert set(table.column_names) == {"id", "prediction", "label", "setting", "training_seed", "mask_seed"}
    for name in ("prediction", "label"):
        assert all(math.isfinite(value) for value in table[name].to_pylist())
    for setting in table["setting"].to_pylist():
        assert setting in ("text", "text+audio") if isinstance(setting, str) else 0 <= setting <= 1


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=4), st.floats(-3, 3)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_reader_keeps_what_is_written(tmp_path, rows):
    ids, values = map(list, zip(*rows, strict=True))
    columns = {"id": ids, "prediction": values, "label": values}
    pq.write_table(pa.table(columns), tmp_path / "any.parquet")
    table = read_foreign(tmp_path / "any.parquet")
    assert {name: table[name].to_pylist() for name in columns} == columns
    assert read_foreign(write_csv(tmp_path / "any.csv", columns)).column("id").to_pylist() == ids
