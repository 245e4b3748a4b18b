"""The verbaliser: statistics by hand, what is said and what is not, and that nothing missing has a say."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_msa.models.msa_verbalizer import FeatureStatistics, MsaVerbalizer, summarize


def flat(value: float, frames: int = 3) -> np.ndarray:
    return np.full((frames, 1), value)


class TestSummary:
    def test_a_line_has_its_mean_spread_and_whole_change_as_trend(self) -> None:
        mean, spread, trend = summarize(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
        assert mean == pytest.approx([2.0, 5.0])
        assert spread == pytest.approx([np.sqrt(2 / 3), 0.0])
        assert trend == pytest.approx([2.0, 0.0])

    def test_dropped_frames_are_left_out_but_keep_their_place_in_time(self) -> None:
        frames = np.array([[0.0], [99.0], [99.0], [3.0]])
        mean, _, trend = summarize(frames, np.array([False, True, True, False]))
        assert mean == pytest.approx([1.5])
        assert trend == pytest.approx([3.0])
        early = summarize(np.array([[0.0], [1.0], [99.0], [99.0]]), np.array([False, False, True, True]))
        assert early[2] == pytest.approx([3.0])  # a third of the time for 1: the whole would give 3

    def test_one_frame_has_neither_spread_nor_trend(self) -> None:
        assert summarize(np.array([[4.0]])).ravel().tolist() == [4.0, 0.0, 0.0]

    def test_what_is_not_finite_counts_as_zero(self) -> None:
        assert summarize(np.array([[np.nan], [-np.inf], [3.0]]))[0] == pytest.approx([1.0])

    def test_nothing_cannot_be_summarised(self) -> None:
        with pytest.raises(ValueError, match="without observed frames"):
            summarize(np.ones((2, 1)), np.array([True, True]))


class TestFit:
    def test_statistics_are_mean_and_deviation_over_samples(self) -> None:
        rows = [{"audio": flat(1.0)}, {"audio": flat(3.0)}, {"text": flat(9.0)}]
        verbalizer = MsaVerbalizer.fit(rows, {"audio": ["pitch"]})
        known = verbalizer.statistics["audio"]
        assert known.centers == ((2.0,), (0.0,), (0.0,))
        assert known.scales == ((1.0,), (0.0,), (0.0,))
        assert set(verbalizer.statistics) == {"audio"}

    def test_features_without_names_are_passed_over(self) -> None:
        rows = [{"audio": flat(1.0), "vision": flat(2.0)}, {"audio": flat(3.0), "vision": flat(4.0)}]
        verbalizer = MsaVerbalizer.fit(rows, {"audio": None, "vision": ["gaze"]})
        assert verbalizer.modalities == ("vision",)
        assert verbalizer.describe({"audio": flat(9.0), "vision": flat(9.0)}) == "Face: gaze very high."
        assert MsaVerbalizer.fit(rows).describe(rows[0]) == ""

    def test_goes_through_json(self) -> None:
        generator = np.random.default_rng(0)
        rows = [{"audio": generator.normal(size=(5, 2)), "vision": generator.normal(size=(4, 3))} for _ in range(9)]
        verbalizer = MsaVerbalizer.fit(rows, {"audio": ["pitch", "loudness"], "vision": None}, strongest=2)
        again = MsaVerbalizer.from_dict(json.loads(json.dumps(verbalizer.to_dict())))
        assert again == verbalizer
        assert again.describe(rows[0]) == verbalizer.describe(rows[0])

    def test_names_and_rows_must_belong_together(self) -> None:
        with pytest.raises(ValueError, match="one name per feature"):
            FeatureStatistics(((0.0,),) * 3, ((1.0,),) * 3, ("pitch", "loudness"))
        with pytest.raises(ValueError, match="three rows each"):
            FeatureStatistics(((0.0,),) * 2, ((1.0,),) * 3)


def unit_statistics(names: tuple[str, ...] | None, width: int) -> FeatureStatistics:
    return FeatureStatistics(((0.0,) * width,) * 3, ((1.0,) * width,) * 3, names)


class TestDescribe:
    verbalizer = MsaVerbalizer(
        {
            "audio": unit_statistics(("pitch", "voice_loudness", "jitter"), 3),
            "vision": unit_statistics(("AU12_r", "gaze"), 2),
        },
        strongest=2,
    )

    def test_names_the_strongest_with_a_word_for_each_measure(self) -> None:
        voice = np.array([[2.8, -1.5, 1.1], [0.0, -1.5, 1.1]])  # pitch: mean 1.4, spread 1.4, trend -2.8
        face = np.array([[2.5, 0.2], [2.5, 0.3]])
        assert self.verbalizer.describe({"audio": voice, "vision": face}) == (
            "Voice: pitch high, varied and very falling; voice loudness low. Face: lip corner puller very strong."
        )

    def test_at_the_threshold_there_is_a_word_and_below_there_is_none(self) -> None:
        assert self.verbalizer.describe({"audio": np.array([[1.0, 0.0, 0.0]])}) == "Voice: pitch high."
        assert self.verbalizer.describe({"audio": np.array([[0.999, 0, 0]])}) == "Voice: nothing out of the ordinary."

    def test_a_checkpoint_of_an_earlier_version_goes_on_numbering_from_one(self) -> None:
        verbalizer = MsaVerbalizer({"vision": unit_statistics(None, 3)})
        assert verbalizer.describe({"vision": np.array([[0.0, 0.0, -3.0]])}) == "Face: feature 3 very low."

    def test_a_feature_that_never_differs_in_training_is_never_named(self) -> None:
        verbalizer = MsaVerbalizer.fit([{"audio": flat(0.1)}, {"audio": flat(0.1)}], {"audio": ["pitch"]})
        assert verbalizer.describe({"audio": flat(50.0)}) == "Voice: nothing out of the ordinary."

    def test_a_missing_modality_is_not_mentioned(self) -> None:
        face = np.array([[2.5, 0.0]])
        assert self.verbalizer.describe({}) == ""
        assert self.verbalizer.describe({"vision": face}).startswith("Face:")
        dropped = {"audio": np.array([True, True])}
        both = {"audio": np.full((2, 3), 9.0), "vision": face}
        assert self.verbalizer.describe(both, dropped) == self.verbalizer.describe({"vision": face})

    def test_a_label_has_no_say(self) -> None:
        row = {"audio": np.ones((2, 3)), "label": np.array(3.0), "text": "great"}
        assert self.verbalizer.describe(row) == self.verbalizer.describe({**row, "label": np.array(-3.0)})

    @settings(max_examples=25)
    @given(seed=st.integers(0, 10_000), fill=st.floats(-100, 100))
    def test_what_stands_in_dropped_frames_changes_nothing(self, seed: int, fill: float) -> None:
        generator = np.random.default_rng(seed)
        frames, mask = generator.normal(size=(6, 3)) * 2, generator.random(6) < 0.5
        other = np.where(mask[:, None], fill, frames)
        missing = {"audio": mask}
        assert self.verbalizer.describe({"audio": frames}, missing) == self.verbalizer.describe(
            {"audio": other}, missing
        )

    def test_another_width_is_refused_and_an_unknown_modality_passed_over(self) -> None:
        with pytest.raises(
            ValueError, match=r"Frames of shape \(2, 5\) were given for audio.*statistics of 3 features"
        ):
            self.verbalizer.describe({"audio": np.ones((2, 5))})
        assert MsaVerbalizer({"audio": unit_statistics(("pitch",), 1)}).describe({"vision": np.ones((2, 5))}) == ""
