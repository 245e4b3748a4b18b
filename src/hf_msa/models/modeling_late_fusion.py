"""Late fusion: each modality is scored by itself, and the scores of those that were observed are averaged."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_late_fusion import LateFusionConfig
from .modeling_msa import MsaPreTrainedModel, build_text_encoder, masked_mean
from .msa_inputs import MsaInputs
from .msa_outputs import MsaOutput


@dataclass
class LateFusionOutput(MsaOutput):
    """Output of `LateFusionForSentimentAnalysis`.

    Args:
        loss, logits, losses: See `MsaOutput`.
        modality_scores (`torch.FloatTensor` of shape `(batch, modalities)`, *optional*): The score of each modality by
            itself, text first.
    """

    modality_scores: torch.Tensor | None = None


class FrameHead(nn.Module):
    """Scores a sequence of frames: a layer on each, their mean, another layer, a linear map.

    Args:
        width: Width of a frame.
        config: The model's configuration.
    """

    def __init__(self, width: int, config: LateFusionConfig) -> None:
        super().__init__()
        self.frames = nn.Sequential(nn.Linear(width, config.hidden_size), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_size, 1),
        )

    def forward(self, values: Tensor, seen: Tensor) -> Tensor:
        """Score.

        Args:
            values (`torch.FloatTensor` of shape `(batch, frames, width)`): Frames.
            seen (`torch.BoolTensor` of shape `(batch, frames)`): True = counts.

        Returns:
            `torch.FloatTensor` of shape `(batch, 1)`.
        """
        score: Tensor = self.score(masked_mean(self.frames(values), seen))
        return score


class LateFusionForSentimentAnalysis(MsaPreTrainedModel):
    """Sentiment score as the mean of one score per modality, of those of which something was observed.

    Where nothing was observed at all, all modalities count.

    Example:
        ```python
        from hf_msa import LateFusionConfig, LateFusionForSentimentAnalysis

        config = LateFusionConfig(audio_dim=5, vision_dim=20)  # widths are those of the data
        model = LateFusionForSentimentAnalysis.from_text_pretrained("data/sample/text_model", config)
        ```
    """

    config: LateFusionConfig

    def __init__(self, config: LateFusionConfig) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        self.text_head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.text_config.hidden_size, 1))
        self.frame_heads = nn.ModuleDict(
            {name: FrameHead(getattr(config, f"{name}_dim"), config) for name in config.modalities[1:]}
        )
        self.post_init()

    @property
    def output_columns(self) -> dict[str, tuple[str, ...]]:
        """Modalities of the scores."""
        return {"modality_scores": self.modalities}

    def compute(self, inputs: MsaInputs, labels: Tensor | None) -> LateFusionOutput:
        """Predict the score; the loss is the mean squared error of the mean, in training under modality dropout."""
        seen = {name: inputs.observed(name) for name in self.modalities}
        hidden = self.encode_text(inputs.input_ids, inputs.attention_mask)
        scores = [self.text_head(masked_mean(hidden, inputs.attention_mask))]
        scores += [head(inputs.values(name), seen[name]) for name, head in self.frame_heads.items()]
        by_modality = torch.cat(scores, dim=1)
        votes = self._fill(torch.stack([where.any(dim=1) for where in seen.values()], dim=1), None)
        if self.training:
            kept = torch.rand(votes.shape, device=votes.device) >= self.config.modality_dropout
            votes = self._fill(votes & kept, votes)
        logits = masked_mean(by_modality.unsqueeze(-1), votes)
        if labels is None:
            return LateFusionOutput(logits=logits, modality_scores=by_modality)
        loss = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return LateFusionOutput(loss=loss, logits=logits, losses={"task": loss.detach()}, modality_scores=by_modality)

    @staticmethod
    def _fill(votes: Tensor, others: Tensor | None) -> Tensor:
        """Give rows without any vote those of others, or all."""
        empty = ~votes.any(dim=1, keepdim=True)
        return votes | (empty if others is None else empty & others)
