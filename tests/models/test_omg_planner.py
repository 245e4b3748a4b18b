"""OMG-Agent's planner: the schema, re-ranking by hand, centring, scripted models, and the light planner's probes."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_msa.models.msa_answer_store import AnswerStore
from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.models.msa_mllm import LocalMllm, MllmRequest, adapter_digest
from hf_msa.models.msa_mllm_answers import MllmAnswer
from hf_msa.models.msa_schema import SENTIMENT_SCALE
from hf_msa.models.msa_verbalizer import MsaVerbalizer
from hf_msa.models.omg_light_planner import Lexicon, LightPlanner, RidgeProbe, rule_entity_action, tokenize
from hf_msa.models.omg_observation import Observation
from hf_msa.models.omg_plan import FALLBACK_PLAN, MAX_PHRASE, Plan, read_plan, sentiment_word
from hf_msa.models.omg_planner import (
    NOTHING_OBSERVED,
    Centering,
    MllmPlanner,
    Planner,
    Proposed,
    normalize,
    plan_prompt,
    semantic_cost,
    to_half,
)
from hf_msa.training.omg.planners import fit_centering, fit_light_planner
from nonempty import some
from scripted_mllm import ScriptedMllm, says
from tiny import tiny_omg_config
from tiny_mllm import tiny_audio, tiny_frames, tiny_mllm

GLAD = Plan("a woman", "praises the film", "positive")
SAD = Plan("a woman", "leaves", "negative")
BROKEN = "She is glad!"


def by_prompt(**vectors: Sequence[float]) -> Callable[[MllmRequest], Sequence[float]]:
    """Vectors by a word of the prompt, (1, 0) without any of them."""

    def vector(request: MllmRequest) -> Sequence[float]:
        return next((value for word, value in vectors.items() if word in request.prompt), (1.0, 0.0))

    return vector


class Fragile(ScriptedMllm):
    """Fails at requests that hold the word `broken`."""

    def __init__(self) -> None:
        super().__init__(says((GLAD.to_text(), (-0.5,))))
        self.broken, self.torn, self.failed = "broken", "torn", 0

    def generate(self, requests: Sequence[MllmRequest], *args: Any, **options: Any) -> list[list[MllmAnswer]]:
        if any(self.broken in request.prompt for request in requests):
            self.failed += 1
            raise ConnectionError("refused")
        return super().generate(requests, *args, **options)

    def embed(self, requests: Sequence[MllmRequest]) -> np.ndarray:
        if any(self.torn in request.prompt for request in requests):
            raise ValueError("torn")
        return super().embed(requests)


def asking(mllm: Any, **options: Any) -> MllmPlanner:
    """A planner that asks this model; options are fields of its configuration, or arguments of its own."""
    given = {name: options.pop(name, None) for name in ("verbalizer", "centering", "store", "adapter", "encode")}
    return MllmPlanner(mllm, tiny_omg_config(**options), **given)


def score_of(text: str) -> int:
    plan, _ = read_plan(text)
    assert plan is not None
    return plan.score


def identities(planner: Planner) -> str:
    """What the planner's answers depend on."""
    said = None if planner.verbalizer is None else planner.verbalizer.to_dict()
    return json.dumps([said, *(planner._identity(proposing) for proposing in (True, False))])


class TestSchema:
    def test_a_plan_survives_text_and_json(self) -> None:
        assert GLAD.to_text() == "Entity: a woman; Action: praises the film; Sentiment: positive"
        assert read_plan(GLAD.to_text()) == (GLAD, ())
        assert Plan(**json.loads(json.dumps(GLAD.to_dict()))) == GLAD

    def test_a_model_may_write_one_field_on_each_line_and_in_capitals(self) -> None:
        assert read_plan('ENTITY:  "a   woman"\nAction: praises the film.\n\nSentiment: Positive.\n') == (GLAD, ())

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (BROKEN, "fields"),
            ("", "fields"),
            ("Entity: a woman; Sentiment: positive", "fields"),
            ("Action: leaves; Entity: a woman; Sentiment: positive", "fields"),
            ("Entity: a; Entity: b; Action: leaves; Sentiment: positive", "fields"),
            ("Entity: a woman; Action: leaves; Sentiment: positive; Because: it ends", "fields"),
            ("Sure! Entity: a woman; Action: leaves; Sentiment: positive", "fields"),
            ("Entity: ; Action: leaves; Sentiment: positive", "entity is empty"),
            ("Entity: a woman; Action: ...; Sentiment: positive", "action is empty"),
            (f"Entity: {'a' * (MAX_PHRASE + 1)}; Action: leaves; Sentiment: positive", "entity has 61"),
            ("Entity: a woman; Action: leaves; Sentiment: glad", "sentiment is 'glad'"),
            ("Entity: a woman; Action: leaves; Sentiment: strongly", "sentiment is 'strongly'"),
        ],
    )
    def test_violations_are_named_and_refused(self, text: str, problem: str) -> None:
        plan, found = read_plan(text)
        assert plan is None and len(found) == 1 and problem in found[0]

    def test_every_violation_is_named(self) -> None:
        assert len(read_plan("Entity: ; Action: ; Sentiment: glad")[1]) == 3

    @pytest.mark.parametrize("entity", ["", " a", "a;b", "a\nb", "a.", "b" * (MAX_PHRASE + 1)])
    def test_a_plan_that_could_not_be_read_back_cannot_be_made(self, entity: str) -> None:
        with pytest.raises(ValueError, match="the entity"):
            Plan(entity, "leaves", "neutral")

    @given(st.text(max_size=70), st.text(max_size=70), st.sampled_from(SENTIMENT_SCALE))
    @settings(max_examples=100)
    def test_whatever_can_be_made_can_be_read_back(self, entity: str, action: str, sentiment: str) -> None:
        try:
            plan = Plan(entity, action, sentiment)
        except ValueError:
            return
        assert read_plan(plan.to_text()) == (plan, ())

    def test_scores_and_words(self) -> None:
        mosi, sims = LabelFamily.of("mosi"), LabelFamily.of("sims")
        assert [sentiment_word(score, mosi) for score in range(-3, 4)] == list(SENTIMENT_SCALE)
        assert [Plan("a", "b", word).score for word in SENTIMENT_SCALE] == [-3, -2, -1, 0, 1, 2, 3]
        assert sentiment_word(-9.0, mosi) == "strongly negative"
        assert sentiment_word(1.6, mosi) == sentiment_word(2.4, mosi) == "positive"
        assert sentiment_word(0.6, sims) == "positive"  # 1.8 on the scale of seven
        stars = LabelFamily.from_dict({"name": "stars", "low": 1, "high": 5})
        assert [sentiment_word(score, stars) for score in (1, 3, 5)] == [SENTIMENT_SCALE[n] for n in (0, 3, 6)]

    def test_the_fallback_is_neutral(self) -> None:
        assert FALLBACK_PLAN.to_text() == "Entity: a speaker; Action: speaks; Sentiment: neutral"


class TestCosts:
    def test_semantic_cost_is_zero_for_parallel_vectors_and_two_for_opposite_ones(self) -> None:
        plans = np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [3.0, 4.0], [0.0, 0.0]])
        assert semantic_cost(plans, np.array([[5.0, 0.0]])) == pytest.approx([0.0, 2.0, 1.0, 0.4, 1.0])

    @given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6))
    @settings(max_examples=50)
    def test_semantic_cost_stays_within_its_bounds(self, values: list[float]) -> None:
        vectors = np.array(values).reshape(2, 3)
        assert 0 <= semantic_cost(vectors[:1], vectors[1:])[0] <= 2
        assert semantic_cost(vectors, vectors) == pytest.approx(np.where(vectors.any(1), 0.0, 1.0), abs=1e-5)

    def test_centring_tells_near_parallel_vectors_apart(self) -> None:
        vectors = np.array([[100.0, 3.0], [100.0, -3.0]])
        assert normalize(vectors)[0] @ normalize(vectors)[1] == pytest.approx((1e4 - 9) / (1e4 + 9))
        centred = normalize(vectors, vectors.mean(0))
        assert centred == pytest.approx(np.array([[0.0, 1.0], [0.0, -1.0]]))
        assert centred.dtype == np.float32

    def test_the_mean_itself_becomes_zeros_not_nan(self) -> None:
        assert normalize(np.array([[2.0, 2.0]]), np.array([2.0, 2.0])).tolist() == [[0.0, 0.0]]


class TestChoice:
    def test_the_first_of_equals_wins(self) -> None:
        low, high = (SAD.to_text(), (-2.0,)), (GLAD.to_text(), (-1.0,))
        mllm = ScriptedMllm(says((BROKEN, (0.0,)), low, high, high))
        for reranking, chosen in ((True, 2), (False, 1)):
            (choice,) = asking(mllm, reranking=reranking).plan([Observation("words")])
            assert choice.chosen == chosen and not choice.is_fallback

    def test_utility_by_hand(self) -> None:
        # Observed (1, 0). GLAD is at cosine .6: -1.1 - .3 * .4 = -1.22. SAD is opposite: -.8 - .3 * 2 = -1.4.
        mllm = ScriptedMllm(
            says((SAD.to_text(), (-0.5, -0.3)), (GLAD.to_text(), (-1.0, -0.1))),
            by_prompt(praises=(3.0, 4.0), leaves=(-2.0, 0.0)),
        )
        (choice,) = asking(mllm).plan([Observation("words")])
        assert choice.plan == GLAD and choice.chosen == 1 and not choice.is_fallback
        assert [candidate.cost for candidate in choice.candidates] == pytest.approx([2.0, 0.4])
        assert [candidate.utility for candidate in choice.candidates] == pytest.approx([-1.4, -1.22])
        assert choice.plan_vector == pytest.approx([0.6, 0.8])
        assert choice.observation_vector == pytest.approx([1.0, 0.0])
        (unweighted,) = asking(mllm, semantic_weight=0.0).plan([Observation("words")])
        assert unweighted.plan == SAD
        (first,) = asking(mllm, reranking=False).plan([Observation("words")])
        assert first.plan == SAD and first.chosen == 0

    def test_the_score_is_the_mean_of_the_plans_that_were_drawn(self) -> None:
        happy = (Plan("a", "b", "strongly positive").to_text(), (-9.0,))
        drawn = says((BROKEN, (0.0,)), (Plan("a", "b", "negative").to_text(), (-1.0,)), happy, happy)
        (choice,) = asking(ScriptedMllm(drawn)).plan([Observation("words")])
        assert choice.score == pytest.approx((-2 + 3 + 3) / 3)
        (nothing,) = asking(ScriptedMllm(says((BROKEN, (0.0,))))).plan([Observation("words")])
        assert nothing.score == 0.0

    def test_sum_prefers_short_answers_and_mean_does_not(self) -> None:
        mllm = ScriptedMllm(says((SAD.to_text(), (-1.0, -1.0)), (GLAD.to_text(), (-0.6,) * 4)))
        (literal,) = asking(mllm).plan([Observation("words")])
        (mean,) = asking(mllm, log_prob="mean").plan([Observation("words")])
        assert literal.plan == SAD and mean.plan == GLAD
        assert [candidate.log_prob for candidate in literal.candidates] == pytest.approx([-2.0, -2.4])
        assert [candidate.log_prob for candidate in mean.candidates] == pytest.approx([-1.0, -0.6])

    def test_a_broken_candidate_never_wins(self) -> None:
        mllm = ScriptedMllm(says((BROKEN, (0.0,)), (GLAD.to_text(), (-50.0,))))
        for reranking in (True, False):
            (choice,) = asking(mllm, reranking=reranking).plan([Observation("words")])
            assert choice.plan == GLAD and choice.chosen == 1
            broken = choice.candidates[0]
            assert broken.utility == -math.inf and math.isnan(broken.cost) and broken.violations

    def test_all_broken_gives_the_fallback_and_says_so(self) -> None:
        mllm = ScriptedMllm(says((BROKEN, (0.0,)), ("", ())), by_prompt(speaks=(0.0, 2.0)))
        (choice,) = asking(mllm, log_prob="mean").plan([Observation("words")])
        assert choice.plan == FALLBACK_PLAN and choice.is_fallback
        assert choice.plan_vector == pytest.approx([0.0, 1.0])


class TestMllmPlanner:
    verbalizer = MsaVerbalizer.fit(
        [{"audio": np.full((2, 1), value), "vision": np.full((2, 1), value)} for value in (-1.0, 1.0)],
        {"audio": ("pitch",), "vision": ("AU12_r",)},
    )
    features = {"audio": np.full((2, 1), 3.0), "vision": np.full((2, 1), -3.0)}

    def planner(self, mllm: ScriptedMllm, **options: Any) -> MllmPlanner:
        return asking(mllm, verbalizer=self.verbalizer, **options)

    def test_what_the_model_does_not_take_is_left_out_and_described(self) -> None:
        seen = Observation("words", tiny_audio(), tiny_frames(), self.features)
        mllm = ScriptedMllm(says())
        mllm.modalities = ("text", "vision")  # type: ignore[attr-defined]
        for planner in (
            self.planner(mllm),
            self.planner(ScriptedMllm(says()), planner="mllm", planner_modalities=["text", "vision"]),
        ):
            for request in (planner.request(seen), planner.content(seen)):
                assert request.audio is None and request.frames is not None
                assert "Voice: pitch very high" in request.prompt and "Face:" not in request.prompt
        bare = asking(mllm).request(dataclasses.replace(seen, features={})).prompt
        assert "Given of the clip: its words, its pictures. Lost: its sound" in bare

    def test_draws_as_the_settings_say(self) -> None:
        mllm = ScriptedMllm(says((GLAD.to_text(), (-1.0,))))
        planner = asking(mllm, generation_seed=7)
        planner.plan([Observation("a"), Observation("b")])
        assert mllm.options == [
            {"max_new_tokens": 48, "num_candidates": 5, "temperature": 0.8, "top_p": 0.9, "seed": 7}
        ]
        assert planner.name == "scripted"
        assert planner.plan([]) == []

    def test_the_question_has_all_that_is_observed_and_nothing_else(self) -> None:
        planner = self.planner(ScriptedMllm(says()))
        full = Observation("great film", features=self.features)
        prompt = planner.request(full).prompt
        assert '"great film"' in prompt and "pitch very high" in prompt and "lip corner puller very weak" in prompt
        assert "Lost" not in prompt
        heard = planner.request(full.restricted(["audio"])).prompt
        assert "pitch very high" in heard and "great film" not in heard and "lip corner" not in heard
        assert "Given of the clip: its sound. Lost: its words, its pictures;" in heard
        for word in SENTIMENT_SCALE:
            assert word in heard

    def test_what_is_missing_has_no_influence(self) -> None:
        planner = self.planner(ScriptedMllm(says()))
        wave, frames = np.zeros(4, np.float32), np.zeros((1, 2, 2, 3), np.uint8)
        one = Observation("great film", wave, frames, self.features)
        other = Observation(
            "bad film",
            wave + 1,
            frames,
            {"audio": np.ones((9, 1)), "vision": self.features["vision"]},
        )
        assert (
            planner.request(one.restricted(["vision"])).digest == planner.request(other.restricted(["vision"])).digest
        )
        assert planner.request(one.restricted(["audio"])).digest != planner.request(other.restricted(["audio"])).digest

    def test_raw_media_are_not_said_in_words_too(self) -> None:
        wave = np.zeros(4, np.float32)
        request = self.planner(ScriptedMllm(says())).request(Observation(None, wave, features=self.features))
        assert request.audio is wave
        assert "pitch" not in request.prompt and "lip corner puller" in request.prompt

    def test_without_the_verbaliser_features_are_unsaid(self) -> None:
        prompt = asking(ScriptedMllm(says())).request(Observation("great film", features=self.features)).prompt
        assert prompt == plan_prompt("great film", ["text"])

    def test_vectors_are_of_bare_text_without_the_question(self) -> None:
        mllm = ScriptedMllm(says((GLAD.to_text(), (-1.0,)), (GLAD.to_text(), (-1.0,))))
        self.planner(mllm).plan([Observation("great film", features=self.features), Observation()])
        prompts = [request.prompt for request in mllm.embedded]
        assert prompts[:2] == [FALLBACK_PLAN.to_text(), GLAD.to_text()]  # equal candidates are read once
        assert prompts[2] == "great film\nVoice: pitch very high. Face: lip corner puller very weak."
        assert prompts[3] and len(prompts) == 4

    def test_centring_takes_the_training_means_of_plans_and_observations_apart(self) -> None:
        mllm = ScriptedMllm(
            says((GLAD.to_text(), (-1.0,)), (SAD.to_text(), (-1.5,)), (BROKEN, (0.0,))),
            by_prompt(praises=(10.0, 1.0), leaves=(10.0, -1.0), loud=(0.0, 6.0), quiet=(0.0, 2.0), glad=(99.0, 99.0)),
        )
        planner = asking(mllm)
        fit_centering(planner, [Observation("loud"), Observation("quiet")])
        assert planner.centering is not None
        assert planner.centering.plan_mean == pytest.approx([10.0, 0.0])  # the broken one has no say
        assert planner.centering.observation_mean == pytest.approx([0.0, 4.0])
        loud, quiet = planner.plan([Observation("loud"), Observation("quiet")])
        # GLAD is now (0, 1), SAD (0, -1), loud (0, 1), quiet (0, -1): -1 - 0 and -1.5 - .6; -1 - .6 and -1.5 - 0.
        assert [candidate.utility for candidate in loud.candidates[:2]] == pytest.approx([-1.0, -2.1])
        assert [candidate.utility for candidate in quiet.candidates[:2]] == pytest.approx([-1.6, -1.5])
        assert (loud.plan, quiet.plan) == (GLAD, SAD)
        again = MllmPlanner.from_dict(json.loads(json.dumps(planner.to_dict())), mllm, planner.config).centering
        assert again is not None and np.array_equal(again.plan_mean, planner.centering.plan_mean)
        assert again.observation_mean.dtype == np.float32

    def test_nothing_to_take_the_means_of_is_refused(self) -> None:
        with pytest.raises(ValueError, match="training split"):
            fit_centering(asking(ScriptedMllm(says())), [])


class TestMemory:
    """What was found is not asked again, and whether it was makes no difference."""

    def mllm(self) -> ScriptedMllm:
        # A third is no half-precision number.
        return ScriptedMllm(
            says((GLAD.to_text(), (-1.0 / 3,)), (SAD.to_text(), (-2.0,))),
            by_prompt(praises=(1 / 3, 0.7), leaves=(-1 / 3, 1.0), film=(0.1, 0.7)),
        )

    def test_equal_observations_and_texts_are_asked_once(self) -> None:
        mllm = self.mllm()
        planner = asking(mllm)
        clips = [Observation("a film"), Observation("a play"), Observation("a film")]
        first = planner.plan(clips)
        assert (len(mllm.asked), len(mllm.embedded)) == (2, 5)  # two clips; the fallback and two plans, two clips
        again = planner.plan(clips[::-1])
        assert (len(mllm.asked), len(mllm.embedded)) == (2, 5)
        for one, other in zip(first, again[::-1], strict=True):
            assert one.candidates == other.candidates
            assert np.array_equal(one.observation_vector, other.observation_vector)

    def test_fresh_vectors_are_rounded_as_stored_ones_are(self) -> None:
        planner = asking(self.mllm())
        (vector,) = planner.embed_texts([GLAD.to_text()])
        exact = np.array([[1 / 3, 0.7]])
        assert np.array_equal(vector, normalize(exact.astype(np.float16))[0])
        assert not np.array_equal(vector, normalize(exact)[0])

    def test_centring_and_choice_are_not_remembered(self) -> None:
        store = AnswerStore()
        mllm = self.mllm()
        plain = asking(mllm, store=store)
        asked = [Observation("a film")]
        (before,) = plain.plan(asked)
        count = len(mllm.asked) + len(mllm.embedded)
        plain.centering = Centering(np.array([1.0, 1.0], np.float32), np.zeros(2, np.float32))
        (centred,) = plain.plan(asked)
        other = asking(mllm, reranking=False, semantic_weight=9.0, store=store)
        (first,) = other.plan(asked)
        assert len(mllm.asked) + len(mllm.embedded) == count
        assert before.plan == GLAD and first.chosen == 0
        assert centred.plan_vector.tolist() != before.plan_vector.tolist()

    def test_what_answers_depend_on_is_not_mixed_up(self) -> None:
        """Neither settings of draws, nor models, nor adapters, nor words for features share answers."""
        store = AnswerStore()
        mllm, named = self.mllm(), self.mllm()
        named.name = "another"
        verbalizer = TestMllmPlanner.verbalizer
        planners = [
            asking(mllm, store=store),
            asking(mllm, generation_seed=1, store=store),
            asking(mllm, plan_temperature=0.5, store=store),
            asking(mllm, log_prob="mean", store=store),
            asking(mllm, num_candidates=4, store=store),
            asking(mllm, store=store, adapter="0123456789"),
            asking(mllm, verbalizer=verbalizer, store=store),
            asking(named, store=store),
        ]
        assert len({identities(planner) for planner in planners}) == len(planners)
        for number, planner in enumerate(planners, 1):
            planner.propose([Observation("a film", features=TestMllmPlanner.features)])
            assert len(mllm.asked) + len(named.asked) == number
        same = asking(mllm, semantic_weight=0.0, centering=Centering(np.ones(2), np.ones(2)), store=store)
        assert identities(same) == identities(planners[0])
        same.propose([Observation("a film", features=TestMllmPlanner.features)])
        assert len(mllm.asked) + len(named.asked) == len(planners)

    def test_a_persistent_store_serves_another_planner(self, tmp_path: Path) -> None:
        mllm = self.mllm()
        asked = [Observation("a film", tiny_audio()), Observation("a play")]
        store = AnswerStore(tmp_path)
        fresh = asking(mllm, store=store, plan_tokens="per_constraint").plan(asked)
        count = len(mllm.asked) + len(mllm.embedded)
        cached = asking(mllm, store=AnswerStore(tmp_path), plan_tokens="per_constraint").plan(asked)
        assert len(mllm.asked) + len(mllm.embedded) == count
        for one, other in zip(fresh, cached, strict=True):
            assert one.candidates == other.candidates and one.plan == other.plan
            for name in ("plan_vector", "observation_vector", "constraint_vectors"):
                assert np.array_equal(getattr(one, name), getattr(other, name))

    def test_what_was_written_comes_back_to_the_letter(self) -> None:
        texts = (("Entity: \u5f71\u7247\udc00", (-1.25, -0.1)), ("", (float("-inf"),)))
        mllm = ScriptedMllm(says(*texts), lambda request: (1.0, 0.0))
        planner = asking(mllm, num_candidates=2)
        expected = (("Entity: \u5f71\u7247\udc00", -1.35), ("", float("-inf")))
        for _ in range(2):
            (proposed,) = planner.propose([Observation("a film")])
            assert proposed.candidates == expected
        assert len(mllm.asked) == 1

    def test_what_is_too_large_for_half_precision_stays_finite(self) -> None:
        half = to_half(np.array([[1e9, -1e9, 0.1]], dtype=np.float32))
        assert half.dtype == np.float16 and half.tolist() == [[65504.0, -65504.0, float(np.float16(0.1))]]

    def test_costs_are_counted_and_remembered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]
        monkeypatch.setattr("time.perf_counter", lambda: clock[0])

        class Slow(ScriptedMllm):
            """Takes 100 s to load, and 6 s to answer."""

            @property
            def model(self) -> None:
                clock[0] += 100

            def generate(self, *args: Any, **options: Any) -> list[list[MllmAnswer]]:
                clock[0] += 6
                answers = super().generate(*args, **options)
                return [[dataclasses.replace(one, prompt_tokens=90) for one in row] for row in answers]

        mllm = Slow(says((GLAD.to_text(), (-0.5, -0.5)), (BROKEN, (-0.5,))))
        two = [Observation("a film"), Observation("a play")]
        choices = asking(mllm, store=AnswerStore(tmp_path), num_candidates=2).plan(two)
        candidates = ((GLAD.to_text(), -1.0), (BROKEN, -0.5))
        expected = Proposed(candidates, calls=1, prompt_tokens=90, tokens=3, seconds=3.0)
        assert [choice.proposed for choice in choices] == [expected] * 2
        again = asking(mllm, store=AnswerStore(tmp_path), num_candidates=2).plan(two[:1])
        assert [choice.proposed for choice in again] == [expected._replace(remembered=1)]
        assert [choice.seconds for choice in (*choices, *again)] == [3.0] * 3 and clock == [106.0]
        assert math.isnan(asking(self.mllm()).plan(two)[0].proposed.prompt_tokens), "the model does not say"

    def test_one_failing_request_is_a_fallback_plan_that_is_not_kept(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        mllm = Fragile()
        observations = [Observation(text) for text in ("a film", "a broken one", "a play")]
        choices = asking(mllm, store=AnswerStore(tmp_path), num_candidates=1).plan(observations)
        assert [choice.is_fallback for choice in choices] == [False, True, False]
        assert choices[1].plan == FALLBACK_PLAN and choices[1].candidates == ()
        assert choices[1].proposed[:2] == ((), 1) and np.isfinite(choices[1].plan_vector).all()
        assert "gave no answer to a question, which counts as unreadable: refused" in caplog.text
        # Known plans are answers, too: what fails while nothing else is asked is no reason to stop.
        again = Fragile()
        assert asking(again, store=AnswerStore(tmp_path), num_candidates=1).plan(observations)[1].is_fallback
        assert again.failed == 1 and not again.asked[1:], "asked again, and a plain question"
        mllm.broken = "never said"
        plan = asking(mllm, store=AnswerStore(tmp_path), num_candidates=1).plan(observations)[1].plan
        assert plan == GLAD

    def test_one_observation_without_a_vector_is_a_fallback_plan_too(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        mllm = Fragile()
        mllm.broken = "never said"
        observations = [Observation(text) for text in ("a film", "a torn one", "a play")]
        choices = asking(mllm, store=AnswerStore(tmp_path), num_candidates=1).plan(observations)
        assert [choice.is_fallback for choice in choices] == [False, True, False]
        assert choices[1].plan == FALLBACK_PLAN and choices[1].score == 0.0
        nothing = asking(mllm).embed_texts([NOTHING_OBSERVED])[0]
        assert choices[1].observation_vector == pytest.approx(nothing)
        assert "gave no vector of an observation, which counts as unreadable: torn" in caplog.text
        # It is not kept: where there is one later on, it is a plan as any.
        mllm.torn = "never said"
        again = asking(mllm, store=AnswerStore(tmp_path), num_candidates=1).plan(observations)
        assert [choice.is_fallback for choice in again] == [False] * 3
        mllm.torn = ""
        with pytest.raises(ValueError, match="torn"):
            asking(mllm, num_candidates=1).plan(observations)

    def test_a_model_that_fails_at_everything_ends_the_work(self) -> None:
        with pytest.raises(ConnectionError, match="refused"):
            asking(Fragile(), num_candidates=1).plan([Observation("a broken one"), Observation("broken too")])
        gone = Fragile()
        planner = asking(gone, num_candidates=1)
        planner.plan([Observation("a film")])
        gone.broken = ""
        with pytest.raises(ConnectionError, match="refused"):
            planner.plan([Observation("a play")])

    def test_a_store_that_forgets_everything_changes_nothing(self) -> None:
        class ForgetfulStore(AnswerStore):
            def write(self, answers: Any) -> None:
                pass

        asked = [Observation("a film"), Observation("a play")]
        kept, forgotten = (asking(self.mllm(), store=store).plan(asked) for store in (None, ForgetfulStore()))
        assert [choice.candidates for choice in kept] == [choice.candidates for choice in forgotten]

    def test_a_model_on_this_machine_is_known_by_what_it_is_and_not_where(self, tmp_path: Path) -> None:
        for folder, weights in (("a", b"one"), ("b", b"one"), ("c", b"two")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "adapter_model.safetensors").write_bytes(weights)

        def planner(**options: Any) -> MllmPlanner:
            return asking(LocalMllm.from_pretrained("org/model", **options))

        one, moved, other = (planner(adapter=str(tmp_path / folder)) for folder in "abc")
        assert identities(one) == identities(moved) != identities(other)
        assert one.name == f"org/model+{adapter_digest(tmp_path / 'a')[:8]}" and planner().name == "org/model"
        assert len({identities(planner(**{key: "4bit"})) for key in ("dtype", "revision")}) == 2
        assert identities(planner()) != identities(one)


class TestConstraints:
    def test_each_field_has_a_vector_of_its_own(self) -> None:
        mllm = ScriptedMllm(
            says((GLAD.to_text(), (-1.0,))),
            lambda request: (float(request.prompt.count(":")), 4.0 if "positive" in request.prompt else 0.0),
        )
        centering = Centering(np.array([-2.0, 0.0], np.float32), np.zeros(2, np.float32))
        plain, three = (asking(mllm, centering=centering, plan_tokens=kind) for kind in ("pooled", "per_constraint"))
        (without,), (choice,) = plain.plan([Observation("a")]), three.plan([Observation("a")])
        assert without.constraint_vectors is None
        assert GLAD.constraints == ("Entity: a woman", "Action: praises the film", "Sentiment: positive")
        assert choice.constraint_vectors == pytest.approx(np.array([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]]))

    def test_the_fallback_has_them_too(self) -> None:
        planner = asking(ScriptedMllm(says((BROKEN, (0.0,)))), plan_tokens="per_constraint")
        assert [choice.constraint_vectors.shape for choice in planner.plan([Observation("a")] * 2)] == [(3, 2)] * 2


class TestOnAServer:
    """Plans are the server's, vectors the text encoder's."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(text), "pitch" in text] for text in texts], dtype=np.float32)

    def test_nothing_is_asked_of_the_model_but_texts(self) -> None:
        mllm = ScriptedMllm(says((GLAD.to_text(), (-1.0,)), (BROKEN, (-0.1,)), (SAD.to_text(), (-1.1,))))
        planner = asking(
            mllm,
            planner_kind="endpoint",
            planner="mllm",
            planner_lora=False,
            verbalizer=TestMllmPlanner.verbalizer,
            encode=self.encode,
        )
        # It can neither hear nor see: features are said, though there is a recording.
        seen = Observation("great film", audio=tiny_audio(), features=TestMllmPlanner.features)
        content = planner.content(seen)
        assert isinstance(content, str) and content.startswith("great film\n") and "pitch very high" in content
        assert planner.request(seen).audio is not None and "pitch" not in planner.request(seen).prompt
        (choice,) = planner.plan([seen])
        assert mllm.asked and not mllm.embedded
        assert choice.observation_vector == pytest.approx(normalize(self.encode([content]))[0], abs=1e-6)
        costs = [candidate.cost for candidate in choice.candidates if candidate.plan is not None]
        vectors = normalize(self.encode([plan.to_text() for plan in (GLAD, SAD)]))
        assert costs == pytest.approx(semantic_cost(vectors, choice.observation_vector[None]).tolist())
        assert planner.vectors([planner.content(Observation())]).shape == (1, 2)

    def test_it_survives_json_and_its_vectors_depend_on_the_encoder_alone(self) -> None:
        options: dict[str, Any] = {"planner_kind": "endpoint", "planner": "mllm", "planner_lora": False}
        planner = asking(ScriptedMllm(says()), encode=self.encode, **options)
        values = json.loads(json.dumps(planner.to_dict()))
        assert values["vectors"] == "text_encoder" and asking(ScriptedMllm(says())).to_dict()["vectors"] == "planner"
        again = MllmPlanner.from_dict(values, planner.mllm, planner.config, encode=self.encode)
        assert identities(again) == identities(planner)
        other = MllmPlanner.from_dict(
            values, planner.mllm, planner.config, encode=lambda texts: 2 * self.encode(texts)
        )
        assert other._identity(False) != planner._identity(False) and other._identity(True) == planner._identity(True)


class TestSaving:
    def test_an_mllm_planner_survives_json(self) -> None:
        mllm = ScriptedMllm(says((GLAD.to_text(), (-1.0,))), by_prompt(praises=(4.0, 0.5)))
        planner = asking(mllm, generation_seed=3, verbalizer=TestMllmPlanner.verbalizer, adapter="0123456789abcdef")
        fit_centering(planner, [Observation("a"), Observation("b")])
        values = json.loads(json.dumps(planner.to_dict()))
        assert values["kind"] == "mllm" and values["model"] == "scripted"
        again = MllmPlanner.from_dict(values, mllm, planner.config)
        assert identities(again) == identities(planner) and again.name == planner.name == "scripted+01234567"
        seen = Observation("c", features=TestMllmPlanner.features)
        (one,), (other,) = again.plan([seen]), planner.plan([seen])
        assert one.candidates == other.candidates
        assert np.array_equal(one.observation_vector, other.observation_vector)

    def test_a_language_model_with_another_adapter_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
        adapted = LocalMllm.from_pretrained("org/model", adapter=str(tmp_path))
        plain = LocalMllm.from_pretrained("org/model")
        values, config = asking(adapted).to_dict(), tiny_omg_config()
        assert identities(MllmPlanner.from_dict(values, adapted, config)) == identities(asking(adapted))
        # A model in memory does not know whether it has one.
        assert MllmPlanner.from_dict(values, tiny_mllm(), config).to_dict()["adapter"] == values["adapter"]
        for saved, model in ((values, plain), (asking(plain).to_dict(), adapted)):
            with pytest.raises(ValueError, match="load the model with the adapter"):
                MllmPlanner.from_dict(saved, model, config)

    def test_a_planner_without_anything_fitted_survives_too(self) -> None:
        mllm = ScriptedMllm(says())
        again = MllmPlanner.from_dict(asking(mllm).to_dict(), mllm, tiny_omg_config())
        assert again.centering is again.verbalizer is None


def test_a_real_model_with_random_weights_plans_too() -> None:
    seen = [Observation("great film", tiny_audio(), tiny_frames()), Observation(None, tiny_audio())]
    planner = asking(tiny_mllm(), num_candidates=2, plan_max_new_tokens=3)
    fit_centering(planner, seen)
    both = planner.plan(seen)
    for choice in both:
        assert choice.is_fallback and choice.plan == FALLBACK_PLAN and len(choice.candidates) == 2
        assert all(candidate.violations and candidate.log_prob < 0 for candidate in choice.candidates)
        assert np.linalg.norm(choice.observation_vector) == pytest.approx(1.0, abs=1e-5)
    (alone,) = planner.plan(seen[1:])
    assert [candidate.text for candidate in alone.candidates] == [candidate.text for candidate in both[1].candidates]
    assert alone.observation_vector == pytest.approx(both[1].observation_vector, abs=1e-3)


class TestRules:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("I really loved it", ("the speaker", "loved")),
            ("He didn't like the end", ("he", "like")),
            ("It's great", ("it", "is")),
            ("the main actor was running away", ("the main actor", "running")),
            ("Well, the movie surprised me", ("the movie", "surprised")),
            ("they have not a clue", ("they", "has")),
            ("awful", ("a speaker", "speaks")),
            ("", ("a speaker", "speaks")),
            (None, ("a speaker", "speaks")),
            ("\u6211\u559c\u6b22\uff0c\u771f\u7684", ("a speaker", "\u6211\u559c\u6b22")),
            (
                "... \u042f \u043b\u044e\u0431\u043b\u044e; \u0434\u0430",
                ("a speaker", "\u042f \u043b\u044e\u0431\u043b\u044e"),
            ),
            ("123 ... !", ("a speaker", "speaks")),
        ],
    )
    def test_subject_and_verb(self, text: str | None, expected: tuple[str, str]) -> None:
        assert rule_entity_action(text) == expected

    @given(st.text(max_size=80))
    @example("he 'cause")
    @example("the " + "x" * 90)
    @settings(max_examples=100)
    def test_any_text_keeps_to_the_schema(self, text: str) -> None:
        Plan(*rule_entity_action(text), "neutral")

    def test_words_and_characters(self) -> None:
        assert tokenize("I DON\u2019T like it's 3 \u597d\u770b") == [
            "i", "do", "not", "like", "it", "'s", "\u597d", "\u770b",
        ]  # fmt: skip


class TestProbe:
    def test_lexicon_by_hand(self) -> None:
        lexicon = Lexicon(0.0, {"good": (2, 3.0), "film": (2, -1.0), "bad": (1, -3.0)}, prior=1.0)
        assert lexicon.score("good") == pytest.approx(3 / 3)
        assert lexicon.score("good film") == pytest.approx((1 - 1 / 3) / 2)
        assert lexicon.score("new bad") == pytest.approx(-3 / 2 / 2)
        assert lexicon.score("?!") == 0.0

    def test_probe_by_hand(self) -> None:
        probe = RidgeProbe(np.array([3.0, 7.0]), np.array([2.0, 1.0]), np.array([0.5, 0.0]), 1.0, 0.5)
        assert probe.predict(np.array([5.0, 7.0])) == pytest.approx(1.5)
        assert probe.predict(np.array([3.0, 9.0])) == pytest.approx(1.0)


def encode(texts: Sequence[str]) -> np.ndarray:
    """A text encoder of two numbers for each text."""
    return np.array([[len(text), text.count("o")] for text in texts], dtype=np.float32)


class TestLightPlanner:
    labels = np.array([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0] * 4)
    texts = tuple("I hate it" if label < 0 else "I love it" if label > 0 else "it is" for label in labels)
    observations = tuple(
        Observation(text, features={"audio": np.full((3, 1), label), "vision": np.full((3, 2), -label)})
        for text, label in zip(texts, labels, strict=True)
    )

    verbalizer = MsaVerbalizer.fit(
        [observation.features for observation in observations], {"audio": ["pitch"], "vision": ["AU12_r", "gaze"]}
    )

    def planner(self, encoder: Any = encode, sign: float = 1.0, ridge: float = 0.01, **options: Any) -> LightPlanner:
        labels, verbalizer = (sign * self.labels).tolist(), options.pop("verbalizer", None)
        config = tiny_omg_config(**options)
        planner = fit_light_planner(self.observations, labels, encoder, config, verbalizer, ridge=ridge)
        fit_centering(planner, self.observations)
        return planner

    def test_its_score_weighs_words_by_their_probability(self) -> None:
        (choice,) = self.planner(num_candidates=2).plan([Observation("I love it")])
        (first, second) = choice.candidates
        assert first.plan is not None and second.plan is not None
        share = math.exp(first.log_prob) / (math.exp(first.log_prob) + math.exp(second.log_prob))
        assert choice.score == pytest.approx(share * first.plan.score + (1 - share) * second.plan.score)
        assert 0 < share < 1 and first.plan.score != second.plan.score

    def test_has_a_probe_for_each_of_the_seven_patterns(self) -> None:
        assert set(self.planner().probes) == {
            ("text",),
            ("audio",),
            ("vision",),
            ("text", "audio"),
            ("text", "vision"),
            ("audio", "vision"),
            ("text", "audio", "vision"),
        }

    def test_reads_the_sentiment_from_whatever_is_there(self) -> None:
        planner = self.planner()
        for modalities in (["audio"], ["vision"], ["audio", "vision"]):
            seen = [observation.restricted(modalities) for observation in self.observations[:7]]
            assert [choice.plan.score for choice in planner.plan(seen)] == [-3, -2, -1, 0, 1, 2, 3]
        hate, love = planner.plan([Observation("I hate it"), Observation("I love it")])
        assert hate.plan.score < 0 < love.plan.score
        assert (love.plan.entity, love.plan.action) == ("the speaker", "love")

    def test_candidates_are_the_words_around_the_score_with_their_probabilities(self) -> None:
        probe = RidgeProbe(np.zeros(3), np.ones(3), np.array([1.0, 0.0, 0.0]), 0.0, 1.0)
        planner = LightPlanner(encode, tiny_omg_config(num_candidates=7), Lexicon(0.0, {}), {("audio",): probe})
        (((*proposed,), *_),) = planner.propose([Observation(features={"audio": np.full((2, 1), 0.9)})])
        words = [score_of(text) for text, _ in proposed]
        assert words == [1, 0, 2, -1, 3, -2, -3]
        weights = np.exp(-((np.array(words) - 0.9) ** 2) / 2)
        assert np.exp([log_prob for _, log_prob in proposed]) == pytest.approx(weights / weights.sum())
        config = tiny_omg_config(num_candidates=2, label_family="sims")
        narrow = LightPlanner(encode, config, planner.lexicon, planner.probes)
        (((*proposed,), *_),) = narrow.propose([Observation(features={"audio": np.full((2, 1), 0.6)})])
        assert [score_of(text) for text, _ in proposed] == [2, 1]  # .6 of 1 is 1.8 of 3

    def test_a_plan_depends_on_its_own_observation_alone(self) -> None:
        planner = self.planner()
        alone = [planner.plan([observation])[0] for observation in self.observations[:4]]
        for one, other in some(zip(alone, planner.plan(self.observations[:4]), strict=True)):
            assert one.plan == other.plan and one.candidates == other.candidates
            assert np.array_equal(one.plan_vector, other.plan_vector)
            assert np.array_equal(one.observation_vector, other.observation_vector)

    def test_nothing_observed_is_neutral(self) -> None:
        (choice,) = self.planner().plan([Observation()])
        assert choice.plan == FALLBACK_PLAN and not choice.is_fallback
        assert np.isfinite(choice.observation_vector).all()

    def test_an_unknown_pattern_is_refused(self) -> None:
        planner = fit_light_planner([Observation("I love it")], [1.0], encode, tiny_omg_config())
        with pytest.raises(ValueError, match="no probe for audio"):
            planner.plan([Observation(features={"audio": np.ones((2, 1))})])

    def test_is_named_and_survives_json(self) -> None:
        planner = self.planner(verbalizer=self.verbalizer)
        again = LightPlanner.from_dict(json.loads(json.dumps(planner.to_dict())), encode, planner.config)
        assert again.name == "light planner" and identities(again) == identities(planner)
        for one, other in zip(planner.plan(self.observations[:7]), again.plan(self.observations[:7]), strict=True):
            assert one.candidates == other.candidates
            assert np.array_equal(one.plan_vector, other.plan_vector)
            assert np.array_equal(one.observation_vector, other.observation_vector)

    def test_another_fit_or_encoder_is_another_planner(self) -> None:
        planner = self.planner()
        others = [
            self.planner(ridge=0.5),
            self.planner(sign=-1.0),
            self.planner(label_family="sims"),
            self.planner(num_candidates=3),
            self.planner(verbalizer=self.verbalizer),
            self.planner(encoder=lambda texts: encode(texts) + 1),
        ]
        assert len({identities(planner), *(identities(other) for other in others)}) == 7
        assert identities(self.planner()) == identities(planner)

    def test_each_text_is_encoded_once_under_all_patterns(self) -> None:
        read: list[str] = []

        def counting(texts: Sequence[str]) -> np.ndarray:
            read.extend(texts)
            return encode(texts)

        planner = self.planner(encoder=counting)
        for modalities in (["text"], ["text", "audio"], ["text", "audio", "vision"]):
            planner.plan([observation.restricted(modalities) for observation in self.observations])
        assert len(read) == len(set(read))

    def test_features_are_said_even_where_there_are_recordings(self) -> None:
        planner = self.planner(verbalizer=self.verbalizer)
        seen = Observation("it is", features={"audio": np.full((3, 1), 3.0)})
        heard = Observation("it is", tiny_audio(), features=seen.features)
        (one,), (other,) = planner.plan([seen]), planner.plan([heard])
        (words,) = planner.plan([Observation("it is")])
        assert np.array_equal(one.observation_vector, other.observation_vector)
        assert not np.array_equal(one.observation_vector, words.observation_vector)
