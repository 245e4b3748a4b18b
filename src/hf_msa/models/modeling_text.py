"""The text-only baseline: text encoder, masked mean pooling, linear head.

It reads the same batches as every other method and leaves audio and vision alone.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_text import TextConfig
from .modeling_msa import MsaPreTrainedModel, build_text_encoder, masked_mean
from .msa_inputs import MsaInputs
from .msa_outputs import MsaOutput


class TextForSentimentAnalysis(MsaPreTrainedModel):
    """Sentiment score from (possibly incomplete) text alone.

    Example:
        ```python
        from hf_msa import TextConfig, TextForSentimentAnalysis

        model = TextForSentimentAnalysis.from_text_pretrained("data/sample/text_model", TextConfig())
        ```
    """

    config: TextConfig

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.regressor = nn.Linear(config.text_config.hidden_size, 1)
        self.post_init()

    def compute(self, inputs: MsaInputs, labels: Tensor | None) -> MsaOutput:
        """Predict the score; the loss is the mean squared error."""
        hidden = self.encode_text(inputs.input_ids, inputs.attention_mask)
        logits = self.regressor(self.dropout(masked_mean(hidden, inputs.attention_mask)))
        if labels is None:
            return MsaOutput(logits=logits)
        loss = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return MsaOutput(loss=loss, logits=logits, losses={"task": loss.detach()})
