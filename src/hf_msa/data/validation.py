"""Checks on the way in: every row of a source passes here before it is written, and the findings become a report."""

import math
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_msa.data.cells import is_missing, names_no_video
from hf_msa.data.schema import ANNOTATION, CLIP_ID, ID, LABEL, PRESENCE, TEXT, VIDEO_ID, DatasetFacts, KnownDataset
from hf_msa.errors import MsaError
from hf_msa.models.msa_schema import FEATURE_MODALITIES, UNIMODAL_LABEL_KEYS

if TYPE_CHECKING:
    from rich.console import Group

# Labels are stored as float32, in which 0.6666667 or 1/3 steps carry this much rounding.
_LABEL_TOLERANCE = 1e-5
# Of fewer labels nobody can say what scale they are on.
_FEW_LABELS = 10
# What programs write of a value that is not there.
_WORDS_FOR_NOTHING = {"None", "nan", "NaN", "null", "<NA>"}


@dataclass
class ModalityCheck:
    """What was found in one modality of one split.

    Attributes:
        width: Features per frame.
        dtype: Type of the numbers in the source; they are stored as float32.
        shortest: Frames of the shortest sample.
        longest: Frames of the longest sample.
        frames: Frames of all samples together.
        nan: NaN values, set to 0.
        positive_infinite: Values of +inf, set to 0.
        negative_infinite: Values of -inf, set to 0.
        absent: Samples that lack the modality.
        silent: Samples that have the modality, all zeros.
    """

    width: int
    dtype: str
    shortest: int = 0
    longest: int = 0
    frames: int = 0
    nan: int = 0
    positive_infinite: int = 0
    negative_infinite: int = 0
    absent: int = 0
    silent: int = 0

    def add(self, array: np.ndarray) -> np.ndarray:
        """Count what is in one sample's (T, d) array and return it as finite float32, a copy only where needed."""
        self.shortest = min(self.shortest, len(array)) if self.frames else len(array)
        self.longest = max(self.longest, len(array))
        self.frames += len(array)
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(array, dtype=np.float32)
        if not np.isfinite(values).all():
            self.nan += int(np.isnan(values).sum())
            self.positive_infinite += int(np.isposinf(values).sum())
            self.negative_infinite += int(np.isneginf(values).sum())
            values = np.where(np.isfinite(values), values, np.float32(0))
        if not values.any():
            self.silent += 1
        return values


@dataclass
class SplitCheck:
    """What was found in one split.

    Attributes:
        neutral: The label that is neither negative nor positive.
        count: Number of samples.
        lowest: Lowest sentiment label.
        highest: Highest sentiment label.
        mean: Mean of the sentiment labels.
        squares: Sum of their squared distances from the mean.
        negative: Labels below the neutral one.
        positive: Labels above it.
        videos: Number of samples per video; not kept where a source's ids need not be remembered.
        video_count: Number of videos.
        annotations: Number of samples per annotation word; those without one are not counted.
        empty_texts: Samples whose transcript is empty or missing; it is stored as "".
        texts_for_nothing: Samples whose transcript is a word such as "nan", which may stand for a missing one.
        without_annotation: Samples without an annotation, in data that have them.
        without_video: Samples whose id says nothing about their video.
        numbered: An id such as "vid_3", which was read as the clip 3 of the video "vid".
        modalities: Modality name -> what was found in it.
    """

    neutral: float = 0.0
    count: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0
    negative: int = 0
    positive: int = 0
    videos: Counter[str] = field(default_factory=Counter)
    video_count: int = 0
    annotations: Counter[str] = field(default_factory=Counter)
    empty_texts: int = 0
    texts_for_nothing: int = 0
    without_annotation: int = 0
    without_video: int = 0
    numbered: str = ""
    modalities: dict[str, ModalityCheck] = field(default_factory=dict)

    def add_label(self, label: float) -> None:
        """Count one sample's sentiment label (Welford's sums)."""
        self.count += 1
        distance = label - self.mean
        self.mean += distance / self.count
        self.squares += distance * (label - self.mean)
        self.lowest, self.highest = min(self.lowest, label), max(self.highest, label)
        self.negative += label < self.neutral
        self.positive += label > self.neutral

    def polarity(self) -> tuple[int, int, int]:
        """Return how many labels are below, at and above the neutral one."""
        return self.negative, self.count - self.negative - self.positive, self.positive


@dataclass
class ValidationReport:
    """The findings on a whole data set; `rich.print(report)` shows it, `markdown` goes into the card.

    Attributes:
        name: Name of the data set.
        source: What it was read from.
        splits: Split name -> findings.
        warnings: Sentences on what a user should look at.
        notes: Sentences on how the source was read.
    """

    name: str
    source: str
    splits: dict[str, SplitCheck] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def split_rows(self) -> list[list[str]]:
        """Return the cells of the table of splits, header first."""
        rows = [["split", "samples", "videos", "mean", "std", "range", "neg/neutral/pos", "no text"]]
        for name, split in self.splits.items():
            std = math.sqrt(split.squares / (split.count - 1)) if split.count > 1 else 0.0
            label = [f"{split.mean:.3f}", f"{std:.3f}", f"{split.lowest:g} to {split.highest:g}"]
            polarity = "/".join(map(str, split.polarity()))
            rows.append([name, str(split.count), str(split.video_count), *label, polarity, str(split.empty_texts)])
        return rows

    def modality_rows(self) -> list[list[str]]:
        """Return the cells of the table of audio and vision, header first; a text-only data set has no other row."""
        rows = [["split", "modality", "width", "dtype", "frames", "mean", "NaN/+∞/-∞", "absent", "all 0"]]
        for name, split in self.splits.items():
            for modality, check in split.modalities.items():
                mean = check.frames / max(split.count - check.absent, 1)
                lengths = [f"{check.shortest}-{check.longest}", f"{mean:.1f}"]
                bad = f"{check.nan}/{check.positive_infinite}/{check.negative_infinite}"
                width, absent, silent = map(str, (check.width, check.absent, check.silent))
                rows.append([name, modality, width, check.dtype, *lengths, bad, absent, silent])
        return rows

    def replaced(self) -> list[str]:
        """Return a sentence on values that were replaced, if any were."""
        checks = [check for split in self.splits.values() for check in split.modalities.values()]
        total = sum(check.nan + check.positive_infinite + check.negative_infinite for check in checks)
        return [f"{total} values that were NaN or infinite are now 0."] if total else []

    def markdown(self) -> str:
        """Return the tables, warnings and notes as Markdown."""
        tables = [table for table in (self.split_rows(), self.modality_rows()) if len(table) > 1]
        parts = [
            "\n".join(["| " + " | ".join(row) + " |" for row in [table[0], ["---"] * len(table[0]), *table[1:]]])
            for table in tables
        ]
        parts += [
            "\n".join(f"- {kind}: {text}" for text in texts)
            for kind, texts in (("Warning", self.warnings), ("Note", [*self.replaced(), *self.notes]))
            if texts
        ]
        return "\n\n".join(parts)

    def __rich__(self) -> "Group":
        from rich.box import SIMPLE_HEAD
        from rich.console import Group, RenderableType
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = []
        for title, rows in ((f"{self.name}: splits", self.split_rows()), ("audio and vision", self.modality_rows())):
            if len(rows) > 1:
                table = Table(
                    *rows[0], title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
                )
                for row in rows[1:]:
                    table.add_row(*row)
                parts.append(table)
        parts += [Text(f"Warning: {text}", style="yellow") for text in self.warnings]
        parts += [Text(f"Note: {text}") for text in (*self.replaced(), *self.notes)]
        return Group(*parts)


class Validator:
    """Passes rows on, made finite and typed, and collects what is wrong with them.

    Args:
        facts: Label range and name of the data set.
        source: What the rows are read from, for messages and the report.
        widths: Modality name -> features per frame, for the modalities that the data set has.
        known: The benchmark to compare sizes with, if it is one.
        remember: Whether ids and videos are remembered, to find those that occur twice; see `RowSource`.
    """

    def __init__(
        self,
        facts: DatasetFacts,
        source: str,
        widths: Mapping[str, int],
        known: KnownDataset | None = None,
        *,
        remember: bool = True,
    ) -> None:
        self._facts = facts
        self._remember = remember
        self._last_video: str | None = None
        self._widths = dict(widths)
        self._known = known
        self._split_of_id: dict[str, str] = {}
        self._report = ValidationReport(facts.name, source)

    def check(self, split: str, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the rows of one split in the form that is written; columns that are not those of the schema as they are.

        Args:
            split: Name of the split.
            rows: Rows with an `id`, `video_id`, `clip_id`, `text`, `label` and a (T, d) array per modality.

        Raises:
            MsaError: At an empty split, a repeated id, an id of another split, a label that is out of range or not a
                number, or an array of the wrong width or without a frame. The message names the sample.
        """
        found = self._report.splits[split] = SplitCheck(neutral=self._facts.family.neutral)
        self._last_video = None
        for row in rows:
            yield self._check_row(split, found, row)
        if not found.count:
            raise MsaError(f"The split {split!r} of {self._report.source} has no samples; leave it out or fill it.")

    def _check_row(self, split: str, found: SplitCheck, row: dict[str, Any]) -> dict[str, Any]:
        absent = next((column for column in (ID, VIDEO_ID, CLIP_ID) if is_missing(row[column])), None)
        if absent is not None or not str(row[ID]):
            raise MsaError(
                f"Sample {found.count} of {split!r} has no {absent or ID}; every sample needs one of its own."
            )
        identifier = str(row[ID])
        if self._remember:
            self._see(split, identifier)
        clean: dict[str, Any] = {
            ID: identifier,
            VIDEO_ID: str(row[VIDEO_ID]),
            CLIP_ID: str(row[CLIP_ID]),
            TEXT: "" if is_missing(row[TEXT]) else str(row[TEXT]),
            LABEL: self._label(identifier, LABEL, row[LABEL]),
        }
        for column in UNIMODAL_LABEL_KEYS.values():
            if column in row:
                clean[column] = self._label(identifier, column, row[column])
        if ANNOTATION in row:
            clean[ANNOTATION] = None if is_missing(row[ANNOTATION]) else str(row[ANNOTATION])
            if clean[ANNOTATION] is None:
                found.without_annotation += 1
            else:
                found.annotations[clean[ANNOTATION]] += 1
        for modality in FEATURE_MODALITIES:
            if modality in self._widths:
                clean |= self._modality(identifier, found, modality, row)
        found.add_label(clean[LABEL])
        self._count_video(found, clean[VIDEO_ID])
        found.empty_texts += not clean[TEXT].strip()
        found.texts_for_nothing += clean[TEXT].strip() in _WORDS_FOR_NOTHING
        found.without_video += names_no_video(clean)
        if identifier == f"{clean[VIDEO_ID]}_{clean[CLIP_ID]}":
            found.numbered = found.numbered or identifier
        return clean | {column: value for column, value in row.items() if column not in clean}

    def _see(self, split: str, identifier: str) -> None:
        earlier = self._split_of_id.get(identifier)
        if earlier == split:
            raise MsaError(f"The id {identifier!r} occurs twice in {split!r}; every sample needs an id of its own.")
        if earlier is not None:
            raise MsaError(
                f"Sample {identifier!r} is in both {earlier!r} and {split!r}; a sample may be in one split only."
            )
        self._split_of_id[identifier] = split

    def _count_video(self, found: SplitCheck, video: str) -> None:
        if self._remember:
            found.videos[video] += 1
            found.video_count = len(found.videos)
        else:
            found.video_count += video != self._last_video
            self._last_video = video

    def _label(self, identifier: str, column: str, value: Any) -> float:
        low, high = self._facts.label_low, self._facts.label_high
        if is_missing(value) or value == "":
            raise MsaError(
                f"Sample {identifier!r} has no {column}; give it one, or leave "
                f"{'the sample out' if column == LABEL else 'the column out of all files'}."
            )
        try:
            if isinstance(value, str) and "_" in value:  # Python reads 1_0 as ten.
                raise ValueError
            label = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise MsaError(
                f"Sample {identifier!r} has {column} {reprlib.repr(value)}, which is not a number; correct it."
            ) from error
        if not low - _LABEL_TOLERANCE <= label <= high + _LABEL_TOLERANCE:
            raise MsaError(
                f"Sample {identifier!r} has {column} {label:g}, outside [{low:g}, {high:g}] of {self._facts.name!r}; "
                "correct it, or describe such labels in a label family of their own (--label-family)."
            )
        return label

    def _modality(self, identifier: str, found: SplitCheck, modality: str, row: Mapping[str, Any]) -> dict[str, Any]:
        array = np.asarray(row[modality])
        width = self._widths[modality]
        if array.ndim != 2 or array.shape[1] != width or not len(array):
            raise MsaError(
                f"The {modality} of sample {identifier!r} has shape {array.shape}; (frames, {width}) with at least "
                "one frame is needed, as in the other samples."
            )
        if array.dtype.kind not in "fiub":
            raise MsaError(f"The {modality} of sample {identifier!r} holds {array.dtype}, not numbers.")
        check = found.modalities.setdefault(modality, ModalityCheck(width, str(array.dtype)))
        clean: dict[str, Any] = {}
        if PRESENCE[modality] in row:
            clean[PRESENCE[modality]] = bool(row[PRESENCE[modality]])
        if clean.get(PRESENCE[modality], True):
            clean[modality] = check.add(array)
        else:
            check.absent += 1
            clean[modality] = np.zeros((1, width), dtype=np.float32)
        return clean

    def report(self, notes: Iterable[str] = ()) -> ValidationReport:
        """Return the findings, with the warnings that need all splits.

        Args:
            notes: Sentences of the reader on how it read the source.
        """
        report = self._report
        report.notes = list(notes)
        report.warnings = [*self._shared_videos(), *self._unlike_benchmark(), *self._unlike_range()]
        for split, found in report.splits.items():
            if found.empty_texts:
                report.warnings.append(f"{found.empty_texts} samples of {split!r} have an empty transcript.")
            if found.texts_for_nothing:
                report.warnings.append(
                    f"{found.texts_for_nothing} samples of {split!r} have a transcript such as 'nan' or 'None'; if it "
                    "stands for none, leave it empty."
                )
            if found.without_annotation:
                report.warnings.append(f"{found.without_annotation} samples of {split!r} have no annotation.")
        return report

    def _shared_videos(self) -> Iterator[str]:
        splits = self._report.splits.values()
        unknown = sum(split.without_video for split in splits)
        if unknown:
            yield (
                f"{unknown} ids say nothing about the video that their clip is of, so that clips of one video in several "
                "splits go unseen: give ids such as VIDEO$_$CLIP, VIDEO[CLIP] or VIDEO_12, or the columns video_id and "
                "clip_id."
            )
        if numbered := next((split.numbered for split in splits if split.numbered), ""):
            video, _, clip = numbered.rpartition("_")
            yield f"Ids such as {numbered!r} were read as the clip {clip!r} of the video {video!r}."
        splits_with = Counter(video for split in self._report.splits.values() for video in split.videos)
        shared = [video for video, splits in splits_with.items() if splits > 1 and video]
        if shared:
            yield (
                f"{len(shared)} videos (such as {min(shared)!r}) have clips in more than one split: a model may "
                "recognise the speaker instead of the sentiment."
            )

    def _unlike_range(self) -> Iterator[str]:
        """Say so if the labels look as if they were on another scale than the label family."""
        splits = self._report.splits.values()
        if sum(split.count for split in splits) < _FEW_LABELS:
            return
        family = self._facts.family
        low, high = min(split.lowest for split in splits), max(split.highest for split in splits)
        one_side = "below" if low >= family.neutral else "above" if high <= family.neutral else None
        if one_side is not None or high - low < (family.high - family.low) / 2:
            fault = (
                f"none is {one_side} the neutral {family.neutral:g}" if one_side else "they fill less than half of it"
            )
            yield (
                f"The labels go from {low:g} to {high:g}, but those of the label family {family.name!r} from "
                f"{family.low:g} to {family.high:g}: {fault}; if they are on another scale, describe it in a label family "
                "of its own (--label-family)."
            )

    def _unlike_benchmark(self) -> Iterator[str]:
        if self._known is None:
            return
        for split, expected in self._known.split_sizes.items():
            if split not in self._report.splits:
                yield f"The split {split!r} is absent; the official one has {expected} samples."
            elif (count := self._report.splits[split].count) != expected:
                yield f"The split {split!r} has {count} samples; the official one has {expected}."
        for modality, shapes in self._known.shapes.items():
            if modality not in self._widths:
                yield f"There is no {modality}: models will run without it."
            elif (width := self._widths[modality]) not in {known[1] for known in shapes}:
                usual = " or ".join(str(known) for known in sorted({known[1] for known in shapes}))
                yield f"The {modality} has {width} features per frame; published files have {usual}."
