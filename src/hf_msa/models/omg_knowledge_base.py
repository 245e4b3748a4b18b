"""The knowledge base of OMG-Agent: a memory-mapped `datasets.Dataset` of entries with a FAISS index of their keys.

It lies in a folder beside a checkpoint and may come from a stranger, so nothing in it is trusted: files are found under
plain names only, columns are checked before their memory is read, and the index is built anew from the keys.
"""

import contextlib
import copy
import importlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .omg_retriever import NO_ENTRY, Candidates

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

ID = "id"
KEY = "key"
PLAN = "plan"
OBSERVATION = "observation"
VALUE_PREFIX = "value_"
"""Columns of an entry; its latents stand in one column per modality, ``value_text`` and so on."""
INDEX_FILE = "keys.faiss"
DESCRIPTION_FILE = "knowledge_base.json"
FORMAT = 1

_ENTRIES_NAME = re.compile(r"\w[\w-]*\.arrow", re.ASCII)
# With most sizes of 0 and with graphs of a single link, FAISS ends the process or never comes back.
_DEADLY_FACTORY = re.compile(r"(?<!\d)0+(?!\d)|(?:HNSW|NSG)0*1(?!\d)")
# What reading damaged or foreign files can raise, pyarrow's and FAISS's own errors included.
_READING_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError)


def _package(name: str) -> Any:
    """Import an optional package; a checkpoint that carries this file must load without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"A knowledge base needs the package {name!r}, which is not installed: pip install 'hf-msa[omg]'."
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of another library's message without a full stop, and without FAISS's place in its source."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (re.sub(r"^Error in .*?\.(?:cpp|h):\d+: (?:Error: '.*' failed: )?", "", line) or line).removesuffix(".")


def _numbers(name: str, given: Any, dims: int, entries: int) -> Floats:
    """Check a column's numbers and return them as gapless float32, `(entries, ...)` with `dims` dimensions."""
    numbers = np.ascontiguousarray(given, dtype=np.float32)
    if numbers.ndim != dims or len(numbers) != entries or 0 in numbers.shape[1:]:
        raise ValueError(
            f"The column {name!r} has the shape {numbers.shape}; it needs {dims} dimensions, none of them 0, the first of "
            f"{entries} entries."
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"The column {name!r} holds numbers that are not finite; leave out or repair those entries.")
    return numbers


def _unit(vectors: Floats) -> Floats:
    """Divide each row by its length; rows of zeros stay as they are, and so do those of length 1, to the last bit."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths = np.where(np.abs(lengths - 1.0) < 1e-6, 1.0, np.maximum(lengths, 1e-12))
    return np.asarray(vectors / lengths, dtype=np.float32)


def _array(numbers: Floats) -> Any:
    """Arrow lists of fixed length over the memory of `numbers`, which is not copied."""
    pyarrow = _package("pyarrow")
    array = pyarrow.array(numbers.reshape(-1))
    for width in reversed(numbers.shape[1:]):
        array = pyarrow.FixedSizeListArray.from_arrays(array, width)
    return array


def _feature(shape: Sequence[int]) -> Any:
    datasets = _package("datasets")
    feature = datasets.Value("float32")
    for width in reversed(shape):
        feature = datasets.List(feature, length=width)
    return feature


def _shape(name: str, column: Any) -> tuple[int, ...]:
    """Lengths of a column's lists, outermost first."""
    pyarrow = _package("pyarrow")
    widths, inner = [], column.type
    while pyarrow.types.is_fixed_size_list(inner):
        widths.append(inner.list_size)
        inner = inner.value_type
    if inner != pyarrow.float32() or len(widths) != (2 if name.startswith(VALUE_PREFIX) else 1) or 0 in widths:
        raise ValueError(
            f"The column {name!r} of the knowledge base is {column.type}; it must hold float32 in lists of fixed length, so "
            "build the knowledge base again."
        )
    return tuple(widths)


def _views(column: Any, shape: tuple[int, ...]) -> list[Floats]:
    """One read-only view `(rows of the chunk, *shape)` of Arrow's memory per chunk."""
    views = []
    for chunk in column.chunks:
        flat = chunk
        for _ in shape:
            flat = flat.flatten()
        if flat.null_count:
            raise ValueError("A list of numbers in the knowledge base has empty places; build it again.")
        views.append(flat.to_numpy(zero_copy_only=True).reshape(len(chunk), *shape))
    return views


def _dataset(columns: Sequence[Any], features: Any) -> Any:
    table = _package("pyarrow").Table.from_arrays(columns, schema=features.arrow_schema)
    # Without a fingerprint, datasets would pickle the whole table to make one.
    return _package("datasets").Dataset(table, fingerprint=uuid.uuid4().hex[:16])


def _make_index(keys: Floats, factory: str) -> Any:
    faiss = _package("faiss")
    try:
        if _DEADLY_FACTORY.search(factory):
            raise RuntimeError("no size may be 0, and a graph needs at least 2 links per key")
        index = faiss.index_factory(keys.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(keys)
        index.add(keys)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(
            f"FAISS cannot build the index {factory!r} over {len(keys)} keys of width {keys.shape[1]} "
            f"({_reason(error)}); 'Flat' works for every knowledge base."
        ) from error
    return index


def _search_parameters(index: Any, nprobe: int | None, ef_search: int | None) -> Any:
    """FAISS's parameters of a search, handed down to the parts of an index that read them."""
    faiss = _package("faiss")
    index = faiss.downcast_index(index)
    if nprobe is None and ef_search is None:
        return None
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_search_parameters(index.index, nprobe, ef_search))
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(
            nprobe=index.nprobe if nprobe is None else nprobe,
            quantizer_params=_search_parameters(index.quantizer, None, ef_search),
        )
    if isinstance(index, faiss.IndexHNSW) and nprobe is None:
        return faiss.SearchParametersHNSW(efSearch=ef_search)
    raise ValueError(
        f"A search in an {type(index).__name__} takes no {'ef_search' if nprobe is None else 'nprobe'}; nprobe is for IVF "
        "indexes, ef_search for HNSW."
    )


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its place on a clean exit and is removed on an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.replace(old)
        try:
            new.replace(folder)
        except BaseException:
            if old.exists():
                old.replace(folder)
            raise


class KnowledgeBase:
    """Complete training samples that evidence is retrieved from; made by `build`, `load` or `fetch`.

    Keys are unit vectors and the index measures inner products, so that scores are cosines. The numbers lie in Arrow's
    memory, which is a mapped file after `load`; the index has a copy of the keys, or what it makes of them.

    Args:
        dataset: `datasets.Dataset` with the columns `ID` (unique), `KEY`, `PLAN`, `OBSERVATION` and at least one that begins
            with `VALUE_PREFIX`.
        factory: FAISS factory string of the index.
        index: FAISS index of the keys, in the order of the rows; None: it is built of them.

    Attributes:
        dataset: The entries.
        ids: Their ids.
        shapes: Column of numbers -> shape of an entry's cell.
        factory: The factory string.
        index: The index.
        nprobe, ef_search: How thoroughly is searched, see `with_search`; None: as FAISS does by default.

    Raises:
        ValueError: If columns are absent or of other types, ids are not unique, or the index does not fit the keys or cannot
            be built.
        ImportError: If a package is not installed.
    """

    def __init__(self, dataset: Any, factory: str = "Flat", index: Any = None) -> None:
        values = sorted(name for name in dataset.column_names if name.startswith(VALUE_PREFIX))
        names = [KEY, PLAN, OBSERVATION, *(values or [VALUE_PREFIX + "<modality>"])]
        absent = [name for name in (ID, *names) if name not in dataset.column_names]
        if absent:
            raise ValueError(
                f"The knowledge base has no column {absent[0]!r}, only {', '.join(dataset.column_names)}; build it again."
            )
        columns = {name: dataset.data.column(name) for name in (ID, *names)}
        empty = [name for name, column in columns.items() if column.null_count]
        if empty:
            raise ValueError(f"The column {empty[0]!r} of the knowledge base has empty cells; build it again.")
        self.dataset = dataset
        self.factory = factory
        self.ids: list[str] = [str(entry) for entry in columns[ID].to_pylist()]
        self._row_of = {entry: row for row, entry in enumerate(self.ids)}
        if len(self._row_of) != len(self.ids):
            twice = next(entry for row, entry in enumerate(self.ids) if self._row_of[entry] != row)
            raise ValueError(f"The id {twice!r} occurs twice in the knowledge base; give each entry an id of its own.")
        self.shapes = {name: _shape(name, columns[name]) for name in names}
        self._views = {name: _views(columns[name], shape) for name, shape in self.shapes.items()}
        # The chunks of all columns end at the same rows, as they come from the same record batches.
        self._ends = np.cumsum([len(view) for view in self._views[KEY]])
        if any(
            [len(view) for view in views] != [len(view) for view in self._views[KEY]] for views in self._views.values()
        ):
            raise ValueError("The columns of the knowledge base are cut at different rows; build it again.")
        self.index = _make_index(self.numbers(KEY), factory) if index is None else index
        if (self.index.ntotal, self.index.d) != (len(self.ids), self.shapes[KEY][0]):
            raise ValueError(
                f"The index has {self.index.ntotal} keys of width {self.index.d}, the knowledge base {len(self.ids)} of "
                f"width {self.shapes[KEY][0]}; build it again."
            )
        self.nprobe: int | None = None
        self.ef_search: int | None = None
        self._parameters: Any = None

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        keys: Floats,
        plans: Floats,
        observations: Floats,
        values: Mapping[str, Floats],
        factory: str = "Flat",
    ) -> "KnowledgeBase":
        """Make a knowledge base of numbers in memory.

        Plans, observations and values in float32 are not copied; changing them afterwards changes the entries.

        Args:
            ids: The samples' ids, N of them. They tell a sample in training from its own entry.
            keys: Keys `(N, query_dim)`; they are made unit vectors.
            plans: Embeddings of the entries' plans `(N, embedding_dim)`.
            observations: Embeddings psi of the complete samples `(N, embedding_dim)`, of which and of the plans new keys are
                made when the query's projection has changed.
            values: Modality -> latents `(N, frames, latent_dim)`.
            factory: FAISS factory string, e.g. ``"HNSW32"`` or ``"IVF1024,PQ32"`` for bases of millions; ``"Flat"`` is
                exact.

        Raises:
            ValueError: If there is no entry or no modality, an id is empty or occurs twice, numbers have other shapes or are
                not finite, or FAISS cannot make that index.
            ImportError: If a package is not installed.
        """
        if not ids or not values:
            raise ValueError(
                f"A knowledge base of {len(ids)} entries and {len(values)} modalities holds nothing to retrieve."
            )
        nameless = [entry for entry in ids if not isinstance(entry, str) or not entry]
        if nameless:
            raise ValueError(f"The id {nameless[0]!r} is not a name; ids must be strings that are not empty.")
        columns = {
            KEY: _unit(_numbers(KEY, keys, 2, len(ids))),
            PLAN: _numbers(PLAN, plans, 2, len(ids)),
            OBSERVATION: _numbers(OBSERVATION, observations, 2, len(ids)),
            **{
                VALUE_PREFIX + name: _numbers(VALUE_PREFIX + name, value, 3, len(ids))
                for name, value in values.items()
            },
        }
        datasets, pyarrow = _package("datasets"), _package("pyarrow")
        features = datasets.Features(
            {ID: datasets.Value("string"), **{name: _feature(column.shape[1:]) for name, column in columns.items()}}
        )
        dataset = _dataset([pyarrow.array(list(ids), pyarrow.string()), *map(_array, columns.values())], features)
        return cls(dataset, factory)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], read_index: bool = False) -> "KnowledgeBase":
        """Map a saved knowledge base into memory.

        Args:
            folder: What `save` has written.
            read_index: See `fetch`.

        Raises:
            ValueError: If there is none, it was written in another format or cannot be read.
            ImportError: If a package is not installed.
        """
        path = Path(folder)
        base = cls.fetch(lambda name: path / name if (path / name).is_file() else None, read_index)
        if base is None:
            raise ValueError(f"{str(path)!r} holds no knowledge base: the file {DESCRIPTION_FILE} is not there.")
        return base

    @classmethod
    def fetch(cls, get: Callable[[str], Path | None], read_index: bool = False) -> "KnowledgeBase | None":
        """Map a saved knowledge base into memory whose files are had one by one, e.g. from the Hub.

        Args:
            get: Gives the place of a file by its plain name, or None where there is no such file.
            read_index: Map the index file in place of building the index of the keys, which saves time for indexes that are
                trained. FAISS believes the sizes that such a file states, so do this with files only that you wrote
                yourself.

        Returns:
            The knowledge base; None where there is none: not even its `DESCRIPTION_FILE`.

        Raises:
            ValueError: If another file is absent, of another format, or cannot be read.
            ImportError: If a package is not installed.
        """

        def place(name: str) -> str:
            found = get(name)
            if found is None:
                raise ValueError(f"the file {name!r} is not there")
            return str(found)

        file, index = get(DESCRIPTION_FILE), None
        if file is None:
            return None
        faiss, datasets = _package("faiss"), _package("datasets")
        try:
            description = json.loads(file.read_text(encoding="utf-8"))
            written = description["format"]
            if written == FORMAT:
                factory, files = str(description["factory"]), description["files"]
                nprobe, ef_search = description["nprobe"], description["ef_search"]
                strange = [name for name in files if not _ENTRIES_NAME.fullmatch(name)]
                if strange:
                    raise ValueError(f"{strange[0]!r} is not the plain name of an Arrow file")
                dataset = datasets.concatenate_datasets([datasets.Dataset.from_file(place(name)) for name in files])
                # Arrow takes the lengths that a file states for granted unless it is asked to look.
                dataset.data.table.validate(full=True)
                if len(dataset) != description["entries"]:
                    raise ValueError(f"it has {len(dataset)} of {description['entries']} entries")
                if read_index:
                    index = faiss.read_index(place(INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)
        except _READING_ERRORS as error:
            raise ValueError(f"The knowledge base cannot be read ({_reason(error)}); build it again.") from error
        if written != FORMAT:
            raise ValueError(
                f"The knowledge base has format {written!r}, this version of hf_msa reads {FORMAT}; build it again."
            )
        return cls(dataset, factory, index).with_search(nprobe, ef_search)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the entries (Arrow), the index (FAISS) and a description (JSON); nothing of it is a pickle.

        `datasets.load_from_disk` reads the folder, too.

        Args:
            folder: Where to, e.g. a folder beside a checkpoint; an old knowledge base there, even the one that this was
                loaded from, is replaced when the new one is complete.

        Raises:
            ValueError: If FAISS cannot write the index: one that was given, of a kind without a file format, or the disk is
                full.
        """
        with _replaced(Path(folder)) as temporary:
            self.dataset.save_to_disk(str(temporary))
            try:
                _package("faiss").write_index(self.index, str(temporary / INDEX_FILE))
            except RuntimeError as error:
                raise ValueError(f"FAISS cannot write the index of the knowledge base ({_reason(error)}).") from error
            description = {
                "format": FORMAT,
                "factory": self.factory,
                "nprobe": self.nprobe,
                "ef_search": self.ef_search,
                "entries": len(self),
                "shapes": {name: list(shape) for name, shape in self.shapes.items()},
                "files": sorted(path.name for path in temporary.glob("*.arrow")),
            }
            (temporary / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities whose latents the entries have."""
        return tuple(name.removeprefix(VALUE_PREFIX) for name in self.shapes if name.startswith(VALUE_PREFIX))

    def numbers(self, column: str) -> Floats:
        """All numbers of a column.

        Args:
            column: A name in `shapes`.

        Returns:
            `(N, *shape of a cell)`; a read-only view where the column lies in one piece, else a copy.

        Raises:
            ValueError: If there is no such column.
        """
        if column not in self._views:
            raise ValueError(f"There is no column {column!r} of numbers, only {', '.join(self._views)}.")
        views = self._views[column]
        return views[0] if len(views) == 1 else np.concatenate(views)

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
            ValueError: If k is below 1 or the queries have another width.
        """
        if k < 1:
            raise ValueError(f"k is {k}; at least 1 entry must be asked for.")
        width = self.shapes[KEY][0]
        if queries.ndim != 2 or queries.shape[1] != width:
            raise ValueError(
                f"The queries have the shape {queries.shape}; this knowledge base's keys have width {width}."
            )
        scores, rows = self.index.search(
            _unit(np.ascontiguousarray(queries, dtype=np.float32)), k, params=self._parameters
        )
        scores[rows == NO_ENTRY] = -np.inf
        return scores, rows

    def candidates(self, rows: Rows) -> Candidates:
        """Read entries for the retriever.

        Args:
            rows: From `search` (B, C).

        Returns:
            Tensors on the CPU; zeros where a row is `NO_ENTRY`.

        Raises:
            ValueError: If a row is not in the knowledge base.
        """
        if rows.size and (rows.min() < NO_ENTRY or rows.max() >= len(self)):
            wrong = rows.max() if rows.max() >= len(self) else rows.min()
            raise ValueError(f"Row {wrong} is asked for; the knowledge base has the rows 0 to {len(self) - 1}.")
        read = {
            name: torch.from_numpy(self._take(name, rows))
            for name in (KEY, PLAN, *(VALUE_PREFIX + modality for modality in self.modalities))
        }
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
        for number in np.unique(chunk_of[flat != NO_ENTRY]):
            view, here = self._views[name][number], chunk_of == number
            taken[here] = view[flat[here] - (self._ends[number] - len(view))]
        return taken.reshape(*rows.shape, *self.shapes[name])

    def with_keys(self, keys: Floats) -> "KnowledgeBase":
        """Return a knowledge base of the same entries with new keys and an index of them; nothing else is copied.

        Args:
            keys: `(N, query_dim)`, in the order of the rows, e.g. those of the query's projection after an epoch.

        Raises:
            ValueError: As in `build`.
        """
        numbers = _unit(_numbers(KEY, keys, 2, len(self)))
        features = _package("datasets").Features({**self.dataset.features, KEY: _feature(numbers.shape[1:])})
        parts = np.split(numbers, self._ends[:-1])
        columns = {name: self.dataset.data.column(name) for name in self.dataset.column_names}
        columns[KEY] = _package("pyarrow").chunked_array([_array(part) for part in parts])
        dataset = _dataset([columns[name] for name in features], features)
        return KnowledgeBase(dataset, self.factory).with_search(self.nprobe, self.ef_search)

    def with_search(self, nprobe: int | None = None, ef_search: int | None = None) -> "KnowledgeBase":
        """Return the same knowledge base searched more or less thoroughly; it is saved with it.

        Args:
            nprobe: Lists of an ``IVF`` index that are looked through; FAISS's default of 1 misses much.
            ef_search: Keys that an ``HNSW`` graph, also one that finds lists of an ``IVF`` index, keeps in view; FAISS's
                default is 16.

        Raises:
            ValueError: If a number is below 1, or the index has no use for it.
        """
        for name, number in (("nprobe", nprobe), ("ef_search", ef_search)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} is {number!r}; it must be at least 1, or None for FAISS's default.")
        changed = copy.copy(self)
        changed.nprobe, changed.ef_search = nprobe, ef_search
        changed._parameters = _search_parameters(self.index, nprobe, ef_search)
        return changed
