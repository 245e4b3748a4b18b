"""The ridge probe: its columns and its score by hand, and what its configuration refuses."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from hf_msa.models.modeling_ridge import RidgeForSentimentAnalysis
from tiny import UNK, VOCABULARY, tiny_batch, tiny_ridge_config

CLS, SEP, GOOD, FILM = (VOCABULARY[word] for word in ("[CLS]", "[SEP]", "good", "film"))
BATCH = {
    "input_ids": torch.tensor([[CLS, GOOD, GOOD, FILM, SEP], [CLS, UNK, UNK, SEP, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
    "text_missing_mask": torch.tensor([[False, False, False, True, False], [False, True, True, False, False]]),
    "audio_values": torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0], [7.0, 9.0], [0.0, 0.0]]]),
    "audio_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    "audio_missing_mask": torch.tensor([[False, False, True], [True, False, False]]),
}


def build(**fields: object) -> RidgeForSentimentAnalysis:
    torch.manual_seed(0)
    return RidgeForSentimentAnalysis(tiny_ridge_config(audio_dim=2, vision_dim=None, **fields)).eval()


def test_columns_are_of_what_is_observed() -> None:
    model = build(text_vector="words")
    values, known = model.columns(model.read(BATCH))
    words, (share, *audio) = values[:, : len(VOCABULARY)], values[:, len(VOCABULARY) :].unbind(dim=1)
    assert words[0].nonzero().flatten().tolist() == sorted([CLS, SEP, GOOD]) and words[0, GOOD] == 2
    # Of the second text nothing but special tokens is left.
    assert not words[1].any() and not known[1, : len(VOCABULARY)].any()
    assert share.tolist() == pytest.approx([4 / 5, 0])
    assert torch.stack(audio).T.tolist() == [[2.0, 4.0, pytest.approx(2 / 3)], [7.0, 9.0, 0.5]]
    assert known[0].all() and known[1, len(VOCABULARY) :].all()


def test_the_text_vector_is_the_mean_state_of_observed_tokens() -> None:
    model = build(probed=["text"])
    values, _ = model.columns(model.read(BATCH))
    hidden = model.encode_text(BATCH["input_ids"], BATCH["attention_mask"])
    torch.testing.assert_close(values[0, :-1], hidden[0, [0, 1, 2, 4]].mean(dim=0))
    assert not values[1].any()


def test_the_score_by_hand() -> None:
    model = build(probed=["audio"])
    model.column_mean.copy_(torch.tensor([1.0, 2.0, 0.5]))
    model.column_std.copy_(torch.tensor([2.0, 1.0, 0.5]))
    with torch.no_grad():
        model.weights.copy_(torch.tensor([1.0, 10.0, 3.0]))
        model.offset.fill_(0.25)
    # ((2 - 1) / 2) + 10 (4 - 2) + 3 (2/3 - 1/2) / (1/2), and (7 - 1) / 2 + 10 (9 - 2) + 0.
    assert model(**BATCH).logits[:, 0].tolist() == pytest.approx([0.5 + 20 + 1 + 0.25, 3 + 70 + 0.25])
    nothing = {**BATCH, "audio_missing_mask": torch.ones(2, 3, dtype=torch.bool)}
    assert model(**nothing).logits[:, 0].tolist() == pytest.approx([0.25 - 3, 0.25 - 3])


def test_without_modalities_it_is_a_constant() -> None:
    model = build(probed=[])
    with torch.no_grad():
        model.offset.fill_(1.5)
    assert model(**tiny_batch(model.config)).logits.flatten().tolist() == [1.5] * 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"probed": ["sound"]}, "probed has 'sound'"),
        ({"probed": ["vision"]}, "no vision to probe; it has text, audio"),
        ({"penalties": [1.0, 0.0]}, "all above 0"),
        ({"penalties": []}, "at least one"),
    ],
)
def test_what_will_not_do_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=words):
        tiny_ridge_config(vision_dim=None, **fields)
