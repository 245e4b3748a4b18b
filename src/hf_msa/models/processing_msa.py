"""From raw rows to model inputs in one call: tokenizer for text, padding for audio and vision features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from .feature_extraction_msa import MsaFeatureExtractor, refuse_unknown
from .msa_files import check_files, note_files

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


class MsaProcessor(ProcessorMixin):
    """Tokenizer and feature padding in one object, saved and loaded with the model.

    Args:
        feature_extractor (`MsaFeatureExtractor`): Pads audio and vision.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the text encoder.
        text_max_length (`int`): Longest text in tokens, special tokens included; longer ones are cut.
        pad_to_fixed (`bool`): Pad to the fixed maximum lengths, as the papers do, instead of to the batch's need. Needed by
            checkpoints that attend to padding (`mask_padding=False`).
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        feature_extractor: MsaFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        text_max_length: int = 50,
        pad_to_fixed: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_extractor, tokenizer, **kwargs)
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
        text: str | Sequence[str],
        audio: Sequence[np.ndarray | None] | np.ndarray | None = None,
        vision: Sequence[np.ndarray | None] | np.ndarray | None = None,
        pad_to_fixed: bool | None = None,
        return_tensors: str | None = "pt",
        **unknown: Any,
    ) -> BatchFeature:
        """Turn texts and feature sequences into model inputs.

        Args:
            text: One text or one per sample.
            audio, vision: Per sample an array of shape `(frames, width)`, or `None` for a sample that lacks the modality;
                a modality that the model reads and that is left out altogether counts as lacking everywhere.
            pad_to_fixed: Pad to the fixed maximum lengths instead of to the batch's need; default: the processor's own way.
            return_tensors: `"pt"` for torch tensors, `"np"` for numpy arrays.
            **unknown: Refused.

        Returns:
            `BatchFeature` with `input_ids`, `attention_mask` and the values and attention masks of the feature modalities.

        Raises:
            TypeError: For an argument that there is not, naming the nearest one.
            ValueError: If the number of samples differs between modalities, or a width is wrong.
        """
        refuse_unknown(type(self).__name__, unknown, ("text", "audio", "vision", "pad_to_fixed", "return_tensors"))
        texts = [text] if isinstance(text, str) else list(text)
        pad_to_fixed = self.pad_to_fixed if pad_to_fixed is None else pad_to_fixed
        sequences: dict[str, list[np.ndarray | None]] = {}
        for modality, given in (("audio", audio), ("vision", vision)):
            if modality not in self.feature_extractor.modalities:
                continue
            if given is None:
                given = [None] * len(texts)
            elif isinstance(given, np.ndarray) and given.ndim == 2:
                given = [given]
            if len(given) != len(texts):
                raise ValueError(
                    f"There are {len(texts)} texts but {len(given)} {modality} sequences; give one per text."
                )
            sequences[modality] = list(given)
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
        return BatchFeature({**data, **features}, tensor_type=return_tensors)

    def from_rows(self, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> BatchFeature:
        """Turn rows of a data set into model inputs.

        Args:
            rows: Rows with `text` and the feature columns; None, or a false `<modality>_present`, marks a sample that lacks
                it.
            **kwargs: Passed on to `__call__`.
        """

        def column(modality: str) -> list[np.ndarray | None]:
            return [
                np.asarray(row[modality], dtype=np.float32)
                if row.get(modality) is not None and row.get(f"{modality}_present", True)
                else None
                for row in rows
            ]

        return self([row["text"] for row in rows], audio=column("audio"), vision=column("vision"), **kwargs)
