"""From recordings to a prepared data set: features, transcripts, and a list of what went wrong."""

import csv
import dataclasses
import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.utils import tqdm

from hf_msa.data.cells import split_id
from hf_msa.data.prepare import check_output, write_dataset
from hf_msa.data.schema import (
    CLIP_ID,
    CUSTOM,
    ID,
    LABEL,
    PRESENCE,
    SPLITS,
    TEXT,
    VIDEO_ID,
    WORDS,
    facts_for,
    msa_features,
)
from hf_msa.data.validation import ValidationReport
from hf_msa.errors import MsaError, as_msa_errors, is_disk_full, reason
from hf_msa.files import atomic_write, folder_lock
from hf_msa.label_families import AnyFamily
from hf_msa.models.msa_feature_sets import SOUND, TABLE, FeatureSet, Frames, find_feature_set, recorded_frames
from hf_msa.models.msa_recordings import read_sound
from hf_msa.models.msa_schema import FEATURE_MODALITIES

from .alignment import align_to_words
from .dataset_clips import is_dataset, opened, read_dataset, version_of
from .manifest import Clip, find_file, read_manifest
from .openface import has_openface, openface_frames
from .statistics import RecordingStatistics
from .transcripts import Word, load_transcriber

ERRORS_FILE = "errors.csv"
# What the file of a clip holds beside its features and text.
_SECONDS, _COUNTS, _TIMES = "seconds", "_frames", "times"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is made of each recording.

    Attributes:
        audio_set, vision_set: Feature sets, by name and version; None: the modality is left out.
        transcribe: What makes the transcripts that the list does not have, see `transcripts.load_transcriber`.
        language: Of the speech, for the transcriber; None: it finds out.
        face_model: Path of the face landmark model for sets that need one.
        align: Whether features are averaged over each word, whose times the transcriber tells.
    """

    audio_set: str | None = None
    vision_set: str | None = None
    transcribe: str | None = None
    language: str | None = None
    face_model: str | None = None
    align: bool = False

    def key(self, clip: Clip) -> str:
        """Name of the file that keeps what was made of a clip: another one when file, part or settings are others."""
        state = None if clip.cell else clip.path.stat()
        what = version_of(clip) if state is None else [str(clip.path), state.st_size, state.st_mtime_ns]
        facts = [clip.id, what, clip.start, clip.end, clip.text]
        made = json.dumps([facts, dataclasses.asdict(self)], default=str)
        return hashlib.sha256(made.encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What `extract` made.

    Attributes:
        report: On the rows of the data set.
        failed: Clips that could not be read, by id, with the reason.
        without: How many of the others lack each modality.
    """

    report: ValidationReport
    failed: dict[str, str]
    without: dict[str, int]


def extract(
    source: str | Path,
    output: str | Path,
    *,
    label_family: AnyFamily,
    audio_set: str | None = None,
    vision_set: str | None = None,
    transcribe: str | None = None,
    language: str | None = None,
    face_model: str | None = None,
    align: bool = False,
    workers: int = 1,
    overwrite: bool = False,
) -> Extraction:
    """Make a prepared data set of recordings; interrupted, it goes on where it was.

    What is made of a clip is kept in `<output>.parts` until all is done. A clip that cannot be read is left out and listed
    in `errors.csv` of the data set; one that lacks a modality has a row without it.

    Args:
        source: A list of recordings, see `hf_msa.recordings.manifest.read_manifest`, or a data set that has some, see
            `read_dataset`; labels are needed, and clips without a split are for training.
        output: The folder to write.
        label_family: Which labels there can be and which metrics apply, see `find_label_family`.
        audio_set, vision_set: Feature sets by name, see `hf_msa.models.msa_feature_sets`.
        transcribe, language: See `Settings`.
        face_model: Path of the face landmark model, for sets that need one.
        align: Whether to average features over each word, the aligned format of the field. The transcripts are then those of
            `transcribe`, as nothing tells the times of words that the list gives.
        workers: Number of processes; the result is the same bytes for any.
        overwrite: Whether an existing folder may be replaced.

    Raises:
        MsaError: If an argument or the list is wrong, no clip can be read, or nothing is to be made of them.

    Example:
        ```python
        from hf_msa import extract

        made = extract("clips/manifest.csv", "data/clips", label_family="mosi", audio_set="prosody")
        made.report, made.failed
        ```
    """
    target = Path(output)
    check_output(target, overwrite)
    facts = facts_for(CUSTOM, label_family)
    with as_msa_errors():
        sets = {
            name: find_feature_set(given, name)
            for name, given in zip(FEATURE_MODALITIES, (audio_set, vision_set), strict=True)
            if given is not None
        }
    for features in sets.values():
        if features.made_from == TABLE and not has_openface():
            raise MsaError(
                f"The feature set {features.id!r} is made by OpenFace 2, whose program FeatureExtraction is not on the "
                "PATH; install it, or prepare a label.csv with the tables that it made."
            )
    if not sets and transcribe is None:
        raise MsaError(
            "Nothing is to be made of the recordings; give a feature set (--audio-set, --vision-set) or --transcribe."
        )
    if align and (transcribe is None or not sets):
        raise MsaError(
            "To align features to words needs a feature set and --transcribe, which tells the times of the words."
        )
    clips = read_dataset(source) if is_dataset(source) else read_manifest(source)
    unlabelled = next((clip.id for clip in clips if clip.label is None), None)
    if unlabelled is not None:
        raise MsaError(
            f"The clip {unlabelled!r} has no label; give a list with a column label, as a data set needs one."
        )
    chosen: dict[str, Any] = {f"{name}_set": features.id for name, features in sets.items()}
    settings = Settings(transcribe=transcribe, language=language, face_model=face_model, align=align, **chosen)
    parts = target.with_name(f"{target.name}.parts")
    with folder_lock(parts):
        failed = _make_all(clips, settings, parts, workers)
        kept = [clip for clip in clips if clip.id not in failed]
        if not kept:
            first = next(iter(failed.values()))
            raise MsaError(f"None of the {len(clips)} recordings could be read; the first one: {first}")
        rows = _PartsSource(kept, settings, parts, {name: features.columns for name, features in sets.items()})
        report = write_dataset(
            rows,
            dataclasses.replace(facts, **chosen),
            target,
            overwrite=overwrite,
            extra=_writer(clips, failed, rows.statistics),
        )
        for file in parts.glob("*.npz"):
            file.unlink()
    return Extraction(report, failed, dict(rows.without))


def _writer(clips: Sequence[Clip], failed: dict[str, str], statistics: RecordingStatistics) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        statistics.write(folder)
        if failed:
            with (folder / ERRORS_FILE).open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerow(["id", "path", "error"])
                for clip in clips:
                    if clip.id in failed:
                        table.writerow([clip.id, os.path.relpath(clip.path, clip.root), failed[clip.id]])

    return write


# --- Clip by clip ---


def _make_all(clips: Sequence[Clip], settings: Settings, parts: Path, workers: int) -> dict[str, str]:
    """Make what is not there yet; the clips that failed, with the reason, in the order of the list."""
    failed: dict[str, str] = {}
    todo = []
    for clip in clips:
        try:
            if clip.cell is None:
                find_file(clip)
            if not (parts / f"{settings.key(clip)}.npz").is_file():
                todo.append(clip)
        except (MsaError, OSError) as error:
            failed[clip.id] = reason(error)
    bar = tqdm(total=len(clips), initial=len(clips) - len(todo), unit="clip", desc="Extracting", disable=None)
    with bar:
        for clip, why in _results(todo, settings, parts, workers):
            if why is not None:
                failed[clip.id] = why
            bar.update()
    return {clip.id: failed[clip.id] for clip in clips if clip.id in failed}


def _results(todo: Sequence[Clip], settings: Settings, parts: Path, workers: int) -> Iterator[tuple[Clip, str | None]]:
    if workers <= 1 or len(todo) <= 1:
        for clip in todo:
            yield clip, _make(clip, settings, parts)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=_one_thread) as pool:
        yield from zip(todo, pool.map(_make, todo, [settings] * len(todo), [parts] * len(todo)), strict=True)


def _one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"


def _make(clip: Clip, settings: Settings, parts: Path) -> str | None:
    """Make and keep what is wanted of a clip; why it cannot be, if so."""
    try:
        made = make_clip(clip, settings)
        with atomic_write(parts / f"{settings.key(clip)}.npz") as file, file.open("wb") as content:
            np.savez(content, **made)  # type: ignore[arg-type]  # Its names are arrays'.
    except (MsaError, ImportError, OSError, ValueError) as error:
        if isinstance(error, ImportError) or is_disk_full(error):
            raise MsaError(reason(error)) from error
        return reason(error)
    return None


def make_clip(clip: Clip, settings: Settings) -> dict[str, np.ndarray]:
    """Make the features and the transcript of a clip.

    Returns:
        `audio` and `vision` `(frames, width)` float32 where the recording has them, `text`, if anything gives one, and
        `words` and `times` `(words, 2)` in seconds where the transcriber told them.

    Raises:
        ImportError: If a package that is needed is not installed.
        MsaError, OSError, ValueError: If the file cannot be read.
    """
    with opened(clip) as file:
        return _make_of_file(file, clip, settings)


def _make_of_file(file: Path, clip: Clip, settings: Settings) -> dict[str, np.ndarray]:
    text = clip.text
    words: Sequence[Word] = ()
    part: dict[str, Any] = {"start": clip.start, "end": clip.end}
    if settings.transcribe is not None and (text is None or settings.align):
        waveform = read_sound(file, **part)
        transcript = None if waveform is None else _transcriber(settings.transcribe, settings.language)(waveform)
        text = None if transcript is None else transcript.text
        words = () if transcript is None else transcript.words
    made: dict[str, np.ndarray] = {}
    if words:
        made[WORDS] = np.array([word.text for word in words])
        made[_TIMES] = np.array([(word.start, word.end) for word in words])
    for name, given in zip(FEATURE_MODALITIES, (settings.audio_set, settings.vision_set), strict=True):
        if given is None:
            continue
        frames = _frames(find_feature_set(given, name), file, part, settings)
        if frames is None:
            continue
        made[f"{name}{_COUNTS}"] = np.array([len(frames.values), frames.looked_at])
        times = np.zeros(1) if frames.times is None or not len(frames.times) else frames.times
        made[_SECONDS] = max(made.get(_SECONDS, np.zeros(())), np.array(times[-1]))
        if settings.align:
            frames = frames._replace(values=align_to_words(frames.values, words, times=frames.times)[0])
        if len(frames.values):
            made[name] = frames.values
    if not made.keys() & {*FEATURE_MODALITIES} and not text:
        asked = zip(("sound", "a face"), (settings.audio_set or settings.transcribe, settings.vision_set), strict=True)
        wanted = [name for name, given in asked if given is not None]
        raise MsaError(f"{file} holds nothing of what is asked for: no {' and no '.join(wanted or ['words'])}.")
    return made if text is None else {**made, TEXT: np.array(text)}


def _frames(features: FeatureSet, file: Path, part: dict[str, Any], settings: Settings) -> Frames | None:
    """Features of a part of a file, and when each frame is; None if there is none."""
    if features.made_from != TABLE:
        options: dict[str, Any] = (
            {} if features.made_from == SOUND or settings.face_model is None else {"face_model": settings.face_model}
        )
        return recorded_frames(features, file, **part, **options)
    return openface_frames(features, file, **part)


_transcribers: dict[tuple[str, str | None], Any] = {}


def _transcriber(model: str, language: str | None) -> Any:
    if (model, language) not in _transcribers:
        _transcribers[model, language] = load_transcriber(model, language)
    return _transcribers[model, language]


# --- Rows ---


class _PartsSource:
    """The rows of what was made; see `hf_msa.data.schema.RowSource`."""

    description = "recordings"

    def __init__(
        self, clips: Sequence[Clip], settings: Settings, parts: Path, columns: dict[str, tuple[str, ...]]
    ) -> None:
        self._clips = {split: [clip for clip in clips if (clip.split or SPLITS[0]) == split] for split in SPLITS}
        self._settings, self._parts = settings, parts
        self.aligned = settings.align
        self.splits = [split for split in SPLITS if self._clips[split]]
        self.widths = {name: len(names) for name, names in columns.items()}
        self.feature_names = dict(columns)
        self.features: datasets.Features = msa_features(
            self.widths.get("audio"),
            self.widths.get("vision"),
            presence=bool(columns),
            words=settings.transcribe is not None,
        )
        self.without: Counter[str] = Counter()
        self._unsplit = sum(clip.split is None for clip in clips)
        self.statistics = RecordingStatistics(columns)
        self.notes = self._noted()

    def _noted(self) -> list[str]:
        """How the rows were made, in sentences; of those that have been read."""
        unsplit = [f"{self._unsplit} clips have no split and are for training."] if self._unsplit else []
        return [*unsplit, *self.statistics.notes()]

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return len(self._clips[split])

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split."""
        for clip in self._clips[split]:
            with np.load(self._parts / f"{self._settings.key(clip)}.npz", allow_pickle=False) as made:
                found = dict(made)
            identifier, video, number = split_id(clip.id)
            text = str(found[TEXT]) if TEXT in found else ""
            row: dict[str, Any] = {ID: identifier, VIDEO_ID: video, CLIP_ID: number, TEXT: text, LABEL: clip.label}
            if WORDS in self.features:
                row[WORDS] = [
                    {"text": str(word), "start": start, "end": end}
                    for word, (start, end) in zip(found.get(WORDS, ()), found.get(_TIMES, ()), strict=True)
                ]
            self.without["text"] += not text.strip()
            seconds = float(found[_SECONDS]) if _SECONDS in found else None
            faces, pictures = map(int, found.get(f"vision{_COUNTS}", (0, 0)))
            self.statistics.add({name: found[name] for name in self.widths if name in found}, seconds, faces, pictures)
            for name, width in self.widths.items():
                row[name] = found.get(name, np.zeros((1, width), np.float32))
                row[PRESENCE[name]] = name in found
                self.without[name] += name not in found
            yield row
        self.notes = self._noted()
