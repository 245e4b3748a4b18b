"""Stages of methods that ask a language model: checks before training, statistics for words, arguments of an adapter."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import AutoConfig

from hf_msa.errors import MsaError, reason, require_package
from hf_msa.models.configuration_msa import MsaConfig
from hf_msa.models.msa_schema import FEATURE_MODALITIES
from hf_msa.models.msa_verbalizer import MsaVerbalizer

from .recipes import as_known
from .stages import RunContext

# An adapter learns for a fixed time and is not validated.
_OF_VALIDATION = ("eval_strategy", "eval_steps", "eval_delay", "load_best_model_at_end")


def check_language_model(config: MsaConfig) -> None:
    """Check, before hours of training, that the language model can be loaded that a method is going to ask.

    Raises:
        MsaError: If none is named, it is not there, or a package that it needs is not installed.
    """
    settings = config.language_model
    if settings is None or not config.asks_language_model:
        return
    without = f"--set model.{settings.without.replace(chr(34), '')}"
    if settings.name is None:
        raise MsaError(
            f"The {settings.role} is a language model, but the recipe names none; pass --set model.{settings.field}=NAME, "
            f"or do without one: {without}."
        )
    if settings.kind == "endpoint":
        return
    require_package("PIL", "mllm")
    if settings.has_adapter:
        require_package("peft", "lora")
    try:
        AutoConfig.from_pretrained(settings.name)
    except (OSError, ValueError) as error:
        raise MsaError(
            f"The language model {settings.name!r} cannot be loaded ({reason(error)}); download it and pass its folder with "
            f"--set model.{settings.field}=FOLDER, or do without it: {without}."
        ) from error


def fit_verbalizer(context: RunContext) -> MsaVerbalizer:
    """Statistics of the training split's features, with the features' names where the data set has them."""
    rows = context.rows["train"]

    def present() -> Iterator[dict[str, np.ndarray]]:
        for index in range(len(rows)):
            row = rows[index]
            yield {m: row[m] for m in context.config.modalities[1:] if row.get(f"{m}_present", True)}

    return MsaVerbalizer.fit(
        present(), {m: getattr(context.facts, f"{m}_features") or None for m in FEATURE_MODALITIES}
    )


def lora_arguments(context: RunContext, stage: str, arguments_class: type[Any]) -> Any:
    """Training arguments of an adapter: its defaults, the recipe's, then those flags that concern every stage.

    Args:
        context: The run.
        stage: Its stage.
        arguments_class: `LoraTrainingArguments`, or a class that gives other defaults.

    Raises:
        MsaError: If one cannot be used.
    """
    known = {field.name: field for field in dataclasses.fields(arguments_class)}
    values = {
        "seed": context.seed,
        **as_known(context.recipe.stages.get(stage, {})),
        **{k: v for k, v in context.flags.get("all", {}).items() if k in known and k not in _OF_VALIDATION},
    }
    # More processes take fewer steps per update: the batch stays the recipe's.
    steps = int(values.get("gradient_accumulation_steps", known["gradient_accumulation_steps"].default))
    values["gradient_accumulation_steps"] = max(1, steps // PartialState().num_processes)
    try:
        return arguments_class(output_dir=str(context.stage_folder(stage)), **values)
    except (ImportError, TypeError, ValueError) as error:
        raise MsaError(f"The training arguments of {stage!r} cannot be used: {reason(error)}.") from error
