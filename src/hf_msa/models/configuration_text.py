"""Configuration of the text-only baseline."""

from huggingface_hub.dataclasses import strict

from .configuration_msa import MsaConfig


@strict
class TextConfig(MsaConfig):
    r"""Text encoder, masked mean pooling, linear head: the row that every method should beat.

    Args:
        classifier_dropout (`float`): Dropout on the pooled text.
    """

    model_type = "hf_msa_text"

    READS = ("text",)

    classifier_dropout: float | int = 0.0
