"""What is left of words, sound and pictures where something is dropped."""

import numpy as np
import torch

from hf_msa.models.msa_observed import missing_positions, visible_media, visible_words
from tiny import tiny_processor, tiny_uacs_config


class TestVisibleWords:
    tokenizer = tiny_processor(tiny_uacs_config()).tokenizer
    ids = [*tokenizer("good film not bad")["input_ids"], tokenizer.pad_token_id]

    def test_gaps_are_three_dots(self) -> None:
        gone = np.array([False, True, False, True, True, False, False])
        assert visible_words(self.ids, gone, self.tokenizer) == "... film ..."

    def test_nothing_dropped_gives_all_words(self) -> None:
        assert visible_words(self.ids, np.zeros(7, dtype=bool), self.tokenizer) == "good film not bad"

    def test_special_tokens_are_no_words(self) -> None:
        gone = np.array([False, True, True, True, True, False, False])
        assert visible_words(self.ids, gone, self.tokenizer) is None


class TestVisibleMedia:
    gone = np.array([True, False])

    def test_sound_is_silent_and_pictures_are_cut_where_features_are_dropped(self) -> None:
        sound = np.arange(1.0, 6.0)  # samples 0 to 2 belong to the first of two frames, by i * 2 // 5
        heard, seen = visible_media(sound, self.gone, cut=False), visible_media(sound, self.gone, cut=True)
        assert heard is not None and heard.tolist() == [0, 0, 0, 4, 5]
        assert seen is not None and seen.tolist() == [4, 5]

    def test_nothing_dropped_is_the_same_array_and_everything_dropped_is_none(self) -> None:
        sound = np.ones(3)
        assert visible_media(sound, None, cut=True) is visible_media(sound, ~self.gone & False, cut=True) is sound
        assert visible_media(sound, self.gone | True, cut=False) is None


class TestMissingPositions:
    rows = ({"text": "good", "audio": np.zeros((2, 1))}, {"text": "bad", "audio": None})

    def test_masks_end_with_the_frames(self) -> None:
        mask = torch.tensor([[True, False, False], [False, False, False]])
        one, other = missing_positions(self.rows, {"audio_missing_mask": mask, "text_missing_mask": mask})
        assert one["audio"].tolist() == [True, False] and one["text"].tolist() == [True, False, False]
        assert "audio" not in other, "nothing says what is dropped of sound without features"

    def test_what_is_wholly_missing_is_dropped_to_its_end_whatever_its_length(self) -> None:
        rows = ({"text": " ", "audio": np.zeros((5, 1))}, {"text": "bad", "audio": np.zeros((2, 1))})
        mask = torch.tensor([[True, True, False], [False, False, False]])
        real = torch.tensor([[1, 1, 0], [1, 1, 1]])
        inputs = {"audio_missing_mask": mask, "audio_attention_mask": real, "text_missing_mask": mask}
        one, other = missing_positions(rows, inputs)
        assert one["audio"].tolist() == [True] * 5 and other["audio"].tolist() == [False] * 2
        assert "text" not in one, "there never was any"

    def test_without_a_batch_nothing_is_known_to_be_dropped(self) -> None:
        assert missing_positions(self.rows, None) == missing_positions(self.rows, {}) == [{}, {}]
