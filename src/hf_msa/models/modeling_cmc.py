"""CMC: an expert for each modality and a router that weighs them, for modalities that contradict each other.

Paper: "Calibrating Multimodal Consensus for Emotion Recognition", arXiv 2510.20256; details from the public code
(gw-zhong/CMC). Beside the model this file holds the unimodal models that are trained before it: they find a label for
each modality, and their encoders and classifiers are what the model starts from.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_cmc import CmcConfig
from .modeling_msa import MsaPreTrainedModel, MsaStageModel, build_text_encoder, masked_mean
from .msa_encoders import encode_by_length, padding_mask
from .msa_inputs import MsaInputs
from .msa_label_families import LabelFamily
from .msa_outputs import MsaOutput
from .msa_schema import SENTIMENT_CLASSES


@dataclass
class CmcOutput(MsaOutput):
    """Output of `CmcForSentimentAnalysis`. Modalities stand in the order of the configuration's `modalities`.

    Args:
        loss, logits, losses: See `MsaOutput`; `losses` may hold task, ce_<modality> and supcon.
        class_logits (`torch.FloatTensor` of shape `(batch, 3)`, *optional*): Logits of negative, neutral, positive, the
            experts' logits weighed by the router.
        unimodal_logits (`torch.FloatTensor` of shape `(batch, modalities, 3)`, *optional*): Logits of each expert.
        router_weights (`torch.FloatTensor` of shape `(batch, modalities)`, *optional*): Weights of the experts; each row
            sums to 1.
        embeddings (`torch.FloatTensor` of shape `(batch, modalities, embed_dim)`, *optional*): Vectors of unit length
            before the fusion; zeros for a modality that the sample lacks.
    """

    class_logits: torch.Tensor | None = None
    unimodal_logits: torch.Tensor | None = None
    router_weights: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


@dataclass
class CmcUnimodalOutput(MsaOutput):
    """Output of `CmcUnimodalModels`, which have no common score: `logits` is always `None`.

    Args:
        loss, logits, losses: See `MsaOutput`; `losses` may hold ce_<modality> and supcon.
        unimodal_logits (`torch.FloatTensor` of shape `(batch, modalities, 3)`, *optional*): See `CmcOutput`.
        embeddings (`torch.FloatTensor` of shape `(batch, modalities, embed_dim)`, *optional*): See `CmcOutput`.
    """

    unimodal_logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


def _similarities(vectors: Tensor) -> Tensor:
    """Inner products of all pairs, in full precision: temperatures far below 1 make much of small differences."""
    with torch.autocast(vectors.device.type, enabled=False):
        vectors = vectors.float()
        return vectors @ vectors.transpose(-1, -2)


def parameter_free_fusion(rows: Tensor, temperature: float) -> Tensor:
    """Mix the modalities of a sample by how alike they are (PFM): softmax(X X^T / temperature) X.

    Args:
        rows (`torch.FloatTensor` of shape `(batch, modalities, width)`): Vectors of unit length. A vector of zeros is
            alike to none and becomes the mean of all.
        temperature: Low: each row keeps to itself and to rows nearly parallel to it; high: all rows become their mean.

    Returns:
        `torch.FloatTensor` of the shape of `rows`.
    """
    shares = (_similarities(rows) / temperature).softmax(dim=-1)
    return shares.to(rows.dtype) @ rows


def topk_softmax(logits: Tensor, k: int) -> Tensor:
    """Softmax over the `k` highest logits of each row; the others get exactly 0.

    Args:
        logits (`torch.FloatTensor` of shape `(batch, choices)`): What to choose by.
        k: How many to choose; all, where there are fewer.

    Returns:
        `torch.FloatTensor` of the shape of `logits`; each row sums to 1.
    """
    chosen = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, chosen.indices, chosen.values).softmax(dim=-1)


def supervised_contrastive_loss(
    vectors: Tensor, labels: Tensor, temperature: float, variant: Literal["log_sum", "khosla"]
) -> Tensor:
    """Draw vectors of equal label together and others apart (SupCon).

    With the shares s_ip = exp(v_i v_p / T) / sum over a != i of exp(v_i v_a / T), an anchor i costs -log of the sum of
    s_ip over the p != i of its label (`"log_sum"`, the public code of CMC), or the mean of -log s_ip over them (`"khosla"`,
    Khosla et al., NeurIPS 2020). The loss is the mean over the anchors that have such a p.

    Args:
        vectors (`torch.FloatTensor` of shape `(vectors, width)`): Vectors of unit length.
        labels (`torch.LongTensor` of shape `(vectors,)`): Their labels.
        temperature: T.
        variant: See above.

    Returns:
        Scalar `torch.FloatTensor`; 0 where no two vectors have the same label.
    """
    others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    positive = others & (labels.unsqueeze(0) == labels.unsqueeze(1))
    anchors = positive.any(dim=1)
    similarities = (_similarities(vectors) / temperature).masked_fill(~others, float("-inf"))[anchors]
    if not len(similarities):
        return vectors.sum() * 0.0
    positive, whole = positive[anchors], similarities.logsumexp(dim=1)
    if variant == "log_sum":
        shares = similarities.masked_fill(~positive, float("-inf")).logsumexp(dim=1)
    else:
        shares = similarities.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1)
    return (whole - shares).mean()


def contrast_labels(classes: Tensor, neutral_is_positive: bool) -> Tensor:
    """The two groups that the contrastive loss tells apart (public code).

    Args:
        classes (`torch.LongTensor` of any shape): Indices into `SENTIMENT_CLASSES`.
        neutral_is_positive: Of the label family. True (MOSI): negative against the rest. False (SIMS): positive against the
            rest.

    Returns:
        `torch.BoolTensor` of the same shape.
    """
    return classes > (0 if neutral_is_positive else 1)


def class_score(class_logits: Tensor, family: LabelFamily) -> Tensor:
    """Sentiment score of class logits: P(positive) of the way from neutral to the highest label, less P(negative) (ours).

    CMC classifies; the score makes it comparable with methods that regress, and says of a sample that is surely neutral
    the same as of one that is as likely positive as negative.

    Args:
        class_logits (`torch.FloatTensor` of shape `(batch, 3)`): Logits of negative, neutral, positive.
        family: The label family.

    Returns:
        `torch.FloatTensor` of shape `(batch, 1)` in label units.
    """
    probabilities = class_logits.softmax(dim=-1)
    up, down = family.high - family.neutral, family.neutral - family.low
    if up == down:
        return up * (probabilities[:, 2:] - probabilities[:, :1]) + family.neutral
    return up * probabilities[:, 2:] - down * probabilities[:, :1] + family.neutral


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm of frames whose statistics come from the valid frames of the batch alone.

    In training, padding becomes zero; in evaluation it is normalised like every frame, and what reads it has to leave it
    out.
    """

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            input (`torch.FloatTensor` of shape `(batch, length, width)`): Frames.
            mask (`torch.BoolTensor` of shape `(batch, length)`, *optional*): True = valid; without it every frame is.

        Returns:
            `torch.FloatTensor` of the shape of `input`. A training batch with fewer than two valid frames, which has no
            variance, is normalised by the running statistics and leaves them as they are.
        """
        frames = input.flatten(0, 1)
        counted = None if mask is None else mask.flatten()
        valid = frames if counted is None else frames[counted]
        if self.training and len(valid) > 1:
            normalised = super().forward(valid)
            if counted is not None:
                padded = torch.zeros_like(frames, dtype=normalised.dtype)
                normalised = padded.masked_scatter(counted.unsqueeze(1), normalised)
        else:
            normalised = F.batch_norm(
                frames, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return normalised.view_as(input)


class CmcClassifier(nn.Module):
    """Classifier of one modality: two linear maps with a residual, then three logits.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CmcConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.embed_dim, config.embed_dim)
        self.dropout = nn.Dropout(config.head_dropout)
        self.down = nn.Linear(config.embed_dim, config.embed_dim)
        self.output = nn.Linear(config.embed_dim, len(SENTIMENT_CLASSES))

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits `(batch, 3)` of vectors `(batch, embed_dim)`."""
        logits: Tensor = self.output(self.down(self.dropout(F.relu(self.up(vectors)))) + vectors)
        return logits


class CmcBranch(nn.Module):
    """Everything that one modality has to itself: batch norm (not for text), projection, Transformer, classifier.

    The Transformer is torch's, without positions: the order of frames does not count, and that of words only in the text
    encoder.

    Args:
        config: The model's configuration.
        modality: `"text"`, `"audio"` or `"vision"`.
        classifies: Whether there is a classifier; the model of the second stage keeps its classifiers as experts.
    """

    def __init__(self, config: CmcConfig, modality: str, classifies: bool) -> None:
        super().__init__()
        is_text = modality == "text"
        width = config.text_config.hidden_size if is_text else getattr(config, f"{modality}_dim")
        self.norm = None if is_text else MaskedBatchNorm(width)
        self.projection = nn.Linear(width, config.embed_dim, bias=False)
        layer = nn.TransformerEncoderLayer(
            config.embed_dim,
            config.num_attention_heads,
            config.feedforward_dim,
            config.encoder_dropout,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config.encoder_layers, enable_nested_tensor=False)
        self.classifier = CmcClassifier(config) if classifies else None

    def encode(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Summarise a sequence in one vector: the mean over its encoded positions, scaled to unit length.

        Args:
            values (`torch.FloatTensor` of shape `(batch, length, width)`): Frames, or what the text encoder gave.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 or True = valid; without it every position is.

        Returns:
            `torch.FloatTensor` of shape `(batch, embed_dim)`; zeros for a row without a valid position.
        """
        valid = None if mask is None else mask.bool()
        if self.norm is not None:
            values = self.norm(values, valid)
        hidden = self.projection(values)
        if valid is None:
            return F.normalize(self.encoder(hidden).mean(dim=1), dim=-1)
        return encode_by_length(self._encode_valid, hidden, valid, hidden.shape[-1])

    def _encode_valid(self, hidden: Tensor, valid: Tensor) -> Tensor:
        there = valid.any(dim=1, keepdim=True)
        # Attention over nothing is not a number, so a row without a valid position attends to its padding, for nothing.
        hidden = self.encoder(hidden, src_key_padding_mask=padding_mask(valid | ~there))
        return F.normalize(masked_mean(hidden, valid), dim=-1).masked_fill(~there, 0.0)

    def classify(self, vectors: Tensor) -> Tensor:
        """Logits `(batch, 3)` of this modality's vectors `(batch, embed_dim)`.

        Raises:
            ValueError: If this branch was built without a classifier.
        """
        if self.classifier is None:
            raise ValueError(
                "This branch has no classifier; in the model of the second stage its place is taken by an expert."
            )
        logits: Tensor = self.classifier(vectors)
        return logits


class AttentionFusion(nn.Module):
    """In place of the fusion without parameters: learned self-attention of one head over the modalities.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CmcConfig) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(config.embed_dim, num_heads=1, batch_first=True)

    def forward(self, rows: Tensor) -> Tensor:
        """Mix vectors `(batch, modalities, embed_dim)`."""
        mixed: Tensor = self.attention(rows, rows, rows, need_weights=False)[0]
        return mixed


class ConcatFusion(nn.Module):
    """In place of the fusion without parameters: a learned linear map from all vectors, concatenated, to all.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CmcConfig) -> None:
        super().__init__()
        width = len(config.modalities) * config.embed_dim
        self.linear = nn.Linear(width, width)

    def forward(self, rows: Tensor) -> Tensor:
        """Mix vectors `(batch, modalities, embed_dim)`."""
        mixed: Tensor = self.linear(rows.flatten(1)).view_as(rows)
        return mixed


class StaticRouter(nn.Module):
    """In place of the router: one learned logit for each modality, the same for every sample.

    Args:
        modalities: How many there are.
    """

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.empty(modalities))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weigh all evenly."""
        nn.init.zeros_(self.logits)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits `(batch, modalities)`, whatever the vectors `(batch, modalities, embed_dim)` are."""
        return self.logits.expand(len(rows), -1)


class SumRouter(nn.Linear):
    """Logits as a linear map of the sum of all vectors (public code): each modality adds its part, whatever the others say.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CmcConfig) -> None:
        super().__init__(config.embed_dim, len(config.modalities))

    def forward(self, input: Tensor) -> Tensor:
        """Logits `(batch, modalities)` of vectors `(batch, modalities, embed_dim)`."""
        return super().forward(input.sum(dim=1))


class RowsRouter(nn.Module):
    """Logits of all vectors side by side, through a hidden layer of ReLUs: it can compare modalities (ours).

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CmcConfig) -> None:
        super().__init__()
        count = len(config.modalities)
        self.hidden = nn.Linear(count * config.embed_dim, config.feedforward_dim)
        self.output = nn.Linear(config.feedforward_dim, count)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits `(batch, modalities)` of vectors `(batch, modalities, embed_dim)`."""
        logits: Tensor = self.output(F.relu(self.hidden(rows.flatten(1))))
        return logits


def build_router(config: CmcConfig) -> nn.Module | None:
    """Build what gives a logit for each modality from the mixed vectors; nothing where all are weighed evenly."""
    if config.mcr == "mean":
        return None
    if config.mcr == "static":
        return StaticRouter(len(config.modalities))
    return RowsRouter(config) if config.router_input == "rows" else SumRouter(config)


class CmcPreTrainedModel(MsaPreTrainedModel):
    """What both stages share: a branch for each modality and the losses on unimodal labels."""

    config: CmcConfig

    def __init__(self, config: CmcConfig, classifies: bool) -> None:
        super().__init__(config)
        self.text_encoder = build_text_encoder(config.text_config)
        self.branches = nn.ModuleDict({name: CmcBranch(config, name, classifies) for name in config.modalities})

    def branch(self, modality: str) -> CmcBranch:
        """The branch of a modality of the configuration."""
        return cast(CmcBranch, self.branches[modality])

    def embed(self, inputs: MsaInputs, text_hidden: Tensor | None = None) -> Tensor:
        """Encode every modality.

        Args:
            inputs: The batch.
            text_hidden (`torch.FloatTensor` of shape `(batch, tokens, text width)`, *optional*): What the text encoder
                gives for these texts; it is then not run.

        Returns:
            `torch.FloatTensor` of shape `(batch, modalities, embed_dim)`.
        """
        if text_hidden is None:
            text_hidden = self.encode_text(inputs.input_ids, inputs.attention_mask)
        vectors = []
        for name in self.modalities:
            values = text_hidden if name == "text" else inputs.values(name)
            vectors.append(
                self.branch(name).encode(values, inputs.attention(name) if self.config.mask_padding else None)
            )
        return torch.stack(vectors, dim=1)

    def unimodal_terms(
        self, unimodal_logits: Tensor, embeddings: Tensor, classes: Tensor, inputs: MsaInputs
    ) -> dict[str, Tensor]:
        """Loss terms on unimodal labels: a cross entropy for each modality and the contrastive loss over all.

        Args:
            unimodal_logits (`torch.FloatTensor` of shape `(batch, modalities, 3)`): Logits of each modality.
            embeddings (`torch.FloatTensor` of shape `(batch, modalities, embed_dim)`): Vectors of each modality. Those of
                modalities that a sample is without are not contrasted.
            classes (`torch.LongTensor` of shape `(batch, modalities)`): Classes of each modality.
            inputs: The batch, which says what is missing.
        """
        terms = {
            f"ce_{name}": F.cross_entropy(unimodal_logits[:, index], classes[:, index])
            for index, name in enumerate(self.config.modalities)
        }
        if self.config.supcon_weight:
            there = torch.stack([inputs.observed(name).any(dim=1) for name in self.config.modalities], dim=1)
            terms["supcon"] = supervised_contrastive_loss(
                embeddings[there],
                contrast_labels(classes, self.config.family.neutral_is_positive)[there],
                self.config.supcon_temperature,
                self.config.supcon_variant,
            )
        return terms

    def weigh(self, terms: dict[str, Tensor]) -> dict[str, Any]:
        """Sum loss terms, the contrastive one by its weight.

        Args:
            terms: Scalar losses by name.

        Returns:
            `loss` and `losses` for the output; empty without a term.
        """
        if not terms:
            return {}
        weights = {"supcon": self.config.supcon_weight}
        loss = torch.stack([weights.get(name, 1.0) * term.float() for name, term in terms.items()]).sum()
        return {"loss": loss, "losses": {name: term.detach() for name, term in terms.items()}}


class CmcUnimodalModels(CmcPreTrainedModel, MsaStageModel):
    """First stage: a classifier of its own for each modality, trained on unimodal (pseudo) labels."""

    def __init__(self, config: CmcConfig) -> None:
        super().__init__(config, classifies=True)
        self.post_init()

    def compute(
        self,
        inputs: MsaInputs,
        labels: Tensor | None,
        *,
        pseudo_labels: Tensor | None = None,
        text_hidden: Tensor | None = None,
    ) -> CmcUnimodalOutput:
        """Classify each modality for itself.

        Args:
            inputs: The batch.
            labels: Not read: each modality has labels of its own.
            pseudo_labels (`torch.LongTensor` of shape `(batch, modalities)`, *optional*): Class of each modality, an index
                into `SENTIMENT_CLASSES`.
            text_hidden (`torch.FloatTensor` of shape `(batch, tokens, text width)`, *optional*): What the text encoder
                gives for these texts; it is then not run.

        Returns:
            `CmcUnimodalOutput`; with pseudo labels also the loss.
        """
        embeddings = self.embed(inputs, text_hidden)
        unimodal_logits = torch.stack(
            [self.branch(name).classify(embeddings[:, i]) for i, name in enumerate(self.config.modalities)], dim=1
        )
        terms = (
            {} if pseudo_labels is None else self.unimodal_terms(unimodal_logits, embeddings, pseudo_labels, inputs)
        )
        return CmcUnimodalOutput(**self.weigh(terms), unimodal_logits=unimodal_logits, embeddings=embeddings)


class CmcForSentimentAnalysis(CmcPreTrainedModel):
    """Sentiment class and score from modalities that may contradict each other: experts weighed by a router.

    The experts are the classifiers of the first stage, applied to the mixed vectors. All experts classify every sample;
    with `top_k` below their number some have weight 0, but learn from their own labels still (the public code leaves them
    out, which for its own `top_k` is the same).

    Example:
        ```python
        from hf_msa import CmcConfig, CmcForSentimentAnalysis

        config = CmcConfig(audio_dim=5, vision_dim=20)  # widths are those of the data
        model = CmcForSentimentAnalysis.from_text_pretrained("data/sample/text_model", config)
        ```
    """

    def __init__(self, config: CmcConfig) -> None:
        super().__init__(config, classifies=False)
        self.experts = nn.ModuleDict({name: CmcClassifier(config) for name in config.modalities})
        fusions = {"attention": AttentionFusion, "concat": ConcatFusion}
        self.fusion = fusions[config.pfm](config) if config.pfm in fusions else None
        self.router = build_router(config)
        self.post_init()

    @classmethod
    def from_unimodal(cls, unimodal: CmcUnimodalModels) -> Self:
        """Build the model from the first stage: its encoders, and its classifiers as experts; the router is new.

        Args:
            unimodal: The trained models of the first stage.
        """
        # A copy, because a model writes its own class into its configuration.
        model = cls(copy.deepcopy(unimodal.config))
        model.text_encoder.load_state_dict(unimodal.text_encoder.state_dict())
        for name in model.config.modalities:
            state = unimodal.branch(name).state_dict()
            expert = {key: state.pop(key) for key in list(state) if key.startswith("classifier.")}
            model.branches[name].load_state_dict(state)
            model.experts[name].load_state_dict({key.removeprefix("classifier."): expert[key] for key in expert})
        return model

    @property
    def output_columns(self) -> dict[str, tuple[str, ...]]:
        """Classes of the class logits and modalities of the router's weights."""
        return {"class_logits": SENTIMENT_CLASSES, "router_weights": self.config.modalities}

    def per_sample_outputs(self, outputs: MsaOutput) -> dict[str, Tensor]:
        """What `MsaPreTrainedModel` takes of an output, and each expert's logits, e.g. ``unimodal_logits_text_negative``."""
        found = super().per_sample_outputs(outputs)
        logits = cast(CmcOutput, outputs).unimodal_logits
        if logits is not None:
            for index, modality in enumerate(self.config.modalities):
                for place, name in enumerate(SENTIMENT_CLASSES):
                    found[f"unimodal_logits_{modality}_{name}"] = logits[:, index, place]
        return found

    def fuse(self, rows: Tensor) -> Tensor:
        """Mix the modalities of a sample as `pfm` says.

        Args:
            rows (`torch.FloatTensor` of shape `(batch, modalities, embed_dim)`): Vectors of unit length.

        Returns:
            `torch.FloatTensor` of the shape of `rows`.
        """
        if self.config.pfm == "cosine":
            return parameter_free_fusion(rows, self.config.fusion_temperature)
        return rows if self.fusion is None else self.fusion(rows)

    def route(self, rows: Tensor) -> Tensor:
        """Weights of the experts (MCR).

        Args:
            rows (`torch.FloatTensor` of shape `(batch, modalities, embed_dim)`): The mixed vectors.

        Returns:
            `torch.FloatTensor` of shape `(batch, modalities)`; each row sums to 1.
        """
        if self.router is None:
            return rows.new_full(rows.shape[:2], 1 / rows.shape[1])
        return topk_softmax(self.router(rows), self.config.top_k)

    def compute(self, inputs: MsaInputs, labels: Tensor | None, *, pseudo_labels: Tensor | None = None) -> CmcOutput:
        """Predict sentiment class and score.

        Args:
            inputs: The batch. Missing masks are not read: the method is made for complete data.
            labels (`torch.FloatTensor` of shape `(batch,)`, *optional*): True scores, whose sign is the class.
            pseudo_labels (`torch.LongTensor` of shape `(batch, modalities)`, *optional*): Class of each modality, an index
                into `SENTIMENT_CLASSES`, for the auxiliary losses of training.

        Returns:
            `CmcOutput`; with labels also the loss: the cross entropy of the class and, with pseudo labels, that of every
            expert and the contrastive loss.
        """
        embeddings = self.embed(inputs)
        mixed = self.fuse(embeddings)
        unimodal_logits = torch.stack(
            [expert(mixed[:, index]) for index, expert in enumerate(self.experts.values())], dim=1
        )
        weights = self.route(mixed)
        class_logits = (weights.unsqueeze(-1) * unimodal_logits).sum(dim=1)
        terms = {} if labels is None else {"task": F.cross_entropy(class_logits, self.label_classes(labels))}
        if pseudo_labels is not None:
            terms |= self.unimodal_terms(unimodal_logits, embeddings, pseudo_labels, inputs)
        return CmcOutput(
            **self.weigh(terms),
            logits=class_score(class_logits, self.config.family),
            class_logits=class_logits,
            unimodal_logits=unimodal_logits,
            router_weights=weights,
            embeddings=embeddings,
        )
