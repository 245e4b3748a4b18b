"""OMG-Agent at work on the rows of a split: batches of them with something missing, and what is planned and retrieved."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from hf_msa.analysis.common.trained_runs import TrainedRun
from hf_msa.analysis.estimates import Floats
from hf_msa.data.missing import CompleteProtocol, FixedPattern, MissingProtocol, conditions
from hf_msa.data.rows import MsaRows
from hf_msa.errors import as_msa_errors
from hf_msa.evaluation.sweep import MaskedBatch, masked_batches
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_batches import Conditioning, Perception
from hf_msa.models.processing_msa import MsaProcessor

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class OmgOnRows:
    """A model of OMG-Agent and rows that it is run on.

    Attributes:
        model: In eval mode.
        processor: The model's.
        rows: Tokenised rows of one split.
    """

    model: OmgForSentimentAnalysis
    processor: MsaProcessor
    rows: MsaRows

    @classmethod
    def load(cls, run: TrainedRun, rows: MsaRows, changes: Mapping[str, Any] | None = None) -> "OmgOnRows":
        """Load the model of a run, see `TrainedRun.load`."""
        model, processor = run.load(rows, changes)
        return cls(cast(OmgForSentimentAnalysis, model), processor, rows)

    def batches(
        self, protocol: MissingProtocol | None, what: str, places: Iterable[int] | None = None, batch_size: int = 64
    ) -> Iterator[MaskedBatch]:
        """`masked_batches` under one protocol, None for complete rows, in the order of the rows unless there are places."""
        order = range(len(self.rows)) if places is None else places
        protocols = [protocol or CompleteProtocol()]
        return masked_batches(
            self.model, self.processor, self.rows, protocols, what, places=order, batch_size=batch_size
        )

    def plan_and_retrieve(self, batch: MaskedBatch) -> tuple[Perception, Conditioning]:
        """What the executor is given of a batch; the samples' own entries in the knowledge base are left out.

        Raises:
            MsaError: If the model has no planner, or its language model cannot be used.
        """
        with as_msa_errors():
            _, vectors = self.model.plan_inputs(batch.inputs, batch.members, self.processor)
            perception = self.model.perceive(batch.inputs)
            return perception, self.model.conditioning(perception, vectors, self.model.own_entries(batch.members))

    def incomplete_patterns(self) -> list[FixedPattern]:
        """Every set of modalities that may be left, except all of them, in the order of the paper's tables."""
        tested = conditions("fixed", self.model.config.modalities, None, (0,))
        return [cast(FixedPattern, condition.protocol) for condition in tested[:-1]]


def joined(batches: Sequence[Mapping[_Key, Tensor]]) -> dict[_Key, Floats]:
    """The values of all samples, of those of batches of them."""
    return {key: torch.cat([batch[key] for batch in batches]).double().cpu().numpy() for key in batches[0]}


def stacked(seeds: Sequence[Mapping[_Key, Floats]]) -> dict[_Key, Floats]:
    """The values of all training seeds (S, N), of those of each."""
    return {key: np.stack([seed[key] for seed in seeds]) for key in seeds[0]}
