"""Tables of what hf_msa knows by name, open to packages of others: methods, data sets, protocols, label families, tools.

A package adds to them when it is imported, by `register_method` and its like. It is imported by itself where it says so in
its `pyproject.toml`, with an entry point that names the module which registers::

    [project.entry-points."hf_msa.methods"]
    mymethod = "hf_msa_mymethod"
"""

import functools
import importlib.metadata
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from .errors import MsaError, reason, unknown_name

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
Entry = TypeVar("Entry")


@functools.cache
def installed() -> importlib.metadata.EntryPoints:
    """The entry points of all installed packages, looked for once per process: it takes some milliseconds."""
    # Before Python 3.12 the type is another one, which selects in the same way.
    return cast("importlib.metadata.EntryPoints", importlib.metadata.entry_points())


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name, in the order in which they were registered.

    Args:
        kind: What an entry is, as messages call it, e.g. `"method"`.
        group: The entry-point group of packages that add to it.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, Entry] = {}
        self._loaded: set[str] = set()

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry.

        Args:
            name: Lower-case letters, digits, `-` and `_`, beginning with a letter.
            entry: What the name stands for.

        Returns:
            The entry.

        Raises:
            MsaError: If the name is of another form, or taken.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise MsaError(
                f"{name!r} cannot be the name of a {self.kind}; use lower-case letters, digits, '-' and '_', a letter first."
            )
        if name in self._entries:
            raise MsaError(f"There is a {self.kind} {name!r} already; choose another name.")
        self._entries[name] = entry
        return entry

    def find(self, name: str) -> Entry:
        """The entry of a name that a user gave.

        Raises:
            MsaError: If there is none; the nearest name is given.
        """
        if not isinstance(name, str) or name not in self:
            raise unknown_name(self.kind, str(name), self)
        return self[name]

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            self._load_packages()
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            self._load_packages()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load_packages()
        return iter(list(self._entries))

    def __len__(self) -> int:
        self._load_packages()
        return len(self._entries)

    def _load_packages(self) -> None:
        """Import the packages that add to this registry, each once; one that fails is named and left out."""
        for point in installed().select(group=self.group):
            module = sys.modules.get(point.module)
            is_being_imported = getattr(getattr(module, "__spec__", None), "_initializing", False)
            # A package that imports hf_msa comes by here in the middle of its own import, and registers when it goes on.
            if point.value in self._loaded or is_being_imported:
                continue
            self._loaded.add(point.value)
            try:
                point.load()
            except Exception as error:
                warnings.warn(
                    f"The package behind {point.name!r} ({point.value}) cannot add its {self.kind}: "
                    f"{type(error).__name__}: {reason(error)}.",
                    stacklevel=2,
                )
