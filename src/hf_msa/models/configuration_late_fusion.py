"""Configuration of late fusion."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_msa import MsaConfig


@strict
class LateFusionConfig(MsaConfig):
    r"""A head for each modality, whose scores are averaged: the plainest model that reads all of them. Everything is ours.

    Args:
        hidden_size (`int`): Inner width of the heads of audio and vision.
        dropout (`float`): Dropout on the vector that a head reads.
        modality_dropout (`float`): Share of votes that training leaves out, each by itself; at least one stays.

    Example:
        ```python
        from hf_msa import LateFusionConfig

        LateFusionConfig(audio_dim=5, vision_dim=None).modalities  # ("text", "audio")
        ```
    """

    model_type = "hf_msa_late_fusion"

    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {"wo_modality_dropout": {"modality_dropout": 0.0}}

    hidden_size: int = 32
    dropout: float | int = 0.1
    modality_dropout: float | int = 0.3

    def validate_late_fusion(self) -> None:
        """Check sizes and dropouts."""
        self.check_numbers("hidden_size", at_least=1)
        self.check_numbers("dropout", "modality_dropout", at_least=0, below=1)
