"""Ridge probe: a linear map of what is observed, fitted in closed form; without any modality the best constant."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_ridge import RidgeConfig
from .modeling_msa import MsaPreTrainedModel, build_text_encoder, masked_mean
from .msa_inputs import MsaInputs
from .msa_outputs import MsaOutput


class RidgeForSentimentAnalysis(MsaPreTrainedModel):
    """Sentiment score by a linear map of a text vector and time means of audio and vision.

    Each modality has the columns of its vector and one more, the share of its positions that was observed. Columns are
    standardised by training rows; of a modality of which nothing was observed they are at their mean, 0.

    Example:
        ```python
        from hf_msa import RidgeConfig, RidgeForSentimentAnalysis

        config = RidgeConfig(audio_dim=5, vision_dim=20)  # widths are those of the data
        model = RidgeForSentimentAnalysis.from_text_pretrained("data/sample/text_model", config)
        ```
    """

    config: RidgeConfig
    column_mean: Tensor
    column_std: Tensor

    def __init__(self, config: RidgeConfig) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        text = {"states": config.text_config.hidden_size, "words": config.text_config.vocab_size}[config.text_vector]
        widths = {"text": text, "audio": config.audio_dim, "vision": config.vision_dim}
        columns = sum((widths[name] or 0) + 1 for name in config.probed_modalities)
        self.register_buffer("column_mean", torch.zeros(columns))
        self.register_buffer("column_std", torch.ones(columns))
        self.weights = nn.Parameter(torch.zeros(columns))
        self.offset = nn.Parameter(torch.zeros(1))
        self.post_init()

    def reset_parameters(self) -> None:
        """Draw the weights anew; the fit replaces them."""
        nn.init.normal_(self.weights, std=0.02)
        nn.init.zeros_(self.offset)

    def columns(self, inputs: MsaInputs) -> tuple[Tensor, Tensor]:
        """What the linear map reads, not yet standardised.

        Returns:
            Columns `(batch, columns)`, and True = known of them; False = nothing was observed of its modality.
        """
        values, known = [inputs.input_ids.new_zeros((len(inputs), 0), dtype=self.dtype)], []
        for name in self.config.probed_modalities:
            seen = inputs.observed(name)
            vector = self._text_vector(inputs, seen) if name == "text" else masked_mean(inputs.values(name), seen)
            share = seen.sum(dim=1, keepdim=True) / inputs.attention(name).sum(dim=1, keepdim=True).clamp(min=1)
            values += [vector, share.to(vector.dtype)]
            known += [seen.any(dim=1, keepdim=True).expand_as(vector), torch.ones_like(share, dtype=torch.bool)]
        return torch.cat(values, dim=1), torch.cat([values[0].bool(), *known], dim=1)

    def _text_vector(self, inputs: MsaInputs, seen: Tensor) -> Tensor:
        if self.config.text_vector == "states":
            return masked_mean(self.encode_text(inputs.input_ids, inputs.attention_mask), seen)
        counts = torch.zeros(len(inputs), self.config.text_config.vocab_size, device=seen.device, dtype=self.dtype)
        return counts.scatter_add(1, inputs.input_ids, seen.to(counts.dtype))

    def compute(self, inputs: MsaInputs, labels: Tensor | None) -> MsaOutput:
        """Predict the score; the loss is the mean squared error, without the penalty."""
        values, known = self.columns(inputs)
        columns = ((values - self.column_mean) / self.column_std).where(known, torch.zeros_like(values))
        logits = (columns @ self.weights + self.offset).unsqueeze(-1)
        if labels is None:
            return MsaOutput(logits=logits)
        loss = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return MsaOutput(loss=loss, logits=logits, losses={"task": loss.detach()})
