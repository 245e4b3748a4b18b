"""Files that hold the features of one clip: .npy, COVAREP's .mat, and .csv of OpenFace, openSMILE, COVAREP and pandas."""

import csv
import io
import math
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.mat_files import read_mat
from hf_msa.errors import MsaError, reason
from hf_msa.models.msa_audio_features import COVAREP74_COLUMNS
from hf_msa.models.msa_openface import OPENFACE_BOOKKEEPING, TRACK_COLUMNS, FaceReport, face_track

SUFFIXES = (".npy", ".csv", ".mat")
# Bookkeeping that OpenFace, openSMILE and its Python package, and pandas with a named index, write before the features.
_NOT_FEATURES = {
    *OPENFACE_BOOKKEEPING,
    *("name", "frameindex", "frametime", "file", "start", "end"),
    *("index", "frame_id", "time"),
}
# What C libraries, Windows' among them, and pandas write for a number that is none.
_NOT_A_NUMBER = {
    "",
    "na",
    "n/a",
    "nan",
    "null",
    "none",
    "-nan",
    "nan(ind)",
    "-nan(ind)",
    "1.#qnan",
    "-1.#qnan",
    "1.#ind",
    "-1.#ind",
}
_INFINITE = {"1.#inf": math.inf, "-1.#inf": -math.inf}

Rows = list[list[str]]


class FeatureTable(NamedTuple):
    """A feature sequence, and what its file says of it.

    Args:
        values: `(frames, width)` float32.
        names: Names of the features, if the file has a header.
        times: `(frames,)` in seconds, if the file has OpenFace's `timestamp`.
        faces: Whose face was kept, if the file says in which rows a face was found, or which face.
    """

    values: NDArray[Any]
    names: tuple[str, ...] | None = None
    times: NDArray[np.float64] | None = None
    faces: FaceReport | None = None


def read_feature_file(path: str | Path) -> FeatureTable:
    """Read a feature sequence.

    Args:
        path: A .npy file with an array of numbers, (frames, width), or (width,) for a single frame; a .mat file of COVAREP,
            of MATLAB's version 5 to 7; or a .csv file, separated by commas, semicolons or tabs, with or without a header.
            Left out are the columns of bookkeeping that OpenFace and openSMILE write, the row numbers of pandas, and what
            follows a comma at the end of every line.

    Returns:
        The sequence, with NaN and infinity as they stand there, NaN for an empty cell; the names of its features, if it has
        a header or is COVAREP's: a .mat file, or a .csv of 74 columns, the second of which is 0 or 1. Of OpenFace's rows
        those without a face (`success` 0) are left out and, of several faces, one is kept (`msa_openface.face_track`);
        there may be no frame left.

    Raises:
        MsaError: If the file is not there, is of another kind, or holds no table of numbers: a row with too few or too many
            cells, a word among numbers, or a first row or column of which nobody can say whether it is part of the features.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise MsaError(f"{str(path)!r} is no feature file: give a .npy, .csv or .mat file with one row per frame.")
    try:
        # A pipe would be waited for, for ever.
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("it is not a regular file")
        if suffix == ".npy":
            table = FeatureTable(_read_npy(file))
        elif suffix == ".mat":
            table = FeatureTable(*read_mat(file))
            _refuse_doubled(table.names or ())
        else:
            table = _read_csv(file)
    except UnicodeDecodeError as error:
        raise MsaError(f"{str(path)!r} cannot be read as a feature sequence: it is not UTF-8 text.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise MsaError(
            f"{str(path)!r} cannot be read as a feature sequence: {getattr(error, 'strerror', None) or reason(error)}."
        ) from error
    values = table.values[None] if table.values.ndim == 1 else table.values
    is_empty = 0 in values.shape and table.faces is None
    if values.ndim != 2 or is_empty or values.dtype.kind not in "buif":
        raise MsaError(
            f"{str(path)!r} holds an array of {values.dtype} of shape {values.shape}; a feature sequence is a table of "
            "numbers, (frames, width), of one frame at least."
        )
    with np.errstate(over="ignore"):
        return table._replace(values=values.astype(np.float32))


def _read_npy(file: Path) -> NDArray[np.generic]:
    """Read an array whose size is what the header says; numpy's own reader would first allocate what it says."""
    with file.open("rb") as raw:
        version = np.lib.format.read_magic(raw)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"it is of version {version} of the .npy format")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shape, fortran, dtype = read_header(raw)
        except Exception as error:  # It is a line of Python; numpy lets through what the parser raises.
            raise ValueError("its header is damaged") from error
        if dtype.hasobject:
            raise ValueError("it holds Python objects; save an array of numbers")
        count, there = math.prod(shape), os.fstat(raw.fileno()).st_size - raw.tell()
        if min(shape, default=0) < 0 or count * dtype.itemsize != there:
            raise ValueError(
                f"its header says {shape} of {dtype}, but {there} bytes follow; it is cut off or damaged, copy it again"
            )
        if not count:
            return np.zeros(shape, dtype)
        flat = np.frombuffer(raw.read(), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


# --- Tables ---


def _read_csv(file: Path) -> FeatureTable:
    text = file.read_text(encoding="utf-8-sig").rstrip("\r\n ")
    if not text:
        raise ValueError("it has no frames")
    lines = io.StringIO(text, newline="")
    separator = next((mark for mark in ";\t" if mark in lines.readline()), ",")
    lines.seek(0)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    header = rows.pop(0) if _is_header(rows) else None
    if not rows:
        raise ValueError("it has no frames")
    first = 1 if header is None else 2
    # Some tools end each line with a separator, whether the header has one or not.
    if len(rows[0]) > 1 and all(row and not row[-1] for row in rows):
        if header is None or len(rows[0]) == len(header) + 1 or not header[-1]:
            rows = [row[:-1] for row in rows]
    if header is not None and len(header) == len(rows[0]) + 1 and not header[-1]:
        header.pop()
    width = len(rows[0] if header is None else header)
    for number, row in enumerate(rows, first):
        if len(row) != width:
            said = f"its header has {width} cells" if header is not None else f"its first row has {width} cells"
            raise ValueError(f"{said}, but row {number} {len(row)}")
    if header is None:
        _refuse_row_numbers(rows)
        values = _numbers(rows, range(width), first, None)
        # COVAREP's tables have no header; whether there is voice, their second column, is 0 or 1.
        is_covarep = width == len(COVAREP74_COLUMNS) and np.isin(values[:, 1], (0, 1)).all()
        return FeatureTable(values, COVAREP74_COLUMNS if is_covarep else None)
    places = _feature_columns(header, rows)
    kept, faces = _face_rows(header, rows)
    _check_frames(header, rows, kept)
    values = _numbers(rows, places, first, header)[kept]
    times = None
    if faces is not None and "timestamp" in header:
        times = _numbers(rows, [header.index("timestamp")], first, header)[kept, 0]
    return FeatureTable(values, tuple(header[place] for place in places), times, faces)


def _is_header(rows: Rows) -> bool:
    """Whether the first row has names rather than numbers."""
    head, rest = rows[0], rows[1:]
    numbers = [cell for cell in head if cell and _number(cell) is not None]
    is_counted = numbers == [str(place) for place in range(len(numbers))]
    if len(numbers) < len([cell for cell in head if cell]):
        if is_counted:
            return True
        raise ValueError(
            f"its first row, {', '.join(head):.60}, has both numbers and words; correct it, or give every column a name"
        )
    # pandas names columns 0, 1, 2, ... if nobody else does, after an empty cell where it writes the row numbers, too.
    is_indexed = len(head) > 1 and not head[0]
    counted = head[1:] if is_indexed else head
    if not is_counted or len(numbers) != len(counted):
        return False
    if is_indexed and _counts_rows([row[0] for row in rest if row]):
        return True
    if not is_indexed and len(counted) > 1 and any(not _is_whole(cell) for row in rest for cell in row):
        return True
    if not is_indexed and not rest:
        return False
    raise ValueError(
        f"its first row, {', '.join(head)}, may be a header or a frame; give the columns names, or write the file without "
        "a header"
    )


def _counts_rows(cells: Sequence[str]) -> bool:
    return bool(cells) and any(list(cells) == [str(first + place) for place in range(len(cells))] for first in (0, 1))


def _is_whole(cell: str) -> bool:
    return cell.removeprefix("-").isdecimal()


def _refuse_row_numbers(rows: Rows) -> None:
    if len(rows) > 1 and len(rows[0]) > 1 and _counts_rows([row[0] for row in rows]):
        raise ValueError(
            "its first column counts the rows and nothing says what it is; leave it out, or give the columns names"
        )


def _face_rows(header: list[str], rows: Rows) -> tuple[NDArray[np.int64], FaceReport | None]:
    """Which rows are one person's; all where the table does not say."""
    if not {"success", "face_id"} & set(header):
        return np.arange(len(rows)), None
    places = [place for place, name in enumerate(header) if name in TRACK_COLUMNS and name != "face_id"]
    numbers = _numbers(rows, places, 2, header)
    columns: dict[str, NDArray[np.generic]] = {header[place]: numbers[:, at] for at, place in enumerate(places)}
    if "face_id" in header:
        columns["face_id"] = np.array([row[header.index("face_id")] for row in rows])
    return face_track(columns)


def _check_frames(header: list[str], rows: Rows, kept: NDArray[np.int64]) -> None:
    """Refuse rows that are out of order."""
    lower = [name.lower() for name in header]
    for name in ("frame", "frameindex"):
        if name in lower:
            numbers = [_number(rows[index][lower.index(name)]) for index in kept]
            for index, before, after in zip(kept[1:], numbers, numbers[1:], strict=False):
                if before is None or after is None or not before < after:
                    raise ValueError(
                        f"the column {name!r} does not ascend in row {index + 2}; sort the rows, each frame once"
                    )


def _feature_columns(header: list[str], rows: Rows) -> list[int]:
    _refuse_doubled(header)
    places = []
    for place, name in enumerate(header):
        if name.lower() in _NOT_FEATURES:
            continue
        if not name or name == "Unnamed: 0":
            if place == 0 and _counts_rows([row[0] for row in rows]):
                continue
            raise ValueError(f"column {place + 1} of its header has no name; give it one, or leave the column out")
        places.append(place)
    if not places:
        raise ValueError("none of its columns holds features")
    return places


def _refuse_doubled(names: Sequence[str]) -> None:
    doubled = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if doubled is not None:
        raise ValueError(f"its header has {doubled!r} twice; each feature needs a name of its own")


def _numbers(rows: Rows, places: Sequence[int], first: int, header: list[str] | None) -> NDArray[np.float64]:
    values = np.empty((len(rows), len(places)))
    for index, row in enumerate(rows):
        try:
            values[index] = [float(row[place]) for place in places]
        except ValueError:
            for column, place in enumerate(places):
                number = _number(row[place])
                if number is None:
                    name = f"column {place + 1}" if header is None else f"column {header[place]!r}"
                    raise ValueError(f"{row[place][:40]!r} in row {first + index}, {name}, is not a number") from None
                values[index, column] = number
    return values


def _number(cell: str) -> float | None:
    """The number in a cell, NaN for an empty one; None if it holds something else."""
    try:
        return float(cell)
    except ValueError:
        lower = cell.lower()
        return math.nan if lower in _NOT_A_NUMBER else _INFINITE.get(lower)
