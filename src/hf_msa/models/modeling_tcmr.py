"""TCMR: the confidence in the surviving text decides how much of the text to rebuild from audio and vision.

Paper: "TCMR: Text Confidence-aware Missing Semantic Reconstruction for Incomplete Multimodal Sentiment Analysis".
Beside the model this file holds the two text models that are trained before it: a polarity classifier, whose
true-class probability is the target of the confidence, and a text regressor, whose features on complete text are the
target of the reconstruction.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_tcmr import TcmrConfig
from .modeling_msa import MsaPreTrainedModel, MsaStageModel, build_text_encoder, read_labels
from .msa_attention import HyperFusion
from .msa_encoders import CrossTransformer, SequenceEncoder, TokenTransformer, perceptron
from .msa_inputs import MsaInputs
from .msa_outputs import MsaOutput
from .msa_schema import FEATURE_MODALITIES

# The loss terms of every objective of the training scheme (section 3.7, eq. 14 and 15).
OBJECTIVES = {
    "all": ("task", "confidence", "reconstruct_text", "reconstruct_proxy", "reconstruct_aux"),
    "confidence": ("confidence",),
    "other": ("task", "reconstruct_text", "reconstruct_proxy", "reconstruct_aux"),
    "task": ("task",),
}


@dataclass
class TcmrOutput(MsaOutput):
    """Output of `TcmrForSentimentAnalysis`. Features have the shape `(batch, num_tokens, hidden_size)`.

    Args:
        loss, logits, losses: See `MsaOutput`; `losses` may hold task, confidence, reconstruct_text,
            reconstruct_proxy, reconstruct_aux.
        confidence (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Confidence in the text, in [0, 1], as used
            in eq. 10: predicted, or what was given in its place.
        gate (`torch.FloatTensor` of shape `(batch, 1)`, *optional*): Weight of audio against vision in the proxy
            (alpha of eq. 9); `None` where there is no gate.
        text_features (`torch.FloatTensor`, *optional*): H_t, the incomplete text; with `center_text` this and the next two
            are deviations from the model's `text_mean`.
        proxy_features (`torch.FloatTensor`, *optional*): H_p, text as guessed from audio and vision (eq. 9).
        reconstructed_features (`torch.FloatTensor`, *optional*): The mix of both by confidence (eq. 10).
    """

    confidence: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    proxy_features: torch.Tensor | None = None
    reconstructed_features: torch.Tensor | None = None


@dataclass
class TcmrTextRegressorOutput(MsaOutput):
    """Output of `TcmrTextRegressor`.

    Args:
        loss, logits, losses: See `MsaOutput`.
        features (`torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`, *optional*): Text features; those of
            complete text are the reconstruction target of TCMR.
    """

    features: torch.Tensor | None = None


def build_text_token_encoder(config: TcmrConfig) -> SequenceEncoder:
    """Build the Text Encoder (T4): the text encoder's outputs without the first, as `num_tokens` tokens."""
    return build_sequence_encoder(config, config.text_config.hidden_size, config.text_max_length - 1)


def build_sequence_encoder(config: TcmrConfig, input_dim: int, max_length: int) -> SequenceEncoder:
    """Build one of the three modality encoders of T4."""
    return SequenceEncoder(
        input_dim,
        max_length,
        dim=config.hidden_size,
        depth=config.encoder_layers,
        num_heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        feedforward_dim=config.feedforward_dim,
        num_tokens=config.num_tokens,
    )


def build_token_transformer(config: TcmrConfig, length: int, depth: int, num_tokens: int = 0) -> TokenTransformer:
    """Build a Transformer over `length` tokens of `hidden_size`, keeping only its learned tokens if it has any."""
    return TokenTransformer(
        length,
        dim=config.hidden_size,
        depth=depth,
        num_heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        feedforward_dim=config.feedforward_dim,
        num_tokens=num_tokens,
        keep=num_tokens or None,
    )


class ProxyGenerator(nn.Module):
    """Importance-aware proxy feature generator: text features as guessed from audio and vision (eq. 8, 9).

    A modality that the data does not have gets no generator; with one modality, or a proxy other than `"gated"`, there
    is no gate.

    Args:
        config: The model's configuration; `proxy` must not be `"none"`.
    """

    def __init__(self, config: TcmrConfig) -> None:
        super().__init__()
        self.modalities = config.modalities[1:]
        self.joint = config.proxy == "lnln"
        inputs = {"joint": len(self.modalities)} if self.joint else dict.fromkeys(self.modalities, 1)
        self.generators = nn.ModuleDict(
            {
                name: build_token_transformer(
                    config, count * config.num_tokens, config.generator_layers, num_tokens=config.num_tokens
                )
                for name, count in inputs.items()
            }
        )
        gated = config.proxy == "gated" and len(self.modalities) == len(FEATURE_MODALITIES)
        self.gate = perceptron([2 * config.hidden_size, config.gate_hidden, 1]) if gated else None

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Generate.

        Args:
            features: Per modality a `torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`.

        Returns:
            The proxy, of the same shape, and the gate of shape `(batch, 1)`, the weight of audio, if there is one.
        """
        if self.joint:
            return self.generators["joint"](torch.cat([features[name] for name in self.modalities], dim=1)), None
        generated = [self.generators[name](features[name]) for name in self.modalities]
        if self.gate is None:
            return torch.stack(generated).mean(dim=0), None
        audio, vision = generated
        gate = torch.sigmoid(self.gate(torch.cat([audio.mean(dim=1), vision.mean(dim=1)], dim=-1)))
        weight = gate.unsqueeze(-1)
        return weight * audio + (1 - weight) * vision, gate


class TcmrPolarityClassifier(MsaStageModel):
    """Three-way polarity of text, trained on complete text; its true-class probability is the confidence target.

    Section 3.4, eq. 7.
    """

    config: TcmrConfig
    reads = ("text",)

    def __init__(self, config: TcmrConfig) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        self.classifier = perceptron([config.text_config.hidden_size, config.polarity_hidden, 3])
        self.post_init()

    def compute(self, inputs: MsaInputs, labels: Tensor | None) -> MsaOutput:
        """Predict the polarity.

        Args:
            inputs: Of which the text is read.
            labels (`torch.FloatTensor` of shape `(batch,)`, *optional*): True scores; their sign is the class.

        Returns:
            `MsaOutput` whose `logits` have the shape `(batch, 3)`: negative, neutral, positive. With labels also the
            cross entropy as `loss`, named polarity in `losses`.
        """
        logits = self.classifier(self.encode_text(inputs.input_ids, inputs.attention_mask)[:, 0])
        if labels is None:
            return MsaOutput(logits=logits)
        loss = F.cross_entropy(logits, self.label_classes(labels))
        return MsaOutput(loss=loss, logits=logits, losses={"polarity": loss.detach()})

    @torch.no_grad()
    def true_class_probability(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Probability of the true polarity (eq. 7), without gradient; call `eval()` first to leave dropout out.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): Token ids, dropped tokens already replaced.
            attention_mask (`torch.LongTensor` of shape `(batch, tokens)`): 1 = real token.
            labels (`torch.FloatTensor` of shape `(batch,)` or `(batch, 1)`): True scores.

        Returns:
            `torch.FloatTensor` of shape `(batch,)` in [0, 1].

        Raises:
            ValueError: If there is not one label per sample.
        """
        probabilities = self(input_ids, attention_mask).logits.softmax(dim=-1)
        classes = self.label_classes(read_labels(labels, len(probabilities)))
        chosen: Tensor = probabilities.gather(1, classes.unsqueeze(1)).squeeze(1)
        return chosen


class TcmrTextRegressor(MsaStageModel):
    """Sentiment score from complete text; its features are the reconstruction target H_t^c (eq. 11)."""

    config: TcmrConfig
    reads = ("text",)

    def __init__(self, config: TcmrConfig) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        self.encoder = build_text_token_encoder(config)
        self.regressor = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def compute(self, inputs: MsaInputs, labels: Tensor | None) -> TcmrTextRegressorOutput:
        """Predict the sentiment score from text alone; the loss is the mean squared error."""
        hidden = self.encode_text(inputs.input_ids, inputs.attention_mask)
        features = self.encoder(hidden[:, 1:], inputs.attention_mask[:, 1:] if self.config.mask_padding else None)
        logits = self.regressor(features.mean(dim=1))
        if labels is None:
            return TcmrTextRegressorOutput(logits=logits, features=features)
        loss = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return TcmrTextRegressorOutput(loss=loss, logits=logits, losses={"task": loss.detach()}, features=features)


class TcmrForSentimentAnalysis(MsaPreTrainedModel):
    """Sentiment score from incomplete text, audio and vision by confidence-guided reconstruction of the text.

    The reconstructors serve training only. With `confidence_source="oracle"` there is no ConfNet; the frozen
    `polarity_classifier`, into which training copies the weights of that stage, takes its place and needs true labels.

    With `center_text` the buffer `text_mean`, of shape `(num_tokens, hidden_size)`, is the mean of the complete-text
    features over the training rows; with `reconstruction_reduction="variance"` the scalar `text_variance` is their variance
    around it. `measure_targets` sets them; before, they are 0 and 1.

    Example:
        ```python
        from hf_msa import TcmrConfig, TcmrForSentimentAnalysis

        config = TcmrConfig(audio_dim=5, vision_dim=20)  # widths are those of the data
        model = TcmrForSentimentAnalysis.from_text_pretrained("data/sample/text_model", config)
        ```
    """

    config: TcmrConfig
    text_mean: Tensor
    text_variance: Tensor

    def __init__(self, config: TcmrConfig) -> None:
        super().__init__(config)
        features = config.modalities[1:]
        text_width = config.text_config.hidden_size
        self.text_encoder = build_text_encoder(config.text_config)
        self.encoders = nn.ModuleDict({"text": build_text_token_encoder(config)})
        for name in features:
            width, length = getattr(config, f"{name}_dim"), getattr(config, f"{name}_max_length")
            self.encoders[name] = build_sequence_encoder(config, width, length)
        if config.is_oracle:
            # A copy, because a model writes its own class into its configuration.
            self.confnet = None
            self.polarity_classifier = TcmrPolarityClassifier(copy.deepcopy(config)).requires_grad_(False).eval()
        else:
            self.confnet = perceptron([text_width, *config.confnet_hidden, 1])
            self.polarity_classifier = None
        self.proxy_generator = None if config.proxy == "none" else ProxyGenerator(config)
        if config.center_text:
            self.register_buffer("text_mean", torch.zeros(config.num_tokens, config.hidden_size))
        if config.reconstruction_reduction == "variance":
            self.register_buffer("text_variance", torch.ones(()))
        self.refinement = build_token_transformer(config, config.num_tokens, config.refinement_layers)
        self.fusion = HyperFusion(
            dim=config.hidden_size,
            num_heads=config.num_attention_heads,
            head_dim=config.hyper_head_dim,
            num_tokens=config.num_tokens,
            depth=config.refinement_layers,
            modalities=features,
            style=config.fusion_style,
        )
        self.cross = CrossTransformer(
            config.num_tokens,
            config.num_tokens,
            dim=config.hidden_size,
            depth=config.cross_layers,
            num_heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            feedforward_dim=config.feedforward_dim,
        )
        self.regressor = nn.Linear(config.hidden_size, 1)
        self.reconstructors = nn.ModuleDict(
            {
                name: build_token_transformer(config, config.num_tokens, config.reconstructor_layers)
                for name in features
            }
        )
        self.post_init()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; the polarity classifier stays frozen and in evaluation mode.

        Loading makes new parameters, which want a gradient again, and ends with `eval()`: hence the freezing is here.
        """
        super().train(mode)
        if self.polarity_classifier is not None:
            self.polarity_classifier.requires_grad_(False).eval()
        return self

    def confidence_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the first phase: text encoder and ConfNet (theta^conf with theta^bert of algorithm 1)."""
        yield from self.text_encoder.parameters()
        if self.confnet is not None:
            yield from self.confnet.parameters()

    def other_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the second phase: all, text encoder too, but ConfNet and the frozen polarity classifier."""
        for name, child in self.named_children():
            if name not in ("confnet", "polarity_classifier"):
                yield from child.parameters()

    @torch.no_grad()
    def measure_targets(self, targets: Tensor) -> None:
        """Note mean and variance of the complete-text features, as far as the configuration makes use of them.

        Args:
            targets (`torch.FloatTensor` of shape `(rows, num_tokens, hidden_size)`): H_t^c of the training rows.

        Raises:
            ValueError: If they are the same for all rows, so that there is no variance to measure errors in.
        """
        wanted = self.shape_targets(targets.float())
        mean = wanted.mean(dim=0)
        if self.config.center_text:
            self.text_mean.copy_(mean)
        if self.config.reconstruction_reduction == "variance":
            variance = (wanted - mean).square().mean()
            if not variance > 0:
                raise ValueError(
                    "The text regressor gives all training texts the same features, so there is nothing to rebuild; train "
                    "it longer or at a lower rate, or set reconstruction_reduction to 'mean'."
                )
            self.text_variance.copy_(variance)

    def shape_targets(self, targets: Tensor) -> Tensor:
        """Complete-text features in the form that they serve as a target in, before centring; see `target_norm`."""
        return F.layer_norm(targets, targets.shape[-1:]) if self.config.target_norm == "layernorm" else targets

    def center(self, features: Tensor) -> Tensor:
        """Deviation of text features `(batch, num_tokens, hidden_size)` from `text_mean`, where the model has one."""
        return features - self.text_mean if self.config.center_text else features

    def encode(self, modality: str, values: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Summarise one modality in tokens (eq. 4).

        Args:
            modality: `"text"`, `"audio"` or `"vision"`.
            values (`torch.FloatTensor` of shape `(batch, length, width)`): Frames, or the text encoder's outputs
                without the first.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 = real position, dropped ones
                included; not used where `mask_padding` is off.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`.
        """
        tokens: Tensor = self.encoders[modality](values, attention_mask if self.config.mask_padding else None)
        return tokens

    def estimate_confidence(self, sentence: Tensor) -> Tensor:
        """Predict the confidence in the text (eq. 5).

        Args:
            sentence (`torch.FloatTensor` of shape `(batch, text width)`): The text encoder's output at `[CLS]`.

        Returns:
            `torch.FloatTensor` of shape `(batch, 1)` in [0, 1].

        Raises:
            ValueError: If this is the upper bound, which has no ConfNet.
        """
        if self.confnet is None:
            raise ValueError(
                "A model with confidence_source='oracle' has no ConfNet to predict or train a confidence with."
            )
        return torch.sigmoid(self.confnet(sentence))

    def true_confidence(self, inputs: MsaInputs, labels: Tensor | None) -> Tensor:
        """Confidence of the upper bound TCMR-ub: the frozen classifier's true-class probability, shape `(batch, 1)`.

        Raises:
            ValueError: If there are no labels.
        """
        if labels is None:
            raise ValueError(
                "This checkpoint is the upper bound TCMR-ub (confidence_source='oracle'), which predicts only with "
                "the true labels: pass labels or confidence, or use a checkpoint of the full method."
            )
        probability: Tensor = self.polarity_classifier.true_class_probability(
            inputs.input_ids, inputs.attention_mask, labels
        )
        return probability.unsqueeze(1)

    def fuse(self, text: Tensor, features: dict[str, Tensor]) -> Tensor:
        """Refine the reconstructed text, fuse it with audio and vision and predict (section 3.5).

        Args:
            text (`torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`): Reconstructed text features.
            features: Per feature modality a tensor of the same shape.

        Returns:
            `torch.FloatTensor` of shape `(batch, 1)`.
        """
        states = self.refinement.hidden_states(text)
        crossed = self.cross(source=self.fusion(states, features), target=states[-1])
        score: Tensor = self.regressor(crossed[:, 1:].mean(dim=1))
        return score

    def reconstruction_loss(
        self, features: dict[str, Tensor], complete: dict[str, Tensor], attention_masks: dict[str, Tensor]
    ) -> Tensor:
        """Mean squared error of the reconstructed audio and vision features (eq. 13); no gradient enters the target.

        Args:
            features: Per modality the features of the incomplete input, `(batch, num_tokens, hidden_size)`.
            complete: Per modality the complete input, `(batch, length, width)`; only these modalities count.
            attention_masks: Per modality the attention mask of the complete input.
        """
        rebuilt, targets = [], []
        for name, values in complete.items():
            with torch.no_grad():
                targets.append(self.encode(name, values, attention_masks[name]))
            rebuilt.append(self.reconstructors[name](features[name]))
        return self.reduce(F.mse_loss(torch.cat(rebuilt), torch.cat(targets)), rebuilt)

    def text_reconstruction_loss(self, reconstructed: Tensor, targets: Tensor) -> Tensor:
        """Squared error of the reconstructed text features (eq. 11), reduced as `reconstruction_reduction` says.

        Args:
            reconstructed (`torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`): As the model gives them.
            targets (`torch.FloatTensor` of the same shape): Complete-text features as the text regressor gives them.
        """
        wanted = self.center(self.shape_targets(targets.to(reconstructed.dtype)))
        error = self.reduce(F.mse_loss(reconstructed, wanted), [reconstructed])
        return error / self.text_variance if self.config.reconstruction_reduction == "variance" else error

    def reduce(self, mean: Tensor, compared: Sequence[Tensor]) -> Tensor:
        """A mean squared error over all elements of what was compared, or the sum per sample where that is asked for."""
        elements = sum(part[0].numel() for part in compared)
        return mean * elements if self.config.reconstruction_reduction == "sum" else mean

    def compute(
        self,
        inputs: MsaInputs,
        labels: Tensor | None,
        *,
        confidence_targets: Tensor | None = None,
        text_targets: Tensor | None = None,
        confidence: Tensor | None = None,
        objective: Literal["all", "confidence", "other", "task"] = "all",
    ) -> TcmrOutput:
        """Predict the sentiment score; with targets also compute the loss of one objective.

        Dropped tokens and frames (unknown ids, zero vectors) are attended to like any other: that something is
        missing, and where, is information. Padding is left out of attention. Complete audio and vision, where they are
        given, are the targets of their reconstruction.

        Args:
            inputs: The batch.
            labels (`torch.FloatTensor` of shape `(batch,)`, *optional*): True scores.
            confidence_targets (`torch.FloatTensor` of shape `(batch,)` or `(batch, 1)`, *optional*): What ConfNet should
                give.
            text_targets (`torch.FloatTensor` of shape `(batch, num_tokens, hidden_size)`, *optional*): Complete-text
                features of `TcmrTextRegressor`.
            confidence (`torch.FloatTensor` of shape `(batch,)` or `(batch, 1)`, *optional*): For eq. 10, in place of the
                prediction.
            objective: Which loss terms to compute, as far as their targets are given. `"all"`: eq. 14, with gradient
                through the predicted confidence. `"confidence"`: eq. 6; only text encoder and ConfNet run, and there
                are no logits. `"other"`: all but eq. 6, without gradient through the predicted confidence unless
                `detach_confidence` is off. `"task"`: eq. 12, with gradients as in `"other"`.

        Returns:
            `TcmrOutput`; without any target `loss` is `None`.

        Raises:
            ValueError: If a sequence is longer than the checkpoint allows, the objective is not known, there is not one
                confidence per sample, or the upper bound gets neither labels nor confidence.
        """
        if objective not in OBJECTIVES:
            raise ValueError(f"Unknown objective {objective!r}; known are {', '.join(OBJECTIVES)}.")
        hidden = self.encode_text(inputs.input_ids, inputs.attention_mask)
        predicted = None
        if objective == "confidence" or not self.config.is_oracle:
            predicted = self.estimate_confidence(hidden[:, 0])

        terms: dict[str, Tensor] = {}
        if confidence_targets is not None and predicted is not None:
            wanted = read_labels(confidence_targets, len(inputs), "confidence_targets")
            terms["confidence"] = F.mse_loss(predicted.squeeze(-1), wanted.to(predicted.dtype))
        if objective == "confidence":
            return TcmrOutput(**self.weigh(terms, objective), confidence=predicted)

        if confidence is not None:
            used = read_labels(confidence, len(inputs), "confidence values").to(hidden.dtype).unsqueeze(1)
        elif predicted is None:
            used = self.true_confidence(inputs, labels).to(hidden.dtype)
        else:
            used = predicted.detach() if self.config.detach_confidence and objective != "all" else predicted

        text = self.center(self.encode("text", hidden[:, 1:], inputs.attention_mask[:, 1:]))
        features = {
            name: self.encode(name, inputs.values(name), inputs.attention(name)) for name in self.modalities[1:]
        }
        proxy, gate = torch.zeros_like(text), None
        if self.proxy_generator is not None:
            generated, gate = self.proxy_generator(features)
            proxy = self.center(generated)
        weight = used.unsqueeze(-1)
        reconstructed = weight * text + (1 - weight) * proxy
        logits = self.fuse(reconstructed, features)

        if labels is not None:
            terms["task"] = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        if text_targets is not None:
            terms["reconstruct_text"] = self.text_reconstruction_loss(reconstructed, text_targets)
            if self.config.w_rec_proxy:
                terms["reconstruct_proxy"] = self.text_reconstruction_loss(proxy, text_targets)
        complete = {name: value for name in features if (value := inputs.complete(name)) is not None}
        if complete and "reconstruct_aux" in OBJECTIVES[objective]:
            attention = {name: inputs.complete_attention(name) for name in complete}
            terms["reconstruct_aux"] = self.reconstruction_loss(features, complete, attention)
        return TcmrOutput(
            **self.weigh(terms, objective),
            logits=logits,
            confidence=used,
            gate=gate,
            text_features=text,
            proxy_features=proxy,
            reconstructed_features=reconstructed,
        )

    def weigh(self, terms: dict[str, Tensor], objective: str) -> dict[str, Any]:
        """Sum the objective's loss terms by their weights (eq. 14, 15); the only term of a phase counts with weight 1.

        Args:
            terms: Scalar losses by name.
            objective: A key of `OBJECTIVES`.

        Returns:
            `loss` and `losses` for the output; empty without a term of the objective.
        """
        chosen = {name: terms[name] for name in OBJECTIVES[objective] if name in terms}
        if not chosen:
            return {}
        weights = {
            "task": self.config.w_task,
            "confidence": self.config.w_conf if objective == "all" else 1.0,
            "reconstruct_text": self.config.w_rec_text,
            "reconstruct_proxy": self.config.w_rec_proxy,
            "reconstruct_aux": self.config.w_rec_aux,
        }
        loss = torch.stack([weights[name] * term for name, term in chosen.items()]).sum()
        return {"loss": loss, "losses": {name: term.detach() for name, term in chosen.items()}}
