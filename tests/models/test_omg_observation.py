"""What the planner is shown of rows: nothing of what is missing, and a digest that says just that."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from hf_msa.data.missing import apply_missing
from hf_msa.models.omg_observation import Observation, observe_rows
from nonempty import some
from tiny import tiny_batch, tiny_processor, tiny_rows, tiny_uacs_config

CONFIG = tiny_uacs_config()
PROCESSOR = tiny_processor(CONFIG)


def dropped(**gone: list[int]) -> dict[str, torch.Tensor]:
    """The batch of the first tiny row, without some positions."""
    batch = tiny_batch(CONFIG, 1)
    masks = {}
    for name, key in (
        ("text", "attention_mask"),
        ("audio", "audio_attention_mask"),
        ("vision", "vision_attention_mask"),
    ):
        masks[name] = np.zeros(tuple(batch[key].shape), dtype=bool)
        masks[name][0, gone.get(name, [])] = True
    return apply_missing(batch, masks, PROCESSOR.tokenizer.unk_token_id)


def first(**changes: Any) -> dict[str, Any]:
    """The first tiny row: three words, four frames."""
    return tiny_rows(CONFIG, 1)[0] | changes


class TestRows:
    def test_complete_rows_are_seen_as_they_are(self) -> None:
        rows = tiny_rows(CONFIG, 3)
        for inputs in (None, {}, tiny_batch(CONFIG, 3)):
            for seen, row in some(zip(observe_rows(rows, inputs, PROCESSOR), rows, strict=True)):
                assert seen.transcript == row["text"] and seen.audio is seen.frames is None
                assert seen.features.keys() == {"audio", "vision"}
                for name, frames in seen.features.items():
                    assert np.array_equal(frames, row[name])
                assert seen.modalities == ("text", "audio", "vision")

    def test_dropped_words_are_dots_and_dropped_frames_are_cut_out(self) -> None:
        row = first()
        (seen,) = observe_rows([row], dropped(text=[2], vision=[0, 3]), PROCESSOR)
        words = row["text"].split()
        assert seen.transcript == f"{words[0]} ... {words[2]}"
        assert np.array_equal(seen.features["audio"], row["audio"])
        assert np.array_equal(seen.features["vision"], row["vision"][1:3])

    def test_what_the_batch_has_nothing_of_is_absent_though_there_are_recordings(self) -> None:
        row = first(waveform=np.ones(8), audio=None)
        assert observe_rows([row], None, PROCESSOR)[0].audio is not None
        (seen,) = observe_rows([row], PROCESSOR.from_rows([row]), PROCESSOR)
        assert seen.audio is None and seen.modalities == ("text", "vision")

    def test_what_is_wholly_dropped_is_absent(self) -> None:
        row = first(waveform=np.ones(8), frames=np.ones((8, 2, 2, 3), np.uint8))
        everything = {"text": [1, 2, 3], "audio": [0, 1, 2, 3], "vision": [0, 1, 2, 3]}
        for name, positions in everything.items():
            (seen,) = observe_rows([row], dropped(**{name: positions}), PROCESSOR)
            assert set(seen.modalities) == everything.keys() - {name}
        (seen,) = observe_rows([row], dropped(**everything), PROCESSOR)
        assert seen.modalities == () and seen.digest == Observation().digest

    def test_what_a_row_lacks_is_absent(self) -> None:
        lacking = [first(audio_present=False), first(audio=None), first(text="  ")]
        seen = observe_rows(lacking, None, PROCESSOR)
        assert [one.modalities for one in seen] == [("text", "vision"), ("text", "vision"), ("audio", "vision")]

    def test_what_the_batch_does_not_attend_to_is_absent(self) -> None:
        batch = tiny_batch(CONFIG, 2)
        batch["audio_attention_mask"][1] = 0
        seen = observe_rows(tiny_rows(CONFIG, 2), batch, PROCESSOR)
        assert [one.modalities for one in seen] == [("text", "audio", "vision"), ("text", "vision")]

    def test_what_the_model_does_not_read_is_not_observed(self) -> None:
        (seen,) = observe_rows([first(frames=np.ones((2, 2, 2, 3), np.uint8))], None, PROCESSOR, ("text", "audio"))
        assert seen.modalities == ("text", "audio")

    def test_frames_behind_the_longest_length_are_not_observed(self) -> None:
        longest = CONFIG.audio_max_length
        row = first(audio=np.ones((longest + 3, CONFIG.audio_dim)))
        batch = dict(PROCESSOR.from_rows([row]))
        batch["audio_missing_mask"] = torch.zeros(1, longest, dtype=torch.bool)
        batch["audio_missing_mask"][0, :2] = True
        for inputs, count in ((None, longest), (batch, longest - 2)):
            (seen,) = observe_rows([row], inputs, PROCESSOR)
            assert len(seen.features["audio"]) == count and seen.features["audio"].dtype == np.float32

    def test_recordings_lose_what_their_features_lose(self) -> None:
        row = first(waveform=np.ones(8), frames=np.arange(8, dtype=np.uint8)[:, None, None, None].repeat(3, 3))
        row["frames_per_second"] = 1.5
        (whole,) = observe_rows([row], None, PROCESSOR)
        assert whole.audio is not None and whole.audio.dtype == np.float32 and whole.frames_per_second == 1.5
        (seen,) = observe_rows([row], dropped(audio=[1], vision=[0]), PROCESSOR)
        assert seen.audio is not None and seen.audio.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
        assert seen.frames is not None and seen.frames[:, 0, 0, 0].tolist() == [2, 3, 4, 5, 6, 7]

    def test_recordings_without_masks_are_given_whole_or_not_at_all(self) -> None:
        row = first(waveform=np.ones(8))
        for gone, there in (([], True), ([2], False)):
            batch = dropped(text=gone)
            del batch["audio_missing_mask"]
            (seen,) = observe_rows([row], batch, PROCESSOR)
            assert (seen.audio is not None) is there

    def test_dropped_words_need_a_processor(self) -> None:
        with pytest.raises(ValueError, match="give the processor"):
            observe_rows([first()], dropped(text=[1]))

    def test_what_is_missing_has_no_influence(self) -> None:
        """Neither the values of dropped positions nor those of dropped modalities change anything."""
        one, other = first(), first()
        words = one["text"].split()
        other["text"] = " ".join([words[0], "weak" if words[1] != "weak" else "plot", words[2]])
        other["audio"] = one["audio"] + 5
        other["vision"] = one["vision"].copy()
        other["vision"][3] = 9
        inputs = dropped(text=[2], audio=[0, 1, 2, 3], vision=[3])
        (seen,), (changed,) = (observe_rows([row], inputs, PROCESSOR) for row in (one, other))
        assert seen.digest == changed.digest
        assert observe_rows([one], None, PROCESSOR)[0].digest != observe_rows([other], None, PROCESSOR)[0].digest


WHOLE = Observation("good", np.ones(4, np.float32), np.ones((1, 2, 2, 3), np.uint8), {"vision": np.ones((2, 3))})


class TestDigest:
    def test_equal_observations_have_equal_digests(self) -> None:
        copies = {"audio": np.ones(8, np.float32)[::2], "features": {"vision": np.ones((2, 3))}}
        assert dataclasses.replace(WHOLE, **copies).digest == WHOLE.digest

    @pytest.mark.parametrize(
        "changes",
        [
            {"transcript": None},
            {"transcript": "None"},
            {"transcript": "good "},
            {"audio": np.ones(4)},
            {"audio": np.array([1, 1, 1, 2], np.float32)},
            {"audio": None},
            {"frames": np.ones((2, 2, 1, 3), np.uint8)},
            {"frames_per_second": 1.0},
            {"features": {"vision": np.ones((3, 2))}},
            {"features": {"audio": np.ones((2, 3))}},
            {"features": {}},
        ],
    )
    def test_anything_else_changes_it(self, changes: dict[str, Any]) -> None:
        assert dataclasses.replace(WHOLE, **changes).digest != WHOLE.digest

    def test_the_rate_of_frames_that_are_not_there_does_not_count(self) -> None:
        assert Observation("a", frames_per_second=1.0).digest == Observation("a").digest


class TestRestriction:
    def test_what_stays_and_what_goes(self) -> None:
        assert WHOLE.modalities == ("text", "audio", "vision")
        assert WHOLE.restricted(["vision"]).modalities == ("vision",)
        assert WHOLE.restricted(["text", "audio"]).features == {}
        assert WHOLE.restricted(["text", "audio", "vision"]).digest == WHOLE.digest
