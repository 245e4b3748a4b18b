"""Writing files so that nothing is ever half-written: a temporary sibling first, then a rename."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_LOCK = ".hf_msa_lock"
_OLD = "old"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it replaces `path`, on an error it is removed.

    Args:
        path: The file to write. Its folder is created where absent.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        # mkstemp makes the file private; a result should carry the permissions that any new file would.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(file: Path) -> None:
    """Have the content of a file on the disk before its name says that it is there."""
    with file.open("rb") as written:
        os.fsync(written.fileno())


@contextlib.contextmanager
def scratch_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a hidden folder beside `path` for what becomes of it; it is removed in the end.

    What killed processes left of the same kind is removed first. A lock, which the system lets go when a process ends, says
    which are still in use.

    Args:
        path: What is being made. Its folder is created where absent.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(target)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    lock = FileLock(scratch / _LOCK)
    try:
        with lock:
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_left_overs(target: Path) -> None:
    name = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}")
    for folder in target.parent.iterdir():
        if name.fullmatch(folder.name) and (folder / _LOCK).is_file():
            with contextlib.suppress(Timeout, OSError), FileLock(folder / _LOCK, timeout=0):
                # Killed between the two renames: the old folder is all that there is.
                if (folder / _OLD).exists() and not target.exists():
                    (folder / _OLD).replace(target)
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on a clean exit it takes the place of `path`, on an error it is removed.

    Args:
        path: The folder to write. An existing one is replaced only after the new one is complete.
    """
    target = Path(path)
    with scratch_directory(target) as scratch:
        temporary = scratch / "new"
        temporary.mkdir()
        yield temporary
        if target.exists():
            target.replace(scratch / _OLD)
            try:
                temporary.replace(target)
            except BaseException:
                (scratch / _OLD).replace(target)
                raise
        else:
            temporary.replace(target)


@contextlib.contextmanager
def atomic_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder in `folder`; on a clean exit its files move up, all of them, on an error none does.

    Args:
        folder: Where the files shall be, in the place of others of the same names. It is created where absent, and taken
            away again on an error.
    """
    target = Path(folder)
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=target))
    try:
        yield temporary
        # In the order in which they were written: what was written last says that everything is there.
        for file in sorted(temporary.iterdir(), key=lambda path: path.stat().st_mtime_ns):
            _sync(file)
            file.replace(target / file.name)
        temporary.rmdir()
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):
                target.rmdir()
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, keys in their given order, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
