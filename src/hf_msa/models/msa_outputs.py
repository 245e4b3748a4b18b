"""Output of the models."""

from dataclasses import dataclass

import torch
from transformers.utils.generic import ModelOutput


@dataclass
class MsaOutput(ModelOutput):
    """Output of every predicting model.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): The weighted training loss; given with `labels`.
        logits (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Sentiment score in label units.
        losses (`dict[str, torch.FloatTensor]`, *optional*): Every loss term by name, unweighted and detached.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
