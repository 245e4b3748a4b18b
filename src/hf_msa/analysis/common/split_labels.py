"""Labels of a split: the multimodal ones, each modality's own where it was annotated, and what a sample corpus planted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


def planted_rows(data: str, split: str) -> list[dict[str, Any]] | None:
    """What is planted in each sample of a split of a sample corpus; None for other data."""
    from hf_msa.data.sample_corpus.corpus_files import CONFIG_FILE, PLANTED_FOLDER, read_planted

    if not (Path(data) / PLANTED_FOLDER / CONFIG_FILE).is_file():
        return None
    return list(read_planted(data, split).rows)


def planted_liars(data: str, split: str) -> dict[str, str] | None:
    """Which modality lies in each sample of a sample corpus (``"none"`` or its name), by id; None for other data."""
    rows = planted_rows(data, split)
    return None if rows is None else {row["id"]: row["lying_modality"] for row in rows}
