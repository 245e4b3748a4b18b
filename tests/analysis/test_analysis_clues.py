"""Clue counting: only flips to the opposite polarity, per threshold, whole words, in a table counted by hand."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_msa.analysis.tcmr.clues import (
    ClueCounts,
    MaskedOnce,
    clue_rows,
    count_clues,
    mask_each_word,
    usable_texts,
)
from hf_msa.analysis.tcmr.masked_words import read_word_list, run_text, split_words
from hf_msa.errors import MsaError
from hf_msa.models.msa_label_families import BUILT_IN

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "so", "film", "lov", "##ing", "the"]
IDS = {token: number for number, token in enumerate(VOCABULARY)}


@pytest.fixture(scope="module")
def tokenizer():
    made = Tokenizer(models.WordPiece(IDS, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", IDS["[CLS]"]), ("[SEP]", IDS["[SEP]"])]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


class Rows:
    """As much of MsaRows as words need."""

    def __init__(self, texts, tokenizer, max_length=50):
        encoded = tokenizer(texts, truncation=True, max_length=max_length, return_special_tokens_mask=True)
        self.items = [
            {"text": text, "input_ids": np.array(ids), "special_tokens_mask": np.array(marks, dtype=bool)}
            for text, ids, marks in zip(texts, encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stub(torch.nn.Module):
    """A classifier whose positive logit is the sum of its words' weights, negative its minus; neutral is 0.4."""

    def __init__(self, weights):
        super().__init__()
        table = torch.zeros(len(VOCABULARY))
        for word, weight in weights.items():
            table[IDS[word]] = weight
        self.table = torch.nn.Parameter(table)
        self.batches = []

    def forward(self, input_ids, attention_mask):
        self.batches.append(len(input_ids))
        score = (self.table[input_ids] * attention_mask).sum(dim=1)
        return SimpleNamespace(logits=torch.stack([-score, torch.full_like(score, 0.4), score], dim=1))


def counted(texts, threshold):
    counts = ClueCounts()
    count_clues(texts, threshold, counts)
    return counts


def test_whole_words_and_pieces(tokenizer):
    rows = Rows(["Loving the FILM", "good"], tokenizer)
    words = split_words(rows, tokenizer)
    assert words.names == [["loving", "the", "film"], ["good"]]
    assert [row.tolist() for row in words.word_of] == [[-1, 0, 0, 1, 2, -1], [-1, 0, -1]]
    pieces = split_words(rows, tokenizer, pieces=True)
    assert pieces.names == [["lov", "##ing", "the", "film"], ["good"]]
    assert [row.tolist() for row in pieces.word_of] == [[-1, 0, 1, 2, 3, -1], [-1, 0, -1]]


def test_what_was_cut_off_is_no_word(tokenizer):
    words = split_words(Rows(["the film so good"], tokenizer, max_length=4), tokenizer)
    assert words.names == [["the", "film"]] and words.word_of[0].tolist() == [-1, 0, 1, -1]


def test_variants_replace_exactly_the_chosen_word(tokenizer):
    words = split_words(Rows(["good", "loving the film"], tokenizer), tokenizer)
    seen = {}

    def look(ids, mask):
        for row, real in zip(ids.tolist(), mask.tolist(), strict=True):
            seen[len(seen)] = [VOCABULARY[token] for token, keep in zip(row, real, strict=True) if keep]
        return mask.sum(dim=1, keepdim=True).float()

    rows, which = np.array([1, 0, 1]), np.array([0, 0, 2])
    lengths = run_text(look, words, rows, lambda v, numbers: numbers == which[v][:, None], tokenizer)
    assert lengths.tolist() == [[6], [3], [6]]
    assert sorted(seen.values()) == sorted(
        [
            ["[CLS]", "[UNK]", "[SEP]"],
            ["[CLS]", "[UNK]", "[UNK]", "the", "film", "[SEP]"],
            ["[CLS]", "lov", "##ing", "the", "[UNK]", "[SEP]"],
        ]
    )


def test_special_tokens_and_padding_are_never_replaced(tokenizer):
    words = split_words(Rows(["good", "the film"], tokenizer), tokenizer)
    seen = []

    def look(ids, mask):
        seen.extend(ids.tolist())
        return mask.float()

    run_text(look, words, np.array([0, 1]), lambda v, numbers: np.ones_like(numbers, dtype=bool), tokenizer)
    unknown, start, end, padding = (IDS[f"[{name}]"] for name in ("UNK", "CLS", "SEP", "PAD"))
    assert seen == [[start, unknown, end, padding], [start, unknown, unknown, end]]


def test_counted_by_hand(tokenizer):
    texts = ["good bad film", "so the film", "bad", "bad good bad", "the film"]
    labels = np.array([1.4, 2.0, -1.0, -0.6, 0.0], dtype=np.float32)
    words = split_words(Rows(texts, tokenizer), tokenizer)
    # "good bad film": 2 - 1 = 1 positive. Without good: -1 negative, a flip. Without bad or film: positive.
    # "so the film": 0.5 positive. Without so: 0, neutral (0.4) - a turn that does not count.
    # "bad": -1 negative. Without bad: neutral.
    # "bad good bad": 0, read as neutral: wrong, left out.
    # "the film": truly neutral and read so: has no opposite, left out.
    classifier = Stub({"good": 2.0, "bad": -1.0, "so": 0.5})
    made = mask_each_word(classifier, tokenizer, words, BUILT_IN["mosi"].polarity(labels), 0.0)
    assert made.true.tolist() == [2, 2, 0, 0, 1]
    assert [row.tolist() for row in made.masked] == [[0, 2, 2], [1, 2, 2], [1], [], []]
    assert classifier.batches == [5, 7]
    counts = counted(made, 0.0)
    assert (counts.texts, counts.to_neutral) == (3, 2)
    assert counts.flips == Counter(good=1)
    assert counts.masked == Counter(good=1, bad=2, film=2, so=1, the=1)
    assert counts.ranking() == [("good", 1, 1)]


def test_any_wrong_prediction_counts_by_section_5(tokenizer):
    texts = ["good bad film", "so the film", "the film", "so bad", "bad"]
    labels = np.array([1.4, 2.0, 0.0, 0.0, 1.0], dtype=np.float32)
    words = split_words(Rows(texts, tokenizer), tokenizer)
    # "good bad film": right; without good negative: a flip by both readings.
    # "so the film": right; without so neutral: wrong, but not the opposite.
    # "the film": neutral and right, and stays so. "so bad": -0.5 is negative: wrong before, left out.
    # "bad": wrong before, left out.
    made = mask_each_word(
        Stub({"good": 2.0, "bad": -1.0, "so": 0.5}),
        tokenizer,
        words,
        BUILT_IN["mosi"].polarity(labels),
        0.0,
        "wrong",
    )
    counts = ClueCounts()
    count_clues(made, 0.0, counts, "wrong")
    assert counts.flips == Counter(good=1, so=1)
    assert counts.texts == 3 and counts.masked == Counter(good=1, bad=1, film=3, so=1, the=2)
    assert counts.to_neutral == 1


def test_a_neutral_text_can_go_wrong():
    texts = MaskedOnce(np.array([1]), np.array([[0.1, 0.8, 0.1]]), [["fine", "so"]], [np.array([2, 1])])
    counts = ClueCounts()
    count_clues(texts, 0.5, counts, "wrong")
    assert (counts.texts, counts.flips, counts.to_neutral) == (1, Counter(fine=1), 0)
    assert counted(texts, 0.5) == ClueCounts()


@pytest.mark.parametrize(
    ("text", "label", "weights", "flips"),
    [
        ("bad good", -1.0, {"good": 1.0, "bad": -3.0}, {"bad": 1}),  # -2, without bad 1
        ("bad good", 1.0, {"good": 3.0, "bad": -1.0}, {"good": 1}),  # 2, without good -1
        ("good good bad", 1.0, {"good": 1.0, "bad": -1.5}, {"good": 2}),  # 0.5, without either good -0.5
        ("good bad", 1.0, {"good": 3.0, "bad": -0.3}, {}),  # 2.7, without good -0.3, which is neutral
    ],
)
def test_both_directions_and_repeated_words(tokenizer, text, label, weights, flips):
    words = split_words(Rows([text], tokenizer), tokenizer)
    true = BUILT_IN["mosi"].polarity(np.array([label], dtype=np.float32))
    made = mask_each_word(Stub(weights), tokenizer, words, true, 0.0)
    counts = counted(made, 0.0)
    assert counts.flips == Counter(flips) and counts.masked == Counter(text.split())


def test_thresholds_exclude_by_true_class_probability():
    probabilities = np.array([[0.1, 0.2, 0.7], [0.1, 0.0, 0.9], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dtype=np.float32)
    true = np.array([2, 2, 0, 1])
    masked = [np.array(predicted) for predicted in ([0], [0, 1], [2], [0])]
    texts = MaskedOnce(true, probabilities, [["a"], ["a", "b"], ["a"], ["c"]], masked)
    assert usable_texts(true, probabilities, 0.5).tolist() == [True, True, True, False]
    # "exceeds": a text at the threshold itself is out.
    assert usable_texts(np.array([0]), np.array([[0.5, 0.3, 0.2]], dtype=np.float32), 0.5).tolist() == [False]
    low, middle = counted(texts, 0.5), counted(texts, 0.8)
    assert (low.texts, low.flips, low.masked) == (3, Counter(a=3), Counter(a=3, b=1))
    assert (middle.texts, middle.flips, middle.to_neutral) == (1, Counter(a=1), 1)
    assert counted(texts, 0.95) == ClueCounts()
    rows = clue_rows({0.5: low, 0.8: middle}, {"a": "cue"})
    assert [row["rate"] for row in rows] == [1.0, 1.0] and rows[0]["role"] == "cue"
    # Counts of a second classifier are added to those of the first.
    count_clues(texts, 0.8, low)
    assert (low.texts, low.flips, low.masked) == (4, Counter(a=4), Counter(a=4, b=2))


def test_word_lists(tmp_path):
    (tmp_path / "list.txt").write_text("Good\n\n bad \ngood\n")
    (tmp_path / "clues.csv").write_text("threshold,word,flips\n0.5,Dull,3\n")
    (tmp_path / "none.csv").write_text("term\nx\n")
    (tmp_path / "empty.txt").write_text("\n")
    assert read_word_list(tmp_path / "list.txt") == ["good", "bad"]
    assert read_word_list(tmp_path / "clues.csv") == ["dull"]
    for name, message in (("none.csv", "no column 'word'"), ("empty.txt", "is empty"), ("x", "no word list")):
        with pytest.raises(MsaError, match=message):
            read_word_list(tmp_path / name)
