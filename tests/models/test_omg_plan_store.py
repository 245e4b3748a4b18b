"""What a planner remembers: in a file that processes share, or for this process."""

import logging
import multiprocessing
import pickle
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from hf_msa.models.omg_plan_store import PLANS_FILE, PlanStore, to_half


def vector(value: float) -> np.ndarray:
    return np.full(4, value, dtype=np.float16)


def count(store: PlanStore) -> int:
    (number,) = store._connection().execute("SELECT COUNT(*) FROM plans").fetchone()
    return int(number)


@pytest.fixture(params=[False, True], ids=["temporary", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PlanStore:
    return PlanStore(tmp_path / "answers" if request.param else None)


def test_finds_what_was_added_and_nothing_else(store: PlanStore) -> None:
    store.add_vectors({"a": vector(0.1), "wide": np.arange(9, dtype=np.float16)})
    store.add_proposals({"b": (("Entity: 影片", -1.25), ("", float("-inf")))})
    assert store.proposals(["b", "c"]) == {"b": (("Entity: 影片", -1.25), ("", float("-inf")))}
    found = store.vectors(["wide", "a", "c", "a"])
    assert set(found) == {"a", "wide"} and found["a"].dtype == np.float16 and count(store) == 3
    assert np.array_equal(found["a"], vector(0.1)) and np.array_equal(found["wide"], np.arange(9))


def test_the_first_answer_stays(store: PlanStore) -> None:
    for value in (1.0, 2.0):
        store.add_vectors({"a": vector(value)})
        store.add_proposals({"b": (("plan", value),)})
    assert store.vectors(["a"])["a"][0] == 1.0 and store.proposals(["b"])["b"][0][1] == 1.0


def test_many_keys_at_once(store: PlanStore) -> None:
    keys = [str(number) for number in range(1700)]
    store.add_vectors({key: vector(float(key)) for key in keys})
    found = store.vectors(keys)
    assert len(found) == 1700 and all(found[key][0] == np.float16(key) for key in keys)


def test_is_no_view_of_a_batch(store: PlanStore) -> None:
    batch = np.stack([vector(1.0), vector(2.0)])
    store.add_vectors(dict(zip("ab", batch, strict=True)))
    batch[:] = 0
    found = store.vectors(["b"])["b"]
    assert found[0] == 2.0
    found[0] = 3.0
    assert store.vectors(["b"])["b"][0] == 2.0


def test_two_at_once_find_what_the_other_writes(tmp_path: Path) -> None:
    first, second = PlanStore(tmp_path), PlanStore(tmp_path)
    assert first.vectors(["a"]) == {} == second.vectors(["a"])
    first.add_vectors({"a": vector(1.0)})
    second.add_vectors({"a": vector(2.0), "b": vector(3.0)})
    assert [first.vectors("ab")[key][0] for key in "ab"] == [1.0, 3.0]
    assert [PlanStore(tmp_path).vectors("ab")[key][0] for key in "ab"] == [1.0, 3.0]


def write_many(folder: Path, begin: int) -> None:
    store = PlanStore(folder)
    for number in range(begin, begin + 50):
        store.add_vectors({str(number): vector(number)})


def test_processes_write_into_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, begin)) for begin in (0, 25, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert count(PlanStore(tmp_path)) == 100


def test_can_be_handed_to_another_process(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    store.add_vectors({"a": vector(1.0)})
    assert pickle.loads(pickle.dumps(store)).vectors(["a"])["a"][0] == 1.0


def test_a_damaged_entry_is_asked_again(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    store.add_vectors({"a": vector(1.0), "b": vector(2.0)})
    with sqlite3.connect(tmp_path / PLANS_FILE) as connection:
        connection.execute("UPDATE plans SET value = ? WHERE key = 'a'", (vector(9.0).tobytes(),))
    assert set(store.vectors("ab")) == {"b"}
    store.add_vectors({"a": vector(3.0)})
    assert store.vectors("a")["a"][0] == 3.0


@pytest.mark.parametrize("content", [b"no database at all", b"", None])
def test_a_damaged_file_is_named_and_does_not_stop_anything(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PlanStore(tmp_path).add_vectors({"a": vector(1.0)})
    file = tmp_path / PLANS_FILE
    if content is None:
        with sqlite3.connect(file) as connection:
            connection.execute("DROP TABLE plans")
            connection.execute("CREATE TABLE plans (other INTEGER)")
    else:
        for path in tmp_path.iterdir():
            path.unlink()
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        store = PlanStore(tmp_path)
        assert store.vectors("a") == {}
        store.add_vectors({"a": vector(2.0)})
        assert store.vectors("a")["a"][0] == 2.0
    assert ("cannot be used" in caplog.text and "may be deleted" in caplog.text) == (content != b"")


def test_what_is_too_large_for_half_precision_stays_finite() -> None:
    half = to_half(np.array([[1e9, -1e9, 0.1]], dtype=np.float32))
    assert half.dtype == np.float16 and half.tolist() == [[65504.0, -65504.0, float(np.float16(0.1))]]
