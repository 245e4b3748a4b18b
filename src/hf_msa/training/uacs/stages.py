"""Training of U-ACS: the small model, the expert's adapter, and the thresholds of both, set on the validation split.

Without an expert (`model.route=fast`) the first and the small model's threshold are all there is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hf_msa.data.rows import MsaRows
from hf_msa.errors import as_msa_errors
from hf_msa.evaluation.checkpoints import ANSWERS_FOLDER
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_uacs import UacsForSentimentAnalysis
from hf_msa.models.msa_language_model import ADAPTER_FOLDER
from hf_msa.models.msa_mllm import LocalMllm, Mllm, MllmRequest
from hf_msa.models.uacs_prompts import answer_text
from hf_msa.training.calibration import fit_temperature
from hf_msa.training.language_models import check_language_model, fit_verbalizer, lora_arguments
from hf_msa.training.stages import RunContext
from hf_msa.training.ubm import UbmTrainer, validation_logits

from .calibration import find_thresholds, small_model_alone

STAGES = ("ubm", "lora", "calibration")
FINAL_STAGE = "ubm"
LORA_STAGES = ("lora",)


def stages_of(config: UacsConfig) -> tuple[str, ...]:
    """The stages of a run: an adapter only for an expert that is asked and gets one."""
    return STAGES if config.route != "fast" and config.expert_adapter else ("ubm", "calibration")


def run(context: RunContext) -> MsaPreTrainedModel:
    """Train the small model, the adapter where the recipe wants one, and calibrate."""
    config = cast(UacsConfig, context.config)
    if not (context.stage_folder("calibration") / "stage.json").is_file():
        lora = "lora" if config.expert_adapter else None
        check_language_model(context, UacsForSentimentAnalysis, lambda *given: first_question(context, *given), lora)
    model = context.train_stage("ubm", UacsForSentimentAnalysis, final=True, trainer_class=UbmTrainer)
    model.media = None if context.media is None else context.media.load
    # Shared by all seeds, ablations and training rates of one folder of runs.
    model.answers_folder = context.runs_folder / ANSWERS_FOLDER
    describe(context, model)
    if config.route != "fast" and config.expert_adapter:
        train_adapter(context, model)
    calibrate(context, model)
    return model


def describe(context: RunContext, model: UacsForSentimentAnalysis) -> None:
    """Give a system the statistics that features are described by, where they are to be."""
    if model.config.use_verbalizer and len(model.config.modalities) > 1:
        model.verbalizer = fit_verbalizer(context)


def first_question(context: RunContext, model: UacsForSentimentAnalysis, expert: Mllm) -> MllmRequest:
    """What an expert is asked about the first training row."""
    model.set_expert(expert)
    describe(context, model)
    return model.expert_requests([context.rows["train"][0]])[0]


# --- The adapter ---


class AnsweredRows(Sequence[Any]):
    """Training rows as questions, each made when it is needed, with the labels as answers (see `MllmExample`).

    Args:
        model: Makes the questions as it does in the cascade; rows are complete.
        rows: With labels.
    """

    def __init__(self, model: UacsForSentimentAnalysis, rows: MsaRows) -> None:
        self._model = model
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """Make the example of a row."""
        from hf_msa.training.lora import MllmExample

        (request,) = self._model.expert_requests([self._rows[index]])
        return MllmExample(request, answer_text(float(self._rows.labels[index])))


def train_adapter(context: RunContext, model: UacsForSentimentAnalysis) -> None:
    """Teach the expert to answer with the training labels, one decimal each, or find the adapter where that is done.

    Raises:
        MsaError: If the expert or a training argument cannot be used.
    """
    from hf_msa.training.lora import LoraTrainer, LoraTrainingArguments, save_adapter, training_facts

    folder = context.stage_folder("lora") / ADAPTER_FOLDER

    def learn(_: Path) -> dict[str, Any]:
        with as_msa_errors():
            expert = cast(LocalMllm, model.load_language_model(adapted=False))
            # Which says what it can be given.
            model.set_expert(expert)
            examples, validation = (AnsweredRows(model, context.rows[split]) for split in ("train", "validation"))
            arguments = lora_arguments(context, "lora", LoraTrainingArguments)
            lengths = context.rows["train"].lengths.get("text")
            trainer = LoraTrainer(expert, arguments, examples, str(model.config.expert_model), validation, lengths)
        trainer.display.title = context.title("lora")
        state = trainer.fit()
        if trainer.is_world_process_zero():
            save_adapter(trainer.adapted, folder)
        model.set_expert(None)
        return training_facts(state)

    context.made_stage("lora", learn, every_process=True)
    # Calibration asks the expert as a user will load it: with the adapter read from its files.
    model.set_expert(None)
    model.set_adapter_folder(folder)


# --- The thresholds ---


def calibrate(context: RunContext, model: UacsForSentimentAnalysis) -> None:
    """Set temperature and thresholds on the validation split, or read what was found; see `find_thresholds`.

    Raises:
        MsaError: If the expert cannot be loaded or reached, or a group of samples is empty and no threshold is given.
    """
    config = model.config

    def find(_: Path) -> dict[str, Any]:
        if config.calibrate_temperature:
            with small_model_alone(config):
                config.temperature = fit_temperature(*validation_logits(context, model))
        protocol = context.collator("validation").protocol
        found = find_thresholds(model, context.processor, context.rows["validation"], protocol)
        return {"temperature": config.temperature, **found}

    facts = context.made_stage("calibration", find)
    for name in ("temperature", "tau_1", "tau_2", "calibration", "calibrated_with"):
        # Earlier versions did not note all of them.
        setattr(config, name, facts.get(name))
