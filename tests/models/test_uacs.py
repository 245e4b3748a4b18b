"""U-ACS: who answers, what it costs, what the expert is asked, and what lies beside the weights."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hf_msa.data.missing import apply_missing
from hf_msa.models import msa_mllm_endpoint
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.modeling_uacs import (
    VERBALIZER_FILE,
    UacsForSentimentAnalysis,
    UacsOutput,
)
from hf_msa.models.modeling_ubm import UbmForSentimentAnalysis, UbmOutput
from hf_msa.models.msa_label_families import BUILT_IN
from hf_msa.models.msa_language_model import ADAPTER_FOLDER
from hf_msa.models.msa_mllm import LocalMllm
from hf_msa.models.msa_pipeline import TASK, MsaPipeline
from hf_msa.models.msa_verbalizer import MsaVerbalizer
from hf_msa.models.uacs_prompts import SECOND_OPINION, answer_text, direct_prompt, second_part
from hf_msa.models.uacs_rules import (
    FAST,
    MLLM,
    ROUTES,
    VERIFY,
    WEIGHTED,
    answer_routes,
    polarity,
    random_choice,
    small_weight,
)
from stub_expert import Says, StubExpert, noisy_answers, scripted
from tiny import WIDTHS, tiny_batch, tiny_names, tiny_processor, tiny_rows, tiny_uacs_config

INFINITE = math.inf
ELEVEN_POINTS = {"name": "ratings", "low": 0, "high": 10, "neutral": 5}


def build(**overrides: Any) -> UacsForSentimentAnalysis:
    torch.manual_seed(0)
    return UacsForSentimentAnalysis(tiny_uacs_config(**overrides)).eval()


@pytest.fixture
def scripted_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model that says what it is given as its inputs."""

    def compute(self: UbmForSentimentAnalysis, inputs: Any, labels: None, **training: Any) -> UbmOutput:
        score, unsure = inputs["score"], inputs["unsure"]
        return UbmOutput(logits=score, uncertainty=unsure, class_logits=torch.zeros(len(score), 3))

    monkeypatch.setattr(UbmForSentimentAnalysis, "compute", compute)
    monkeypatch.setattr(UbmForSentimentAnalysis, "read", lambda self, batch: batch)


def small(scores: Sequence[float], unsure: Sequence[float]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Inputs of the scripted small model, and rows of words alone."""
    inputs = {"score": torch.tensor(scores).unsqueeze(1), "unsure": torch.tensor(unsure).unsqueeze(1)}
    return inputs, [{"id": f"clip {index}", "text": f"words of clip {index}"} for index in range(len(scores))]


def cascade(
    scores: Sequence[float],
    unsure: Sequence[float],
    first: Sequence[Says],
    second: Sequence[Says] | None = None,
    **overrides: Any,
) -> tuple[dict[str, list[float]], StubExpert]:
    """Run the cascade with everybody's answers given."""
    model = build(**{"tau_1": 0.59, "tau_2": 0.48, **overrides})
    inputs, rows = small(scores, unsure)
    expert = scripted(model.expert_requests(rows), first, second)
    model.set_expert(expert)
    out = model.predict_rows(inputs, rows, None)
    found = {name: value.tolist() for name, value in model.per_sample_outputs(out).items()}
    return found, expert


class TestRules:
    def test_polarity_has_a_dead_zone(self) -> None:
        scores = np.array([-2.0, -0.05, -0.04, 0.0, 0.049, 0.05, 3.0])
        assert polarity(scores, 0.05).tolist() == [-1, -1, 0, 0, 0, 1, 1]
        assert polarity(scores, 0.0).tolist() == [-1, -1, -1, 0, 1, 1, 1]

    @pytest.mark.parametrize(
        ("own", "other", "weight"),
        [
            (1.0, 0.5, 1 / 3),
            (0.7, 0.7, 0.5),
            (1.10, 0.51, 0.316770),
            (0.0, 0.0, 0.5),
            (-1e-12, 0.4, 1.0),
            (0.9, INFINITE, 1.0),
        ],
    )
    def test_weights(self, own: float, other: float, weight: float) -> None:
        found = small_weight(np.array([own]), np.array([other]), 1e-12)
        assert found.item() == pytest.approx(weight, abs=1e-6)

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, [MLLM, MLLM, WEIGHTED, VERIFY, VERIFY]),
            ({"disagreement_rule": "weighted"}, [MLLM, MLLM, WEIGHTED, WEIGHTED, WEIGHTED]),
            ({"disagreement_rule": "mllm"}, [MLLM, MLLM, WEIGHTED, MLLM, MLLM]),
            ({"agreement_rule": "accept_mllm"}, [MLLM, MLLM, MLLM, VERIFY, VERIFY]),
        ],
    )
    def test_routes(self, fields: dict[str, str], expected: list[int]) -> None:
        """Sure; just sure; unsure and agreed; unsure and opposite; unsure, one of them neutral."""
        own = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
        expert = np.array([-1.0, -1.0, 0.3, -0.3, -0.2])
        unsure = np.array([0.1, 0.5, 0.51, 0.51, 0.51])
        assert answer_routes(own, expert, unsure, 0.5, neutral_zone=0.05, **fields).tolist() == expected

    def test_a_random_choice_is_of_the_asked_size_and_depends_on_seed_and_key(self) -> None:
        keys = [f"clip {index}" for index in range(200)]
        chosen = random_choice(keys, 60, seed=1)
        assert chosen.sum() == 60
        assert np.array_equal(random_choice(keys[::-1], 60, seed=1), chosen[::-1])
        assert not np.array_equal(random_choice(keys, 60, seed=2), chosen)
        assert (random_choice(keys, 90, seed=1) | ~chosen).all(), "more of them are those and others"


class TestPrompts:
    def test_the_question_names_range_words_and_sources(self) -> None:
        prompt = direct_prompt(BUILT_IN["sims"], "not bad", ("text", "audio", "vision"), "Voice: loud.")
        assert "from -1 to 1" in prompt and '"not bad"' in prompt and "Voice: loud." in prompt
        assert "what is said, how it is said and what the face shows" in prompt
        assert prompt.endswith("a number with one decimal.") and "uncertainty" not in prompt

    def test_lost_words_are_said_to_be_lost(self) -> None:
        assert '"it was ... good"' in direct_prompt(BUILT_IN["mosi"], "IT WAS ... GOOD", ("text",))
        assert '"It was GOOD"' in direct_prompt(BUILT_IN["mosi"], "It was GOOD", ("text",))
        prompt = direct_prompt(BUILT_IN["mosi"], None, ("audio",))
        assert "The words are lost." in prompt and "what is said" not in prompt and "\n\n" not in prompt

    def test_the_second_part_holds_both_estimates_rounded(self) -> None:
        part = second_part(0.0, 1.0986, -0.2, 0.514)
        assert part.startswith(SECOND_OPINION)
        estimates = json.loads(part[part.index("{") : part.rindex("}") + 1])
        assert estimates == {
            "small model": {"score": 0.0, "uncertainty": 1.1},
            "your first answer": {"score": -0.2, "uncertainty": 0.51},
        }

    @pytest.mark.parametrize(
        ("label", "text"),
        [(-0.4, "-0.4"), (0.0, "0.0"), (1.2, "1.2"), (-0.04, "0.0"), (2.6666667, "2.7"), (-3, "-3.0")],
    )
    def test_answers_have_one_decimal(self, label: float, text: str) -> None:
        assert answer_text(label) == text


@pytest.mark.usefixtures("scripted_small")
class TestCascade:
    def test_the_case_study(self) -> None:
        found, expert = cascade([0.0], [1.10], [Says(-0.2, 0.51)], [Says(-0.5, 0.2)])
        assert found["logits"] == found["second_score"] == pytest.approx([-0.5])
        assert found["small_score"] == [0.0] and found["expert_score"] == pytest.approx([-0.2])
        assert found["uncertainty"] == pytest.approx([1.10]) and found["expert_uncertainty"] == pytest.approx([0.51])
        assert ROUTES[int(found["route"][0])] == "verify" and found["expert_calls"] == [2]
        assert math.isnan(found["weight"][0])
        (question,), (again,) = expert.asked
        assert again.prompt == question.prompt + second_part(0.0, 1.10, -0.2, 0.51)

    def test_every_route_in_one_batch_with_its_calls(self) -> None:
        found, expert = cascade(
            [1.5, 1.0, 0.3, 1.0],
            [0.2, 0.9, 1.0, 0.9],
            [Says("no"), Says(-2.0, 0.1), Says(0.9, 0.5), Says(-1.0, 0.6)],
            [Says("no"), Says("no"), Says("no"), Says(-1.5)],
        )
        assert found["route"] == [FAST, MLLM, WEIGHTED, VERIFY]
        assert found["expert_calls"] == [0, 1, 1, 2]
        # A token for each character, and the end of text.
        assert found["expert_tokens"] == [0, len("-2.0") + 1, len("0.9") + 1, len("-1.0") + 1 + len("-1.5") + 1]
        assert found["logits"] == pytest.approx([1.5, -2.0, 0.7, -1.5])
        assert found["weight"] == pytest.approx([math.nan, math.nan, 1 / 3, math.nan], nan_ok=True)
        assert found["second_score"] == pytest.approx([math.nan] * 3 + [-1.5], nan_ok=True)
        assert [len(requests) for requests in expert.asked] == [3, 1], "each stage is one batch"
        assert not any(found["unparsed"]) and all(seconds > 0 for seconds in found["seconds"])

    def test_what_it_has_cost(self) -> None:
        found, _ = cascade(
            [1.5, 1.0, 0.3, 1.0],
            [0.2, 0.9, 1.0, 0.9],
            [Says("no"), Says("no", 0.1), Says(0.9, 0.5), Says(-1.0, 0.6)],
            [Says("no"), Says(-1.5), Says("no"), Says(-1.5)],
        )
        cost = UacsForSentimentAnalysis.cost_of({name: np.array(values) for name, values in found.items()})
        # The second sample's answer is unreadable, so both models count as agreed, and the small one's score stays.
        assert cost["calls"] == 1.0 and cost["unreadable"] == 1 / 4 and cost["seconds"] == np.mean(found["seconds"])
        assert cost["tokens"] == (len("no ") + len("0.9 ") + len("-1.0 ") + len("-1.5 ")) / 4
        assert cost["routes"] == {"fast": 0.25, "mllm": 0.0, "weighted": 0.5, "verify": 0.25}
        assert cost["prompt_tokens"] is None and cost["remembered"] == 0, (
            "the stub does not say how long questions are"
        )
        assert found["expert_prompt_tokens"] == pytest.approx([0, *[math.nan] * 3], nan_ok=True)
        known = {name: np.array(values) for name, values in found.items()}
        known |= {"expert_prompt_tokens": np.array([0, 60, 60, 140]), "remembered": np.array([0, 1, 0, 2])}
        cost = UacsForSentimentAnalysis.cost_of(known)
        assert cost["prompt_tokens"] == 65 and cost["remembered"] == 3 / 4

    def test_routes_have_names_in_public_answers(self) -> None:
        model = build(tau_1=0.5, tau_2=0.5)
        model.set_expert(StubExpert(lambda _: Says(2.0, 0.0)))
        pipeline = MsaPipeline(model, processor=tiny_processor(model.config), task=TASK)
        assert [pipeline._said("route", float(index)) for index in range(4)] == list(ROUTES)
        assert pipeline._said("weight", math.nan) is None and pipeline._said("expert_calls", 2.0) == 2.0

    def test_an_uncertainty_at_its_threshold_is_sure(self) -> None:
        found, _ = cascade([1.0, 1.0], [0.5, 0.5000001], [Says(2.0, 0.25)] * 2, tau_1=0.5, tau_2=0.25)
        assert found["route"] == [FAST, MLLM]
        found, _ = cascade([1.0], [0.6], [Says(2.0, 0.2500001)], tau_1=0.5, tau_2=0.25)
        assert found["route"] == [WEIGHTED]

    @pytest.mark.parametrize(
        ("taus", "routes"),
        [
            ((INFINITE, 0.4), [FAST, FAST, FAST]),
            ((-1.0, INFINITE), [MLLM, MLLM, MLLM]),
            ((-1.0, -1.0), [WEIGHTED, VERIFY, VERIFY]),
        ],
    )
    def test_thresholds_at_their_ends(self, taus: tuple[float, float], routes: list[int]) -> None:
        says = [Says(2.0, 0.0), Says(-2.0, 0.0), Says(1.0, 2.3)]
        found, expert = cascade([1.0, 1.0, -1.0], [0.0, 1.1, 0.5], says, tau_1=taus[0], tau_2=taus[1])
        assert found["route"] == routes
        assert expert.calls == sum(found["expert_calls"]) == 3 * (routes[0] != FAST) + routes.count(VERIFY)

    def test_without_cross_verification_nobody_is_asked_twice(self) -> None:
        for rule, score in (("weighted", 1 / 3 * 0.3 + 2 / 3 * -0.9), ("mllm", -0.9)):
            found, expert = cascade([0.3], [1.0], [Says(-0.9, 0.5)], disagreement_rule=rule)
            assert found["logits"] == pytest.approx([score]) and expert.calls == 1
        assert UacsConfig.ABLATIONS["wo_cross_verification"] == {"disagreement_rule": "weighted"}

    def test_answers_that_agree_are_accepted_in_version_two(self) -> None:
        found, expert = cascade([0.3], [1.0], [Says(0.9, 0.5)], agreement_rule="accept_mllm")
        assert found["logits"] == pytest.approx([0.9]) and found["route"] == [MLLM] and expert.calls == 1

    def test_answers_are_clipped_to_the_label_range(self) -> None:
        found, _ = cascade([0.3], [1.0], [Says("1.4")], label_family="sims")
        assert found["logits"] == [1.0] and found["unparsed"] == [0]

    def test_an_answer_on_another_scale_cannot_be_read(self) -> None:
        found, _ = cascade([0.3], [1.0], [Says("7")], label_family="sims")
        assert found["logits"] == pytest.approx([0.3]) and found["unparsed"] == [1]

    def test_the_small_model_alone(self) -> None:
        found, expert = cascade([0.3, -1.0], [9.0, 0.0], [Says(1.0)] * 2, route="fast")
        assert expert.calls == 0 and found["logits"] == pytest.approx([0.3, -1.0]) and found["route"] == [FAST, FAST]

    def test_the_expert_alone_is_believed_however_unsure(self) -> None:
        found, expert = cascade([0.3, -1.0], [9.0, 0.0], [Says(-1.0, 2.0), Says(1.0, 0.0)], route="mllm", tau_1=None)
        assert found["logits"] == pytest.approx([-1.0, 1.0]) and found["route"] == [MLLM, MLLM]
        assert expert.calls == 2 and found["expert_uncertainty"] == pytest.approx([2.0, 0.0])

    def test_without_uncertainty_as_many_samples_are_drawn(self) -> None:
        unsure = np.random.default_rng(0).uniform(0, 1.1, 60).tolist()
        says = [Says(2.0, 2.0)] * 60
        expected, _ = cascade([1.0] * 60, unsure, says)
        count = sum(route != FAST for route in expected["route"])
        drawn = {}
        for seed in (0, 1):
            found, expert = cascade([-1.0] * 60, unsure, says, route="random", tau_2=None, route_seed=seed)
            drawn[seed] = [index for index, route in enumerate(found["route"]) if route == MLLM]
            assert len(drawn[seed]) == expert.calls == count and 0 < count < 60
            assert {found["logits"][index] for index in drawn[seed]} == {2.0}, "stage 3 is off"
            again, _ = cascade([-1.0] * 60, unsure, says, route="random", tau_2=None, route_seed=seed)
            assert again["route"] == found["route"]
        by_rule = [index for index, route in enumerate(expected["route"]) if route != FAST]
        assert drawn[0] != drawn[1] and by_rule not in drawn.values()

    def test_batches_and_their_order_have_no_influence(self) -> None:
        generator = np.random.default_rng(1)
        scores, unsure = generator.uniform(-3, 3, 40), generator.uniform(0, 1.1, 40)
        model = build(tau_1=0.59, tau_2=0.8)
        inputs, rows = small(scores.astype(np.float32).tolist(), unsure.astype(np.float32).tolist())
        answers = [
            noisy_answers(scores.tolist(), [row["id"] for row in rows], spread=2.0, seed=seed) for seed in (0, 1)
        ]
        model.set_expert(scripted(model.expert_requests(rows), *answers))
        whole = model.predict_rows(inputs, rows, None)
        assert set(whole.route.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}
        order = generator.permutation(40)
        for begin in range(0, 40, 7):
            part = order[begin : begin + 7]
            found = model.predict_rows(
                {name: value[part] for name, value in inputs.items()}, [rows[index] for index in part], None
            )
            for name in ("logits", "route", "weight", "expert_score", "second_score", "expert_calls"):
                assert torch.equal(found[name].nan_to_num(9), whole[name][part].nan_to_num(9)), name

    def test_the_questions_of_many_batches_are_asked_together(self) -> None:
        """Expert's batches of 2, so 64 questions at once; batches of 5 with 2 or 3 questions, and two without any."""
        model = build(tau_1=0.5, tau_2=0.8, expert_batch_size=2)
        unsure = [0.9, 0.1, 0.6, 0.2, 0.3, 0.7, 0.8, 0.1, 0.55, 0.2] * 15
        unsure[:5] = unsure[-5:] = [0.1] * 5
        inputs, rows = small([float(index % 6 - 3) for index in range(150)], unsure)
        answers = [Says(0.5, 1.0 if index % 3 else 0.1) for index in range(150)]
        expert = scripted(model.expert_requests(rows), answers)
        model.set_expert(expert)
        whole = model.predict_rows(inputs, rows, None)
        expert.asked.clear()
        model.set_expert(expert)
        batches = [
            ({name: value[begin : begin + 5] for name, value in inputs.items()}, rows[begin : begin + 5])
            for begin in range(0, 150, 5)
        ]
        waiting = iter(batches)
        stream = model.predict_batches(waiting, None)
        next(stream)
        assert next(waiting)[1] is batches[1][1], "without a question there is nothing to wait for"
        found = list(model.predict_batches(batches, None))
        first = [len(asked) for asked in expert.asked if SECOND_OPINION not in asked[0].prompt]
        assert first == [32, 32, 1, 5], "from 64 on, and kept in between"
        for name in ("logits", "route", "weight", "expert_score", "second_score", "expert_calls", "small_score"):
            together = torch.cat([output[name] for output in found])
            assert torch.equal(together.nan_to_num(9), whole[name].nan_to_num(9)), name
        assert all((output.seconds > 0).all() for output in found)

    def test_an_answer_without_a_number_leaves_the_small_model_s(self) -> None:
        found, expert = cascade([0.3], [1.0], [Says("I cannot say.", 0.0)])
        assert found["logits"] == pytest.approx([0.3]) and found["unparsed"] == [1] and expert.calls == 1
        assert found["expert_uncertainty"] == [INFINITE] and found["weight"] == [1.0]
        for fields in ({"route": "random"}, {"tau_2": INFINITE}, {"agreement_rule": "accept_mllm"}):
            assert cascade([0.3], [1.0], [Says("?")], **fields)[0]["logits"] == pytest.approx([0.3])

    def test_the_expert_alone_never_falls_back_to_the_small_model(self) -> None:
        for family, neutral in (("mosi", 0.0), (ELEVEN_POINTS, 5.0)):
            found, _ = cascade([0.3, 0.4], [1.0] * 2, [Says("?"), Says(1.0)], route="mllm", label_family=family)
            assert found["logits"] == found["expert_score"] == [neutral, 1.0] and found["unparsed"] == [1, 0]

    def test_a_second_answer_without_a_number_leaves_the_first(self) -> None:
        found, _ = cascade([0.3], [1.0], [Says(-0.9, 0.5)], [Says("who knows")])
        assert found["logits"] == found["second_score"] == pytest.approx([-0.9])
        assert found["unparsed"] == [1] and found["expert_calls"] == [2]

    def test_minus_the_size_of_the_score_weighs_from_the_end_of_the_range(self) -> None:
        """-|0.3| + 3 = 2.7 against 0.9: a weight of 1/4."""
        found, _ = cascade([0.3], [-0.3], [Says(0.7, 0.9)], uncertainty_kind="score", tau_1=-1.0, tau_2=0.1)
        assert found["weight"] == pytest.approx([0.25]) and found["logits"] == pytest.approx([0.6])

    @pytest.mark.parametrize(("name", "taus"), [("tau_1", (None, 0.4)), ("tau_2", (0.4, None))])
    def test_a_threshold_that_is_not_set_is_named(self, name: str, taus: tuple[Any, Any]) -> None:
        with pytest.raises(ValueError, match=f"no threshold {name}; calibrate"):
            cascade([0.3], [1.0], [Says(0.7)], tau_1=taus[0], tau_2=taus[1])


@pytest.mark.usefixtures("scripted_small")
class TestWhatThresholdsHoldFor:
    def ask(self, model: UacsForSentimentAnalysis, name: str = "org/expert") -> float:
        expert = StubExpert(lambda _: Says(2.0, 0.0))
        expert.name = name  # type: ignore[misc]
        model.set_expert(expert)
        inputs, rows = small([1.0], [0.9])
        return float(model.predict_rows(inputs, rows, None).logits)

    def fitted(self) -> dict[str, Any]:
        model = build()
        model.set_expert(StubExpert(lambda _: Says(0.0)))
        return {**model.calibrated_with(), "model": "expert"}

    def test_the_same_expert_wherever_it_lies(self) -> None:
        model = build(tau_1=0.5, tau_2=0.5, calibrated_with=self.fitted())
        assert self.ask(model) == self.ask(model, "/somewhere/else/expert/") == 2.0

    def test_another_expert_is_refused_with_what_to_do(self) -> None:
        fields = {"tau_1": 0.5, "tau_2": 0.5, "calibrated_with": self.fitted()}
        with pytest.raises(
            ValueError, match="tau_2 was calibrated with the model 'expert', and does.* `hf-msa calibrate"
        ):
            self.ask(build(**fields), "org/other")
        assert self.ask(build(**fields, route="random"), "org/other") == 2.0, "believes whoever it is"
        own = UacsConfig.from_dict(build(**fields).config.to_dict(), tau_2=0.4)
        assert own.calibrated_with is None and self.ask(UacsForSentimentAnalysis(own).eval(), "org/other") == 2.0
        assert self.ask(build(tau_1=0.5, tau_2=0.5), "org/other") == 2.0, "earlier versions did not note it"

    def test_another_adapter_is_refused(self) -> None:
        model = build(tau_1=0.5, tau_2=0.5, calibrated_with={**self.fitted(), "adapter": "0123"})
        with pytest.raises(ValueError, match="calibrated with the adapter '0123'"):
            self.ask(model)

    def test_other_wording_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = build(tau_1=0.5, tau_2=0.5, calibrated_with=self.fitted())
        monkeypatch.setattr("hf_msa.models.modeling_uacs.direct_prompt", lambda *_: "And, how was it?")
        with pytest.raises(
            ValueError, match="calibrated with questions of another wording, .* `hf-msa calibrate RUN`"
        ):
            self.ask(model)

    def test_words_for_features_are_wording_too(self) -> None:
        model = build(tau_1=0.5, tau_2=0.5)
        model.set_expert(StubExpert(lambda _: Says(0.0)))
        before = model.calibrated_with()["wording"]
        frames = {
            name: np.random.default_rng(1).normal(size=(20, WIDTHS[f"{name}_dim"])) for name in ("audio", "vision")
        }
        names = {name: tuple(f"{name} {index}" for index in range(values.shape[1])) for name, values in frames.items()}
        model.verbalizer = MsaVerbalizer.fit([frames] * 3, names)
        assert model.calibrated_with()["wording"] != before == build_wording()


def build_wording() -> str | None:
    model = build()
    model.set_expert(StubExpert(lambda _: Says(0.0)))
    return model.calibrated_with()["wording"]


class TestLaziness:
    @pytest.fixture
    def loads(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        made: list[Any] = []

        def load(self: UacsForSentimentAnalysis) -> StubExpert:
            made.append(self.adapter_folder())
            return StubExpert(lambda _: Says(2.0, 0.0))

        monkeypatch.setattr(UacsForSentimentAnalysis, "load_language_model", load)
        return made

    @pytest.mark.usefixtures("scripted_small")
    def test_the_expert_is_made_at_the_first_sample_that_needs_it(self, loads: list[Any]) -> None:
        model = build(tau_1=0.5, tau_2=0.5, expert_model="somewhere")
        inputs, rows = small([1.0, 1.0], [0.5, 0.1])
        model.predict_rows(inputs, rows, None)
        model.compute(inputs, None)
        assert loads == []
        inputs["unsure"] += 1
        for _ in range(2):
            assert model.predict_rows(inputs, rows, None).logits.tolist() == [[2.0], [2.0]]
        assert loads == [None], "once"

    @pytest.mark.usefixtures("scripted_small")
    def test_the_fast_route_never_makes_one(self, loads: list[Any]) -> None:
        model = build(route="fast", expert_model="somewhere", expert_adapter=True)
        inputs, rows = small([1.0], [99.0])
        model.predict_rows(inputs, rows, None)
        assert loads == []

    def test_an_adapter_that_is_not_there_is_missed_before_the_expert_is_loaded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LocalMllm, "from_pretrained", None)
        with pytest.raises(ValueError, match="expert has an adapter, but none can be read from its folder 'adapter'"):
            _ = build(expert_model="somewhere", expert_adapter=True).expert

    def test_without_an_expert_there_is_one_sentence(self) -> None:
        with pytest.raises(ValueError, match="names no expert; load it with expert_model="):
            _ = build().expert

    def test_back_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        local = build(expert_model="org/omni", expert_batch_size=3).expert
        assert local.name == "org/omni" and local.batch_size == 3 and not local.is_loaded  # type: ignore[attr-defined]
        monkeypatch.delenv("HF_MSA_ENDPOINT", raising=False)
        monkeypatch.setattr(msa_mllm_endpoint, "_allowed", {})
        with pytest.raises(ValueError, match="is a server, 'http://127.0.0.1:1/v1', .* has not been allowed"):
            _ = build(expert_model="http://127.0.0.1:1/v1", expert_kind="endpoint").expert
        monkeypatch.setenv("HF_MSA_ENDPOINT", "http://127.0.0.1:1/v1")
        server = build(expert_model="http://127.0.0.1:1/v1", expert_kind="endpoint").expert
        assert type(server).__name__ == "EndpointMllm" and server.name == "http://127.0.0.1:1/v1"


class TestSmallModel:
    def test_forward_is_the_small_model_s_with_the_fast_route_beside_it(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        plain = UbmForSentimentAnalysis.compute(model, model.read(batch), None)
        with pytest.warns(UserWarning, match="the small model answers alone.*route=.fast."):
            out = model(**batch)
        assert isinstance(out, UacsOutput)
        for name, value in plain.items():
            assert torch.equal(out[name], value), name
        assert torch.equal(out.small_score, out.logits) and not out.route.any() and not out.expert_calls.any()
        assert out.expert_score.isnan().all() and out.second_score.isnan().all() and out.weight.isnan().all()

    def test_classes_are_the_system_s_where_the_small_model_alone_answers(self) -> None:
        for route, there in (("fast", True), ("cascade", False)):
            model = build(route=route)
            found = model.per_sample_outputs(model(**tiny_batch(model.config)))
            assert ("class_logits_neutral" in found) is there

    def test_the_fast_route_predicts_the_bits_of_forward(self) -> None:
        model = build(tau_1=INFINITE)
        batch = tiny_batch(model.config)
        out = model.predict_rows(batch, tiny_rows(model.config), tiny_processor(model.config))
        assert torch.equal(out.logits, model(**batch).logits) and (out.seconds > 0).all()


class TestQuestions:
    def model(self, **overrides: Any) -> UacsForSentimentAnalysis:
        model = build(**overrides)
        rows, names = tiny_rows(model.config, 12, seed=5), tiny_names(model.config)
        model.verbalizer = MsaVerbalizer.fit(rows, names, threshold=0.1)
        return model

    def test_features_are_described_where_the_media_are_absent(self) -> None:
        model = self.model()
        rows = tiny_rows(model.config)
        requests = model.expert_requests(rows)
        for row, request in zip(rows, requests, strict=True):
            assert model.verbalizer is not None
            assert f'"{row["text"]}"' in request.prompt and model.verbalizer.describe(row) in request.prompt
            assert request.audio is None and request.frames is None
        assert "Voice:" in requests[0].prompt and "Face:" in requests[0].prompt

    def test_the_media_take_the_place_of_the_description(self) -> None:
        model = self.model()
        (row,) = tiny_rows(model.config, 1)
        sound, pictures = np.ones(1600), np.ones((8, 4, 4, 3), dtype=np.uint8)
        row |= {"waveform": sound, "frames": pictures, "frames_per_second": 4}
        (request,) = model.expert_requests([row])
        assert request.audio is not None and request.audio.dtype == np.float32 and len(request.audio) == 1600
        assert np.array_equal(request.frames, pictures) and request.frames_per_second == 4
        assert "Voice:" not in request.prompt and "how it is said and what the face shows" in request.prompt

    def test_what_a_sample_lacks_is_left_out(self) -> None:
        model = self.model()
        (row,) = tiny_rows(model.config, 1)
        for lack in ({"audio_present": False}, {"audio": None}):
            (request,) = model.expert_requests([{**row, **lack, "waveform": None}])
            assert "Voice:" not in request.prompt and "Face:" in request.prompt
            assert "Go by what is said and what the face shows." in request.prompt

    def test_without_statistics_features_cannot_be_described(self) -> None:
        rows = tiny_rows(tiny_uacs_config())
        with pytest.raises(
            ValueError, match=r"audio and vision .*no statistics of them \(verbalizer.json\).*waveform and fr"
        ):
            build().expert_requests(rows)
        with pytest.raises(ValueError, match="Features of vision are to be described .* give frames with the rows"):
            build().expert_requests([{**rows[0], "audio": None}])
        (first, *_) = build(use_verbalizer=False).expert_requests(rows)
        assert "Voice:" not in first.prompt and "Go by what is said." in first.prompt

    def dropped(self, model: UacsForSentimentAnalysis, **gone: list[int]) -> dict[str, Tensor]:
        """One row of which the given positions are dropped."""
        batch = tiny_batch(model.config, 1)
        masks = {}
        for name in ("text", "audio", "vision"):
            key = "attention_mask" if name == "text" else f"{name}_attention_mask"
            masks[name] = np.zeros(tuple(batch[key].shape), dtype=bool)
            masks[name][0, gone.get(name, [])] = True
        return apply_missing(batch, masks, 1)

    def test_nothing_is_said_of_what_is_dropped(self) -> None:
        model = self.model()
        rows, processor = tiny_rows(model.config, 1), tiny_processor(model.config)
        words = rows[0]["text"].split()
        complete = model.expert_requests(rows)[0].prompt
        (nothing_gone,) = model.expert_requests(rows, self.dropped(model), processor)
        assert nothing_gone.prompt == complete
        (request,) = model.expert_requests(rows, self.dropped(model, text=[2], audio=[0, 1]), processor)
        assert f'"{words[0]} ... {words[2]}"' in request.prompt
        assert model.verbalizer is not None
        mask = np.array([True, True, False, False])
        assert model.verbalizer.describe(rows[0], {"audio": mask}) in request.prompt and request.prompt != complete

    def test_frames_that_the_small_model_does_not_read_are_not_described_either(self) -> None:
        model = self.model(audio_max_length=3)
        rows, processor = tiny_rows(model.config, 1), tiny_processor(model.config)
        (request,) = model.expert_requests(rows, self.dropped(model, audio=[0]), processor)
        assert len(rows[0]["audio"]) == 4 and model.verbalizer is not None
        seen = {**rows[0], "audio": rows[0]["audio"][:3]}
        assert model.verbalizer.describe(seen, {"audio": np.array([True, False, False])}) in request.prompt

    def test_what_is_dropped_altogether_is_not_there(self) -> None:
        model = self.model()
        rows, processor = tiny_rows(model.config, 1), tiny_processor(model.config)
        every = {"text": [1, 2, 3], "audio": [0, 1, 2, 3], "vision": [0, 1, 2, 3]}
        (request,) = model.expert_requests(rows, self.dropped(model, **every), processor)
        assert "The words are lost." in request.prompt and "Go by whatever there is." in request.prompt
        assert "Voice:" not in request.prompt and "Face:" not in request.prompt
        media = {"waveform": np.ones(8), "frames": np.ones((8, 2, 2, 3), dtype=np.uint8)}
        (request,) = model.expert_requests([{**rows[0], **media}], self.dropped(model, **every), processor)
        assert request.audio is None and request.frames is None

    def test_of_the_media_the_same_stretches_are_dropped(self) -> None:
        model = self.model()
        row = tiny_rows(model.config, 1)[0] | {
            "waveform": np.ones(8, dtype=np.float32),
            "frames": np.arange(8, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3),
        }
        inputs = self.dropped(model, audio=[1], vision=[0, 3])
        (request,) = model.expert_requests([row], inputs, tiny_processor(model.config))
        assert request.audio is not None and request.audio.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
        assert request.frames is not None and request.frames[:, 0, 0, 0].tolist() == [2, 3, 4, 5]

    def test_media_without_features_are_given_whole_or_not_at_all(self) -> None:
        """Nothing says what of them is dropped."""
        model = self.model(vision_dim=None)
        row = tiny_rows(model.config, 1)[0] | {
            "waveform": np.ones(8, dtype=np.float32),
            "frames": np.ones((8, 2, 2, 3), dtype=np.uint8),
        }
        row.pop("vision", None)
        for gone, there in (([], True), ([2], False)):
            batch = tiny_batch(model.config, 1)
            masks = {
                name: np.zeros(tuple(batch[key].shape), dtype=bool)
                for name, key in (("text", "attention_mask"), ("audio", "audio_attention_mask"))
            }
            masks["text"][0, gone] = True
            (request,) = model.expert_requests([row], apply_missing(batch, masks, 1), tiny_processor(model.config))
            assert (request.frames is not None) is there and request.audio is not None

    def test_so_are_those_of_a_row_without_features_of_a_model_that_reads_them(self) -> None:
        model, processor = self.model(), tiny_processor(tiny_uacs_config())
        row = tiny_rows(model.config, 1)[0] | {"audio": None, "waveform": np.ones(8, dtype=np.float32)}
        whole = processor.from_rows([row])
        assert whole["audio_missing_mask"].all()
        (request,) = model.expert_requests([row], whole, processor)
        assert request.audio is not None
        words = torch.zeros_like(whole["attention_mask"], dtype=torch.bool)
        words[0, 2] = True
        (request,) = model.expert_requests([row], {**whole, "text_missing_mask": words}, processor)
        assert request.audio is None

    @pytest.mark.usefixtures("scripted_small")
    def test_recordings_are_read_of_those_only_that_the_expert_is_asked_about(self) -> None:
        model = build(tau_1=0.5, tau_2=0.5)
        inputs, rows = small([1.0, 1.0, -1.0], [0.9, 0.1, 0.8])
        read: list[str] = []

        def load(row: Mapping[str, Any]) -> dict[str, Any]:
            read.append(row["id"])
            return {"waveform": np.ones(8, dtype=np.float32)} if row["id"] == "clip 0" else {}

        model.media = load
        expert = StubExpert(lambda _: Says(-2.0, 0.9))
        model.set_expert(expert)
        out = model.predict_rows(inputs, rows, None)
        assert read == ["clip 0", "clip 2"] and out.expert_calls.flatten().tolist() == [2, 0, 1]
        assert [[request.audio is not None for request in asked] for asked in expert.asked] == [[True, False], [True]]

    def test_what_the_expert_is_given(self) -> None:
        assert self.model().language_model_input == "words"
        assert self.model(use_verbalizer=False).language_model_input == "transcript"
        nameless = build()
        nameless.verbalizer = MsaVerbalizer.fit(tiny_rows(nameless.config))
        assert nameless.language_model_input == "transcript"
        model = build(route="fast")
        model.media = lambda row: {}
        assert model.language_model_input is None
        model.config.route = "mllm"
        assert model.language_model_input == "media"
        expert = StubExpert(lambda _: Says(1.0))
        model.set_expert(expert)
        for taken, given in ((("text", "vision"), "media_vision"), (("text",), "transcript")):
            expert.modalities = taken  # type: ignore[attr-defined]
            assert model.language_model_input == given
        model.config.expert_modalities = ["text", "audio"]
        assert model.language_model_input == "media_audio"

    @pytest.mark.parametrize(
        ("taken", "said"),
        [
            (("text", "audio", "vision"), ""),
            (("text", "vision"), "You cannot hear the clip."),
            (("text", "audio"), "You cannot see the clip."),
            (("text",), "You cannot hear or see the clip."),
        ],
    )
    def test_media_that_the_expert_does_not_take_are_left_out_which_is_said(
        self, taken: tuple[str, ...], said: str
    ) -> None:
        (row,) = tiny_rows(tiny_uacs_config(), 1)
        row |= {"waveform": np.ones(1600), "frames": np.ones((8, 4, 4, 3), dtype=np.uint8)}
        expert = StubExpert(lambda _: Says(1.0))
        expert.modalities = taken  # type: ignore[attr-defined]
        asked = []
        for wanted in ("auto", list(taken)):
            model = build(expert_modalities=wanted, use_verbalizer=False)
            if wanted == "auto":
                model.set_expert(expert)
            asked += model.expert_requests([row])
        for request in asked:
            assert [request.audio is not None, request.frames is not None] == ["audio" in taken, "vision" in taken]
            assert (said in request.prompt) and ("You cannot" in request.prompt) == bool(said)
        named = self.model()
        named.set_expert(expert)
        (described,) = named.expert_requests([row])
        assert ("Voice:" in described.prompt) == ("audio" not in taken) and "You cannot" not in described.prompt

    def test_recordings_are_not_read_for_an_expert_that_takes_none(self) -> None:
        def load(row: Mapping[str, Any]) -> dict[str, Any]:
            raise AssertionError("a recording was read")

        model = self.model(expert_modalities=["text"])
        model.media = load
        (request,) = model.expert_requests(tiny_rows(model.config, 1))
        assert "Voice:" in request.prompt

    def test_modalities_are_names_with_text(self) -> None:
        for wrong in (["audio"], ["text", "smell"], "text"):
            with pytest.raises(StrictDataclassError, match="expert_modalities is .*; give 'auto' for all"):
                build(expert_modalities=wrong)


class TestCheckpoint:
    def adapter(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / "README.md").write_text("of the library")
        return folder

    def test_everything_beside_the_weights_comes_back(self, tmp_path: Path) -> None:
        fits = {"small": {"same": {"mean": 0.4, "std": 0.1, "n": 2}, "opposite": None}}
        model = build(tau_1=INFINITE, tau_2=-0.5, calibration=fits, expert_model="org/omni", expert_adapter=True)
        model.verbalizer = MsaVerbalizer.fit(tiny_rows(model.config), tiny_names(model.config))
        model.set_adapter_folder(self.adapter(tmp_path / "lora"))
        model.save_pretrained(tmp_path / "first")
        loaded = UacsForSentimentAnalysis.from_pretrained(tmp_path / "first")
        loaded.save_pretrained(tmp_path / "second")
        loaded.save_pretrained(tmp_path / "second")
        for name in ("first", "second"):
            again = UacsForSentimentAnalysis.from_pretrained(tmp_path / name)
            assert (again.config.tau_1, again.config.tau_2, again.config.calibration) == (INFINITE, -0.5, fits)
            assert again.verbalizer == model.verbalizer
            folder = again.adapter_folder()
            assert folder == tmp_path / name / ADAPTER_FOLDER
            assert sorted(path.name for path in folder.iterdir()) == [
                "adapter_config.json",
                "adapter_model.safetensors",
            ]
            assert (folder / "adapter_model.safetensors").read_bytes() == b"weights"

    def test_the_expert_gets_the_adapter(self, tmp_path: Path) -> None:
        model = build(expert_model="org/omni", expert_adapter=True)
        model.set_adapter_folder(self.adapter(tmp_path / "lora"))
        model.save_pretrained(tmp_path / "saved")
        loaded = UacsForSentimentAnalysis.from_pretrained(tmp_path / "saved")
        assert loaded.expert.name == f"org/omni+{tmp_path / 'saved' / ADAPTER_FOLDER}"
        plain = UacsForSentimentAnalysis.from_pretrained(tmp_path / "saved", expert_adapter=False)
        assert plain.expert.name == "org/omni"

    def test_without_them_nothing_lies_beside_the_weights(self, tmp_path: Path) -> None:
        build(expert_model="org/omni").save_pretrained(tmp_path)
        assert not (tmp_path / ADAPTER_FOLDER).exists() and not (tmp_path / VERBALIZER_FILE).exists()
        loaded = UacsForSentimentAnalysis.from_pretrained(tmp_path)
        assert loaded.verbalizer is None and loaded.adapter_folder() is None


FITS = {
    "small": {
        "same": {"mean": 0.4, "std": 0.1, "n": 20},
        "opposite": {"mean": 0.8, "std": 0.1, "n": 20},
    },
    "expert": {
        "same": {"mean": 0.2, "std": 0.1, "n": 20},
        "opposite": {"mean": 1.2, "std": 0.1, "n": 20},
    },
}


class TestStoredThresholds:
    """Thresholds are (1 - lambda) * same + lambda * opposite + beta: 0.6 and 0.7 as they are stored."""

    @pytest.fixture
    def saved(self, tmp_path: Path) -> Callable[..., UacsConfig]:
        def load(changes: Mapping[str, Any], **stored: Any) -> UacsConfig:
            fields = {"tau_1": (0.4 + 0.8) / 2, "tau_2": (0.2 + 1.2) / 2, "calibration": FITS, "expert_model": "a/b"}
            tiny_uacs_config(**{**fields, **stored}).save_pretrained(tmp_path)
            config: UacsConfig = UacsConfig.from_pretrained(tmp_path, **changes)
            return config

        return load

    @pytest.mark.parametrize(
        ("changes", "taus"),
        [
            ({}, (0.6, 0.7)),
            ({"threshold_lambda": 0.5}, (0.6, 0.7)),
            ({"threshold_lambda": 1}, (0.8, 1.2)),
            ({"threshold_lambda": 0.0, "threshold_beta": 0.1}, (0.5, 0.3)),
            ({"threshold_beta": -0.2}, (0.4, 0.5)),
            ({"threshold_lambda": 1, "tau_1": 0.1}, (0.1, 1.2)),
        ],
    )
    def test_lambda_and_beta_move_them(
        self, saved: Callable[..., UacsConfig], changes: dict[str, Any], taus: tuple[float, float]
    ) -> None:
        config = saved(changes)
        assert (config.tau_1, config.tau_2) == pytest.approx(taus)
        for name, value in changes.items():
            assert getattr(config, name) == value

    def test_a_threshold_that_was_given_or_set_for_a_budget_stays(self, saved: Callable[..., UacsConfig]) -> None:
        config = saved({"threshold_lambda": 1}, tau_1=0.3)
        assert (config.tau_1, config.tau_2) == pytest.approx((0.3, 1.2))

    @pytest.mark.parametrize("stored", [{"tau_1": 0.3, "tau_2": 0.2}, {"calibration": None}])
    def test_a_lambda_without_effect_is_refused(
        self, saved: Callable[..., UacsConfig], stored: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match="threshold_lambda has no effect here: .* give tau_1 and tau_2, or run"):
            saved({"threshold_lambda": 1}, **stored)

    @pytest.mark.parametrize(
        ("changes", "tau"),
        [
            ({"expert_model": "a/other"}, "tau_2"),
            ({"expert_adapter": True}, "tau_2"),
            ({"expert_max_new_tokens": 4}, "tau_2"),
            ({"use_verbalizer": False}, "tau_2"),
            ({"uncertainty_kind": "score"}, "tau_1"),
            ({"temperature": 2.0, "route": "random"}, "tau_1"),
            ({"budget_share": 0.2}, "tau_1"),
        ],
    )
    def test_what_they_do_not_hold_for_is_refused(
        self, saved: Callable[..., UacsConfig], changes: dict[str, Any], tau: str
    ) -> None:
        with pytest.raises(
            ValueError, match=f"{tau} was calibrated with {next(iter(changes))}=.*; run `hf-msa calibrate"
        ):
            saved(changes)
        assert getattr(saved({**changes, tau: 0.25}), tau) == 0.25, "unless the caller gives one"

    @pytest.mark.parametrize(
        "changes",
        [
            {"expert_model": "/models/b"},
            {"expert_batch_size": 2},
            {"expert_model": "a/other", "route": "mllm"},
            {"expert_model": "a/other", "route": "random"},
            {"temperature": 2.0, "route": "fast"},
            {"disagreement_rule": "mllm"},
        ],
    )
    def test_what_has_no_part_in_them_is_taken(
        self, saved: Callable[..., UacsConfig], changes: dict[str, Any]
    ) -> None:
        config = saved(changes)
        assert all(getattr(config, name) == value for name, value in changes.items())
        assert (config.tau_1, config.tau_2) == pytest.approx((0.6, 0.7))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"expert_max_new_tokens": 0}, "expert_max_new_tokens must be at least 1"),
        ({"neutral_zone": -0.1}, "neutral_zone must be at least 0"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"threshold_lambda": 1.5}, "threshold_lambda must be at least 0 and at most 1"),
        ({"expert_kind": "endpoint", "expert_adapter": True}, "A server loads its model itself"),
        ({"expert_timeout": 0}, "expert_timeout must be above 0, got 0"),
        ({"expert_retries": -1}, "expert_retries must be at least 0, got -1"),
        ({"expert_top_logprobs": 0}, "expert_top_logprobs must be at least 1, got 0"),
        ({"expert_concurrency": 0}, "expert_concurrency must be at least 1, got 0"),
        ({"expert_key_variable": "HF_TOKEN"}, "not that of the Hub's token, which goes to the Hub only"),
        ({"expert_key_variable": "sk-key"}, "expert_key_variable must be the name of an environment variable"),
        ({"route": "slow"}, "route"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        tiny_uacs_config(**fields)


def test_noisy_experts_are_surer_where_they_are_right() -> None:
    labels = np.random.default_rng(0).uniform(-3, 3, 600)
    keys = [str(index) for index in range(600)]
    says = noisy_answers(labels.tolist(), keys, spread=2.0)
    errors = np.abs([float(one.text) for one in says] - labels)
    entropies = np.array([one.entropy for one in says])
    assert np.corrcoef(errors, entropies)[0, 1] > 0.4
    assert noisy_answers(labels[:5].tolist(), keys[:5], spread=2.0) == says[:5]
    dishonest = noisy_answers(labels.tolist(), keys, spread=2.0, honesty=0.0)
    assert [one.text for one in dishonest] == [one.text for one in says]
    assert abs(np.corrcoef(errors, [one.entropy for one in dishonest])[0, 1]) < 0.15
