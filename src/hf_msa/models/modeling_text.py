"""The text-only baseline: text encoder, masked mean pooling, linear head.

It reads the same batches as every other method and leaves audio and vision alone.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_text import TextConfig
from .modeling_msa import MsaPreTrainedModel, build_text_encoder, masked_mean
from .msa_outputs import MsaOutput


class TextForSentimentAnalysis(MsaPreTrainedModel):
    """Sentiment score from (possibly incomplete) text alone."""

    config: TextConfig

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.regressor = nn.Linear(config.text_config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio_values: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        vision_values: Tensor | None = None,
        vision_attention_mask: Tensor | None = None,
        text_missing_mask: Tensor | None = None,
        audio_missing_mask: Tensor | None = None,
        vision_missing_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MsaOutput:
        """Predict the sentiment score.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): Token ids, dropped tokens already replaced.
            attention_mask (`torch.LongTensor` of shape `(batch, tokens)`): 1 = real token, dropped ones included.
            audio_values, audio_attention_mask, vision_values, vision_attention_mask: Not read.
            text_missing_mask, audio_missing_mask, vision_missing_mask: Not read.
            labels (`torch.FloatTensor` of shape `(batch,)`, *optional*): True scores.

        Returns:
            `MsaOutput` with `logits` of shape `(batch, 1)` and, with labels, the mean squared error as `loss`.
        """
        hidden = self.encode_text(input_ids, attention_mask)
        logits = self.regressor(self.dropout(masked_mean(hidden, attention_mask)))
        if labels is None:
            return MsaOutput(logits=logits)
        loss = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return MsaOutput(loss=loss, logits=logits, losses={"task": loss.detach()})
