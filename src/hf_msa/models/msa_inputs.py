"""The inputs of every model, put together and checked in one place."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from .msa_schema import ATTENTION_MASK_KEYS, COMPLETE_ATTENTION_KEYS, COMPLETE_KEYS, MISSING_MASK_KEYS, VALUE_KEYS


def inner_tokens(real: Tensor) -> Tensor:
    """Real tokens without the first and the last one, which are special `(batch, tokens)`."""
    places = torch.arange(real.shape[1], device=real.device)
    last = torch.where(real, places, -1).amax(dim=1, keepdim=True)
    first = torch.where(real, places, real.shape[1]).amin(dim=1, keepdim=True)
    return real & (places > first) & (places < last)


@dataclass(frozen=True, eq=False)
class MsaInputs:
    """The inputs of a batch, checked by `MsaPreTrainedModel.read`; None where the model does not read a modality.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, tokens)`): Token ids, dropped tokens already replaced.
        attention_mask (`torch.LongTensor` of shape `(batch, tokens)`): 1 = real token, dropped ones included.
        audio_values, vision_values (`torch.FloatTensor` of shape `(batch, frames, width)`): Frames, zeros where dropped.
        audio_attention_mask, vision_attention_mask (`torch.LongTensor` of shape `(batch, frames)`): 1 = real frame, dropped
            ones included.
        text_missing_mask, audio_missing_mask, vision_missing_mask (`torch.BoolTensor` of shape `(batch, positions)`): True =
            dropped; None: nothing is.
        complete_input_ids, complete_audio_values, complete_vision_values: The same values before anything was dropped; None
            where they were not given.
        complete_attention_mask, complete_audio_attention_mask, complete_vision_attention_mask: Their attention masks, zeros
            where a sample never had the modality; None: as of the inputs.
    """

    input_ids: Tensor
    attention_mask: Tensor
    audio_values: Tensor | None = None
    audio_attention_mask: Tensor | None = None
    vision_values: Tensor | None = None
    vision_attention_mask: Tensor | None = None
    text_missing_mask: Tensor | None = None
    audio_missing_mask: Tensor | None = None
    vision_missing_mask: Tensor | None = None
    complete_input_ids: Tensor | None = None
    complete_audio_values: Tensor | None = None
    complete_vision_values: Tensor | None = None
    complete_attention_mask: Tensor | None = None
    complete_audio_attention_mask: Tensor | None = None
    complete_vision_attention_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def values(self, modality: str) -> Tensor:
        """Values of a modality that the model reads: `(batch, tokens)` ids for text, `(batch, frames, width)` otherwise."""
        value: Tensor = getattr(self, VALUE_KEYS[modality])
        return value

    def attention(self, modality: str) -> Tensor:
        """Attention mask `(batch, positions)` of a modality that the model reads; 1 = real position."""
        mask: Tensor = getattr(self, ATTENTION_MASK_KEYS[modality])
        return mask

    def missing(self, modality: str) -> Tensor | None:
        """Missing mask `(batch, positions)` of a modality, True = dropped; None where nothing is."""
        mask: Tensor | None = getattr(self, MISSING_MASK_KEYS[modality])
        return mask

    def observed(self, modality: str) -> Tensor:
        """True = a real position of a modality that was not dropped `(batch, positions)`.

        Special tokens of text say nothing by themselves: where no other token is left, nothing is observed.
        """
        real, dropped = self.attention(modality).bool(), self.missing(modality)
        content = inner_tokens(real) if modality == "text" else real
        visible = real if dropped is None else real & ~dropped.bool()
        return visible & (content & visible).any(dim=1, keepdim=True)

    def complete(self, modality: str) -> Tensor | None:
        """Values of a modality before anything was dropped; None where they were not given."""
        value: Tensor | None = getattr(self, COMPLETE_KEYS[modality])
        return value

    def complete_attention(self, modality: str) -> Tensor:
        """Attention mask `(batch, positions)` of the complete values of a modality; 1 = real position."""
        mask: Tensor | None = getattr(self, COMPLETE_ATTENTION_KEYS[modality])
        return self.attention(modality) if mask is None else mask

    def completed(self) -> Self:
        """These inputs as they were before anything was dropped, as far as complete values were given."""
        changes: dict[str, Any] = dict.fromkeys(MISSING_MASK_KEYS.values())
        for modality, key in VALUE_KEYS.items():
            value = self.complete(modality)
            if value is not None:
                changes |= {key: value, ATTENTION_MASK_KEYS[modality]: self.complete_attention(modality)}
        return dataclasses.replace(self, **changes)


INPUT_KEYS = tuple(field.name for field in dataclasses.fields(MsaInputs))
"""The names of all model inputs, as `forward` takes them and the collator gives them."""
