"""The planner's adapter: what it learns from, that it learns, that it can be resumed, saved and loaded."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hf_msa.errors import MsaError
from hf_msa.models.msa_mllm import LocalMllm, adapter_digest
from hf_msa.models.omg_light_planner import rule_entity_action
from hf_msa.models.omg_observation import Observation
from hf_msa.models.omg_plan import FALLBACK_PLAN, Plan
from hf_msa.models.omg_planner import MllmPlanner
from hf_msa.training.lora import AnswerCollator
from hf_msa.training.omg.planners import (
    TARGETS_FILE,
    PlanExamples,
    PlannerTrainingArguments,
    fit_centering,
    target_plans,
    train_planner_adapter,
)
from nonempty import some
from scripted_mllm import ScriptedMllm, says
from tiny import tiny_omg_config
from tiny_mllm import tiny_audio, tiny_mllm

LABELS = [-2.0, 0.0, 1.2, 3.0]
GLAD = Plan("a woman", "praises the film", "positive")
SAD = Plan("a woman", "leaves", "negative")


class Clips(Sequence[Observation]):
    """Complete clips that count how often each is read."""

    def __init__(self) -> None:
        self.reads = [0] * len(LABELS)

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError
        self.reads[index] += 1
        return Observation(f"clip number {index}", tiny_audio(index, 0.2))


def planner(mllm: Any = None, **fields: Any) -> MllmPlanner:
    config = tiny_omg_config(num_candidates=2, plan_max_new_tokens=3, **fields)
    return MllmPlanner(mllm or tiny_mllm(), config)


def arguments(folder: Path, **overrides: Any) -> PlannerTrainingArguments:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 4,
        "learning_rate": 5e-2,
        "disable_tqdm": True,
    }
    return PlannerTrainingArguments(**{**values, **overrides})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MllmPlanner, dict[str, Any], Path]]:
    """A planner that was adapted, what is known of that, and the folder of the run."""
    folder = tmp_path_factory.mktemp("planner")
    adapted = planner()
    facts = train_planner_adapter(adapted, Clips(), LABELS, arguments(folder), folder / "adapter")
    yield adapted, facts, folder


class TestTargets:
    def test_rules_ask_nothing(self) -> None:
        mllm = ScriptedMllm(says((SAD.to_text(), (-2.0,))))
        asking = planner(mllm)
        asking.config.planner_targets = "rules"
        targets = target_plans(asking, Clips(), LABELS)
        words = ["negative", "neutral", "slightly positive", "strongly positive"]
        texts = [Clips()[index].transcript for index in range(4)]
        assert targets == [Plan(*rule_entity_action(text), word) for text, word in zip(texts, words, strict=True)]
        assert not mllm.asked and not mllm.embedded

    def test_the_best_plan_of_the_complete_clip_with_the_word_of_the_label(self) -> None:
        mllm = ScriptedMllm(says((SAD.to_text(), (-2.0,)), (GLAD.to_text(), (-1.0,))))
        targets = target_plans(planner(mllm), Clips(), LABELS)
        words = ["negative", "neutral", "slightly positive", "strongly positive"]
        assert targets == [Plan(GLAD.entity, GLAD.action, word) for word in words]
        for index, request in enumerate(mllm.asked):
            assert f"clip number {index}" in request.prompt and request.audio is not None

    def test_labels_of_another_range(self) -> None:
        mllm = ScriptedMllm(says((GLAD.to_text(), (-1.0,))))
        (target,) = target_plans(planner(mllm, label_family="sims"), Clips(), [-0.6])
        assert target.sentiment == "negative"

    def test_a_target_depends_on_its_own_clip_and_label_alone(self) -> None:
        mllm = ScriptedMllm(says((GLAD.to_text(), (-1.0,))))
        changed = [*LABELS[:3], -3.0]
        one, other = (target_plans(planner(mllm), Clips(), labels) for labels in (LABELS, changed))
        assert one[:3] == other[:3] and one[3] != other[3]

    def test_the_label_is_in_no_question(self) -> None:
        examples = PlanExamples(planner(ScriptedMllm(says())), Clips(), [GLAD] * 4)
        others = PlanExamples(planner(ScriptedMllm(says())), Clips(), [SAD] * 4)
        for one, other in some(zip(examples, others, strict=True)):
            assert one.request.digest == other.request.digest and one.answer != other.answer


class TestExamples:
    def test_clips_lose_modalities_and_others_in_another_draw(self) -> None:
        examples = PlanExamples(planner(ScriptedMllm(says())), Clips(), [GLAD] * 4, seed=3)
        kept = {}
        for draw in range(8):
            examples.draw = draw
            kept[draw] = [("clip number" in e.request.prompt, e.request.audio is not None) for e in examples]
        assert {state for states in kept.values() for state in states} == {(True, True), (True, False), (False, True)}
        assert len({tuple(states) for states in kept.values()}) > 1
        examples.draw = 0
        assert [("clip number" in e.request.prompt, e.request.audio is not None) for e in examples] == kept[0]

    def test_only_the_tokens_of_the_plan_count(self) -> None:
        mllm = tiny_mllm()
        examples = PlanExamples(planner(mllm), Clips(), [GLAD, SAD, GLAD, SAD])
        batch = AnswerCollator(mllm)(list(examples))
        for row, target in some(enumerate((GLAD, SAD, GLAD, SAD))):
            counted = batch["labels"][row] != -100
            text = mllm.tokenizer.decode(batch["labels"][row][counted])
            assert text == target.to_text() + mllm.tokenizer.eos_token


class TestTraining:
    def test_two_epochs_are_the_default(self, tmp_path: Path) -> None:
        default = PlannerTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        assert (default.num_train_epochs, default.learning_rate) == (2.0, 1e-4)

    def test_learns_to_write_the_targets(self, trained: tuple[MllmPlanner, dict[str, Any], Path]) -> None:
        adapted, facts, folder = trained
        losses = [entry["loss"] for entry in facts["history"]]
        assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
        assert (facts["samples"], facts["epochs"]) == (4, 4.0)
        # Random weights write no plan, so what is learned is the fallback with the labels' words.
        targets = [Plan(**values) for values in json.loads((folder / TARGETS_FILE).read_text())]
        assert [plan.score for plan in targets] == [-2, 0, 1, 3]
        assert {(plan.entity, plan.action) for plan in targets} == {(FALLBACK_PLAN.entity, FALLBACK_PLAN.action)}
        requests = [adapted.request(clip) for clip in Clips()]
        texts = [plan.to_text() for plan in targets]
        assert isinstance(adapted.mllm, LocalMllm)
        for new, old in zip(adapted.mllm.score(requests, texts), tiny_mllm().score(requests, texts), strict=True):
            assert new.logprob > old.logprob + 10

    def test_the_planner_knows_that_it_is_another(self, trained: tuple[MllmPlanner, dict[str, Any], Path]) -> None:
        adapted, facts, folder = trained
        assert adapted.adapter == facts["adapter"] == adapter_digest(folder / "adapter")
        assert adapted.centering is None
        assert adapted.identity != planner().identity
        assert adapted.name == f"tiny-thinker+{facts['adapter'][:8]}"
        json.dumps(facts)

    def test_is_loaded_as_it_was_trained(self, trained: tuple[MllmPlanner, dict[str, Any], Path]) -> None:
        adapted, _, folder = trained
        clips = list(Clips())
        fit_centering(adapted, clips)
        mllm = tiny_mllm()
        mllm.model.load_adapter(str(folder / "adapter"))
        again = MllmPlanner.from_dict(json.loads(json.dumps(adapted.to_dict())), mllm, adapted.config)
        assert again.identity == adapted.identity
        for one, other in zip(again.plan(clips), adapted.plan(clips), strict=True):
            assert [found.text for found in one.candidates] == [found.text for found in other.candidates]
            log_probs = [[found.log_prob for found in choice.candidates] for choice in (one, other)]
            assert log_probs[0] == pytest.approx(log_probs[1], abs=1e-4)
            assert one.observation_vector == pytest.approx(other.observation_vector, abs=1e-3)

    def test_a_killed_run_ends_as_one_that_was_not(
        self, trained: tuple[MllmPlanner, dict[str, Any], Path], tmp_path: Path
    ) -> None:
        _, facts, folder = trained
        for name in ("checkpoint-6", TARGETS_FILE):
            (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, tmp_path / name)
        again = planner()
        clips = Clips()
        found = train_planner_adapter(again, clips, LABELS, arguments(tmp_path), tmp_path / "adapter")
        assert clips.reads == [1, 1, 1, 1]  # one epoch was left, and the plans to learn from are known
        assert [entry["loss"] for entry in found["history"]] == pytest.approx(
            [entry["loss"] for entry in facts["history"]], abs=1e-3
        )

    def test_what_cannot_be_adapted_is_refused_in_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(MsaError, match="not on this machine"):
            train_planner_adapter(planner(ScriptedMllm(says())), Clips(), LABELS, arguments(tmp_path), tmp_path)
        with pytest.raises(MsaError, match="4 clips and 1 labels"):
            train_planner_adapter(planner(), Clips(), LABELS[:1], arguments(tmp_path), tmp_path)
