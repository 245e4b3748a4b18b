"""What OMG-Agent's planner has found before: proposals and vectors by a key of everything that they depend on.

`hf_msa.data.plan_cache.PlanCache` keeps the same on disk.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

import numpy as np

Proposals = tuple[tuple[str, float], ...]
"""What was written, and its log-probability, for each candidate."""

Value = TypeVar("Value")
_LARGEST_HALF = float(np.finfo(np.float16).max)


def to_half(vectors: np.ndarray) -> np.ndarray:
    """Round vectors to the half precision in which they are kept; what is too large becomes the largest half.

    Args:
        vectors: `(rows, width)`.
    """
    half: np.ndarray = np.clip(vectors, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
    return half


class PlanStore(Protocol):
    """Where a planner looks before it asks its model, and leaves what it was told.

    What is stored says neither what is chosen nor how vectors are centred: both are worked out anew each time.
    """

    def proposals(self, keys: Iterable[str]) -> dict[str, Proposals]:
        """Those of the proposals that are known, by key."""

    def vectors(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of the vectors that are known, `(width,)` float16 each, by key."""

    def add_proposals(self, found: Mapping[str, Proposals]) -> None:
        """Keep proposals."""

    def add_vectors(self, found: Mapping[str, np.ndarray]) -> None:
        """Keep vectors, `(width,)` float16 each."""


class MemoryStore:
    """Keeps what was asked for last, in memory.

    Args:
        max_bytes: How much; about what Python needs for it.
    """

    def __init__(self, max_bytes: int = 2**28) -> None:
        self.max_bytes = max_bytes
        self._proposals: OrderedDict[str, Proposals] = OrderedDict()
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bytes = 0

    def proposals(self, keys: Iterable[str]) -> dict[str, Proposals]:
        """See `PlanStore.proposals`."""
        return _known(self._proposals, keys)

    def vectors(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """See `PlanStore.vectors`."""
        return _known(self._vectors, keys)

    def add_proposals(self, found: Mapping[str, Proposals]) -> None:
        """See `PlanStore.add_proposals`."""
        for key, value in found.items():
            if key not in self._proposals:
                self._proposals[key] = value
                self._bytes += _size(value)
        self._forget()

    def add_vectors(self, found: Mapping[str, np.ndarray]) -> None:
        """See `PlanStore.add_vectors`."""
        for key, value in found.items():
            if key not in self._vectors:
                # A copy: a row of a batch would keep the whole batch in memory.
                self._vectors[key] = value.copy()
                self._bytes += _size(value)
        self._forget()

    def _forget(self) -> None:
        """Drop what was not asked for longest, of both kinds by turns, until the rest fits."""
        while self._bytes > self.max_bytes:
            if self._vectors:
                self._bytes -= _size(self._vectors.popitem(last=False)[1])
            if self._proposals and self._bytes > self.max_bytes:
                self._bytes -= _size(self._proposals.popitem(last=False)[1])


def _known(table: OrderedDict[str, Value], keys: Iterable[str]) -> dict[str, Value]:
    found = {}
    for key in keys:
        if key in table:
            table.move_to_end(key)
            found[key] = table[key]
    return found


def _size(value: Proposals | np.ndarray) -> int:
    """Bytes of an entry with its key and its place in the table, roughly."""
    if isinstance(value, np.ndarray):
        return value.nbytes + 300
    return sum(sys.getsizeof(text) + 100 for text, _ in value) + 300
