"""Clips of a `datasets` data set that has a column of sound or video, as the Hub has many."""

import contextlib
import dataclasses
import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub.constants import HF_HUB_CACHE

from hf_msa.data.cells import list_of
from hf_msa.data.loading import load_msa
from hf_msa.data.sources import split_of_file
from hf_msa.errors import MsaError, is_disk_full, reason

from .manifest import Clip, check_ids, clip_of, columns_of, find_file

_SAVED = ("dataset_dict.json", "state.json")


def is_dataset(source: str | Path) -> bool:
    """Whether clips are in a data set: a folder of `save_to_disk`, of Parquet files named after splits, or a Hub name."""
    place = Path(source)
    if place.is_dir():
        # A table of scores may lie beside clips.
        tables = [*place.glob("*.parquet"), *place.glob("data/*.parquet")]
        return any((place / name).is_file() for name in _SAVED) or any(split_of_file(file) for file in tables)
    return not place.exists() and str(source).count("/") == 1 and not place.suffix and not place.is_absolute()


def read_dataset(source: str | Path) -> list[Clip]:
    """List the clips of a data set: of the first column of sound or video that it has.

    Args:
        source: See `is_dataset`. Other columns mean what they mean in a list of recordings, see
            `hf_msa.recordings.manifest.read_manifest`; the splits are those of the data set.

    Raises:
        MsaError: If it cannot be loaded, has no such column, or a cell is wrong.
    """
    # What the folder held before may have been replaced.
    _loaded.cache_clear()
    clips = []
    for split, (rows, column) in _loaded(str(source)).items():
        columns = columns_of([name for name in rows.column_names if name not in (column, "split")])
        columns = {name: of for name, of in columns.items() if name != "path"} | {"split": "split"}
        labels = rows.features.get(columns.get("label", ""))
        if isinstance(labels, datasets.ClassLabel):
            raise MsaError(
                f"The labels of {str(source)!r} are classes ({list_of(labels.names)}), and scores are needed; give it a "
                "column label of numbers."
            )
        records = rows.remove_columns([column])
        for number, (path, is_here) in enumerate(_cells(rows, column)):
            where = f"Row {number} of {split!r}"
            if path is None and not is_here:
                raise MsaError(f"{where} has no recording; leave it out.")
            named = path or f"{split}_{number}"
            record = {**records[number], "split": split}
            if is_here:
                clip = clip_of(record, columns, Path(named).name, Path(), where)
                clips.append(dataclasses.replace(clip, cell=(str(source), split, number)))
            else:
                clips.append(clip_of(record, columns, named, _root(source, named), where))
    check_ids(clips)
    return clips


@contextlib.contextmanager
def opened(clip: Clip) -> Iterator[Path]:
    """Give the file of a clip for a while: one that lies within a data set is written for it.

    Raises:
        MsaError: See `hf_msa.recordings.manifest.find_file`; what goes wrong meanwhile, in words that do not depend on where
            the file was written.
    """
    if clip.cell is None:
        yield find_file(clip)
        return
    source, split, number = clip.cell
    rows, column = _loaded(source)[split]
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        file = Path(folder) / clip.path.name
        file.write_bytes(rows[number][column]["bytes"])
        try:
            yield file
        except (MsaError, OSError, ValueError) as error:
            if is_disk_full(error):
                raise
            raise MsaError(reason(error).replace(str(file), str(clip.path))) from error


def version_of(clip: Clip) -> list[Any]:
    """What tells the content of a clip that lies within a data set from that of others, and of other data."""
    assert clip.cell is not None
    source, split, number = clip.cell
    return [_loaded(source)[split][0]._fingerprint, number]


@functools.cache
def _loaded(source: str) -> dict[str, tuple[datasets.Dataset, str]]:
    """The splits of a data set, and the column of each that holds the recordings, as they are stored."""
    place = Path(source)
    if any((place / name).is_file() for name in _SAVED):
        try:
            _check_names(place)
            loaded = datasets.load_from_disk(source)
        except MsaError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise MsaError(f"The data set {source!r} cannot be loaded: {reason(error)}.") from error
    else:
        loaded = load_msa(source)
    if isinstance(loaded, datasets.Dataset):
        loaded = datasets.DatasetDict({str(loaded.split or "train"): loaded})
    found = {}
    for split, rows in loaded.items():
        column = next(
            (name for name, kind in rows.features.items() if isinstance(kind, datasets.Audio | datasets.Video)), None
        )
        if column is None:
            raise MsaError(
                f"The data set {source!r} has no column of sound or video; it has {list_of(rows.column_names)}. Cast the "
                "column to datasets.Audio() or datasets.Video()."
            )
        found[str(split)] = (rows.cast_column(column, type(rows.features[column])(decode=False)), column)
    return found


def _check_names(folder: Path) -> None:
    """Check that a saved data set reads no file outside of its folder: the library follows whatever is written there.

    Raises:
        MsaError: If it would.
        OSError, ValueError, KeyError, TypeError: If it is damaged.
    """
    listed = folder / _SAVED[0]
    parts = [folder / name for name in json.loads(listed.read_text())["splits"]] if listed.is_file() else [folder]
    states = {part: json.loads((part / _SAVED[1]).read_text())["_data_files"] for part in parts}
    files = [part / data["filename"] for part, of in states.items() for data in of]
    for file in [*parts, *files]:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise MsaError(f"{file} leads out of the folder {folder}; copy the file into it.")


def _cells(rows: datasets.Dataset, column: str) -> Iterator[tuple[str | None, bool]]:
    """Of each recording its path, and whether its content is in the data set; no content is read."""
    for table in rows.select_columns([column]).with_format("arrow").iter(batch_size=64):
        cells: Any = table.column(0).combine_chunks()
        yield from zip(cells.field("path").to_pylist(), cells.field("bytes").is_valid().to_pylist(), strict=True)


def _root(source: str | Path, path: str) -> Path:
    """The folder that a file may not lie outside of: the data set's, or the cache of what came from the Hub."""
    if Path(source).is_dir():
        return Path(source)
    return next(
        (root for root in map(Path, (HF_DATASETS_CACHE, HF_HUB_CACHE)) if Path(path).is_relative_to(root)),
        Path(HF_HUB_CACHE),
    )
