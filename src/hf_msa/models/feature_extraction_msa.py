"""Audio and vision feature sequences to padded tensors."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .msa_schema import ATTENTION_MASK_KEYS, FEATURE_MODALITIES, VALUE_KEYS

# What other processors of the library call our modalities.
_OTHER_NAMES = {"images": "vision", "videos": "vision", "video": "vision", "visual": "vision", "speech": "audio"}


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


class MsaFeatureExtractor(FeatureExtractionMixin):
    """Pads, truncates and (where statistics are given) standardises audio and vision feature sequences.

    Args:
        audio_dim, vision_dim (`int`, *optional*): Width of a frame; `None` = the model does not read the modality.
        audio_max_length, vision_max_length (`int`): Longer sequences are cut at the end.
        audio_mean, audio_std, vision_mean, vision_std (`list[float]`, *optional*):
            Per-feature statistics of the valid frames of the training split. A feature with std 0 becomes 0.
    """

    model_input_names = [key for name in FEATURE_MODALITIES for key in (VALUE_KEYS[name], ATTENTION_MASK_KEYS[name])]
    _auto_class = "AutoFeatureExtractor"

    def __init__(
        self,
        audio_dim: int | None = None,
        vision_dim: int | None = None,
        audio_max_length: int = 500,
        vision_max_length: int = 500,
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
        self.audio_mean = audio_mean
        self.audio_std = audio_std
        self.vision_mean = vision_mean
        self.vision_std = vision_std

    @property
    def modalities(self) -> tuple[str, ...]:
        """The feature modalities that the model reads."""
        return tuple(name for name in FEATURE_MODALITIES if getattr(self, f"{name}_dim") is not None)

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
