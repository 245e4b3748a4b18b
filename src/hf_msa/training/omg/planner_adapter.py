"""Adapting OMG-Agent's planner: a language model learns to plan from a part of a clip as it would from all of it.

What it learns from are its own plans of complete training clips, the best by its own judgement, in which the sentiment is
the word for the label. It is asked about the same clips with some modalities missing, others in each epoch, and only the
tokens of the plan count. The paper names no recipe; that there is an adapter, and all of this, is ours.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_msa.errors import MsaError
from hf_msa.files import write_json
from hf_msa.models.msa_mllm import LocalMllm, adapter_digest
from hf_msa.models.omg_observation import Observation
from hf_msa.models.omg_plan import Plan, sentiment_word
from hf_msa.models.omg_planner import MllmPlanner
from hf_msa.training.lora import LoraSettings, LoraTrainer, LoraTrainingArguments, MllmExample, save_adapter

from .fit_planner import fit_centering, randomly_restricted

TARGETS_FILE = "targets.json"
_AT_ONCE = 64


@dataclass
class PlannerTrainingArguments(LoraTrainingArguments):
    """`LoraTrainingArguments` with two epochs."""

    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over the training split."})


class PlanExamples(Sequence[MllmExample]):
    """Training clips as questions for plans, each made when it is needed, with the plans that are to be given.

    Args:
        planner: Asks as it does when it plans.
        observations, targets: Complete clips, and a plan for each.
        seed: Of what is missing; another `draw` makes other modalities go missing (`randomly_restricted`).
    """

    def __init__(
        self, planner: MllmPlanner, observations: Sequence[Observation], targets: Sequence[Plan], seed: int = 0
    ) -> None:
        self._planner, self._observations, self._targets, self._seed = planner, observations, targets, seed
        self.draw = 0

    def __len__(self) -> int:
        return len(self._observations)

    def __getitem__(self, index: Any) -> Any:
        """Make the example of a clip."""
        seen = randomly_restricted(self._observations[index], self._seed, self.draw)
        return MllmExample(self._planner.request(seen), self._targets[index].to_text())


class _DrawOfEpoch(TrainerCallback):
    """Makes other modalities go missing in each epoch, the same ones in a run that was interrupted in it."""

    def __init__(self, examples: PlanExamples) -> None:
        self._examples = examples

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the number of the epoch."""
        self._examples.draw = int(state.epoch or 0)


def target_plans(planner: MllmPlanner, observations: Sequence[Observation], labels: Sequence[float]) -> list[Plan]:
    """The planner's best plan of each complete training clip, with the word for its label as the sentiment."""
    targets: list[Plan] = []
    for begin in tqdm(range(0, len(labels), _AT_ONCE), desc="plans to learn from", leave=False, disable=None):
        some = range(begin, min(begin + _AT_ONCE, len(labels)))
        for index, choice in zip(some, planner.plan([observations[index] for index in some]), strict=True):
            word = sentiment_word(labels[index], planner.config.family)
            targets.append(dataclasses.replace(choice.plan, sentiment=word))
    return targets


def train_planner_adapter(
    planner: MllmPlanner,
    observations: Sequence[Observation],
    labels: Sequence[float],
    arguments: LoraTrainingArguments,
    folder: str | os.PathLike[str],
    settings: LoraSettings | None = None,
) -> dict[str, Any]:
    """Teach a planner's language model to plan from a part of a clip.

    The targets are kept in the arguments' output folder, and training goes on from the last complete checkpoint there, so
    an interrupted call can be repeated. Afterwards the planner asks the adapted model. Its centring is taken away: the
    means are those of other vectors now, so `fit_centering` has to follow.

    Args:
        planner: With a model on this machine that has no adapter yet. Without centring it is centred first, on the
            complete clips.
        observations: Of the training split alone, complete; they may be made when they are asked for.
        labels: Their scores.
        arguments: Of the training, its seed among them.
        folder: Where the adapter goes; replaced as a whole.
        settings: Shape of the adapter.

    Returns:
        Facts for the log, as JSON values: `samples`, `epochs`, `history` of the losses, and `adapter`, the hash of its
        weights.

    Raises:
        MsaError: If the model is not on this machine or the numbers of clips and labels differ.
    """
    mllm = planner.mllm
    if not isinstance(mllm, LocalMllm):
        raise MsaError(
            f"The model {mllm.name!r} is not on this machine and cannot be adapted; give a folder or Hub name."
        )
    if len(observations) != len(labels):
        raise MsaError(f"{len(observations)} clips and {len(labels)} labels were given; give one label for each clip.")
    file = Path(str(arguments.output_dir)) / TARGETS_FILE
    if PartialState().is_main_process and not file.is_file():
        if planner.centering is None:
            fit_centering(planner, observations)
        write_json(file, [plan.to_dict() for plan in target_plans(planner, observations, labels)])
    PartialState().wait_for_everyone()
    targets = [Plan.from_dict(values) for values in json.loads(file.read_text(encoding="utf-8"))]
    examples = PlanExamples(planner, observations, targets, arguments.seed)
    trainer = LoraTrainer(mllm, arguments, examples, str(planner.identity["model"]), settings)
    trainer.add_callback(_DrawOfEpoch(examples))
    state = trainer.fit()
    if trainer.is_world_process_zero():
        save_adapter(trainer.adapted, folder)
    PartialState().wait_for_everyone()
    planner.adapter, planner.centering = adapter_digest(folder), None
    history = [entry for entry in state.log_history if "loss" in entry]
    return {"samples": len(examples), "epochs": state.epoch, "adapter": planner.adapter, "history": history}
