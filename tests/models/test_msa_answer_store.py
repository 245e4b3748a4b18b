"""What a planner remembers: in a file that processes share, or for this process."""

import logging
import multiprocessing
import pickle
import sqlite3
from pathlib import Path

import pytest

from hf_msa.models.msa_answer_store import ANSWERS_FILE, AnswerStore


def count(store: AnswerStore) -> int:
    (number,) = store._connection().execute("SELECT COUNT(*) FROM answers").fetchone()
    return int(number)


@pytest.fixture(params=[False, True], ids=["temporary", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AnswerStore:
    return AnswerStore(tmp_path / "answers" if request.param else None)


def test_finds_what_was_added_and_nothing_else(store: AnswerStore) -> None:
    store.write({"a": b"one", "b": b"\0\xff", "empty": b""})
    assert store.read(["b", "c", "a", "b", "empty"]) == {"a": b"one", "b": b"\0\xff", "empty": b""}
    assert store.read(["c"]) == {} == store.read([]) and count(store) == 3


def test_the_first_answer_stays(store: AnswerStore) -> None:
    for answer in (b"first", b"second"):
        store.write({"a": answer})
    assert store.read("a") == {"a": b"first"}


def test_many_keys_at_once(store: AnswerStore) -> None:
    answers = {str(number): str(number).encode() for number in range(1700)}
    store.write(answers)
    assert store.read(answers) == answers


def test_two_at_once_find_what_the_other_writes(tmp_path: Path) -> None:
    first, second = AnswerStore(tmp_path), AnswerStore(tmp_path)
    assert first.read("a") == {} == second.read("a")
    first.write({"a": b"1"})
    second.write({"a": b"2", "b": b"3"})
    assert first.read("ab") == AnswerStore(tmp_path).read("ab") == {"a": b"1", "b": b"3"}


def write_many(folder: Path, begin: int) -> None:
    store = AnswerStore(folder)
    for number in range(begin, begin + 50):
        store.write({str(number): b"answer"})


def test_processes_write_into_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path, begin)) for begin in (0, 25, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert count(AnswerStore(tmp_path)) == 100


def test_can_be_handed_to_another_process(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.write({"a": b"1"})
    assert pickle.loads(pickle.dumps(store)).read("a") == {"a": b"1"}


def test_a_damaged_entry_is_asked_again(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    store.write({"a": b"1", "b": b"2"})
    with sqlite3.connect(tmp_path / ANSWERS_FILE) as connection:
        connection.execute("UPDATE answers SET value = ? WHERE key = 'a'", (b"9",))
    assert store.read("ab") == {"b": b"2"}
    store.write({"a": b"3"})
    assert store.read("a") == {"a": b"3"}


@pytest.mark.parametrize("content", [b"no database at all", b"", None])
def test_a_damaged_file_is_named_and_does_not_stop_anything(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    AnswerStore(tmp_path).write({"a": b"1"})
    file = tmp_path / ANSWERS_FILE
    if content is None:
        with sqlite3.connect(file) as connection:
            connection.execute("DROP TABLE answers")
            connection.execute("CREATE TABLE answers (other INTEGER)")
    else:
        for path in tmp_path.iterdir():
            path.unlink()
        file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        store = AnswerStore(tmp_path)
        assert store.read("a") == {}
        store.write({"a": b"2"})
        assert store.read("a") == {"a": b"2"}
    assert ("cannot be used" in caplog.text and "may be deleted" in caplog.text) == (content != b"")


def test_where_nothing_can_be_written_answers_are_kept_for_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "answers").write_text("a file")
    store = AnswerStore(tmp_path / "answers")
    store.write({"a": b"1"})
    assert store.read("a") == {"a": b"1"} and "cannot be used" in caplog.text
    assert (tmp_path / "answers").read_text() == "a file"
