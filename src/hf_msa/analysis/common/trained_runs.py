"""Finished runs of `hf-msa train`: their facts, models and checkpoints, and the rows that they read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModel

from hf_msa.data.loading import load_split
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.checkpoints import check_widths, find_models, load_checkpoint
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.processing_msa import MsaProcessor
from hf_msa.training.arguments import MsaTrainingArguments

MASK_SEED = 1111
"""The seed of masks where one is enough."""


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

    @property
    def setting(self) -> dict[str, Any]:
        """What seeds of one kind have in common beside the name, by what it is called in a message."""
        learning = MsaTrainingArguments.FINAL_STAGE_ONLY
        return {
            "settings": self.facts["settings"],
            "flags": {name: value for name, value in self.facts["flags"].items() if name in learning},
            "data": self.facts["dataset"]["fingerprint"],
        }

    @property
    def processor(self) -> MsaProcessor:
        """The processor, loaded anew."""
        return MsaProcessor.from_pretrained(self.folder)

    def rows(self, data: str, split: str) -> MsaRows:
        """Load one split of a prepared data set, tokenised as the model reads it.

        Raises:
            MsaError: If there is no such split, or it is empty.
        """
        processor = self.processor
        return MsaRows(load_split(data, split), split, processor.tokenizer, processor.text_max_length)

    def load(self, rows: MsaRows, changes: Mapping[str, Any] | None = None) -> tuple[MsaPreTrainedModel, MsaProcessor]:
        """Load the final model, in eval mode, and its processor, and check that they fit the rows.

        Args:
            rows: What the model is to be run on.
            changes: Configuration fields with other values than those that were saved.
        """
        model, processor = load_checkpoint(str(self.folder), changes)
        check_widths(model, rows, str(self.folder))
        return model, processor

    def checkpoints(self) -> list[tuple[int, Path]]:
        """The checkpoints that were kept of the final stage, as (step, folder) in order of steps.

        There is none where another stage came after the one that they belong to: they are not yet whole models.
        """
        stage = self.facts["selection"]["stage"]
        if self.facts["stages"][-1]["name"] != stage:
            return []
        marks = (self.folder / "stages" / stage).glob("checkpoint-*/complete.json")
        return sorted(
            (int(json.loads(mark.read_text(encoding="utf-8"))["global_step"]), mark.parent) for mark in marks
        )


def find_runs(names: Sequence[str], method: str | None = None) -> list[TrainedRun]:
    """Find the seeds of the given run folders.

    Args:
        names: Folders of one seed, or of several (``seed-*`` in them).
        method: The method that the runs must be of; None for any.

    Raises:
        MsaError: If a folder is no finished run of `hf-msa train`, or one of another method, or the runs are not seeds of
            one kind: of one method and ablation, trained on the same rows with the same settings, each seed once.
    """
    runs: list[TrainedRun] = []
    for folder in (Path(found) for name in names for found in find_models(name)):
        file = folder / "run.json"
        if not file.is_file():
            raise MsaError(
                f"{folder} has no run.json, so it is no run of `hf-msa train`; this tool needs the folder of one, with "
                "its stages."
            )
        runs.append(TrainedRun(folder, json.loads(file.read_text(encoding="utf-8"))))
    for run in runs:
        if method is not None and run.facts["method"] != method:
            raise MsaError(
                f"{run.folder} is a run of {run.facts['method']!r}, but this tool looks into {method!r}; give a run of it."
            )
        if run.name != runs[0].name:
            raise MsaError(
                f"{runs[0].folder} is a run of {runs[0].name} and {run.folder} one of {run.name}; give seeds of one "
                "kind, and analyse the others apart."
            )
        differ = [name for name, value in run.setting.items() if value != runs[0].setting[name]]
        if differ:
            raise MsaError(
                f"{runs[0].folder} and {run.folder} were trained with different {' and '.join(differ)}; give seeds of one "
                "kind, and analyse the others apart."
            )
    seeds: dict[int, TrainedRun] = {}
    for run in runs:
        if run.seed in seeds:
            raise MsaError(
                f"{seeds[run.seed].folder} and {run.folder} are both of seed {run.seed}, which would count twice; give "
                "each seed once."
            )
        seeds[run.seed] = run
    return runs


def load_stage_checkpoint(folder: Path) -> MsaPreTrainedModel:
    """Load the model of a checkpoint that the trainer kept, in eval mode, on the GPU where there is one."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    return cast(MsaPreTrainedModel, model.to("cuda" if torch.cuda.is_available() else "cpu").eval())
