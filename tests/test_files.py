"""Files appear whole or not at all, with the permissions of any new file, and leave no temporary behind."""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from hf_msa import files
from hf_msa.errors import MsaError
from hf_msa.files import atomic_directory, atomic_files, atomic_write, read_json, remove_leftovers, write_json


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def content(folder: Path) -> dict[str, str | None]:
    """Everything in a folder, hidden files too: relative path -> text, None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_there_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "result.json"
    with atomic_write(target) as temporary:
        temporary.write_text("content")
        assert temporary.parent == target.parent and temporary.suffix == ".json" and not target.exists()
    assert content(tmp_path) == {"new": None, "new/result.json": "content"}


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("half")
        assert target.read_text() == "old"
    assert target.read_text() == "half"


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("atomic", [atomic_write, atomic_directory, atomic_files])
def test_an_error_inside_changes_nothing(
    tmp_path: Path, raised: type[BaseException], atomic: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    target = tmp_path / "x"
    if atomic is atomic_write:
        target.write_text("old")
    else:
        target.mkdir()
        (target / "a.txt").write_text("old")
    before = content(tmp_path)
    with pytest.raises(raised), atomic(target) as temporary:
        (temporary if temporary.is_file() else temporary / "a.txt").write_text("new")
        raise raised
    assert content(tmp_path) == before


@pytest.mark.parametrize("atomic", [atomic_write, atomic_directory, atomic_files])
def test_an_error_inside_makes_nothing(tmp_path: Path, atomic: Callable[[Path], AbstractContextManager[Path]]) -> None:
    with pytest.raises(OSError, match="No space"), atomic(tmp_path / "x"):
        full_disk()
    assert content(tmp_path) == {}


def test_a_disk_that_turns_out_full_when_flushed_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "a.json", {"value": 1})
    monkeypatch.setattr("hf_msa.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_json(tmp_path / "a.json", {"value": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"value": 1}
    assert list(content(tmp_path)) == ["a.json"]


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, mask: int, file_mode: int, folder_mode: int) -> None:
    with umask(mask):
        write_json(tmp_path / "a.json", {})
        with atomic_directory(tmp_path / "folder"):
            pass
        assert os.umask(mask) == mask, "the process keeps its mask"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == file_mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder_mode


def test_a_folder_takes_the_place_of_the_old_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with atomic_directory(target) as temporary:
        (temporary / "new.txt").write_text("new")
        assert content(target) == {"old.txt": "old"}
    assert content(tmp_path) == {"x": None, "x/new.txt": "new"}


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    target.mkdir()
    (target / "old.txt").write_text("old")
    replace = Path.replace

    def fails_for_the_new_one(self: Path, other: Path) -> Path:
        if (self / "new.txt").exists():
            full_disk()
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", fails_for_the_new_one)
    with pytest.raises(OSError, match="No space"), atomic_directory(target) as temporary:
        (temporary / "new.txt").write_text("new")
    assert content(tmp_path) == {"x": None, "x/old.txt": "old"}


def test_several_files_appear_together_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / "a.txt").write_text("old")
    with atomic_files(tmp_path) as work:
        (work / "a.txt").write_text("new")
        (work / "b.txt").write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old" and not (tmp_path / "b.txt").exists()
    assert content(tmp_path) == {"a.txt": "new", "b.txt": "new", "kept.txt": "kept"}


def test_the_file_that_was_written_last_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    replace = Path.replace

    def recorded(self: Path, other: Path) -> Path:
        order.append(self.name)
        return replace(self, other)

    with atomic_files(tmp_path) as work:
        for number, name in enumerate(("z", "m", "a")):
            (work / name).write_text(name)
            os.utime(work / name, ns=(number, number))
        monkeypatch.setattr(Path, "replace", recorded)
    assert order == ["z", "m", "a"]


def test_json_keeps_order_and_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "情感", "a": [1, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "b": "情感",\n  "a": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text


def test_json_has_no_word_for_what_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(MsaError, match="'.*a.json' would hold a value that is not a number"):
        write_json(tmp_path / "a.json", {"loss": [1.0, float("nan")]})
    assert not list(tmp_path.iterdir())
    settings = {"tau": float("inf"), "low": [-float("inf"), 1.0], "name": {"x": None}}
    write_json(tmp_path / "a.json", settings)
    assert json.loads((tmp_path / "a.json").read_text())["tau"] == {"__float__": "Infinity"}
    assert read_json(tmp_path / "a.json") == settings


def left(folder: Path, name: str, host: str | None = None, pid: int = 2**22 + 1) -> Path:
    """A temporary as a process leaves it that was killed; no system gives such a number to one."""
    return folder / f".{name}.tmp-{host or files._HOST}-{pid}-abc"


def test_temporaries_of_killed_processes_are_removed_and_others_stay(tmp_path: Path) -> None:
    dead, elsewhere, alive = left(tmp_path, "a.json"), left(tmp_path, "b", host="00000000"), left(tmp_path, "c", pid=1)
    (tmp_path / "in").mkdir()
    deep = left(tmp_path / "in", "d.bin")
    for path in (dead, elsewhere, alive, deep, tmp_path / ".hidden", tmp_path / ".notes.tmp-1"):
        path.write_text("half")
    with atomic_write(tmp_path / "e") as used:
        remove_leftovers(tmp_path)
        assert used.exists()
    assert set(content(tmp_path)) == {elsewhere.name, alive.name, ".hidden", ".notes.tmp-1", "e", "in"}


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    """Killed after the old folder went aside and before the new one took its place."""
    aside = left(tmp_path, "x.old")
    (aside / "x").mkdir(parents=True)
    (aside / "x" / "old.txt").write_text("old")
    with pytest.raises(OSError, match="No space"), atomic_directory(tmp_path / "x"):
        full_disk()
    assert content(tmp_path) == {"x": None, "x/old.txt": "old"}


def test_writing_a_folder_removes_only_its_own_left_overs(tmp_path: Path) -> None:
    own, other = left(tmp_path, "x"), left(tmp_path, "xy")
    own.mkdir()
    other.mkdir()
    with atomic_directory(tmp_path / "x"):
        pass
    assert set(content(tmp_path)) == {"x", other.name}


def test_what_safetensors_leaves_when_it_is_killed_is_removed(tmp_path: Path) -> None:
    names = (".tmpvpKY6w", "stages/.tmpA1b2C3", ".tmpnotes", ".tmp-a.b-c", "model.safetensors")
    (tmp_path / "stages").mkdir()
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "model.safetensors")
    assert all((tmp_path / name).exists() for name in names)
    remove_leftovers(tmp_path)
    assert [name for name in names if not (tmp_path / name).exists()] == [".tmpvpKY6w", "stages/.tmpA1b2C3"]


@pytest.mark.parametrize("made", ["in/x", "other/x", "whole"])
@pytest.mark.parametrize("looked", ["in", "other", "whole"])
@pytest.mark.parametrize("atomic", [atomic_write, atomic_directory, atomic_files])
def test_what_is_in_use_stays_whatever_its_folder_is_called(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: str,
    looked: str,
    atomic: Callable[[Path | str], AbstractContextManager[Path]],
) -> None:
    """A relative path, a link and a whole path."""
    (tmp_path / "in").mkdir()
    (tmp_path / "other").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    with atomic(tmp_path / "in/x" if made == "whole" else made) as used:
        remove_leftovers(tmp_path / "in" if looked == "whole" else looked)
        assert used.exists()
