"""UBM: a small model that predicts sentiment and says how uncertain it is.

Paper: "Uncertainty-Aware Collaborative System of Large and Small Models for Multimodal Sentiment Analysis", arXiv
2509.04459 v1, where it answers what it is sure of and leaves the rest to a large model. Made from Self-MM (public code)
without its unimodal labels, with a class head beside the regression head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from .configuration_ubm import UbmConfig
from .modeling_msa import MsaPreTrainedModel, build_text_encoder
from .msa_inputs import MsaInputs
from .msa_outputs import MsaOutput
from .msa_schema import SENTIMENT_CLASSES


@dataclass
class UbmOutput(MsaOutput):
    """Output of `UbmForSentimentAnalysis`.

    Args:
        loss, logits, losses: See `MsaOutput`; `losses` may hold task, class, error and ensemble.
        class_logits (`torch.FloatTensor` of shape `(batch, 3)`, *optional*): Logits of negative, neutral, positive, not
            divided by the temperature.
        uncertainty (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): The higher, the less sure; in nats, label
            units, their square, or minus label units, as `uncertainty_kind` says.
        embeddings (`torch.FloatTensor` of shape `(batch, fusion_dim)`, *optional*): The fused vector that all heads read.
    """

    class_logits: torch.Tensor | None = None
    uncertainty: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


def class_entropy(class_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of the class probabilities (eq. 7, B.10), in single precision.

    Args:
        class_logits (`torch.FloatTensor` of shape `(batch, classes)`): Logits.
        temperature: Divides them first; above 1 the probabilities get more even.

    Returns:
        `torch.FloatTensor` of shape `(batch,)` in nats, from 0 to the logarithm of the number of classes.
    """
    probabilities = (class_logits.float() / temperature).softmax(dim=-1)
    return -(probabilities * (probabilities + 1e-12).log()).sum(dim=-1)


def prediction_head(config: UbmConfig, outputs: int) -> nn.Sequential:
    """Build a head on the fused vector: two linear layers with a ReLU between them (B.6, B.7)."""
    return nn.Sequential(nn.Linear(config.fusion_dim, config.head_dim), nn.ReLU(), nn.Linear(config.head_dim, outputs))


class UbmSequenceEncoder(nn.Module):
    """Summarises a sequence of frames: final state of an LSTM over the real ones, dropout, linear map (B.2, B.3).

    Args:
        config: The model's configuration.
        modality: `"audio"` or `"vision"`.
    """

    def __init__(self, config: UbmConfig, modality: str) -> None:
        super().__init__()
        hidden_size = getattr(config, f"{modality}_hidden_size")
        self.lstm = nn.LSTM(getattr(config, f"{modality}_dim"), hidden_size, batch_first=True)
        self.dropout = nn.Dropout(config.encoder_dropout)
        self.projection = nn.Linear(hidden_size, getattr(config, f"{modality}_output_size"))

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            values (`torch.FloatTensor` of shape `(batch, frames, width)`): Frames.
            mask (`torch.Tensor` of shape `(batch, frames)`, *optional*): 1 or True = a real frame; without it every frame
                is. Frames behind the last real one are not read. A row without any is read as one frame of zeros (ours).

        Returns:
            `torch.FloatTensor` of shape `(batch, output size)`.
        """
        if mask is None:
            lengths = torch.full((len(values),), values.shape[1])
        else:
            values = values.masked_fill(~mask.bool().unsqueeze(-1), 0.0)
            positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
            lengths = (mask.bool() * positions).amax(dim=1).clamp(min=1).cpu()
        packed = pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=False)
        _, (final, _) = self.lstm(packed)
        encoded: Tensor = self.projection(self.dropout(final[-1]))
        return encoded


class UbmForSentimentAnalysis(MsaPreTrainedModel):
    """Sentiment score, sentiment class and the uncertainty of both, from text, audio and vision.

    A modality that the data lacks has no encoder, and the fusion is that much narrower. Only the chosen uncertainty's own
    heads are built, so every parameter gets a gradient in training.
    """

    config: UbmConfig

    def __init__(self, config: UbmConfig) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        width = config.text_config.hidden_size
        for name in config.modalities[1:]:
            self.add_module(f"{name}_encoder", UbmSequenceEncoder(config, name))
            width += getattr(config, f"{name}_output_size")
        self.fusion = nn.Sequential(nn.Linear(width, config.fusion_dim), nn.ReLU(), nn.Dropout(config.fusion_dropout))
        self.regressor = prediction_head(config, 1)
        self.classifier = prediction_head(config, len(SENTIMENT_CLASSES))
        if config.uncertainty_kind == "prediction_truth":
            self.error_head = prediction_head(config, 1)
        elif config.uncertainty_kind == "ensemble":
            self.ensemble = nn.ModuleList(prediction_head(config, 1) for _ in range(config.ensemble_size))
        self.post_init()

    @property
    def output_columns(self) -> dict[str, tuple[str, ...]]:
        """Classes of the class logits."""
        return {"class_logits": SENTIMENT_CLASSES}

    def fuse(self, inputs: MsaInputs) -> Tensor:
        """Encode each modality, put the vectors side by side and fuse them (eq. 3, B.5).

        Args:
            inputs: The batch; the first position of its text stands for the text.

        Returns:
            `torch.FloatTensor` of shape `(batch, fusion_dim)`.
        """
        vectors = [self.encode_text(inputs.input_ids, inputs.attention_mask)[:, 0]]
        for name in self.modalities[1:]:
            mask = inputs.attention(name) if self.config.mask_padding else None
            vectors.append(getattr(self, f"{name}_encoder")(inputs.values(name), mask))
        fused: Tensor = self.fusion(torch.cat(vectors, dim=-1))
        return fused

    def compute(
        self,
        inputs: MsaInputs,
        labels: Tensor | None,
        *,
        ensemble_members: Tensor | None = None,
        train_uncertainty: bool = True,
    ) -> UbmOutput:
        """Predict sentiment and uncertainty.

        Args:
            inputs: The batch. Missing masks are not read: the method is made for complete data.
            labels (`torch.FloatTensor` of shape `(batch,)`, *optional*): True scores, whose sign is the class.
            ensemble_members (`torch.BoolTensor` of shape `(batch, ensemble_size)`, *optional*): True = this head of the
                ensemble learns from this sample; without it every head learns from all.
            train_uncertainty: Whether the loss includes what trains the heads of the uncertainty alone. Without, it is
                that of score and class, whatever the uncertainty.

        Returns:
            `UbmOutput`; with labels also the loss: mean squared error of the score plus cross entropy of the class (eq. 6,
            B.8), plus the mean squared error of the expected error, or of the ensemble's heads.
        """
        embeddings = self.fuse(inputs)
        logits, class_logits = self.regressor(embeddings), self.classifier(embeddings)
        members: Tensor | None = None
        if self.config.uncertainty_kind == "entropy":
            uncertainty = class_entropy(class_logits, self.config.temperature)
        elif self.config.uncertainty_kind == "prediction_truth":
            uncertainty = F.softplus(self.error_head(embeddings).float()).squeeze(-1)
        elif self.config.uncertainty_kind == "ensemble":
            members = torch.cat([head(embeddings) for head in self.ensemble], dim=-1).float()
            uncertainty = members.var(dim=-1, correction=0)
        else:
            uncertainty = -(logits.float() - self.config.family.neutral).abs().squeeze(-1)
        terms: dict[str, Tensor] = {}
        if labels is not None:
            scores, labels = logits.float().squeeze(-1), labels.float()
            terms["task"] = F.mse_loss(scores, labels)
            terms["class"] = F.cross_entropy(class_logits.float(), self.label_classes(labels))
            if train_uncertainty and self.config.uncertainty_kind == "prediction_truth":
                terms["error"] = F.mse_loss(uncertainty, (scores - labels).abs().detach())
            if train_uncertainty and members is not None:
                terms["ensemble"] = ensemble_loss(members, labels, ensemble_members)
        return UbmOutput(
            loss=torch.stack(list(terms.values())).sum() if terms else None,
            logits=logits,
            losses={name: term.detach() for name, term in terms.items()} or None,
            class_logits=class_logits,
            uncertainty=uncertainty.unsqueeze(-1),
            embeddings=embeddings,
        )


def ensemble_loss(scores: Tensor, labels: Tensor, members: Tensor | None = None) -> Tensor:
    """Mean squared error of each head over the samples that it learns from, averaged over the heads.

    Args:
        scores (`torch.FloatTensor` of shape `(batch, heads)`): What each head predicts.
        labels (`torch.FloatTensor` of shape `(batch,)`): True scores.
        members (`torch.BoolTensor` of shape `(batch, heads)`, *optional*): True = learns from it; without it all do.

    Returns:
        Scalar `torch.FloatTensor`; a head without a sample in the batch adds 0.
    """
    errors = (scores - labels.unsqueeze(-1)).square()
    weights = torch.ones_like(errors) if members is None else members.to(errors.dtype)
    return ((errors * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1.0)).mean()
