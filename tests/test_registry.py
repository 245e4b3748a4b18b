"""Tables of names: what a package registers is found, and packages are looked for once."""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_msa import registry
from hf_msa.errors import MsaError
from hf_msa.registry import Registry


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """The searches of all installed packages, none of which adds anything but `their_things`."""
    made: list[dict[str, str]] = []

    def entry_points(**wanted: str) -> importlib.metadata.EntryPoints:
        made.append(wanted)
        return importlib.metadata.EntryPoints([importlib.metadata.EntryPoint("theirs", "their_things", "test.things")])

    registry.installed.cache_clear()
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    yield made
    registry.installed.cache_clear()


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    found: Registry[int] = Registry("thing", "test.things")
    (tmp_path / "their_things.py").write_text("import test_things\ntest_things.found.register('theirs', 3)\n")
    module = type(sys)("test_things")
    module.found = found  # type: ignore[attr-defined]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_things", module)
    monkeypatch.delitem(sys.modules, "their_things", raising=False)
    return found


def test_packages_are_looked_for_once_and_new_names_are_found(
    searches: list[dict[str, str]], things: Registry[int]
) -> None:
    other: Registry[int] = Registry("other thing", "test.others")
    things.register("ours", 1)
    assert things["ours"] == 1 and not searches, "a name that is known needs no search"
    assert things["theirs"] == 3
    for name in ("their", "thers"):
        with pytest.raises(MsaError, match="Did you mean 'theirs'"):
            things.find(name)
    assert "nothing" not in other and list(things) == ["ours", "theirs"]
    things.register("later", 2)
    assert things.find("later") == 2 and len(things) == 3
    assert searches == [{}]
