"""The methods of hf_msa, one line each, and their registration with the Auto classes."""

import importlib
from dataclasses import dataclass

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

from .configuration_msa import MsaConfig
from .feature_extraction_msa import MsaFeatureExtractor
from .modeling_msa import MsaPreTrainedModel
from .processing_msa import MsaProcessor


@dataclass(frozen=True)
class Method:
    """Where a method's classes are.

    Args:
        name: The key, as in `hf-msa train <name>/<dataset>` and in the file names.
        prefix: What its class names begin with.
        title: One line for people.
    """

    name: str
    prefix: str
    title: str

    @property
    def config_class(self) -> type[MsaConfig]:
        """The configuration class."""
        module = importlib.import_module(f"{__package__}.configuration_{self.name}")
        config_class: type[MsaConfig] = getattr(module, f"{self.prefix}Config")
        return config_class

    @property
    def model_class(self) -> type[MsaPreTrainedModel]:
        """The model class that predicts a sentiment score."""
        module = importlib.import_module(f"{__package__}.modeling_{self.name}")
        model_class: type[MsaPreTrainedModel] = getattr(module, f"{self.prefix}ForSentimentAnalysis")
        return model_class


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("text", "Text", "text encoder, mean pooling, linear head: the plain baseline"),
        Method("tcmr", "Tcmr", "text confidence decides how much of the text to rebuild from audio and vision"),
        Method(
            "pglh", "Pglh", "encodes what is visible, learns to rebuild the rest, fuses by prompts that text guides"
        ),
        Method("cmc", "Cmc", "an expert for each modality, trained on labels of its own, weighed by a router"),
        Method("ubm", "Ubm", "small, with an uncertainty beside its score: the first stage of U-ACS, useful alone"),
        Method("uacs", "Uacs", "a small model that hands what it is unsure of to a multimodal language model"),
        Method(
            "omg", "Omg", "plans what a missing modality says, retrieves evidence of it, and generates it by diffusion"
        ),
    )
}


def register() -> None:
    """Register every method with `AutoConfig`, `AutoModel`, `AutoModelForSequenceClassification` and `AutoProcessor`."""
    for method in METHODS.values():
        config_class, model_class = method.config_class, method.model_class
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoModelForSequenceClassification.register(config_class, model_class, exist_ok=True)
        AutoFeatureExtractor.register(config_class, MsaFeatureExtractor, exist_ok=True)
        AutoProcessor.register(config_class, MsaProcessor, exist_ok=True)
