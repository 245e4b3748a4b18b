"""What OMG-Agent's planner has found, kept on disk: plans cost a call of a large model each, and every run needs the same.

A folder of Parquet files ("shards") that are only ever added, each written as a whole under a name of its own. So several
processes may use one folder at once, and one that is killed leaves nothing half-written: what it had not yet written, at
most the last minutes', is asked again. Keys are hashes of everything that an answer depends on (see `Planner`), so planners,
data sets, seeds and ablations may share a folder, and it may be deleted at any time.
"""

import logging
import os
import time
import uuid
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_msa.errors import MsaError, reason
from hf_msa.files import atomic_write
from hf_msa.models.omg_plan_store import Proposals

PLANS_FOLDER = "plan_cache"
"""Name of the folder beside the runs that share it."""
ENTRIES_PER_SHARD = 512
SECONDS_PER_SHARD = 120.0
"""A shard is written when so many new entries have come together, or when the first of them is so old."""
_FORMAT = {b"hf_msa_plan_cache": b"1"}
_KEY = "key"

Value = TypeVar("Value")


class PlanCache:
    """A `PlanStore` in a folder.

    What comes is written after `ENTRIES_PER_SHARD` entries or `SECONDS_PER_SHARD`, by `flush`, and when the process ends
    other than by force. What other processes write is found when something is looked up that is not known yet. A shard that
    is damaged is left out with a warning, and what was in it is asked again.

    Args:
        folder: Where the shards are; it is created where absent.
        max_bytes: Of the shards' contents so much is kept in memory.

    Raises:
        MsaError: If the folder is a file or cannot be created.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = 2**30) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MsaError(
                f"The folder {str(self.folder)!r} for plans cannot be made ({reason(error)}); give another."
            ) from error
        self._proposals = _ProposalShards(self.folder, max_bytes // 4)
        self._vectors = _VectorShards(self.folder, max_bytes - max_bytes // 4)
        weakref.finalize(self, _flush_at_end, os.getpid(), self.folder, (self._proposals, self._vectors))

    @property
    def entries(self) -> int:
        """Number of entries of both kinds, those included that other processes have written up to now."""
        return sum(table.count() for table in (self._proposals, self._vectors))

    def proposals(self, keys: Iterable[str]) -> dict[str, Proposals]:
        """See `PlanStore.proposals`."""
        return self._proposals.find(keys)

    def vectors(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """See `PlanStore.vectors`."""
        return self._vectors.find(keys)

    def add_proposals(self, found: Mapping[str, Proposals]) -> None:
        """See `PlanStore.add_proposals`."""
        self._proposals.add(found)

    def add_vectors(self, found: Mapping[str, np.ndarray]) -> None:
        """See `PlanStore.add_vectors`."""
        self._vectors.add(found)

    def flush(self) -> None:
        """Write what has come since the last shards."""
        self._proposals.flush()
        self._vectors.flush()


class _Shards(ABC, Generic[Value]):
    """All shards of one kind in a folder.

    Args:
        folder: Where they are.
        max_bytes: Kept in memory of what was read.
    """

    kind: str

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._places: dict[str, tuple[str, int]] = {}
        """Key -> name of its shard and row in it."""
        self._names: set[str] = set()
        """Shards that were looked into, damaged ones included."""
        self._damaged: set[str] = set()
        self._tables: OrderedDict[str, pa.Table] = OrderedDict()
        """Shards in memory, the one that was used last at the end."""
        self._bytes = 0
        self._waiting: dict[str, Value] = {}
        self._since = 0.0

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Names of the columns beside the key."""

    @abstractmethod
    def check(self, table: pa.Table) -> None:
        """Raise a ValueError if a table cannot be one of this kind."""

    @abstractmethod
    def value(self, table: pa.Table, row: int) -> Value:
        """Read an entry."""

    @abstractmethod
    def tables(self, entries: Mapping[str, Value]) -> list[pa.Table]:
        """Make tables of entries: as many as their shapes need."""

    def count(self) -> int:
        """Number of entries."""
        self._look()
        return len(self._places.keys() | self._waiting.keys())

    def find(self, keys: Iterable[str]) -> dict[str, Value]:
        """What is known of some keys."""
        wanted = list(keys)
        if any(key not in self._waiting and key not in self._places for key in wanted):
            self._look()
        found = {key: self._waiting[key] for key in wanted if key in self._waiting}
        # By shard, so that each is read once even if memory holds one alone.
        stored = [key for key in wanted if key not in found and key in self._places]
        for key in sorted(stored, key=lambda key: self._places[key]):
            name, row = self._places[key]
            table = self._table(name)
            if table is None:
                # What was in it may be in a later shard, too: all others are gone through once more.
                self._places, self._names = {}, set(self._damaged)
                return found | self.find([key for key in wanted if key not in found])
            found[key] = self.value(table, row)
        return found

    def add(self, entries: Mapping[str, Value]) -> None:
        """Keep entries, and write a shard when it is time to."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.update((key, value) for key, value in entries.items() if key not in self._places)
        if len(self._waiting) >= ENTRIES_PER_SHARD or time.monotonic() - self._since >= SECONDS_PER_SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if not self._waiting:
            return
        for table in self.tables(self._waiting):
            # Sorted by name, the oldest comes first: of entries that two processes wrote every reader takes the same.
            name = f"{self.kind}-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
            with atomic_write(self._folder / name) as temporary:
                described = table.replace_schema_metadata(_FORMAT)
                pq.write_table(described, temporary, use_dictionary=False, write_page_checksum=True)
            self._take_in(name, table)
            self._remember(name, table.select(self.columns))
        self._waiting = {}

    def _look(self) -> None:
        """Take in the shards that have come into the folder."""
        for name in sorted(path.name for path in self._folder.glob(f"{self.kind}-*.parquet")):
            if name not in self._names and (table := self._read(name, [_KEY])) is not None:
                self._take_in(name, table)

    def _take_in(self, name: str, table: pa.Table) -> None:
        self._names.add(name)
        for row, key in enumerate(table.column(_KEY).to_pylist()):
            self._places.setdefault(key, (name, row))

    def _table(self, name: str) -> pa.Table | None:
        """The contents of a shard, read if need be; None if that is damaged."""
        if name not in self._tables:
            table = self._read(name, list(self.columns))
            if table is None:
                return None
            self._remember(name, table)
        self._tables.move_to_end(name)
        return self._tables[name]

    def _remember(self, name: str, table: pa.Table) -> None:
        """Keep a shard's contents, and let those go that were not used longest where memory is short."""
        self._tables[name] = table.combine_chunks()
        self._bytes += self._tables[name].nbytes
        while self._bytes > self._max_bytes and len(self._tables) > 1:
            self._bytes -= self._tables.popitem(last=False)[1].nbytes

    def _read(self, name: str, columns: list[str]) -> pa.Table | None:
        """Some columns of a shard; None, and a warning, where they cannot be read."""
        self._names.add(name)
        try:
            with pq.ParquetFile(self._folder / name, page_checksum_verification=True) as file:
                if any((file.schema_arrow.metadata or {}).get(key) != value for key, value in _FORMAT.items()):
                    raise ValueError("it is of another format")
                self.check(file.schema_arrow.empty_table())
                table: pa.Table = file.read(columns)
            if _KEY not in columns:
                return table
            if None in (keys := table.column(_KEY).to_pylist()) or len(set(keys)) < len(keys):
                raise ValueError("its keys are not unique")
            return table
        except (OSError, ValueError, pa.ArrowException) as error:
            logging.getLogger(__name__).warning(
                "The file %r of kept plans in %r cannot be used (%s); what was in it is asked again, and it may be deleted.",
                name,
                str(self._folder),
                reason(error),
            )
            self._damaged.add(name)
            return None


class _ProposalShards(_Shards[Proposals]):
    """Proposals: what was written, and log-probabilities."""

    kind = "proposals"
    columns = ("texts", "log_probs")
    schema = pa.schema({_KEY: pa.string(), "texts": pa.list_(pa.string()), "log_probs": pa.list_(pa.float64())})

    def check(self, table: pa.Table) -> None:
        """See `_Shards.check`."""
        if not table.schema.equals(self.schema):
            raise ValueError(f"its columns are {', '.join(table.schema.names)}")

    def value(self, table: pa.Table, row: int) -> Proposals:
        """See `_Shards.value`."""
        texts, log_probs = (table.column(name)[row].as_py() for name in self.columns)
        return tuple(zip(texts, log_probs, strict=True))

    def tables(self, entries: Mapping[str, Proposals]) -> list[pa.Table]:
        """See `_Shards.tables`."""
        texts = [[text for text, _ in value] for value in entries.values()]
        log_probs = [[log_prob for _, log_prob in value] for value in entries.values()]
        return [pa.Table.from_pydict({_KEY: list(entries), "texts": texts, "log_probs": log_probs}, self.schema)]


class _VectorShards(_Shards[np.ndarray]):
    """Vectors in half precision; all of a shard have the same width."""

    kind = "vectors"
    columns = ("vector",)

    def check(self, table: pa.Table) -> None:
        """See `_Shards.check`."""
        kind: Any = table.schema.field("vector").type if "vector" in table.schema.names else None
        if table.schema.names != [_KEY, "vector"] or not (
            pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float16() and kind.list_size > 0
        ):
            raise ValueError(f"its columns are {', '.join(table.schema.names)}")

    def value(self, table: pa.Table, row: int) -> np.ndarray:
        """See `_Shards.value`."""
        column = table.column("vector").chunk(0)
        width = column.type.list_size
        flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=True)
        return flat[row * width : (row + 1) * width]

    def tables(self, entries: Mapping[str, np.ndarray]) -> list[pa.Table]:
        """See `_Shards.tables`."""
        made = []
        for width in dict.fromkeys(len(vector) for vector in entries.values()):
            part = {key: vector for key, vector in entries.items() if len(vector) == width}
            numbers = pa.array(np.concatenate(list(part.values())).astype(np.float16, copy=False))
            vectors = pa.FixedSizeListArray.from_arrays(numbers, width)
            made.append(pa.table({_KEY: pa.array(list(part), pa.string()), "vector": vectors}))
        return made


def _flush_at_end(process: int, folder: Path, tables: Iterable[_Shards[Any]]) -> None:
    """Write what is waiting, unless the folder is gone; a forked process leaves that to the one that it comes from."""
    if os.getpid() == process and folder.is_dir():
        for table in tables:
            table.flush()
