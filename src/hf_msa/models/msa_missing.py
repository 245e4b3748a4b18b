"""The one form of a modality that a sample does not have, whether it never had it or lost all of it.

It is what training shows a model at missing rate 1: unknown words between the special tokens, or zero frames, all of them
attended to and marked as dropped. How many is a fact of the training split, never of the sample: how long the lost part was
would tell something of it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .msa_schema import ATTENTION_MASK_KEYS, COMPLETE_ATTENTION_KEYS, COMPLETE_KEYS, MISSING_MASK_KEYS, VALUE_KEYS


def replace_missing(batch: Mapping[str, Any], missing: Mapping[str, Tensor], processor: Any) -> dict[str, Any]:
    """Put the form of a missing modality in the place of what some samples have of it.

    Args:
        batch: Inputs of `MsaPreTrainedModel.forward`; complete values are kept and, where the form is longer than the
            batch, padded as the rest.
        missing: Modality -> True = the sample is without it `(batch,)`, on the CPU.
        processor: The model's `MsaProcessor`, which knows the forms.

    Returns:
        A new mapping, in which `..._missing_mask` is there for each modality that `missing` and `batch` have.
    """
    result = dict(batch)
    for modality, rows in missing.items():
        if VALUE_KEYS[modality] not in batch:
            continue
        value, attention = batch[VALUE_KEYS[modality]], batch[ATTENTION_MASK_KEYS[modality]]
        dropped = batch.get(MISSING_MASK_KEYS[modality])
        dropped = torch.zeros_like(attention, dtype=torch.bool) if dropped is None else dropped
        if rows.any():
            form, marks = processor.missing_form(modality)
            length, width = len(marks), max(len(marks), value.shape[1])
            padding = processor.tokenizer.pad_token_id if modality == "text" else 0
            beside = (COMPLETE_KEYS[modality], COMPLETE_ATTENTION_KEYS[modality])
            for key in (key for key in beside if key in batch):
                result[key] = _widen(batch[key], width, padding if key in COMPLETE_KEYS.values() else 0)
            value, attention = _widen(value, width, padding).clone(), _widen(attention, width, 0).clone()
            dropped = _widen(dropped, width, False).clone()
            places = rows.nonzero().squeeze(1).to(value.device)
            value[places] = padding
            value[places, :length] = torch.as_tensor(form, device=value.device, dtype=value.dtype)
            attention[places] = (torch.arange(width, device=value.device) < length).to(attention.dtype)
            dropped[places] = F.pad(torch.as_tensor(marks, device=value.device), (0, width - length))
        result[VALUE_KEYS[modality]], result[ATTENTION_MASK_KEYS[modality]] = value, attention
        result[MISSING_MASK_KEYS[modality]] = dropped
    return result


def _widen(values: Tensor, width: int, padding: int) -> Tensor:
    """Pad the second axis at its end."""
    return F.pad(values, (*(0, 0) * (values.ndim - 2), 0, width - values.shape[1]), value=padding)
