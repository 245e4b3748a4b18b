"""Observed audio and vision features in words, for language models where the raw media are absent.

The benchmarks' files hold features, not sound and pictures. A clip's features become a few words on how they differ from
the training split: "Voice: pitch high and falling; loudness very low. Face: lip corner puller strong." Features without
names are never put into words: no model can know what "feature 4" is. Textual descriptions of audio-visual cues are in use
elsewhere (DEVA); which words are chosen, and when, is ours.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .msa_schema import FEATURE_MODALITIES

_TITLES = {"audio": "Voice", "vision": "Face"}
_NOTHING = "nothing out of the ordinary"
# Facial action units, as OpenFace numbers them.
_ACTION_UNIT = re.compile(r"AU(\d{2})(?:_[rc])?")
_ACTION_UNITS = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    12: "lip corner puller",
    14: "dimpler",
    15: "lip corner depressor",
    17: "chin raiser",
    20: "lip stretcher",
    23: "lip tightener",
    25: "lips part",
    26: "jaw drop",
    28: "lip suck",
    45: "blink",
}
# What is measured of a feature over a clip, and how it is called when it is low and high. An action unit's level is said
# otherwise: nobody calls a smile high.
_WORDS = (("low", "high"), ("steady", "varied"), ("falling", "rising"))
_UNIT_LEVEL = ("weak", "strong")
_VERY = 2.0


def description_phrases() -> list[str]:
    """Everything that a description can say beside the names of features that are no action units."""
    pairs = (word for pair in (*_WORDS, _UNIT_LEVEL) for word in pair)
    return [*_TITLES.values(), _NOTHING, *_ACTION_UNITS.values(), *pairs, "very", "and"]


def summarize(frames: np.ndarray, missing: np.ndarray | None = None) -> np.ndarray:
    """Mean, spread and trend of each feature over a clip.

    Args:
        frames: `(time, features)`; what is not finite counts as 0, as in the benchmarks' loaders.
        missing: `(time,)` of bool, True = dropped; dropped frames are left out.

    Returns:
        `(3, features)` float64: mean, standard deviation, and the change from the clip's begin to its end on the line that
        fits best. A single frame has neither spread nor trend.

    Raises:
        ValueError: If no frame is left.
    """
    kept = np.ones(len(frames), dtype=bool) if missing is None else ~np.asarray(missing, dtype=bool)
    values = np.nan_to_num(np.asarray(frames, dtype=np.float64)[kept], posinf=0.0, neginf=0.0)
    if not len(values):
        raise ValueError("A clip without observed frames cannot be summarised; leave the modality out.")
    mean = values.mean(0)
    time = np.linspace(0.0, 1.0, len(frames))[kept]
    time -= time.mean()
    width = (time**2).sum()
    trend = time @ (values - mean) / width if width > 0 else np.zeros_like(mean)
    return np.stack([mean, values.std(0), trend])


@dataclass(frozen=True)
class FeatureStatistics:
    """How one modality's summaries are distributed over the training split.

    Args:
        centers: For mean, spread and trend: the training mean of each feature.
        scales: The training standard deviations; 0 for a feature that never differs, which is never named.
        names: The features' names; None of checkpoints of earlier versions, which numbered features without names and go
            on doing so, as they were calibrated with that.
    """

    centers: tuple[tuple[float, ...], ...]
    scales: tuple[tuple[float, ...], ...]
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        widths = {len(row) for row in (*self.centers, *self.scales)} | (
            set() if self.names is None else {len(self.names)}
        )
        if len(self.centers) != 3 or len(self.scales) != 3 or len(widths) != 1:
            raise ValueError(
                f"Statistics of {len(self.centers)} and {len(self.scales)} rows of widths {sorted(widths)} were given; "
                "three rows each (mean, spread, trend) of one number per feature belong together, and one name per feature."
            )

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.centers[0])


@dataclass(frozen=True)
class MsaVerbalizer:
    """Says in words what is unusual in the features of a clip.

    The words depend on the features that are given and on the training split alone: never on a label, never on a missing
    modality.

    Args:
        statistics: Modality name -> its statistics on the training split.
        strongest: How many features of each modality are named at most.
        threshold: A mean, spread or trend is worth a word from this many standard deviations on.
    """

    statistics: Mapping[str, FeatureStatistics]
    strongest: int = 4
    threshold: float = 1.0

    @classmethod
    def fit(
        cls,
        rows: Iterable[Mapping[str, np.ndarray]],
        names: Mapping[str, Sequence[str] | None] | None = None,
        strongest: int = 4,
        threshold: float = 1.0,
    ) -> "MsaVerbalizer":
        """Take the statistics of the training split.

        Args:
            rows: For each sample, modality name -> frames `(time, features)`, those only that the sample has. Other keys
                are passed over.
            names: Modality name -> names of its columns; modalities whose columns have none are passed over.
            strongest: How many features of each modality are named at most.
            threshold: From how many standard deviations on.
        """
        summaries: dict[str, list[np.ndarray]] = {name: [] for name in FEATURE_MODALITIES if (names or {}).get(name)}
        for row in rows:
            for modality, found in summaries.items():
                if modality in row:
                    found.append(summarize(row[modality]))
        statistics = {}
        for modality, found in summaries.items():
            if found:
                table = np.stack(found)
                centers, scales = table.mean(0), table.std(0)
                scales[scales <= 1e-9 * np.maximum(1.0, np.abs(centers))] = 0.0
                known = tuple((names or {})[modality] or ())
                statistics[modality] = FeatureStatistics(_tuples(centers), _tuples(scales), known)
        return cls(statistics, strongest, threshold)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those whose features can be described."""
        return tuple(name for name in FEATURE_MODALITIES if name in self.statistics)

    def describe(self, features: Mapping[str, np.ndarray], missing: Mapping[str, np.ndarray] | None = None) -> str:
        """Describe a clip.

        Args:
            features: Modality name -> frames `(time, features)`, without padding; a missing modality is left out. Other
                keys are passed over.
            missing: Modality name -> `(time,)` of bool, True = dropped. A modality of which everything is dropped counts
                as missing.

        Returns:
            One sentence for each of `modalities` that is there, empty where none is.

        Raises:
            ValueError: If one of them has another width than its statistics.
        """
        sentences = []
        for modality in self.modalities:
            mask = (missing or {}).get(modality)
            if modality in features and not (mask is not None and np.all(mask)):
                phrases = self._phrases(modality, np.asarray(features[modality]), mask)
                sentences.append(f"{_TITLES[modality]}: {'; '.join(phrases) or _NOTHING}.")
        return " ".join(sentences)

    def _phrases(self, modality: str, frames: np.ndarray, missing: np.ndarray | None) -> list[str]:
        known = self.statistics[modality]
        if frames.ndim != 2 or frames.shape[1] != known.width:
            raise ValueError(
                f"Frames of shape {frames.shape} were given for {modality}, of which there are statistics of {known.width} "
                "features; fit the verbaliser on the training split of the same data set."
            )
        centers, scales = np.array(known.centers), np.array(known.scales)
        with np.errstate(over="ignore"):  # infinitely unusual is very unusual
            scores = (summarize(frames, missing) - centers) / np.where(scales > 0, scales, np.inf)
        strength = np.abs(scores).max(0)
        order = np.argsort(-strength, kind="stable")[: self.strongest]
        return [
            _phrase(
                known.names[feature] if known.names else f"feature {feature + 1}", scores[:, feature], self.threshold
            )
            for feature in order
            if strength[feature] >= self.threshold
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "strongest": self.strongest,
            "threshold": self.threshold,
            "statistics": {
                modality: {
                    "centers": [list(row) for row in known.centers],
                    "scales": [list(row) for row in known.scales],
                    "names": None if known.names is None else list(known.names),
                }
                for modality, known in self.statistics.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MsaVerbalizer":
        """Rebuild the verbaliser from `to_dict`.

        Raises:
            ValueError: If a number or a name is none, or does not fit the others; so other errors of values of any form.
        """
        strongest, threshold = int(values["strongest"]), float(values["threshold"])
        statistics = {
            modality: FeatureStatistics(
                _tuples(known["centers"]),
                _tuples(known["scales"]),
                None if known["names"] is None else tuple(map(str, known["names"])),
            )
            for modality, known in values["statistics"].items()
        }
        numbers = [value for known in statistics.values() for row in (*known.centers, *known.scales) for value in row]
        if strongest < 0 or not np.isfinite([threshold, *numbers]).all():
            raise ValueError("a number of the verbaliser is none, or below 0")
        return cls(statistics, strongest, threshold)


def _phrase(name: str, scores: np.ndarray, threshold: float) -> str:
    """A feature's name and a word for each of mean, spread and trend that reaches the threshold."""
    unit = _ACTION_UNIT.fullmatch(name)
    title = _ACTION_UNITS.get(int(unit.group(1))) if unit else None
    pairs = _WORDS if title is None else (_UNIT_LEVEL, *_WORDS[1:])
    words = [
        ("very " if abs(score) >= max(_VERY, threshold) else "") + pair[score > 0]
        for pair, score in zip(pairs, scores.tolist(), strict=True)
        if abs(score) >= threshold
    ]
    said = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{title or name.replace('_', ' ')} {said}"


def _tuples(rows: Iterable[Iterable[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in rows)
