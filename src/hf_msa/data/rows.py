"""Rows as numpy views straight out of Arrow's memory, which is what makes a pass over a data set cheap."""

import copy
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hf_msa.data.missing_base import BoolArray, IntArray
from hf_msa.data.schema import ID, LABEL, PRESENCE, TEXT
from hf_msa.errors import MsaError
from hf_msa.models.msa_schema import FEATURE_MODALITIES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_UNKNOWN = 0.2
"""A larger share of tokens that the tokenizer does not know is warned of."""


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int | None
) -> tuple[list[IntArray], list[BoolArray]]:
    """Tokenize texts without padding.

    Args:
        tokenizer: A `transformers` tokenizer.
        texts: B texts.
        max_length: The most tokens, special tokens included; None: the tokenizer's own limit.

    Returns:
        Per text its token ids, and True where a token is special (added by the tokenizer; an unknown word is not).
    """
    if not texts:
        return [], []
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids = [np.asarray(row, dtype=np.int64) for row in encoded["input_ids"]]
    return ids, [np.asarray(row, dtype=bool) for row in encoded["special_tokens_mask"]]


def unknown_share(ids: Sequence[IntArray], special: Sequence[BoolArray], unknown: int | None) -> float:
    """Share of tokens that a tokenizer does not know, special tokens left out; 0 without any.

    Args:
        ids: Token ids of each text.
        special: True where a token is special, of each text.
        unknown: The tokenizer's unknown token; None: it has none.
    """
    words = np.concatenate([row[~mask] for row, mask in zip(ids, special, strict=True)]) if ids else np.zeros(0)
    return float((words == unknown).mean()) if len(words) else 0.0


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _primitive(array: pa.Array) -> np.ndarray:
    # Booleans are packed eight to a byte and have no view; every other number is given as it lies in memory. Of a number
    # that is not there, a copy says NaN.
    has_view = not pa.types.is_boolean(array.type) and not array.null_count
    return np.asarray(array.to_numpy(zero_copy_only=has_view))


def plain_column(column: "pa.Array | pa.ChunkedArray") -> "pa.Array | pa.ChunkedArray":
    """A column in the types that all tools share: categories as what they stand for, decimal numbers as floating ones."""
    kind = column.type.storage_type if isinstance(column.type, pa.ExtensionType) else column.type
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(kind):
        return plain_column(column.cast(kind.value_type))
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    return column.cast(pa.string()) if pa.types.is_string_view(kind) else column


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's lists whose items lie side by side."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


class ListColumn:
    """A column of lists of numbers, or of lists of equally long lists, whose items are numpy views.

    Args:
        chunks: The column's Arrow arrays, e.g. of an `Array2D` feature or of a list of booleans.

    Attributes:
        lengths: Length of each item (frames of a 2-D one), int64 (N,).
        width: Length of the inner lists, or None for a column of flat lists.
    """

    def __init__(self, chunks: Iterable[pa.Array]) -> None:
        self._flat: list[np.ndarray] = []
        self.width: int | None = None
        numbers: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        for number, chunk in enumerate(map(_storage, chunks)):
            begin, length, values = self._bounds(chunk)
            if is_list(values.type):
                begin, length, values = self._flatten(begin, length, values)
            self._flat.append(_primitive(values))
            numbers.append(np.full(len(begin), number, dtype=np.int32))
            starts.append(begin)
            lengths.append(length)
        empty = np.zeros(0, dtype=np.int64)
        self._chunk = np.concatenate([np.zeros(0, dtype=np.int32), *numbers])
        self._start = np.concatenate([empty, *starts])
        self.lengths = np.concatenate([empty, *lengths])

    @staticmethod
    def _bounds(array: pa.Array) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        """Return start and length of each list within the array of values, sliced arrays included."""
        if array.null_count:
            raise MsaError(
                "A column of features or masks has empty cells; mark a sample that lacks a modality by "
                "'audio_present' or 'vision_present' and one zero frame."
            )
        if pa.types.is_fixed_size_list(array.type):
            size = array.type.list_size
            starts = (array.offset + np.arange(len(array), dtype=np.int64)) * size
            return starts, np.full(len(array), size, dtype=np.int64), array.values
        offsets = array.offsets.to_numpy(zero_copy_only=True).astype(np.int64)
        return offsets[:-1], np.diff(offsets), array.values

    def _flatten(
        self, begin: np.ndarray, length: np.ndarray, inner: pa.Array
    ) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        """Turn bounds in units of frames into bounds in units of numbers; `length` stays the number of frames."""
        starts, widths, values = self._bounds(inner)
        if len(widths):
            width = self.width if self.width is not None else int(widths[0])
            # Equal widths and gapless starts are what make (frames, width) a plain reshape of consecutive numbers.
            if (widths != width).any() or (np.diff(starts) != width).any():
                raise MsaError("A column of features has frames of different widths; prepare the data set again.")
            self.width = width
            begin = starts[np.minimum(begin, len(starts) - 1)]
        return begin, length, values

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        start, length = int(self._start[index]), int(self.lengths[index])
        values: np.ndarray = self._flat[self._chunk[index]][start : start + length * (self.width or 1)]
        return values if self.width is None else values.reshape(length, self.width)

    def take(self, order: np.ndarray) -> None:
        """Re-order the items in place, without moving their numbers."""
        self._chunk, self._start, self.lengths = self._chunk[order], self._start[order], self.lengths[order]


class _RaggedTokens:
    """Token ids of all rows in one flat array."""

    def __init__(self, items: Sequence[NDArray[Any]], dtype: type) -> None:
        self.lengths = np.fromiter(map(len, items), dtype=np.int64, count=len(items))
        self._ends = np.cumsum(self.lengths)
        self._flat: np.ndarray = np.fromiter(itertools.chain.from_iterable(items), dtype, int(self.lengths.sum()))

    def __getitem__(self, index: int) -> np.ndarray:
        end = self._ends[index]
        return self._flat[end - self.lengths[index] : end]


class MsaRows:
    """A map-style data set (for `torch.utils.data.DataLoader`) over one split; its arrays are views of Arrow's memory.

    The format and transform of `dataset` are not applied; rows selected or shuffled there are followed.

    Args:
        dataset: A split with the columns of `hf_msa.data.schema.msa_features`. Columns of other types than numbers,
            strings, lists of numbers and arrays are left out.
        split: Its name; the missing-modality protocols depend on it.
        tokenizer: If given, all transcripts are tokenised here, once.
        max_length: Longest token sequence, special tokens included; longer ones are cut. None: the tokenizer's own.

    Attributes:
        split: Name of the split.
        ids: The sample ids.
        labels: The sentiment labels, float32 (N,).
        lengths: Modality name -> true length of each sample, int64 (N,); ``"text"`` only with a tokenizer.

    Raises:
        MsaError: If a column that every data set has is absent, or has an empty cell.

    Example:
        ```python
        from hf_msa import MsaRows, load_msa
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained("data/sample/text_model")
        rows = MsaRows(load_msa("data/sample", "train"), "train", tokenizer, max_length=50)
        rows.lengths["audio"]  # (rows,), in frames
        ```
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        split: str,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        max_length: int | None = None,
    ) -> None:
        absent = [name for name in (ID, TEXT, LABEL) if name not in dataset.column_names]
        if absent:
            raise MsaError(
                f"The data has no column {absent[0]!r}; its columns are {', '.join(dataset.column_names)}. Make it "
                "with `hf-msa prepare`."
            )
        self.split = split
        self._dataset = dataset
        self._lists: dict[str, ListColumn] = {}
        self._values: dict[str, list[Any]] = {}
        self._read()
        for name in (ID, TEXT, LABEL):
            if None in self._values[name]:
                raise MsaError(
                    f"The column {name!r} is empty in row {self._values[name].index(None)} of the split {split!r}; fill "
                    "it, or leave the row out."
                )
        self.ids: list[str] = self._values[ID]
        self.labels = np.asarray(self._values[LABEL], dtype=np.float32)
        self.lengths: dict[str, np.ndarray] = {
            name: self._lists[name].lengths for name in FEATURE_MODALITIES if name in self._lists
        }
        self._tokens: dict[str, _RaggedTokens] = {}
        if tokenizer is not None:
            ids, special = tokenize(tokenizer, self._values[TEXT], max_length)
            self._tokens = {
                "input_ids": _RaggedTokens(ids, np.int64),
                "special_tokens_mask": _RaggedTokens(special, np.bool_),
            }
            self.lengths = {TEXT: self._tokens["input_ids"].lengths, **self.lengths}
            share = unknown_share(ids, special, tokenizer.unk_token_id)
            if share > MOST_UNKNOWN:
                warnings.warn(
                    f"The tokenizer does not know {100 * share:.0f} % of the tokens of the split {split!r}, which are "
                    "the same to the model; take a text encoder for the language and words of the data.",
                    stacklevel=2,
                )

    def _read(self) -> None:
        # A selected or shuffled data set keeps its table and a column of row numbers; following them copies nothing,
        # where `flatten_indices` would write the whole table anew.
        indices = self._dataset._indices
        order = None if indices is None else indices.column(0).to_numpy()
        for name in self._dataset.column_names:
            column = plain_column(self._dataset.data.column(name))
            kind = column.type.storage_type if isinstance(column.type, pa.ExtensionType) else column.type
            if is_list(kind):
                inner = kind.value_type.value_type if is_list(kind.value_type) else kind.value_type
                if pa.types.is_primitive(inner):
                    self._lists[name] = ListColumn(column.chunks)
                    if order is not None:
                        self._lists[name].take(order)
            elif pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
                self._values[name] = (column if order is None else column.take(pa.array(order))).to_pylist()

    def batches(
        self, size: int = 64, order: "Sequence[int] | IntArray | None" = None
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows in lists of `size`, the last one shorter.

        Args:
            size: Rows per list.
            order: Which rows, in which order; by default all of them as they stand.
        """
        chosen = range(len(self)) if order is None else order
        for begin in range(0, len(chosen), size):
            yield [self[int(index)] for index in chosen[begin : begin + size]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row: every column by name, `index`, and with a tokenizer `input_ids` and `special_tokens_mask`.

        `audio` and `vision` are read-only float32 (T, d) views.
        """
        index = range(len(self))[index]
        row = {name: values[index] for name, values in self._values.items()}
        for name, column in self._lists.items():
            row[name] = column[index]
        for name, tokens in self._tokens.items():
            row[name] = tokens[index]
        row["index"] = index
        return row

    def by_length(self) -> NDArray[np.int64]:
        """Places of the rows (N,), short ones first: batches of this order need little padding."""
        return np.argsort(np.sum(list(self.lengths.values()), axis=0), kind="stable")

    def median_lengths(self) -> dict[str, int]:
        """Median length of each modality over the samples that have it: tokens, special ones included, or frames."""
        everywhere = np.ones(len(self), dtype=bool)
        found = {}
        for name, lengths in self.lengths.items():
            if name == TEXT:
                there = np.array([bool(text.strip()) for text in self._values[TEXT]], dtype=bool)
            else:
                there = np.asarray(self._values.get(PRESENCE[name], everywhere), dtype=bool)
            found[name] = int(np.median(lengths[there])) if there.any() else 1
        return found

    def in_draw(self, draw: int) -> "MsaRows":
        """The same rows in another draw, which is what re-draws the missing pattern of a protocol."""
        other = copy.copy(self)
        other._values = {**self._values, "draw": [draw] * len(self)}
        return other

    def __getstate__(self) -> dict[str, Any]:
        # The views are dropped, so that a process that is started anew maps the file instead of receiving a copy.
        return {**self.__dict__, "_lists": {}, "_values": {}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._read()


class DrawnRows(Dataset[dict[str, Any]]):
    """Rows with the number of a draw: item ``i`` is row ``i % N`` in draw ``i // N``.

    A draw is what re-draws the missing pattern (an epoch in training, a repeat in validation), so that masks need no
    state that workers would have to share.

    Args:
        rows: The rows.
        draws: Number of draws.
    """

    def __init__(self, rows: MsaRows, draws: int) -> None:
        if draws < 1:
            raise MsaError(f"The number of draws is {draws}; at least 1 is needed.")
        self.rows = rows
        self.draws = draws

    def __len__(self) -> int:
        return len(self.rows) * self.draws

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return row ``index % N`` with its `draw`, ``index // N``."""
        draw, row = divmod(range(len(self))[index], len(self.rows))
        return {**self.rows[row], "draw": draw}
