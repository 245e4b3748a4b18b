"""Configuration of the ridge probe."""

from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_msa import MsaConfig
from .msa_schema import MODALITIES


@strict
class RidgeConfig(MsaConfig):
    r"""Ridge regression on a text vector and the time means of audio and vision: what a linear map finds without training.

    The text encoder stays as it was pretrained. There is no paper; everything is ours.

    Args:
        probed (`list[str]`): Modalities that are read, as far as the data has them. None of them: the median of the training
            labels, the constant of the least absolute error.
        text_vector (`str`): `"states"`: mean state of the text encoder over the observed tokens. `"words"`: how often each
            token of the vocabulary was observed, for vocabularies of some thousands at most.
        penalties (`list[float]`): Weights of the squared coefficients, of standardised columns, of which validation chooses.

    Example:
        ```python
        from hf_msa import RidgeConfig

        RidgeConfig(probed=["text"]).probed
        ```
    """

    model_type = "hf_msa_ridge"

    ABLATIONS: ClassVar[dict[str, dict[str, Any]]] = {
        "constant": {"probed": []},
        **{name: {"probed": [name]} for name in MODALITIES},
    }

    probed: list[str] | tuple[str, ...] = MODALITIES
    text_vector: Literal["states", "words"] = "states"
    penalties: list[float | int] = field(default_factory=lambda: [10.0**power for power in range(-1, 7)])

    @property
    def probed_modalities(self) -> tuple[str, ...]:
        """Modalities that are read, text first."""
        return tuple(name for name in self.modalities if name in self.probed)

    def validate_ridge(self) -> None:
        """Check names and penalties."""
        unknown = next((name for name in self.probed if name not in MODALITIES), None)
        if unknown is not None:
            raise ValueError(f"probed has {unknown!r}; the modalities are {', '.join(MODALITIES)}.")
        if self.probed and not self.probed_modalities:
            raise ValueError(
                f"The data has no {' or '.join(self.probed)} to probe; it has {', '.join(self.modalities)}."
            )
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties is {self.penalties}; give at least one, all above 0.")
