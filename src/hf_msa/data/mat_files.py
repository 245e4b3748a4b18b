"""MATLAB files of COVAREP: a matrix `features` and the names of its columns, and nothing else is ever built of them."""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MAX_BYTES = 256 * 2**20
"""Unpacked: COVAREP's features of an hour at 100 frames per second are 213 MB."""
# Types of elements and classes of arrays, as MATLAB's description of its level 5 format numbers them.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHARACTERS, _NUMERIC = 1, 4, range(6, 16)
_COMPLEX = 0x0800
_CUT_OFF = "it is cut off or damaged, copy it again"


def read_mat(file: Path) -> tuple[NDArray[np.generic], tuple[str, ...] | None]:
    """Read the features of a MATLAB file of version 5 to 7, as COVAREP writes it.

    Args:
        file: Its matrix `features` is (frames, width); its cell array `names`, if it has one, names the columns.

    Returns:
        The features, of the type in which they are stored, and their names.

    Raises:
        ValueError: If it is damaged, of another version, unpacks to more than 256 MiB, or holds no such matrix.
    """
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES // 2**20} MiB")
    data = file.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or data[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise ValueError("it is no MATLAB file of version 5 to 7; save it again with -v7")
    features: NDArray[np.generic] | None = None
    names: tuple[str, ...] | None = None
    seen, left = [], _MAX_BYTES
    for kind, content in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            content = _unpacked(content, left)
            left -= len(content)
            kind, content = next(_elements(content, order), (0, content))
        if kind != _MATRIX:
            raise ValueError(_CUT_OFF)
        array = _Array(content, order)
        seen.append(array.name)
        if array.name == "features":
            features = array.numbers()
        elif array.name == "names":
            names = array.words()
    if features is None:
        raise ValueError(f"it has no matrix 'features', as COVAREP writes it, but {', '.join(seen) or 'nothing'}")
    if names is not None and (features.ndim != 2 or len(names) != features.shape[1]):
        raise ValueError(f"it has {len(names)} names for features of shape {features.shape}")
    return features, names


class _Array:
    """An array of a MATLAB file, of which nothing is built but what is asked for."""

    def __init__(self, content: memoryview, order: str) -> None:
        self._order = order
        self._parts = _elements(content, order)
        flags, sizes, name = (self._next()[1] for _ in range(3))
        if len(flags) != 8 or len(sizes) % 4 or len(sizes) > 4 * 32:
            raise ValueError(_CUT_OFF)
        flag: int = struct.unpack_from(f"{order}I", flags)[0]
        self._class, self._is_complex = flag & 0xFF, bool(flag & _COMPLEX)
        self._shape: tuple[int, ...] = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
        if min(self._shape, default=-1) < 0:
            raise ValueError(_CUT_OFF)
        self.name = _text(bytes(name), "ascii")

    def _next(self) -> tuple[int, memoryview]:
        found = next(self._parts, None)
        if found is None:
            raise ValueError(_CUT_OFF)
        return found

    def numbers(self) -> NDArray[np.generic]:
        """The numbers, which may be stored in fewer bytes than they have in MATLAB."""
        if self._class not in _NUMERIC or self._is_complex:
            raise ValueError(f"its {self.name!r} is no matrix of real numbers")
        kind, content = self._next()
        stored = np.dtype(f"{self._order}{_NUMBERS.get(kind, 'V0')}")
        if stored.kind == "V" or math.prod(self._shape) * stored.itemsize != len(content):
            raise ValueError(_CUT_OFF)
        return np.frombuffer(content, stored).reshape(self._shape, order="F")

    def words(self) -> tuple[str, ...]:
        """The words of a cell array."""
        if self._class != _CELL:
            raise ValueError(f"its {self.name!r} is no cell array of words")
        cells = [_Array(content, self._order)._word() for kind, content in self._parts if kind == _MATRIX]
        if len(cells) != math.prod(self._shape):
            raise ValueError(_CUT_OFF)
        return tuple(cells)

    def _word(self) -> str:
        kind, content = self._next()
        if self._class != _CHARACTERS or self._shape[:-1] != (1,):
            raise ValueError("its 'names' holds what is no word")
        encoding = {4: "utf-16", 17: "utf-16", 18: "utf-32"}.get(kind)
        if encoding is None:
            return _text(bytes(content), "utf-8")
        return _text(bytes(content), f"{encoding}-{'le' if self._order == '<' else 'be'}")


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Types and contents of the elements that follow each other."""
    place = 0
    while place < len(data):
        if place + 8 > len(data):
            raise ValueError(_CUT_OFF)
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # One of up to four bytes, which stand where others have their size.
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            if size > 4:
                raise ValueError(_CUT_OFF)
        if start + size > len(data):
            raise ValueError(_CUT_OFF)
        yield kind, data[start : start + size]
        place = start + size if kind == _COMPRESSED else start + size + -(start + size) % 8


def _unpacked(content: memoryview, most: int) -> memoryview:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(content, max(1, most))
    except zlib.error as error:
        raise ValueError(_CUT_OFF) from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        full = len(unpacked) >= most
        raise ValueError(f"it unpacks to more than {_MAX_BYTES // 2**20} MiB" if full else _CUT_OFF)
    return memoryview(unpacked)


def _text(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(_CUT_OFF) from error
