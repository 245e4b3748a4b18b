"""What language models have answered, so that nothing is asked twice: U-ACS's expert and OMG-Agent's planner share it.

A SQLite database, in a file that several processes may use at once, or a temporary one of this process. Keys are hashes of
everything that an answer depends on (see `RememberingMllm` and `Planner`), so models, data sets, seeds and ablations may
share a file, and it may be deleted at any time: what was in it is asked again.
"""

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ANSWERS_FILE = "answers.sqlite3"
_TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID"


class AnswerStore:
    """Where one looks before a model is asked, and leaves its answers.

    Of answers that two processes write to one key the first stays. A file that is damaged, or lies where nothing can be
    written, is left alone, with a warning: answers are then kept for this process.

    Args:
        folder: Where the file is; created where absent. None: a temporary database of this process.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._opened: tuple[int, sqlite3.Connection] | None = None

    def read(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Those of the answers that are known, by key."""
        answers, connection = {}, self._connection()
        for key in dict.fromkeys(keys):
            found = connection.execute("SELECT value, digest FROM answers WHERE key = ?", (key,)).fetchone()
            if found is not None and found[1] == _digest(found[0]):
                answers[key] = found[0]
            elif found is not None:
                # Not what was written: it is asked again.
                with connection:
                    connection.execute("DELETE FROM answers WHERE key = ?", (key,))
        return answers

    def write(self, answers: Mapping[str, bytes]) -> None:
        """Keep answers by their keys."""
        rows = [(key, value, _digest(value)) for key, value in answers.items()]
        with self._connection() as connection:
            connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)

    def take(self, folder: str | os.PathLike[str]) -> None:
        """Copy the answers of another folder that are not known here; if they cannot be read, none, with a warning."""
        file = Path(folder) / ANSWERS_FILE
        if not file.is_file():
            return
        connection = self._connection()
        try:
            connection.execute("ATTACH DATABASE ? AS other", (str(file),))
            try:
                with connection:
                    connection.execute("INSERT OR IGNORE INTO answers SELECT key, value, digest FROM other.answers")
            finally:
                connection.execute("DETACH DATABASE other")
        except sqlite3.DatabaseError as error:
            logging.getLogger(__name__).warning("The kept answers in %r cannot be taken (%s).", str(file), error)

    def _connection(self) -> sqlite3.Connection:
        """The database, opened once in each process: a forked one must not use its parent's."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._open())
        return self._opened[1]

    def _open(self) -> sqlite3.Connection:
        # Without a name SQLite keeps a database in memory, and in a temporary file where it grows large.
        file = "" if self.folder is None else str(self.folder / ANSWERS_FILE)
        connection = None
        try:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(file, timeout=60.0, check_same_thread=False)
            # Readers and a writer do not wait for each other.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            with connection:
                connection.execute(_TABLE)
                connection.execute("SELECT key, value, digest FROM answers LIMIT 1").fetchone()
        except (OSError, sqlite3.DatabaseError) as error:
            if connection is not None:
                connection.close()
            logging.getLogger(__name__).warning(
                "The kept answers in %r cannot be used (%s); what is in them is asked again, and the file may be deleted.",
                file,
                error,
            )
            connection = sqlite3.connect("", check_same_thread=False)
            connection.execute(_TABLE)
        return connection

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def content_hash(value: Any) -> str:
    """A hash of plain JSON values, for keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=8).digest()
