"""What the stages of methods share that ask a multimodal language model, as an expert or a planner."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers import AutoConfig

from hf_msa.errors import MsaError, reason, require_package
from hf_msa.models.msa_schema import FEATURE_MODALITIES
from hf_msa.models.msa_verbalizer import MsaVerbalizer

from .recipes import as_known
from .stages import RunContext


def check_mllm(name: str, adapter: bool, field: str, instead: str) -> None:
    """Check, before hours of training, that a local language model is to be had.

    Args:
        name: Folder or Hub name.
        adapter: Whether it is to be adapted.
        field: The configuration's field that names it.
        instead: Flags that do without it.

    Raises:
        MsaError: If it is not there, or a package that it needs is not installed.
    """
    require_package("PIL", "mllm")
    if adapter:
        require_package("peft", "lora")
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise MsaError(
            f"The language model {name!r} is not to be had ({reason(error)}); download it and pass its folder with "
            f"--set model.{field}=FOLDER, or do without it: {instead}."
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
    known = {field.name for field in dataclasses.fields(arguments_class)}
    values = {
        "seed": context.seed,
        **as_known(context.recipe.stages.get(stage, {})),
        **{name: value for name, value in context.flags.get("all", {}).items() if name in known},
    }
    try:
        return arguments_class(output_dir=str(context.stage_folder(stage)), **values)
    except (ImportError, TypeError, ValueError) as error:
        raise MsaError(f"The training arguments of {stage!r} cannot be used: {reason(error)}.") from error
