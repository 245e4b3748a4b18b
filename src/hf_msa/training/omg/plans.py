"""Plans of rows: what `forward` of OMG-Agent takes of them, for each row and each set of modalities that is left."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from hf_msa.data.rows import MsaRows
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.msa_schema import MISSING_MASK_KEYS
from hf_msa.models.omg_observation import Observation

_OBSERVATIONS_AT_ONCE = 64

Available = tuple[str, ...]
"""Names of the modalities that are left of a sample, in schema order."""


def patterns(modalities: Sequence[str]) -> list[Available]:
    """All sets of modalities that may be left, the complete one first."""
    return [pattern for count in range(len(modalities), 0, -1) for pattern in combinations(tuple(modalities), count)]


class CompleteObservations(Sequence[Observation]):
    """Observations of complete training rows, each made when it is needed: recordings of a split do not fit into memory.

    Args:
        model: Says what the planner gets to know.
        rows: The rows.
        processor: The model's processor.
    """

    def __init__(self, model: OmgForSentimentAnalysis, rows: MsaRows, processor: Any) -> None:
        self._model = model
        self._rows = rows
        self._processor = processor

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """The observation of a row."""
        return self._model.observations({}, [self._rows[index]], self._processor)[0]


class PlannedRows:
    """Plan vectors of a split's rows, made when they are first needed and kept in half precision.

    Args:
        model: Its planner plans, with what the model's configuration says.
        rows: The rows.
        processor: The model's processor.
    """

    def __init__(self, model: OmgForSentimentAnalysis, rows: MsaRows, processor: Any) -> None:
        self._model = model
        self._processor = processor
        self._observations = CompleteObservations(model, rows, processor)
        self._known: dict[tuple[int, Available], dict[str, NDArray[np.float16]]] = {}

    def fill(self, wanted: Iterable[Available], what: str) -> None:
        """Plan for all rows under several patterns, with a progress bar.

        Args:
            wanted: The patterns.
            what: Names the split, for the bar.
        """
        wanted = list(wanted)
        waiting: list[tuple[tuple[int, Available], Observation]] = []
        for index in tqdm(range(len(self._observations)), desc=f"plans of {what} rows", leave=False, disable=None):
            observation = self._observations[index]
            for pattern in wanted:
                if (index, pattern) not in self._known:
                    waiting.append(((index, pattern), observation.restricted(pattern)))
            if len(waiting) >= _OBSERVATIONS_AT_ONCE:
                self._plan(waiting)
                waiting = []
        self._plan(waiting)

    def _plan(self, waiting: Sequence[tuple[tuple[int, Available], Observation]]) -> None:
        if not waiting:
            return
        observations = [observation for _, observation in waiting]
        _, vectors = self._model.told_of(observations, self._processor, always=True)
        for row, (key, _) in enumerate(waiting):
            self._known[key] = {name: values[row].cpu().numpy().astype(np.float16) for name, values in vectors.items()}

    def __call__(self, indices: Sequence[int], available: Sequence[Available]) -> dict[str, Tensor]:
        """What forward takes of the plans of some rows.

        Args:
            indices: Which rows.
            available: What is left of each.
        """
        keys = list(zip(indices, available, strict=True))
        self._plan(
            [
                (key, self._observations[key[0]].restricted(key[1]))
                for key in dict.fromkeys(keys)
                if key not in self._known
            ]
        )
        found = [self._known[key] for key in keys]
        return {name: torch.from_numpy(np.stack([vectors[name] for vectors in found])).float() for name in found[0]}


def left(available: Mapping[str, Tensor]) -> list[Available]:
    """The modalities that are left of each sample of a batch.

    Args:
        available: Modality -> whether anything of it is observed `(batch,)`.
    """
    flags = torch.stack(list(available.values()), dim=1).tolist()
    return [tuple(name for name, there in zip(available, row, strict=True) if there) for row in flags]


def is_partial(inputs: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> bool:
    """Whether of any modality of any sample a part is dropped and a part is left: such samples need plans of their own."""
    return any(
        bool((inputs[key].any(dim=1) & available[name]).any())
        for name, key in MISSING_MASK_KEYS.items()
        if key in inputs and name in available
    )
