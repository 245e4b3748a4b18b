"""The sample corpus: its rule, its story, its folder on disk, its ceiling and its own checks."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_msa.data.loading import dataset_facts, load_msa
from hf_msa.data.sample_corpus import (
    PlantedSplit,
    SampleCorpusConfig,
    ceiling_predictions,
    check_corpus,
    generate_row,
    generate_rows,
    kept_masks,
    lexicon,
    preset,
    read_planted,
    score_tokens,
    story,
    text_model,
    write_sample_corpus,
)
from hf_msa.data.sample_corpus.checks import ridge
from hf_msa.data.sample_corpus.grammar import TONES, grammar_for
from hf_msa.errors import MsaError

MODALITIES = ("text", "audio", "vision")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_sample_corpus(tmp_path_factory.mktemp("sample") / "tiny", "tiny", seed=3, version=1)


@pytest.fixture(scope="module")
def clips():
    return list(generate_rows(preset("small", test=400, version=1), "test"))


SMALL = preset("small", version=1)


def planted_of(clips, config=SMALL):
    return PlantedSplit(config, [clip.planted for clip in clips])


# --- the words and the rule ---


def test_the_lexicon_is_as_large_as_promised_and_gives_every_word_one_role():
    assert len(lexicon.CUES) >= 40
    assert {np.sign(valence) for valence in lexicon.CUES.values()} == {1, -1}
    assert len(set(lexicon.CUES.values())) > 15, "valences are graded"
    assert len(lexicon.fillers()) >= 200
    groups = [
        set(lexicon.CUES), set(lexicon.NEGATORS), set(lexicon.INTENSIFIERS), set(lexicon.DIMINISHERS),
        set(lexicon.CONTRASTS), {*lexicon.DISFLUENCIES, *lexicon.DISFLUENT_PAIR}, set(lexicon.fillers()),
    ]  # fmt: skip
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(lexicon.all_words())
    assert set(lexicon.COMMON_CUES) <= set(lexicon.CUES)


def test_a_sentence_scored_by_hand():
    words = "it was not very good but the ending was bad".split()
    score, roles, contributions = score_tokens(words)
    # not very good: 1.0 * 1.4 * -0.6 = -0.84; it counts 0.4 before "but": -0.336; bad: -1.1.
    assert score == pytest.approx(-1.436)
    said = {word: (role, value) for word, role, value in zip(words, roles, contributions, strict=True) if value}
    assert said == {
        "good": ("cue", pytest.approx(1.0)),
        "very": ("intensifier", pytest.approx(0.4)),
        "not": ("negator", pytest.approx(-2.24)),
        "but": ("contrast", pytest.approx(0.504)),
        "bad": ("cue", pytest.approx(-1.1)),
    }


@pytest.mark.parametrize(
    ("sentence", "score"),
    [
        ("the plot was great", 1.5),
        ("the plot was slightly great", 0.6),
        ("the plot was hardly great", -0.6),
        ("not the plot was great", 1.5),
        ("very [UNK] great", 1.5),
        ("perfect and absolutely perfect", 3.0),
        ("we watched it yesterday", 0.0),
        ("", 0.0),
    ],
)
def test_the_rule(sentence, score):
    assert score_tokens(sentence.split())[0] == pytest.approx(score)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6), tone=st.integers(0, len(TONES) - 1), words=st.integers(5, 40),
    topic=st.sampled_from(list(lexicon.TOPICS)),
)  # fmt: skip
def test_written_sentences_obey_the_rule(seed, tone, words, topic):
    tokens = grammar_for(0.5).write(np.random.default_rng(seed), tone, words, topic)
    score, roles, contributions = score_tokens(tokens)
    assert len(tokens) == words
    assert set(tokens) <= set(lexicon.all_words())
    assert roles.count("cue") <= 4
    assert (roles.count("cue") == 0) == (TONES[tone] == "silent")
    assert score == pytest.approx(np.clip(sum(contributions), -3, 3))
    # Hiding what says nothing changes nothing; each word that says something is needed.
    quiet = ["[UNK]" if role in ("filler", "disfluency") else token for token, role in zip(tokens, roles, strict=True)]
    assert score_tokens(quiet)[0] == score
    raw = sum(contributions)
    for i, role in enumerate(roles):
        assert (contributions[i] == 0) == (role in ("filler", "disfluency")) or role == "contrast"
        if role in ("negator", "contrast"):
            without = sum(score_tokens([*tokens[:i], "[UNK]", *tokens[i + 1 :]])[2])
            if role == "negator":
                weight = lexicon.CONTRAST_WEIGHT ** roles[i:].count("contrast")
                assert raw - without == pytest.approx(weight * contributions[i])


def test_completions_follow_the_writer_exactly():
    """What the grammar fills in must have the distribution of sentences that the writer would have written."""
    grammar = grammar_for(0.3)
    tones = np.array([0.2, 0.1, 0.2, 0.1, 0.1, 0.2, 0.1])
    generator = np.random.default_rng(0)
    written = [grammar.write(generator, generator.choice(7, p=tones), 7, "film") for _ in range(30_000)]
    position = 5
    for word in ("not", "good", "slightly", "was"):
        matching = [tokens for tokens in written if tokens[position] == word]
        scores = np.array([score_tokens(tokens)[0] for tokens in matching])
        kept = np.arange(7) == position
        filled = grammar.complete([matching[0]] * 4, [kept] * 4, tones, 2000, np.random.default_rng(1))
        error = scores.std() / np.sqrt(len(scores)) + filled.scores.std() / np.sqrt(8000)
        assert abs(filled.scores.mean() - scores.mean()) < 4 * error, word
        assert filled.scores.std() == pytest.approx(scores.std(), rel=0.15), word
        silent = np.mean(["cue" not in score_tokens(tokens)[1] for tokens in matching])
        assert filled.silent.mean() == pytest.approx(silent, abs=0.05), word


def test_a_whole_sentence_completes_to_itself(clips):
    sentences = [clip.planted["tokens"] for clip in clips[:40]]
    kept = [np.ones(len(tokens), dtype=bool) for tokens in sentences]
    filled = grammar_for(0.12).complete(sentences, kept, np.full(7, 1 / 7), 3, np.random.default_rng(0))
    expected = [clip.planted["latent_text"] for clip in clips[:40]]
    np.testing.assert_allclose(filled.scores, np.repeat(np.array(expected)[:, None], 3, axis=1), atol=1e-12)


# --- the story ---

DIGEST = """
import hashlib, json
from hf_msa.data.sample_corpus import generate_rows, preset
digest = hashlib.sha256()
for sample in generate_rows(preset("tiny", version=VERSION), "test"):
    row = dict(sample.row)
    digest.update(row.pop("audio").tobytes() + row.pop("vision").tobytes())
    digest.update(json.dumps([row, sample.planted], sort_keys=True).encode())
found = digest.hexdigest()
"""


@pytest.mark.parametrize("version", [1, 2])
def test_rows_are_the_same_in_every_process(version):
    here: dict[str, object] = {"VERSION": version}
    exec(DIGEST, here)
    elsewhere = subprocess.run(
        [sys.executable, "-c", f"VERSION = {version}\n{DIGEST}print(found)"],
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert elsewhere == here["found"]
    assert len(elsewhere) == 64


@pytest.mark.parametrize("version", [1, 2])
def test_a_row_depends_on_seed_video_and_clip_alone(version):
    config = preset("tiny", version=version)
    rows = list(generate_rows(config, "train"))
    later = rows[50]
    alone = generate_row(config, int(later.row["video_id"].removeprefix("video")), int(later.row["clip_id"]))
    np.testing.assert_array_equal(alone.row["audio"], later.row["audio"])
    assert alone.row["text"] == later.row["text"]
    longer = generate_rows(replace(config, train=10**6), "train")
    for row, same in zip(rows, itertools.islice(longer, len(rows)), strict=True):
        assert (row.row["id"], row.row["label"]) == (same.row["id"], same.row["label"])
    other = next(generate_rows(replace(config, seed=1), "train"))
    assert other.row["text"] != rows[0].row["text"]


def test_clips_have_promised_sizes(clips):
    words = [len(clip.planted["tokens"]) for clip in clips]
    assert min(words) >= 5 and max(words) <= 40 and 11 < np.mean(words) < 14
    for clip in clips[:50]:
        for modality, width in (("audio", 5), ("vision", 20)):
            frames = clip.row[modality]
            assert frames.dtype == np.float32 and frames.shape == (len(frames), width)
            assert len(clip.planted[f"{modality}_word"]) == len(frames)
            assert max(clip.planted[f"{modality}_word"]) < len(clip.planted["tokens"])
    per_word = np.mean([len(clip.row["audio"]) / len(clip.planted["tokens"]) for clip in clips])
    assert 2.5 < per_word < 4.5


def test_channels_are_dead_heavy_or_live_and_lost_frames_are_zero(clips):
    vision = np.concatenate([clip.row["vision"] for clip in clips])
    lost = np.isnan(np.concatenate([clip.planted["vision_evidence"] for clip in clips]))
    assert 0.01 < lost.mean() < 0.03
    assert (vision[lost] == 0).all()
    seen = vision[~lost]
    assert ((seen == 0).all(axis=0)).sum() == 2
    live = seen[:, (seen != 0).any(axis=0)]
    kurtosis = (((live - live.mean(0)) / live.std(0)) ** 4).mean(axis=0)
    assert (kurtosis > 10).sum() == 4
    assert (kurtosis < 5).sum() == 14


def test_labels_are_the_consensus_of_those_who_do_not_lie(clips):
    for clip in clips:
        facts, row = clip.planted, clip.row
        latents = {modality: facts[f"latent_{modality}"] for modality in MODALITIES}
        assert {modality: row[f"label_{modality}"] for modality in MODALITIES} == latents
        assert (facts["lying_modality"] == "none") == (facts["kind"] != "conflicting")
        honest = {m: v for m, v in latents.items() if m != facts["lying_modality"]}
        if facts["kind"] == "silent":
            assert honest.pop("text") == 0 and facts["hard_no_cue"]
        assert set(honest.values()) == {facts["consensus"]}
        assert all(-3 <= value <= 3 for value in latents.values())
        assert abs(row["label"] * 5 - round(row["label"] * 5)) < 1e-9 and -3 <= row["label"] <= 3
        assert row["annotation"] == {0: "Neutral", 1: "Positive", -1: "Negative"}[int(np.sign(row["label"]))]
        assert facts["hard_sarcasm"] == (
            facts["lying_modality"] == "text" and latents["text"] > 0 > facts["consensus"]
        )
        assert facts["hard_contrast"] == ("contrast" in facts["roles"])
    shares = {name: np.mean([clip.planted[f"hard_{name}"] for clip in clips]) for name in ("sarcasm", "contrast")}
    assert shares["sarcasm"] > 0.01 and shares["contrast"] > 0.04


def test_annotators_draw_inwards_at_the_ends_only():
    generator = np.random.default_rng(0)
    for truth in (-3.0, 0.0, 1.3, 2.7):
        ratings = np.clip(np.rint(truth + story.ANNOTATOR_NOISE * generator.standard_normal(200_000)), -3, 3)
        assert story.expected_label(np.array(truth)) == pytest.approx(ratings.mean(), abs=0.01)


def test_frames_near_a_cue_show_more_sentiment(clips):
    strong = [clip for clip in clips if abs(clip.planted["latent_audio"]) > 1.5 and not clip.planted["hard_no_cue"]]
    on, off = [], []
    for clip in strong:
        evidence = np.array(clip.planted["audio_evidence"]) * np.sign(clip.planted["latent_audio"])
        near = np.array(clip.planted["audio_strength"]) > 1.2
        on += list(evidence[near & ~np.isnan(evidence)])
        off += list(evidence[~near & ~np.isnan(evidence)])
    assert np.mean(on) > np.mean(off) + 0.2 > 0.2


def test_one_of_several_modalities_lies_as_often_as_asked():
    clips = list(generate_rows(preset("tiny", test=400, conflict_rate=0.5, version=1), "test"))
    assert np.mean([clip.planted["kind"] == "conflicting" for clip in clips]) == pytest.approx(0.5, abs=0.1)
    assert {clip.planted["lying_modality"] for clip in clips} == {"none", *MODALITIES}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "smal"}, "Did you mean 'small'"),
        ({"name": "tiny", "conflict": 0.1}, "Did you mean 'conflict_rate'"),
        ({"name": "tiny", "train": 0}, "train is 0"),
        ({"name": "tiny", "conflict_rate": 1.5}, "conflict_rate is 1.5"),
        ({"name": "tiny", "conflict_rate": 0.9, "silent_rate": 0.2}, "sum to more than 1"),
        ({"name": "tiny", "audio_fps": 0.0}, "audio_fps is 0.0"),
        ({"name": "tiny", "seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(MsaError, match=message):
        preset(**options)


@pytest.mark.parametrize("width", [1, 2, 4, 74])
def test_any_feature_width(width):
    clip = next(generate_rows(preset("tiny", audio_dim=width, version=1), "train"))
    assert clip.row["audio"].shape[1] == width
    assert np.isfinite(clip.row["audio"]).all() and np.abs(clip.row["audio"]).sum() > 0


# --- on disk ---


def test_the_folder_is_a_data_set_like_any_other(corpus, tmp_path):
    import datasets

    loaded = datasets.load_dataset(str(corpus), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 96, "validation": 32, "test": 32}
    assert set(loaded["train"].column_names) == {
        "id", "video_id", "clip_id", "text", "audio", "vision", "label", "label_text", "label_audio", "label_vision",
        "annotation",
    }  # fmt: skip
    assert load_msa(corpus, "test", cache_dir=tmp_path)["id"] == loaded["test"]["id"]
    facts = dataset_facts(corpus)
    assert (facts.name, facts.label_family, facts.label_low, facts.label_high) == ("sample", "mosi", -3, 3)
    assert "not a benchmark" in (corpus / "README.md").read_text()


def test_planted_facts_survive_the_disk(corpus):
    planted = read_planted(corpus, "validation")
    fresh = list(generate_rows(planted.config, "validation"))
    assert planted.config == preset("tiny", seed=3, version=1)
    assert [row["id"] for row in planted.rows] == [clip.row["id"] for clip in fresh]
    assert planted.rows[5]["contributions"] == fresh[5].planted["contributions"]
    with pytest.raises(MsaError, match="Did you mean 'validation'"):
        read_planted(corpus, "valid")
    with pytest.raises(MsaError, match="not a sample corpus"):
        read_planted(corpus.parent, "test")


def test_an_existing_folder_is_kept(corpus, tmp_path):
    before = sorted(path.name for path in corpus.iterdir())
    with pytest.raises(MsaError, match="not empty"):
        write_sample_corpus(corpus, "tiny")
    assert sorted(path.name for path in corpus.iterdir()) == before


def test_the_very_same_corpus_is_not_written_again(tmp_path):
    folder = write_sample_corpus(tmp_path / "c", "tiny", seed=3, version=1)
    mark = folder / "mark"
    mark.touch()
    assert write_sample_corpus(folder, "tiny", seed=3, version=1) == folder and mark.exists()
    with pytest.raises(MsaError, match="not empty"):
        write_sample_corpus(folder, "tiny", seed=3, version=1, recordings=2)
    write_sample_corpus(folder, "tiny", seed=3, version=1, overwrite=True)
    assert not mark.exists()
    (folder / "planted" / "corpus.json").write_text("{}}")
    with pytest.raises(MsaError, match="damaged or of another version"):
        write_sample_corpus(folder, "tiny", seed=3, version=1)


def test_the_text_model_knows_every_word(corpus):
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(corpus / "text_model"))
    model = AutoModel.from_pretrained(str(corpus / "text_model"))
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for word in lexicon.all_words():
        assert tokenizer.tokenize(word) == [word]
    assert tokenizer.tokenize("Good Zebra!") == ["good", "z", "##e", "##b", "##r", "##a", "!"]
    inputs = tokenizer(["the plot was great", "uh"], padding=True, return_tensors="pt")
    assert inputs["input_ids"][0, 0] == tokenizer.cls_token_id
    assert model(**inputs).last_hidden_state.shape == (2, 6, 64)
    assert (corpus / "text_model" / "model.safetensors").is_file()


def test_word_vectors_know_polarity_without_a_label():
    vectors = dict(zip(lexicon.all_words(), text_model.word_vectors(3), strict=True))
    strong = [word for word, valence in lexicon.CUES.items() if abs(valence) > 1]
    same, opposite = [], []
    for a, b in itertools.combinations(strong, 2):
        (same if lexicon.CUES[a] * lexicon.CUES[b] > 0 else opposite).append(vectors[a] @ vectors[b])
    assert np.mean(same) > np.mean(opposite) + 0.1


# --- the ceiling ---


def kept_at(planted, rate, seed=0):
    generator = np.random.default_rng(seed)
    return {
        modality: [
            generator.random(len(row["tokens"] if modality == "text" else row[f"{modality}_evidence"])) >= rate
            for row in planted.rows
        ]
        for modality in MODALITIES
    }


def test_the_ceiling_falls_as_more_is_hidden_and_is_calibrated(clips):
    planted = planted_of(clips)
    labels = np.array([clip.row["label"] for clip in clips])
    errors = []
    for rate in (0.0, 0.4, 0.8, 1.0):
        predictions = ceiling_predictions(planted, kept_at(planted, rate), samples=60)
        errors.append(((predictions - labels) ** 2).mean())
        if rate < 1:
            slope = np.cov(predictions, labels)[0, 1] / predictions.var()
            assert slope == pytest.approx(1, abs=0.15), "a posterior mean is neither too bold nor too shy"
    assert errors == sorted(errors)
    assert errors[0] > 0.1, "annotators' noise is left"
    assert errors[-1] == pytest.approx(labels.var(), rel=0.05), "nothing seen: the best constant"


def test_the_ceiling_beats_linear_probes(clips):
    planted = planted_of(clips)
    labels = np.array([clip.row["label"] for clip in clips])
    train = list(generate_rows(SMALL, "train"))

    def seen(rows):
        return np.array([
            [clip.planted["latent_text"], *clip.row["audio"].mean(axis=0), *clip.row["vision"].mean(axis=0)]
            for clip in rows
        ])  # fmt: skip

    probe = ridge(seen(train), np.array([clip.row["label"] for clip in train]), seen(clips), 30.0)
    best = ceiling_predictions(planted, {}, samples=2)
    assert ((best - labels) ** 2).mean() < ((probe - labels) ** 2).mean()
    hidden = kept_at(planted, 1.0)
    for modality in ("audio", "vision"):
        alone = ceiling_predictions(planted, {m: hidden[m] for m in MODALITIES if m != modality}, samples=50)
        columns = slice(1, 6) if modality == "audio" else slice(6, None)
        linear = ridge(
            seen(train)[:, columns], np.array([clip.row["label"] for clip in train]), seen(clips)[:, columns], 30.0
        )
        assert np.corrcoef(alone, labels)[0, 1] > np.corrcoef(linear, labels)[0, 1]


def test_where_nobody_lies_the_whole_text_tells_all():
    config = SampleCorpusConfig(version=1, test=30, conflict_rate=0.0, neutral_rate=0.0, silent_rate=0.0)
    planted = planted_of(generate_rows(config, "test"), config)
    scores = np.array([row["latent_text"] for row in planted.rows])
    np.testing.assert_allclose(ceiling_predictions(planted, {}, samples=2), story.expected_label(scores))


def test_one_frame_gives_the_posterior_of_a_textbook():
    """One frame of strength c: the evidence is Gaussian with variance 1 + offset variance around signal * c * s."""
    config = SampleCorpusConfig(version=1, test=40, conflict_rate=0.0, neutral_rate=0.0, silent_rate=1.0)
    planted = planted_of(generate_rows(config, "test"), config)
    row = next(row for row in planted.rows if not np.isnan(row["audio_evidence"][0]))
    one = PlantedSplit(config, [row])
    kept = {
        "audio": [np.arange(len(row["audio_evidence"])) == 0],
        "vision": [np.zeros(len(row["vision_evidence"]), dtype=bool)],
    }
    latent = (np.random.default_rng(0).beta(1.5, 2.0, 400_000) * 3) * np.where(np.arange(400_000) % 2, 1, -1)
    gap = row["audio_evidence"][0] - config.audio_signal * row["audio_strength"][0] * latent
    weight = np.exp(-(gap**2) / 2 / (1 + story.SPEAKER_OFFSET**2))
    expected = (weight * story.expected_label(latent)).sum() / weight.sum()
    assert ceiling_predictions(one, kept, samples=1)[0] == pytest.approx(expected, abs=0.01)


def test_masks_that_do_not_fit_are_named(clips):
    planted = planted_of(clips[:2])
    with pytest.raises(MsaError, match="1 text masks were given for 2 clips"):
        ceiling_predictions(planted, {"text": [np.ones(3, dtype=bool)]})
    with pytest.raises(MsaError, match="one flag for each of its"):
        ceiling_predictions(planted, {"audio": [np.ones(3, dtype=bool)] * 2})


def test_masks_of_the_engine_become_kept_flags(clips):
    planted = planted_of(clips[:2])
    lengths = [len(row["tokens"]) for row in planted.rows]
    missing = np.zeros((2, max(lengths) + 2), dtype=bool)
    missing[0, 1] = missing[1, lengths[1]] = True
    kept = kept_masks(planted, {"text": missing})["text"]
    assert [len(flags) for flags in kept] == lengths
    assert kept[0].tolist() == [False] + [True] * (lengths[0] - 1)
    assert kept[1].tolist() == [True] * (lengths[1] - 1) + [False]


# --- its own checks ---


def copy_of(corpus: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(corpus, target))


def test_the_corpus_passes_its_own_checks(corpus):
    measured = check_corpus(corpus)
    assert measured["clips"] == {"train": 96, "validation": 32, "test": 32}
    assert measured["probes"] is None, "too few clips to judge a correlation"
    json.dumps(measured)


def change(path, column, row, value):
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[row] = value
    field = table.schema.field(column)
    changed = table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))
    pq.write_table(changed, path)


@pytest.mark.parametrize(
    ("file", "column", "value", "message"),
    [
        ("data/test-00000-of-00001.parquet", "text", "the plot was great", "does not reproduce"),
        ("data/test-00000-of-00001.parquet", "label", 0.25, "does not reproduce"),
        ("planted/test.parquet", "latent_audio", 2.9, "does not reproduce"),
        ("planted/train.parquet", "speaker", "speaker000002", "does not reproduce"),
    ],
)
def test_a_changed_corpus_fails(corpus, tmp_path, file, column, value, message):
    folder = copy_of(corpus, tmp_path / "copy")
    change(folder / file, column, 4, value)
    with pytest.raises(MsaError, match=message):
        check_corpus(folder)


def test_a_speaker_in_two_splits_fails(corpus, tmp_path):
    folder = copy_of(corpus, tmp_path / "copy")
    # Train is the longest split, so that its last speaker has the highest number.
    change(folder / "planted/test.parquet", "speaker", -1, read_planted(corpus, "train").rows[-1]["speaker"])
    with pytest.raises(MsaError, match="is in (train and in test|test and in train)"):
        check_corpus(folder)
    change(folder / "planted/train.parquet", "speaker", 0, "speaker000099")
    with pytest.raises(MsaError, match="comes after speaker000099 in the train split"):
        check_corpus(folder)


def test_ids_out_of_place_fail(corpus, tmp_path):
    data, facts = "data/train-00000-of-00001.parquet", "planted/train.parquet"
    first, second = (row["id"] for row in read_planted(corpus, "train").rows[:2])
    folder = copy_of(corpus, tmp_path / "one")
    change(folder / facts, "id", 0, second)
    with pytest.raises(MsaError, match="are not in the order of its rows"):
        check_corpus(folder)
    change(folder / data, "id", 0, second)
    with pytest.raises(MsaError, match="two clips of the train split have the same id"):
        check_corpus(folder)
    folder = copy_of(corpus, tmp_path / "other")
    last = read_planted(corpus, "train").rows[-1]["id"].partition("$_$")[0]
    change(folder / "data/test-00000-of-00001.parquet", "video_id", -1, last)
    with pytest.raises(MsaError, match=f"{last} is in (train and in test|test and in train)"):
        check_corpus(folder)
    assert first != second


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "mosi"])
def test_larger_presets_keep_their_promises(name, tmp_path):
    measured = check_corpus(write_sample_corpus(tmp_path / name, name, version=1))
    assert 0.35 < measured["probes"]["audio"] < 0.55
    assert measured["probes"]["all"] > max(measured["probes"][modality] for modality in MODALITIES)
