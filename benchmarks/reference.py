"""The usual way, written for comparison: what the public code of this family of models does, in our own words.

It differs from hf_msa in these habits and in nothing else; optimizer, attention kernel, precision, mask engine and
training loop are ours on both sides:

    Every batch is padded to the fixed longest lengths, in random order, and padded frames are attended to.
    The last layer of an encoder computes all positions, of which only the first are used.
    The complete input goes through the encoders with gradients, just to make reconstruction targets.
    Evaluation runs once per missing rate, one sample at a time, making every batch anew.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import Condition
from hf_msa.data.rows import MsaRows
from hf_msa.models.configuration_tcmr import TcmrConfig
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis
from hf_msa.models.msa_encoders import TokenTransformer
from hf_msa.models.processing_msa import MsaProcessor


class AllPositions(nn.Module):
    """A Transformer whose last layer computes all positions, cut to the first ones afterwards.

    Args:
        transformer: The Transformer; it loses its own `keep`.
    """

    def __init__(self, transformer: TokenTransformer) -> None:
        super().__init__()
        self.transformer = transformer
        self.keep, transformer.keep = transformer.keep, None

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a sequence `(batch, length, dim)`."""
        encoded: Tensor = self.transformer(sequence, mask)
        return encoded[:, : self.keep]


class ReferenceTcmr(TcmrForSentimentAnalysis):
    """TCMR with the habits of the reference; on inputs of fixed lengths it gives what TCMR gives without padding masks."""

    def __init__(self, config: TcmrConfig) -> None:
        super().__init__(type(config).from_dict(config.to_dict() | {"mask_padding": False}))
        # A list first: the loop changes the very children that it goes through.
        for parent in list(self.modules()):
            for name, child in parent.named_children():
                if isinstance(child, TokenTransformer) and child.keep is not None:
                    setattr(parent, name, AllPositions(child))

    def reconstruction_loss(
        self, features: dict[str, Tensor], complete: dict[str, Tensor], attention_masks: dict[str, Tensor]
    ) -> Tensor:
        """Mean squared error of the reconstructed audio and vision features; gradients enter the targets."""
        targets = [self.encode(name, values, attention_masks[name]) for name, values in complete.items()]
        rebuilt = [self.reconstructors[name](features[name]) for name in complete]
        return F.mse_loss(torch.cat(rebuilt), torch.cat(targets))


@torch.inference_mode()
def reference_sweep(
    model: TcmrForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows, tested: Sequence[Condition]
) -> list[Tensor]:
    """Predict all rows under all conditions: one pass per condition, one sample at a time.

    Args:
        model: In eval mode, on its device.
        processor: The model's processor.
        rows: Tokenised rows.
        tested: From `hf_msa.evaluation.sweep.conditions`.

    Returns:
        Scores `(rows,)` per condition.
    """
    device = next(model.parameters()).device
    scores = []
    for _, _, protocol in tested:
        collator = MsaCollator(processor, protocol.bind(rows.ids), split=rows.split, pad_to_fixed=True)
        predicted = []
        for row in range(len(rows)):
            batch = collator([rows[row]])
            names = ("input_ids", "attention_mask", "audio_values", "vision_values")
            outputs = model(**{name: batch[name].to(device) for name in names})
            predicted.append(outputs.logits.reshape(-1).cpu())
        scores.append(torch.cat(predicted))
    return scores
