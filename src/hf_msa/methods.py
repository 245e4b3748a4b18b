"""The methods of hf_msa: what belongs to each, and how others are added."""

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

from .errors import MsaError
from .models.configuration_cmc import CmcConfig
from .models.configuration_late_fusion import LateFusionConfig
from .models.configuration_msa import MsaConfig
from .models.configuration_omg import OmgConfig
from .models.configuration_pglh import PglhConfig
from .models.configuration_ridge import RidgeConfig
from .models.configuration_tcmr import TcmrConfig
from .models.configuration_text import TextConfig
from .models.configuration_uacs import UacsConfig
from .models.configuration_ubm import UbmConfig
from .models.feature_extraction_msa import MsaFeatureExtractor
from .models.modeling_cmc import CmcForSentimentAnalysis
from .models.modeling_late_fusion import LateFusionForSentimentAnalysis
from .models.modeling_msa import MsaPreTrainedModel
from .models.modeling_omg import OmgForSentimentAnalysis
from .models.modeling_pglh import PglhForSentimentAnalysis
from .models.modeling_ridge import RidgeForSentimentAnalysis
from .models.modeling_tcmr import TcmrForSentimentAnalysis
from .models.modeling_text import TextForSentimentAnalysis
from .models.modeling_uacs import UacsForSentimentAnalysis
from .models.modeling_ubm import UbmForSentimentAnalysis
from .models.processing_msa import MsaProcessor
from .registry import Registry

_PACKAGE = Path(__file__).parent
MODEL_TYPE_PREFIX = "hf_msa_"


def cards_folder() -> Path:
    """Where template and facts of model cards lie: inside an installed package, else at the top of the repository."""
    installed = _PACKAGE / "model_cards"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "model_cards"


@dataclass(frozen=True)
class Stages:
    """How a method is trained; what its module `Method.training` has to offer, in capitals there.

    Args:
        names: `STAGES`, the names of all stages, as recipes may give training arguments for them.
        final: `FINAL_STAGE`, the one whose checkpoint and selection the run stands for; flags on epochs, rates and the
            optimiser concern it alone.
        rate_free: `RATE_FREE_STAGES`, those in which the missing-data protocols have no part, so that `--train-rate match`
            runs them once per seed; none unless the module says so.
        shared: `SHARED_STAGES`, those that runs share where they were made of the same things, see `SharedStages`; none
            unless the module says so.
        kept: `KEPT`, patterns of what stays in the folder of stages when a run is finished, e.g. `"polarity/model/*"`,
            because analyses read it; none unless the module says so.
        lora: `LORA_STAGES`, those that train an adapter of a language model, whose arguments are `LoraTrainingArguments`;
            none unless the module says so.
        of: `stages_of(config)`, those that a run with this configuration has, in order; all of `names` unless the module has
            that function.
        run: `run(context)`, which runs all stages by `RunContext.train_stage` and its like, and returns the model. None: one
            call of `train_stage`.
    """

    names: tuple[str, ...] = ("main",)
    final: str = "main"
    rate_free: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    of: Callable[[Any], tuple[str, ...]] | None = None
    run: Callable[[Any], MsaPreTrainedModel] | None = None


@dataclass(frozen=True)
class Method:
    """What belongs to a method.

    Args:
        name: The key, as in `hf-msa train <name>/<dataset>`.
        title: One line for people.
        config_class: The configuration class.
        model_class: The model class that predicts a sentiment score.
        training: Dotted name of the module that trains it, see `Stages`; None: one stage, `main`, under the recipe's
            protocols.
        recipes: Folder of its recipes, `<dataset>.yaml`.
        card: YAML file with what its model cards say.
    """

    name: str
    title: str
    config_class: type[MsaConfig]
    model_class: type[MsaPreTrainedModel]
    training: str | None
    recipes: Path
    card: Path

    @property
    def stages(self) -> Stages:
        """How it is trained; the module is imported when this is first asked for."""
        if self.training is None:
            return Stages()
        module = importlib.import_module(self.training)
        rate_free, kept = getattr(module, "RATE_FREE_STAGES", ()), getattr(module, "KEPT", ())
        lora = getattr(module, "LORA_STAGES", ())
        shared = getattr(module, "SHARED_STAGES", ())
        of = getattr(module, "stages_of", None)
        return Stages(tuple(module.STAGES), module.FINAL_STAGE, rate_free, shared, kept, lora, of, module.run)

    def recipe_names(self) -> list[str]:
        """Names of its recipes, `<method>/<dataset>`."""
        return sorted(f"{self.name}/{file.stem}" for file in self.recipes.glob("*.yaml"))


METHODS: Registry[Method] = Registry("method", "hf_msa.methods")


def register_method(
    name: str,
    *,
    title: str,
    config: type[MsaConfig],
    model: type[MsaPreTrainedModel],
    recipes: str | Path,
    card: str | Path,
    training: str | None = None,
) -> Method:
    """Add a method: it can then be trained, evaluated, pushed and loaded like those that come with hf_msa.

    Args:
        name: The key, as in `hf-msa train <name>/<dataset>`.
        title: One line for people.
        config: The configuration: a subclass of `MsaConfig` under `@strict` whose `model_type` is `"hf_msa_<name>"`.
        model: The model that predicts: a subclass of `MsaPreTrainedModel` with that configuration.
        recipes: Folder of its recipes, `<dataset>.yaml`.
        card: YAML file with what its model cards say.
        training: Dotted name of the module that trains it, see `Stages`; None: one stage, `main`, under the recipe's
            protocols.

    Raises:
        MsaError: If the name will not do or is taken, or a part is not what it has to be.

    Example:
        ```python
        from huggingface_hub.dataclasses import strict
        from hf_msa import METHODS, TextConfig, TextForSentimentAnalysis, register_method


        @strict
        class PlainConfig(TextConfig):
            model_type = "hf_msa_plain"


        class PlainForSentimentAnalysis(TextForSentimentAnalysis):
            config: PlainConfig


        text = METHODS["text"]  # whose recipes and card serve as an example
        register_method(
            "plain",
            title="text, once more",
            config=PlainConfig,
            model=PlainForSentimentAnalysis,
            recipes=text.recipes,
            card=text.card,
        )
        ```
    """
    _check_configuration(name, config)
    if model.config_class is not config or model.compute is MsaPreTrainedModel.compute:
        raise MsaError(
            f"{model.__name__} cannot be the model of {name!r}; annotate its config with {config.__name__} and implement "
            "compute."
        )
    for path, there in ((Path(recipes), Path(recipes).is_dir()), (Path(card), Path(card).is_file())):
        if not there:
            raise MsaError(
                f"The method {name!r} names {str(path)!r}, which is not there; give its recipes and its card."
            )
    method = METHODS.register(name, Method(name, title, config, model, training, Path(recipes), Path(card)))
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForSequenceClassification.register(config, model, exist_ok=True)
    AutoFeatureExtractor.register(config, MsaFeatureExtractor, exist_ok=True)
    AutoProcessor.register(config, MsaProcessor, exist_ok=True)
    return method


def _check_configuration(name: str, config: type[MsaConfig]) -> None:
    """Check what the library does not say, or says hours later."""
    if config.model_type != MODEL_TYPE_PREFIX + str(name):
        raise MsaError(
            f"The model_type of {config.__name__} is {config.model_type!r}; for the method {name!r} it has to be "
            f"{MODEL_TYPE_PREFIX + str(name)!r}."
        )
    if "__validators__" not in config.__dict__:
        raise MsaError(f"{config.__name__} lacks @strict, so values of a wrong type would be taken; decorate it.")
    own = {field.name: field.type for field in dataclasses.fields(config)}
    for field in dataclasses.fields(MsaConfig):
        own.pop(field.name, None)
    for field_name, kind in own.items():
        if kind in (float, "float"):
            raise MsaError(
                f"The field {field_name!r} of {config.__name__} is a float, which refuses 1 for 1.0; annotate it with "
                "float | int."
            )


_BUILT_IN: tuple[tuple[str, str, Any, Any, str | None], ...] = (
    (
        "text",
        "text encoder, mean pooling, linear head: the plain baseline",
        TextConfig,
        TextForSentimentAnalysis,
        None,
    ),
    (
        "ridge",
        "a linear map of a text vector and time means, fitted in closed form; without modalities the best constant",
        RidgeConfig,
        RidgeForSentimentAnalysis,
        "hf_msa.training.ridge",
    ),
    (
        "late_fusion",
        "a head for each modality, their scores averaged, trained with modality dropout",
        LateFusionConfig,
        LateFusionForSentimentAnalysis,
        None,
    ),
    (
        "tcmr",
        "text confidence decides how much of the text to rebuild from audio and vision",
        TcmrConfig,
        TcmrForSentimentAnalysis,
        "hf_msa.training.tcmr",
    ),
    (
        "pglh",
        "encodes what is visible, learns to rebuild the rest, fuses by prompts that text guides",
        PglhConfig,
        PglhForSentimentAnalysis,
        "hf_msa.training.pglh",
    ),
    (
        "cmc",
        "an expert for each modality, trained on labels of its own, weighed by a router",
        CmcConfig,
        CmcForSentimentAnalysis,
        "hf_msa.training.cmc.stages",
    ),
    (
        "ubm",
        "small, with an uncertainty beside its score: the first stage of U-ACS, useful alone",
        UbmConfig,
        UbmForSentimentAnalysis,
        "hf_msa.training.ubm",
    ),
    (
        "uacs",
        "a small model that hands what it is unsure of to a multimodal language model",
        UacsConfig,
        UacsForSentimentAnalysis,
        "hf_msa.training.uacs.stages",
    ),
    (
        "omg",
        "plans what a missing modality says, retrieves evidence of it, and generates it by diffusion",
        OmgConfig,
        OmgForSentimentAnalysis,
        "hf_msa.training.omg.stages",
    ),
)
for _name, _title, _config, _model, _training in _BUILT_IN:
    register_method(
        _name,
        title=_title,
        config=_config,
        model=_model,
        recipes=_PACKAGE / "recipes" / _name,
        card=cards_folder() / f"{_name}.yaml",
        training=_training,
    )
