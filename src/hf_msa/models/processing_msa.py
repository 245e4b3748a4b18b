"""From raw rows to model inputs in one call: tokenizer for text, padding for audio and vision features."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from .feature_extraction_msa import MsaFeatureExtractor, axes, is_recording, refuse_unknown
from .msa_files import check_files, note_files
from .msa_missing import replace_missing

# What `save_pretrained` may write, whatever the tokenizer.
_SAVED = (
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
)


_ARGUMENTS = (
    *("text", "audio", "vision", "video", "sampling_rate", "frames_per_second", "face_model"),
    *("pad_to_fixed", "return_tensors"),
)
# A sample of the modality alone, of one text.
_AXES = {"audio": (1, 2), "vision": (2,), "video": (4,)}


def _per_sample(name: str, given: Any, count: int, is_one: bool) -> list[Any]:
    """What was given of a modality, one for each sample."""
    if given is None:
        return [None] * count
    alone = is_recording(given) or isinstance(given, Mapping)
    if is_one and not alone:
        first = given[0] if len(given) else None
        # One frame in an array or in lists; a waveform is in a list of its own.
        is_frame = axes(first) == 1 and (hasattr(given, "ndim") or not hasattr(first, "ndim"))
        is_sample = len(given) == 1 and not is_frame and (first is None or axes(first) in _AXES[name])
        alone = not (is_sample or is_recording(first) or isinstance(first, Mapping))
    values = [given] if is_one and alone else given
    if alone and not is_one or len(values) != count:
        found = f"a single {name} recording" if alone else f"{len(values)} {name} sequences"
        raise ValueError(f"There are {count} texts but {found}; give one per text.")
    return list(values)


class MsaProcessor(ProcessorMixin):
    """Tokenizer and feature padding in one object, saved and loaded with the model.

    Args:
        feature_extractor (`MsaFeatureExtractor`): Pads audio and vision.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text encoder.
        text_max_length (`int`): Longest text in tokens, special tokens included; longer ones are cut.
        missing_lengths (`dict[str, int]`, *optional*): How many tokens, special ones included, or frames stand for a
            modality that a sample is without: the median of the training split. Without it the longest length does, with a
            warning.
        pad_to_fixed (`bool`): Pad to the fixed maximum lengths, as the papers do, instead of to the batch's need. Needed by
            checkpoints that attend to padding (`mask_padding=False`).

    Example:
        ```python
        from hf_msa import MsaProcessor

        processor = MsaProcessor.from_pretrained("runs/text/seed-1")
        batch = processor(["a wonderful film"], audio=[None])  # None: this one is missing
        ```
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        feature_extractor: MsaFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        text_max_length: int = 50,
        pad_to_fixed: bool = False,
        missing_lengths: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, **kwargs)
        self.missing_lengths = missing_lengths
        self.text_max_length = text_max_length
        self.pad_to_fixed = pad_to_fixed

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a processor; see `transformers.ProcessorMixin.from_pretrained`.

        Raises:
            ValueError: If a folder lacks a file that was saved with it; without the tokenizer's, all words would be unknown.
        """
        name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        check_files(str(name), _SAVED, kwargs.get("subfolder") or "")
        processor: Self = super().from_pretrained(*args, **kwargs)
        return processor

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save tokenizer and feature padding; see `transformers.ProcessorMixin.save_pretrained`."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        note_files(Path(save_directory), _SAVED)
        return saved

    def __call__(
        self,
        text: str | None | Sequence[str | None],
        audio: Any = None,
        vision: Any = None,
        video: Any = None,
        *,
        sampling_rate: int | None = None,
        frames_per_second: float | None = None,
        face_model: str | None = None,
        pad_to_fixed: bool | None = None,
        return_tensors: str | None = "pt",
        **unknown: Any,
    ) -> BatchFeature:
        """Turn texts and feature sequences, or recordings, into model inputs.

        Args:
            text: One text or one per sample; `None`, or one without a word in it, is missing.
            audio, vision: Per sample a sequence of shape `(frames, width)`: an array of numpy or Arrow, a tensor of any
                float type, or nested lists; for one text the sequence alone will do. `None` for a sample that is without the
                modality; one that the model reads and that is left out altogether is missing everywhere. Audio may be a
                recording, too: the path or the content of a file, samples `(samples,)`, or `{"array", "sampling_rate"}` as
                `datasets` gives it; its features are then made as those that the checkpoint was trained on.
            video: Per sample a recording, the path or the content of a file, of whose sound and pictures the features are
                made that were not given; or pictures `(frames, height, width, 3)` uint8.
            sampling_rate: Of samples that do not say theirs.
            frames_per_second: Of pictures.
            face_model: Path of the face landmark model (a `.task` file) for vision features that are made by MediaPipe.
            pad_to_fixed: Pad to the fixed maximum lengths instead of to the batch's need; default: the processor's own way.
            return_tensors: `"pt"` for torch tensors, `"np"` for numpy arrays.
            **unknown: Refused.

        Returns:
            `BatchFeature` with `input_ids`, `attention_mask`, the values and attention masks of the feature modalities, and
            the missing mask of each modality. What is missing has the form that training and evaluation give it, see
            `msa_missing`.

        Raises:
            TypeError: For an argument that there is not, naming the nearest one.
            ValueError: If the number of samples differs between modalities, or a width is wrong.
        """
        refuse_unknown(type(self).__name__, unknown, _ARGUMENTS)
        is_one = text is None or isinstance(text, str)
        texts: list[str] = []
        for index, one in enumerate([text] if text is None or isinstance(text, str) else text):
            if one is not None and not isinstance(one, str):
                raise ValueError(
                    f"The text of sample {index} is {one!r}; give a string, or pass '' where it is missing."
                )
            texts.append("" if one is None else one)
        pad_to_fixed = self.pad_to_fixed if pad_to_fixed is None else pad_to_fixed
        given = {
            name: _per_sample(name, values, len(texts), is_one)
            for name, values in (("audio", audio), ("vision", vision), ("video", video))
        }
        sequences: dict[str, list[Any]] = {}
        for modality in self.feature_extractor.modalities:
            options = {"face_model": face_model} if modality == "vision" and face_model is not None else {}
            sequences[modality] = [
                self.feature_extractor.sequence(
                    modality, one, clip, sampling_rate=sampling_rate, frames_per_second=frames_per_second, **options
                )[0]
                for one, clip in zip(given[modality], given["video"], strict=True)
            ]
        encoded = self.tokenizer(
            texts,
            padding="max_length" if pad_to_fixed else True,
            truncation=True,
            max_length=self.text_max_length,
            return_token_type_ids=False,
            return_attention_mask=True,
        )
        features = self.feature_extractor(**sequences, pad_to_fixed=pad_to_fixed)
        data = {name: np.asarray(encoded[name], dtype=np.int64) for name in ("input_ids", "attention_mask")}
        missing = {"text": torch.tensor([not one.strip() for one in texts])}
        missing |= {name: torch.tensor([one is None for one in given]) for name, given in sequences.items()}
        inputs = replace_missing({k: torch.as_tensor(v) for k, v in {**data, **features}.items()}, missing, self)
        if return_tensors != "pt":
            inputs = {name: value.numpy() for name, value in inputs.items()}
        return BatchFeature(inputs, tensor_type=return_tensors)

    def missing_form(self, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """The form of a modality that a sample is without.

        Args:
            modality: `"text"`, `"audio"` or `"vision"`.

        Returns:
            Token ids `(tokens,)`, or zero frames `(frames, 1)`; and True at all of them that are no special tokens.
        """
        extractor = self.feature_extractor
        longest = self.text_max_length if modality == "text" else getattr(extractor, f"{modality}_max_length")
        if modality not in (self.missing_lengths or {}):
            warnings.warn(
                f"This processor has no missing_lengths, as it was saved by an earlier version, so missing {modality} is "
                f"taken for its longest, {longest} positions; set it to the median lengths of the training split.",
                stacklevel=2,
            )
        length = min((self.missing_lengths or {}).get(modality, longest), longest)
        if modality != "text":
            return np.zeros((length, 1), dtype=np.float32), np.ones(length, dtype=bool)
        unknown = self.tokenizer.unk_token_id
        encoded = self.tokenizer("a", return_special_tokens_mask=True)
        special = np.array(encoded["special_tokens_mask"], dtype=bool)
        ids, words = np.array(encoded["input_ids"]), np.flatnonzero(~special)
        before, after = ids[: words[0]], ids[words[-1] + 1 :]
        count = max(1, length - len(before) - len(after))
        form = np.concatenate([before, np.full(count, unknown), after])
        return form, (np.arange(len(form)) >= len(before)) & (np.arange(len(form)) < len(before) + count)

    def from_rows(self, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> BatchFeature:
        """Turn rows of a data set into model inputs.

        Args:
            rows: Rows with `text` and the feature columns; None, or a false `<modality>_present`, marks a sample that is
                without it.
            **kwargs: Passed on to `__call__`.
        """

        def column(modality: str) -> list[Any]:
            return [
                row[modality] if row.get(modality) is not None and row.get(f"{modality}_present", True) else None
                for row in rows
            ]

        return self([row.get("text") for row in rows], audio=column("audio"), vision=column("vision"), **kwargs)
