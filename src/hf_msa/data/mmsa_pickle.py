"""The rows of MMSA feature pickles, in all forms in which the field stores them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.cells import filled_columns, list_of, split_id, split_name, text_of
from hf_msa.data.pickles import read_pickle
from hf_msa.data.schema import (
    ANNOTATION,
    CLIP_ID,
    ID,
    LABEL,
    PRESENCE,
    SPLIT_ALIASES,
    SPLITS,
    TEXT,
    VIDEO_ID,
    msa_features,
)
from hf_msa.errors import MsaError
from hf_msa.models.msa_schema import FEATURE_MODALITIES, UNIMODAL_LABEL_KEYS

_TEXTS = "raw_text"
_LABELS = "regression_labels"
_ANNOTATIONS = "annotations"
_UNIMODAL_SOURCES = {
    "regression_labels_T": UNIMODAL_LABEL_KEYS["text"],
    "regression_labels_A": UNIMODAL_LABEL_KEYS["audio"],
    "regression_labels_V": UNIMODAL_LABEL_KEYS["vision"],
}
_NEEDED = (_TEXTS, ID, _LABELS)
_READ = {*_NEEDED, _ANNOTATIONS, *_UNIMODAL_SOURCES} | {
    key for modality in FEATURE_MODALITIES for key in (modality, f"{modality}_lengths")
}
# What every MMSA file has and a model with a tokenizer of its own has no use for.
_REPLACED = {"text", "text_bert", "text_lengths", "classification_labels"} | {
    f"classification_labels_{letter}" for letter in "TAV"
}
# Content can be shared within a file, as words are that annotate many samples; it is written once for each sample.
_SHARING = 16
_FREE_BYTES = 1 << 20

Sequences = NDArray[Any] | list[NDArray[Any] | None]
"""Features of all samples: one array (N, T, d) with padding, or an array (T_i, d) for each, None where there is none."""


class PickleSource:
    """The rows of an MMSA pickle. A split's arrays are let go as soon as its rows have been given out.

    Features are one array (samples, frames, width), padded with zeros at the end or at the start, or one array
    (frames, width) per sample. Of a padded one, a stored length says how many frames are real, and the frames that are not
    zero say at which side; without lengths, a sequence ends (or begins) at its outermost frame that is not all zero.

    Args:
        path: The pickle.

    Attributes:
        description: What kind of file it is.
        splits: The splits it holds, in the order train, validation, test.
        features: The columns of its rows.
        widths: Modality name -> features per frame.
        aligned: Whether audio and vision march in step: several frames, as many in both, with the same lengths.
        feature_names: Empty; a pickle does not tell them.
        notes: How the file was read and what was left out, in sentences.

    Raises:
        MsaError: If the file is unsafe, damaged, of an older schema, or its arrays do not fit each other.
    """

    description = "MMSA pickle"

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        content = read_pickle(self._path)
        self._size = self._path.stat().st_size
        self._bytes_left = _SHARING * self._size + _FREE_BYTES
        self.notes: list[str] = []
        self.feature_names: dict[str, tuple[str, ...]] = {}
        self._unknown: dict[str, tuple[int, ...] | None] = {}
        self._data = self._splits_of(content)
        self.splits = [split for split in SPLITS if split in self._data]
        self._present = [modality for modality in FEATURE_MODALITIES if modality in self._data[self.splits[0]]]
        self.widths: dict[str, int] = {}
        self._lengths: dict[tuple[str, str], NDArray[np.int64] | None] = {}
        for split in self.splits:
            self._check_split(split)
        self._spans = {modality: self._read_spans(modality) for modality in self._present}
        self.aligned = all(self._is_aligned(split) for split in self.splits)
        self._presence = any(
            bool((spans[split][:, 1] == 0).any()) for spans in self._spans.values() for split in self.splits
        )
        if self._presence:
            self.notes.append("Samples with no frames, or a stored length of 0, are marked as lacking that modality.")
        self._unimodal = self._has_columns(tuple(_UNIMODAL_SOURCES))
        self._annotated = self._has_columns((_ANNOTATIONS,))
        self.features = msa_features(
            self.widths.get("audio"),
            self.widths.get("vision"),
            unimodal_labels=self._unimodal,
            annotation=self._annotated,
            presence=self._presence,
        )

    def _error(self, split: str, problem: str) -> MsaError:
        return MsaError(f"The split {split!r} of {self._path} {problem}")

    # --- The dictionary of splits ---

    def _splits_of(self, content: Any) -> dict[str, dict[str, Any]]:
        if not isinstance(content, dict):
            raise MsaError(
                f"{self._path} holds a {type(content).__name__}; an MMSA pickle holds a dictionary with the splits "
                "train, valid and test."
            )
        data: dict[str, dict[str, Any]] = {}
        others = []
        for key in list(content):
            values = content.pop(key)
            is_named = (key.decode("latin1") if isinstance(key, bytes) else str(key)).strip().lower() in SPLIT_ALIASES
            # A split under a name that nobody knows must not be lost; other things may lie beside the splits.
            if not is_named and not (isinstance(values, dict) and {_TEXTS, *_TEXTS_OF_OTHERS} & _names(values).keys()):
                others.append(key)
                continue
            split = split_name(key, str(self._path))
            if split in data:
                raise MsaError(f"{self._path} holds the {split} split twice, under different names; keep one.")
            if not isinstance(values, dict):
                raise self._error(
                    str(key),
                    f"holds a {type(values).__name__}, the schema of MMIM's own files; give an MMSA pickle instead.",
                )
            data[split] = self._columns_of(str(key), _names(values))
            # What no column is made of goes at once: the precomputed text features alone are 40 % of a MOSEI file.
            values.clear()
        if not data:
            single = "; it holds a single split or sample" if _TEXTS in others else ""
            raise MsaError(
                f"{self._path} has none of the splits train, valid (or dev) and test{single}; its keys are "
                f"{list_of(others)}."
            )
        if self._unknown:
            names = [f"{key!r:.60}" + (f" of shape {shape}" if shape else "") for key, shape in self._unknown.items()]
            self.notes.append(f"No column is made of {', '.join(names[:12])}; what it holds was left out.")
        if others:
            self.notes.append(f"Beside the splits the file holds {list_of(others)}, which was left out.")
        return data

    def _columns_of(self, split: str, values: Mapping[str, Any]) -> dict[str, Any]:
        self._refuse_old_schema(split, values)
        for key, value in values.items():
            if key not in _READ | _REPLACED:
                self._unknown.setdefault(key, getattr(value, "shape", None))
        return {name: value for name, value in values.items() if name in _READ and value is not None}

    def _refuse_old_schema(self, split: str, values: Mapping[str, Any]) -> None:
        if "labels" in values and _LABELS not in values:
            raise self._error(
                split,
                "has 'labels' and no 'regression_labels' or 'raw_text': the older MulT / MMIM schema, which keeps no "
                "transcripts; give an MMSA pickle, or a label.csv with the features as files.",
            )
        if _TEXTS not in values:
            raise self._error(
                split,
                "has no 'raw_text': the transcripts are needed, because the text encoder has its own tokenizer; "
                "token ids ('text_bert') or vectors ('text') cannot replace them.",
            )
        for key in (ID, _LABELS):
            if key not in values:
                raise self._error(split, f"has no {key!r}; its keys are {list_of(values, 12)}.")

    # --- The columns of a split ---

    def _check_split(self, split: str) -> None:
        data = self._data[split]
        for key in [key for key in data if key not in FEATURE_MODALITIES]:
            data[key] = self._flat(split, key, data[key])
        count = len(data[_TEXTS])
        if not count:
            raise self._error(split, "has no samples; leave it out or fill it.")
        if (modalities := [modality for modality in FEATURE_MODALITIES if modality in data]) != self._present:
            raise self._error(
                split, f"has {modalities or 'no features'}, the split {self.splits[0]!r} {self._present or 'none'}."
            )
        for modality in self._present:
            data[modality] = self._sequences(split, modality, data[modality])
        for key, values in data.items():
            if len(values) != count:
                raise self._error(split, f"has {count} transcripts but {len(values)} of {key!r}.")
        for modality in self._present:
            self._check_lengths(split, modality)

    def _flat(self, split: str, key: str, values: Any) -> list[Any]:
        """One value for each sample, of an array, a list, or either with each value in a list of its own."""
        if isinstance(values, np.ndarray) and values.ndim:
            if key != ID and values.size == len(values):
                values = values.reshape(-1)
            items = list(values) if values.ndim > 1 or values.dtype.kind not in "USO" else values.tolist()
        elif isinstance(values, list | tuple):
            items = list(values)
        else:
            raise self._error(split, f"has a {type(values).__name__} as {key!r}; a list or an array is needed.")
        for place, item in enumerate(items):
            if isinstance(item, list | tuple | np.ndarray) and key != ID:
                if len(item) != 1:
                    raise self._error(split, f"has {len(item)} values of {key!r} for a sample; one is needed.")
                item = items[place] = item[0]
            if isinstance(item, str | bytes):
                self._give(split, len(item))
            elif not (isinstance(item, int | float | np.number | np.bool_) or item is None or key == ID):
                raise self._error(split, f"has a {type(item).__name__} among {key!r}; texts or numbers are needed.")
        return items

    def _give(self, split: str, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise self._error(
                split, f"would fill far more memory than the file's {self._size} bytes; store each sample once."
            )

    def _has_columns(self, keys: Sequence[str]) -> bool:
        is_filled, notes = filled_columns(keys, list(self._data.values()))
        self.notes += notes
        return is_filled

    # --- Features ---

    def _sequences(self, split: str, modality: str, values: Any) -> Sequences:
        if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
            # Features that were averaged over time come as (N, d).
            array = values[:, None, :] if values.ndim == 2 else values
            if array.ndim != 3:
                raise self._form_error(split, modality, f"of form {values.shape}")
            if 0 in array.shape[1:]:
                raise self._error(split, f"has {modality} of shape {array.shape}, without a frame or a feature.")
            self._check_width(split, modality, array.shape[2])
            return array
        if not isinstance(values, list | tuple) and not (isinstance(values, np.ndarray) and values.dtype.kind == "O"):
            form = getattr(values, "shape", type(values).__name__)
            raise self._form_error(split, modality, f"of form {form}")
        if isinstance(values, np.ndarray) and not values.ndim:
            raise self._form_error(split, modality, "of form ()")
        found = [self._sequence(split, modality, item) for item in values]
        vectors = {len(item) for item in found if item is not None and item.ndim == 1}
        if vectors and (len(vectors) > 1 or any(item is not None and item.ndim == 2 for item in found)):
            raise self._form_error(split, modality, "with sequences of one dimension")
        tables = [item[None] if item is not None and item.ndim == 1 else item for item in found]
        for item in tables:
            if item is not None:
                self._check_width(split, modality, item.shape[1])
        if all(item is None for item in tables):
            raise self._error(split, f"has {modality} without a frame; leave it out.")
        return tables

    def _form_error(self, split: str, modality: str, form: str) -> MsaError:
        return self._error(
            split,
            f"has {modality} {form}; numbers of shape (samples, frames, features) are needed, or an array "
            "(frames, features) for each sample.",
        )

    def _check_width(self, split: str, modality: str, width: int) -> None:
        if self.widths.setdefault(modality, width) != width:
            raise self._error(
                split,
                f"has {width} {modality} features per frame where others have {self.widths[modality]}; all samples need the "
                "same.",
            )

    def _sequence(self, split: str, modality: str, item: Any) -> NDArray[Any] | None:
        """The features of one sample, None if there are none."""
        if item is None or (isinstance(item, list | tuple | np.ndarray) and not len(item)):
            return None
        if not isinstance(item, np.ndarray) or item.dtype.kind == "O":
            item = self._table(split, modality, item)
        if item.ndim not in (1, 2) or item.dtype.kind not in "fiu" or 0 in item.shape:
            raise self._form_error(split, modality, f"with a sequence of {item.dtype} of form {item.shape}")
        self._give(split, item.nbytes)
        return item  # type: ignore[no-any-return]

    def _table(self, split: str, modality: str, rows: Any) -> NDArray[Any]:
        """Numbers in lists as an array; nothing is converted before it is known to be as small as it looks."""
        numbers = int | float | np.number
        items = list(rows) if isinstance(rows, list | tuple) or (isinstance(rows, np.ndarray) and rows.ndim) else []
        if items and all(isinstance(item, numbers) for item in items):
            return np.asarray(items, dtype=np.float64)
        made = []
        for item in items:
            if not isinstance(item, list | tuple | np.ndarray) or len(item) != len(items[0]):
                break
            self._give(split, 8 * len(item))
            if not all(isinstance(value, numbers) for value in item):
                break
            made.append(np.asarray(list(item), dtype=np.float64))
        if not made or len(made) != len(items):
            raise self._form_error(
                split, modality, f"with a sequence that is a {type(rows).__name__} of something else"
            )
        return np.stack(made)

    def _check_lengths(self, split: str, modality: str) -> None:
        data = self._data[split]
        array, given = data[modality], data.pop(f"{modality}_lengths", None)
        frames = np.array([0 if item is None else len(item) for item in array], dtype=np.int64)
        if given is None:
            self._lengths[split, modality] = frames if isinstance(array, list) else None
            return
        try:
            lengths = np.array([int(value) for value in given], dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._error(split, f"has '{modality}_lengths' that are not numbers.") from error
        wrong = np.flatnonzero((lengths < 0) | (lengths > frames) | (lengths != [float(value) for value in given]))
        if len(wrong):
            identifier = self._identity(split, int(wrong[0]))[0]
            raise self._error(
                split,
                f"says that the {modality} of {identifier!r} has {given[wrong[0]]} frames, but its array has "
                f"{frames[wrong[0]]}; lengths and features do not belong together.",
            )
        self._lengths[split, modality] = lengths

    # --- Padding ---

    def _read_spans(self, modality: str) -> dict[str, NDArray[np.int64]]:
        """Where the real frames of each sample begin, and how many there are, int64 (N, 2), for each split."""
        used = {split: self._used_frames(self._data[split][modality]) for split in self.splits}
        stored = {split: self._lengths[split, modality] for split in self.splits}
        fits_start = fits_end = beyond = 0
        for split, (first, last, frames) in used.items():
            length = stored[split]
            if length is None:
                at_start, at_end = first == 0, last == frames
            else:
                at_start, at_end = last <= length, first >= frames - length
                beyond += int((~at_start & ~at_end).sum())
            fits_start += int((at_start & ~at_end).sum())
            fits_end += int((at_end & ~at_start & (last > 0)).sum())
        from_end = fits_end > fits_start
        spans = {}
        for split, (first, last, frames) in used.items():
            length = stored[split]
            if length is None:
                begin = np.where(from_end, first, 0)
                length = np.maximum(np.where(from_end, frames, last) - begin, 1)
            else:
                at_start, at_end = last <= length, first >= frames - length
                begin = np.where(at_end & (~at_start | from_end), frames - length, 0)
                begin = np.where(~at_start & ~at_end & from_end, frames - length, begin)
            spans[split] = np.stack([begin, length], axis=1)
        no_lengths = any(length is None for length in stored.values())
        self._note_padding(modality, no_lengths, from_end, fits_start, fits_end, beyond)
        return spans

    @staticmethod
    def _used_frames(array: Sequences) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each sample the first frame that is not all zero, the one after the last, and the number of all."""
        found = np.zeros((3, len(array)), dtype=np.int64)
        for index, item in enumerate(array):
            if item is not None:
                used = np.flatnonzero(item.any(axis=1))
                found[:, index] = (used[0], used[-1] + 1, len(item)) if len(used) else (0, 0, len(item))
        return found[0], found[1], found[2]

    def _note_padding(
        self, modality: str, no_lengths: bool, from_end: bool, fits_start: int, fits_end: int, beyond: int
    ) -> None:
        side = "start" if from_end else "end"
        if no_lengths:
            way = "begins at its first" if from_end else "ends at its last"
            self.notes.append(f"The file has no lengths for {modality}: a sample {way} frame that is not all zero.")
            other, kept = ("end", fits_start) if from_end else ("start", fits_end)
            if kept:
                self.notes.append(
                    f"{kept} samples have all-zero {modality} frames at the {other} alone, which were kept; if they are "
                    "padding, store the lengths."
                )
        elif from_end or fits_end:
            self.notes.append(
                f"The {modality} of {fits_end} samples is padded at the start, as their frames and lengths show; their last "
                "frames were taken."
            )
        if beyond:
            self.notes.append(
                f"{beyond} samples have {modality} frames beyond their stored length that are not all zero; they were left "
                f"out at the {side}."
            )

    def _is_aligned(self, split: str) -> bool:
        if len(self.widths) < 2:
            return False
        arrays = [self._data[split][modality] for modality in self.widths]
        audio, vision = (self._lengths[split, modality] for modality in self.widths)
        frames = {0 if isinstance(array, list) else array.shape[1] for array in arrays}
        same = audio is vision if audio is None or vision is None else bool((audio == vision).all())
        return same and len(frames) == 1 and frames != {1}

    # --- Rows ---

    def _identity(self, split: str, index: int) -> tuple[str, str, str]:
        try:
            return split_id(self._data[split][ID][index])
        except MsaError as error:
            raise MsaError(f"Sample {index} of the split {split!r} of {self._path}: {error}") from error

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return len(self._data[split][_TEXTS])

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split, once; afterwards its arrays are gone."""
        identities = [self._identity(split, index) for index in range(self.count(split))]
        data = self._data.pop(split)
        for index, (identifier, video, clip) in enumerate(identities):
            text = text_of(data[_TEXTS][index], f"The transcript of {identifier!r} in {self._path}")
            row = {ID: identifier, VIDEO_ID: video, CLIP_ID: clip, TEXT: text, LABEL: data[_LABELS][index]}
            if self._unimodal:
                row |= {column: data[key][index] for key, column in _UNIMODAL_SOURCES.items()}
            if self._annotated:
                row[ANNOTATION] = text_of(
                    data[_ANNOTATIONS][index], f"The annotation of {identifier!r} in {self._path}"
                )
            for modality, width in self.widths.items():
                array, (begin, length) = data[modality][index], self._spans[modality][split][index]
                is_present = array is not None and length > 0
                row[modality] = array[begin : begin + length] if is_present else np.zeros((1, width), np.float32)
                if self._presence:
                    row[PRESENCE[modality]] = is_present
            yield row


_TEXTS_OF_OTHERS = ("text", "text_bert", "labels", _LABELS)


def _names(values: Mapping[Any, Any]) -> dict[str, Any]:
    """The values by name; Python 2 and others write names as bytes."""
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in values.items()}
