"""Lists of recordings: a folder of clips, or a CSV or JSONL file that says more of each."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_msa.data.cells import split_id, split_name, text_of
from hf_msa.data.schema import ID_SEPARATOR
from hf_msa.data.sources import regular_file
from hf_msa.errors import MsaError, reason

SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".aif", ".wma")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".wmv")
# Columns that mean something here, with what others call them.
_NAMES = {
    "path": ("path", "file", "filename", "file_name", "audio", "video", "clip"),
    "id": ("id",),
    "text": ("text", "transcript", "sentence"),
    "label": ("label", "score", "sentiment"),
    "split": ("split", "mode"),
    "start": ("start", "start_time", "begin"),
    "end": ("end", "end_time", "stop"),
}


@dataclass(frozen=True)
class Clip:
    """A recording, or a part of one.

    Attributes:
        id: Its id, see `hf_msa.data.cells.split_id`.
        path: The file.
        root: The folder that the file may not lie outside of.
        start, end: Which part of the file, in seconds; an end of None is the file's.
        text: The transcript, if it is known.
        label: The true score, if it is known.
        split: ``"train"``, ``"validation"`` or ``"test"``, if it is known.
        extra: What else the list says of it.
        cell: Of a recording within a data set: the data set, the split there, and the row; `path` then only names it.
    """

    id: str
    path: Path
    root: Path
    start: float = 0.0
    end: float | None = None
    text: str | None = None
    label: float | None = None
    split: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    cell: tuple[str, str, int] | None = None


def read_manifest(source: str | Path) -> list[Clip]:
    """Read a list of recordings.

    Args:
        source: A folder, of which every file of sound or video is a clip; or a CSV or JSONL file with a column `path`,
            relative to its own folder, and any of `id`, `text`, `label`, `split`, `start`, `end` (seconds) and others.

    Returns:
        The clips, in the order of the list, or by their paths.

    Raises:
        MsaError: If there is no such thing, a line of it is wrong, or two ids are the same. Files are not opened.
    """
    place = Path(source)
    if place.is_dir():
        clips = [_clip_of(file, place) for file in sorted(place.rglob("*")) if file.suffix.lower() in _SUFFIXES]
        if not clips:
            raise MsaError(
                f"The folder {str(place)!r} holds no recordings; their names end in "
                f"{', '.join((*SOUND_SUFFIXES, *VIDEO_SUFFIXES))}."
            )
    elif place.suffix.lower() in (".csv", ".tsv", ".jsonl", ".json"):
        clips = list(_clips_of_list(place))
        if not clips:
            raise MsaError(f"{str(place)!r} lists no recordings.")
    elif place.is_file() and place.suffix.lower() in _SUFFIXES:
        clips = [_clip_of(place, place.parent)]
    else:
        raise MsaError(
            f"There is no list of recordings at {str(place)!r}; give a folder of clips, or a CSV or JSONL file with a "
            "column path."
        )
    check_ids(clips)
    return clips


def check_ids(clips: Iterable[Clip]) -> None:
    """Check that each clip has an id of its own.

    Raises:
        MsaError: If two have the same.
    """
    seen: dict[str, Clip] = {}
    for clip in clips:
        if clip.id in seen:
            raise MsaError(
                f"{clip.path.name} and {seen[clip.id].path.name} have the id {clip.id!r}; give each clip an id of its own."
            )
        seen[clip.id] = clip


def find_file(clip: Clip) -> Path:
    """The file of a clip.

    Raises:
        MsaError: If there is none, it is no file, or it lies outside of the list's folder, also by a link.
    """
    file = regular_file(clip.path)
    if not file.resolve().is_relative_to(clip.root.resolve()):
        raise MsaError(f"{file} leads out of the folder {clip.root}; copy the file into it.")
    return file


_SUFFIXES = {*SOUND_SUFFIXES, *VIDEO_SUFFIXES}


def _clip_of(file: Path, folder: Path) -> Clip:
    inside = file.relative_to(folder).with_suffix("")
    return Clip(ID_SEPARATOR.join(inside.as_posix().rsplit("/", 1)), file, folder)


def _clips_of_list(file: Path) -> Iterator[Clip]:
    columns: dict[str, str] | None = None
    for number, record in _records(file):
        where = f"Line {number} of {file.name}"
        if columns is None:
            columns = columns_of(record)
            if "path" not in columns:
                raise MsaError(f"{file.name} has no column path; it has {', '.join(map(str, record)) or 'none'}.")
        path = text_of(record.get(columns["path"]), f"{where}: the path")
        if not path or "\0" in path:
            raise MsaError(f"{where} has no path; give the file of each clip.")
        yield clip_of(record, columns, path, file.parent, where)


def clip_of(record: Mapping[str, Any], columns: Mapping[str, str], path: str, folder: Path, where: str) -> Clip:
    """Make the clip of a line.

    Args:
        record: The line's cells.
        columns: See `columns_of`.
        path: Its file, relative to `folder`.
        folder: See `Clip.root`.
        where: What the message calls the line.

    Raises:
        MsaError: If a cell is wrong.
    """
    given = {name: record.get(column) for name, column in columns.items()}
    start, end = (_number(given.get(name), f"{where}: {name}") for name in ("start", "end"))
    if (start or 0) < 0 or (end is not None and end <= (start or 0)):
        raise MsaError(f"{where}: the part from {start} s to {end} s cannot be; give 0 <= start < end.")
    identifier = text_of(given.get("id"), f"{where}: the id") or _default_id(record, path, start)
    split = text_of(given.get("split"), f"{where}: the split")
    return Clip(
        split_id(identifier)[0],
        folder / path,
        folder,
        start or 0.0,
        end,
        text_of(given.get("text"), f"{where}: the text"),
        _number(given.get("label"), f"{where}: the label"),
        split_name(split, where) if split else None,
        {name: value for name, value in record.items() if name not in columns.values()},
    )


def _default_id(record: Mapping[str, Any], path: str, start: float | None) -> str:
    video, clip = record.get("video_id"), record.get("clip_id")
    if video not in (None, "") and clip not in (None, ""):
        return f"{video}{ID_SEPARATOR}{clip}"
    stem = Path(path).with_suffix("").as_posix().replace("/", ID_SEPARATOR)
    return stem if start is None else f"{stem}{ID_SEPARATOR}{start:g}"


def columns_of(names: Iterable[Any]) -> dict[str, str]:
    """Find the columns that mean something here: what each is for, and what it is called."""
    lower = {str(name).strip().lower(): str(name) for name in names}
    return {
        name: lower[next(one for one in others if one in lower)]
        for name, others in _NAMES.items()
        if any(one in lower for one in others)
    }


def _records(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The lines of a list with their numbers."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix.lower() in (".csv", ".tsv"):
                reader = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
                for record in reader:
                    if None in record or None in record.values():
                        raise MsaError(f"Line {reader.line_num} of {file.name} has not as many cells as the header.")
                    yield reader.line_num, {name: value or None for name, value in record.items()}
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError(f"line {number} is no object")
                    yield number, record
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        if isinstance(error, MsaError):
            raise
        raise MsaError(
            f"{str(file)!r} cannot be read as a list of recordings: {getattr(error, 'strerror', None) or reason(error)}."
        ) from error


def _number(value: Any, what: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise MsaError(f"{what} is {value!r:.40}, which is no number.")
    return number
