"""Training of U-ACS: the small model, the expert's adapter, and the thresholds of both, set on the validation split.

Without an expert (`model.route=fast`) the first and the small model's threshold are all there is.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import Condition
from hf_msa.data.rows import MsaRows
from hf_msa.errors import as_msa_errors
from hf_msa.evaluation.sweep import sweep
from hf_msa.label_families import AnyFamily
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_uacs import ExpertAnswer, UacsForSentimentAnalysis, ask_expert
from hf_msa.models.msa_language_model import ADAPTER_FOLDER
from hf_msa.models.msa_mllm import LocalMllm, Mllm, MllmRequest
from hf_msa.models.uacs_prompts import answer_text
from hf_msa.training.calibration import fit_temperature
from hf_msa.training.language_models import check_language_model, fit_verbalizer, locate_language_model, lora_arguments
from hf_msa.training.stages import RunContext
from hf_msa.training.ubm import UbmTrainer, validation_logits

from .thresholds import AgreementFit, fit_agreement, require_tau

STAGES = ("ubm", "lora", "calibration")
FINAL_STAGE = "ubm"
LORA_STAGES = ("lora",)

ANSWERS_FILE = "answers.jsonl"
KEPT = (f"calibration/{ANSWERS_FILE}",)


def run(context: RunContext) -> MsaPreTrainedModel:
    """Train the small model, the adapter where the recipe wants one, and calibrate."""
    config = cast(UacsConfig, context.config)
    locate_language_model(config)
    if not (context.stage_folder("calibration") / "stage.json").is_file():
        lora = "lora" if config.expert_adapter else None
        check_language_model(context, UacsForSentimentAnalysis, lambda *given: first_question(context, *given), lora)
    model = context.train_stage("ubm", UacsForSentimentAnalysis, final=True, trainer_class=UbmTrainer)
    model.media = None if context.media is None else context.media.load
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


def validation_requests(context: RunContext, model: UacsForSentimentAnalysis) -> Iterator[MllmRequest]:
    """What the expert is asked about each validation row, made by the code that asks it in the cascade.

    Of the rows something is dropped if the recipe selects under a protocol. They come one after the other: the recordings
    of a whole split would not fit into memory.

    Args:
        context: The run.
        model: Its system.
    """
    split = "validation"
    rows = context.rows[split]
    protocol = context.collator(split).protocol.bind(rows.ids)
    collator = MsaCollator(context.processor, protocol, split=split)
    for members in rows.batches():
        yield from model.expert_requests(members, collator(members), context.processor)


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
            expert = cast(LocalMllm, model.load_language_model(False))
            model.set_expert(expert)
            examples, validation = (AnsweredRows(model, context.rows[split]) for split in ("train", "validation"))
            arguments = lora_arguments(context, "lora", LoraTrainingArguments)
            lengths = context.rows["train"].lengths.get("text")
            trainer = LoraTrainer(expert, arguments, examples, str(model.config.expert_model), validation, lengths)
        state = trainer.fit()
        if trainer.is_world_process_zero():
            save_adapter(trainer.adapted, folder)
        model.set_expert(None)
        return training_facts(state)

    context.made_stage("lora", learn, every_process=True)
    # Calibration asks the expert as a user will load it: with the adapter read from its files.
    model.set_adapter_folder(folder)


# --- The thresholds ---


def calibrate(context: RunContext, model: UacsForSentimentAnalysis) -> None:
    """Set temperature and thresholds on the validation split, both models on all of it; or read what was found.

    A threshold that the recipe gives stays; its fit is kept beside it all the same.

    Raises:
        MsaError: If the expert cannot be loaded or reached, or a group of samples is empty and no threshold is given.
    """
    facts = context.made_stage("calibration", lambda folder: find_thresholds(context, model, folder / ANSWERS_FILE))
    for name in ("temperature", "tau_1", "tau_2", "calibration"):
        setattr(model.config, name, facts[name])


def find_thresholds(context: RunContext, model: UacsForSentimentAnalysis, answers: Path) -> dict[str, Any]:
    """Temperature, thresholds and the fits behind them.

    Args:
        context: The run.
        model: Its system; its temperature is set, as the uncertainties depend on it.
        answers: Where the expert's answers are kept as they come.
    """
    config, rows = model.config, context.rows["validation"]
    with small_model_alone(config):
        if config.calibrate_temperature:
            config.temperature = fit_temperature(*validation_logits(context, model))
        protocol = context.collator("validation").protocol
        (small,), _ = sweep(model, context.processor, rows, [Condition(0, "validation", protocol)])
    fits: dict[str, AgreementFit] = {
        "small": fit_agreement(small["prediction"], rows.labels, small["uncertainty"], model.config.family),
    }
    unparsed: int | None = None
    if config.route != "fast":
        with as_msa_errors():
            requests = validation_requests(context, model)
            given = cached_answers(answers, model.expert, requests, config, total=len(rows))
        fits["expert"] = fit_answers(given, rows, config.family)
        unparsed = sum(answer.score is None for answer in given)
    taus: dict[str, float | None] = {"tau_1": config.tau_1, "tau_2": config.tau_2}
    for field, name in (("tau_1", "small"), ("tau_2", "expert")):
        if taus[field] is None and name in fits:
            taus[field] = require_tau(fits[name], config.threshold_lambda, config.threshold_beta, field)
    return {
        "temperature": config.temperature,
        **taus,
        "calibration": {name: fit.to_dict() for name, fit in fits.items()},
        "unparsed": unparsed,
    }


@contextlib.contextmanager
def small_model_alone(config: UacsConfig) -> Iterator[None]:
    """Take the fast route for a while."""
    route = config.route
    config.route = "fast"
    try:
        yield
    finally:
        config.route = route


def fit_answers(answers: Sequence[ExpertAnswer], rows: MsaRows, family: AnyFamily) -> AgreementFit:
    """The fit of the expert's answers; those without a number are left out.

    Args:
        answers: One per row.
        rows: With labels.
        family: The label family.
    """
    scores: NDArray[np.float64] = np.array([answer.score or 0.0 for answer in answers])
    return fit_agreement(scores, rows.labels, np.array([answer.uncertainty for answer in answers]), family)


def cached_answers(
    file: Path, expert: Mllm, requests: Iterable[MllmRequest], config: UacsConfig, total: int | None = None
) -> list[ExpertAnswer]:
    """Ask the expert what it has not answered yet, and keep each answer as soon as it is there.

    Args:
        file: One JSON object per line and answer; what an earlier, interrupted call left is used.
        expert: Who is asked.
        requests: What; each is let go when it is answered.
        config: See `ask_expert`; as many requests are asked together as it says.
        total: How many there are, for the progress bar.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    known = dict(_read_answers(file))
    digests: list[str] = []
    waiting: dict[str, MllmRequest] = {}
    with file.open("a", encoding="utf-8") as lines:

        def ask() -> None:
            chunk = list(waiting.values())
            for request, answer in zip(chunk, ask_expert(expert, chunk, config), strict=True):
                known[request.digest] = answer
                fields = {"request": request.digest, **dataclasses.asdict(answer)}
                if answer.score is None:
                    fields["uncertainty"] = None
                lines.write(json.dumps(fields, ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            waiting.clear()

        for request in tqdm(requests, desc="questions to the expert", total=total, leave=False, disable=None):
            digests.append(request.digest)
            if request.digest not in known:
                waiting[request.digest] = request
            if len(waiting) == config.expert_batch_size:
                ask()
        if waiting:
            ask()
    return [known[digest] for digest in digests]


def _read_answers(file: Path) -> Iterator[tuple[str, ExpertAnswer]]:
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        # Cut off while it was written: that answer is asked for again.
        text = text[: text.rfind("\n") + 1]
        file.write_text(text, encoding="utf-8")
    # Not splitlines: an answer may hold other separators of lines, such as U+2028.
    for line in text.removesuffix("\n").split("\n") if text else ():
        fields: Mapping[str, Any] = json.loads(line)
        uncertainty = fields["uncertainty"]
        yield (
            fields["request"],
            ExpertAnswer(fields["text"], fields["score"], math.inf if uncertainty is None else uncertainty),
        )
