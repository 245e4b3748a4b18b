"""Reading MMSA feature pickles, which come from strangers: only arrays and plain containers are ever built.

A pickle is a small program: it names functions and calls them. The unpickler resolves a closed list of names, each
to a function of this module, so that neither numpy's nor Python's own callables are ever within reach. Arrays and
dtypes are first kept as inert placeholders and built by us at the end, because numpy's own `__setstate__` trusts what
it is given (an object dtype whose flags claim plain bytes would turn bytes into pointers). What would cost far more than
the file's size is refused before (`pickle_scan`).
"""

import io
import math
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from datasets.utils import tqdm

from hf_msa.data.pickle_scan import scan_pickle
from hf_msa.errors import MsaError

_READ_BYTES = 1 << 26
_MAX_DEPTH = 50
_MOST_EMPTY = 1 << 30
_DTYPE_CODE = re.compile(r"[<>|=]?(\?|b1|[iuf]\d{1,2}|c\d{1,2}|[SU]\d{1,9}|O8?)")
# Objects that a file of features may well hold in another form -> how to store them.
_ADVICE = {
    "torch": "it holds torch tensors, which are read by a way that could run anything; store numpy arrays (tensor.numpy())",
    "pandas": "it holds pandas tables; store numpy arrays and lists (series.to_numpy(), series.tolist())",
    "scipy": "it holds sparse arrays; store numpy arrays (array.toarray())",
}


# --- The restricted unpickler ---


_KEYS = str | bytes | bool | int | float | None


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
        if _DTYPE_CODE.fullmatch(self._code) is None:
            raise pickle.UnpicklingError(f"an array of {self._code!a:.40}")
        dtype = np.dtype(self._code)
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
    if not size and math.prod(side or 1 for side in shape) > _MOST_EMPTY:
        raise pickle.UnpicklingError("an empty array of a huge shape")
    if built.hasobject:
        if not isinstance(data, list) or len(data) != size:
            raise pickle.UnpicklingError("an object array whose content does not fit its shape")
        objects = np.empty(size, dtype=object)
        for index, item in enumerate(data):
            objects[index] = resolve(item)
        return objects.reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]
    if isinstance(data, str):  # Bytes that Python 2 wrote.
        data = data.encode("utf-8", "surrogateescape")
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


def _set(kind: Callable[..., Any]) -> Callable[..., Any]:
    def build(content: Any = ()) -> Any:
        # The hash of a tuple of tuples can take for ever.
        if not isinstance(content, list | tuple) or not all(isinstance(part, _KEYS) for part in content):
            raise pickle.UnpicklingError("a set of something else than texts and numbers")
        return kind(content)

    return build


def _ordered(content: Any = ()) -> dict[Any, Any]:
    pairs = content if isinstance(content, list | tuple) else None
    if pairs is None or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], _KEYS) for pair in pairs
    ):
        raise pickle.UnpicklingError("an ordered dictionary of unknown form")
    return dict(pairs)


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
        ("collections", "OrderedDict"): _ordered,
    }
    for core in ("numpy.core", "numpy._core"):  # numpy 2 renamed its core; files of both kinds exist.
        names |= {
            (f"{core}.multiarray", "_reconstruct"): _array,
            (f"{core}.multiarray", "scalar"): _scalar,
            (f"{core}.numeric", "_frombuffer"): _array_from_buffer,
        }
    for builtins in ("builtins", "__builtin__"):  # Python 3's and Python 2's name.
        names |= {(builtins, kind.__name__): _set(kind) for kind in (set, frozenset)}
        names |= {(builtins, kind.__name__): _bytes(kind) for kind in (bytes, bytearray)}
        names[builtins, "complex"] = _number(complex)
    return {key: _Allowed(key[1], call) for key, call in names.items()}


_ALLOWED: Final = _allowed()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        # The strings of Python 2 are bytes: text in UTF-8 comes out as such, and the content of arrays as it was.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        # An exact look-up: a dotted name ("sub.attribute") is a key like any other, and no key has a dot in it.
        try:
            return _ALLOWED[module, name]
        except KeyError:
            asked = f"{module}.{name}"
            asked = asked if asked.isprintable() else ascii(asked)
            advice = _ADVICE.get(module.partition(".")[0])
            raise MsaError(
                f"{self._path} asks for {asked:.100}, which a file of features has no use for, so it was refused and "
                "nothing was run: "
                + (advice or "numpy arrays and plain containers are allowed; get the file from a source you trust")
                + "."
            ) from None


class _ProgressReader(io.BufferedReader):
    """A file that shows how much of it has been read; large reads go in pieces so that the bar moves."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path), buffer_size=1 << 20)
        self._bar = tqdm(
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=f"Reading {path.name}",
            delay=1,
            leave=False,
            disable=None,
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
            if not all(isinstance(key, _KEYS | np.number | np.bool_) for key, _ in items):
                raise pickle.UnpicklingError("a key of a dictionary that is neither a text nor a number")
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
        MsaError: If the file is absent, truncated, no pickle, would cost far more than its size, or asks for any name that
            is not on the closed list; the message then gives the full name. Nothing that the file names is ever run.
    """
    path = Path(path)
    if not path.is_file():
        raise MsaError(f"There is no file {path}; give the path of an MMSA feature pickle.")
    try:
        scan_pickle(path)
        with warnings.catch_warnings(), _ProgressReader(path) as file:
            warnings.simplefilter("ignore")  # Of strings that Python would write in another way.
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
