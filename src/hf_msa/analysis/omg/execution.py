"""OMG-Agent at work on batches of rows: what is planned and retrieved for them, and how its tools pool what they find."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from hf_msa.analysis.common.prediction_columns import Floats
from hf_msa.analysis.common.trained_runs import TrainedRun
from hf_msa.data.missing import CompleteProtocol, FixedPattern, MissingProtocol, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import as_msa_errors
from hf_msa.evaluation.statistics import confidence_interval, resample_counts
from hf_msa.evaluation.sweep import MaskedBatch, masked_batches
from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.modeling_omg import Conditions, OmgForSentimentAnalysis, Perception
from hf_msa.models.processing_msa import MsaProcessor

BATCH_SIZE = 64
"""Rows that are looked at together; no number depends on it."""

VECTORS = ("plan_vectors", "constraint_vectors", "observation_vectors")
"""What the planner gives, in the order in which `OmgForSentimentAnalysis.conditions` takes it."""

Estimate = tuple[list[float], Floats]
"""One value per training seed, and their mean in each bootstrap resample of the samples."""

_Key = TypeVar("_Key", bound=Hashable)


def load_omg(run: TrainedRun, rows: MsaRows) -> tuple[OmgForSentimentAnalysis, MsaProcessor]:
    """Load the model and the processor of a run of OMG-Agent; see `TrainedRun.load`."""
    model, processor = run.load(rows)
    return cast(OmgForSentimentAnalysis, model), processor


def row_batches(
    model: OmgForSentimentAnalysis,
    processor: MsaProcessor,
    rows: MsaRows,
    protocol: MissingProtocol | None,
    what: str,
    places: Iterable[int] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[MaskedBatch]:
    """`masked_batches` under one protocol, None for complete rows, in the order of the rows unless `places` are given."""
    order = range(len(rows)) if places is None else places
    protocols = [protocol or CompleteProtocol()]
    return masked_batches(model, processor, rows, protocols, what, places=order, batch_size=batch_size)


def plan_and_retrieve(
    model: OmgForSentimentAnalysis, processor: MsaProcessor, batch: MaskedBatch
) -> tuple[Perception, Conditions]:
    """What the executor is given of an incomplete batch; the samples' own entries in the knowledge base are left out.

    Raises:
        MsaError: If the model has no planner, or its language model cannot be used.
    """
    with as_msa_errors():
        _, vectors = model.told(batch.inputs, batch.members, processor)
        perception = model.perceive(batch.inputs)
        plan, constraints, observation = map(vectors.get, VECTORS)
        own = model.own_entries(batch.members)
        return perception, model.conditions(perception, plan, constraints, observation, own)


def incomplete_patterns(config: OmgConfig) -> list[FixedPattern]:
    """Every set of modalities that may be left, except all of them, in the order of the paper's tables."""
    tested = [protocol for _, _, protocol in conditions("fixed", config.modalities, None, (0,))]
    return [cast(FixedPattern, protocol) for protocol in tested[:-1]]


def joined(batches: Sequence[Mapping[_Key, Tensor]]) -> dict[_Key, Floats]:
    """The values of all samples, of those of batches of them."""
    return {key: torch.cat([batch[key] for batch in batches]).double().cpu().numpy() for key in batches[0]}


def stacked(seeds: Sequence[Mapping[_Key, Floats]]) -> dict[_Key, Floats]:
    """The values of all training seeds (S, N), of those of each."""
    return {key: np.stack([seed[key] for seed in seeds]) for key in seeds[0]}


def pooled(values: Floats) -> Estimate:
    """The mean over samples.

    Args:
        values: One number per training seed and sample (S, N).
    """
    counts = resample_counts(values.shape[1])
    return values.mean(axis=1).tolist(), counts @ values.mean(axis=0) / values.shape[1]


def bars(estimates: Sequence[Estimate]) -> tuple[Floats, Floats]:
    """The lengths of N bars, and how far their 95 % bootstrap intervals reach to both sides (2, N)."""
    means = np.array([np.mean(values) for values, _ in estimates])
    low, high = np.array([confidence_interval(resampled) for _, resampled in estimates]).T
    # A percentile interval can leave out the mean of a small sample.
    return means, np.maximum(np.stack([means - low, high - means]), 0)
