"""Writing files so that nothing is ever half-written: a temporary sibling first, then a rename; and one writer at a time."""

import contextlib
import glob
import json
import logging
import math
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import MsaError

LOCK_FILE = ".hf_msa.lock"
_OWNER_FILE = f"{LOCK_FILE}.json"

# Temporaries say who made them, so that those of a process that was killed are known and removed.
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-.*")
# What safetensors writes beside a file that it is about to replace.
_OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
_OLD = ".old"
_FILES = "files"
# Resolved: tempfile gives whole paths since Python 3.12, and a folder may be looked through by another name.
_in_use: set[Path] = set()


def _prefix(name: str) -> str:
    return f".{name}.tmp-{_HOST}-{os.getpid()}-"


@contextlib.contextmanager
def _used(temporary: Path) -> Iterator[Path]:
    """Keep a temporary from being taken for a left-over while it is in use."""
    resolved = temporary.resolve()
    _in_use.add(resolved)
    try:
        yield temporary
    finally:
        _in_use.discard(resolved)


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove_leftovers(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove temporaries that commands which were killed have left; those of processes that still run stay.

    A folder that was about to be replaced is put back if nothing has taken its place.

    Args:
        folder: Where to look.
        name: Of which file or folder in it; default: of all, in folders within, too, and those of safetensors, which do
            not say whose they are: the caller holds the folder's lock.
    """
    place = Path(folder)
    for path in list(place.rglob(".tmp*")) if name is None else ():
        if _OF_SAFETENSORS.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    found = place.rglob(".*.tmp-*") if name is None else place.glob(f".{glob.escape(name)}*.tmp-*")
    for path in list(found):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or match["host"] != _HOST or path.resolve() in _in_use:
            continue
        pid = int(match["pid"])
        if pid != os.getpid() and _is_running(pid):
            continue
        target = match["name"].removesuffix(_OLD)
        if name is not None and target != name:
            continue
        before = path / target
        if match["name"].endswith(_OLD) and before.exists() and not path.with_name(target).exists():
            before.replace(path.with_name(target))
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], wait: float = 0.0) -> Iterator[None]:
    """Keep a folder from other commands that would write to it; created where absent, taken away again if it stays empty.

    The system lets go of the lock of a process that ends in any way; what a killed one left is taken over with a warning.

    Args:
        folder: The folder.
        wait: Seconds to wait for another command.

    Raises:
        MsaError: If another command holds it, or one on another machine did not let go of it.
    """
    from filelock import FileLock, Timeout

    place = Path(folder)
    made = [path for path in (place, *place.parents) if not path.exists()]
    place.mkdir(parents=True, exist_ok=True)
    owner = place / _OWNER_FILE
    lock = FileLock(place / LOCK_FILE)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise MsaError(
            f"{str(place)!r} is in use by {_owner_of(owner)}; wait until that is done, or choose another folder."
        ) from None
    try:
        if owner.is_file():
            if _read_owner(owner).get("host") not in (None, platform.node()):
                raise MsaError(
                    f"{str(place)!r} was last in use by {_owner_of(owner)}, and nothing here says whether that still runs; "
                    f"if it does not, delete {str(owner)!r} and give the command again."
                )
            logging.getLogger(__name__).warning(
                "%s was in use by %s, which has ended without letting go of it; it is taken over.",
                place,
                _owner_of(owner),
            )
        write_json(owner, {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):
            # Whoever has opened it by now sees that it is gone, and makes a new one.
            (place / LOCK_FILE).unlink()
        lock.release()
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _read_owner(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = dict(read_json(file))
    except (OSError, TypeError, ValueError):
        return {}
    return found


def _owner_of(file: Path) -> str:
    owner = _read_owner(file)
    pid, host, since = (owner.get(name, "unknown") for name in ("pid", "host", "since"))
    return f"another command (process {pid} on {host}, since {since})"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it replaces `path`, on an error it is removed.

    Args:
        path: The file to write. Its folder is created where absent.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_prefix(target.name), suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _used(temporary):
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

    Args:
        path: What is being made. Its folder is created where absent.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, target.name)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(target.name), dir=target.parent))
    try:
        with _used(temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on a clean exit it takes the place of `path`, on an error it is removed.

    Args:
        path: The folder to write. An existing one is replaced only after the new one is complete.
    """
    target = Path(path)
    with scratch_directory(target) as temporary:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=_prefix(f"{target.name}{_OLD}"), dir=target.parent))
            target.replace(old / target.name)
            try:
                temporary.replace(target)
            except BaseException:
                (old / target.name).replace(target)
                old.rmdir()
                raise
            shutil.rmtree(old)
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
    remove_leftovers(target, _FILES)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(_FILES), dir=target))
    try:
        with _used(temporary):
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
    """Write `value` as indented JSON, keys in their given order, atomically; `read_json` gives it back.

    JSON has no word for numbers that are not finite. Infinite ones, which a setting may be, are written as transformers does
    in configurations; one that is not a number is no result, and refused.

    Raises:
        MsaError: If there is one that is not a number.
    """
    try:
        text = json.dumps(_tagged(value), indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise MsaError(
            f"{os.fspath(path)!r} would hold a value that is not a number (NaN); it is not written."
        ) from error
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what `write_json` wrote.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is damaged.
    """
    return json.loads(
        Path(path).read_text(encoding="utf-8"),
        object_hook=lambda found: float(found[_TAG]) if found.keys() == {_TAG} else found,
    )


_TAG = "__float__"


def _tagged(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return {_TAG: "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Mapping):
        return {key: _tagged(item) for key, item in value.items()}
    return [_tagged(item) for item in value] if isinstance(value, list | tuple) else value
