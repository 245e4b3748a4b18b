"""Reader of CMU-MultimodalSDK files (.csd): the original features of CMU-MOSI and CMU-MOSEI, aligned to the words."""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hf_msa.data.alignment import align_to_intervals
from hf_msa.data.cells import list_of, split_name, text_of
from hf_msa.data.schema import CLIP_ID, ID, LABEL, PRESENCE, SPLITS, TEXT, VIDEO_ID, msa_features
from hf_msa.errors import MsaError, reason, require_package
from hf_msa.models.msa_schema import FEATURE_MODALITIES

# What the names of files and of the sequences in them say, in lower case.
_ROLES: dict[str, tuple[str, ...]] = {
    "label": ("label",),
    "words": ("words",),
    "audio": ("covarep", "coavarep", "opensmile"),
    "vision": ("facet", "openface"),
}
_PAUSE = "sp"
_SEGMENT = re.compile(r"(?P<video>.+)\[(?P<clip>[^\[\]]+)\]")
_FOLD = re.compile(r"(?:standard_)?(?P<split>\w+?)(?:_folds?)?")
_MAX_FOLDS_BYTES = 1 << 22
_MAX_ROWS = 1 << 20  # Words or segments of one video.
_MAX_VIDEO_BYTES = 1 << 29  # 100 frames of COVAREP a second are 60 KB in double precision.
_MAX_NAMES_BYTES = 1 << 20


class CsdSource:
    """The rows of a folder of .csd files: labels, words, and one sequence of features per modality.

    Which file is which follows from its name and that of the sequence in it: labels (``label``), words (``words``), audio
    (``COVAREP``, ``OpenSMILE``) and vision (``FACET``, ``OpenFace``); others are left out. Each interval of the labels is a
    sample, ``video[number]``; the first column is the sentiment. The words whose middle lies within it are its text, pauses
    (``sp``) aside, and each word has the mean of the frames within its time: the aligned format of the field. Values that
    are not finite count as 0 in a mean.

    Nothing is followed out of a file, what it declares is bounded, and the list of folds is read, never run.

    Args:
        path: The folder. Beside the .csd files it holds the list of folds: a JSON object with the videos of train, valid and
            test, or a Python file that assigns them to ``standard_train_fold``, ``standard_valid_fold`` and
            ``standard_test_fold``, as that of the SDK does.
        files: Its .csd files.

    Raises:
        MsaError: If h5py is not installed, labels, words or folds are not there or there are two, or a file is damaged.
    """

    description = "CMU-MultimodalSDK"
    aligned = True

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        require_package("h5py", "csd")
        self._path = path
        self.notes: list[str] = []
        self._files = self._find_roles(files)
        self._folds = _read_folds(path)
        self.feature_names: dict[str, tuple[str, ...]] = {}
        self.widths: dict[str, int] = {}
        with self._opened() as sequences:
            self._segments = self._read_segments(sequences["label"])
            for modality in FEATURE_MODALITIES:
                if modality in sequences:
                    self.widths[modality] = sequences[modality].width()
                    if (names := sequences[modality].names(self.widths[modality])) is not None:
                        self.feature_names[modality] = names
        self.splits = [split for split in SPLITS if self._segments[split]]
        self.features = msa_features(self.widths.get("audio"), self.widths.get("vision"), presence=True)
        self._without_words = self._not_finite = 0
        self._without_frame = dict.fromkeys(self.widths, 0)

    def _find_roles(self, files: Sequence[Path]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        others = []
        for file in files:
            with _readable(file), _sequence(file) as sequence:
                name = f"{file.stem} {sequence.name}".lower()
            role = next((role for role, marks in _ROLES.items() if any(mark in name for mark in marks)), None)
            if role is None:
                others.append(file.name)
            elif role in found:
                raise MsaError(f"{found[role]} and {file} both hold the {role}; leave one of them in the folder.")
            else:
                found[role] = file
        for role in ("label", "words"):
            if role not in found:
                raise MsaError(
                    f"{self._path} has no .csd file with {'labels' if role == 'label' else role}; its files are "
                    f"{list_of(file.name for file in files)}."
                )
        if others:
            self.notes.append(f"No column is made of {list_of(others)}, which was left out.")
        return found

    @contextmanager
    def _opened(self) -> Iterator[dict[str, "_Sequence"]]:
        with ExitStack() as stack:
            yield {role: stack.enter_context(_sequence(file)) for role, file in self._files.items()}

    def _read_segments(self, labels: "_Sequence") -> dict[str, list[str]]:
        """The keys of the labels, by split; and how many samples each has."""
        segments: dict[str, list[str]] = {split: [] for split in SPLITS}
        self._counts = dict.fromkeys(SPLITS, 0)
        known = set()
        left_out = []
        with _readable(labels.file):
            for key in labels.keys():
                video = _video_of(key)
                if video not in self._folds:
                    left_out.append(video)
                    continue
                known.add(video)
                segments[self._folds[video]].append(key)
                self._counts[self._folds[video]] += labels.count(key)
        if not known:
            raise MsaError(f"No video of {labels.file} is in the folds of {self._path}; give those of this data set.")
        if left_out:
            self.notes.append(f"{len(left_out)} videos are in no fold and were left out: {list_of(left_out)}.")
        if unlabelled := sorted(set(self._folds) - known):
            self.notes.append(f"{len(unlabelled)} videos of the folds have no label: {list_of(unlabelled)}.")
        return segments

    def count(self, split: str) -> int:
        """Return the number of samples of a split."""
        return self._counts[split]

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a split."""
        with self._opened() as sequences:
            for key in self._segments[split]:
                yield from self._rows_of(key, sequences)
        if split == self.splits[-1]:
            self._count_gaps()

    def _rows_of(self, key: str, sequences: Mapping[str, "_Sequence"]) -> Iterator[dict[str, Any]]:
        labels, spans = sequences["label"].numbers(key)
        spoken, times = sequences["words"].texts(key)
        middles, is_word = times.mean(axis=1), np.array([text != _PAUSE for text in spoken], bool)
        inside = [np.flatnonzero(is_word & (middles >= start) & (middles < end)) for start, end in spans]
        self._without_words += sum(not len(words) for words in inside)
        # A sample without a word is one stretch.
        intervals = [times[words] if len(words) else spans[[index]] for index, words in enumerate(inside)]
        bounds = np.cumsum([0, *map(len, intervals)])
        wanted = np.concatenate([*intervals, np.zeros((0, 2))])
        aligned = {modality: self._align(sequences[modality], key, wanted) for modality in self.widths}
        for index, words in enumerate(inside):
            identifier = key if _SEGMENT.fullmatch(key) else f"{key}[{index}]"
            row: dict[str, Any] = {
                ID: identifier,
                VIDEO_ID: _video_of(key),
                CLIP_ID: identifier[len(_video_of(key)) + 1 : -1],
                TEXT: " ".join(spoken[word] for word in words),
                LABEL: float(labels[index, 0]),
            }
            for modality, (values, has_frame) in aligned.items():
                part = slice(bounds[index], bounds[index + 1])
                is_there = bool(has_frame[part].any())
                row[PRESENCE[modality]] = is_there
                row[modality] = values[part] if is_there else np.zeros((1, self.widths[modality]), np.float32)
                self._without_frame[modality] += int((~has_frame[part]).sum()) if is_there else 0
            yield row

    def _align(self, sequence: "_Sequence", key: str, intervals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features of all words of a video, float32 (words, width), and which words have any."""
        if not sequence.has(key):
            return np.zeros((len(intervals), sequence.width()), np.float32), np.zeros(len(intervals), bool)
        values, spans = sequence.numbers(key)
        is_finite = np.isfinite(values)
        self._not_finite += int((~is_finite).sum())
        instants = spans.mean(axis=1)
        order = np.argsort(instants, kind="stable")
        try:
            return align_to_intervals(np.where(is_finite, values, 0)[order], intervals, times=instants[order])
        except MsaError as error:
            raise MsaError(f"{key!r} of {sequence.file}: {error}") from error

    def _count_gaps(self) -> None:
        """Add what was found on the way to the notes, once all rows are read."""
        if self._without_words:
            self.notes.append(
                f"{self._without_words} samples have no word; each has one frame, the mean of all its frames."
            )
        if self._not_finite:
            self.notes.append(
                f"{self._not_finite} values of the frames are NaN or infinite; they count as 0 in the means."
            )
        for modality, count in self._without_frame.items():
            if count:
                self.notes.append(
                    f"{count} words have no {modality} frame where others of their sample have; it is 0."
                )


class _Sequence:
    """One open file: its sequence's name, and per key features (n, width) and intervals (n, 2) in seconds."""

    def __init__(self, file: Path, root: Any) -> None:
        self.file = file
        self._root = root
        self.name = root.name.strip("/")
        self._data = _member(root, "data")
        self._width: int | None = None

    def keys(self) -> list[str]:
        return sorted(self._data)

    def has(self, key: str) -> bool:
        return key in self._data

    def count(self, key: str) -> int:
        return len(self._array(key, "intervals"))

    def width(self) -> int:
        """The width of the features, of the first key."""
        if self._width is None:
            with _readable(self.file):
                shape = _dataset(_member(self._data, next(iter(self.keys()))), "features").shape
                if len(shape) != 2 or not shape[1]:
                    raise MsaError(f"{self.file} has features of shape {shape}; (frames, width) is needed.")
                self._width = int(shape[1])
        return self._width

    def names(self, width: int) -> tuple[str, ...] | None:
        """The names of the features, where the file says them."""
        try:
            found = _dataset(_member(self._root, "metadata"), "dimension names")
            text = found[0] if found.shape == (1,) else b""
            names = json.loads(text) if len(text) <= _MAX_NAMES_BYTES else None
        except (KeyError, OSError, RuntimeError, TypeError, ValueError, RecursionError):
            return None
        if not isinstance(names, list) or len(names) != width or not all(isinstance(name, str) for name in names):
            return None
        return tuple(names)

    def numbers(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Features, float (n, width), and intervals, float64 (n, 2)."""
        with _readable(self.file):
            values = self._array(key, "features")
            if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] != self.width():
                raise MsaError(
                    f"{self.file} has features of shape {values.shape} and type {values.dtype} for {key!r}; "
                    f"numbers of shape (frames, {self.width()}) are needed, as for the others."
                )
            return values, self._intervals(key, len(values))

    def texts(self, key: str) -> tuple[list[str], np.ndarray]:
        """The words, and their intervals; none where the key is not there."""
        if not self.has(key):
            return [], np.zeros((0, 2))
        with _readable(self.file):
            values = self._array(key, "features").reshape(-1)
            if values.dtype.kind not in "SO":
                raise MsaError(f"{self.file} holds {values.dtype} for {key!r}; words are needed.")
            words = [(text_of(value, f"A word of {key!r} in {self.file}") or "").strip() for value in values.tolist()]
            return words, self._intervals(key, len(words))

    def _intervals(self, key: str, count: int) -> np.ndarray:
        found = self._array(key, "intervals")
        if found.dtype.kind not in "fiu" or found.shape != (count, 2) or not np.isfinite(found).all():
            raise MsaError(
                f"{self.file} has intervals of shape {found.shape} for {key!r}; start and end of each of {count} are needed."
            )
        return found.astype(np.float64)

    def _array(self, key: str, name: str) -> np.ndarray:
        found = _dataset(_member(self._data, key), name)
        rows = found.shape[0] if found.shape else 0
        is_long = found.dtype.kind not in "fiu" and rows > _MAX_ROWS
        if is_long or found.size * found.dtype.itemsize > _MAX_VIDEO_BYTES:
            raise MsaError(f"{self.file} has {name} of shape {found.shape} for {key!r}, more than a video can have.")
        values: np.ndarray = np.asarray(found[()])
        return values


@contextmanager
def _sequence(file: Path) -> Iterator[_Sequence]:
    import h5py

    with ExitStack() as stack:
        with _readable(file):
            opened = stack.enter_context(h5py.File(file, "r"))
            names = list(opened)
            if len(names) != 1:
                raise MsaError(f"{file} holds {list_of(names)}; a .csd file holds one sequence.")
            sequence = _Sequence(file, _member(opened, names[0]))
            if not sequence.keys():
                raise MsaError(f"{file} holds no video.")
        yield sequence


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Say what file it is where the library finds it damaged."""
    try:
        yield
    except MsaError:
        raise
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise MsaError(f"{file} is damaged or no .csd file: {reason(error)}.") from error


def _member(group: Any, name: str) -> Any:
    """What a group holds by a name, in this file: links to others are not followed."""
    import h5py

    if not isinstance(group, h5py.Group) or not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise MsaError(f"{group.file.filename} has no {name!r} of its own in {group.name!r}; links are not followed.")
    return group[name]


def _dataset(group: Any, name: str) -> Any:
    """An array of a group, the values of which lie in this file."""
    import h5py

    found = _member(group, name)
    if not isinstance(found, h5py.Dataset):
        raise MsaError(f"{group.file.filename} has no array in {found.name!r}.")
    if found.external or found.is_virtual:
        raise MsaError(f"{group.file.filename} keeps {found.name!r} in another file, which is not read; copy it here.")
    return found


def _video_of(key: str) -> str:
    """The video of a key: files that the SDK has aligned hold segments, `video[3]`."""
    found = _SEGMENT.fullmatch(key)
    return key if found is None else found["video"]


def _read_folds(folder: Path) -> dict[str, str]:
    """Which split each video is in, by the one list of folds in a folder.

    Raises:
        MsaError: If there is none or more than one, it is damaged, or a video is in two.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".json", ".py") and file.is_file())
    if len(files) != 1:
        raise MsaError(
            f"{folder} holds {list_of(file.name for file in files) if files else 'no list of folds'}; put one beside the "
            ".csd files: a JSON object with the videos of train, valid and test, or the SDK's cmu_mosi_std_folds.py."
        )
    file = files[0]
    try:
        if file.stat().st_size > _MAX_FOLDS_BYTES:
            raise ValueError("it is too long")
        text = file.read_text(encoding="utf-8")
        lists = json.loads(text) if file.suffix.lower() == ".json" else dict(_assignments(text))
    except (MemoryError, OSError, RecursionError, SyntaxError, ValueError) as error:
        raise MsaError(
            f"{file} is no list of folds ({reason(error)}); write the videos of each split as a list."
        ) from error
    if not isinstance(lists, Mapping):
        raise MsaError(f"{file} is no list of folds; write an object with the videos of train, valid and test.")
    folds: dict[str, str] = {}
    for name, videos in lists.items():
        found = _FOLD.fullmatch(name)
        split = split_name(found["split"] if found else name, str(file))
        if not isinstance(videos, list | tuple) or not all(isinstance(video, str) for video in videos):
            raise MsaError(f"{file} has no list of videos for {name!r}; write their ids as a list of texts.")
        for video in videos:
            if folds.setdefault(video, split) != split:
                raise MsaError(f"{file} has the video {video!r} in {folds[video]} and in {split}; keep one.")
    return folds


def _assignments(text: str) -> Iterator[tuple[str, Any]]:
    """The values that a Python file assigns to names; nothing is run.

    Raises:
        ValueError, SyntaxError, RecursionError: If it is something else.
    """
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            (target,) = statement.targets
            if isinstance(target, ast.Name):
                yield target.id, ast.literal_eval(statement.value)
