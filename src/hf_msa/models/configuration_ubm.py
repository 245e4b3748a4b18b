"""Configuration of the UBM."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_msa import MsaConfig
from .msa_schema import SENTIMENT_CLASSES


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
        uncertainty_kind: What `uncertainty` is. `"entropy"`: of the class probabilities, in nats (eq. 7).
            `"prediction_truth"`: the error that a head of its own expects. `"ensemble"`: variance of several regression
            heads, each trained on a part of the rows. `"score"`: minus the size of the score, which needs nothing (ours).
        ensemble_size (`int`): Heads of the ensemble (ours: 5).
        ensemble_fraction (`float`): Share of the training rows that each of them sees (ours: 0.8).
        temperature (`float`): Divides the class logits before the entropy; 1 is the paper's.
        calibrate_temperature (`bool`): Fit the temperature on the validation split when training has ended (ours).
    """

    model_type = "hf_msa_ubm"

    NEEDS_ONE_OF: ClassVar[tuple[str, ...]] = ("audio", "vision")
    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "prediction_truth": {"uncertainty_kind": "prediction_truth"},
        "ensemble": {"uncertainty_kind": "ensemble"},
        "score": {"uncertainty_kind": "score"},
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

    uncertainty_kind: Literal["entropy", "prediction_truth", "ensemble", "score"] = "entropy"
    ensemble_size: int = 5
    ensemble_fraction: float | int = 0.8
    temperature: float | int = 1.0
    calibrate_temperature: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Negative, neutral and positive."""
        return SENTIMENT_CLASSES

    def validate_ubm(self) -> None:
        """Check sizes, dropouts, and what belongs to the chosen uncertainty."""
        sizes = (f"{name}_{size}" for name in ("audio", "vision") for size in ("hidden_size", "output_size"))
        self.check_numbers(*sizes, "fusion_dim", "head_dim", at_least=1)
        self.check_numbers("encoder_dropout", "fusion_dropout", at_least=0, below=1)
        self.check_numbers("ensemble_size", at_least=2)
        self.check_numbers("ensemble_fraction", above=0, at_most=1)
        self.check_numbers("temperature", above=0)
        if self.uncertainty_kind != "entropy" and (self.calibrate_temperature or self.temperature != 1):
            raise ValueError(
                f"A temperature changes the entropy alone, but uncertainty_kind is {self.uncertainty_kind!r}; leave "
                'temperature and calibrate_temperature as they are, or set uncertainty_kind to "entropy".'
            )
