"""The benchmark of retrieval runs at toy size, and its recall and its keys are what they say they are."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import retrieval
from benchmarks.retrieval import Setting, clustered, found_share, main, markdown, measure

pytest.importorskip("faiss")
SETTING = Setting(
    sizes=(200, 400),
    indexes=("Flat", "HNSW8", "IVF{lists},Flat"),
    width=16,
    queries=6,
    batch_size=4,
    single_queries=2,
    embedding_dim=3,
    latent_shape=(2, 2),
    repeats=2,
)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return measure(SETTING)


def test_recall_is_the_share_of_the_exact_ones_that_was_found() -> None:
    exact = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    found = np.array([[3, 2, 1, 0], [4, 9, -1, -1]])
    assert found_share(found, exact) == (4 + 1) / 8


def test_keys_are_units_in_clusters_that_queries_share() -> None:
    keys, queries = clustered(4000, 64, seed=1), clustered(50, 64, seed=2)
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-6)
    assert np.linalg.matrix_rank(keys, tol=1e-3) == 32
    np.testing.assert_array_equal(clustered(50, 64, seed=2), queries)
    # What has no cluster, in the same dimensions, is farther from its nearest key.
    draw = np.random.default_rng(9).standard_normal((50, 32), dtype=np.float32)
    alone = draw @ np.linalg.svd(keys[:500], full_matrices=False)[2][:32]
    alone /= np.linalg.norm(alone, axis=1, keepdims=True)
    assert (queries @ keys.T).max(axis=1).mean() > (alone @ keys.T).max(axis=1).mean() + 0.02


def test_every_measurement_has_all_numbers(content: dict[str, Any]) -> None:
    assert list(content["measured"]) == ["200", "400"]
    for entries, factories in (("200", ["Flat", "HNSW8", "IVF14,Flat"]), ("400", ["Flat", "HNSW8", "IVF20,Flat"])):
        measured = content["measured"][entries]
        assert list(measured) == factories
        flat, graph, lists = measured.values()
        assert flat["searches"][0]["recall"] == 1 and flat["searches"][0]["effort"] == {}
        assert flat["index_bytes"] == int(entries) * 16 * 4 < graph["index_bytes"]
        assert [search["effort"] for search in graph["searches"]] == [{"ef_search": 2**n} for n in (4, 6, 8)]
        assert [search["effort"] for search in lists["searches"]] == [{"nprobe": 4**n} for n in (0, 2, 3)]
        assert lists["searches"][0]["recall"] < lists["searches"][2]["recall"] == 1
        for search in (search for found in measured.values() for search in found["searches"]):
            for values in (search["batch_per_second"], search["single_per_second"]):
                assert 0 < values["low"] <= values["median"] <= values["high"]
    assert content["reading"]["entries"] == 200
    # Plan, observation, latents of three modalities, each of 4 bytes, and the files' own.
    assert 4 * (2 * 3 + 3 * 4) < content["reading"]["bytes_per_entry"] < 100
    json.dumps(content)


def test_command_line_writes_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]
) -> None:
    monkeypatch.setattr(retrieval, "measure", lambda setting: content | {"asked": dataclasses.asdict(setting)})
    main(["--sizes", "30", "50", "--quick", "--output", str(tmp_path)])
    asked = json.loads((tmp_path / "retrieval.json").read_text())["asked"]
    assert asked["sizes"] == [500, 1000] and asked["width"] == 16 and asked["threads"] == 1
    lines = (tmp_path / "retrieval.md").read_text().splitlines()
    assert lines[0].startswith(
        "| entries | index | effort | queries/s, 4 at a time | queries/s, one at a time | recall@10 |"
    )
    assert sum(line.startswith("| 400 | IVF20,Flat | nprobe ") for line in lines) == 3
    assert any(line.startswith("| 200 | Flat | exact | ") and " | 1.000 | " in line for line in lines)
    assert "6 queries of the same kind (2 of them one at a time), the 10 nearest of each" in markdown(content)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--width", "0"], "--width is 0; give at least 1"),
        (["--sizes", "9"], "--sizes has 9; give at least 20 entries"),
    ],
)
def test_command_line_refuses_nonsense(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(options)
    assert words in capsys.readouterr().err
