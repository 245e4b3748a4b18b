"""Plans of rows: what OMG-Agent's `forward` takes of them, for each row and each set of modalities that is observed."""

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
from hf_msa.models.omg_planner import Planner

# Rows whose plans are asked for together.
_ROWS_AT_ONCE = 16

Pattern = tuple[str, ...]
"""Names of the modalities that are observed of a sample, in schema order."""


def patterns(modalities: Sequence[str]) -> list[Pattern]:
    """All sets of modalities that may be observed, the complete one first."""
    return [names for count in range(len(modalities), 0, -1) for names in combinations(tuple(modalities), count)]


class CompleteObservations(Sequence[Observation]):
    """Observations of complete rows, each made when it is needed: recordings of a split do not fit into memory."""

    def __init__(self, model: OmgForSentimentAnalysis, rows: MsaRows, processor: Any) -> None:
        self._model, self._rows, self._processor = model, rows, processor

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """The observation of a row."""
        return self._model.observations({}, [self._rows[index]], self._processor)[0]


class PlannedRows:
    """Plan vectors of a split's rows, made by planners when they are first needed, kept in half precision.

    Args:
        model, rows, processor: Plan for the rows, unless there are `planners`.
        planners: Each plans for a part of the rows, in their order, to which it was not fitted.

    Attributes:
        fallbacks: How many plans stand for those of observations of which no candidate kept to the schema.
    """

    def __init__(
        self, model: OmgForSentimentAnalysis, rows: MsaRows, processor: Any, planners: Sequence[Planner] = ()
    ) -> None:
        self._model, self._processor, self._planners = model, processor, planners
        self._observations = CompleteObservations(model, rows, processor)
        self._known: dict[tuple[int, Pattern], dict[str, NDArray[np.float16]]] = {}
        self.fallbacks = 0

    def fill(self, wanted: Sequence[Pattern], what: str) -> None:
        """Plan for all rows under several patterns, with a progress bar; `what` names the split."""
        rows = range(0, len(self._observations), _ROWS_AT_ONCE)
        for begin in tqdm(rows, desc=f"plans of {what} rows", leave=False, disable=None):
            indices = range(begin, min(begin + _ROWS_AT_ONCE, len(self._observations)))
            self._plan((index, pattern) for index in indices for pattern in wanted)

    def _plan(self, keys: Iterable[tuple[int, Pattern]]) -> None:
        unknown = [key for key in dict.fromkeys(keys) if key not in self._known]
        if unknown:
            whole = {index: self._observations[index] for index in dict.fromkeys(index for index, _ in unknown)}
            observations = [whole[index].restricted(pattern) for index, pattern in unknown]
            vectors = self.vectors([index for index, _ in unknown], observations, always=True)
            halves = {name: values.cpu().numpy().astype(np.float16) for name, values in vectors.items()}
            for row, key in enumerate(unknown):
                self._known[key] = {name: values[row] for name, values in halves.items()}

    def vectors(
        self, indices: Sequence[int], observations: Sequence[Observation], always: bool = False
    ) -> dict[str, Tensor]:
        """Plan for observations of some rows; see `OmgForSentimentAnalysis.plan_observations`."""
        parts = [part_of(index, len(self._observations), max(len(self._planners), 1)) for index in indices]
        order = np.argsort(parts, kind="stable")
        found: list[dict[str, Tensor]] = []
        for part in sorted({*parts}):
            chosen = [observation for observation, own in zip(observations, parts, strict=True) if own == part]
            planner = self._planners[part] if self._planners else None
            plans, vectors = self._model.plan_observations(chosen, self._processor, always, planner)
            self.fallbacks += sum(plan.is_fallback for plan in plans or ())
            found.append(vectors)
        places = torch.from_numpy(np.argsort(order)).to(found[0]["observation_vectors"].device)
        return {name: torch.cat([one[name] for one in found])[places] for name in found[0]}

    def __len__(self) -> int:
        """Number of plans so far."""
        return len(self._known)

    def __call__(self, indices: Sequence[int], observed: Sequence[Pattern]) -> dict[str, Tensor]:
        """What `forward` takes of the plans of some rows, of each of which these modalities are observed."""
        keys = list(zip(indices, observed, strict=True))
        self._plan(keys)
        found = [self._known[key] for key in keys]
        return {name: torch.from_numpy(np.stack([vectors[name] for vectors in found])).float() for name in found[0]}


def part_of(index: int, rows: int, parts: int) -> int:
    """Which of some parts of about equal size, each of neighbouring rows, a row is in."""
    return index * parts // rows


def observed_patterns(available: Mapping[str, Tensor]) -> list[Pattern]:
    """The modalities that are observed of each sample, of modality -> whether anything of it is `(batch,)`."""
    flags = torch.stack(list(available.values()), dim=1).tolist()
    return [tuple(name for name, there in zip(available, row, strict=True) if there) for row in flags]


def is_partial(inputs: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> bool:
    """Whether of an observed modality of any sample a part is dropped: such samples need plans of their own."""
    return any(
        bool((inputs[key].any(dim=1) & available[name]).any())
        for name, key in MISSING_MASK_KEYS.items()
        if key in inputs and name in available
    )
