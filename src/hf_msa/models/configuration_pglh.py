"""Configuration of PGLH."""

from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_msa import MsaConfig
from .msa_schema import MODALITIES

# Weights of the masked and the global reconstruction loss of the paper's Table 8; the third pair is the default.
_WEIGHT_PAIRS = ((0.025, 0.025), (0.025, 0.05), (0.05, 0.05), (0.05, 0.1), (0.1, 0.1))


@strict
class PglhConfig(MsaConfig):
    r"""PGLH: prompt-guided low-level recovery and high-level fusion.

    Paper: "Prompt-Guided Low-Level Recovery and High-Level Fusion for Incomplete Multimodal Sentiment Analysis".
    Sources: T = a table of the paper, "eq." = its equation, "section" = its text, LNLN = the public code of the model
    family that it belongs to, ours = neither says.

    Architecture:
        hidden_size (`int`): Width of all tokens behind the projections (LNLN: 128).
        num_attention_heads (`int`): Heads of the encoders and decoders (LNLN: 8); prompts attend with one (eq. 5, 6).
        encoder_feedforward_dim (`int`): Width inside the feed-forwards of the encoders (ours: 512).
        decoder_feedforward_dim (`int`): Width inside the feed-forwards of the decoders (ours: 256).
        dropout (`float`): Dropout of the encoders and decoders (ours: 0.1).
        num_prompts (`int`): Learned prompts per modality in the fusion (ours: 8).
        prompt_init_std (`float`): Standard deviation that all learned prompts are drawn with, those of eq. 5 and of eq. 11
            (ours: 1; the paper does not say). At 0.02, as tokens of Transformers usually are, the prompts of a modality ask
            alike, attend evenly, and gather the same to within 0.2 %.

    Variants:
        text_mask_level: Where text loses its dropped tokens. `"input"`: the text encoder reads the unknown token in
            their place, and its outputs there are dropped too (ours). `"feature"`: the text encoder reads the complete
            text and only its outputs are dropped (eq. 2 to the letter); what is left has attended to the hidden words,
            so this needs the complete text to predict and is not to be compared with the rest.
        decoder_type: `"transformer"`: one layer over the restored sequence (section 3.1). `"linear"`: one linear map per
            token, that is without the decoder (T3; the paper does not say what is left).
        language_prompt (`bool`): Whether text guides the reconstruction of audio and vision (eq. 5 to 8; T3). The masked
            loss reaches prompt and beta through visible positions alone: of clips with a single frame they learn nothing.
        ubpf (`bool`): Whether prompts refine the modalities before fusion (eq. 11 to 15; T3); without, a modality is
            the average of its visible tokens.
        pooling: `"joint"`: average over prompts and tokens together (eq. 15); the fewer tokens are visible, the more
            the prompts weigh. `"separate"`: mean of the average prompt and the average token (ours).
        reconstruct_modalities (`list[str]`): What is reconstructed in training (eq. 4: every modality).
        mask_loss_reduction: How eq. 10 sums up the features of a position. `"mean"`: average, so that the masked loss
            has the scale of the global one (ours). `"sum"`: to the letter.
        drop_decoder (`bool`): Build only what predicts; give it to `from_pretrained` (section 3.1.1, inference).

    Loss weights (eq. 17):
        w_task, w_mask, w_global (`float`): Of the sentiment score, of the reconstruction of masked positions and of
            the reconstruction of all positions. With both reconstruction weights at 0 there are no decoders.

    Example:
        ```python
        from hf_msa import PglhConfig

        PglhConfig(audio_dim=5, vision_dim=20, **PglhConfig.ABLATIONS["wo_ubpf"])
        ```
    """

    model_type = "hf_msa_pglh"

    NEEDS_ONE_OF: ClassVar[tuple[str, ...]] = ("audio", "vision")
    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "wo_decoder": {"decoder_type": "linear"},
        "wo_prompt": {"language_prompt": False},
        "wo_ubpf": {"ubpf": False},
        "wo_global_loss": {"w_global": 0.0},
        "wo_mask_loss": {"w_mask": 0.0},
        "wo_reconstruction_losses": {"w_mask": 0.0, "w_global": 0.0},
        **{
            f"weights_{mask}_{everywhere}": {"w_mask": mask, "w_global": everywhere}
            for mask, everywhere in _WEIGHT_PAIRS
        },
        "text_mask_feature": {"text_mask_level": "feature"},
        "reconstruct_audio_vision": {"reconstruct_modalities": ["audio", "vision"]},
        "mask_loss_sum": {"mask_loss_reduction": "sum"},
        "pool_separate": {"pooling": "separate"},
    }

    hidden_size: int = 128
    num_attention_heads: int = 8
    encoder_feedforward_dim: int = 512
    decoder_feedforward_dim: int = 256
    dropout: float | int = 0.1
    num_prompts: int = 8
    prompt_init_std: float | int = 1.0

    text_mask_level: Literal["input", "feature"] = "input"
    decoder_type: Literal["transformer", "linear"] = "transformer"
    language_prompt: bool = True
    ubpf: bool = True
    pooling: Literal["joint", "separate"] = "joint"
    reconstruct_modalities: list[str] = field(default_factory=lambda: list(MODALITIES))
    mask_loss_reduction: Literal["mean", "sum"] = "mean"
    drop_decoder: bool = False

    w_task: float | int = 1.0
    w_mask: float | int = 0.05
    w_global: float | int = 0.05

    @property
    def oracle_inputs(self) -> tuple[str, ...]:
        """The complete text where masking is only at feature level, nothing otherwise."""
        return ("complete_input_ids", "complete_attention_mask") if self.text_mask_level == "feature" else ()

    @property
    def reconstructed(self) -> tuple[str, ...]:
        """The modalities that the model has a decoder for."""
        if self.drop_decoder or not (self.w_mask or self.w_global):
            return ()
        return tuple(name for name in self.modalities if name in self.reconstruct_modalities)

    def validate_pglh(self) -> None:
        """Check sizes, rates, weights and names."""
        self.check_numbers(
            "hidden_size",
            "num_attention_heads",
            "encoder_feedforward_dim",
            "decoder_feedforward_dim",
            "num_prompts",
            at_least=1,
        )
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size must be even and a multiple of num_attention_heads={self.num_attention_heads}, got "
                f"{self.hidden_size}."
            )
        self.check_numbers("dropout", at_least=0, below=1)
        self.check_numbers("prompt_init_std", above=0)
        self.check_numbers("w_task", "w_mask", "w_global", at_least=0)
        if not self.reconstruct_modalities or not set(self.reconstruct_modalities) <= set(MODALITIES):
            raise ValueError(
                f"reconstruct_modalities must name some of {', '.join(MODALITIES)}, got {self.reconstruct_modalities}; "
                "to reconstruct nothing set w_mask and w_global to 0."
            )
