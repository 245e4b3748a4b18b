"""Readers of all that a data set may come as: MMSA pickles, label.csv with feature files, Parquet."""

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hf_msa.data.feature_files import SUFFIXES, read_feature_file
from hf_msa.data.pickles import PickleSource, split_id
from hf_msa.data.rows import ListColumn
from hf_msa.data.schema import (
    ANNOTATION,
    CLIP_ID,
    FACTS_FILE,
    ID,
    ID_SEPARATOR,
    LABEL,
    PRESENCE,
    SPLIT_ALIASES,
    SPLITS,
    TEXT,
    VIDEO_ID,
    RowSource,
    msa_features,
    read_facts,
)
from hf_msa.errors import MsaError, unknown_name
from hf_msa.models.msa_schema import FEATURE_MODALITIES, UNIMODAL_LABEL_KEYS

_LABEL_FILE = "label.csv"
_LABEL_CSV_UNIMODAL = {"label_T": "label_text", "label_A": "label_audio", "label_V": "label_vision"}


class CsvSource:
    """The rows of a label.csv, with one file of features per clip where there are any.

    The file has the columns `video_id`, `clip_id`, `text`, `label`, `mode` (train, valid or test) and optionally
    `annotation`, `label_T`, `label_A`, `label_V`. Features lie in the folders ``audio`` and ``vision`` as
    ``<video_id>/<clip_id>.npy`` or ``<video_id>$_$<clip_id>.npy``, or the same as ``.csv``; a clip without a file
    lacks that modality.

    Args:
        path: The label.csv, or the folder that holds it.
        features: The folder that holds ``audio`` and ``vision``; by default that of the label.csv.

    Raises:
        MsaError: If a column is absent, a cell is wrong, or an id would lead out of the folder.
    """

    description = "label.csv with feature files"
    aligned = False

    def __init__(self, path: Path, features: Path | None = None) -> None:
        self._path = path / _LABEL_FILE if path.is_dir() else path
        self.notes: list[str] = []
        self._rows, self._annotated, self._unimodal = self._read()
        self.splits = [split for split in SPLITS if self._rows[split]]
        self._root = features if features is not None else self._path.parent
        folders = {modality: self._root / modality for modality in FEATURE_MODALITIES}
        self._folders = {modality: folder for modality, folder in folders.items() if folder.is_dir()}
        if features is not None and not self._folders:
            raise MsaError(
                f"{features} has neither a folder 'audio' nor 'vision'; feature files are looked for there."
            )
        if not self._folders:
            self.description = "label.csv"
        self.feature_names: dict[str, tuple[str, ...]] = {}
        self.widths: dict[str, int] = {}
        self._files = {modality: self._find(modality) for modality in self._folders}
        presence = any(None in files.values() for files in self._files.values())
        self.features = msa_features(
            self.widths.get("audio"),
            self.widths.get("vision"),
            unimodal_labels=self._unimodal,
            annotation=self._annotated,
            presence=presence,
        )

    def _read(self) -> tuple[dict[str, list[dict[str, str]]], bool, bool]:
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                columns = [name.strip() for name in reader.fieldnames or []]
                reader.fieldnames = columns
                lines = list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise MsaError(f"{self._path} cannot be read as a UTF-8 CSV file: {error}.") from error
        needed = (VIDEO_ID, CLIP_ID, TEXT, LABEL, "mode")
        for column in needed:
            if column not in columns:
                raise MsaError(
                    f"{self._path} has no column {column!r}; it needs {', '.join(needed)} and has "
                    f"{', '.join(columns)}."
                )
        rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
        for number, line in enumerate(lines, start=2):
            if None in line or None in line.values():
                raise MsaError(
                    f"Row {number} of {self._path} has not as many cells as the header; quote texts with commas."
                )
            mode = line["mode"].strip().lower()
            if mode not in SPLIT_ALIASES:
                raise unknown_name(f"mode in row {number} of {self._path}:", line["mode"], SPLIT_ALIASES)
            rows[SPLIT_ALIASES[mode]].append(line)
        if not lines:
            raise MsaError(f"{self._path} has a header but no rows.")
        return rows, ANNOTATION in columns, all(name in columns for name in _LABEL_CSV_UNIMODAL)

    def _find(self, modality: str) -> dict[tuple[str, str], Path | None]:
        """Find the feature file of each clip, and learn the width from the first."""
        files: dict[tuple[str, str], Path | None] = {}
        for row in (row for split in self.splits for row in self._rows[split]):
            key = (row[VIDEO_ID], row[CLIP_ID])
            files[key] = file = clip_file(
                self._folders[modality], *key, SUFFIXES, root=self._root, origin=str(self._path)
            )
            if file is not None and modality not in self.widths:
                self.widths[modality] = self._load(modality, file).shape[1]
        if modality not in self.widths:
            example = self._folders[modality] / next(iter(files))[0] / f"{next(iter(files))[1]}.npy"
            raise MsaError(f"No clip has a file in {self._folders[modality]}; {example} was looked for, for example.")
        return files

    def _load(self, modality: str, file: Path) -> np.ndarray:
        values, names = read_feature_file(file)
        if names is not None and names != self.feature_names.setdefault(modality, names):
            raise MsaError(f"{file} has other feature columns than the first file; all files need the same.")
        return values

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return len(self._rows[split])

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split."""
        for line in self._rows[split]:
            video, clip = line[VIDEO_ID], line[CLIP_ID]
            row: dict[str, Any] = {
                ID: f"{video}{ID_SEPARATOR}{clip}",
                VIDEO_ID: video,
                CLIP_ID: clip,
                TEXT: line[TEXT],
                LABEL: line[LABEL],
            }
            if self._annotated:
                row[ANNOTATION] = line[ANNOTATION]
            if self._unimodal:
                row |= {column: line[name] for name, column in _LABEL_CSV_UNIMODAL.items()}
            for modality, files in self._files.items():
                file = files[video, clip]
                if PRESENCE[modality] in self.features:
                    row[PRESENCE[modality]] = file is not None
                row[modality] = (
                    np.zeros((1, self.widths[modality]), "float32") if file is None else self._load(modality, file)
                )
            yield row


def clip_file(
    folder: Path, video: str, clip: str | None, suffixes: Sequence[str], *, root: Path, origin: str
) -> Path | None:
    """Find the file of a clip: ``<video>/<clip>`` or ``<video>$_$<clip>``, with the first suffix that there is.

    Args:
        folder: Where to look.
        video, clip: Its ids; without a clip's id the file is ``<video>``.
        suffixes: Kinds of file, each with its dot.
        root: The folder that no file may lie outside of.
        origin: Where the ids come from, for the message.

    Raises:
        MsaError: If an id or a link would lead out of `root`.
    """
    for part in (video,) if clip is None else (video, clip):
        if part in ("", ".", "..") or any(character in part for character in "/\\\0"):
            raise MsaError(
                f"The id {part!r} in {origin} cannot be part of a file name; ids may not be empty, '.' or '..', nor hold a "
                "slash."
            )
    names = (video,) if clip is None else (f"{video}/{clip}", f"{video}{ID_SEPARATOR}{clip}")
    for stem in (folder / name for name in names):
        for suffix in suffixes:
            file = stem.with_name(stem.name + suffix)
            if file.is_file():
                if not file.resolve().is_relative_to(root.resolve()):
                    raise MsaError(f"{file} leads out of {root}; copy the file into the folder.")
                return file
    return None


class ParquetSource:
    """The rows of Parquet files in the schema of hf_msa, e.g. of a folder that `hf-msa prepare` wrote.

    Args:
        folder: A folder with files named after their split (``train-00000-of-00001.parquet``, ``valid.parquet``),
            itself or in its folder ``data``.

    Raises:
        MsaError: If there is no such file or a column is absent.
    """

    description = "Parquet"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        facts = read_facts(folder / FACTS_FILE) if (folder / FACTS_FILE).is_file() else None
        self.aligned = facts is not None and facts.aligned
        names = {} if facts is None else {"audio": facts.audio_features, "vision": facts.vision_features}
        self.feature_names = {modality: known for modality, known in names.items() if known is not None}
        self.notes: list[str] = []
        self._files = parquet_files(folder)
        if not self._files:
            raise MsaError(f"{folder} has no Parquet files named after a split, such as train.parquet.")
        self.splits = list(self._files)
        first = pq.read_schema(self._files[self.splits[0]][0])
        self._columns = set(first.names)
        for column in (TEXT, LABEL, *([ID] if VIDEO_ID not in self._columns else [CLIP_ID])):
            if column not in self._columns:
                raise MsaError(f"The Parquet files in {folder} have no column {column!r}.")
        self.widths = {modality: self._width(modality) for modality in FEATURE_MODALITIES if modality in self._columns}
        self._unimodal = all(column in self._columns for column in UNIMODAL_LABEL_KEYS.values())
        self.features = msa_features(
            self.widths.get("audio"),
            self.widths.get("vision"),
            unimodal_labels=self._unimodal,
            annotation=ANNOTATION in self._columns,
            presence=any(PRESENCE[modality] in self._columns for modality in self.widths),
        )

    def _batches(self, split: str) -> Iterator[Any]:
        for file in self._files[split]:
            yield from pq.ParquetFile(file).iter_batches(batch_size=64)

    def _width(self, modality: str) -> int:
        batch = next(iter(self._batches(self.splits[0])), None)
        width = ListColumn([batch.column(modality)]).width if batch is not None and len(batch) else None
        if width is None:
            raise MsaError(
                f"The column {modality!r} of the Parquet files in {self._folder} does not hold lists of frames."
            )
        return width

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return sum(pq.read_metadata(file).num_rows for file in self._files[split])

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split."""
        plain = [column for column in self.features if column not in self.widths and column in self._columns]
        for batch in self._batches(split):
            arrays = {modality: ListColumn([batch.column(modality)]) for modality in self.widths}
            for index, values in enumerate(batch.select(plain).to_pylist()):
                if ID not in values:
                    values[ID] = f"{values[VIDEO_ID]}{ID_SEPARATOR}{values[CLIP_ID]}"
                identifier, video, clip = split_id(values[ID])
                row = {VIDEO_ID: video, CLIP_ID: clip, **values, ID: identifier}
                for modality, column in arrays.items():
                    row[modality] = column[index]
                    if PRESENCE[modality] in self.features:
                        row.setdefault(PRESENCE[modality], True)
                yield row


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of each split in `folder`, or in its folder ``data`` where it has one."""
    place = folder / "data" if (folder / "data").is_dir() else folder
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in sorted(place.glob("*.parquet")):
        words = [word for word in re.split(r"[-_.]", file.stem.lower()) if word in SPLIT_ALIASES]
        if words:
            found[SPLIT_ALIASES[words[0]]].append(file)
    return {split: files for split, files in found.items() if files}


def open_source(path: str | Path, features: str | Path | None = None) -> RowSource:
    """Open whatever `path` is.

    Args:
        path: An MMSA pickle, a label.csv, a folder with a label.csv, or a folder with Parquet files.
        features: For a label.csv: the folder that holds ``audio`` and ``vision``.

    Raises:
        MsaError: If there is nothing at `path`, or nothing that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise MsaError(
            f"There is nothing at {path}; give a pickle, a label.csv, or a folder with label.csv or Parquet."
        )
    is_csv = path.suffix.lower() == ".csv" or (path / _LABEL_FILE).is_file()
    if features is not None and not is_csv:
        raise MsaError(f"A folder of features goes with a label.csv, and {path} is none.")
    if is_csv:
        return CsvSource(path, None if features is None else Path(features))
    if path.is_file() and path.suffix.lower() != ".parquet":
        return PickleSource(path)
    if path.is_dir() and parquet_files(path):
        return ParquetSource(path)
    raise MsaError(f"{path} has neither a label.csv nor Parquet files named after a split; give the pickle itself.")


def source_identity(source: str | PathLike[str], features: str | PathLike[str] | None = None) -> dict[str, str | None]:
    """Return what names a raw source in a cache: its path, and a digest of its files' sizes and times.

    Args:
        source: What `open_source` takes.
        features: The folder of features, if it is another one.

    Returns:
        ``source`` and ``features_folder`` as absolute paths, and ``stamp``, which changes when a file does.

    Raises:
        MsaError: If there is nothing at `source`.
    """
    path = Path(source).resolve()
    if not path.exists():
        raise MsaError(f"There is nothing at {source}; give a pickle, a label.csv, or a folder with either.")
    folder = None if features is None else Path(features).resolve()
    digest = hashlib.blake2b(digest_size=8)
    for place in (path, folder):
        for file in () if place is None else sorted((place, *place.rglob("*"))):
            if file.is_file():
                status = file.stat()
                digest.update(f"{file}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return {
        "source": str(path),
        "features_folder": None if folder is None else str(folder),
        "stamp": digest.hexdigest(),
    }
