"""Running a recipe: stages one after the other, each resumable, a finished one never repeated."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import platform
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from hf_msa._version import __version__
from hf_msa.data.collator import MsaCollator
from hf_msa.data.loading import dataset_facts, load_split
from hf_msa.data.media import MediaFolder
from hf_msa.data.missing import protocol_from_dict
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import DatasetFacts
from hf_msa.errors import MsaError, reason, unknown_name
from hf_msa.evaluation.checkpoints import (
    RATE_FOLDER,
    check_media_use,
    locate_language_model,
    own_fields,
    with_located_model,
)
from hf_msa.evaluation.metrics import family_metrics
from hf_msa.files import folder_lock, remove_leftovers, write_json
from hf_msa.methods import METHODS, Method
from hf_msa.models.configuration_msa import MsaConfig
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_mllm_endpoint import allow_endpoint
from hf_msa.models.msa_schema import COMPLETE_KEYS, FEATURE_MODALITIES
from hf_msa.models.processing_msa import MsaProcessor

from .arguments import FLAGS, MsaTrainingArguments
from .display import chosen_checkpoint, say
from .fingerprints import WHAT, code_version, data_fingerprints, encoder_fingerprint
from .recipes import Recipe, as_known
from .run_folder import (
    RUN_FILE,
    STAGE_FILE,
    STAGES_FOLDER,
    check_finished_run,
    finish_stage,
    read_facts,
    read_stage,
    set_damaged_stages_aside,
    take_over_stages,
    tidy_run,
    tidy_stage,
)
from .shared_stages import SHARED_STAGES_FOLDER, TAKEN_FROM, SharedStages
from .trainer import MsaTrainer

RUN_SCHEMA_VERSION = 2
# Standardised features have 1, though the deviations of a split's own statistics from another's may make it 2 or 3.
_LARGEST_SCALE = 10

Model = TypeVar("Model", bound=MsaPreTrainedModel)


@dataclasses.dataclass
class RunContext:
    """What every stage of a run works with.

    Args:
        recipe: What to run.
        seed: Seed of initialisation, order, dropout and training masks.
        folder: The run's folder.
        data: The data set's folder or name.
        facts: What is known of the data set.
        rows: Tokenised rows by split; the test split is never among them.
        processor: Tokenizer and feature padding.
        config: The method's configuration, its shapes taken from the data.
        text_model: Folder or Hub name of the text encoder.
        flags: Training arguments from the command line: for every stage, and for the final one.
        media: The clips' recordings, for methods that ask an expert.
        media_counts: Clips and those without a file, by split; None without recordings.
        fingerprints: Of all that the run is made from, see `fingerprints.WHAT`.
        stages_from: Folder of other runs whose shared stages are taken, too; see `SharedStages`.
        seeds: All seeds of the command, for the display.
    """

    recipe: Recipe
    seed: int
    folder: Path
    data: str
    facts: DatasetFacts
    rows: dict[str, MsaRows]
    processor: MsaProcessor
    config: MsaConfig
    text_model: str
    flags: dict[str, dict[str, Any]]
    media: MediaFolder | None = None
    media_counts: dict[str, dict[str, int]] | None = None
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    stages_from: Path | None = None
    seeds: tuple[int, ...] = ()
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def arguments(self, stage: str, final: bool) -> MsaTrainingArguments:
        """Training arguments of one stage: recipe, then flags; see `split_flags`."""
        values: dict[str, Any] = {
            "seed": self.seed,
            # Of an adapter's stage there is more than every stage has; `lora_arguments` reads it.
            **{k: v for k, v in as_known(self.recipe.stage_arguments(stage)).items() if not k.startswith("lora_")},
            **self.flags.get("all", {}),
            **(self.flags.get("final", {}) if final else {}),
        }
        self._keep_batch(stage, values, final)
        if "bf16" not in values and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
            values["bf16"] = True
        arguments = training_arguments(self.stage_folder(stage), values)
        metric = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
        measured = ("loss", *family_metrics(self.facts.family))
        if metric not in measured:
            raise unknown_name(f"metric_for_best_model of stage {stage!r}:", metric, measured)
        return arguments

    def _keep_batch(self, stage: str, values: dict[str, Any], final: bool) -> None:
        """Part the recipe's batch over processes and accumulation steps, unless the batch per device was asked for."""
        flags = {**self.flags.get("all", {}), **(self.flags.get("final", {}) if final else {})}
        if "per_device_train_batch_size" in flags:
            return
        recipe = as_known(self.recipe.stage_arguments(stage))
        rows = int(recipe.get("per_device_train_batch_size", MsaTrainingArguments.per_device_train_batch_size))
        batch = rows * int(recipe.get("gradient_accumulation_steps", 1))
        parts = PartialState().num_processes * int(values.get("gradient_accumulation_steps", 1))
        if batch % parts:
            raise MsaError(
                f"The recipe's batch of {batch} rows in stage {stage!r} cannot be parted evenly over {parts} processes and "
                f"accumulation steps; use a number that divides it, or another batch, e.g. --set stages.{stage}."
                f"per_device_train_batch_size={parts}."
            )
        values["per_device_train_batch_size"] = batch // parts

    def collator(self, split: str, return_complete: bool = False) -> MsaCollator:
        """The collator of a split, under the recipe's protocol for it."""
        values = self.recipe.missing.train if split == "train" else self.recipe.missing.validation
        protocol = protocol_from_dict(values)
        # Training masks follow the run's seed; those of validation are fixed by the recipe, the same for every run.
        if split == "train" and hasattr(protocol, "seed") and "seed" not in values:
            protocol = protocol_from_dict({**values, "seed": self.seed})
        return MsaCollator(
            self.processor,
            protocol.bind(self.rows[split].ids),
            split=split,
            return_complete=return_complete,
        )

    def complete_collator(self, split: str) -> MsaCollator:
        """The collator of a split on complete data."""
        return MsaCollator(self.processor, None, split=split)

    def new_model(self, model_class: type[Model]) -> Model:
        """A model around the pretrained text encoder, everything else initialised from the run's seed."""
        set_seed(self.seed)
        try:
            model: Model = model_class.from_text_pretrained(self.text_model, self.config)
        except (OSError, ValueError) as error:
            raise MsaError(
                f"No {model_class.__name__} can be built around the text encoder {self.text_model!r}: {reason(error)}."
            ) from error
        return model

    @property
    def runs_folder(self) -> Path:
        """The folder of all runs of the command: of all seeds, and of all training rates where there are several."""
        above = self.folder.parent
        return above.parent if above.name.startswith(RATE_FOLDER) else above

    @property
    def shared(self) -> SharedStages:
        """Stages that the runs of the command share."""
        run = self.folder.relative_to(self.runs_folder.parent).as_posix()
        return SharedStages(self.runs_folder, run, self.stages_from)

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether the user asked how many checkpoints are kept: their weights then stay when a stage is finished."""
        return "save_total_limit" in self.flags.get("all", {})

    def title(self, stage: str) -> str:
        """What the display calls a stage, e.g. ``"tcmr, stage 1 of 3 'polarity', seed 1112 (2 of 2)"``."""
        stages = METHODS[self.recipe.method].stages
        names = stages.names if stages.of is None else stages.of(self.config)
        place = f" {names.index(stage) + 1} of {len(names)}" if stage in names else ""
        rate = "" if self.recipe.train_rate is None else f", training rate {self.recipe.train_rate:g}"
        several = f" ({self.seeds.index(self.seed) + 1} of {len(self.seeds)})" if self.seed in self.seeds else ""
        return f"{self.recipe.label}, stage{place} {stage!r}, seed {self.seed}{several}{rate}"

    def say(self, stage: str, text: str) -> None:
        """Say something of a stage where the display is, unless it is turned off."""
        if PartialState().is_main_process and not self.flags.get("all", {}).get("disable_tqdm"):
            say(f"{self.title(stage)}: {text}")

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps its checkpoints, its model and its mark of completion."""
        return self.folder / STAGES_FOLDER / stage

    def train_stage(
        self,
        stage: str,
        model_class: type[Model],
        build: Callable[[], Model] | None = None,
        *,
        final: bool = False,
        complete: bool = False,
        return_complete: bool = False,
        validate_complete: bool = False,
        trainer_class: type[MsaTrainer] = MsaTrainer,
        later_fields: Collection[str] | None = None,
        **options: Any,
    ) -> Model:
        """Train one model to its end, or load it where this stage is finished, or where other runs have made the same.

        Args:
            stage: Name of the stage and of its folder.
            model_class: Class of the model that is trained.
            build: Makes the model; default: a new one around the pretrained text encoder.
            final: Whether this stage gives the run's checkpoint (command-line flags on epochs and rates apply to it).
            complete: Train and validate on complete data instead of under the recipe's protocols.
            return_complete: Whether training batches also hold the complete inputs.
            validate_complete: Whether validation batches do; those of a method that predicts with them do anyway.
            trainer_class: The trainer.
            later_fields: The fields of the configuration on which the stage does not depend: runs that differ in them alone
                share it, see `SharedStages`. None: it is not shared.
            **options: Passed on to the trainer; of a stage that is shared they must follow from data and configuration.

        Returns:
            The model with the weights of the checkpoint that is best on the validation split, in eval mode.
        """
        folder = self.stage_folder(stage)
        finished = folder / STAGE_FILE
        # Without its model the stage belongs to a run that was finished once, and is no use to another one.
        if finished.is_file() and (folder / "model").is_dir():
            self.log.append(read_stage(folder))
            if PartialState().is_main_process:
                # Which a kill may have cut short.
                tidy_stage(folder, self.keeps_checkpoints)
            self.say(stage, "is finished already")
            return self._finished_model(model_class, folder / "model", later_fields)
        started = time.perf_counter()
        model = build() if build is not None else self.new_model(model_class)
        depends_on: dict[str, Any] = {}
        if later_fields is not None:
            depends_on = self.dependencies(self.config, later_fields) | {
                "arguments": self.arguments_to_share(self.arguments(stage, final)),
                "missing": None if complete else [dataclasses.asdict(self.recipe.missing), self.recipe.train_rate],
                "weights": weights_digest(model.state_dict()),
            }
            if self.take_stage(stage, depends_on):
                return self._finished_model(model_class, folder / "model", later_fields)
        repeats = 1 if complete else self.recipe.missing.selection_repeats
        sees_complete = validate_complete or any(name in COMPLETE_KEYS.values() for name in self.config.oracle_inputs)
        trainer = trainer_class(
            model,
            self.arguments(stage, final),
            self.rows["train"],
            self.rows["validation"],
            self.complete_collator("train") if complete else self.collator("train", return_complete),
            self.complete_collator("validation") if complete else self.collator("validation", sees_complete),
            repeats,
            **options,
        )
        trainer.display.title = self.title(stage)
        state = trainer.fit()
        # The trainer trains in place: after `fit` the model holds the best checkpoint's weights.
        model = model.cpu().eval()
        facts = {
            "name": stage,
            "seconds": round(time.perf_counter() - started, 1),
            "epochs": state.epoch,
            "batch": batch_facts(trainer.args),
            "selection": {
                "split": "validation",
                "metric": trainer.args.metric_for_best_model,
                "protocol": {"name": "complete"} if complete else self.recipe.missing.validation,
                "repeats": repeats,
                **chosen_checkpoint(state, trainer.args),
            },
            "history": [entry for entry in state.log_history if "eval_loss" in entry or "loss" in entry],
        }
        if trainer.is_world_process_zero():
            model.save_pretrained(folder / "model")
            trainer.save_products(folder)
            finish_stage(folder, facts)
            tidy_stage(folder, self.keeps_checkpoints)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()
        if depends_on:
            self.give_stage(stage, depends_on)
        self.log.append(facts)
        return model

    def _finished_model(self, model_class: type[Model], folder: Path, later_fields: Collection[str] | None) -> Model:
        """The model that a stage has given; if it is shared, a run that differs in these fields may have made it."""
        options: dict[str, Any] = {}
        if later_fields is not None:
            fields = type(self.config).from_pretrained(folder).to_dict()
            fields |= {name: getattr(self.config, name) for name in later_fields}
            options["config"] = type(self.config).from_dict(fields)
        model: Model = model_class.from_pretrained(folder, **options)
        model.eval()
        return model

    def dependencies(self, config: MsaConfig, later_fields: Collection[str]) -> dict[str, Any]:
        """What all stages depend on that runs share.

        Args:
            config: The configuration.
            later_fields: The fields of it that do not matter.

        Returns:
            Of data, code, features, recordings, seed, device, and the other fields, as JSON can hold it.
        """
        return {
            "made of": self.fingerprints,
            "config": {name: value for name, value in own_fields(config).items() if name not in later_fields},
            "features": [self.recipe.feature_norm, self.recipe.pad_to_fixed],
            "media": None if self.media is None else [str(self.media.folder.resolve()), self.media_counts],
            "seed": self.seed,
            "device": PartialState().device.type,
        }

    def arguments_to_share(self, arguments: TrainingArguments) -> dict[str, Any]:
        """Training arguments without those that say where the run lies."""
        return {name: value for name, value in arguments.to_dict().items() if str(self.folder) not in str(value)}

    def take_stage(self, stage: str, depends_on: Mapping[str, Any]) -> bool:
        """Finish a stage by what another run has made of the same things, if there is one; it is then in the log.

        Args:
            stage: Name of the stage and of its folder.
            depends_on: All that it depends on, see `SharedStages`.

        Returns:
            Whether it was taken, now or before.
        """
        folder = self.stage_folder(stage)
        if PartialState().is_main_process and not (folder / STAGE_FILE).is_file():
            facts = self.shared.take(stage, depends_on, folder)
            if facts is not None:
                finish_stage(folder, facts)
        PartialState().wait_for_everyone()
        known = read_stage(folder) if (folder / STAGE_FILE).is_file() else {}
        if TAKEN_FROM in known:
            self.log.append(known)
        return TAKEN_FROM in known

    def give_stage(self, stage: str, depends_on: Mapping[str, Any], files: Sequence[str] = ("*",)) -> None:
        """Let other runs take a finished stage.

        Args:
            stage: Name of the stage and of its folder.
            depends_on: All that it depends on, see `SharedStages`.
            files: Patterns of those of its files that they need.
        """
        folder = self.stage_folder(stage)
        if PartialState().is_main_process:
            facts = read_facts(folder / STAGE_FILE)
            names = [name for name in facts.pop("files", {}) if any(fnmatch(name, pattern) for pattern in files)]
            if names:
                self.shared.give(stage, depends_on, folder, names, facts)
        PartialState().wait_for_everyone()

    def made_stage(
        self,
        stage: str,
        make: Callable[[Path], dict[str, Any]],
        every_process: bool = False,
        depends_on: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run a stage that does something else than train a model of ours, unless it is finished.

        Args:
            stage: Name of the stage and of its folder.
            make: Does it and writes what the stage gives; takes the folder, and returns facts for the log.
            every_process: Whether all processes take part in it, else the main one alone; the others wait.
            depends_on: All that the stage depends on: it is then shared by runs, see `SharedStages`. None: it is not.

        Returns:
            The stage's facts as they are in the log, `name` and `seconds` among them.
        """
        folder = self.stage_folder(stage)
        if depends_on is not None and self.take_stage(stage, depends_on):
            return self.log[-1]
        finished = folder / STAGE_FILE
        state = PartialState()
        # Asked before anybody writes: all processes have to answer alike.
        is_finished = finished.is_file()
        state.wait_for_everyone()
        if not is_finished and (every_process or state.is_main_process):
            started = time.perf_counter()
            self.say(stage, "begins")
            facts = make(folder)
            if state.is_main_process:
                finish_stage(folder, {"name": stage, "seconds": round(time.perf_counter() - started, 1), **facts})
        state.wait_for_everyone()
        if depends_on is not None:
            self.give_stage(stage, depends_on)
        known = read_stage(folder)
        self.log.append(known)
        return known


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """A hash of weights, with their names and shapes."""
    digest = hashlib.sha256()
    for name, value in state.items():
        given = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(given.shape)} {given.dtype} ".encode())
        digest.update(given.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def training_arguments(folder: Path, values: Mapping[str, Any]) -> MsaTrainingArguments:
    """Training arguments that write to `folder`.

    Raises:
        MsaError: If the library refuses a value, or one beside another.
    """
    try:
        return MsaTrainingArguments(output_dir=str(folder), **values)
    except (ImportError, TypeError, ValueError) as error:
        raise MsaError(f"The training arguments of {folder.name!r} cannot be used: {reason(error)}.") from error


def batch_facts(args: MsaTrainingArguments) -> dict[str, int]:
    """How large a batch is: rows per `device` and step, `accumulation` steps, `processes`, and rows in all, `global`."""
    device, steps, processes = args.train_batch_size, args.gradient_accumulation_steps, PartialState().num_processes
    return {"device": device, "accumulation": steps, "processes": processes, "global": device * steps * processes}


def devices() -> dict[str, Any]:
    """What trains: the number of `processes`, and the `type` and `name` of the device of the main one."""
    state = PartialState()
    name = torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else platform.machine()
    return {"processes": state.num_processes, "type": state.device.type, "name": name}


def split_flags(flags: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort training arguments of a command into those for every stage (`all`) and those for the last one (`final`).

    Raises:
        MsaError: For one that there is not, with the nearest one.
    """
    for name in flags:
        if name not in FLAGS:
            raise unknown_name("training argument", name, FLAGS)
    return {
        "all": {name: value for name, value in flags.items() if name not in MsaTrainingArguments.FINAL_STAGE_ONLY},
        "final": {name: value for name, value in flags.items() if name in MsaTrainingArguments.FINAL_STAGE_ONLY},
    }


def feature_statistics(rows: MsaRows, modality: str) -> tuple[list[float], list[float]]:
    """Per-feature mean and standard deviation over all valid frames of `rows`."""
    total = np.zeros(0)
    squares = np.zeros(0)
    frames = 0
    for row in (rows[index] for index in range(len(rows))):
        if not row.get(f"{modality}_present", True):
            continue
        values = np.asarray(row[modality], dtype=np.float64)
        total = values.sum(axis=0) + (total if frames else 0)
        squares = np.square(values).sum(axis=0) + (squares if frames else 0)
        frames += len(values)
    mean = total / max(frames, 1)
    variance = np.maximum(squares / max(frames, 1) - mean**2, 0)
    # A column that varies by less than float32 can tell from its mean is constant.
    std = np.where(variance > 1e-10 * mean**2, np.sqrt(variance), 0.0)
    return mean.tolist(), std.tolist()


def warn_of_scales(modality: str, mean: list[float], std: list[float]) -> None:
    """Warn where features differ so much in scale that a model reads little but the largest one.

    Every token is a sum over features that a norm then brings to one length: beside a feature of `_LARGEST_SCALE` times the
    typical deviation the others all but vanish.

    Args:
        modality: Which one.
        mean, std: Of each feature over the training frames, see `feature_statistics`.
    """
    varying = [deviation for deviation in std if deviation > 0]
    if not varying:
        return
    sizes, typical = np.hypot(mean, std), float(np.median(varying))
    largest = int(sizes.argmax())
    if sizes[largest] > _LARGEST_SCALE * typical:
        warnings.warn(
            f"The {modality} features differ in scale and are read as they are (feature_norm=none): feature {largest} has "
            f"mean {mean[largest]:.3g} and standard deviation {std[largest]:.3g}, the typical one deviates by {typical:.3g};"
            " without --set feature_norm=standard the model may hardly see the others.",
            stacklevel=3,
        )


def model_shapes(rows: Mapping[str, MsaRows]) -> dict[str, int | None]:
    """Widths and longest lengths of the feature modalities, from the training and validation rows; no width without any."""
    shapes: dict[str, int | None] = {}
    for modality in FEATURE_MODALITIES:
        shapes[f"{modality}_dim"] = None
        if modality in rows["train"].lengths:
            shapes[f"{modality}_dim"] = int(rows["train"][0][modality].shape[1])
            shapes[f"{modality}_max_length"] = int(max(part.lengths[modality].max() for part in rows.values()))
    return shapes


def text_positions(text_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that a text encoder reads."""
    positions: int = text_config.max_position_embeddings
    if "roberta" in text_config.model_type or text_config.model_type == "camembert":
        # Their positions are counted from behind that of the padding token.
        positions -= text_config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)


def prepare_run(
    recipe: Recipe,
    data: str,
    folder: str | Path,
    seed: int,
    flags: Mapping[str, Any],
    rows: dict[str, MsaRows] | None = None,
    media: str | Path | None = None,
    stages_from: str | Path | None = None,
) -> RunContext:
    """Load the data, build processor and configuration, and check that the folder does not hold another run.

    Args:
        recipe: What to run.
        data: Folder or Hub name of a prepared data set.
        folder: The run's own folder.
        seed: The run's seed.
        flags: Training arguments from the command line.
        rows: Tokenised rows of an earlier run with the same data and text encoder, to save loading them again.
        media: Folder with the clips' recordings, see `MediaFolder`; for methods that ask an expert.
        stages_from: Folder of other runs whose shared stages are taken, too.

    Raises:
        MsaError: If the data, the text encoder, the media or a folder will not do.
    """
    folder = Path(folder)
    if stages_from is not None:
        _check_stages_from(Path(stages_from), recipe.method)
    recordings = None if media is None else MediaFolder(Path(media))
    facts = dataset_facts(data)
    text_model = recipe.text_model or _bundled_text_model(data)
    config_class = METHODS[recipe.method].config_class
    longest = recipe.model.get("text_max_length", config_class.text_max_length)
    try:
        tokenizer = AutoTokenizer.from_pretrained(text_model)
        positions = text_positions(AutoConfig.from_pretrained(text_model), tokenizer)
    except (OSError, ValueError) as error:
        raise MsaError(
            f"The text encoder {text_model!r} cannot be loaded ({reason(error)}); pass --text-model with a "
            "folder or Hub name of a BERT-family checkpoint."
        ) from error
    if longest > positions:
        warnings.warn(
            f"text_max_length is {longest}, but the text encoder {text_model!r} has positions for {positions} tokens; "
            "longer texts are cut there.",
            stacklevel=2,
        )
        longest = positions
    if rows is None:
        rows = {
            split: MsaRows(load_split(data, split), split, tokenizer, longest) for split in ("train", "validation")
        }
    shapes = {**model_shapes(rows), **{k: v for k, v in recipe.model.items() if k.endswith("_max_length")}}
    try:
        given = {**shapes, "label_family": facts.family.to_value(), **recipe.model, "text_max_length": longest}
        config = config_class(**given)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise MsaError(f"The recipe {recipe.name!r} gives no model for this data: {reason(error)}.") from error
    asked = config.language_model
    if asked is not None and asked.kind == "endpoint" and asked.name is not None:
        # The recipe is the caller's word for the server, and for its key.
        allow_endpoint(asked.name, asked.server.key_variable)
    if not config.mask_padding and not recipe.pad_to_fixed:
        raise MsaError(
            "A model that attends to padding (model.mask_padding=false) needs fixed lengths, or a prediction would depend "
            "on its neighbours in the batch; add pad_to_fixed=true to --set."
        )
    fields: dict[str, Any] = {
        name: getattr(config, name) for m in config.modalities[1:] for name in (f"{m}_dim", f"{m}_max_length")
    }
    fields |= {f"{modality}_set": getattr(facts, f"{modality}_set") for modality in config.modalities[1:]}
    standardised = recipe.feature_norm == "standard"
    for modality in () if config.NORMALISES_FEATURES and not standardised else config.modalities[1:]:
        mean, std = feature_statistics(rows["train"], modality)
        if standardised:
            fields |= {f"{modality}_mean": mean, f"{modality}_std": std}
        else:
            warn_of_scales(modality, mean, std)
    processor = MsaProcessor(
        MsaFeatureExtractor(**fields),
        tokenizer,
        text_max_length=longest,
        pad_to_fixed=recipe.pad_to_fixed,
        missing_lengths=rows["train"].median_lengths(),
    )
    counts: dict[str, dict[str, int]] | None = None
    if recordings is not None:
        check_media_use(config, recipe.name)
        counts = {
            split: recordings.check((part[index] for index in range(len(part))), split) for split, part in rows.items()
        }
    parts = _fingerprints(METHODS[recipe.method], rows, tokenizer, str(text_model))
    settings = {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "flags": dict(flags),
        "dataset": {"name": facts.name, **{split: len(part) for split, part in rows.items()}},
        "fingerprint": _fingerprint(rows),
        "parts": parts,
        **({} if counts is None else {"media": counts}),
    }
    context = RunContext(
        recipe=recipe,
        seed=seed,
        folder=folder,
        data=data,
        facts=facts,
        rows=rows,
        processor=processor,
        config=config,
        text_model=str(text_model),
        flags=split_flags(flags),
        media=recordings,
        media_counts=counts,
        fingerprints=parts,
        stages_from=None if stages_from is None else Path(stages_from),
    )
    # Before anything is written: a value that is refused in the third stage would be known hours too late.
    stages = METHODS[recipe.method].stages
    arguments = {stage: context.arguments(stage, stage == stages.final) for stage in stages.names}
    settings["batch"] = {stage: batch_facts(args)["global"] for stage, args in arguments.items()}
    _check_same_run(folder / "settings.json", settings)
    return context


def _check_stages_from(folder: Path, method: str) -> None:
    if not METHODS[method].stages.shared:
        able = [name for name in METHODS if METHODS[name].stages.shared]
        raise MsaError(
            f"--stages-from: no stages of {method} are shared by runs, those of {', '.join(able)} are; leave it out."
        )
    if not (folder / SHARED_STAGES_FOLDER).is_dir():
        raise MsaError(
            f"--stages-from {folder} has no folder {SHARED_STAGES_FOLDER!r}; give the --output of runs of {method}."
        )


def _bundled_text_model(data: str) -> str:
    bundled = Path(data) / "text_model"
    if not bundled.is_dir():
        raise MsaError(f"The recipe names no text encoder and {data!r} brings none; pass --text-model.")
    return str(bundled)


def _fingerprint(rows: Mapping[str, MsaRows]) -> str:
    """Short hash of ids and labels: tells whether two runs saw the same samples."""
    digest = hashlib.blake2b(digest_size=8)
    for split in sorted(rows):
        digest.update("\n".join(rows[split].ids).encode())
        digest.update(np.ascontiguousarray(rows[split].labels).tobytes())
    return digest.hexdigest()


def _fingerprints(
    method: Method, rows: Mapping[str, MsaRows], tokenizer: PreTrainedTokenizerBase, text_model: str
) -> dict[str, str]:
    """Fingerprints of all that a run is made from, see `fingerprints.WHAT`; taken by one process for all."""
    found: list[dict[str, str]] = [{}]
    if PartialState().is_main_process:
        encoder, code = encoder_fingerprint(text_model), code_version(method)
        found = [{**data_fingerprints(rows, tokenizer), "text encoder": encoder, "code": code}]
    parts: dict[str, str] = broadcast_object_list(found)[0]
    return parts


def _check_same_run(path: Path, settings: dict[str, Any]) -> None:
    """Check that a folder holds no run with other settings or of other things, and note those of this one.

    The number of processes may change: the batch is the same then, unless the settings say otherwise.
    """
    processes = PartialState().num_processes
    # As it will be read.
    settings = json.loads(json.dumps(settings))
    # A folder in which no stage has come as far as a checkpoint holds no run yet.
    if PartialState().is_main_process and not (path.is_file() and any(path.parent.glob("stages/*/*"))):
        write_json(path, {**settings, "processes": processes})
    PartialState().wait_for_everyone()
    earlier = read_facts(path)
    before = earlier.pop("processes", processes)
    parts, noted = settings.pop("parts"), earlier.pop("parts", {})
    if (path.parent / RUN_FILE).is_file():
        # What is finished stays as it is, whichever version made it.
        noted.pop("code", None)
    way_out = "choose another --output, or delete that folder to start anew"
    for part, fingerprint in noted.items():
        if part == "code" and parts.get(part) != fingerprint:
            raise MsaError(
                f"{path.parent} holds a run that was begun with {fingerprint} and would go on with {parts.get(part)}; use "
                f"the version that it was begun with, {way_out}."
            )
        if parts.get(part) != fingerprint:
            raise MsaError(
                f"{path.parent} holds a run of something else: {WHAT.get(part, part)} changed since it was begun; put back "
                f"what it was begun with, {way_out}."
            )
    # What an earlier version did not note is taken to be the same.
    changed = [text for key in sorted(earlier) for text in _differences(key, earlier[key], settings.get(key))]
    if changed:
        raise MsaError(f"{path.parent} holds a run with other settings ({'; '.join(changed[:3])}); {way_out}.")
    if not PartialState().is_main_process:
        return
    log = logging.getLogger(__name__)
    if not noted:
        log.warning(
            "%s was begun by an earlier version, which noted neither texts nor features, tokenizer, text encoder or code; "
            "they are taken to be the same.",
            path.parent,
        )
    if before != processes:
        log.warning(
            "%s was begun with %d processes and goes on with %d: batches stay the same, sums are rounded otherwise.",
            path.parent,
            before,
            processes,
        )


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """Where two settings differ, as ``name: before, now after``."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [text for key in keys for text in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [] if before == now else [f"{name} differs: {before!r}, now {now!r}"]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import accelerate
    import datasets
    import transformers

    modules = (torch, transformers, datasets, accelerate, np)
    found = {module.__name__: str(module.__version__) for module in modules}
    return {"python": platform.python_version(), "hf_msa": __version__, **found}


def run_recipe(
    recipe: Recipe,
    data: str,
    output: str | Path,
    seed: int,
    flags: Mapping[str, Any] | None = None,
    rows: dict[str, MsaRows] | None = None,
    media: str | Path | None = None,
    shared: str | Path | None = None,
    tidy: bool = True,
    stages_from: str | Path | None = None,
    seeds: Sequence[int] = (),
) -> RunContext:
    """Run all stages of a recipe for one seed and write the final checkpoint with its run.json.

    A stage that is finished is not repeated; one that was interrupted continues from its last complete checkpoint.

    Args:
        recipe: What to run.
        data: Folder or Hub name of a prepared data set.
        output: Folder of the runs; this one goes to `seed-<seed>` in it.
        seed: The run's seed.
        flags: Training arguments from the command line.
        rows: Tokenised rows of an earlier run, to save loading them again.
        media: Folder with the clips' recordings, see `MediaFolder`; for methods that ask an expert.
        shared: Folder of a run that differs in nothing but its training rate; its finished stages in which rates have no
            part are taken over.
        tidy: Whether what a finished run no longer needs of its stages is deleted, see `tidy_run`. False where another run
            is to take over stages of this one.
        stages_from: Folder of other runs; stages that were made there of the same things are taken, see `SharedStages`.
        seeds: All seeds of the command, for the display.
    """
    folder = Path(output) / f"seed-{seed}"
    # The first thing that asks which processes there are sets it for good: it has to know of flags such as --use_cpu.
    training_arguments(folder, split_flags(flags or {})["all"])
    with _one_writer(folder):
        context = prepare_run(recipe, data, folder, seed, flags or {}, rows, media, stages_from)
        context.seeds = tuple(seeds)
        if (folder / RUN_FILE).is_file():
            check_finished_run(folder)
        else:
            _train_run(context, shared, tidy)
    return context


@contextlib.contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Keep a run's folder from other commands, and rid it of what killed ones have left."""
    with folder_lock(folder) if PartialState().is_main_process else contextlib.nullcontext():
        if PartialState().is_main_process:
            remove_leftovers(folder)
        PartialState().wait_for_everyone()
        yield


def _train_run(context: RunContext, shared: str | Path | None, tidy: bool) -> None:
    """Run all stages and write the final checkpoint; see `run_recipe`."""
    recipe, folder = context.recipe, context.folder
    method = METHODS[recipe.method]
    if PartialState().is_main_process:
        set_damaged_stages_aside(folder)
    PartialState().wait_for_everyone()
    if shared is not None:
        if PartialState().is_main_process:
            take_over_stages(Path(shared), folder, method.stages.rate_free)
        PartialState().wait_for_everyone()
    started = time.perf_counter()
    run = method.stages.run
    locate_language_model(context.config)
    model = context.train_stage(method.stages.final, method.model_class, final=True) if run is None else run(context)
    if PartialState().is_main_process:
        model.save_pretrained(folder)
        context.processor.save_pretrained(folder)
        final = next(entry for entry in reversed(context.log) if entry["name"] == method.stages.final)
        write_json(
            folder / RUN_FILE,
            {
                "schema_version": RUN_SCHEMA_VERSION,
                "method": recipe.method,
                "recipe": recipe.name,
                "ablation": recipe.ablation,
                "train_rate": recipe.train_rate,
                "seed": context.seed,
                "text_model": text_model_name(context.text_model),
                "dataset": {
                    **context.facts.to_dict(),
                    "n": {split: len(part) for split, part in context.rows.items()},
                    "fingerprint": _fingerprint(context.rows),
                },
                "selection": {"stage": final["name"], **final["selection"]},
                "stages": context.log,
                "settings": {
                    **recipe.to_dict(),
                    "model": with_located_model(recipe.model, model.config),
                    "text_model": text_model_name(context.text_model),
                },
                "flags": {**context.flags["all"], **context.flags["final"]},
                "config": own_fields(model.config),
                "language_model_input": model.language_model_input,
                "media": context.media_counts,
                "parameters": {
                    "all": sum(p.numel() for p in model.parameters()),
                    "without text encoder": sum(
                        p.numel() for n, p in model.named_parameters() if not n.startswith("text_encoder.")
                    ),
                },
                "devices": devices(),
                "versions": versions(),
                "seconds": round(time.perf_counter() - started, 1),
            },
        )
        if tidy:
            tidy_context(context)
    PartialState().wait_for_everyone()


def tidy_context(context: RunContext) -> None:
    """Delete what a finished run no longer needs of its stages; see `tidy_run`."""
    tidy_run(context.folder, METHODS[context.recipe.method].stages.kept, context.keeps_checkpoints)


def text_model_name(text_model: str) -> str:
    """The text encoder's name without the folders of the machine it was trained on."""
    return Path(text_model).name if Path(text_model).exists() else text_model
