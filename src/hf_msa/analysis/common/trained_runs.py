"""What the tools read: finished runs with their models and checkpoints, and the rows of a data set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from hf_msa.data.collator import MsaCollator
from hf_msa.data.loading import load_msa
from hf_msa.data.missing import MissingProtocol, protocol_from_dict
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import SPLITS
from hf_msa.errors import MsaError, unknown_name
from hf_msa.evaluation.checkpoints import check_widths, find_models, load_checkpoint
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.modeling_tcmr import TcmrPolarityClassifier
from hf_msa.models.processing_msa import MsaProcessor

ALL_SPLITS = "all"
"""The name that stands for all splits together."""

_MASKED_AT_ONCE = 256


@dataclass(frozen=True)
class TrainedRun:
    """One seed's folder, as `hf-msa train` wrote it.

    Attributes:
        folder: Where it is.
        facts: The content of its run.json.
    """

    folder: Path
    facts: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The training seed."""
        return int(self.facts["seed"])

    @property
    def name(self) -> str:
        """Method and ablation."""
        ablation = self.facts["ablation"]
        return str(self.facts["method"]) + (f" ({ablation})" if ablation else "")

    def load(self, data: str, rows: MsaRows) -> tuple[MsaPreTrainedModel, MsaProcessor]:
        """Load the final model, in eval mode, and its processor, and check that they fit the rows of `data`."""
        model, processor = load_checkpoint(str(self.folder))
        check_widths(model, rows, str(self.folder))
        return model, processor

    def processor(self) -> MsaProcessor:
        """Load the processor alone."""
        return MsaProcessor.from_pretrained(self.folder)

    def classifier(self) -> TcmrPolarityClassifier:
        """Load the polarity classifier of a TCMR run, frozen and in eval mode.

        Raises:
            MsaError: If its stage was deleted.
        """
        folder = self.folder / "stages" / "polarity" / "model"
        if not folder.is_dir():
            raise MsaError(
                f"{self.folder} no longer has its polarity classifier ({folder.relative_to(self.folder)}); give the "
                "folder that `hf-msa train` wrote, its stages included."
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = TcmrPolarityClassifier.from_pretrained(folder).to(device).eval()
        return cast(TcmrPolarityClassifier, model.requires_grad_(False))

    def checkpoints(self) -> list[tuple[int, Path]]:
        """The checkpoints that were kept of the final stage, as (step, folder) in order of steps.

        None where another stage came after the one that they belong to: they are not yet whole models.
        """
        stage = self.facts["selection"]["stage"]
        if self.facts["stages"][-1]["name"] != stage:
            return []
        marks = (self.folder / "stages" / stage).glob("checkpoint-*/complete.json")
        return sorted(
            (int(json.loads(mark.read_text(encoding="utf-8"))["global_step"]), mark.parent) for mark in marks
        )

    def training_protocol(self) -> MissingProtocol:
        """The missing-data protocol of training, as this seed drew from it."""
        values = dict(self.facts["settings"]["missing"]["train"])
        protocol = protocol_from_dict(values)
        return (
            protocol_from_dict(values | {"seed": self.seed})
            if hasattr(protocol, "seed") and "seed" not in values
            else protocol
        )


def find_runs(names: Sequence[str], method: str | None = None) -> list[TrainedRun]:
    """Find the seeds of the given run folders.

    Args:
        names: Folders of one seed, or of several (``seed-*`` in them).
        method: The method that the runs must be of; None for any.

    Raises:
        MsaError: If a folder is no finished run of `hf-msa train`, of another method, or the runs are of different
            kinds.
    """
    runs = []
    for name in names:
        for folder in map(Path, find_models(name)):
            file = folder / "run.json"
            if not file.is_file():
                raise MsaError(
                    f"{folder} has no run.json, so it is no run of `hf-msa train`; this tool needs the folder of one, "
                    "with its stages."
                )
            runs.append(TrainedRun(folder, json.loads(file.read_text(encoding="utf-8"))))
    for run in runs:
        if method is not None and run.facts["method"] != method:
            raise MsaError(
                f"{run.folder} is a run of {run.facts['method']!r}, but this tool looks into {method!r}; give a run "
                "of it."
            )
        if run.name != runs[0].name:
            raise MsaError(
                f"{runs[0].folder} is a run of {runs[0].name} and {run.folder} one of {run.name}; give seeds of one "
                "kind, and analyse the others apart."
            )
    return runs


def load_stage_checkpoint(folder: Path) -> MsaPreTrainedModel:
    """Load the model of a checkpoint that the trainer kept, in eval mode, on the GPU where there is one."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    return cast(MsaPreTrainedModel, model.to("cuda" if torch.cuda.is_available() else "cpu").eval())


def load_rows(data: str, split: str, run: TrainedRun) -> list[MsaRows]:
    """Load and tokenise the rows of one split, or of all of them, as the run's model reads them.

    Args:
        data: Folder or Hub name of a prepared data set.
        split: A split, or ``"all"``.
        run: The run whose processor tokenises.

    Raises:
        MsaError: If there is no such split, or it is empty.
    """
    if split not in (*SPLITS, ALL_SPLITS):
        raise unknown_name("split", split, (*SPLITS, ALL_SPLITS))
    processor = run.processor()
    if split == ALL_SPLITS:
        found = [(name, dataset) for name, dataset in load_msa(data).items() if len(dataset)]
    else:
        found = [(split, load_msa(data, split))]
    for name, dataset in found:
        if not len(dataset):
            raise MsaError(f"The split {name!r} of {data!r} is empty; there is nothing to analyse.")
    return [MsaRows(dataset, name, processor.tokenizer, processor.text_max_length) for name, dataset in found]


def load_split(data: str, split: str, run: TrainedRun) -> MsaRows:
    """Like `load_rows`, for a tool that looks at a single split."""
    if split == ALL_SPLITS:
        raise MsaError(f"This tool looks at one split; give --split {', '.join(SPLITS[:-1])} or {SPLITS[-1]}.")
    return load_rows(data, split, run)[0]


def text_masks(processor: MsaProcessor, rows: MsaRows, protocol: MissingProtocol) -> list[NDArray[np.bool_]]:
    """Which tokens of each row a protocol drops: per row (T,), True = dropped, special tokens included as False."""
    collator = MsaCollator(processor, protocol.bind(rows.ids), split=rows.split)
    masks: list[NDArray[np.bool_]] = []
    for start in range(0, len(rows), _MASKED_AT_ONCE):
        members = [rows[index] for index in range(start, min(start + _MASKED_AT_ONCE, len(rows)))]
        made = collator.masks(members).masks["text"]
        masks += [mask[: len(row["input_ids"])] for mask, row in zip(made, members, strict=True)]
    return masks
