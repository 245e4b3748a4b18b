"""Files that hold the feature sequence of one clip: .npy arrays, and .csv tables as OpenFace and openSMILE write them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hf_msa.errors import MsaError, reason

SUFFIXES = (".npy", ".csv")
# Bookkeeping that OpenFace and openSMILE write in front of the features.
_NOT_FEATURES = {"frame", "face_id", "timestamp", "confidence", "success", "frameindex", "frametime"}


def read_feature_file(path: str | Path) -> tuple[NDArray[np.float32], tuple[str, ...] | None]:
    """Read a feature sequence.

    Args:
        path: A .npy file with an array of numbers, (frames, width), or (width,) for a single frame; or a .csv file,
            separated by commas or semicolons, with or without a header. Columns of bookkeeping and of words are left out.

    Returns:
        The sequence (frames, width), with NaN and infinity as they stand there; and the names of its features, if it has a
        header.

    Raises:
        MsaError: If the file is not there, is of another kind, or holds no table of numbers.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise MsaError(f"{str(path)!r} is no feature file: give a .npy or a .csv file with one row per frame.")
    names: tuple[str, ...] | None = None
    try:
        values: NDArray[np.generic]
        if file.suffix == ".npy":
            values = np.asarray(np.load(file, allow_pickle=False))
        else:
            values, names = _read_csv(file)
    except (OSError, ValueError, EOFError) as error:
        raise MsaError(f"{str(path)!r} cannot be read as a feature sequence: {reason(error)}.") from error
    if values.ndim == 1:
        values = values[None, :]
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "buif":
        raise MsaError(
            f"{str(path)!r} holds an array of {values.dtype} of shape {values.shape}; a feature sequence is a table of "
            "numbers, (frames, width), of one frame at least."
        )
    return values.astype(np.float32), names


def _read_csv(file: Path) -> tuple[NDArray[np.float32], tuple[str, ...] | None]:
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    separator = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
    cells = [line.split(separator) for line in lines[:2]]
    is_named = bool(lines) and not all(map(_is_number, cells[0]))
    frames = lines[1:] if is_named else lines
    if not frames:
        raise ValueError("it has no frames")
    if not is_named:
        return np.loadtxt(frames, delimiter=separator, dtype=np.float32, ndmin=2), None
    names = [name.strip() for name in cells[0]]
    if len(cells[1]) != len(names):
        raise ValueError(f"its header has {len(names)} cells, but its first frame {len(cells[1])}")
    places = [
        place
        for place, (name, cell) in enumerate(zip(names, cells[1], strict=True))
        if name.lower() not in _NOT_FEATURES and _is_number(cell)
    ]
    values = np.loadtxt(frames, delimiter=separator, dtype=np.float32, ndmin=2, usecols=places)
    return values, tuple(names[place] for place in places)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
