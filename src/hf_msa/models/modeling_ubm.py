"""UBM: a small model that predicts sentiment and says how uncertain it is.

Paper: "Uncertainty-Aware Collaborative System of Large and Small Models for Multimodal Sentiment Analysis", arXiv
2509.04459 v1, where it answers what it is sure of and leaves the rest to a large model. Made from Self-MM (public code)
without its unimodal labels, with a class head beside the regression head.
"""

import contextlib
import copy
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from .configuration_msa import MsaConfig
from .configuration_ubm import UNCERTAINTIES, UbmConfig
from .modeling_msa import MsaPreTrainedModel, build_text_encoder
from .msa_inputs import MsaInputs
from .msa_outputs import MsaOutput
from .msa_schema import SENTIMENT_CLASSES


@dataclass
class UbmOutput(MsaOutput):
    """Output of `UbmForSentimentAnalysis`.

    Args:
        loss, logits, losses: See `MsaOutput`; `losses` may hold task, class, error, members, ensemble (heads), unimodal.
        class_logits (`torch.FloatTensor` of shape `(batch, 3)`, *optional*): Logits of negative, neutral, positive, not
            divided by the temperature.
        uncertainty (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): The higher, the less sure; in nats, label
            units, their square, or minus label units, as `uncertainty_kind` says. None in training.
        interval_low, interval_high (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Ends of the interval that holds
            the label with probability `conformal_coverage`, within the label range; for `"conformal"` alone.
        embeddings (`torch.FloatTensor` of shape `(batch, fusion_dim)`, *optional*): The fused vector that all heads read.
    """

    class_logits: torch.Tensor | None = None
    uncertainty: torch.Tensor | None = None
    interval_low: torch.Tensor | None = None
    interval_high: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class UbmPass:
    """What one network made of a batch.

    Args:
        vectors: Of each modality by name `(batch, its output size)`.
        embeddings: The fused vector `(batch, fusion_dim)`.
        logits: Scores `(batch, 1)`.
        class_logits: `(batch, 3)`.
    """

    vectors: dict[str, Tensor]
    embeddings: Tensor
    logits: Tensor
    class_logits: Tensor


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


def lone(config: UbmConfig) -> UbmConfig:
    """The configuration of a network without any part that an uncertainty alone needs."""
    config = copy.deepcopy(config)
    config.uncertainty_kind, config.uncertainty_candidates = "score", []
    return config


@contextlib.contextmanager
def thinned(layers: Mapping[str, nn.Dropout], seed: tuple[int, int]) -> Iterator[None]:
    """Drop units by masks that all samples and positions share: a smaller network, the same for every batch.

    Args:
        layers: The dropout layers in eval mode, by name; each drops by its own rate.
        seed: What is dropped depends on it and the layer's name alone.
    """

    def hook(name: str, rate: float) -> Any:
        def drop(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            drawn = np.random.default_rng([*seed, zlib.crc32(name.encode())]).random(output.shape[-1])
            return output * torch.from_numpy((drawn >= rate) / (1 - rate)).to(output)

        return drop

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(hook(name, layer.p)).remove)
        yield


class UbmForSentimentAnalysis(MsaPreTrainedModel):
    """Sentiment score, sentiment class and the uncertainty of both, from text, audio and vision.

    A modality that the data lacks has no encoder, and the fusion is that much narrower. Only what the chosen uncertainty and
    its candidates need is built, so every parameter gets a gradient in training.

    Example:
        ```python
        from hf_msa import UbmConfig, UbmForSentimentAnalysis

        config = UbmConfig(audio_dim=5, vision_dim=20)  # widths are those of the data
        model = UbmForSentimentAnalysis.from_text_pretrained("data/sample/text_model", config)
        ```
    """

    config: UbmConfig
    error_weights: Tensor
    error_offsets: Tensor

    def __init__(self, config: UbmConfig) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        widths = {"text": config.text_config.hidden_size}
        for name in config.modalities[1:]:
            self.add_module(f"{name}_encoder", UbmSequenceEncoder(config, name))
            widths[name] = getattr(config, f"{name}_output_size")
        self.fusion = nn.Sequential(
            nn.Linear(sum(widths.values()), config.fusion_dim), nn.ReLU(), nn.Dropout(config.fusion_dropout)
        )
        self.regressor = prediction_head(config, 1)
        self.classifier = prediction_head(config, len(SENTIMENT_CLASSES))
        kinds = config.uncertainties
        if "prediction_truth" in kinds:
            self.error_head = prediction_head(config, 1)
        heads = config.ensemble_size if "heads" in kinds else 0
        self.ensemble = nn.ModuleList(prediction_head(config, 1) for _ in range(heads))
        seen = widths if "modality_disagreement" in kinds else {}
        self.unimodal = nn.ModuleDict({name: nn.Linear(width, 1) for name, width in seen.items()})
        if config.fits_errors:
            # NaN until they are fitted: the weights of `error_features`, and what is added and the least error expected.
            self.register_buffer("error_weights", torch.full((config.fusion_dim + 2,), torch.nan))
            self.register_buffer("error_offsets", torch.full((2,), torch.nan))
        members = config.ensemble_size if "members" in kinds else 0
        self.members = nn.ModuleList(UbmForSentimentAnalysis(lone(config)) for _ in range(members))
        if "mc_dropout" in kinds and not self.dropout_layers:
            raise ValueError(
                "mc_dropout needs dropout, but the text encoder has none and fusion_dropout and encoder_dropout are 0; "
                "raise one, or choose another uncertainty_kind."
            )
        self.post_init()

    @classmethod
    def from_text_pretrained(cls, text_model: str, config: MsaConfig) -> Self:
        """Build a model around a pretrained text encoder, and each of its members around a copy of it."""
        model = super().from_text_pretrained(text_model, config)
        for member in model.networks:
            member.text_encoder.load_state_dict(model.text_encoder.state_dict())
        return model

    @property
    def output_columns(self) -> dict[str, tuple[str, ...]]:
        """Classes of the class logits."""
        return {"class_logits": SENTIMENT_CLASSES}

    @property
    def networks(self) -> list["UbmForSentimentAnalysis"]:
        """The members: networks that share nothing with this one."""
        return cast("list[UbmForSentimentAnalysis]", list(self.members))

    @property
    def dropout_layers(self) -> dict[str, nn.Dropout]:
        """Dropout layers of the network itself that drop something, by name."""
        return {
            name: layer
            for name, layer in self.named_modules()
            if isinstance(layer, nn.Dropout) and layer.p > 0 and not name.startswith("members.")
        }

    @property
    def available_uncertainties(self) -> tuple[str, ...]:
        """Kinds that this model can give, in the order of `UNCERTAINTIES`; others take a training that prepares them."""
        has = {
            "prediction_truth": hasattr(self, "error_head"),
            "members": len(self.members) > 0,
            "heads": len(self.ensemble) > 0,
            "mc_dropout": bool(self.dropout_layers),
            "modality_disagreement": len(self.unimodal) > 0,
            "learned_error": hasattr(self, "error_weights"),
            "conformal": hasattr(self, "error_weights") and self.config.conformal_fit is not None,
        }
        return tuple(kind for kind in UNCERTAINTIES if has.get(kind, True))

    def run_network(self, inputs: MsaInputs) -> UbmPass:
        """Encode each modality, put the vectors side by side, fuse them (eq. 3, B.5) and predict.

        Args:
            inputs: The batch; the first position of its text stands for the text.
        """
        vectors = {"text": self.encode_text(inputs.input_ids, inputs.attention_mask)[:, 0]}
        for name in self.modalities[1:]:
            mask = inputs.attention(name) if self.config.mask_padding else None
            vectors[name] = getattr(self, f"{name}_encoder")(inputs.values(name), mask)
        fused = self.fusion(torch.cat(list(vectors.values()), dim=-1))
        return UbmPass(vectors, fused, self.regressor(fused), self.classifier(fused))

    # --- What uncertainties are made of ---

    def expected_error(self, seen: UbmPass) -> Tensor:
        """The error that the head for it expects `(batch,)`."""
        return F.softplus(self.error_head(seen.embeddings).float()).squeeze(-1)

    def head_scores(self, seen: UbmPass) -> Tensor:
        """Scores of the heads on the trunk `(batch, ensemble_size)`."""
        return torch.cat([head(seen.embeddings) for head in self.ensemble], dim=-1).float()

    def member_scores(self, inputs: MsaInputs) -> Tensor:
        """Scores of the networks that were trained apart `(batch, ensemble_size)`."""
        return torch.cat([member.run_network(inputs).logits for member in self.networks], dim=-1).float()

    def thinned_scores(self, inputs: MsaInputs) -> Tensor:
        """Scores of this network thinned by dropout in several ways, the same for every batch `(batch, dropout_passes)`."""
        scores = []
        for number in range(self.config.dropout_passes):
            with thinned(self.dropout_layers, (self.config.dropout_seed, number)):
                scores.append(self.run_network(inputs).logits)
        return torch.cat(scores, dim=-1).float()

    def unimodal_scores(self, seen: UbmPass) -> Tensor:
        """Scores of the heads that see one modality each `(batch, modalities)`; the network does not learn from them."""
        scores = [head(seen.vectors[name].detach()) for name, head in self.unimodal.items()]
        return torch.cat(scores, dim=-1).float()

    def error_features(self, seen: UbmPass) -> Tensor:
        """What the error is expected by: fused vector, size of the score, entropy `(batch, fusion_dim + 2)`."""
        beside = torch.stack([self._distance(seen), class_entropy(seen.class_logits)], dim=-1)
        return torch.cat([seen.embeddings.float(), beside], dim=-1)

    def learned_error(self, seen: UbmPass) -> Tensor:
        """The absolute error to be expected `(batch,)`, in label units.

        Raises:
            ValueError: If nothing was fitted.
        """
        constant, least = self.error_offsets.float()
        if least.isnan():
            raise ValueError(
                "The expected error of this model was never fitted, which hf-msa train does when training has ended; choose "
                "another uncertainty_kind."
            )
        expected: Tensor = self.error_features(seen) @ self.error_weights.float() + constant
        return expected.clamp(min=least)

    def half_width(self, seen: UbmPass) -> Tensor:
        """Half of the width of the conformal interval before it is cut to the label range `(batch,)`.

        Raises:
            ValueError: If it was fitted for another coverage.
        """
        fit = self.config.conformal_fit or {}
        if fit.get("coverage") != self.config.conformal_coverage:
            raise ValueError(
                f"The intervals of this model were fitted for conformal_coverage={fit.get('coverage')}, not for "
                f"{self.config.conformal_coverage}; leave it as it is, or train again."
            )
        return fit["quantile"] * self.learned_error(seen)

    def _distance(self, seen: UbmPass) -> Tensor:
        return (seen.logits.float() - self.config.family.neutral).abs().squeeze(-1)

    @torch.no_grad()
    def estimate(self, kind: str, inputs: MsaInputs, seen: UbmPass) -> Tensor:
        """Uncertainty of one kind.

        Args:
            kind: One of `available_uncertainties`.
            inputs: The batch.
            seen: What the network made of it.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`.

        Raises:
            ValueError: If the model has not what it takes.
        """
        if kind not in self.available_uncertainties:
            raise ValueError(
                f"This model cannot give the uncertainty {kind!r}, which takes a training with it as uncertainty_kind or "
                f"among uncertainty_candidates; it has {', '.join(self.available_uncertainties)}."
            )
        match kind:
            case "entropy":
                return class_entropy(seen.class_logits, self.config.temperature)
            case "score":
                return -self._distance(seen)
            case "prediction_truth":
                return self.expected_error(seen)
            case "members":
                return variance(self.member_scores(inputs))
            case "heads":
                return variance(self.head_scores(seen))
            case "mc_dropout":
                return variance(self.thinned_scores(inputs))
            case "modality_disagreement":
                return variance(self.unimodal_scores(seen))
            case "learned_error":
                return self.learned_error(seen)
            case "conformal":
                return self.half_width(seen)
        raise ValueError(
            f"There is no uncertainty {kind!r}; this model has {', '.join(self.available_uncertainties)}."
        )

    def uncertainty_losses(
        self, inputs: MsaInputs, seen: UbmPass, labels: Tensor, ensemble_members: Tensor | None
    ) -> dict[str, Tensor]:
        """Scalar losses of what the uncertainty and its candidates train; see `compute` for the arguments."""
        kinds, terms = self.config.uncertainties, {}
        if "prediction_truth" in kinds:
            errors = (seen.logits.float().squeeze(-1) - labels).abs().detach()
            terms["error"] = F.mse_loss(self.expected_error(seen), errors)
        if "members" in kinds:
            losses = [
                sample_losses(each.run_network(inputs), labels, self.label_classes(labels)) for each in self.networks
            ]
            # The sum: each member's gradient is what it would be without the others.
            terms["members"] = subset_means(torch.stack(losses, dim=-1), ensemble_members).sum()
        if "heads" in kinds:
            errors = (self.head_scores(seen) - labels.unsqueeze(-1)).square()
            terms["ensemble"] = subset_means(errors, ensemble_members).mean()
        if "modality_disagreement" in kinds:
            terms["unimodal"] = (self.unimodal_scores(seen) - labels.unsqueeze(-1)).square().mean()
        return terms

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
            ensemble_members (`torch.BoolTensor` of shape `(batch, ensemble_size)`, *optional*): True = this member or head
                learns from this sample; without it all learn from all.
            train_uncertainty: Whether the uncertainty has a part: its value, which in training nobody asks for, and the
                loss of what it alone trains. Without, there is score and class, whatever the uncertainty.

        Returns:
            `UbmOutput`; with labels also the loss: mean squared error of the score plus cross entropy of the class (eq. 6,
            B.8), plus what the uncertainty trains.
        """
        seen = self.run_network(inputs)
        terms: dict[str, Tensor] = {}
        if labels is not None:
            labels = labels.float()
            terms["task"] = F.mse_loss(seen.logits.float().squeeze(-1), labels)
            terms["class"] = F.cross_entropy(seen.class_logits.float(), self.label_classes(labels))
            if train_uncertainty:
                terms |= self.uncertainty_losses(inputs, seen, labels, ensemble_members)
        found: dict[str, Tensor] = {}
        if train_uncertainty and not self.training:
            found["uncertainty"] = self.estimate(self.config.uncertainty_kind, inputs, seen).unsqueeze(-1)
            if self.config.uncertainty_kind == "conformal":
                low, high = self.config.label_range
                found["interval_low"] = (seen.logits.float() - found["uncertainty"]).clamp(low, high)
                found["interval_high"] = (seen.logits.float() + found["uncertainty"]).clamp(low, high)
        return UbmOutput(
            loss=torch.stack(list(terms.values())).sum() if terms else None,
            logits=seen.logits,
            losses={name: term.detach() for name, term in terms.items()} or None,
            class_logits=seen.class_logits,
            embeddings=seen.embeddings,
            **found,
        )


def variance(scores: Tensor) -> Tensor:
    """How far several scores of each sample are apart: `(batch, scores)` to `(batch,)`, in squared label units."""
    return scores.var(dim=-1, correction=0)


def sample_losses(seen: UbmPass, labels: Tensor, classes: Tensor) -> Tensor:
    """Squared error of the score plus cross entropy of the class of each sample `(batch,)`."""
    errors = (seen.logits.float().squeeze(-1) - labels).square()
    return errors + F.cross_entropy(seen.class_logits.float(), classes, reduction="none")


def subset_means(losses: Tensor, members: Tensor | None = None) -> Tensor:
    """Mean loss of each member of an ensemble over the samples that it learns from.

    Args:
        losses (`torch.FloatTensor` of shape `(batch, members)`): Of each sample and member.
        members (`torch.BoolTensor` of shape `(batch, members)`, *optional*): True = learns from it; without it all do.

    Returns:
        `torch.FloatTensor` of shape `(members,)`; 0 for one without a sample in the batch.
    """
    weights = torch.ones_like(losses) if members is None else members.to(losses.dtype)
    return (losses * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1.0)
