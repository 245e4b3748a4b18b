"""Fitting of planners: lexicon and probes by hand, means of clips as they are and with something missing."""

from collections import Counter

import numpy as np
import pytest

from hf_msa.errors import MsaError
from hf_msa.models.omg_observation import Observation
from hf_msa.models.omg_plan import Plan
from hf_msa.models.omg_planner import MllmPlanner
from hf_msa.training.omg.planners import (
    fit_centering,
    fit_lexicon,
    fit_light_planner,
    fit_probe,
    randomly_restricted,
    score_without_itself,
)
from scripted_mllm import ScriptedMllm, says
from tiny import tiny_omg_config
from tiny_mllm import tiny_audio

GLAD = Plan("a woman", "praises the film", "positive")
WHOLE = Observation("good", tiny_audio(), features={"vision": np.ones((2, 3), np.float32)})


def test_lexicon_by_hand() -> None:
    texts, labels = ["good film", "good good", "bad film"], [2.0, 1.0, -3.0]
    lexicon = fit_lexicon(texts, labels, prior=1.0)
    assert lexicon.words == {"good": (2, 3.0), "film": (2, -1.0), "bad": (1, -3.0)}
    assert score_without_itself(lexicon, "bad film", -3.0) == pytest.approx((0 / 1 + 2 / 2) / 2)


def test_ridge_by_hand() -> None:
    probe = fit_probe(np.array([[1.0, 7.0], [5.0, 7.0]]), np.array([0.0, 2.0]), ridge=1.0)
    # x = (-1, 1), y = (-1, 1), so w = 2 / (2 + 1 * 2); the other column never differs.
    assert probe.weights == pytest.approx([0.5, 0.0])
    assert probe.predict(np.array([5.0, 7.0])) == pytest.approx(1.5)
    assert probe.deviation == pytest.approx(0.5)


def test_ridge_minimises_what_it_says() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 4)), rng.normal(size=30)
    probe = fit_probe(features, labels, ridge=0.3)

    def loss(weights: np.ndarray) -> float:
        errors = labels - labels.mean() - (features - probe.center) / probe.scale @ weights
        return float((errors**2).mean() + 0.3 * (weights**2).sum())

    best = loss(probe.weights)
    assert all(loss(probe.weights + 1e-2 * step) > best for step in (*np.eye(4), *-np.eye(4)))


def test_a_probe_reads_scores_that_leave_its_row_out() -> None:
    """A word that stands in a single transcript says nothing of it, so no weight is learned for the lexicon's score."""
    texts, labels = ["alpha", "beta", "gamma", "delta"], [3.0, -3.0, 1.0, -1.0]
    encode = lambda texts: np.zeros((len(texts), 1), np.float32)  # noqa: E731
    planner = fit_light_planner([Observation(text) for text in texts], labels, encode, tiny_omg_config())
    assert planner.lexicon.score("alpha") == pytest.approx(3 / 6)
    assert planner.probes[("text",)].weights == pytest.approx([0.0, 0.0])


class TestCentring:
    def planner(self) -> MllmPlanner:
        vectors = {"praises": (4.0, 0.0), "loud": (0.0, 6.0)}
        mllm = ScriptedMllm(
            says((GLAD.to_text(), (-1.0,))),
            lambda request: next((value for word, value in vectors.items() if word in request.prompt), (1.0, 0.0)),
        )
        return MllmPlanner(mllm, tiny_omg_config())

    def test_each_clip_counts_as_it_is_and_with_something_missing(self) -> None:
        planner, clips = self.planner(), [Observation("loud", tiny_audio(seed)) for seed in range(40)]
        fit_centering(planner, iter(clips), seed=5)
        assert planner.centering is not None
        # With its words a clip is at (0, 6), without them at (1, 0).
        words = [seen.transcript is not None for clip in clips for seen in (clip, randomly_restricted(clip, 5))]
        share = sum(words) / len(words)
        assert 0.5 < share < 1
        assert planner.centering.observation_mean == pytest.approx([1 - share, 6 * share])
        assert planner.centering.plan_mean == pytest.approx([4.0, 0.0])

    def test_or_only_as_it_is(self) -> None:
        planner = self.planner()
        fit_centering(planner, [Observation("loud", tiny_audio(seed)) for seed in range(70)])
        assert planner.centering is not None and planner.centering.observation_mean.tolist() == [0.0, 6.0]

    def test_without_a_plan_the_fallback_s_vector_is_the_mean(self) -> None:
        planner = MllmPlanner(ScriptedMllm(says(("no plan", (-1.0,))), lambda _: (2.0, 1.0)), tiny_omg_config())
        fit_centering(planner, [Observation("loud")])
        assert planner.centering is not None and planner.centering.plan_mean.tolist() == [2.0, 1.0]

    def test_nothing_to_take_the_means_of_is_refused(self) -> None:
        with pytest.raises(MsaError, match="training split"):
            fit_centering(self.planner(), [])


class TestRandomSets:
    def test_are_equally_likely_and_never_empty(self) -> None:
        counts = Counter(randomly_restricted(WHOLE, 0, draw).modalities for draw in range(1400))
        assert len(counts) == 7 and () not in counts
        # Each is binomial with mean 200 and deviation 13.
        assert all(140 < count < 260 for count in counts.values())

    def test_depend_on_seed_draw_and_observation_alone(self) -> None:
        again = Observation(WHOLE.transcript, WHOLE.audio, features=WHOLE.features)
        for seed in range(5):
            assert randomly_restricted(WHOLE, seed).digest == randomly_restricted(again, seed).digest
        clips = [Observation(str(number), np.ones(4, np.float32)) for number in range(20)]
        assert len({randomly_restricted(clip, 0).modalities for clip in clips}) == 3
        assert len({randomly_restricted(WHOLE, seed).modalities for seed in range(20)}) > 1

    def test_a_single_modality_stays(self) -> None:
        alone = Observation("good")
        assert randomly_restricted(alone, 3) is alone
        assert randomly_restricted(Observation(), 3).modalities == ()
