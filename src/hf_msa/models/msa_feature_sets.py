"""Named, versioned feature sets: what turns a recording into the frames that a checkpoint was trained on.

The processor's configuration names the sets (`audio_set`, `vision_set`), so that training and inference cannot disagree.
"""

import difflib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .msa_audio_features import (
    EGEMAPS25_COLUMNS,
    LIBROSA33_COLUMNS,
    LIBROSA33_FRAMES_PER_SECOND,
    LIBROSA33_SAMPLING_RATE,
    LOGMEL_COLUMNS,
    PROSODY_COLUMNS,
    egemaps25,
    librosa33,
    logmel,
    prosody,
)
from .msa_face_features import (
    FACE_BLENDSHAPE_COLUMNS,
    FACE_COLUMNS,
    FACE_FRAMES_PER_SECOND,
    face_features,
)
from .msa_openface import OPENFACE_AU_COLUMNS, OPENFACE_COLUMNS, OPENFACE_SIMSV2_COLUMNS
from .msa_recordings import Recording, read_pictures, read_sound, resample

SOUND, PICTURES, TABLE = "sound", "pictures", "table"


@dataclass(frozen=True)
class FeatureSet:
    """One way to make features.

    Args:
        name: What it is called, e.g. `"librosa33"`.
        version: Raised whenever the same recording gives other numbers.
        modality: `"audio"` or `"vision"`.
        columns: What each feature is, in words or in the field's names.
        made_from: `"sound"`, `"pictures"`, or `"table"` for what another program has to make first.
        rate: Samples, or at most how many pictures, per second that `compute` takes.
        compute: Makes features `(frames, width)` of a waveform `(samples,)`; or, of pairs of a time in seconds and a picture
            `(height, width, 3)` uint8, features, and the times of their frames.
        frames_per_second: Frames of features per second, where that is fixed.
    """

    name: str
    version: int
    modality: str
    columns: tuple[str, ...]
    made_from: str = SOUND
    rate: float = 16_000
    compute: Callable[..., Any] | None = None
    frames_per_second: float | None = None

    @property
    def id(self) -> str:
        """Name and version, as configurations hold them."""
        return f"{self.name}@{self.version}"


FEATURE_SETS = {
    found.name: found
    for found in (
        FeatureSet(
            "librosa33",
            1,
            "audio",
            LIBROSA33_COLUMNS,
            rate=LIBROSA33_SAMPLING_RATE,
            compute=librosa33,
            frames_per_second=LIBROSA33_FRAMES_PER_SECOND,
        ),
        FeatureSet("logmel", 1, "audio", LOGMEL_COLUMNS, compute=logmel, frames_per_second=100),
        FeatureSet("prosody", 1, "audio", PROSODY_COLUMNS, compute=prosody, frames_per_second=100),
        FeatureSet("egemaps25", 1, "audio", EGEMAPS25_COLUMNS, compute=egemaps25, frames_per_second=100),
        FeatureSet("face", 1, "vision", FACE_COLUMNS, PICTURES, FACE_FRAMES_PER_SECOND, face_features),
        FeatureSet(
            "face_blendshapes",
            1,
            "vision",
            FACE_BLENDSHAPE_COLUMNS,
            PICTURES,
            FACE_FRAMES_PER_SECOND,
            partial(face_features, blendshapes=True),
        ),
        FeatureSet("openface709", 1, "vision", OPENFACE_COLUMNS, TABLE),
        FeatureSet("openface35", 1, "vision", OPENFACE_AU_COLUMNS, TABLE),
        FeatureSet("openface177", 1, "vision", OPENFACE_SIMSV2_COLUMNS, TABLE),
    )
}
"""Feature sets by name."""


def find_feature_set(name: str, modality: str | None = None) -> FeatureSet:
    """Find a feature set.

    Args:
        name: As `FeatureSet.id`, or without a version for the present one.
        modality: Which modality it must be of.

    Raises:
        ValueError: If there is none of that name and modality, or it makes other numbers now.
    """
    bare, _, version = name.partition("@")
    known = [one for one, found in FEATURE_SETS.items() if modality in (None, found.modality)]
    if bare not in known:
        near = difflib.get_close_matches(bare, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        raise ValueError(f"There is no{f' {modality}' if modality else ''} feature set {bare!r}; {hint}")
    found = FEATURE_SETS[bare]
    if version and version != str(found.version):
        raise ValueError(
            f"The feature set {name!r} is asked for, but this version of hf_msa makes {found.id!r}, other numbers; make the "
            "features anew, or use the version that made them."
        )
    return found


def as_waveform(values: Any) -> np.ndarray:
    """Samples of one channel as float32 `(samples,)`; whole numbers are taken for samples of that many bits.

    Raises:
        ValueError: If they are none, of another form, or hold what is no number.
    """
    samples = np.asarray(values)
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    if samples.ndim != 1 or not len(samples) or samples.dtype.kind not in "fiu":
        raise ValueError(
            f"A waveform has shape {samples.shape} of {samples.dtype}; give one channel, (samples,), not empty."
        )
    if samples.dtype.kind in "iu":
        samples = samples / np.float32(np.iinfo(samples.dtype).max + 1)
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError("A waveform holds values that are no numbers; record it again.")
    return samples


def sound_features(features: FeatureSet, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Make the features of a waveform.

    Args:
        features: A set that is made from sound.
        waveform: See `as_waveform`.
        sampling_rate: Samples per second.

    Returns:
        Float32 `(frames, width)`.

    Raises:
        ImportError: If a package that makes them is not installed.
        ValueError: As `as_waveform`.
    """
    samples = resample(as_waveform(waveform), sampling_rate, int(features.rate))
    made = features.compute(samples)  # type: ignore[misc]  # Of sound, all have.
    return np.asarray(made, dtype=np.float32)


class Frames(NamedTuple):
    """Features of a recording.

    Attributes:
        values: Float32 `(frames, width)`.
        times: When each frame is, in seconds `(frames,)`; None of a set of sound that does not say.
        looked_at: Of pictures, how many there were: those without a face are no frames. Of sound, the frames.
    """

    values: np.ndarray
    times: np.ndarray | None
    looked_at: int


def recorded_frames(
    features: FeatureSet, recording: Recording, *, start: float = 0.0, end: float | None = None, **options: Any
) -> Frames | None:
    """Make the features of a file of sound or video, and say when each frame is.

    Args:
        features: A set that is made from sound or pictures.
        recording: See `msa_recordings`.
        start, end: The part to read, in seconds; by default all.
        **options: For `compute`.

    Returns:
        The frames, at seconds since `start`, none where nobody is to be seen; None where the recording has no such track.

    Raises:
        ImportError: If a package that reads it or makes them is not installed.
        ValueError: If it cannot be read.
    """
    if features.made_from == SOUND:
        waveform = read_sound(recording, int(features.rate), start=start, end=end)
        if waveform is None:
            return None
        made = sound_features(features, waveform, int(features.rate))
        rate = features.frames_per_second
        return Frames(made, None if rate is None else np.arange(len(made)) / rate, len(made))
    found = picture_frames(features, read_pictures(recording, features.rate, start=start, end=end), **options)
    return found if found.looked_at else None


def picture_frames(features: FeatureSet, pictures: Iterator[tuple[float, np.ndarray]], **options: Any) -> Frames:
    """Make the features of pictures.

    Args:
        features: A set that is made from pictures.
        pictures: Times in seconds and pictures, uint8 RGB `(height, width, 3)`.
        **options: For `compute`.

    Returns:
        The frames; pictures without a face are none.

    Raises:
        ImportError: If a package that makes them is not installed.
        ValueError: If the set is made otherwise.
    """
    if features.made_from != PICTURES:
        raise ValueError(
            f"The feature set {features.id!r} is not made from pictures, but by another program; give its tables."
        )
    looked_at = itertools.count()
    counted = (picture for picture, _ in zip(pictures, looked_at, strict=False))
    made, times, *_ = features.compute(counted, **options)  # type: ignore[misc]
    return Frames(np.asarray(made, dtype=np.float32), np.asarray(times, dtype=np.float64), next(looked_at))
