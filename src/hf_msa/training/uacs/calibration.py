"""The thresholds of U-ACS, set on a validation split that both models answer as a whole."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import Condition, MissingProtocol
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError, as_msa_errors
from hf_msa.evaluation.sweep import sweep
from hf_msa.label_families import AnyFamily
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.modeling_uacs import ExpertAnswer, UacsForSentimentAnalysis
from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.processing_msa import MsaProcessor
from hf_msa.models.uacs_rules import VERIFY, answer_routes, threshold_for
from hf_msa.training.language_models import warn_of_unreadable

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
    """The expert's answers to `validation_requests`, their seconds with those of making the questions.

    What is known is not asked again.

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
        while True:
            started = time.perf_counter()
            chunk = list(islice(requests, size))
            if not chunk:
                break
            each = (time.perf_counter() - started) / len(chunk)
            answers += [replace(one, seconds=one.seconds + each) for one in model.ask_expert(chunk)]
            bar.update(len(chunk))
    return answers


def find_thresholds(
    model: UacsForSentimentAnalysis, processor: MsaProcessor, rows: MsaRows, protocol: MissingProtocol
) -> dict[str, Any]:
    """Find both thresholds; one that the configuration gives stays, with its fit kept beside it all the same.

    Warns of unreadable answers, of groups of few samples, and of uncertainties that are not higher where the polarity is
    wrong.

    Args:
        model: The system.
        processor: The model's processor.
        rows: Of the validation split, with labels.
        protocol: What is dropped of them.

    Returns:
        `tau_1`, `tau_2`, `calibration` and `calibrated_with` as in the configuration; `unparsed`, the number of answers that
        could not be read; `expected`, by these rows: the `share` of samples that the small model hands on and, with an
        expert, `calls` and `seconds` per sample.

    Raises:
        MsaError: If the expert cannot be loaded or reached, a group of samples is empty and no threshold is given, or the
            budget does not suffice for the small model.
    """
    config = model.config
    if config.route == "fast" and config.budget_seconds is not None:
        raise MsaError(
            "budget_seconds needs to know how long the expert takes, and the route 'fast' has none; set route=cascade, or "
            "give budget_share."
        )
    with small_model_alone(config):
        (small,), _ = sweep(model, processor, rows, [Condition(0, rows.split, protocol)])
    fits = {"small": fit_agreement(small["prediction"], rows.labels, small["uncertainty"], config.family)}
    answers: list[ExpertAnswer] | None = None
    taus: dict[str, float | None] = {"tau_1": config.tau_1, "tau_2": config.tau_2}
    if config.route != "fast":
        answers = validation_answers(model, processor, rows, protocol)
        fits["expert"] = fit_answers(answers, rows, config.family)
        warn_of_unreadable("expert", sum(answer.score is None for answer in answers), len(answers))
        if taus["tau_2"] is None:
            taus["tau_2"] = threshold_of(fits["expert"], config, "tau_2")
    calls, seconds = np.zeros(len(rows)), np.zeros(len(rows))
    if answers is not None:
        calls = expected_calls(small, answers, config, taus["tau_2"])
        seconds = calls * np.array([answer.seconds for answer in answers])
    if taus["tau_1"] is None and config.budget_share is None and config.budget_seconds is None:
        taus["tau_1"] = threshold_of(fits["small"], config, "tau_1")
    elif taus["tau_1"] is None:
        taus["tau_1"] = budget_threshold(small["uncertainty"], small["seconds"], seconds, config)
    handed_on = small["uncertainty"] > taus["tau_1"]
    expected = {"share": float(handed_on.mean())}
    if answers is not None:
        expected["calls"] = float((calls * handed_on).mean())
        expected["seconds"] = float((small["seconds"] + seconds * handed_on).mean())
    return {
        **taus,
        "calibration": {name: fit.to_dict() for name, fit in fits.items()},
        "calibrated_with": None if answers is None or config.tau_2 is not None else model.calibrated_with(),
        "unparsed": None if answers is None else sum(answer.score is None for answer in answers),
        "expected": expected,
    }


def threshold_of(fit: AgreementFit, config: UacsConfig, field: str) -> float:
    """The threshold of a fit, see `require_tau`, with a warning where it means little."""
    tau = require_tau(fit, config.threshold_lambda, config.threshold_beta, field)
    if faults := fit.faults():
        logging.getLogger(__name__).warning("%s of %.4g tells little: %s.", field, tau, ", and ".join(faults))
    return tau


def expected_calls(
    small: Mapping[str, Any], answers: Sequence[ExpertAnswer], config: UacsConfig, tau_2: float | None
) -> NDArray[np.float64]:
    """How often the expert would be asked about each sample, were it handed on: twice where its answer is verified."""
    if config.route != "cascade" or tau_2 is None:
        return np.ones(len(answers))
    scores = [
        own if answer.score is None else answer.score for own, answer in zip(small["prediction"], answers, strict=True)
    ]
    routes = answer_routes(
        small["prediction"].astype(np.float64),
        np.array(scores, dtype=np.float64),
        np.array([answer.uncertainty for answer in answers]),
        tau_2,
        neutral_zone=config.neutral_zone,
        neutral=config.family.neutral,
        agreement_rule=config.agreement_rule,
        disagreement_rule=config.disagreement_rule,
    )
    return np.where(routes == VERIFY, 2.0, 1.0)


def budget_threshold(
    uncertainties: NDArray[np.floating[Any]],
    small_seconds: NDArray[np.floating[Any]],
    expert_seconds: NDArray[np.floating[Any]],
    config: UacsConfig,
) -> float:
    """The threshold that hands on as many of the most uncertain samples as the budget allows.

    Args:
        uncertainties: Of the small model `(samples,)`.
        small_seconds: What it takes `(samples,)`.
        expert_seconds: What the expert takes for each sample if it is handed on `(samples,)`.
        config: With `budget_share` or `budget_seconds`.

    Raises:
        MsaError: If the small model alone takes longer.
    """
    samples = len(uncertainties)
    if config.budget_share is not None:
        # A share that is a whole number of samples may lie just below it.
        count = math.floor(config.budget_share * samples + 1e-9)
    else:
        left = float(config.budget_seconds or 0) - float(small_seconds.mean())
        if left < 0:
            raise MsaError(
                f"The small model alone takes {small_seconds.mean():.3g} seconds per sample, more than budget_seconds="
                f"{config.budget_seconds}; give more."
            )
        order = np.argsort(-uncertainties, kind="stable")
        means = np.cumsum(expert_seconds[order]) / samples
        count = int(np.searchsorted(means, left, side="right"))
    return threshold_for(uncertainties.astype(np.float64), count)


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
