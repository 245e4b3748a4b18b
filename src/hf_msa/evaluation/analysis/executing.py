"""OMG-Agent over batches of rows, and what its tools share: what is missing when, intervals, labels of what is retrieved."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FixedPattern, MissingProtocol, apply_missing, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import as_msa_errors
from hf_msa.evaluation.metrics import family_metrics
from hf_msa.evaluation.statistics import confidence_interval, resample_counts
from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.modeling_omg import Conditions, OmgForSentimentAnalysis, Perception
from hf_msa.models.msa_schema import ATTENTION_MASK_KEYS, MISSING_MASK_KEYS, VALUE_KEYS
from hf_msa.models.processing_msa import MsaProcessor

from .runs import TrainedRun
from .writing import format_number, format_spread

Floats = NDArray[np.float64]

BATCH_SIZE = 64
"""Rows that are looked at together; no number depends on it."""

_KEYS = {*VALUE_KEYS.values(), *ATTENTION_MASK_KEYS.values(), *MISSING_MASK_KEYS.values()}


@dataclass(frozen=True)
class RowBatch:
    """Some rows of a split, before and after something was dropped.

    Attributes:
        indices: Their places in the split.
        members: The rows themselves.
        labels: In label units `(batch,)`.
        complete: What the model's forward takes of the complete rows.
        inputs: What it takes of the rows as the protocol leaves them.
    """

    indices: list[int]
    members: list[dict[str, Any]]
    labels: Tensor
    complete: dict[str, Tensor]
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class Told:
    """What a model knows of an incomplete batch, and the truth.

    Attributes:
        perception: Of what is left.
        conditions: Plan, observation and evidence.
        whole: Perception of the complete rows.
    """

    perception: Perception
    conditions: Conditions
    whole: Perception


def load_omg(run: TrainedRun, data: str, rows: MsaRows) -> tuple[OmgForSentimentAnalysis, MsaProcessor]:
    """Load the model and the processor of a run of OMG-Agent; see `TrainedRun.load`."""
    model, processor = run.load(data, rows)
    return cast(OmgForSentimentAnalysis, model), processor


def row_batches(
    model: OmgForSentimentAnalysis,
    processor: MsaProcessor,
    rows: MsaRows,
    protocol: MissingProtocol | None,
    what: str,
    chosen: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[RowBatch]:
    """Collate rows on the model's device, with a progress bar.

    Args:
        model: Says where to.
        processor: The model's.
        rows: Tokenised rows.
        protocol: What is dropped; None drops nothing.
        what: Names the work, for the bar.
        chosen: Places of the rows that are wanted; all by default.
        batch_size: Rows per batch.
    """
    indices = list(range(len(rows)) if chosen is None else chosen)
    collator = MsaCollator(processor, None, split=rows.split)
    drops = MsaCollator(processor, None if protocol is None else protocol.bind(rows.ids), split=rows.split)
    for start in tqdm(range(0, len(indices), batch_size), desc=what, leave=False, disable=None):
        part = indices[start : start + batch_size]
        members = [rows[index] for index in part]
        complete = {key: value.to(model.device) for key, value in collator(members).items()}
        batch = apply_missing(complete, drops.masks(members), processor.tokenizer.unk_token_id)
        given, left = ({key: v for key, v in values.items() if key in _KEYS} for values in (complete, batch))
        # Whether anything is dropped is what tells the two apart, so the complete rows have no masks.
        given = {key: value for key, value in given.items() if key not in MISSING_MASK_KEYS.values()}
        yield RowBatch(part, members, complete["labels"], given, left)


def tell(model: OmgForSentimentAnalysis, processor: MsaProcessor, batch: RowBatch) -> Told:
    """Plan and retrieve for an incomplete batch; what the knowledge base has under the samples' own ids is left out.

    Raises:
        MsaError: If the model has no planner, or its language model is not to be had.
    """
    with as_msa_errors():
        _, vectors = model.plan_inputs(batch.inputs, batch.members, processor)
        perception = model.perceive(batch.inputs)
        told = model.conditions(perception, vectors, model.own_entries(batch.members))
    return Told(perception, told, model.perceive(batch.complete))


def incomplete_patterns(config: OmgConfig) -> list[FixedPattern]:
    """Every set of modalities that may be left, but for all of them, in the order of the paper's tables."""
    tested = [protocol for _, _, protocol in conditions("fixed", config.modalities, None, (0,))]
    return [cast(FixedPattern, protocol) for protocol in tested[:-1]]


def shown_metrics(family: str) -> tuple[str, ...]:
    """The two metrics that summaries show, out of a label family's."""
    return ("mae", "non0_acc2" if "non0_acc2" in family_metrics(family) else "acc2")


def pooled(values: Floats) -> tuple[list[float], Floats]:
    """Means per seed, and the mean over seeds in each bootstrap resample of the samples.

    Args:
        values: One number per training seed and sample (S, N).
    """
    counts = resample_counts(values.shape[1])
    return values.mean(axis=1).tolist(), counts @ values.mean(axis=0) / values.shape[1]


def with_interval(values: Sequence[float], drawn: Floats, digits: int = 3) -> str:
    """A mean over training seeds with its spread, and the bootstrap interval over samples."""
    low, high = (format_number(end, digits) for end in confidence_interval(drawn))
    return f"{format_spread(values, digits)} [{low}, {high}]"
