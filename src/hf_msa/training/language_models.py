"""Stages of methods that ask a language model: checks before training, statistics for words, arguments of an adapter."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState

from hf_msa.errors import MsaError, reason, require_package
from hf_msa.evaluation.results import MOST_UNREADABLE
from hf_msa.models.msa_language_model import AsksLanguageModel
from hf_msa.models.msa_mllm import LocalMllm, Mllm, MllmRequest
from hf_msa.models.msa_schema import FEATURE_MODALITIES
from hf_msa.models.msa_verbalizer import MsaVerbalizer

from .recipes import as_known
from .stages import RunContext

Asker = TypeVar("Asker", bound=AsksLanguageModel)

# An adapter learns for a fixed time, and is validated whenever it is saved.
_OF_VALIDATION = ("eval_strategy", "eval_steps", "eval_delay", "load_best_model_at_end")


def check_language_model(
    context: RunContext,
    model_class: type[Asker],
    ask: Callable[[Asker, Mllm], MllmRequest],
    lora_stage: str | None = None,
) -> None:
    """Ask the language model one question, before hours of training: the first training clip's, for one token.

    Its processor is made, its weights are read, and where it is to get an adapter the layers for it are found; a server is
    asked once.

    Args:
        context: The run.
        model_class: Of the method that asks.
        ask: Makes the question, of a model without weights and the language model.
        lora_stage: The stage that trains an adapter, where there is one.

    Raises:
        MsaError: If none is named, it is not there, a package that it needs is not installed, or it does not answer.
    """
    config = context.config
    settings = config.language_model
    if settings is None or not config.asks_language_model:
        return
    without = f"--set model.{settings.without.replace(chr(34), '')}"
    if settings.name is None:
        raise MsaError(
            f"The {settings.role} is a language model, but the recipe names none; pass --set model.{settings.field}=NAME, "
            f"or do without one: {without}."
        )
    if settings.has_adapter:
        require_package("peft", "lora")
    with torch.device("meta"):
        model = model_class(config)
    model.media = None if context.media is None else context.media.load
    try:
        mllm = model.load_language_model(False)
        mllm.generate([ask(model, mllm)], 1)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise MsaError(
            f"The {settings.role} cannot be asked ({reason(error)}); name another with --set model.{settings.field}=NAME, "
            f"or do without it: {without}."
        ) from error
    if settings.has_adapter and lora_stage is not None and isinstance(mllm, LocalMllm):
        from .lora import LoraTrainingArguments, target_layers

        target_layers(mllm.model, lora_arguments(context, lora_stage, LoraTrainingArguments).lora_target_modules)


def warn_of_unreadable(role: str, count: int, asked: int) -> None:
    """Warn where more than 5 % of the answers of a language model, e.g. the `"expert"`, could not be read."""
    if count > MOST_UNREADABLE * asked:
        logging.getLogger(__name__).warning(
            "%d of %d answers of the %s could not be read (%.0f %%); look at their wording in the answers folder, and take "
            "another model, prompt or adapter.",
            count,
            asked,
            role,
            100 * count / asked,
        )


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
