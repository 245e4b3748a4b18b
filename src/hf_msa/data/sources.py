"""Readers of all that a data set may come as: MMSA pickles, label.csv with feature files, Parquet, .csd."""

import csv
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_msa.data.cells import filled_columns, list_of, split_id, split_name, text_of
from hf_msa.data.csd import CsdSource
from hf_msa.data.feature_files import SUFFIXES, FeatureTable, read_feature_file
from hf_msa.data.mmsa_pickle import PickleSource
from hf_msa.data.rows import ListColumn, is_list, plain_column
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
    WORDS,
    RowSource,
    msa_features,
    read_facts,
)
from hf_msa.errors import MsaError, reason
from hf_msa.models.msa_openface import FaceReport
from hf_msa.models.msa_schema import FEATURE_MODALITIES, UNIMODAL_LABEL_KEYS

_LABEL_FILE = "label.csv"
_LABEL_CSV_UNIMODAL = {"label_T": "label_text", "label_A": "label_audio", "label_V": "label_vision"}


class CsvSource:
    """The rows of a label.csv, with one file of features per clip where there are any.

    The file has the columns `video_id`, `clip_id`, `text`, `label`, `mode` (train, valid or test) and optionally
    `annotation`, `label_T`, `label_A`, `label_V`. Features lie in the folders ``audio`` and ``vision`` as
    ``<video_id>/<clip_id>.npy`` or ``<video_id>$_$<clip_id>.npy``, or the same as ``.csv`` or ``.mat``; a clip without a
    file, or with a table of OpenFace in which no face was found, lacks that modality.

    Args:
        path: The label.csv, or the folder that holds it.
        features: The folder that holds ``audio`` and ``vision``; by default that of the label.csv.
        has_splits: False for data that is split afterwards: `mode` is not read, and all rows are those of train.

    Raises:
        MsaError: If a column is absent, a cell is wrong, or an id would lead out of the folder.
    """

    description = "label.csv with feature files"
    aligned = False

    def __init__(self, path: Path, features: Path | None = None, has_splits: bool = True) -> None:
        self._path = path / _LABEL_FILE if path.is_dir() else path
        self._has_splits = has_splits
        self.notes: list[str] = []
        self._rows, self._annotated, self._unimodal = self._read()
        self.splits = [split for split in SPLITS if self._rows[split]]
        self._root = features if features is not None else self._path.parent
        folders = {modality: self._root / modality for modality in FEATURE_MODALITIES}
        self._folders = {modality: folder for modality, folder in folders.items() if _is_folder(folder)}
        if features is not None and not self._folders:
            raise MsaError(
                f"{features} has neither a folder 'audio' nor 'vision'; feature files are looked for there."
            )
        if not self._folders:
            self.description = "label.csv"
        self.feature_names: dict[str, tuple[str, ...]] = {}
        self.widths: dict[str, int] = {}
        self._may_be_faceless: set[str] = set()
        self._files = {modality: self._find(modality) for modality in self._folders}
        presence = bool(self._may_be_faceless) or any(None in files.values() for files in self._files.values())
        self.features = msa_features(
            self.widths.get("audio"),
            self.widths.get("vision"),
            unimodal_labels=self._unimodal,
            annotation=self._annotated,
            presence=presence,
        )

    def _read(self) -> tuple[dict[str, list[dict[str, str]]], bool, bool]:
        try:
            with regular_file(self._path).open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                columns = [name.strip() for name in reader.fieldnames or []]
                reader.fieldnames = columns
                lines = list(reader)
        except UnicodeDecodeError as error:
            raise MsaError(f"{self._path} is not a UTF-8 CSV file; save it anew, encoded as UTF-8.") from error
        except (OSError, csv.Error) as error:
            raise MsaError(
                f"{self._path} cannot be read as a CSV file: {getattr(error, 'strerror', None) or reason(error)}."
            ) from error
        needed = (VIDEO_ID, CLIP_ID, TEXT, LABEL, *(("mode",) if self._has_splits else ()))
        for column in needed:
            if columns.count(column) != 1:
                fault = "more than one column" if column in columns else "no column"
                raise MsaError(
                    f"{self._path} has {fault} {column!r}; it needs {', '.join(needed)} and has {list_of(columns, 20)}."
                )
        rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
        for number, line in enumerate(lines, start=2):
            if None in line or None in line.values():
                raise MsaError(
                    f"Row {number} of {self._path} has not as many cells as the header; quote texts with commas."
                )
            split = split_name(line["mode"], f"Row {number} of {self._path}") if self._has_splits else "train"
            rows[split].append(line | {column: line[column].strip() for column in (VIDEO_ID, CLIP_ID)})
        if not lines:
            raise MsaError(f"{self._path} has a header but no rows.")
        cells = {column: [line[column].strip() for line in lines] for column in columns}
        annotated, notes = filled_columns((ANNOTATION,), [cells])
        unimodal, more = filled_columns(tuple(_LABEL_CSV_UNIMODAL), [cells])
        unknown = sorted(set(columns) - {*needed, "mode", ANNOTATION, *_LABEL_CSV_UNIMODAL})
        self.notes += [*notes, *more]
        if unknown:
            self.notes.append(f"No column is made of {list_of(unknown)}; what it holds was left out.")
        return rows, annotated, unimodal

    def _find(self, modality: str) -> dict[tuple[str, str], Path | None]:
        """Find the feature file of each clip, and learn the width from the first."""
        files: dict[tuple[str, str], Path | None] = {}
        for row in (row for split in self.splits for row in self._rows[split]):
            key = (row[VIDEO_ID], row[CLIP_ID])
            files[key] = file = clip_file(
                self._folders[modality], *key, SUFFIXES, root=self._root, origin=str(self._path)
            )
            if file is not None and modality not in self.widths:
                table = self._load(modality, file)
                self.widths[modality] = table.values.shape[1]
                if table.faces is not None:
                    self._may_be_faceless.add(modality)
        if modality not in self.widths:
            example = self._folders[modality] / next(iter(files))[0] / f"{next(iter(files))[1]}.npy"
            raise MsaError(f"No clip has a file in {self._folders[modality]}; {example} was looked for, for example.")
        return files

    def _load(self, modality: str, file: Path) -> FeatureTable:
        table = read_feature_file(file)
        if table.names is not None and table.names != self.feature_names.setdefault(modality, table.names):
            raise MsaError(f"{file} has other feature columns than the first file; all files need the same.")
        return table

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return len(self._rows[split])

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split."""
        faces: dict[str, list[FaceReport]] = {}
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
                row[ANNOTATION] = line[ANNOTATION] or None
            if self._unimodal:
                row |= {column: line[name] for name, column in _LABEL_CSV_UNIMODAL.items()}
            for modality, files in self._files.items():
                file = files[video, clip]
                values = None
                if file is not None:
                    table = self._load(modality, file)
                    values = table.values if len(table.values) else None
                    if table.faces is not None:
                        faces.setdefault(modality, []).append(table.faces)
                if PRESENCE[modality] in self.features:
                    row[PRESENCE[modality]] = values is not None
                elif values is None:
                    raise MsaError(
                        f"{file} has no frame with a face; keep the column 'success' in all files, or in none."
                    )
                row[modality] = np.zeros((1, self.widths[modality]), "float32") if values is None else values
            yield row
        self.notes += [_faces_note(split, modality, reports) for modality, reports in faces.items()]


def _faces_note(split: str, modality: str, reports: Sequence[FaceReport]) -> str:
    frames, kept = sum(one.frames for one in reports), sum(one.frames_with_face for one in reports)
    faceless = sum(not one.frames_with_face for one in reports)
    several = sum(one.faces > 1 for one in reports)
    certain = [one.confidence for one in reports if one.confidence is not None]
    return (
        f"Of {frames} frames of {modality} of {split}, {frames - kept} without a face (success 0) were left out; "
        f"{faceless} of {len(reports)} clips have no face at all and lack the modality"
        + (f"; in {several} with several faces, the one seen longest, then the largest, was kept" if several else "")
        + (f"; mean confidence {np.mean(certain):.2f}." if certain else ".")
    )


def clip_file(
    folder: Path, video: str, clip: str | None, suffixes: Sequence[str], *, root: Path, origin: str
) -> Path | None:
    """Find the file of a clip: ``<video>/<clip>`` or ``<video>$_$<clip>``, with a suffix in lower or upper case.

    Args:
        folder: Where to look.
        video, clip: Its ids; without a clip's id the file is ``<video>``.
        suffixes: Kinds of file, each with its dot.
        root: The folder that no file may lie outside of.
        origin: Where the ids come from, for the message.

    Raises:
        MsaError: If an id or a link would lead out of `root`, there are two files, or something that is no file.
    """
    for part in (video,) if clip is None else (video, clip):
        if part in ("", ".", "..") or any(character in part for character in "/\\\0"):
            raise MsaError(
                f"The id {part!r} in {origin} cannot be part of a file name; ids may not be empty, '.' or '..', nor hold a "
                "slash."
            )
    names = (video,) if clip is None else (f"{video}/{clip}", f"{video}{ID_SEPARATOR}{clip}")
    found: list[Path] = []
    for stem in (folder / name for name in names):
        for ending in (spelled for suffix in suffixes for spelled in (suffix, suffix.upper())):
            file = stem.with_name(stem.name + ending)
            if _is_there(file) and not any(file.samefile(other) for other in found):
                found.append(regular_file(file))
    if not found:
        return None
    if len(found) > 1:
        raise MsaError(f"There are {found[0]} and {found[1]} for one clip; keep one of them.")
    if not found[0].resolve().is_relative_to(root.resolve()):
        raise MsaError(f"{found[0]} leads out of {root}; copy the file into the folder.")
    return found[0]


def _is_there(path: Path) -> bool:
    """Whether there is anything by a name, also a link that leads nowhere; what cannot be looked at is no absent file.

    Raises:
        MsaError: If the system does not say.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise MsaError(f"{path} cannot be looked for: {getattr(error, 'strerror', None) or reason(error)}.") from error
    return True


def regular_file(path: Path) -> Path:
    """The path itself, if there is a file that can be read to its end.

    Raises:
        MsaError: If it is a folder, a link that leads nowhere, a pipe or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        what = "is a link that leads nowhere" if path.is_symlink() else f"cannot be read: {error.strerror}"
        raise MsaError(f"{path} {what}; put the file in its place, or remove it.") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "no regular file"
        raise MsaError(f"{path} is {what} where a file is needed; put the file in its place, or remove it.")
    return path


def _is_folder(path: Path) -> bool:
    """Whether there is a folder.

    Raises:
        MsaError: If there is something else by its name.
    """
    if _is_there(path) and not path.is_dir():
        raise MsaError(f"{path} is no folder, nor a link to one; put the folder in its place, or remove it.")
    return path.is_dir()


class ParquetSource:
    """The rows of Parquet files in the schema of hf_msa, e.g. of a folder that `hf-msa prepare` wrote, or by other tools.

    Args:
        path: A folder with files named after their split (``train-00000-of-00001.parquet``, ``valid.parquet``), itself or
            in its folder ``data``; or one file, which is the split that it is named after, or else train.
        has_splits: False for data that is split afterwards: files of a folder may be named after no split, which are
            those of train.

    Raises:
        MsaError: If there is no such file, one is damaged, a column is absent, or files differ in their columns.
    """

    description = "Parquet"

    def __init__(self, path: Path, has_splits: bool = True) -> None:
        self._path = path
        self.notes: list[str] = []
        if path.is_dir():
            facts = read_facts(path / FACTS_FILE) if (path / FACTS_FILE).is_file() else None
            self._files = parquet_files(path, has_splits)
        else:
            facts = None
            split = split_of_file(path)
            if split is None and has_splits:
                self.notes.append(f"{path.name} names no split; its rows are taken for train.")
            self._files = {split or "train": [path]}
        if not self._files:
            raise MsaError(f"{path} has no Parquet files named after a split, such as train.parquet.")
        self.aligned = facts is not None and facts.aligned
        names = {} if facts is None else {"audio": facts.audio_features, "vision": facts.vision_features}
        sets = {} if facts is None else {"audio": facts.audio_set, "vision": facts.vision_set}
        self.feature_sets = {name: found for name, found in sets.items() if found is not None}
        self.feature_names = {modality: known for modality, known in names.items() if known is not None}
        self.splits = list(self._files)
        self._counts = dict.fromkeys(self.splits, 0)
        self._columns = self._check_columns()
        self._has_gaps = False
        self.widths = {modality: self._width(modality) for modality in FEATURE_MODALITIES if modality in self._columns}
        annotated = self._has_columns((ANNOTATION,))
        unimodal = self._has_columns(tuple(UNIMODAL_LABEL_KEYS.values()))
        self.features = msa_features(
            self.widths.get("audio"),
            self.widths.get("vision"),
            unimodal_labels=unimodal,
            annotation=annotated,
            presence=self._has_gaps or any(PRESENCE[modality] in self._columns for modality in self.widths),
            words=WORDS in self._columns,
        )

    def _check_columns(self) -> set[str]:
        """The columns that are read, the same in all files; optional ones may be absent from some."""
        known = {ID, VIDEO_ID, CLIP_ID, TEXT, LABEL, ANNOTATION, WORDS, *FEATURE_MODALITIES}
        known |= {*UNIMODAL_LABEL_KEYS.values(), *PRESENCE.values()}
        optional = {ANNOTATION, *UNIMODAL_LABEL_KEYS.values()}
        columns: set[str] | None = None
        unknown: set[str] = set()
        for split, file in ((split, file) for split, files in self._files.items() for file in files):
            with _readable_parquet(file):
                parquet = pq.ParquetFile(regular_file(file))
                schema, self._counts[split] = parquet.schema_arrow, self._counts[split] + parquet.metadata.num_rows
            names = set(schema.names)
            if WORDS in names and not _are_words(schema.field(WORDS).type):
                names.remove(WORDS)
                unknown.add(WORDS)
            doubled = next((name for name in known if schema.names.count(name) > 1), None)
            if doubled is not None:
                raise MsaError(f"{file} has more than one column {doubled!r}; keep one.")
            unknown |= names - known
            for column in (TEXT, LABEL, *([ID] if VIDEO_ID not in names else [] if ID in names else [CLIP_ID])):
                if column not in names:
                    raise MsaError(f"{file} has no column {column!r}; its columns are {list_of(schema.names, 20)}.")
            if not _is_text(schema.field(TEXT).type):
                raise MsaError(f"The column {TEXT!r} of {file} is of type {schema.field(TEXT).type}; store strings.")
            columns = names & known if columns is None else columns
            if differing := sorted((columns ^ (names & known)) - optional):
                has = "has a" if differing[0] in names else "has no"
                raise MsaError(
                    f"The split {split!r} ({file}) {has} column {differing[0]!r}, unlike {self.splits[0]!r}; all files need "
                    "the same columns."
                )
        if unknown:
            self.notes.append(f"No column is made of {list_of(sorted(unknown))}; what it holds was left out.")
        return columns or set()

    def _has_columns(self, names: Sequence[str]) -> bool:
        parts = []
        for split in self.splits:
            there = [name for name in names if all(name in pq.read_schema(file).names for file in self._files[split])]
            values: dict[str, list[Any]] = {name: [] for name in there}
            for batch in self._batches(split, there) if there else ():
                with _readable_parquet(self._path):
                    for name in there:
                        values[name] += plain_column(batch.column(name)).to_pylist()
            parts.append(values)
        is_filled, notes = filled_columns(names, parts)
        self.notes += notes
        return is_filled

    def _batches(self, split: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        for file in self._files[split]:
            with _readable_parquet(file):
                yield from pq.ParquetFile(file).iter_batches(batch_size=64, columns=columns)

    def _width(self, modality: str) -> int:
        """The width of a modality, of the first sample that has it; and whether some have not."""
        width = None
        for split in self.splits:
            for batch in self._batches(split, [modality]):
                cells = plain_column(batch.column(modality))
                if not is_list(cells.type) or not is_list(cells.type.value_type):
                    raise MsaError(
                        f"The column {modality!r} of {self._path} is of type {cells.type}; store a list of frames, each "
                        "a list of numbers, for each sample."
                    )
                inner = cells.type.value_type.value_type
                if not (pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)):
                    raise MsaError(f"The frames in the column {modality!r} of {self._path} hold {inner}, not numbers.")
                with _readable_parquet(self._path):
                    found = _Sequences(cells)
                self._has_gaps |= found.has_gaps
                width = found.width if width is None else width
        if not width:
            raise MsaError(f"No sample has a frame in the column {modality!r} of {self._path}; leave the column out.")
        return width

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return self._counts[split]

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split."""
        plain = [column for column in self.features if column not in self.widths and column in self._columns]
        number = 0
        for batch in self._batches(split):
            with _readable_parquet(self._path):
                arrays = {modality: _Sequences(plain_column(batch.column(modality))) for modality in self.widths}
                columns = [plain_column(batch.column(column)).to_pylist() for column in plain]
            for index, values in enumerate(zip(*columns, strict=True)):
                row = self._row(f"Row {number} of {split!r} in {self._path}", dict(zip(plain, values, strict=True)))
                number += 1
                for modality, column in arrays.items():
                    array = column[index]
                    row[modality] = np.zeros((1, self.widths[modality]), np.float32) if array is None else array
                    if (presence := PRESENCE[modality]) in self.features:
                        # A flag that is not set says nothing; the features do.
                        given = row.get(presence)
                        row[presence] = array is not None and (given is None or bool(given))
                yield row

    @staticmethod
    def _row(place: str, values: dict[str, Any]) -> dict[str, Any]:
        video, clip = (text_of(values.get(column), f"{place}: {column!r}") for column in (VIDEO_ID, CLIP_ID))
        if ID not in values:
            if not video or not clip:
                raise MsaError(f"{place} has no {VIDEO_ID if not video else CLIP_ID}, and no id; fill it.")
            identifier = f"{video}{ID_SEPARATOR}{clip}"
        else:
            try:
                identifier, its_video, its_clip = split_id(values[ID])
            except MsaError as error:
                raise MsaError(f"{place}: {error}") from error
            # A video without its clip is what earlier versions wrote of ids of a form that they did not know.
            if not video or (video == identifier and not clip):
                video, clip = its_video, its_clip
        row = {**values, ID: identifier, VIDEO_ID: video, CLIP_ID: clip or ""}
        row[TEXT] = text_of(values[TEXT], f"{place}: the transcript")
        if ANNOTATION in row:
            row[ANNOTATION] = text_of(row[ANNOTATION], f"{place}: the annotation")
        if WORDS in row:
            row[WORDS] = row[WORDS] or []
        return row


def _are_words(kind: pa.DataType) -> bool:
    if not is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    parts = {part.name: part.type for part in kind.value_type}
    return (
        parts.keys() == {"text", "start", "end"}
        and _is_text(parts["text"])
        and all(pa.types.is_floating(parts[name]) for name in ("start", "end"))
    )


class _Sequences:
    """A column of feature sequences in which some samples have none."""

    def __init__(self, cells: pa.Array) -> None:
        lengths = pc.list_value_length(cells).fill_null(0).to_numpy(zero_copy_only=False)
        valid = np.flatnonzero(lengths > 0)
        self._places = np.full(len(cells), -1)
        self._places[valid] = np.arange(len(valid))
        self.has_gaps = len(valid) < len(cells)
        self._column = ListColumn([cells.take(pa.array(valid))] if self.has_gaps else [cells])
        self.width = self._column.width

    def __getitem__(self, index: int) -> np.ndarray | None:
        place = int(self._places[index])
        return None if place < 0 else self._column[place]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


@contextmanager
def _readable_parquet(file: Path) -> Iterator[None]:
    """Tell in one sentence that a Parquet file is damaged; Arrow has an error for each way."""
    try:
        yield
    except MsaError:
        raise
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
    ) as error:
        raise MsaError(
            f"{file} cannot be read as Parquet ({reason(error):.200}); it is damaged, copy or make it again."
        ) from error


def rows_of_parquet(file: Path) -> int:
    """Return the number of rows of a file.

    Raises:
        MsaError: If it cannot be read.
    """
    with _readable_parquet(file):
        return int(pq.read_metadata(file).num_rows)


def parquet_files(folder: Path, has_splits: bool = True) -> dict[str, list[Path]]:
    """Return the Parquet files of each split in `folder`, or in its folder ``data`` where that has some.

    Args:
        folder: The folder.
        has_splits: False for data that is split afterwards: a file that is named after no split is one of train.

    Raises:
        MsaError: If a file is named after no split or after several, is no file, or both folders have some.
    """
    places = [place for place in (folder / "data", folder) if place.is_dir()]
    found = {
        place: [file for file in sorted(place.iterdir()) if file.suffix.lower() == ".parquet" and file.name[0] != "."]
        for place in places
    }
    filled = [place for place in places if found[place]]
    if len(filled) > 1:
        raise MsaError(f"There are Parquet files in {folder} and in {folder / 'data'}; keep those of one data set.")
    splits: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in found[filled[0]] if filled else ():
        split = split_of_file(file)
        if split is None and has_splits:
            raise MsaError(
                f"{file} is named after no split; name Parquet files after one, with one of {', '.join(SPLIT_ALIASES)} in "
                "the name, move other files elsewhere, or split the data with --split-by-video."
            )
        splits[split or "train"].append(regular_file(file))
    return {split: files for split, files in splits.items() if files}


def split_of_file(file: Path) -> str | None:
    """The split that a file is named after, by a whole word of its name; None where it is named after none."""
    named = {SPLIT_ALIASES[word] for word in re.split(r"[-_. ]", file.stem.lower()) if word in SPLIT_ALIASES}
    if len(named) > 1:
        raise MsaError(f"{file} is named after the splits {' and '.join(sorted(named))}; name each file after one.")
    return named.pop() if named else None


def open_source(path: str | Path, features: str | Path | None = None, has_splits: bool = True) -> RowSource:
    """Open whatever `path` is.

    Args:
        path: An MMSA pickle, a label.csv, or a folder with a label.csv, with Parquet files or with .csd files.
        features: For a label.csv: the folder that holds ``audio`` and ``vision``.
        has_splits: False for data that is split afterwards, and need not say which split a row is of.

    Raises:
        MsaError: If there is nothing at `path`, or nothing that can be read.
    """
    path = Path(path)
    if not _is_there(path):
        raise MsaError(
            f"There is nothing at {path}; give a pickle, a label.csv, or a folder with label.csv or Parquet."
        )
    if not path.is_dir():
        regular_file(path)
    is_csv = path.suffix.lower() == ".csv" if path.is_file() else _is_there(path / _LABEL_FILE)
    if features is not None and not is_csv:
        raise MsaError(f"A folder of features goes with a label.csv, and {path} is none.")
    if is_csv:
        return CsvSource(path, None if features is None else Path(features), has_splits)
    csd_files = [path] if path.is_file() else sorted(path.iterdir())
    csd_files = [file for file in csd_files if file.suffix.lower() == ".csd"]
    if csd_files:
        if path.is_file():
            raise MsaError(f"{path} is one of several files; give the folder that holds it, the labels and the words.")
        return CsdSource(path, [regular_file(file) for file in csd_files])
    if path.suffix.lower() == ".parquet" or (path.is_dir() and parquet_files(path, has_splits)):
        return ParquetSource(path, has_splits)
    if path.is_file():
        return PickleSource(path)
    raise MsaError(
        f"{path} has neither a label.csv nor Parquet files named after a split nor .csd files; give the pickle itself."
    )


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
    try:
        path = Path(source).resolve()
        folder = None if features is None else Path(features).resolve()
        if not path.exists():
            raise MsaError(f"There is nothing at {source}; give a pickle, a label.csv, or a folder with either.")
        str(path).encode()
        digest = hashlib.blake2b(digest_size=8)
        for place in (path, folder):
            for file in () if place is None else sorted((place, *place.rglob("*"))):
                if file.is_file():
                    status = file.stat()
                    digest.update(os.fsencode(file) + f"|{status.st_size}|{status.st_mtime_ns}\n".encode())
    except UnicodeEncodeError as error:
        raise MsaError(f"{str(source)!a} is not a name in UTF-8; rename it.") from error
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, MsaError):
            raise
        # A relative path means nothing where the current folder has been removed.
        raise MsaError(
            f"{source} cannot be found: {getattr(error, 'strerror', None) or reason(error)}; give its full path, from a "
            "folder that exists."
        ) from error
    return {
        "source": str(path),
        "features_folder": None if folder is None else str(folder),
        "stamp": digest.hexdigest(),
    }
