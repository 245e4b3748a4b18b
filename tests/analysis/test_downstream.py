"""Worth of completed data sets: versions by hand, and a recipe trained on all of them."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_msa.analysis import run_tool
from hf_msa.analysis.common.downstream import MADE, MEAN, MISSING, score_summary, seed_rows, versions_of
from hf_msa.data.loading import load_split
from hf_msa.data.rows import MsaRows
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.models.msa_label_families import BUILT_IN
from nonempty import some


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7)


def complete(corpus: Path, folder: Path, every: int = 3) -> Path:
    """The corpus as if the pictures of every so many rows, and no others, had been generated, and rightly."""
    shutil.copytree(corpus, folder)
    for file in folder.glob("data/*.parquet"):
        table = pq.read_table(file)
        flags = {"audio_generated": [False] * len(table)}
        flags["vision_generated"] = [number % every == 0 for number in range(len(table))]
        for column, values in {
            **flags,
            "audio_present": [True] * len(table),
            "vision_present": [True] * len(table),
        }.items():
            if column in table.column_names:
                table = table.drop_columns([column])
            table = table.append_column(column, pa.array(values))
        pq.write_table(table.replace_schema_metadata(None), file)
    return folder


@pytest.fixture(scope="module")
def completed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete(corpus, tmp_path_factory.mktemp("completed") / "tiny")


def test_what_is_left_and_means_of_it(corpus: Path, completed: Path) -> None:
    whole = MsaRows(load_split(str(corpus), "train"), "train")
    versions = versions_of(str(corpus), str(completed))
    made, left, means = (versions.rows(version)["train"] for version in (MADE, MISSING, MEAN))
    truth = [whole[number]["vision"] for number in range(len(whole))]
    observed = [one for number, one in enumerate(truth) if number % 3]
    for number, features in some(enumerate(truth)):
        assert np.array_equal(made[number]["vision"], features)
        assert left[number]["vision_present"] == (number % 3 != 0) and left[number]["audio_present"]
        filled = means[number]["vision"]
        assert means[number]["vision_present"] and filled.dtype == np.float32
        if number % 3:
            assert np.array_equal(filled, features)
            continue
        alike = [one for one in observed if len(one) == len(features)]
        # Where too few have that length, the mean at a position is over all lengths.
        expected = np.mean([one[0] for one in (alike if len(alike) >= 5 else observed)], axis=0)
        np.testing.assert_allclose(filled[0], expected, rtol=1e-4, atol=1e-5)
    held_out = versions.rows(MEAN)["validation"][0]["vision"]
    np.testing.assert_allclose(held_out, versions.means["vision"](len(held_out)), rtol=1e-5)


def test_rows_that_are_none_of_this_data_are_refused(corpus: Path, completed: Path, tmp_path: Path) -> None:
    other = write_sample_corpus(tmp_path / "other", preset="tiny", seed=8, clips_per_video=2)
    with pytest.raises(MsaError, match="are not those of"):
        versions_of(str(other), str(completed))
    with pytest.raises(MsaError, match="No training row of .* has generated features"):
        versions_of(str(corpus), str(corpus))


def test_means_need_something_that_was_observed(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(MsaError, match="vision was generated in all training rows"):
        versions_of(str(corpus), str(complete(corpus, tmp_path / "all", every=1)))


def test_numbers_by_hand() -> None:
    """Errors of 1 and 0 in two seeds against errors of 2: 0.5, and 1.5 less."""
    labels = np.array([1.0, -1.0, 2.0, -2.0])
    scores = {"ridge/mosi": {MISSING: np.stack([labels + 2, labels + 2]), MADE: np.stack([labels + 1, labels])}}
    scores["ridge/mosi"][MEAN] = scores["ridge/mosi"][MISSING]
    rows = {row["trained on"]: row for row in score_summary(scores, labels, BUILT_IN["mosi"])}
    assert rows[MADE]["MAE"].per_seed.tolist() == [1.0, 0.0]
    assert rows[MADE]["MAE, minus that of left missing"] == "-1.500 [-1.500, -1.500]"
    assert rows[MISSING]["MAE, minus that of left missing"] is None
    assert rows[MISSING]["MAE, minus that of mean per position"].startswith("+0.000")
    table = seed_rows(scores, [5, 6], labels, BUILT_IN["mosi"])
    errors = [(row["trained on"], row["training seed"], row["mae"]) for row in table]
    assert errors[:4] == [(MISSING, 5, 2.0), (MISSING, 6, 2.0), (MADE, 5, 1.0), (MADE, 6, 0.0)]


def test_a_right_guess_is_worth_what_the_truth_is(
    corpus: Path, completed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).touch())
    given: dict[str, Any] = {
        "data": str(corpus),
        "completed": str(completed),
        "recipe": ["ridge/sample"],
        "seeds": [1],
    }
    written = run_tool("downstream", output=str(tmp_path), **given)
    assert [path.name for path in written] == ["downstream.csv", "downstream.png", "downstream.svg", "downstream.md"]
    with (tmp_path / "downstream.csv").open(encoding="utf-8", newline="") as file:
        found = {row["trained on"]: row for row in csv.DictReader(file)}
    assert found["complete"]["mae"] == found[MADE]["mae"]
    assert len({found[version]["mae"] for version in (MADE, MISSING, MEAN)}) == 3
    summary = (tmp_path / "downstream.md").read_text(encoding="utf-8")
    assert "audio in 0 % and vision in 33 % were generated" in summary or "vision in 34 %" in summary
    # What is trained is not trained again.
    runs = tmp_path / "runs" / "ridge" / "sample"
    times = {path: path.stat().st_mtime_ns for path in runs.glob("*/seed-1/run.json")}
    assert len(times) == 4
    run_tool("downstream", output=str(tmp_path), **given)
    assert times == {path: path.stat().st_mtime_ns for path in runs.glob("*/seed-1/run.json")}
