"""Configuration of CMC."""

from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_msa import MsaConfig
from .msa_schema import SENTIMENT_CLASSES


@strict
class CmcConfig(MsaConfig):
    r"""CMC: calibrated multimodal consensus, for modalities that contradict each other.

    Paper: "Calibrating Multimodal Consensus for Emotion Recognition", arXiv 2510.20256. Its values come from the public
    code (gw-zhong/CMC), "grid" = chosen there for each data set, whose values are in the recipes; ours = neither says.
    `mask_padding=False` is the public code: padded positions count in attention, in the mean and in batch-norm statistics.

    Architecture:
        embed_dim (`int`): Width of the modalities' vectors (public: 32).
        encoder_layers (`int`): Layers of each modality's Transformer (grid; default: MOSI's).
        num_attention_heads (`int`): Heads of each Transformer (grid; default: MOSI's).
        feedforward_dim (`int`): Width inside the feed-forwards (public: four times `embed_dim`), and of the hidden layer of
            a router that reads rows.
        encoder_dropout (`float`): Dropout in the Transformers (public: torch's default).
        head_dropout (`float`): Dropout in the classifiers (grid; default: MOSI's).
        fusion_temperature (`float`): Temperature of the fusion by cosine (public: 0.07).
        top_k (`int`): How many experts the router weighs, the rest get weight 0 (public: 3, all of them).

    Losses:
        supcon_temperature (`float`): Temperature of the supervised contrastive loss (public: 0.07).
        supcon_weight (`float`): Its weight beside cross entropies of weight 1 (public: 1); 0 leaves it out.
        supcon_variant: `"log_sum"`: log of the positives' summed share (public). `"khosla"`: mean of their log shares, as
            the loss is widely known.

    Variants:
        pfm: How the vectors of the modalities are mixed before the experts. `"cosine"`: without parameters (public).
            `"none"`: not at all. `"attention"`: learned self-attention of one head over the modalities (ours).
            `"concat"`: a learned linear map from all vectors to all (ours).
        mcr: How the experts' logits are weighed. `"router"`: by a learned map of the mixed vectors (public). `"mean"`:
            evenly. `"static"`: by learned constants, the same for every sample (ours).
        router_input: What the router reads. `"sum"`: the sum of the mixed vectors, by a linear map (public). Its logits are
            then a sum of one term for each modality, and whether modalities contradict each other is no such sum: whatever
            text adds for or against audio, it adds whatever audio says. So the published router can hardly see that a
            modality lies, and the fusion by cosine hardly changes that, as it leaves the sum nearly as it was. `"rows"`:
            all mixed vectors side by side, by a hidden layer of ReLUs (ours), which can.
        plgm (`bool`): Whether unimodal labels are found by pseudo labelling, else they are the multimodal ones.
        pretrain (`bool`): Whether the second stage starts from the unimodal models of the first.
        labels_source: Unimodal labels. `"pseudo"`: see `plgm`. `"gt"`: those of the data set (CMC-GT).

    Pseudo labels and averaged teachers, by modality; the momentum of epoch e is 1 - (1 - momentum) / e**gamma:
        label_momentum (`dict[str, float]`): Of the soft labels in the first epoch (public). At 0.99 the hard labels of
            audio and vision cannot change within 100 epochs; `m0_av_0.8` lets them.
        label_gamma (`float`): How fast that momentum grows (public: 0.5).
        ema_momentum (`dict[str, float]`): Of the averaged weights in the first epoch (public). With `ema_gamma` the audio
            teacher hardly moves after it: at CH-SIMS' 22 steps an epoch, 92 % of it stays what it was after the first epoch,
            however long training goes on.
        ema_gamma (`dict[str, float]`): How fast that momentum grows (public).
        reference_quirks (`bool`): Train as the public code does where it does not do what it says: the last epoch in
            place of the best one, averaged models with fresh batch-norm statistics, dropout in the frozen text encoder, and
            unimodal models chosen by pseudo labels that move along, so that they are measured by their own opinion. Off:
            they are chosen by the labels that the pseudo labels began with.

    Example:
        ```python
        from hf_msa import CmcConfig

        config = CmcConfig(audio_dim=5, vision_dim=20, mcr="mean")
        config.modalities  # ("text", "audio", "vision")
        ```
    """

    model_type = "hf_msa_cmc"

    NEEDS_ONE_OF: ClassVar[tuple[str, ...]] = ("audio", "vision")
    NORMALISES_FEATURES: ClassVar[bool] = True
    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "wo_plgm": {"plgm": False},
        "wo_pfm": {"pfm": "none"},
        "pfm_attention": {"pfm": "attention"},
        "pfm_concat": {"pfm": "concat"},
        "wo_mcr": {"mcr": "mean"},
        "router_rows": {"router_input": "rows"},
        "mcr_static": {"mcr": "static"},
        "mean_fusion": {"mcr": "mean", "pfm": "none"},
        "wo_pretrain": {"pretrain": False},
        "wo_supcon": {"supcon_weight": 0.0},
        "gt": {"labels_source": "gt"},
        "top_k_1": {"top_k": 1},
        "top_k_2": {"top_k": 2},
        "supcon_weight_0.1": {"supcon_weight": 0.1},
        "supcon_weight_0.5": {"supcon_weight": 0.5},
        "embed_dim_128": {"embed_dim": 128, "feedforward_dim": 512},
        "embed_dim_256": {"embed_dim": 256, "feedforward_dim": 1024},
        "embed_dim_512": {"embed_dim": 512, "feedforward_dim": 2048},
        "m0_av_0.8": {"label_momentum": {"text": 0.8, "audio": 0.8, "vision": 0.8}},
        "quirks": {"reference_quirks": True},
    }

    embed_dim: int = 32
    encoder_layers: int = 2
    num_attention_heads: int = 4
    feedforward_dim: int = 128
    encoder_dropout: float | int = 0.1
    head_dropout: float | int = 0.5
    fusion_temperature: float | int = 0.07
    top_k: int = 3

    supcon_temperature: float | int = 0.07
    supcon_weight: float | int = 1.0
    supcon_variant: Literal["log_sum", "khosla"] = "log_sum"

    pfm: Literal["cosine", "none", "attention", "concat"] = "cosine"
    mcr: Literal["router", "mean", "static"] = "router"
    router_input: Literal["sum", "rows"] = "sum"
    plgm: bool = True
    pretrain: bool = True
    labels_source: Literal["pseudo", "gt"] = "pseudo"

    label_momentum: dict[str, float | int] = field(
        default_factory=lambda: {"text": 0.8, "audio": 0.99, "vision": 0.99}
    )
    label_gamma: float | int = 0.5
    ema_momentum: dict[str, float | int] = field(default_factory=lambda: {"text": 0.8, "audio": 0.9, "vision": 0.6})
    ema_gamma: dict[str, float | int] = field(default_factory=lambda: {"text": 2.5, "audio": 5.0, "vision": 2.0})
    reference_quirks: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Negative, neutral and positive: the model classifies, and the probabilities make the score."""
        return SENTIMENT_CLASSES

    def validate_cmc(self) -> None:
        """Check sizes, temperatures, weights and momenta."""
        self.check_numbers(
            "embed_dim", "encoder_layers", "num_attention_heads", "feedforward_dim", "top_k", at_least=1
        )
        if self.embed_dim % self.num_attention_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_attention_heads, got {self.embed_dim} and "
                f"{self.num_attention_heads}."
            )
        self.check_numbers("encoder_dropout", "head_dropout", at_least=0, below=1)
        self.check_numbers("fusion_temperature", "supcon_temperature", above=0)
        self.check_numbers("supcon_weight", "label_gamma", at_least=0)
        for name, highest in (("label_momentum", 1.0), ("ema_momentum", 1.0), ("ema_gamma", float("inf"))):
            given = getattr(self, name)
            for modality in self.modalities:
                if not 0 <= given.get(modality, -1) <= highest:
                    allowed = "from 0 to 1" if highest == 1 else "of at least 0"
                    raise ValueError(f"{name} needs for {modality} a number {allowed}, got {given.get(modality)}.")
