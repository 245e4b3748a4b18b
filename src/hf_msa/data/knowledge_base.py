"""The knowledge base of OMG-Agent: a memory-mapped `datasets.Dataset` of entries with a FAISS index of their keys."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from hf_msa.errors import MsaError, reason, require_package
from hf_msa.files import atomic_directory, write_json
from hf_msa.models.omg_retriever import NO_ENTRY, Candidates

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

ID = "id"
KEY = "key"
PLAN = "plan"
VALUE_PREFIX = "value_"
"""Columns of an entry; its latents stand in one column per modality, ``value_text`` and so on."""
ENTRIES_FOLDER = "entries"
INDEX_FILE = "keys.faiss"
DESCRIPTION_FILE = "knowledge_base.json"
FORMAT = 1


def _numbers(name: str, given: Any, dims: int, entries: int) -> Floats:
    """Check a column's numbers and return them as gapless float32, `(entries, ...)` with `dims` dimensions."""
    numbers = np.ascontiguousarray(given, dtype=np.float32)
    if numbers.ndim != dims or len(numbers) != entries or 0 in numbers.shape[1:]:
        raise MsaError(
            f"The column {name!r} has the shape {numbers.shape}; it needs {dims} dimensions, none of them 0, the first of "
            f"{entries} entries."
        )
    if not np.isfinite(numbers).all():
        raise MsaError(f"The column {name!r} holds numbers that are not finite; leave out or repair those entries.")
    return numbers


def _unit(vectors: Floats) -> Floats:
    """Divide each row by its length; rows of zeros stay as they are."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _array(numbers: Floats) -> pa.Array:
    """Lists of fixed length over the memory of `numbers`, which is not copied."""
    array = pa.array(numbers.reshape(-1))
    for width in reversed(numbers.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, width)
    return array


def _feature(shape: Sequence[int]) -> Any:
    feature: Any = datasets.Value("float32")
    for width in reversed(shape):
        feature = datasets.List(feature, length=width)
    return feature


def _shape(name: str, feature: Any) -> tuple[int, ...]:
    """Lengths of a column's lists, outermost first."""
    widths, inner = [], feature
    while isinstance(inner, datasets.List) and inner.length > 0:
        widths.append(inner.length)
        inner = inner.feature
    if inner != datasets.Value("float32") or len(widths) != (2 if name.startswith(VALUE_PREFIX) else 1):
        raise MsaError(
            f"The column {name!r} of the knowledge base is {feature}; it must hold float32 in lists of fixed length, so "
            "build the knowledge base again."
        )
    return tuple(widths)


def _views(column: pa.ChunkedArray, shape: tuple[int, ...]) -> list[Floats]:
    """One read-only view `(rows of the chunk, *shape)` of Arrow's memory per chunk."""
    views = []
    for chunk in column.chunks:
        flat = chunk
        for _ in shape:
            flat = flat.flatten()
        views.append(flat.to_numpy(zero_copy_only=True).reshape(len(chunk), *shape))
    return views


def _dataset(columns: Sequence[Any], features: datasets.Features) -> datasets.Dataset:
    table = pa.Table.from_arrays(columns, schema=features.arrow_schema)
    # Without a fingerprint, datasets would pickle the whole table to make one.
    return datasets.Dataset(table, fingerprint=uuid.uuid4().hex[:16])


def _faiss_reason(error: RuntimeError) -> str:
    """What FAISS says, without the line of its source where it says so."""
    return reason(error).rpartition(".cpp:")[2].partition(": ")[2] or reason(error)


def _make_index(keys: Floats, factory: str) -> Any:
    require_package("faiss", "kb")
    import faiss

    try:
        index = faiss.index_factory(keys.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(keys)
        index.add(keys)
    except RuntimeError as error:
        raise MsaError(
            f"FAISS cannot build the index {factory!r} over {len(keys)} keys of width {keys.shape[1]} "
            f"({_faiss_reason(error)}); 'Flat' works for every knowledge base."
        ) from error
    return index


class KnowledgeBase:
    """Complete training samples that evidence is retrieved from; made by `build` or `load`.

    Keys are unit vectors and the index measures inner products, so that scores are cosines. The numbers lie in Arrow's
    memory, which is a mapped file after `load`; the index file is mapped too where FAISS can do that for its type.

    Args:
        dataset: Columns `ID` (unique), `KEY`, `PLAN` and at least one that begins with `VALUE_PREFIX`.
        index: FAISS index of the keys, in the order of the rows.
        factory: FAISS factory string that the index was made from.

    Attributes:
        dataset: The entries.
        ids: Their ids.
        shapes: Column of numbers -> shape of an entry's cell.

    Raises:
        MsaError: If columns are absent or of other types, ids are not unique, or the index does not fit the keys.
    """

    def __init__(self, dataset: datasets.Dataset, index: Any, factory: str) -> None:
        names = [KEY, PLAN, *sorted(name for name in dataset.column_names if name.startswith(VALUE_PREFIX))]
        absent = [name for name in (ID, *names) if name not in dataset.column_names]
        if absent or len(names) == 2:
            raise MsaError(
                f"The knowledge base has no column {(absent or [VALUE_PREFIX + '<modality>'])[0]!r}, only "
                f"{', '.join(dataset.column_names)}; build it again."
            )
        empty = [name for name in (ID, *names) if dataset.data.column(name).null_count]
        if empty:
            raise MsaError(f"The column {empty[0]!r} of the knowledge base has empty cells; build it again.")
        self.dataset = dataset
        self.factory = factory
        self.ids: list[str] = dataset.data.column(ID).to_pylist()
        self._row_of = {entry: row for row, entry in enumerate(self.ids)}
        if len(self._row_of) != len(self.ids):
            twice = next(entry for row, entry in enumerate(self.ids) if self._row_of[entry] != row)
            raise MsaError(f"The id {twice!r} occurs twice in the knowledge base; give each entry an id of its own.")
        self.shapes = {name: _shape(name, dataset.features[name]) for name in names}
        self._views = {name: _views(dataset.data.column(name), shape) for name, shape in self.shapes.items()}
        # The chunks of all columns end at the same rows, as they come from the same record batches.
        self._ends = np.cumsum([len(view) for view in self._views[KEY]])
        if any(
            [len(view) for view in views] != [len(view) for view in self._views[KEY]] for views in self._views.values()
        ):
            raise MsaError("The columns of the knowledge base are cut at different rows; build it again.")
        if (index.ntotal, index.d) != (len(self.ids), self.shapes[KEY][0]):
            raise MsaError(
                f"The index has {index.ntotal} keys of width {index.d}, the knowledge base {len(self.ids)} of width "
                f"{self.shapes[KEY][0]}; build it again."
            )
        self._index = index

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        keys: Floats,
        plans: Floats,
        values: Mapping[str, Floats],
        factory: str = "Flat",
    ) -> "KnowledgeBase":
        """Make a knowledge base of numbers in memory.

        Plans and values in float32 are not copied; changing them afterwards changes the entries.

        Args:
            ids: The samples' ids, N of them. They tell a sample in training from its own entry.
            keys: Keys `(N, query_dim)`; they are made unit vectors.
            plans: Embeddings of the entries' plans `(N, embedding_dim)`.
            values: Modality -> latents `(N, frames, latent_dim)`.
            factory: FAISS factory string, e.g. ``"HNSW32"`` or ``"IVF1024,PQ32"`` for bases of millions; ``"Flat"`` is
                exact.

        Raises:
            MsaError: If there is no entry or no modality, an id is empty or occurs twice, numbers have other shapes or are
                not finite, faiss is not installed, or it cannot make that index.
        """
        if not ids or not values:
            raise MsaError(
                f"A knowledge base of {len(ids)} entries and {len(values)} modalities holds nothing to retrieve."
            )
        nameless = [entry for entry in ids if not isinstance(entry, str) or not entry]
        if nameless:
            raise MsaError(f"The id {nameless[0]!r} is not a name; ids must be strings that are not empty.")
        columns = {
            KEY: _unit(_numbers(KEY, keys, 2, len(ids))),
            PLAN: _numbers(PLAN, plans, 2, len(ids)),
            **{
                VALUE_PREFIX + name: _numbers(VALUE_PREFIX + name, value, 3, len(ids))
                for name, value in values.items()
            },
        }
        features = datasets.Features(
            {ID: datasets.Value("string"), **{name: _feature(column.shape[1:]) for name, column in columns.items()}}
        )
        dataset = _dataset([pa.array(list(ids), pa.string()), *map(_array, columns.values())], features)
        return cls(dataset, _make_index(columns[KEY], factory), factory)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "KnowledgeBase":
        """Map a saved knowledge base into memory.

        Args:
            folder: What `save` has written.

        Raises:
            MsaError: If there is none, it was written in another format or cannot be read, or faiss is not installed.
        """
        require_package("faiss", "kb")
        import faiss

        path = Path(folder)
        if not (path / DESCRIPTION_FILE).is_file():
            raise MsaError(f"{str(path)!r} holds no knowledge base: the file {DESCRIPTION_FILE} is not there.")
        try:
            description = json.loads((path / DESCRIPTION_FILE).read_text(encoding="utf-8"))
            written = description["format"]
            if written == FORMAT:
                dataset = datasets.load_from_disk(str(path / ENTRIES_FOLDER), keep_in_memory=False)
                index = faiss.read_index(str(path / INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)
                factory = str(description["factory"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise MsaError(
                f"The knowledge base in {str(path)!r} cannot be read ({reason(error)}); build it again."
            ) from error
        if written != FORMAT:
            raise MsaError(
                f"The knowledge base in {str(path)!r} has format {written!r}, this version of hf_msa reads {FORMAT}; build "
                "it again."
            )
        if not isinstance(dataset, datasets.Dataset):
            raise MsaError(f"{str(path)!r} holds several splits; a knowledge base is one data set, so build it again.")
        return cls(dataset, index, factory)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the entries (Arrow), the index (FAISS) and a description (JSON); nothing of it is a pickle.

        Args:
            folder: Where to, e.g. a folder beside a checkpoint; an old knowledge base there, even the one that this was
                loaded from, is replaced when the new one is complete.
        """
        import faiss

        with atomic_directory(folder) as temporary:
            self.dataset.save_to_disk(str(temporary / ENTRIES_FOLDER))
            faiss.write_index(self._index, str(temporary / INDEX_FILE))
            write_json(
                temporary / DESCRIPTION_FILE,
                {
                    "format": FORMAT,
                    "factory": self.factory,
                    "entries": len(self),
                    "shapes": {name: list(shape) for name, shape in self.shapes.items()},
                },
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities whose latents the entries have."""
        return tuple(name.removeprefix(VALUE_PREFIX) for name in self.shapes if name.startswith(VALUE_PREFIX))

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """Find the samples' own entries.

        Args:
            ids: Sample ids.

        Returns:
            Their rows `(len(ids),)`, `NO_ENTRY` for those that have none.
        """
        return np.array([self._row_of.get(entry, NO_ENTRY) for entry in ids], dtype=np.int64)

    def search(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Find the entries whose keys are nearest to each query.

        Args:
            queries: `(B, query_dim)`, of any length.
            k: How many to find; in training one more than are needed, as a sample's own entry is among them.

        Returns:
            Scores `(B, k)`, best first: cosines, or what an index that compresses keys takes for them; and the entries'
            rows `(B, k)`. Where the index has found fewer, -inf and `NO_ENTRY`.

        Raises:
            MsaError: If k is below 1 or the queries have another width.
        """
        if k < 1:
            raise MsaError(f"k is {k}; at least 1 entry must be asked for.")
        width = self.shapes[KEY][0]
        if queries.ndim != 2 or queries.shape[1] != width:
            raise MsaError(
                f"The queries have the shape {queries.shape}; this knowledge base's keys have width {width}."
            )
        scores, rows = self._index.search(_unit(np.ascontiguousarray(queries, dtype=np.float32)), k)
        scores[rows == NO_ENTRY] = -np.inf
        return scores, rows

    def candidates(self, rows: Rows) -> Candidates:
        """Read entries for the retriever.

        Args:
            rows: From `search` (B, C).

        Returns:
            Tensors on the CPU; zeros where a row is `NO_ENTRY`.

        Raises:
            MsaError: If a row is not in the knowledge base.
        """
        if rows.size and (rows.min() < NO_ENTRY or rows.max() >= len(self)):
            wrong = rows.max() if rows.max() >= len(self) else rows.min()
            raise MsaError(f"Row {wrong} is asked for; the knowledge base has the rows 0 to {len(self) - 1}.")
        read = {name: torch.from_numpy(self._take(name, rows)) for name in self.shapes}
        return Candidates(
            entries=torch.from_numpy(rows.astype(np.int64)),
            keys=read[KEY],
            plans=read[PLAN],
            values={name: read[VALUE_PREFIX + name] for name in self.modalities},
        )

    def _take(self, name: str, rows: Rows) -> Floats:
        flat = rows.reshape(-1)
        taken = np.zeros((len(flat), *self.shapes[name]), dtype=np.float32)
        # NO_ENTRY is below all rows; its cells stay 0.
        chunk_of = np.where(flat == NO_ENTRY, NO_ENTRY, np.searchsorted(self._ends, flat, side="right"))
        for number, view in enumerate(self._views[name]):
            here = chunk_of == number
            taken[here] = view[flat[here] - (self._ends[number] - len(view))]
        return taken.reshape(*rows.shape, *self.shapes[name])

    def with_keys(self, keys: Floats) -> "KnowledgeBase":
        """Return a knowledge base of the same entries with new keys and an index of them; nothing else is copied.

        Args:
            keys: `(N, query_dim)`, in the order of the rows, e.g. those of the query's projection after an epoch.

        Raises:
            MsaError: As in `build`.
        """
        numbers = _unit(_numbers(KEY, keys, 2, len(self)))
        features = datasets.Features({**self.dataset.features, KEY: _feature(numbers.shape[1:])})
        parts = np.split(numbers, self._ends[:-1])
        columns = {name: self.dataset.data.column(name) for name in self.dataset.column_names}
        columns[KEY] = pa.chunked_array([_array(part) for part in parts])
        dataset = _dataset([columns[name] for name in features], features)
        return KnowledgeBase(dataset, _make_index(numbers, self.factory), self.factory)
