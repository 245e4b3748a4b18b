"""Probes against other ways of computing them, headroom on made clips whose truth is known, and the tool as a command."""

import csv
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import Ridge as TheirRidge

from hf_msa.analysis import TOOLS, run_tool, tool_list
from hf_msa.analysis.common.headroom import (
    Clips,
    WordWindows,
    column_facts,
    feature_rows,
    frame_rows,
    label_rows,
    read_clips,
    reading,
    sign_rows,
    timed_words,
    unknown,
    word_counts,
    words_of,
)
from hf_msa.analysis.common.probes import (
    LINEAR,
    NEIGHBOURS,
    NON_LINEAR,
    Columns,
    Ridge,
    explained,
    fit_and_predict,
    folds,
)
from hf_msa.data.prepare import prepare_dataset
from hf_msa.data.sample_corpus import read_planted, write_sample_corpus
from hf_msa.data.sample_corpus.corpus_files import write_checks
from hf_msa.errors import MsaError
from hf_msa_cli import main


def test_ridge_is_ridge_and_what_a_part_is_missed_by_is_that_of_a_fit_without_it() -> None:
    generator = np.random.default_rng(0)
    inputs, noise = generator.normal(size=(40, 3)) * [1, 5, 0] + [0, 100, 7], generator.normal(size=(40, 2))
    targets = inputs[:, :2] + noise
    parts = np.split(np.arange(40), 4)
    blocks = Columns([inputs])([inputs])
    made = Ridge(blocks, targets, parts)
    # Two columns that vary; the third is constant.
    scaled = (inputs - inputs.mean(axis=0)) / np.maximum(inputs.std(axis=0), 1e-3) / np.sqrt(2)
    np.testing.assert_allclose(blocks[0], scaled, atol=1e-9)
    errors = {}
    for penalty in 40 * np.logspace(-5, 3, 17):
        missed = np.empty_like(targets)
        for part in parts:
            rest = np.setdiff1d(np.arange(40), part)
            fit = TheirRidge(alpha=penalty).fit(scaled[rest], targets[rest])
            missed[part] = targets[part] - fit.predict(scaled[part])
        errors[penalty] = (np.square(missed).sum(), missed)
    best = min(errors, key=lambda penalty: errors[penalty][0])
    np.testing.assert_allclose(made.missed, errors[best][1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        made(blocks), TheirRidge(alpha=best).fit(scaled, targets).predict(scaled), rtol=1e-6, atol=1e-9
    )


def test_wide_and_narrow_blocks_count_alike_and_noise_does_not() -> None:
    generator = np.random.default_rng(0)
    narrow, wide = generator.normal(size=(50, 2)) * 7 + 3, generator.normal(size=(50, 34))
    wide[:, 30:], wide[0, 0] = 1, 1000
    blocks = Columns([narrow, wide])([narrow, wide])
    assert [block.shape for block in blocks] == [(50, 2), (50, 34)]
    assert blocks[0].var(axis=0).sum() == pytest.approx(1)
    assert blocks[1][:, 1:].var(axis=0).sum() == pytest.approx(29 / 30)
    # The outlier is moved to five deviations.
    assert blocks[1][0, 0] == pytest.approx(5 / np.sqrt(30))
    targets = narrow[:, :1] + generator.normal(size=(50, 1))
    made = Ridge(blocks, targets, np.split(np.arange(50), 5))
    assert made.weights == [1.0, 0.0]
    np.testing.assert_allclose(made(blocks), Ridge(blocks[:1], targets, np.split(np.arange(50), 5))(blocks[:1]))


def test_explained_variance_by_hand() -> None:
    share = explained(np.array([1.0, 0.0, 2.0, 1.0]), np.array([4.0, 4.0, 4.0, 4.0]), ["a", "b", "c", "d"])
    assert share.mean == pytest.approx(0.75) and share.bounds[0] < 0.75 < share.bounds[1]
    assert np.isnan(explained(np.zeros(2), np.zeros(2), ["a", "b"]).mean)
    # A video is drawn as a whole: both rows of one, or both of the other.
    whole = explained(np.array([0.0, 4.0, 4.0, 0.0]), np.full(4, 4.0), ["a", "b", "b", "a"])
    assert set(whole.resampled.tolist()) == {0.0, 0.5, 1.0} and whole.mean == 0.5


def test_no_video_is_on_both_sides() -> None:
    groups = [f"video {index // 3}" for index in range(21)]
    held_out = []
    for fitted, predicted in folds(groups):
        assert not {groups[place] for place in fitted} & {groups[place] for place in predicted}
        held_out += predicted.tolist()
    assert sorted(held_out) == list(range(21))
    with pytest.raises(MsaError, match="of one video"):
        list(folds(["v"] * 4))


def test_each_probe_finds_what_is_its_own() -> None:
    generator = np.random.default_rng(1)
    inputs = generator.uniform(-2, 2, size=(300, 2))
    groups = [f"v{index % 60}" for index in range(300)]
    who = generator.integers(40, size=300)
    faces, moods = generator.normal(size=(40, 6)) * 3, generator.normal(size=40)
    cases = {
        LINEAR: (inputs, inputs[:, :1]),
        NON_LINEAR: (inputs, inputs[:, :1] * inputs[:, 1:]),
        NEIGHBOURS: (faces[who] + 0.1 * generator.normal(size=(300, 6)), moods[who][:, None]),
    }
    for probe, (known, targets) in cases.items():
        made = fit_and_predict([known[:200]], targets[:200], [known[200:]], groups[:200])
        errors = {name: float(np.square(found - targets[200:]).mean()) for name, found in made.items()}
        assert errors[probe] < 0.25 * targets.var(), probe
        assert probe == LINEAR or errors[LINEAR] > 0.5 * targets.var(), probe


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Audio is the sentiment, vision is noise; words tell neither; vision disagrees where audio's second column says so."""
    generator = np.random.default_rng(2)
    count, vocabulary = 240, [f"word{index}" for index in range(12)]
    labels = generator.uniform(-3, 3, count)
    lies = generator.random(count) < 0.3
    texts = [list(generator.choice(vocabulary, 6)) for _ in range(count)]
    codes = generator.normal(size=(12, 3)) * 2
    sequences: dict[str, list[Any]] = {"audio": [], "vision": []}
    for label, lie, words in zip(labels, lies, texts, strict=True):
        spoken = np.repeat([codes[vocabulary.index(word)] for word in words], 2, axis=0)
        noise = generator.normal(size=(12, 3)) * 0.3
        sequences["audio"].append(np.concatenate([spoken + noise, np.tile([[label, 5.0 * lie]], (12, 1))], axis=1))
        sequences["vision"].append(generator.normal(size=(1, 4)))
    vectors = {
        "text": np.array([[words.count(word) for word in vocabulary] for words in texts], dtype=float),
        "audio": np.array([one.mean(axis=0) for one in sequences["audio"]]),
        "vision": np.array([one[0] for one in sequences["vision"]]),
    }
    return Clips(
        groups=[f"video {index // 3}" for index in range(count)],
        texts=texts,
        spoken=texts,
        times=[np.zeros((0, 2))] * count,
        labels=labels,
        own_labels={"vision": np.where(lies, -labels, labels)},
        sequences=sequences,
        vectors=vectors,
        present={name: np.ones(count, dtype=bool) for name in vectors},
    )


def by_source(rows: list[dict[str, Any]], told: str) -> dict[str, dict[str, Any]]:
    return {row["from"]: row for row in rows if row["told"] == told}


def test_the_label_is_told_by_what_has_it(clips: Clips) -> None:
    rows = label_rows(clips)
    found = by_source(rows, "label")
    assert len(found) == 7 + 3
    assert found["audio"][LINEAR].mean > 0.98 and found["vision"][LINEAR].mean < 0.05
    assert found["audio, beyond text+vision"][LINEAR].bounds[0] > 0.8
    low, high = found["vision, beyond text+audio"][LINEAR].bounds
    assert low <= 0.001 and high < 0.01
    lines = reading(rows, [])
    assert any(line.startswith("Vision tells nothing about the label that a probe finds: ") for line in lines)
    assert any(line.startswith("Audio adds something to text and vision about the label: +") for line in lines)


def test_signs_and_disagreement(clips: Clips) -> None:
    rows = sign_rows(clips, 0.0)
    assert by_source(rows, "the sign of the label")["audio"][LINEAR].mean > 0.98
    assert abs(by_source(rows, "the sign of the label of vision")["vision"][LINEAR].mean - 0.5) < 0.12
    assert by_source(rows, "vision disagrees")["text+audio+vision"][LINEAR].mean > 0.98


def test_features_of_a_modality_from_the_others(clips: Clips) -> None:
    rows = feature_rows(clips)
    audio = by_source(rows, "audio of a sample")["text+vision"]
    # Three of five columns are codes of the words.
    assert 0.5 < audio[LINEAR].mean < 0.65
    assert by_source(rows, "vision of a sample")["text+audio"][LINEAR].mean < 0.05


def test_masked_frames_from_frames_and_words(clips: Clips) -> None:
    rows = frame_rows(clips, 120)
    assert {row["told"] for row in rows} == {"masked frames of audio"}, "one frame of vision leaves nothing visible"
    found = by_source(rows, "masked frames of audio")
    # The last two columns stand still; each word lasts two frames.
    assert found["visible frames"][LINEAR].mean > 0.4
    assert found["words"][LINEAR].mean > 0.3
    assert found["words, beyond visible frames"][LINEAR].bounds[0] > 0.05
    assert any(
        "Words add something to visible frames about masked frames of audio" in line for line in reading(rows, [])
    )


def test_texts_without_blanks_are_read_by_characters() -> None:
    assert words_of(["Not bad", "Good film"]) == [["not", "bad"], ["good", "film"]]
    assert words_of(["很好", "不 好", "好"]) == [["很", "好"], ["不", "好"], ["好"]]


def test_words_around_a_place() -> None:
    windows = WordWindows([["a", "b", "c", "b"], ["b"]], [np.zeros((0, 2))] * 2)
    # By frequency: b, a, c.
    assert windows(0, 0.0).tolist() == [0.5, 1.0, 0.0] and windows(0, 0.6).tolist() == [1.0, 0.0, 1.0]
    assert windows(1, 0.99).tolist() == [1.0, 0.0, 0.0]


def test_words_around_a_time() -> None:
    column = [[{"text": " A", "start": 0.0, "end": 0.2}, {"text": "b", "start": 0.2, "end": 1.0}], []]
    spoken, times = timed_words(column, [["x", "y"], ["c", "b"]])
    assert spoken == [["a", "b"], ["c", "b"]] and times[0].tolist() == [[0.0, 0.2], [0.2, 1.0]] and len(times[1]) == 0
    windows = WordWindows(spoken, times)
    # Columns: b, a, c. Half of the clip is .5 s, which is nearer to .6 than to .1; .3 s is nearer to .1.
    assert windows(0, 0.5).tolist() == [1.0, 0.5, 0.0] and windows(0, 0.3).tolist() == [0.5, 1.0, 0.0]
    # Without times the second word begins in the middle.
    assert windows(1, 0.4).tolist() == [0.5, 0.0, 1.0]


def with_words(corpus: Path, folder: Path) -> Path:
    """A copy of a sample corpus with a column of words, whose times are those of their frames."""
    file = next((shutil.copytree(corpus, folder) / "data").glob("train-*.parquet"))
    table = pq.read_table(file)
    words = []
    for facts in read_planted(corpus, "train").rows:
        place = np.array(facts["vision_word"])
        # Ten frames a second; a word too short for a frame begins where the one before ends.
        own, last = [], 0.0
        for index, text in enumerate(facts["tokens"]):
            there = np.flatnonzero(place == index) / 10
            start, end = (float(there[0]), float(there[-1]) + 0.1) if len(there) else (last, last)
            own.append({"text": text, "start": start, "end": end})
            last = end
        words.append(own)
    kind = pa.list_(pa.struct({"text": pa.string(), "start": pa.float32(), "end": pa.float32()}))
    table = table.replace_schema_metadata(None).append_column("words", pa.array(words, kind))
    pq.write_table(table, file)
    return folder


def test_a_column_of_words_tells_which_word_a_frame_is_of(tmp_path: Path) -> None:
    corpus = write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=3, vision_dim=4)
    timed = with_words(corpus, tmp_path / "timed")
    planted = read_planted(corpus, "train").rows
    right = {}
    for name, folder in (("equal", corpus), ("timed", timed)):
        clips, _ = read_clips(str(folder), 40)
        rows = [planted[place] for place in np.sort(np.random.default_rng(0).choice(96, 40, replace=False))]
        assert [facts["tokens"] for facts in rows] == clips.texts == clips.spoken
        windows = WordWindows(clips.spoken, clips.times)
        hits = []
        for text, facts in enumerate(rows):
            for frame, word in enumerate(facts["vision_word"]):
                if word >= 0:
                    found = windows(text, (frame + 0.5) / len(facts["vision_word"]))
                    column = windows._columns.get(facts["tokens"][word])
                    hits.append(column is not None and found[column] >= 1)
        right[name] = np.mean(hits)
    assert right["timed"] > right["equal"] + 0.1


def test_what_cannot_be_known(clips: Clips, tmp_path: Path) -> None:
    lines = unknown(clips, str(tmp_path))
    assert lines[0].startswith("The most that any mechanism can reach: probes bound it from below alone")
    assert lines[1].startswith("Whether text or audio lies") and "no label of them alone" in lines[1]
    assert any(line.startswith("When each word is said") for line in lines)
    one_frame = dataclasses.replace(clips, sequences={"vision": clips.sequences["vision"]})
    assert not any(line.startswith("When each word") for line in unknown(one_frame, str(tmp_path)))
    timed = dataclasses.replace(clips, times=[np.ones((1, 2))] * len(clips.labels), own_labels=clips.vectors)
    assert [line.partition(":")[0] for line in unknown(timed, str(tmp_path))][1:] == ["Who speaks"]
    corpus = write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=3)
    assert "was not measured of this corpus" in unknown(clips, str(corpus))[0]
    write_checks(corpus, {"mechanisms": {"clips": 300}})
    assert "is known here, as it was planted: `planted/checks.json`" in unknown(clips, str(corpus))[0]


def test_facts_of_columns() -> None:
    frames = np.array([[1.0, 188.0, 3.0, np.nan], [1.0, 188.002, 5.0, 1.0]])
    facts = column_facts("audio", [frames[:1], frames[1:], frames[:0]])
    assert facts["rows with it"] == 2 and facts["rows of one frame"] == "100 %" and facts["columns"] == 4
    assert (facts["constant"], facts["lost among the others"], facts["with NaN or infinity"]) == (1, 2, 1)
    lines = reading([], [facts])
    assert lines[0].startswith("Every row has one frame of audio: mechanisms over time") and len(lines) == 4
    assert column_facts("vision", [frames[:0]]) == {"modality": "vision", "rows with it": 0}


def test_the_tool_takes_data_and_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = str(write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=3))
    output = tmp_path / "out"
    assert (
        main(["analyze", "headroom", "--data", corpus, "--output", str(output), "--rows", "80", "--clips", "12"]) == 0
    )
    names = {"headroom.csv", "columns.csv", "headroom.md", "headroom.png", "headroom.svg"}
    assert {path.name for path in output.iterdir()} == names
    with (output / "headroom.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["told"] for row in rows} >= {"label", "audio of a sample", "masked frames of vision"}
    assert {"linear", "linear low", "linear high", "non-linear", "gain of neighbours"} <= set(rows[0])
    assert "sample: 80 training rows" in (output / "headroom.md").read_text(encoding="utf-8")
    assert "For data, before any training" in tool_list() and not TOOLS["headroom"].takes_runs
    with pytest.raises(MsaError, match="looks into data alone; leave 'run' out"):
        run_tool("headroom", ["run"], data=corpus)
    with pytest.raises(MsaError, match="needs --data"):
        run_tool("headroom")


def test_of_equally_frequent_words_the_first_are_counted() -> None:
    # "a" three times, "b" and "c" twice, "d" in one text only.
    texts = [["c", "a"], ["c", "b", "a"], ["a", "b"], ["d", "d"]]
    np.testing.assert_array_equal(word_counts(texts, 2), [[1, 0], [1, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(word_counts(texts), [[1, 0, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(word_counts([["a"], ["b"]]), [[0], [0]])


@pytest.mark.slow
def test_real_rows_of_one_frame_say_that_they_are(real_data: Path, tmp_path: Path) -> None:
    prepare_dataset("mosi", str(real_data / "mosi" / "mosi_text_audio.pkl"), str(tmp_path / "mosi"))
    run_tool("headroom", data=str(tmp_path / "mosi"), rows=900, output=str(tmp_path / "out"))
    said = (tmp_path / "out" / "headroom.md").read_text(encoding="utf-8")
    assert "- Every row has one frame of audio: mechanisms over time" in said
    assert "- Text tells something about the label: +" in said and "masked frames of" not in said
    assert "columns of audio are lost in a normalisation over columns unless features are standardised" in said
