"""Configuration of TCMR."""

from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_msa import MsaConfig

# Section 3.4 as written, with the reduction of LNLN: what configurations stand for that were saved without these fields.
_LITERAL = {"center_text": False, "start_from_regressor": False, "reconstruction_reduction": "mean"}


@strict
class TcmrConfig(MsaConfig):
    r"""TCMR: text confidence-aware missing semantic reconstruction.

    Paper: "TCMR: Text Confidence-aware Missing Semantic Reconstruction for Incomplete Multimodal Sentiment Analysis".
    Sources: T = a table of the paper, "eq." = its equation, LNLN = the public code of the model that it builds on,
    ours = neither says.

    Architecture:
        hidden_size (`int`): Width of all tokens behind the encoders (T4: 128).
        num_attention_heads (`int`): Heads of every Transformer but the text encoder (T4: 8).
        attention_head_dim (`int`): Width of a head (LNLN: 64; 16 would be hidden size by heads).
        feedforward_dim (`int`): Width inside the feed-forwards (LNLN: 128).
        num_tokens (`int`): Learned tokens that summarise a modality (T4: 8).
        encoder_layers (`int`): Layers of the text, audio and vision encoders (T4: 2).
        generator_layers (`int`): Layers of the audio-to-text and vision-to-text generators (T4: 2).
        refinement_layers (`int`): Layers of the text refinement, and steps of the fusion (T4: 2).
        cross_layers (`int`): Layers of the cross Transformer (T4: 2).
        reconstructor_layers (`int`): Layers of the audio and vision reconstructors (T4: 2).
        hyper_head_dim (`int`): Width of a head in the fusion steps (LNLN: 16).
        confnet_hidden (`list[int]`): Hidden widths of ConfNet between text width and 1 (T4: 768, 768, 1536, 768, 384).
        gate_hidden (`int`): Hidden width of GateNet (T4: 128).
        polarity_hidden (`int`): Hidden width of the polarity classifier (T4: 384).

    Variants:
        optimization: How confidence and the rest are trained (sections 3.7 and 5). `"aos"`: alternate, one pass each
            per epoch. `"confnet_first"`: text encoder and ConfNet, then the rest with both frozen. `"end2end"`: one
            loss (eq. 14). `"confnet_later"`: the rest with the target confidence in eq. 10, then ConfNet on the frozen
            text encoder.
        proxy: What stands in for text (section 3.4). `"gated"`: a generator per modality, weighted by GateNet
            (eq. 8, 9). `"lnln"`: one generator over all modalities, no gate. `"mean"`: generators with equal weights.
            `"none"`: nothing, so that confidence only scales the text.
        confidence_target: What ConfNet learns. `"tcp"`: the true-class probability (eq. 7). `"completeness"`: one
            minus the missing rate of the text.
        confidence_source: What eq. 10 uses. `"predicted"`: ConfNet's output. `"oracle"`: the true-class probability,
            for which true labels are needed also at test time (T6, TCMR-ub).
        detach_confidence (`bool`): Whether the losses of the second phase leave ConfNet, and the text encoder through
            it, alone (ours; section 3.7 speaks of decoupling).
        fusion_style: `"tcmr"`: section 3.5. `"lnln"`: see `HyperFusion` (LNLN).
        target_norm: `"layernorm"` normalises the complete-text features before they serve as a target (ours, off).
        center_text (`bool`): Whether H_t, H_p and the target of eq. 11 are taken as deviations from the mean of the target
            over the training rows, position by position (`text_mean`; ours). Nearly all of H_t^c is the same for every
            text, so without it eq. 11 is about a constant. False: as printed.
        start_from_regressor (`bool`): Whether the text encoder (T4) starts from that of the text regressor, and the
            learned tokens of the generators with their positions from its own (ours): positions are drawn from N(0, 1),
            and the target comes with the regressor's. False: everything is drawn anew.
        reconstruction_reduction: How eq. 11 is reduced. `"variance"`: mean over all elements in units of the variance that
            the target has over the training rows around its mean per position, so that giving that mean costs 1 whatever
            the width is (ours: the plain mean hardly reaches the text encoder). `"mean"`: mean over all elements (LNLN).
            `"sum"`: the squared norm of each sample, as eq. 11 and 13 are printed. Eq. 13 is a mean unless it is `"sum"`.

    Loss weights (T1; eq. 14):
        w_conf, w_rec_text, w_rec_aux, w_task (`float`): Of confidence, text reconstruction, audio and vision
            reconstruction, and the sentiment score.
        w_rec_proxy (`float`): Of the error of the proxy by itself against the target of eq. 11 (ours; 0 = as published).
            Eq. 11 reaches the generators by way of the mixture alone, by one minus the confidence and for what the text
            leaves over.

    Example:
        ```python
        from hf_msa import TcmrConfig

        config = TcmrConfig(audio_dim=5, vision_dim=20, num_tokens=4)
        config.modalities  # ("text", "audio", "vision")
        ```
    """

    model_type = "hf_msa_tcmr"

    NEEDS_ONE_OF: ClassVar[tuple[str, ...]] = ("audio", "vision")
    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "confnet_first": {"optimization": "confnet_first"},
        "end2end": {"optimization": "end2end"},
        "confnet_later": {"optimization": "confnet_later"},
        "wo_ipfg": {"proxy": "lnln"},
        "wo_tce": {"confidence_target": "completeness"},
        "ub": {"confidence_source": "oracle"},
        "proxy_mean": {"proxy": "mean"},
        "proxy_none": {"proxy": "none"},
        "proxy_taught": {"w_rec_proxy": 0.8},
        "uncentred": {"center_text": False},
        "random_start": {"start_from_regressor": False},
        "rec_mean": {"reconstruction_reduction": "mean"},
        "rec_sum": {"reconstruction_reduction": "sum"},
        "literal": _LITERAL,
    }

    hidden_size: int = 128
    num_attention_heads: int = 8
    attention_head_dim: int = 64
    feedforward_dim: int = 128
    num_tokens: int = 8
    encoder_layers: int = 2
    generator_layers: int = 2
    refinement_layers: int = 2
    cross_layers: int = 2
    reconstructor_layers: int = 2
    hyper_head_dim: int = 16
    confnet_hidden: list[int] = field(default_factory=lambda: [768, 768, 1536, 768, 384])
    gate_hidden: int = 128
    polarity_hidden: int = 384

    optimization: Literal["aos", "confnet_first", "end2end", "confnet_later"] = "aos"
    proxy: Literal["gated", "lnln", "mean", "none"] = "gated"
    confidence_target: Literal["tcp", "completeness"] = "tcp"
    confidence_source: Literal["predicted", "oracle"] = "predicted"
    detach_confidence: bool = True
    fusion_style: Literal["tcmr", "lnln"] = "tcmr"
    target_norm: Literal["none", "layernorm"] = "none"
    center_text: bool = True
    start_from_regressor: bool = True
    reconstruction_reduction: Literal["variance", "mean", "sum"] = "variance"

    w_conf: float | int = 0.1
    w_rec_text: float | int = 0.8
    w_rec_aux: float | int = 0.1
    w_task: float | int = 1.0
    w_rec_proxy: float | int = 0.0

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration of stored values; those that an earlier version saved stay what they were."""
        # Which says that they were saved: what a caller writes has today's defaults.
        earlier = _LITERAL if "transformers_version" in config_dict else {}
        return super().from_dict({**earlier, **config_dict}, **kwargs)

    @property
    def oracle_inputs(self) -> tuple[str, ...]:
        """The true labels for the upper bound (TCMR-ub), nothing otherwise."""
        return ("labels",) if self.confidence_source == "oracle" else ()

    def validate_tcmr(self) -> None:
        """Check sizes, weights, and that the variants go together."""
        self.check_numbers(
            "hidden_size",
            "num_attention_heads",
            "attention_head_dim",
            "feedforward_dim",
            "num_tokens",
            "encoder_layers",
            "generator_layers",
            "refinement_layers",
            "cross_layers",
            "reconstructor_layers",
            "hyper_head_dim",
            "gate_hidden",
            "polarity_hidden",
            at_least=1,
        )
        if any(width < 1 for width in self.confnet_hidden):
            raise ValueError(f"confnet_hidden must hold widths of at least 1, got {self.confnet_hidden}.")
        self.check_numbers("w_conf", "w_rec_text", "w_rec_aux", "w_task", "w_rec_proxy", at_least=0)
        if self.w_rec_proxy and self.proxy == "none":
            raise ValueError("w_rec_proxy weighs the error of a proxy, but proxy is 'none'; set w_rec_proxy to 0.")
        if self.is_oracle and self.confidence_target != "tcp":
            raise ValueError(
                "confidence_source='oracle' stands for the true-class probability and needs confidence_target='tcp', "
                f"got {self.confidence_target!r}."
            )
