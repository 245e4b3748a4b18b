"""Configuration of the UBM."""

from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_msa import MsaConfig
from .msa_schema import SENTIMENT_CLASSES

UNCERTAINTIES = (
    "entropy",
    "score",
    "prediction_truth",
    "members",
    "heads",
    "mc_dropout",
    "modality_disagreement",
    "learned_error",
    "conformal",
)
"""Kinds of uncertainty, see `UbmConfig`."""


@strict
class UbmConfig(MsaConfig):
    r"""UBM: the uncertainty-aware baseline model, the small model of the cascade U-ACS.

    Paper: "Uncertainty-Aware Collaborative System of Large and Small Models for Multimodal Sentiment Analysis", arXiv
    2509.04459 v1. Sources: B = its appendix B, Self-MM = the public code of the model that it was made from, ours =
    neither says. Recipes set what differs by data set.

    Architecture:
        audio_hidden_size, vision_hidden_size (`int`): Width of the LSTMs (B; default: MOSI's).
        audio_output_size, vision_output_size (`int`): Width of what an LSTM gives to the fusion (B: 16 and 32).
        encoder_dropout (`float`): Dropout on the LSTMs' final states (Self-MM: 0).
        fusion_dim (`int`): Width of the fused vector (B: 128).
        fusion_dropout (`float`): Dropout on it (Self-MM; default: MOSI's).
        head_dim (`int`): Inner width of the heads (Self-MM's regression head: 128; the others: ours).

    Uncertainty:
        uncertainty_kind: What `uncertainty` is; the score stays that of the one network.
            `"entropy"`: of the class probabilities, in nats (eq. 7). `"score"`: minus the size of the score, which needs
            nothing (ours). `"prediction_truth"`: the error that a head of its own expects (the paper's alternative).
            `"members"`: variance of the scores of several networks that are trained apart, each on a part of the rows (the
            paper's ensemble). `"heads"`: the cheap variant of it, regression heads on one trunk (ours).
            `"mc_dropout"`: variance of the scores of the same network, thinned by dropout in several ways (ours).
            `"modality_disagreement"`: variance of the scores of heads that see one modality each (ours).
            `"learned_error"`: the absolute error that a ridge regression expects, fitted on the validation split (ours).
            `"conformal"`: half of the width of the interval that holds the label with probability `conformal_coverage`, as
            split conformal prediction makes it on the validation split, in proportion to that expected error (ours).
        uncertainty_candidates (`list[str]`): Kinds that training prepares beside it, so that one can be chosen for it
            afterwards (ours).
        ensemble_size (`int`): Number of members or heads (ours: 5).
        ensemble_fraction (`float`): Share of the training rows that each of them sees (ours: 0.8).
        dropout_passes (`int`): Thinned networks (ours).
        dropout_seed (`int`): Of what they lack.
        conformal_coverage (`float`): See above.
        conformal_fit (`dict`, *optional*): `quantile`: the half width in units of the expected error, and `coverage`: the
            share of the validation split for which it was found; set when training has ended.
        temperature (`float`): Divides the class logits before the entropy; 1 is the paper's.
        calibrate_temperature (`bool`): Fit the temperature on the validation split when training has ended (ours).

    Example:
        ```python
        from hf_msa import UbmConfig

        UbmConfig(audio_dim=5, vision_dim=20, uncertainty_kind="heads")
        ```
    """

    model_type = "hf_msa_ubm"

    NEEDS_ONE_OF: ClassVar[tuple[str, ...]] = ("audio", "vision")
    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {
        **{kind: {"uncertainty_kind": kind} for kind in ("prediction_truth", "members", "heads", "score")},
        "calibrated": {"calibrate_temperature": True},
    }

    audio_hidden_size: int = 32
    vision_hidden_size: int = 64
    audio_output_size: int = 16
    vision_output_size: int = 32
    encoder_dropout: float | int = 0.0
    fusion_dim: int = 128
    fusion_dropout: float | int = 0.1
    head_dim: int = 128

    # "ensemble" is what earlier versions called "heads".
    uncertainty_kind: Literal[
        "entropy",
        "score",
        "prediction_truth",
        "members",
        "heads",
        "mc_dropout",
        "modality_disagreement",
        "learned_error",
        "conformal",
        "ensemble",
    ] = "entropy"
    uncertainty_candidates: list[str] = field(default_factory=list)
    ensemble_size: int = 5
    ensemble_fraction: float | int = 0.8
    dropout_passes: int = 20
    dropout_seed: int = 0
    conformal_coverage: float | int = 0.9
    conformal_fit: dict[str, float] | None = None
    temperature: float | int = 1.0
    calibrate_temperature: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Call things by their present names."""
        if self.uncertainty_kind == "ensemble":
            self.uncertainty_kind = "heads"
        super().__post_init__(**kwargs)

    @property
    def uncertainties(self) -> frozenset[str]:
        """Kinds of uncertainty that training prepares: what is given and what can be given instead."""
        return frozenset({self.uncertainty_kind, *self.uncertainty_candidates})

    @property
    def fits_errors(self) -> bool:
        """Whether the error to be expected is fitted on the validation split when training has ended."""
        return not self.uncertainties.isdisjoint(("learned_error", "conformal"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Negative, neutral and positive."""
        return SENTIMENT_CLASSES

    def validate_ubm(self) -> None:
        """Check sizes, dropouts, and what belongs to the chosen uncertainty."""
        sizes = (f"{name}_{size}" for name in ("audio", "vision") for size in ("hidden_size", "output_size"))
        self.check_numbers(*sizes, "fusion_dim", "head_dim", at_least=1)
        self.check_numbers("encoder_dropout", "fusion_dropout", at_least=0, below=1)
        self.check_numbers("ensemble_size", "dropout_passes", at_least=2)
        self.check_numbers("dropout_seed", at_least=0)
        self.check_numbers("conformal_coverage", above=0, below=1)
        if self.conformal_fit is not None and self.conformal_fit.keys() != {"coverage", "quantile"}:
            raise ValueError(
                f"conformal_fit is {self.conformal_fit}, but has to hold coverage and quantile; leave it out, as "
                "training sets it."
            )
        self.check_numbers("ensemble_fraction", above=0, at_most=1)
        self.check_numbers("temperature", above=0)
        unknown = next((kind for kind in self.uncertainty_candidates if kind not in UNCERTAINTIES), None)
        if unknown is not None:
            raise ValueError(
                f"uncertainty_candidates has {unknown!r}, but the kinds are {', '.join(UNCERTAINTIES)}; choose among them."
            )
        if self.uncertainty_kind != "entropy" and (self.calibrate_temperature or self.temperature != 1):
            raise ValueError(
                f"A temperature changes the entropy alone, but uncertainty_kind is {self.uncertainty_kind!r}; leave "
                'temperature and calibrate_temperature as they are, or set uncertainty_kind to "entropy".'
            )
