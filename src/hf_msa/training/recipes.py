"""Recipes: everything that a run is made of, as YAML with the source of each value."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig

from hf_msa.assignments import one_line, set_value
from hf_msa.data.missing import MODALITY_RATES, protocol_from_dict
from hf_msa.data.missing_base import check_rate
from hf_msa.errors import MsaError, unknown_name
from hf_msa.methods import METHODS
from hf_msa.models.configuration_msa import MsaConfig

from .arguments import MsaTrainingArguments
from .lora import LoraTrainingArguments


@dataclasses.dataclass(frozen=True)
class MissingRecipe:
    """Under which missing patterns a run trains and picks its checkpoint.

    Args:
        train: The training protocol, as `hf_msa.data.missing.protocol_from_dict` reads it.
        validation: The selection protocol, likewise.
        selection_repeats: Fixed draws of the validation masks that are averaged; 1 is what the papers do, but picks the
            epoch half by luck where the validation split is small.
    """

    train: dict[str, Any]
    validation: dict[str, Any]
    selection_repeats: int = 5


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run without its data, seed and output folder.

    Args:
        name: `<method>/<dataset>`, or the file it was read from.
        method: Key in `METHODS`.
        text_model: Folder or Hub name of the pretrained text encoder; `None`: the one beside the data (`text_model/`).
        model: Fields of the method's configuration that differ from its defaults.
        missing: Protocols of training and selection.
        feature_norm: `"none"`, or `"standard"` for per-feature mean and std of the training split's valid frames.
        pad_to_fixed: Pad every batch to the fixed maximum lengths, as the papers do, instead of to its need.
        stages: Training arguments by stage; `all` holds what the stages share.
        ablation: The row of the method's `ABLATIONS` that was applied, if any.
        train_rate: The one missing rate of training and selection, in place of the recipe's own protocols; None for those.
    """

    name: str
    method: str
    text_model: str | None
    model: dict[str, Any]
    missing: MissingRecipe
    feature_norm: str
    pad_to_fixed: bool
    stages: dict[str, dict[str, Any]]
    ablation: str | None = None
    train_rate: float | None = None

    @property
    def label(self) -> str:
        """Method and ablation in a word, e.g. ``"tcmr"`` or ``"ridge (constant)"``."""
        return self.method if self.ablation is None else f"{self.method} ({self.ablation})"

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, for run.json."""
        values = dataclasses.asdict(self)
        if self.train_rate is None:
            # A run that was begun before there were such rates goes on with the same settings.
            del values["train_rate"]
        return values

    def stage_arguments(self, stage: str) -> dict[str, Any]:
        """Training arguments of one stage: what all share, overridden by its own."""
        return {**self.stages.get("all", {}), **self.stages.get(stage, {})}


def recipe_names() -> list[str]:
    """Names of all recipes, method by method."""
    return [name for method in METHODS.values() for name in method.recipe_names()]


def _read(name: str) -> tuple[str, dict[str, Any]]:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise MsaError(f"There is no recipe file {name!r}; give a file, or one of: {', '.join(recipe_names())}.")
        try:
            return path.stem, _group("The recipe", yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise MsaError(f"The recipe file {name!r} cannot be read as YAML: {one_line(error)}.") from error
    key, _, dataset = name.partition("/")
    method = METHODS.find(key)
    if name not in method.recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return name, _group("The recipe", yaml.safe_load((method.recipes / f"{dataset}.yaml").read_text(encoding="utf-8")))


def _group(what: str, value: Any) -> dict[str, Any]:
    """A mapping of the recipe; what is left empty in YAML is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MsaError(f"{what} has to be a group of KEY: VALUE, but is {value!r}.")
    for key in value:
        if not isinstance(key, str):
            raise MsaError(
                f"{what} has the key {key!r}, which YAML does not read as text; keys are names, or in quotes."
            )
    return value


def _check_keys(what: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    allowed = set(allowed)
    for key in given:
        if key not in allowed:
            raise unknown_name(what, key, allowed)


def config_fields(config_class: type[MsaConfig]) -> set[str]:
    """Fields of a method's own configuration; those of transformers' base class are not for recipes."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return names - {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"text_config"}


def _missing_recipe(values: dict[str, Any]) -> MissingRecipe:
    _check_keys("key of 'missing'", values, (field.name for field in dataclasses.fields(MissingRecipe)))
    for key in ("train", "validation"):
        if key not in values:
            raise MsaError(f"The recipe has no 'missing.{key}': the missing-data protocol of that pass.")
        protocol_from_dict(_group(f"'missing.{key}'", values[key]))
    missing = MissingRecipe(**values)
    if type(missing.selection_repeats) is not int or missing.selection_repeats < 1:
        raise MsaError(f"missing.selection_repeats is {missing.selection_repeats!r}; give a whole number from 1.")
    return missing


def _stage_arguments(stage: str, values: dict[str, Any], arguments_class: type[Any]) -> dict[str, Any]:
    """Check names, and numbers where a number has to be: the library does not, and would fail in the middle of a run."""
    kinds = typing.get_type_hints(arguments_class)
    # Of the run, not of a stage of it.
    fields = {field.name for field in dataclasses.fields(arguments_class)} - {"output_dir", "seed"}
    _check_keys(f"training argument of stage {stage!r}", values, fields)
    for name, value in as_known(values).items():
        allowed = set(typing.get_args(kinds[name]) or (kinds[name],))
        if not allowed <= {int, float, bool, type(None)}:
            continue
        fits = type(value) in allowed or (type(value) is int and float in allowed)
        if not fits:
            names = " or ".join(sorted(kind.__name__ for kind in allowed - {type(None)}))
            raise MsaError(f"stages.{stage}.{name} is {value!r}; it has to be of type {names}.")
    return dict(values)


def train_rates(text: str) -> tuple[float | None, ...]:
    """What `--train-rate` asks for, as one missing rate of training per model.

    Args:
        text: ``"mixed"``: the recipe's own protocols, None; ``"match"``: each rate of the protocol ``"modality"``; or one
            rate.

    Raises:
        MsaError: If it is neither.
    """
    if text == "mixed":
        return (None,)
    if text == "match":
        return MODALITY_RATES
    try:
        return (float(text),)
    except ValueError:
        raise MsaError(
            f"--train-rate is {text!r}; give mixed, match, or one of the rates 0.0, 0.1, ... 0.7."
        ) from None


def load_recipe(
    name: str,
    *,
    ablation: str | None = None,
    assignments: Iterable[str] = (),
    text_model: str | None = None,
    train_rate: float | None = None,
) -> Recipe:
    """Read a recipe and apply an ablation and overrides, checking every name.

    Args:
        name: `<method>/<dataset>`, or the path of a YAML file.
        ablation: A row of the method's `ABLATIONS`.
        assignments: Overrides, e.g. `model.num_tokens=4`, `stages.main.num_train_epochs=3`, `missing.selection_repeats=1`.
        text_model: Overrides the recipe's text encoder.
        train_rate: Train and select under whole modalities missing at this rate (OMG-Agent, Table 2 of the supplement),
            instead of under the recipe's protocols.

    Raises:
        MsaError: For an unknown method, recipe, ablation, stage or key, with the nearest one that exists, or a value of the
            wrong kind.
    """
    name, content = _read(name)
    for assignment in assignments:
        if train_rate is not None and assignment.strip().startswith(("missing.train", "missing.validation")):
            raise MsaError(
                f"--set {assignment} and a --train-rate both say what is missing in training; leave one of them out."
            )
        set_value(content, assignment)
    if text_model is not None:
        content["text_model"] = text_model
    known_keys = {field.name for field in dataclasses.fields(Recipe)} - {"name", "ablation", "train_rate"}
    _check_keys("recipe key", content, known_keys)
    method = str(content.get("method", ""))
    config_class = METHODS.find(method).config_class
    if ablation is not None and ablation not in config_class.ABLATIONS:
        raise unknown_name(f"ablation of {method}", ablation, config_class.ABLATIONS)
    model = {**_group("'model'", content.get("model")), **(config_class.ABLATIONS[ablation] if ablation else {})}
    _check_keys(f"configuration field of {method}", model, config_fields(config_class))
    groups = _group("'missing'", content.get("missing"))
    if train_rate is not None:
        train_rate = check_rate(train_rate)
        groups = {**groups, **{key: {"name": "modality", "rate": train_rate} for key in ("train", "validation")}}
    missing = _missing_recipe(groups)
    known = (*METHODS[method].stages.names, "all")
    stages: dict[str, dict[str, Any]] = {}
    for stage, arguments in _group("'stages'", content.get("stages")).items():
        if stage not in known:
            raise unknown_name(f"stage of {method}", str(stage), known)
        stages[stage] = _stage_arguments(
            stage,
            _group(f"'stages.{stage}'", arguments),
            LoraTrainingArguments if stage in METHODS[method].stages.lora else MsaTrainingArguments,
        )
    feature_norm = content.get("feature_norm", "none")
    if feature_norm not in ("none", "standard"):
        raise unknown_name("feature_norm", str(feature_norm), ("none", "standard"))
    return Recipe(
        name=name,
        method=method,
        text_model=content.get("text_model"),
        model=model,
        missing=missing,
        feature_norm=feature_norm,
        pad_to_fixed=bool(content.get("pad_to_fixed", False)),
        stages=stages,
        ablation=ablation,
        train_rate=train_rate,
    )


def as_known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Training arguments with numbers as numbers: YAML reads ``1e-4`` (no dot) as text."""

    def number(value: Any) -> Any:
        try:
            return float(value) if isinstance(value, str) and value[:1] in "0123456789.-" else value
        except ValueError:
            return value

    return {name: number(value) for name, value in values.items()}
