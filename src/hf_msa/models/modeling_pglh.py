"""PGLH: encode only what is visible, learn to rebuild the rest, refine by prompts that text guides.

Paper: "Prompt-Guided Low-Level Recovery and High-Level Fusion for Incomplete Multimodal Sentiment Analysis".
Two parts: prompted cross-modal masking (PCM2, section 3.1.1), of which only the encoders are there at inference, and
unimodal-to-bimodal prompt fusion (UBPF, section 3.1.2). UBPF reads the encoders' outputs in training and at inference
alike; that text guides them shows only in what the reconstruction taught the encoders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_pglh import PglhConfig
from .modeling_msa import Batch, MsaPreTrainedModel, build_text_encoder, masked_mean
from .msa_attention import multi_head_attention
from .msa_encoders import encode_by_length, padding_mask, sinusoidal_positions
from .msa_inputs import MsaInputs
from .msa_outputs import MsaOutput
from .msa_schema import FEATURE_MODALITIES


@dataclass
class PglhOutput(MsaOutput):
    """Output of `PglhForSentimentAnalysis`.

    Args:
        loss, logits, losses: See `MsaOutput`; `losses` may hold task, global and mask (eq. 17).
        embeddings (`torch.FloatTensor` of shape `(batch, modalities, hidden_size)`, *optional*): h_m of eq. 15, in the
            order of `config.modalities`.
    """

    embeddings: torch.Tensor | None = None


@dataclass(frozen=True)
class VisibleTokens:
    """The visible tokens of one modality, packed to the front of each row.

    Args:
        hidden (`torch.FloatTensor` of shape `(batch, kept, hidden_size)`): Tokens; `kept` is the batch's longest row.
        mask (`torch.BoolTensor` of shape `(batch, kept)`): True = a token, or the null token of a row without any.
        index (`torch.LongTensor` of shape `(batch, kept)`): Where each stood; no position occurs twice in a row.
    """

    hidden: Tensor
    mask: Tensor
    index: Tensor


def build_layer(config: PglhConfig, feedforward_dim: int) -> nn.TransformerEncoderLayer:
    """Build one pre-norm Transformer layer (section 3.1)."""
    return nn.TransformerEncoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        feedforward_dim,
        dropout=config.dropout,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


def transform(transformer: nn.TransformerEncoder, hidden: Tensor, mask: Tensor) -> Tensor:
    """Run a Transformer over a padded batch.

    Args:
        transformer: What to run.
        hidden (`torch.FloatTensor` of shape `(batch, length, hidden_size)`): Its input.
        mask (`torch.BoolTensor` of shape `(batch, length)`): True = attend. Every row needs one True.

    Returns:
        `torch.FloatTensor` of the shape of `hidden`; what stands where the mask is False is of no meaning.
    """
    length = mask.shape[1]

    def run(sequence: Tensor, attend: Tensor) -> Tensor:
        output: Tensor = transformer(sequence, src_key_padding_mask=padding_mask(attend))
        return F.pad(output, (0, 0, 0, length - sequence.shape[1]))

    return encode_by_length(run, hidden, mask, hidden.shape[-1])


def mean_error(errors: Tensor, mask: Tensor) -> Tensor:
    """Average the errors of the positions that a mask names, over the whole batch; 0 if it names none.

    Args:
        errors (`torch.FloatTensor` of shape `(batch, length)`): One number per position.
        mask (`torch.BoolTensor` of shape `(batch, length)`): True = counts.
    """
    weights = mask.to(errors.dtype)
    return (errors * weights).sum() / weights.sum().clamp(min=1.0)


class PromptAttention(nn.Module):
    """Attention with one head from prompts to tokens (eq. 5, 6 and 11, 12): linear maps, no output map.

    Args:
        dim: Width of prompts and tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def forward(self, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Attend.

        Args:
            prompts (`torch.FloatTensor` of shape `(batch, prompts, dim)`): What asks.
            tokens (`torch.FloatTensor` of shape `(batch, tokens, dim)`): What is read.
            mask (`torch.BoolTensor` of shape `(batch, tokens)`): True = attend. Every row needs one True.

        Returns:
            `torch.FloatTensor` of shape `(batch, prompts, dim)`.
        """
        return multi_head_attention(self.query(prompts), self.key(tokens), self.value(tokens), 1, mask)


class Balance(nn.Module):
    """A learned weight between 0 and 1 that starts at 0.5 (beta of eq. 7, alpha of eq. 13 and 14)."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to 0.5."""
        nn.init.zeros_(self.logit)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Mix two tensors: the weight times the first and the rest times the second."""
        weight = self.value()
        return weight * first + (1 - weight) * second

    def value(self) -> Tensor:
        """The weight, a tensor of shape `(1,)`."""
        return torch.sigmoid(self.logit)


class VisibleEncoder(nn.Module):
    """Linear map, positions and one Transformer layer over the visible tokens of one modality (eq. 1 to 3).

    Nothing that is dropped or padded is read: visible tokens are packed to the front of each row before anything is
    computed, and what stands behind them is zeros that no token attends to.

    Args:
        input_dim: Width of a frame.
        config: The model's configuration.
    """

    def __init__(self, input_dim: int, config: PglhConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(input_dim, config.hidden_size)
        self.transformer = nn.TransformerEncoder(
            build_layer(config, config.encoder_feedforward_dim),
            num_layers=1,
            norm=nn.LayerNorm(config.hidden_size),
            enable_nested_tensor=False,
        )
        # Stands for a modality of which nothing is visible.
        self.null_token = nn.Parameter(torch.empty(config.hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the null token from N(0, 0.02)."""
        nn.init.normal_(self.null_token, std=0.02)

    def forward(self, values: Tensor, visible: Tensor) -> VisibleTokens:
        """Encode.

        Args:
            values (`torch.FloatTensor` of shape `(batch, length, input_dim)`): Frames.
            visible (`torch.BoolTensor` of shape `(batch, length)`): True = neither dropped nor padding.
        """
        counts = visible.sum(dim=1, keepdim=True)
        kept = max(1, int(counts.max()))
        index = visible.logical_not().long().argsort(dim=1, stable=True)[:, :kept]
        place = torch.arange(kept, device=values.device)
        packed = values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
        packed = packed.masked_fill((place >= counts).unsqueeze(-1), 0.0)
        places = torch.arange(values.shape[1], device=values.device)
        positions = sinusoidal_positions(places, len(self.null_token)).to(self.null_token.dtype)
        # A row without any token encodes one of zeros, which the null token then replaces.
        mask = place < counts.clamp(min=1)
        hidden = transform(self.transformer, self.projection(packed) + positions[index], mask)
        return VisibleTokens(torch.where((counts == 0).unsqueeze(-1), self.null_token, hidden), mask, index)


class Reconstructor(nn.Module):
    """Rebuild all positions of one modality from its visible tokens (eq. 4 to 8); only training runs it.

    Args:
        modality: `"text"`, which nothing guides, or `"audio"` or `"vision"`.
        output_dim: Width of a frame.
        config: The model's configuration.
    """

    def __init__(self, modality: str, output_dim: int, config: PglhConfig) -> None:
        super().__init__()
        guided = config.language_prompt and modality in FEATURE_MODALITIES
        self.prompt = nn.Parameter(torch.empty(1, config.hidden_size)) if guided else None
        self.attention = PromptAttention(config.hidden_size) if guided else None
        self.balance = Balance() if guided else None
        self.mask_token = nn.Parameter(torch.empty(config.hidden_size))
        layer = build_layer(config, config.decoder_feedforward_dim) if config.decoder_type == "transformer" else None
        self.decoder = None if layer is None else nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.output = nn.Linear(config.hidden_size, output_dim)
        self.prompt_init_std = config.prompt_init_std
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the mask token with a standard deviation of 0.02, and the prompt with that of the configuration."""
        nn.init.normal_(self.mask_token, std=0.02)
        if self.prompt is not None:
            nn.init.normal_(self.prompt, std=self.prompt_init_std)

    def guide(self, tokens: VisibleTokens, text: VisibleTokens) -> Tensor:
        """Mix what a prompt has gathered from the text into every visible token (eq. 5 to 7).

        Args:
            tokens: The modality's own tokens H_m.
            text: The visible text H_t.

        Returns:
            `torch.FloatTensor` of the shape of `tokens.hidden`; the tokens themselves where there is no prompt.
        """
        if self.prompt is None or self.attention is None or self.balance is None:
            return tokens.hidden
        prompt = self.prompt.expand(len(text.hidden), -1, -1)
        mixed: Tensor = self.balance(self.attention(prompt, text.hidden, text.mask), tokens.hidden)
        return mixed

    def restore(self, hidden: Tensor, index: Tensor, visible: Tensor) -> Tensor:
        """Put tokens back where they stood, mask tokens everywhere else, and add positions again (eq. 4).

        Args:
            hidden (`torch.FloatTensor` of shape `(batch, kept, hidden_size)`): Packed tokens.
            index (`torch.LongTensor` of shape `(batch, kept)`): Their positions.
            visible (`torch.BoolTensor` of shape `(batch, length)`): True = there is a token for this position.

        Returns:
            `torch.FloatTensor` of shape `(batch, length, hidden_size)`.
        """
        batch, length, width = *visible.shape, hidden.shape[-1]
        placed = hidden.new_zeros(batch, length, width).scatter(1, index.unsqueeze(-1).expand(-1, -1, width), hidden)
        restored = torch.where(visible.unsqueeze(-1), placed, self.mask_token)
        positions = sinusoidal_positions(torch.arange(length, device=hidden.device), width)
        return restored + positions.to(self.mask_token.dtype)

    def forward(self, tokens: VisibleTokens, text: VisibleTokens, visible: Tensor, valid: Tensor) -> Tensor:
        """Reconstruct.

        Args:
            tokens: The modality's own tokens.
            text: The visible text, which guides the reconstruction of audio and vision.
            visible (`torch.BoolTensor` of shape `(batch, length)`): True = neither dropped nor padding.
            valid (`torch.BoolTensor` of shape `(batch, length)`): True = not padding.

        Returns:
            `torch.FloatTensor` of shape `(batch, length, output_dim)`; of no meaning at padding.
        """
        hidden = self.restore(self.guide(tokens, text), tokens.index, visible)
        if self.decoder is not None:
            # A row without the modality has nothing to attend to, and no position of it counts in a loss.
            hidden = transform(self.decoder, hidden, valid | ~valid.any(dim=1, keepdim=True))
        rebuilt: Tensor = self.output(hidden)
        return rebuilt


class PromptRefiner(nn.Module):
    """Prompts of one modality that read its tokens, then tokens and text together (eq. 11 to 14).

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: PglhConfig) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(config.num_prompts, config.hidden_size))
        self.self_guided = PromptAttention(config.hidden_size)
        self.language_guided = PromptAttention(config.hidden_size)
        self.balance = Balance()
        self.prompt_init_std = config.prompt_init_std
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the prompts with the standard deviation of the configuration."""
        nn.init.normal_(self.prompts, std=self.prompt_init_std)

    def forward(self, tokens: VisibleTokens, text: VisibleTokens | None) -> Tensor:
        """Refine.

        Args:
            tokens: The modality's own tokens.
            text: The visible text; `None` for text itself, whose second stage reads its own tokens again (eq. 13).

        Returns:
            `torch.FloatTensor` of shape `(batch, num_prompts, hidden_size)`.
        """
        prompts = self.self_guided(self.prompts.expand(len(tokens.hidden), -1, -1), tokens.hidden, tokens.mask)
        context, mask = tokens.hidden, tokens.mask
        if text is not None:
            context, mask = torch.cat([context, text.hidden], dim=1), torch.cat([mask, text.mask], dim=1)
        refined: Tensor = self.balance(self.language_guided(prompts, context, mask), prompts)
        return refined


class PglhForSentimentAnalysis(MsaPreTrainedModel):
    """Sentiment score from the visible parts of text, audio and vision.

    Example:
        ```python
        from hf_msa import PglhConfig, PglhForSentimentAnalysis

        config = PglhConfig(audio_dim=5, vision_dim=20)  # widths are those of the data
        model = PglhForSentimentAnalysis.from_text_pretrained("data/sample/text_model", config)
        ```
    """

    config: PglhConfig
    # Every alpha and beta.
    COMPONENTS: ClassVar[Mapping[str, str]] = {"balances": "balance"}
    # Weights that a model with drop_decoder has no place for.
    _keys_to_ignore_on_load_unexpected = [r"^reconstructors\."]

    def __init__(self, config: PglhConfig) -> None:
        super().__init__(config)
        widths = {"text": config.text_config.hidden_size, "audio": config.audio_dim, "vision": config.vision_dim}
        self.text_encoder = build_text_encoder(config.text_config)
        self.encoders = nn.ModuleDict({name: VisibleEncoder(widths[name], config) for name in config.modalities})
        self.reconstructors = nn.ModuleDict(
            {name: Reconstructor(name, widths[name], config) for name in config.reconstructed}
        )
        self.refiners = nn.ModuleDict(
            {name: PromptRefiner(config) for name in config.modalities} if config.ubpf else {}
        )
        self.regressor = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def logged_values(self) -> dict[str, float]:
        """Every alpha (eq. 13, 14) and beta (eq. 7)."""
        kinds = {"alpha": self.refiners, "beta": self.reconstructors}
        return {
            f"{kind}_{name}": part.balance.value().item()
            for kind, parts in kinds.items()
            for name, part in parts.items()
            if isinstance(part.balance, Balance)
        }

    def masks(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Which positions there are and which of them are visible.

        Args:
            batch: Inputs as of `forward`.

        Returns:
            Per modality two `torch.BoolTensor` of shape `(batch, length)`: True = not padding (every position where
            `mask_padding` is off), and True = neither padding nor dropped.
        """
        inputs = self.read(batch)
        found = {}
        for modality in self.modalities:
            valid, missing = inputs.attention(modality).bool(), inputs.missing(modality)
            if not self.config.mask_padding:
                valid = torch.ones_like(valid)
            found[modality] = (valid, valid if missing is None else valid & ~missing.bool())
        return found

    def encode(self, batch: Batch) -> dict[str, VisibleTokens]:
        """Encode the visible positions of every modality (eq. 1 to 3).

        Args:
            batch: Inputs as of `forward`.
        """
        inputs = self.read(batch)
        read = inputs.completed() if self.config.text_mask_level == "feature" else inputs
        values = {name: inputs.values(name) for name in self.modalities[1:]}
        values["text"] = self.encode_text(read.input_ids, read.attention_mask)
        return {name: self.encoders[name](values[name], visible) for name, (_, visible) in self.masks(inputs).items()}

    def fuse(self, tokens: Mapping[str, VisibleTokens]) -> Tensor:
        """Refine every modality by its prompts and average (eq. 11 to 15).

        Args:
            tokens: Per modality its visible tokens.

        Returns:
            `torch.FloatTensor` of shape `(batch, modalities, hidden_size)`.
        """
        pooled = []
        for name, own in tokens.items():
            if name not in self.refiners:
                pooled.append(masked_mean(own.hidden, own.mask))
                continue
            prompts = self.refiners[name](own, None if name == "text" else tokens["text"])
            if self.config.pooling == "separate":
                pooled.append((prompts.mean(dim=1) + masked_mean(own.hidden, own.mask)) / 2)
            else:
                mask = torch.cat([own.mask.new_ones(prompts.shape[:2]), own.mask], dim=1)
                pooled.append(masked_mean(torch.cat([prompts, own.hidden], dim=1), mask))
        return torch.stack(pooled, dim=1)

    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """Rebuild every position of the modalities that the model has a decoder for.

        Args:
            batch: Inputs as of `forward`; labels and complete values are not read.

        Returns:
            Per modality a `torch.FloatTensor` of shape `(batch, length, width)`, for text in the space of the text
            encoder's outputs; of no meaning at padding.

        Raises:
            ValueError: If the model has no decoder.
        """
        if not self.reconstructors:
            raise ValueError(
                "This model has no decoders to reconstruct with; load its checkpoint without drop_decoder=True, or take one "
                "that was trained with w_mask or w_global above 0."
            )
        inputs = self.read(batch)
        return self.decode(self.encode(inputs), self.masks(inputs))

    def decode(
        self, tokens: Mapping[str, VisibleTokens], masks: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Rebuild all positions from visible tokens; see `reconstruct`.

        Args:
            tokens: What `encode` gave.
            masks: What `masks` gave.
        """
        return {
            name: decoder(tokens[name], tokens["text"], visible=masks[name][1], valid=masks[name][0])
            for name, decoder in self.reconstructors.items()
        }

    @torch.no_grad()
    def reconstruction_targets(self, batch: Batch) -> dict[str, Tensor]:
        """What the reconstructions should be: complete audio and vision, and the text encoder on the complete text.

        The text encoder runs without dropout, in training too: a target that is drawn anew each time has noise that
        nothing can reconstruct.

        Args:
            batch: Inputs as of `forward`.

        Returns:
            Per modality with a decoder and a complete input a `torch.FloatTensor` of shape `(batch, length, width)`;
            no gradient enters it.
        """
        inputs = self.read(batch)
        complete = {name: inputs.complete(name) for name in self.config.reconstructed}
        targets = {name: value for name, value in complete.items() if value is not None}
        if "text" in targets:
            is_training = self.text_encoder.training
            self.text_encoder.eval()
            targets["text"] = self.encode_text(targets["text"], inputs.complete_attention("text"))
            self.text_encoder.train(is_training)
        return targets

    def reconstruction_losses(self, tokens: Mapping[str, VisibleTokens], batch: Batch) -> dict[str, Tensor]:
        """Error of the reconstruction, `global` over all positions (eq. 9) and `mask` over the dropped ones (eq. 10).

        Both average over positions of the whole batch, padding left out, and sum over modalities.

        Args:
            tokens: What `encode` gave.
            batch: Inputs as of `forward`.

        Returns:
            Two scalars; nothing where there is no decoder or no complete input.
        """
        inputs = self.read(batch)
        targets = self.reconstruction_targets(inputs)
        if not targets:
            return {}
        masks = self.masks(inputs)
        rebuilt = self.decode(tokens, masks)
        everywhere, dropped = [], []
        for name, target in targets.items():
            valid, visible = masks[name]
            # What is wholly missing has another length than what it was.
            valid = valid & (inputs.complete_attention(name).bool() | (not self.config.mask_padding))
            squared = (rebuilt[name].float() - target.float()).square()
            everywhere.append(mean_error(squared.mean(dim=-1), valid))
            by_sum = self.config.mask_loss_reduction == "sum"
            dropped.append(mean_error(squared.sum(dim=-1) if by_sum else squared.mean(dim=-1), valid & ~visible))
        return {"global": torch.stack(everywhere).sum(), "mask": torch.stack(dropped).sum()}

    def compute(self, inputs: MsaInputs, labels: Tensor | None, *, reconstruct: bool = True) -> PglhOutput:
        """Predict the sentiment score; with labels also compute the loss (eq. 17).

        Dropped positions are left out, not attended to as zeros: the missing masks are needed where something is
        missing, and without one everything counts as visible. Complete inputs are the targets of the reconstruction, and
        complete text is the text encoder's input with `text_mask_level="feature"`.

        Args:
            inputs: The batch.
            labels (`torch.FloatTensor` of shape `(batch,)`, *optional*): True scores.
            reconstruct: Whether the loss has the reconstruction terms, as far as there are labels, complete inputs and
                decoders; else it is that of the score.

        Returns:
            `PglhOutput`; without labels `loss` is `None`.

        Raises:
            ValueError: If reconstruction losses are asked for of a model without its decoders.
        """
        reconstruct = reconstruct and labels is not None
        is_complete = any(inputs.complete(name) is not None for name in self.modalities)
        if reconstruct and self.config.drop_decoder and is_complete:
            raise ValueError(
                "This model was loaded with drop_decoder=True and cannot learn from complete inputs; load it without, or "
                "pass reconstruct=False to train the score alone."
            )
        tokens = self.encode(inputs)
        embeddings = self.fuse(tokens)
        logits = self.regressor(embeddings.sum(dim=1))
        if labels is None:
            return PglhOutput(logits=logits, embeddings=embeddings)
        terms = {"task": F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))}
        if reconstruct:
            terms |= self.reconstruction_losses(tokens, inputs)
        weights = {"task": self.config.w_task, "global": self.config.w_global, "mask": self.config.w_mask}
        return PglhOutput(
            loss=torch.stack([weights[name] * term for name, term in terms.items()]).sum(),
            logits=logits,
            losses={name: term.detach() for name, term in terms.items()},
            embeddings=embeddings,
        )
