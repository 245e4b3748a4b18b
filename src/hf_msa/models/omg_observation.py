"""What OMG-Agent's planner is shown of a clip: those modalities, and those parts of them, that are not missing."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from .msa_observed import missing_positions, visible_media, visible_words
from .msa_schema import ATTENTION_MASK_KEYS, MISSING_MASK_KEYS, MODALITIES

_MEDIA_KEYS = {"audio": "waveform", "vision": "frames"}


@dataclass(frozen=True, eq=False)
class Observation:
    """Those modalities of a clip that are there; what is missing must not be in it.

    Args:
        transcript: What is said; None where text is missing.
        audio: Mono waveform `(samples,)` at 16 kHz, or None.
        frames: Video frames `(frames, height, width, 3)` of uint8, or None.
        features: "audio" and "vision" -> feature frames `(time, features)` without padding, those only that are observed.
        frames_per_second: How densely `frames` were taken.
    """

    transcript: str | None = None
    audio: np.ndarray | None = None
    frames: np.ndarray | None = None
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    frames_per_second: float = 2.0

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that are there in any form, in the order of `MODALITIES`."""
        raw = {"text": self.transcript, "audio": self.audio, "vision": self.frames}
        return tuple(name for name in MODALITIES if raw[name] is not None or name in self.features)

    @cached_property
    def digest(self) -> str:
        """A hash of all that is observed, for caches: equal observations have equal digests."""
        features = ((f"{name} features", self.features[name]) for name in sorted(self.features))
        parts = hashlib.blake2b(repr(self.transcript).encode(), digest_size=16)
        for name, array in (("audio", self.audio), ("frames", self.frames), *features):
            if array is not None:
                parts.update(f"\0{name}{array.shape}{array.dtype.str}\0".encode())
                parts.update(np.ascontiguousarray(array).tobytes())
                parts.update(repr(self.frames_per_second).encode() if name == "frames" else b"")
        return parts.hexdigest()

    def restricted(self, available: Collection[str]) -> "Observation":
        """The same clip, of which only the `available` modalities stay."""
        return dataclasses.replace(
            self,
            transcript=self.transcript if "text" in available else None,
            audio=self.audio if "audio" in available else None,
            frames=self.frames if "vision" in available else None,
            features={name: values for name, values in self.features.items() if name in available},
        )


def observe_rows(
    rows: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Tensor] | None = None,
    processor: Any = None,
    modalities: Collection[str] = MODALITIES,
) -> list[Observation]:
    """Make observations of samples, without what a batch says is dropped.

    Dropped words become "...", dropped feature frames are cut out; of sound and pictures that goes which the dropped frames
    of their features were taken from: sound is silent there, pictures are cut out. Sound and pictures without features are
    left out as a whole where anything of a sample is dropped, as nothing says what of them is. A modality of which the batch
    has nothing left is absent, sound and pictures without features included.

    Args:
        rows: See `MsaPreTrainedModel.predict_rows`; with `waveform` `(samples,)` mono at 16 kHz and `frames` `(frames,
            height, width, 3)` uint8 at `frames_per_second` (2 unless given) where there are some.
        inputs: The batch of these rows, in which something may be dropped; None: nothing is.
        processor: The model's processor. Frames behind the longest length that it reads are left out; needed where words
            are dropped.
        modalities: Names of those that the model reads; others are never observed.

    Raises:
        ValueError: If words are dropped, but there is no processor to say which.
    """
    given = {} if inputs is None else inputs
    observed: dict[str, list[bool]] = {}
    for name, key in ATTENTION_MASK_KEYS.items():
        if key in given:
            real, dropped = given[key].bool(), given.get(MISSING_MASK_KEYS[name])
            observed[name] = (real if dropped is None else real & ~dropped.bool()).any(dim=1).tolist()
    observations = []
    for index, (row, missing) in enumerate(zip(rows, missing_positions(rows, inputs), strict=True)):
        there = [
            name for name in modalities if has_modality(row, name) and (name not in observed or observed[name][index])
        ]
        is_partial = any(mask.any() for mask in missing.values())
        transcript = str(row["text"]) if "text" in there else None
        if transcript is not None and inputs is not None and "text" in missing and missing["text"].any():
            if processor is None:
                raise ValueError("Words of the samples are dropped; give the processor, which can say which.")
            transcript = visible_words(inputs["input_ids"][index].tolist(), missing["text"], processor.tokenizer)
        media, features = {}, {}
        for name in (name for name in there if name != "text"):
            mask, raw = missing.get(name), row.get(_MEDIA_KEYS[name])
            if raw is not None and len(raw) and not (is_partial and mask is None):
                media[name] = visible_media(np.asarray(raw), mask, cut=name == "vision")
            if row.get(name) is not None:
                longest = None if processor is None else getattr(processor.feature_extractor, f"{name}_max_length")
                frames = np.asarray(row[name], dtype=np.float32)[:longest]
                frames = frames if mask is None else frames[: len(mask)][~mask[: len(frames)]]
                if len(frames):
                    features[name] = frames
        waveform, fps = media.get("audio"), float(row.get("frames_per_second") or 2.0)
        waveform = None if waveform is None else waveform.astype(np.float32, copy=False)
        observations.append(Observation(transcript, waveform, media.get("vision"), features, fps))
    return observations


def has_modality(row: Mapping[str, Any], modality: str) -> bool:
    """Whether a complete row has something of a modality."""
    if modality == "text":
        return bool(str(row.get("text") or "").strip())
    there = row.get(modality) is not None or row.get(_MEDIA_KEYS[modality]) is not None
    return there and bool(row.get(f"{modality}_present", True))
