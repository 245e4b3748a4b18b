"""Labels of a split: the multimodal ones, each modality's own where it was annotated, and what a sample corpus planted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_msa.data.loading import dataset_facts, load_split
from hf_msa.data.schema import ID, LABEL
from hf_msa.errors import MsaError
from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.models.msa_schema import UNIMODAL_LABEL_KEYS


@dataclass(frozen=True)
class SplitLabels:
    """The labels of one split.

    Attributes:
        ids: The N sample ids.
        multimodal: The labels, float32 (N,).
        unimodal: Per modality its own labels, float32 (N,); empty where the data set has none.
        family: The label family.
    """

    ids: tuple[str, ...]
    multimodal: NDArray[np.float32]
    unimodal: dict[str, NDArray[np.float32]]
    family: LabelFamily

    def classes(self, modality: str | None = None) -> NDArray[np.int64]:
        """Indices into `SENTIMENT_CLASSES` by the multimodal labels, or by those of a modality (N,)."""
        return self.family.polarity(self.multimodal if modality is None else self.unimodal[modality])

    def of(self, ids: Sequence[str], labels: ArrayLike, what: str) -> "SplitLabels":
        """Put the rows into the order of predictions.

        Args:
            ids: Sample ids of the predictions.
            labels: Their labels.
            what: What messages call the predictions.

        Raises:
            MsaError: If the predictions are of other samples than these.
        """
        place = {name: index for index, name in enumerate(self.ids)}
        absent = [name for name in ids if name not in place]
        order = np.array([place.get(name, 0) for name in ids], dtype=np.int64)
        if absent or (self.multimodal[order] != np.asarray(labels, dtype=np.float32)).any():
            raise MsaError(
                f"{what} was evaluated on other samples or labels than the data holds"
                f"{f' (it has no sample {absent[0]!r})' if absent else ''}; give the data set that it was evaluated on."
            )
        unimodal = {name: values[order] for name, values in self.unimodal.items()}
        return SplitLabels(tuple(ids), self.multimodal[order], unimodal, self.family)

    def disagreeing(self, modality: str) -> NDArray[np.bool_]:
        """Where a modality's own class is not the multimodal one, (N,)."""
        return np.not_equal(self.classes(modality), self.classes())


def read_labels(data: str, split: str) -> SplitLabels:
    """Read the labels of one split of a prepared data set.

    Raises:
        MsaError: If there is no such data or split, it is empty, or a sample lacks a label.
    """
    dataset = load_split(data, split)
    keys = {modality: key for modality, key in UNIMODAL_LABEL_KEYS.items() if key in dataset.column_names}
    labels = {name: np.asarray(dataset[name][:], dtype=np.float32) for name in (LABEL, *keys.values())}
    for name, values in labels.items():
        if np.isnan(values).any():
            raise MsaError(
                f"{int(np.isnan(values).sum())} of {values.size} samples of {data!r} have no {name}; complete it or "
                "take the column out."
            )
    unimodal = {modality: labels[key] for modality, key in keys.items()}
    return SplitLabels(tuple(dataset[ID][:]), labels[LABEL], unimodal, dataset_facts(data).family)


def planted_rows(data: str, split: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield some of what is planted in each sample of a split of a sample corpus; nothing of other data."""
    from hf_msa.data.sample_corpus.corpus_files import is_sample_corpus, stream_planted

    if is_sample_corpus(data):
        yield from stream_planted(data, split, columns)


def planted_liars(data: str, split: str) -> dict[str, str] | None:
    """Which modality lies in each sample of a sample corpus (``"none"`` or its name), by id; None for other data."""
    return {row["id"]: row["lying_modality"] for row in planted_rows(data, split, ("id", "lying_modality"))} or None


def best_lie_areas(data: str) -> tuple[dict[str, float], int]:
    """The AUC of the best possible guess that a modality lies, and of how many clips, of a sample corpus that was checked.

    Empty and 0 for other data, for version 1, and for corpora of too few clips.
    """
    from hf_msa.data.sample_corpus.corpus_files import read_checks

    found = (read_checks(data) or {}).get("mechanisms") or {}
    return {name: area for name, area in found.get("lies", {}).items() if area is not None}, found.get("clips", 0)
