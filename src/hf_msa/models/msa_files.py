"""The list of a checkpoint's files, with sizes and digests: by it a copy that lacks something is told from a whole one."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

FILES_LIST = "hf_msa_files.json"
"""Name of the list in the folder of a saved model. Checkpoints of earlier versions have none, and are not checked."""

# What people edit in a checkpoint by hand; cut off, it cannot be parsed.
_EDITED = (".json", ".py", ".txt", ".jinja")

FileFacts = Mapping[str, Mapping[str, Any]]
"""Of files by their paths within a folder, `size` in bytes and `sha256`."""


def file_facts(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Sizes and digests of some files of a folder, in the order of their names."""
    facts: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            facts[name] = {"size": os.fstat(file.fileno()).st_size, "sha256": digest}
    return facts


def file_fault(folder: Path, facts: FileFacts, digests: bool = False) -> str | None:
    """Say what is wrong with the files of a folder.

    Args:
        folder: The folder.
        facts: What was written to it.
        digests: Whether to read all of them, about a second per gigabyte. Otherwise sizes are looked at alone, and not those
            of text files, which people edit.

    Returns:
        For example ``"'tokenizer.json' is missing"``; None where everything is as it was written.
    """
    for name, expected in facts.items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            return f"{name!r} is missing"
        if size != expected["size"] and (digests or not size or not name.endswith(_EDITED)):
            return f"{name!r} has {size} bytes instead of {expected['size']}"
        if digests and file_facts(folder, [name])[name] != expected:
            return f"{name!r} has other content than was written"
    return None


def read_list(file: Path) -> dict[str, dict[str, Any]]:
    """The files of a checkpoint, by its list; empty where there is none, or it cannot be read."""
    try:
        files: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return files


def note_files(folder: Path, patterns: Iterable[str]) -> None:
    """Put the files of a folder that match some patterns on its list, in the place of those that matched before.

    Model and processor are saved one after the other into one folder: each notes its own.

    Args:
        folder: The checkpoint's folder.
        patterns: Paths within it, `*` for any part of a name.
    """
    patterns = list(patterns)
    others = {name: facts for name, facts in read_list(folder / FILES_LIST).items() if not _matches(name, patterns)}
    own = {
        path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern) if path.is_file()
    }
    files = dict(sorted({**others, **file_facts(folder, own - {FILES_LIST})}.items()))
    temporary = folder / f".{FILES_LIST}.tmp"
    temporary.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / FILES_LIST)


def check_files(checkpoint: str, patterns: Iterable[str], subfolder: str = "") -> None:
    """Check that a folder holds all that its list names, each file in its full size; a name on the Hub is left alone.

    Args:
        checkpoint: A folder; nothing happens for anything else, or where it has no list.
        patterns: Which of the files are looked at.
        subfolder: Folder within the checkpoint.

    Raises:
        ValueError: Naming the file that is missing or cut off.
    """
    folder = Path(checkpoint, subfolder)
    patterns = list(patterns)
    listed = {name: facts for name, facts in read_list(folder / FILES_LIST).items() if _matches(name, patterns)}
    fault = file_fault(folder, listed)
    if fault is not None:
        raise ValueError(
            f"The checkpoint {os.fspath(checkpoint)!r} is not whole: {fault}; copy all of it again, or save it anew."
        )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
