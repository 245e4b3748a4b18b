"""Audio and vision feature sequences to padded tensors."""

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .msa_feature_sets import (
    SOUND,
    FeatureSet,
    find_feature_set,
    picture_frames,
    recorded_frames,
    sound_features,
)
from .msa_schema import ATTENTION_MASK_KEYS, FEATURE_MODALITIES, VALUE_KEYS

# What other processors of the library call our modalities.
_OTHER_NAMES = {"images": "video", "videos": "video", "visual": "vision", "speech": "audio", "raw_speech": "audio"}


def refuse_unknown(name: str, unknown: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse arguments that there are not: the sample would be scored as if it lacked what was given.

    Args:
        name: What the message calls the function.
        unknown: The arguments.
        known: Those that there are.

    Raises:
        TypeError: Naming the first one and the nearest that there is.
    """
    for argument in unknown:
        near = difflib.get_close_matches(argument, known, n=1, cutoff=0.6)
        nearest = _OTHER_NAMES.get(argument) or (near[0] if near else None)
        hint = f"did you mean {nearest!r}?" if nearest in known else f"it takes {', '.join(known)}."
        raise TypeError(f"{name} takes no argument {argument!r}; {hint}")


def as_frames(name: str, values: Any) -> np.ndarray:
    """Turn a sequence of frames into float32, whatever holds it.

    Args:
        name: What the message calls it.
        values: An array of numpy or Arrow, a tensor of any float type on any device, or nested lists.

    Raises:
        ValueError: If there is no table of numbers in it.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().float()
    elif hasattr(values, "to_pylist"):
        values = values.to_pylist()
    try:
        return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no table of numbers; give (frames, width), all frames of one width.") from error


def is_recording(value: Any) -> bool:
    """Whether something is a file, by path or content."""
    return isinstance(value, str | os.PathLike | bytes | bytearray)


def axes(values: Any) -> int:
    """How many axes an array of numpy or Arrow, a tensor, or nested lists have, by their first entries."""
    if hasattr(values, "ndim"):
        return int(values.ndim)
    values = values.to_pylist() if hasattr(values, "to_pylist") else values
    found = 0
    while isinstance(values, list | tuple):
        found, values = found + 1, values[0] if values else None
    return found + (values.ndim if hasattr(values, "ndim") else 0)


def as_sound(value: Any, sampling_rate: int | None) -> Any:
    """A file, or samples and their rate; None if it is no recording but features."""
    if is_recording(value):
        return value
    if isinstance(value, Mapping):
        if value.get("array") is None:
            found = value.get("bytes") or value.get("path")
            if found is None:
                raise ValueError(
                    f"A recording has {', '.join(map(str, value))}; give array and sampling_rate, bytes or path."
                )
            return found
        value, sampling_rate = value["array"], value.get("sampling_rate", sampling_rate)
    elif axes(value) != 1 or not len(value):
        return None
    if not isinstance(sampling_rate, int) or not sampling_rate > 0:
        raise ValueError(
            f"Audio of one axis is a waveform, of {sampling_rate} samples per second; pass sampling_rate, or give a table "
            "of numbers (frames, width)."
        )
    return value, sampling_rate


def _counted(values: Any, looked_at: int | None = None) -> tuple[Any, int]:
    return values if len(values) else None, len(values) if looked_at is None else looked_at


class MsaFeatureExtractor(FeatureExtractionMixin):
    """Pads, truncates and (where statistics are given) standardises audio and vision feature sequences.

    Args:
        audio_dim, vision_dim (`int`, *optional*): Width of a frame; `None` = the model does not read the modality.
        audio_max_length, vision_max_length (`int`): Longer sequences are cut at the end.
        audio_set, vision_set (`str`, *optional*): The feature set that the frames are of, by name and version, see
            `msa_feature_sets`; needed to make them from recordings.
        audio_mean, audio_std, vision_mean, vision_std (`list[float]`, *optional*):
            Per-feature statistics of the valid frames of the training split. A feature with std 0 becomes 0.

    Example:
        ```python
        import numpy as np
        from hf_msa import MsaFeatureExtractor

        extractor = MsaFeatureExtractor(audio_dim=5)
        batch = extractor(audio=[np.zeros((12, 5), dtype=np.float32), None])  # audio_values (2, 12, 5)
        ```
    """

    model_input_names = [key for name in FEATURE_MODALITIES for key in (VALUE_KEYS[name], ATTENTION_MASK_KEYS[name])]
    _auto_class = "AutoFeatureExtractor"

    def __init__(
        self,
        audio_dim: int | None = None,
        vision_dim: int | None = None,
        audio_max_length: int = 500,
        vision_max_length: int = 500,
        audio_set: str | None = None,
        vision_set: str | None = None,
        audio_mean: list[float] | None = None,
        audio_std: list[float] | None = None,
        vision_mean: list[float] | None = None,
        vision_std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.audio_dim = audio_dim
        self.vision_dim = vision_dim
        self.audio_max_length = audio_max_length
        self.vision_max_length = vision_max_length
        self.audio_set = audio_set
        self.vision_set = vision_set
        self.audio_mean = audio_mean
        self.audio_std = audio_std
        self.vision_mean = vision_mean
        self.vision_std = vision_std

    @property
    def modalities(self) -> tuple[str, ...]:
        """The feature modalities that the model reads."""
        return tuple(name for name in FEATURE_MODALITIES if getattr(self, f"{name}_dim") is not None)

    def feature_set(self, modality: str) -> FeatureSet:
        """The feature set of a modality.

        Raises:
            ValueError: If nothing says which it is, or this version does not make it.
        """
        name = getattr(self, f"{modality}_set")
        if name is None:
            width = getattr(self, f"{modality}_dim")
            raise ValueError(
                f"Nothing says how the {width} {modality} features of this checkpoint were made, so a recording cannot be "
                f"used; pass {modality}=[features] of the same kind, or train on a data set of `hf-msa extract`."
            )
        return find_feature_set(name, modality)

    def sequence(
        self,
        modality: str,
        given: Any,
        video: Any = None,
        *,
        sampling_rate: int | None = None,
        frames_per_second: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        **options: Any,
    ) -> tuple[Any, int]:
        """Features of one sample, made where a recording was given.

        Args:
            modality: `"audio"` or `"vision"`.
            given: Features `(frames, width)`; or, of audio, a recording: a path, the content of a file, samples
                `(samples,)`, or `{"array": samples, "sampling_rate": rate}`; None: those of `video`.
            video: A path, the content of a file, or pictures `(frames, height, width, 3)` uint8; None: there is none.
            sampling_rate: Of samples that do not say theirs.
            frames_per_second: Of pictures.
            start, end: Which part of a file, in seconds; by default all.
            **options: For sets that are made from pictures, e.g. `face_model`.

        Returns:
            The features, None where the sample has no such modality, not a frame of it, or the recording has no such track;
            and out of how many they are: pictures without a face are no frames.

        Raises:
            ImportError: If a package that is needed is not installed.
            ValueError: If the recording cannot be read, or the features not be made.
        """
        if given is not None and modality == "audio":
            sound = as_sound(given, sampling_rate)
            if sound is None:
                return _counted(given)
            if isinstance(sound, tuple):
                return _counted(sound_features(self.feature_set(modality), *sound))
            found = recorded_frames(self.feature_set(modality), sound, start=start, end=end)
            return (None, 0) if found is None else _counted(found.values, found.looked_at)
        if given is not None:
            return _counted(given)
        if video is None:
            return None, 0
        if is_recording(video):
            features = self.feature_set(modality)
            found = recorded_frames(
                features, video, start=start, end=end, **(options if features.made_from != SOUND else {})
            )
            return (None, 0) if found is None else _counted(found.values, found.looked_at)
        if modality == "audio":
            return None, 0
        if frames_per_second is None or not frames_per_second > 0:
            raise ValueError("Pictures do not say when they were taken; pass frames_per_second.")
        pictures = ((index / frames_per_second, np.asarray(picture)) for index, picture in enumerate(video))
        seen = picture_frames(self.feature_set(modality), pictures, **options)
        return _counted(seen.values, seen.looked_at)

    def pad(
        self, modality: str, sequences: Sequence[np.ndarray | None], pad_to_fixed: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pad one modality's sequences to the longest of the batch, or to the fixed maximum.

        Args:
            modality: `"audio"` or `"vision"`.
            sequences: Per sample what `as_frames` takes, of shape `(frames, width)`, or `None` for a sample that lacks the
                modality; NaN and infinity become 0, as in preparation.
            pad_to_fixed: Pad to `<modality>_max_length`, as the papers do, instead of the batch's need.

        Returns:
            Values `(batch, frames, width)` float32, zeros in padding, and the attention mask `(batch, frames)` int64,
            1 = real frame, all zeros for a sample that lacks the modality.

        Raises:
            ValueError: If a sequence has the wrong width or number of axes.
        """
        width, longest = getattr(self, f"{modality}_dim"), getattr(self, f"{modality}_max_length")
        mean, std = getattr(self, f"{modality}_mean"), getattr(self, f"{modality}_std")
        sequences = [
            None if one is None else as_frames(f"{modality} of sample {index}", one)
            for index, one in enumerate(sequences)
        ]
        for index, sequence in enumerate(sequences):
            if sequence is not None and (sequence.ndim != 2 or sequence.shape[1] != width):
                raise ValueError(
                    f"{modality} of sample {index} has shape {sequence.shape}, but this checkpoint reads "
                    f"(frames, {width}); use features of the same kind as in training."
                )
        lengths = [0 if sequence is None else min(len(sequence), longest) for sequence in sequences]
        frames = longest if pad_to_fixed else max(1, *lengths)
        values = np.zeros((len(sequences), frames, width), dtype=np.float32)
        mask = np.zeros((len(sequences), frames), dtype=np.int64)
        for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
            if sequence is not None:
                values[row, :length] = sequence[:length]
                mask[row, :length] = 1
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        if mean is not None and std is not None:
            scale = np.asarray(std, dtype=np.float32)
            inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
            values = (values - np.asarray(mean, dtype=np.float32)) * inverse * mask[..., None].astype(np.float32)
        return values, mask

    def __call__(
        self,
        audio: Sequence[np.ndarray | None] | None = None,
        vision: Sequence[np.ndarray | None] | None = None,
        pad_to_fixed: bool = False,
        return_tensors: str | None = None,
        **unknown: Any,
    ) -> BatchFeature:
        """Turn feature sequences into model inputs.

        Args:
            audio, vision: Per sample an array of shape `(frames, width)`, or `None` for a sample that lacks the modality.
            pad_to_fixed: Pad to the fixed maximum lengths instead of the batch's need.
            return_tensors: `"pt"` for torch tensors, `"np"` or `None` for numpy arrays.
            **unknown: Refused.

        Raises:
            TypeError: For an argument that there is not, naming the nearest one.
            ValueError: If a modality that the model reads is not given, or has the wrong width.
        """
        refuse_unknown(type(self).__name__, unknown, ("audio", "vision", "pad_to_fixed", "return_tensors"))
        given = {"audio": audio, "vision": vision}
        data: dict[str, np.ndarray] = {}
        for modality in self.modalities:
            sequences = given[modality]
            if sequences is None:
                raise ValueError(
                    f"This checkpoint reads {modality}: pass {modality}=[...], with None for samples that lack it."
                )
            data[VALUE_KEYS[modality]], data[ATTENTION_MASK_KEYS[modality]] = self.pad(
                modality, sequences, pad_to_fixed
            )
        return BatchFeature(data, tensor_type=return_tensors)
