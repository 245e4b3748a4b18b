"""The thresholds of U-ACS, set on a validation split that both models answer as a whole."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import Condition, MissingProtocol
from hf_msa.data.rows import MsaRows
from hf_msa.errors import as_msa_errors
from hf_msa.evaluation.sweep import sweep
from hf_msa.label_families import AnyFamily
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.modeling_uacs import ExpertAnswer, UacsForSentimentAnalysis
from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.processing_msa import MsaProcessor

from .thresholds import AgreementFit, fit_agreement, require_tau

# Questions that are made before they are asked: recordings of a whole split would not fit into memory.
_ASKED_TOGETHER = 32


def validation_requests(
    model: UacsForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows, protocol: MissingProtocol
) -> Iterator[MllmRequest]:
    """What the expert is asked about each row, made by the code that asks it in the cascade, one after the other.

    Args:
        model: The system.
        processor: The model's processor.
        rows: Of the validation split.
        protocol: What is dropped of them.
    """
    collator = MsaCollator(processor, protocol.bind(rows.ids), split=rows.split)
    for members in rows.batches():
        yield from model.expert_requests(members, collator(members), processor)


def validation_answers(
    model: UacsForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows, protocol: MissingProtocol
) -> list[ExpertAnswer]:
    """The expert's answers to `validation_requests`; what is known is not asked again.

    Raises:
        MsaError: If the expert cannot be loaded or reached.
    """
    size = max(_ASKED_TOGETHER, model.config.expert_batch_size)
    answers: list[ExpertAnswer] = []
    with (
        as_msa_errors(),
        tqdm(desc="questions to the expert", total=len(rows), leave=False, disable=None) as bar,
    ):
        requests = validation_requests(model, processor, rows, protocol)
        while chunk := list(islice(requests, size)):
            answers += model.ask_expert(chunk)
            bar.update(len(chunk))
    return answers


def find_thresholds(
    model: UacsForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows, protocol: MissingProtocol
) -> dict[str, Any]:
    """Find both thresholds; one that the configuration gives stays, with its fit kept beside it all the same.

    Args:
        model: The system.
        processor: The model's processor.
        rows: Of the validation split, with labels.
        protocol: What is dropped of them.

    Returns:
        `tau_1`, `tau_2` and `calibration` as in the configuration; `unparsed`, the number of answers that could not be read.

    Raises:
        MsaError: If the expert cannot be loaded or reached, or a group of samples is empty and no threshold is given.
    """
    config = model.config
    with small_model_alone(config):
        (small,), _ = sweep(model, processor, rows, [Condition(0, rows.split, protocol)])
    fits = {"small": fit_agreement(small["prediction"], rows.labels, small["uncertainty"], config.family)}
    unparsed: int | None = None
    if config.route != "fast":
        answers = validation_answers(model, processor, rows, protocol)
        fits["expert"] = fit_answers(answers, rows, config.family)
        unparsed = sum(answer.score is None for answer in answers)
    taus: dict[str, float | None] = {"tau_1": config.tau_1, "tau_2": config.tau_2}
    for field, name in (("tau_1", "small"), ("tau_2", "expert")):
        if taus[field] is None and name in fits:
            taus[field] = require_tau(fits[name], config.threshold_lambda, config.threshold_beta, field)
    return {**taus, "calibration": {name: fit.to_dict() for name, fit in fits.items()}, "unparsed": unparsed}


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
