"""Configuration of the text-only baseline."""

from huggingface_hub.dataclasses import strict

from .configuration_msa import MsaConfig


@strict
class TextConfig(MsaConfig):
    r"""Text encoder, masked mean pooling, linear head: the row that every method should beat.

    Args:
        classifier_dropout (`float`): Dropout on the pooled text.

    Example:
        ```python
        from hf_msa import TextConfig

        TextConfig(label_family="sims").label_range  # (-1.0, 1.0)
        ```
    """

    model_type = "hf_msa_text"

    READS = ("text",)

    classifier_dropout: float | int = 0.0
