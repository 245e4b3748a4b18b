"""Fitting OMG-Agent's planners to the training split, and adapting the language model of one.

Fitted are the means of vectors and, for the light planner, lexicon and probes. A language model learns to plan from a part
of a clip as it would from all of it: what it learns from are its own plans of complete training clips, the best by its own
judgement, or entity and action by rules; in which the sentiment is the word for the label. Of all epochs the one counts that
such plans of the validation split are most probable after. It is asked about the same clips with some modalities missing,
others in each epoch, and only the tokens of the plan count. The paper names no recipe; that there is an adapter, and all of
this, is ours.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_msa.errors import MsaError
from hf_msa.files import write_json
from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.msa_answer_store import AnswerStore
from hf_msa.models.msa_mllm import LocalMllm, adapter_digest
from hf_msa.models.msa_schema import MODALITIES
from hf_msa.models.msa_verbalizer import MsaVerbalizer
from hf_msa.models.omg_light_planner import Lexicon, LightPlanner, RidgeProbe, rule_entity_action, tokenize
from hf_msa.models.omg_observation import Observation
from hf_msa.models.omg_plan import FALLBACK_PLAN, Plan, read_plan, sentiment_word
from hf_msa.models.omg_planner import Centering, MllmPlanner, Planner
from hf_msa.training.lora import LoraTrainer, LoraTrainingArguments, MllmExample, save_adapter, training_facts

from .plans import patterns

TARGETS_FILE = "targets.json"
VALIDATION_TARGETS_FILE = "validation_targets.json"
# Observations that are planned for together: their media need not all be in memory.
_AT_ONCE = 64


def randomly_restricted(observation: Observation, seed: int, draw: int = 0) -> Observation:
    """The same clip with a random set of its modalities, at least one: each set, the whole one too, is equally likely.

    The set depends on the seed, the number of the draw, e.g. of the epoch, and what is observed alone.
    """
    names = observation.modalities
    if len(names) < 2:
        return observation
    digest = hashlib.blake2b(f"{seed} {draw} {observation.digest}".encode(), digest_size=16).digest()
    chosen = int.from_bytes(digest) % (2 ** len(names) - 1) + 1
    return observation.restricted([name for place, name in enumerate(names) if chosen >> place & 1])


def fit_centering(planner: Planner, observations: Iterable[Observation], seed: int | None = None) -> None:
    """Give a planner the means of its vectors: of all candidates that keep to the schema, and of all observations.

    Args:
        planner: A light one is fitted already.
        observations: Of the training split alone, as complete as they are; read once, some at a time.
        seed: Count each clip once more with some modalities missing (`randomly_restricted`), as plans are asked for in both
            states. None: only as it is.

    Raises:
        MsaError: If there is none.
    """
    bar = tqdm(observations, desc="plans of training clips", leave=False, disable=None)
    clips = (
        seen for whole in bar for seen in ([whole] if seed is None else [whole, randomly_restricted(whole, seed)])
    )
    sums, counts = [np.zeros(()), np.zeros(())], [0, 0]
    while chunk := list(islice(clips, _AT_ONCE)):
        read = [read_plan(text)[0] for proposed in planner.propose(chunk) for text, _ in proposed.candidates]
        texts = [plan.to_text() for plan in read if plan is not None]
        for place, contents in enumerate((texts, [planner.content(seen) for seen in chunk])):
            if contents:
                sums[place] = sums[place] + planner.vectors(contents).sum(0, dtype=np.float64)
                counts[place] += len(contents)
    if not counts[1]:
        raise MsaError("No observations were given; the means are taken over those of the training split.")
    if not counts[0]:
        sums[0], counts[0] = planner.vectors([FALLBACK_PLAN.to_text()])[0], 1
    planner.centering = Centering(*(np.asarray(sums[place] / counts[place], np.float32) for place in (0, 1)))


def fit_lexicon(texts: Sequence[str], labels: Sequence[float], prior: float = 5.0) -> Lexicon:
    """Count the words of the training transcripts; the prior has to be above 0."""
    mean = float(np.mean(labels)) if len(labels) else 0.0
    words: dict[str, tuple[int, float]] = {}
    for text, label in zip(texts, labels, strict=True):
        for word in sorted(set(tokenize(text))):
            count, total = words.get(word, (0, 0.0))
            words[word] = (count + 1, total + label - mean)
    return Lexicon(mean, words, prior)


def score_without_itself(lexicon: Lexicon, text: str, label: float) -> float:
    """A training transcript's score by a lexicon without it: a probe would otherwise trust scores too much."""
    counts = [lexicon.words[word] for word in sorted(set(tokenize(text)))]
    weights = [(total - (label - lexicon.mean)) / (count - 1 + lexicon.prior) for count, total in counts]
    return float(np.mean(weights)) if weights else 0.0


def fit_probe(features: np.ndarray, labels: np.ndarray, ridge: float = 1.0) -> RidgeProbe:
    """Minimise mean squared error + ridge * |weights|^2 over features `(rows, features)` and labels `(rows,)`.

    The ridge, above 0, is as strong for any number of rows.
    """
    center, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-9 * np.maximum(1.0, np.abs(center)), scale, 1.0)
    x, bias = (features - center) / scale, float(labels.mean())
    y = labels - bias
    weights = np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ y)
    return RidgeProbe(center, scale, weights, bias, float(np.sqrt(np.mean((y - x @ weights) ** 2))))


def fit_light_planner(
    observations: Sequence[Observation],
    labels: Sequence[float],
    encode: Callable[[Sequence[str]], np.ndarray],
    config: OmgConfig,
    verbalizer: MsaVerbalizer | None = None,
    store: AnswerStore | None = None,
    ridge: float = 1.0,
) -> LightPlanner:
    """Fit lexicon and a probe for each set of modalities; `fit_centering` is to follow.

    Args:
        observations, labels: Of the training split, as complete as it is.
        encode, config, verbalizer, store: See `LightPlanner`.
        ridge: See `fit_probe`.
    """
    texts = [seen.transcript for seen in observations]
    spoken = [(text, label) for text, label in zip(texts, labels, strict=True) if text is not None]
    lexicon = fit_lexicon([text for text, _ in spoken], [label for _, label in spoken])
    planner = LightPlanner(encode, config, lexicon, {}, verbalizer, store=store)
    rows = planner.probe_inputs(observations)
    for row, text, label in zip(rows, texts, labels, strict=True):
        if text:
            row["text"][0] = score_without_itself(lexicon, text, label)
    for pattern in patterns(MODALITIES):
        members = [index for index, row in enumerate(rows) if set(pattern) <= set(row)]
        if members:
            table = np.stack([np.concatenate([rows[index][name] for name in pattern]) for index in members])
            planner.probes[pattern] = fit_probe(table, np.array([labels[index] for index in members]), ridge)
    return planner


@dataclass
class PlannerTrainingArguments(LoraTrainingArguments):
    """`LoraTrainingArguments` with two epochs."""

    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over the training split."})


class PlanExamples(Sequence[MllmExample], TrainerCallback):
    """Training clips as questions for plans, each made when it is needed, with the plans that are to be given.

    As a callback it makes other modalities go missing in each epoch, the same ones in a run that was interrupted in it.

    Args:
        planner: Asks as it does when it plans.
        observations, targets: Complete clips, and a plan for each.
        seed: Of what is missing (`randomly_restricted`), beside the number of the draw, `draw`.
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

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the number of the epoch."""
        self.draw = int(state.epoch or 0)


def target_plans(planner: MllmPlanner, observations: Sequence[Observation], labels: Sequence[float]) -> list[Plan]:
    """A plan for each complete training clip, with the word for its label as the sentiment.

    Entity and action are those of the planner's best plan, or of rules, as the configuration's `planner_targets` says.
    """
    if planner.config.planner_targets == "rules":
        return [
            Plan(*rule_entity_action(observations[index].transcript), sentiment_word(label, planner.config.family))
            for index, label in enumerate(labels)
        ]
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
    validation: tuple[Sequence[Observation], Sequence[float]] | None = None,
    lengths: Sequence[int] | np.ndarray | None = None,
) -> dict[str, Any]:
    """Teach a planner's language model to plan from a part of a clip.

    The targets are kept in the arguments' output folder, and training goes on from the last complete checkpoint there, so
    an interrupted call can be repeated. Afterwards the planner asks the adapted model. Its centring is taken away: the
    means are those of other vectors now, so `fit_centering` has to follow.

    Args:
        planner: With a model on this machine that has no adapter yet; centred first, if it is not and its own plans are
            the targets.
        observations, labels: Of the training split alone, complete; observations may be made when they are asked for.
        arguments: Of the training, its seed among them.
        folder: Where the adapter goes; replaced as a whole.
        validation: Observations and labels of the validation split, which choose the epoch; None: the last one is taken.
        lengths: See `LoraTrainer`.

    Returns:
        Facts for the log: `samples`, `adapter`, the hash of its weights, and those of `training_facts`.

    Raises:
        MsaError: If the model is not on this machine or the numbers of clips and labels differ.
    """
    mllm = planner.mllm
    if not isinstance(mllm, LocalMllm):
        raise MsaError(
            f"The model {mllm.name!r} is not on this machine and cannot be adapted; give a folder or Hub name."
        )
    parts = {TARGETS_FILE: (observations, labels)} | (
        {} if validation is None else {VALIDATION_TARGETS_FILE: validation}
    )
    made: list[PlanExamples] = []
    for name, (clips, scores) in parts.items():
        if len(clips) != len(scores):
            raise MsaError(f"{len(clips)} clips and {len(scores)} labels were given; give one label for each clip.")
        file = Path(str(arguments.output_dir)) / name
        if PartialState().is_main_process and not file.is_file():
            if planner.centering is None and planner.config.planner_targets == "own":
                fit_centering(planner, observations, arguments.seed)
            write_json(file, [plan.to_dict() for plan in target_plans(planner, clips, scores)])
        PartialState().wait_for_everyone()
        targets = [Plan(**values) for values in json.loads(file.read_text(encoding="utf-8"))]
        made.append(PlanExamples(planner, clips, targets, arguments.seed))
    examples, *chosen_by = made
    trainer = LoraTrainer(
        mllm, arguments, examples, str(planner.identity["model"]), next(iter(chosen_by), None), lengths
    )
    trainer.add_callback(examples)
    state = trainer.fit()
    if trainer.is_world_process_zero():
        save_adapter(trainer.adapted, folder)
    PartialState().wait_for_everyone()
    planner.adapter, planner.centering = adapter_digest(folder), None
    return {"samples": len(examples), "adapter": planner.adapter, **training_facts(state)}
