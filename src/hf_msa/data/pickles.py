"""Reading MMSA feature pickles, which come from strangers: only arrays and plain containers are ever built.

A pickle is a small program: it names functions and calls them. The unpickler resolves a closed list of names, each
to a function of this module, so that neither numpy's nor Python's own callables are ever within reach. Arrays and
dtypes are first kept as inert placeholders and built by us at the end, because numpy's own `__setstate__` trusts what
it is given (an object dtype whose flags claim plain bytes would turn bytes into pointers).
"""

import io
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from datasets.utils import tqdm

from hf_msa.data.schema import (
    ANNOTATION,
    CLIP_ID,
    ID,
    ID_SEPARATOR,
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

_READ_BYTES = 1 << 26
_MAX_DEPTH = 50


# --- The restricted unpickler ---


class _PickledDtype:
    """A dtype as a pickle describes it: a type code, then a state with the byte order. Inert until `build`."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: Any, *_: Any) -> None:
        self._code = code.decode("latin1") if isinstance(code, bytes) else code
        self._order = "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, ...): the rest only matters for structured dtypes.
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("a structured dtype")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a dtype of unknown byte order")
        self._order = order

    def build(self) -> np.dtype[Any]:
        """Return the dtype: booleans, numbers, bytes, strings or objects; nothing else."""
        if not isinstance(self._code, str):
            raise pickle.UnpicklingError("a dtype without a type code")
        dtype = np.dtype(self._code)
        if dtype.kind not in "biufcSUO" or dtype.names is not None or dtype.subdtype is not None:
            raise pickle.UnpicklingError(f"an array of {dtype}")
        return dtype if self._order in "|=" else dtype.newbyteorder(self._order)  # type: ignore[arg-type]


class _PickledArray:
    """An array as a pickle describes it: shape, dtype and bytes (or, for objects, a list). Inert until `build`."""

    __slots__ = ("_state", "_value")

    def __init__(self, state: tuple[Any, ...] | None = None) -> None:
        self._state = state
        self._value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise pickle.UnpicklingError("an array of unknown form")
        self._state = state[-4:]

    def build(self, resolve: Callable[[Any], Any]) -> np.ndarray:
        """Return the array, a view of the bytes that were read.

        Args:
            resolve: Turns the placeholders inside an object array into what they stand for.
        """
        if self._value is None:
            if self._state is None:
                raise pickle.UnpicklingError("an array without content")
            (shape, dtype, fortran, data), self._state = self._state, None
            self._value = _build_array(shape, dtype, bool(fortran), data, resolve)
        return self._value


def _build_array(shape: Any, dtype: Any, fortran: bool, data: Any, resolve: Callable[[Any], Any]) -> np.ndarray:
    if isinstance(shape, int):
        shape = (shape,)
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise pickle.UnpicklingError("an array of unknown shape")
    if not isinstance(dtype, _PickledDtype):
        raise pickle.UnpicklingError("an array of unknown dtype")
    built, size, order = dtype.build(), math.prod(shape), "F" if fortran else "C"
    if built.hasobject:
        if not isinstance(data, list) or len(data) != size:
            raise pickle.UnpicklingError("an object array whose content does not fit its shape")
        objects = np.empty(size, dtype=object)
        for index, item in enumerate(data):
            objects[index] = resolve(item)
        return objects.reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]
    if isinstance(data, str):  # Bytes that Python 2 wrote arrive as latin-1 text.
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array without bytes")
    if len(data) != size * built.itemsize or (size and not built.itemsize):
        raise pickle.UnpicklingError("an array whose bytes do not fit its shape")
    flat = np.frombuffer(data, dtype=built) if size else np.zeros(0, dtype=built)
    if built.kind == "U" and size and flat.view(np.dtype("u4").newbyteorder(built.byteorder)).max() > sys.maxunicode:
        raise pickle.UnpicklingError("an array of strings whose characters do not exist")
    return flat.reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]


def _array(subtype: Any, *_: Any) -> _PickledArray:
    if not isinstance(subtype, _Allowed) or subtype.name != "ndarray":
        raise pickle.UnpicklingError("an array of a foreign class")
    return _PickledArray()


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> _PickledArray:
    return _PickledArray((shape, dtype, order == "F", data))


def _scalar(dtype: Any, data: Any = b"") -> _PickledArray:
    return _PickledArray(((), dtype, False, data))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # Protocol 2 writes bytes as text to be encoded; any other codec (some inflate) has no place here.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the codec {encoding!r}")
    return text.encode("latin1")


def _bytes(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    def build(data: Any = b"", encoding: Any = "latin1") -> Any:
        if isinstance(data, str):
            data = _encode(data, encoding)
        if not isinstance(data, bytes | bytearray):  # An integer would allocate as many bytes as it says.
            raise pickle.UnpicklingError("bytes made of something else")
        return kind(data)

    return build


def _container(kind: Callable[..., Any]) -> Callable[..., Any]:
    def build(*content: Any) -> Any:
        if not all(isinstance(part, list | tuple | dict) for part in content):
            raise pickle.UnpicklingError("a container made of something else")
        return kind(*content)

    return build


def _number(kind: Callable[..., Any]) -> Callable[..., Any]:
    def build(*content: Any) -> Any:
        if not all(isinstance(part, bool | int | float) for part in content):
            raise pickle.UnpicklingError("a number made of something else")
        return kind(*content)

    return build


def _not_callable(*_: Any) -> Any:
    raise pickle.UnpicklingError("a class that is only named, never called")


class _Allowed:
    """A name that a pickle may use. It can be called; its attributes cannot be set (the BUILD opcode would try)."""

    __slots__ = ("_call", "name")

    name: str
    _call: Callable[..., Any]

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("an attribute set on a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state set on a function")


def _allowed() -> dict[tuple[str, str], _Allowed]:
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): _not_callable,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): _container(dict),
    }
    for core in ("numpy.core", "numpy._core"):  # numpy 2 renamed its core; files of both kinds exist.
        names |= {
            (f"{core}.multiarray", "_reconstruct"): _array,
            (f"{core}.multiarray", "scalar"): _scalar,
            (f"{core}.numeric", "_frombuffer"): _array_from_buffer,
        }
    for builtins in ("builtins", "__builtin__"):  # Python 3's and Python 2's name.
        names |= {(builtins, kind.__name__): _container(kind) for kind in (list, tuple, dict, set, frozenset)}
        names |= {(builtins, kind.__name__): _bytes(kind) for kind in (bytes, bytearray)}
        names[builtins, "complex"] = _number(complex)
    return {key: _Allowed(key[1], call) for key, call in names.items()}


_ALLOWED: Final = _allowed()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        # An exact look-up: a dotted name ("sub.attribute") is a key like any other, and no key has a dot in it.
        try:
            return _ALLOWED[module, name]
        except KeyError:
            asked = f"{module}.{name}"
            asked = asked if asked.isprintable() else ascii(asked)
            raise MsaError(
                f"{self._path} asks for {asked}, which a file of features has no use for, so it was refused and "
                "nothing was run: numpy arrays and plain containers are allowed; get the file from a source you trust."
            ) from None


class _ProgressReader(io.BufferedReader):
    """A file that shows how much of it has been read; large reads go in pieces so that the bar moves."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path), buffer_size=1 << 20)
        self._bar = tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc=f"Reading {path.name}", delay=1, leave=False
        )

    def readinto(self, buffer: Any) -> int:
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view):
            count = super().readinto(view[filled : filled + _READ_BYTES])
            if not count:
                break
            filled += count
            self._bar.update(count)
        return filled

    def close(self) -> None:
        self._bar.close()
        super().close()


class _Resolver:
    """Replaces the placeholders inside containers by arrays; each container is walked once, cycles included."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}
        self._kept: list[Any] = []  # Keeps what `_done` knows by its address alive, so that no address comes twice.
        self._depth = 0

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, str | bytes | bytearray | int | float | complex):
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        self._kept.append(value)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise pickle.UnpicklingError("containers nested too deep")
        self._done[id(value)] = resolved = self._resolve(value)
        self._depth -= 1
        return resolved

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, _PickledArray):
            array = value.build(self)
            return array[()] if array.ndim == 0 else array
        if isinstance(value, dict):
            self._done[id(value)] = value
            items = [(self(key), self(item)) for key, item in value.items()]
            value.clear()
            value.update(items)
            return value
        if isinstance(value, list):
            self._done[id(value)] = value
            value[:] = map(self, value)
            return value
        if isinstance(value, tuple):
            return tuple(map(self, value))
        if isinstance(value, set | frozenset):
            return type(value)(map(self, value))
        raise pickle.UnpicklingError("a function or a dtype in place of data")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_pickle(path: str | Path) -> Any:
    """Read a pickle that holds numpy arrays and scalars, numbers, strings, bytes and plain containers.

    Arrays are views of the bytes read, so the peak of memory is about the size of the file (a protocol below 3 stores
    bytes as text and needs twice as much). They are read-only.

    Args:
        path: The file.

    Returns:
        What the file holds.

    Raises:
        MsaError: If the file is absent, truncated, no pickle, or asks for any name that is not on the closed list; the
            message then gives the full name. Nothing that the file names is ever run.
    """
    path = Path(path)
    if not path.is_file():
        raise MsaError(f"There is no file {path}; give the path of an MMSA feature pickle.")
    try:
        with _ProgressReader(path) as file:
            content = _Unpickler(file, path).load()
        return _Resolver()(content)
    except MsaError:
        raise
    except (EOFError, pickle.UnpicklingError) as error:
        reason = _one_line(error)
        if isinstance(error, EOFError) or "truncated" in reason or "exhausted" in reason:
            raise MsaError(
                f"{path} ends in the middle ({path.stat().st_size} bytes are there); download or copy it again."
            ) from error
        raise MsaError(f"{path} is not a readable feature pickle ({reason}); download or copy it again.") from error
    except MemoryError as error:
        raise MsaError(f"{path} asks for more memory than there is ({path.stat().st_size} bytes on disk).") from error
    except OSError as error:
        raise MsaError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # A damaged pickle can fail in any way; all that matters is that it is damaged.
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise MsaError(f"{path} is not a readable feature pickle ({reason}); download or copy it again.") from error


# --- The MMSA schema ---

_UNIMODAL_SOURCES = {
    "regression_labels_T": UNIMODAL_LABEL_KEYS["text"],
    "regression_labels_A": UNIMODAL_LABEL_KEYS["audio"],
    "regression_labels_V": UNIMODAL_LABEL_KEYS["vision"],
}


def _string(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def split_id(value: Any) -> tuple[str, str, str]:
    """Turn an id of any form that MMSA files use into (id, video id, clip id).

    Args:
        value: ``"video$_$clip"``, bytes, a number, or a row such as (video, start, end).
    """
    if isinstance(value, np.ndarray | list | tuple):
        parts = [_string(part) for part in np.asarray(value, dtype=object).ravel().tolist()]
        video, clip = parts[0], "_".join(parts[1:])
    else:
        video, _, clip = _string(value).partition(ID_SEPARATOR)
    return (f"{video}{ID_SEPARATOR}{clip}" if clip else video), video, clip


def _true_length(array: np.ndarray) -> int:
    """Return the length of a (T, d) array without its trailing all-zero frames, at least 1."""
    used = np.flatnonzero(array.any(axis=1))
    return int(used[-1]) + 1 if len(used) else 1


class PickleSource:
    """The rows of an MMSA pickle. A split's arrays are let go as soon as its rows have been given out.

    Args:
        path: The pickle.

    Attributes:
        description: What kind of file it is.
        splits: The splits it holds, in the order train, validation, test.
        features: The columns of its rows.
        widths: Modality name -> features per frame.
        aligned: Whether audio and vision march in step: several frames, as many in both, with the same lengths.
        feature_names: Empty; a pickle does not tell them.
        notes: How the file was read, in sentences.

    Raises:
        MsaError: If the file is unsafe, damaged, of an older schema, or its arrays do not fit each other.
    """

    description = "MMSA pickle"

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        content = read_pickle(self._path)
        self._data = self._splits_of(content)
        self.splits = [split for split in SPLITS if split in self._data]
        self.notes: list[str] = []
        self.feature_names: dict[str, tuple[str, ...]] = {}
        first = self._data[self.splits[0]]
        present = [modality for modality in FEATURE_MODALITIES if modality in first]
        self._unimodal = all(key in data for data in self._data.values() for key in _UNIMODAL_SOURCES)
        self._annotated = all("annotations" in data for data in self._data.values())
        self._lengths: dict[tuple[str, str], np.ndarray | None] = {}
        self.widths: dict[str, int] = {}
        for split in self.splits:
            self._check_split(split, present)
        no_lengths = [
            modality for modality in present if any(self._lengths[split, modality] is None for split in self.splits)
        ]
        self.aligned = all(self._is_aligned(split) for split in self.splits)
        self._presence = any(lengths is not None and bool((lengths == 0).any()) for lengths in self._lengths.values())
        if no_lengths:
            self.notes.append(
                f"The file has no lengths for {' and '.join(no_lengths)}: a sample ends at its last frame that is not "
                "all zero."
            )
        if self._presence:
            self.notes.append("Samples with a stored length of 0 are marked as lacking that modality.")
        self.features = msa_features(
            self.widths.get("audio"),
            self.widths.get("vision"),
            unimodal_labels=self._unimodal,
            annotation=self._annotated,
            presence=self._presence,
        )

    def _error(self, split: str, problem: str) -> MsaError:
        return MsaError(f"The split {split!r} of {self._path} {problem}")

    def _splits_of(self, content: Any) -> dict[str, dict[str, Any]]:
        if not isinstance(content, dict):
            raise MsaError(
                f"{self._path} holds a {type(content).__name__}; an MMSA pickle holds a dictionary with the splits "
                "train, valid and test."
            )
        named = [key for key in content if key in SPLIT_ALIASES]
        if not named:
            keys = ", ".join(map(repr, list(content)[:8]))
            raise MsaError(f"{self._path} has none of the splits train, valid (or dev) and test; its keys are {keys}.")
        data: dict[str, dict[str, Any]] = {}
        for key in named:
            split = SPLIT_ALIASES[key]
            if split in data:
                raise MsaError(f"{self._path} holds the {split} split twice, under different names; keep one.")
            values = content.pop(key)
            if not isinstance(values, dict):
                raise self._error(
                    key,
                    f"holds a {type(values).__name__}, the schema of MMIM's own files; give an MMSA pickle instead.",
                )
            self._refuse_old_schema(key, values)
            # What no column is made of goes at once: the precomputed text features alone are 40 % of a MOSEI file.
            wanted = {ID, "raw_text", "annotations", "regression_labels", *_UNIMODAL_SOURCES}
            wanted |= {name for modality in FEATURE_MODALITIES for name in (modality, f"{modality}_lengths")}
            data[split] = {name: value for name, value in values.items() if name in wanted}
            values.clear()
            self._flatten(data[split])
        return data

    @staticmethod
    def _flatten(values: dict[str, Any]) -> None:
        # Columns may come as (N, 1), and features that were averaged over time as (N, d).
        for name, value in values.items():
            if name in FEATURE_MODALITIES and isinstance(value, np.ndarray) and value.ndim == 2:
                values[name] = value[:, None, :]
            elif name not in (ID, *FEATURE_MODALITIES) and isinstance(value, np.ndarray):
                values[name] = value.reshape(-1)

    def _refuse_old_schema(self, split: str, values: Mapping[str, Any]) -> None:
        if "labels" in values and "regression_labels" not in values:
            raise self._error(
                split,
                "has 'labels' and no 'regression_labels' or 'raw_text': the older MulT / MMIM schema, which keeps no "
                "transcripts; give an MMSA pickle, or a label.csv with the features as files.",
            )
        if "raw_text" not in values:
            raise self._error(
                split,
                "has no 'raw_text': the transcripts are needed, because the text encoder has its own tokenizer; "
                "token ids ('text_bert') or vectors ('text') cannot replace them.",
            )
        for key in (ID, "regression_labels"):
            if key not in values:
                keys = ", ".join(map(repr, list(values)[:12]))
                raise self._error(split, f"has no {key!r}; its keys are {keys}.")

    def _check_split(self, split: str, present: Sequence[str]) -> None:
        data = self._data[split]
        count = len(data["raw_text"]) if isinstance(data["raw_text"], np.ndarray | list | tuple) else 0
        if not count:
            raise self._error(split, "has no samples; leave it out or fill it.")
        for key in (key for key in data if key not in FEATURE_MODALITIES and not key.endswith("_lengths")):
            if not isinstance(data[key], np.ndarray | list | tuple):
                raise self._error(split, f"has a {type(data[key]).__name__} as {key!r}; a list or an array is needed.")
            if len(data[key]) != count:
                raise self._error(split, f"has {count} transcripts but {len(data[key])} of {key!r}.")
        if (modalities := [modality for modality in FEATURE_MODALITIES if modality in data]) != list(present):
            raise self._error(
                split, f"has {modalities or 'no features'}, the split {self.splits[0]!r} {present or 'none'}."
            )
        for modality in present:
            self._check_modality(split, modality, count)

    def _check_modality(self, split: str, modality: str, count: int) -> None:
        data = self._data[split]
        array = data[modality]
        if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "fiu":
            shape = getattr(array, "shape", type(array).__name__)
            raise self._error(
                split, f"has {modality} of form {shape}; numbers of shape (samples, frames, features) are needed."
            )
        if len(array) != count:
            raise self._error(split, f"has {count} transcripts but {len(array)} of {modality!r}.")
        if 0 in array.shape[1:]:
            raise self._error(split, f"has {modality} of shape {array.shape}, without a frame or a feature.")
        if self.widths.setdefault(modality, array.shape[2]) != array.shape[2]:
            raise self._error(
                split,
                f"has {array.shape[2]} {modality} features per frame, the split {self.splits[0]!r} "
                f"{self.widths[modality]}; all splits need the same.",
            )
        lengths = data.pop(f"{modality}_lengths", None)
        if lengths is None:
            self._lengths[split, modality] = None
            return
        try:
            lengths = np.asarray(lengths).reshape(-1).astype(np.int64)
        except (TypeError, ValueError) as error:
            raise self._error(split, f"has '{modality}_lengths' that are not numbers.") from error
        if len(lengths) != count:
            raise self._error(split, f"has {count} transcripts but {len(lengths)} of '{modality}_lengths'.")
        wrong = np.flatnonzero((lengths < 0) | (lengths > array.shape[1]))
        if len(wrong):
            identifier = split_id(data[ID][wrong[0]])[0]
            raise self._error(
                split,
                f"says that the {modality} of {identifier!r} has {lengths[wrong[0]]} frames, but its array has "
                f"{array.shape[1]}; lengths and features do not belong together.",
            )
        self._lengths[split, modality] = lengths

    def _is_aligned(self, split: str) -> bool:
        if len(self.widths) < 2:
            return False
        frames = {self._data[split][modality].shape[1] for modality in self.widths}
        audio, vision = (self._lengths[split, modality] for modality in self.widths)
        same = audio is vision if audio is None or vision is None else bool((audio == vision).all())
        return same and len(frames) == 1 and frames != {1}

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return len(self._data[split]["raw_text"])

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split, once; afterwards its arrays are gone."""
        data = self._data.pop(split)
        texts, labels = data["raw_text"], np.asarray(data["regression_labels"]).reshape(-1)
        for index in range(len(texts)):
            identifier, video, clip = split_id(data[ID][index])
            row = {ID: identifier, VIDEO_ID: video, CLIP_ID: clip, TEXT: _string(texts[index]), LABEL: labels[index]}
            if self._unimodal:
                row |= {column: data[key][index] for key, column in _UNIMODAL_SOURCES.items()}
            if self._annotated:
                row[ANNOTATION] = _string(data["annotations"][index])
            for modality in self.widths:
                array, lengths = data[modality][index], self._lengths[split, modality]
                length = _true_length(array) if lengths is None else int(lengths[index])
                row[modality] = array[: max(length, 1)]
                if self._presence:
                    row[PRESENCE[modality]] = length > 0
            yield row
