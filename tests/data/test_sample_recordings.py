"""Spoken clips of the sample corpus: what was planted in them, and what is heard."""

import os
import shutil
import stat
import time
import wave
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_msa.data.loading import load_msa
from hf_msa.data.media import MediaFolder
from hf_msa.data.sample_corpus import (
    SampleCorpusConfig,
    check_corpus,
    generate_row,
    measure_recordings,
    preset,
    read_manifest,
    read_planted,
    read_planted_recordings,
    speech,
    write_sample_corpus,
)
from hf_msa.data.sample_corpus.recordings import plant_voice, recordings_per_split
from hf_msa.data.sample_corpus.speech import ESPEAK, FORMANTS, Voice, measure, speak
from hf_msa.errors import MsaError
from hf_msa_cli import main

COUNT = 25


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with recordings by the synthesiser that is always there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        return write_sample_corpus(
            tmp_path_factory.mktemp("spoken") / "tiny", preset="tiny", seed=3, recordings=COUNT, version=1
        )


@pytest.fixture
def no_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture
def espeak_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201 - a function
    """Put a script by the name of espeak-ng on the PATH."""

    def install(script: str) -> None:
        file = tmp_path / "bin" / ESPEAK
        file.parent.mkdir()
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def copy_of(corpus: Path, folder: Path) -> Path:
    shutil.copytree(corpus, folder)
    return folder


# --- what is measured ---


def tone(pitch: float, seconds: float, level: float) -> np.ndarray:
    """Five harmonics of 1/k, between two tenths of a second of silence."""
    times = np.arange(round(seconds * 16_000)) / 16_000
    wave_ = sum(np.sin(2 * np.pi * pitch * k * times) / k for k in range(1, 6))
    wave_ *= 10 ** (level / 20) / np.sqrt(np.mean(wave_**2))
    return np.pad(wave_, 1600)


@pytest.mark.parametrize("pitch", [80.0, 125.0, 160.0, 320.0])
def test_a_tone_measured_by_hand(pitch: float) -> None:
    heard = measure(tone(pitch, 2.0, -20.0), ["a", "tiny", "word"])
    assert heard.pitch == pytest.approx(pitch, rel=0.01)
    assert heard.rate == pytest.approx(4 / 2.0, rel=0.01)
    assert heard.energy == pytest.approx(-20.0, abs=0.1)


def test_silence_and_noise_have_no_pitch() -> None:
    assert np.isnan(astuple(measure(np.zeros(16_000), ["word"]))).all()
    assert np.isnan(measure(np.zeros(0), ["word"]).pitch)
    noise = measure(0.1 * np.random.default_rng(0).standard_normal(16_000), ["word"])
    assert np.isnan(noise.pitch) and noise.energy == pytest.approx(-20, abs=0.2)


@pytest.mark.parametrize(
    ("word", "syllables"), [("the", 1), ("movie", 2), ("yesterday", 3), ("hmm", 1), ("like", 1), ("terrible", 3)]
)
def test_syllables_by_spelling(word: str, syllables: int) -> None:
    assert speech.count_syllables([word]) == syllables


# --- how it is spoken ---


@pytest.mark.parametrize("voice", [Voice(75, 2.5, -36), Voice(110, 4, -28), Voice(165, 6, -20)])
def test_the_synthesiser_speaks_as_it_is_told(voice: Voice) -> None:
    words = "we watched that movie yesterday but um the plot was not very good".split()
    samples = speak(words, voice, np.random.default_rng(0), FORMANTS)
    heard = measure(samples, words)
    assert heard.pitch == pytest.approx(voice.pitch, rel=0.02)
    assert heard.rate == pytest.approx(voice.rate, rel=0.03)
    assert heard.energy == pytest.approx(voice.energy, abs=0.3)
    assert np.abs(samples).max() < 1
    # A moment before the words begin, and behind them, only the room is heard.
    edge = round(0.9 * speech.MARGIN_SECONDS * 16_000)
    assert np.abs(np.concatenate([samples[:edge], samples[-edge:]])).max() < 0.002


def test_letters_sound_different() -> None:
    """A hiss has no pitch and lies high; vowels differ in their formants."""

    def centre(letter: str) -> float:
        samples = speak([letter], Voice(110, 2.5, -20), np.random.default_rng(0), FORMANTS)
        power = np.abs(np.fft.rfft(samples)) ** 2
        return float((power * np.fft.rfftfreq(len(samples), 1 / 16_000)).sum() / power.sum())

    assert centre("s") > 4000 > 2000 > centre("e") > centre("u")
    assert np.isnan(measure(speak(["s"], Voice(110, 2.5, -20), np.random.default_rng(0), FORMANTS), ["s"]).pitch)


def test_every_word_can_be_spoken() -> None:
    from hf_msa.data.sample_corpus import lexicon

    for word in lexicon.all_words():
        assert len(speech._sounds([word])) >= 1


def test_it_is_fast_enough() -> None:
    config = preset("tiny", version=1)
    clips = [generate_row(config, video, 0) for video in range(20)]
    generator = np.random.default_rng(0)
    # Of the processor, since others may be at work.
    start = time.process_time()
    for clip in clips:
        speak(clip.planted["tokens"], plant_voice(config, clip.row, 0.0), generator, FORMANTS)
    assert len(clips) / (time.process_time() - start) > 20


# --- what is planted ---


def test_a_voice_shows_the_sentiment_among_speakers_and_noise() -> None:
    config = SampleCorpusConfig()
    clips = [generate_row(config, video, clip) for video in range(60) for clip in range(5)]
    sentiments = np.array([clip.planted["latent_audio"] for clip in clips])
    voices = np.array([astuple(plant_voice(config, clip.row, clip.planted["latent_audio"])) for clip in clips])
    for values in voices.T:
        assert 0.3 < np.corrcoef(values, sentiments)[0, 1] < 0.75
    row = clips[0].row
    raised = plant_voice(config, row, 1.0)
    plain = plant_voice(config, row, 0.0)
    # One unit: a semitone, 4 percent, 0.8 dB.
    assert raised.pitch / plain.pitch == pytest.approx(2 ** (1 / 12), rel=1e-4)
    assert raised.rate / plain.rate == pytest.approx(np.exp(0.04), rel=1e-3)
    assert raised.energy - plain.energy == pytest.approx(0.8, abs=2e-3)
    assert plant_voice(SampleCorpusConfig(seed=1), row, 0.0) != plain


@pytest.mark.parametrize(
    ("count", "spread"),
    [
        (0, (0, 0, 0)),
        (1, (1, 0, 0)),
        (3, (1, 1, 1)),
        (5, (3, 1, 1)),
        (10, (6, 2, 2)),
        (25, (15, 5, 5)),
        (160, (96, 32, 32)),
    ],
)
def test_splits_have_their_shares(count: int, spread: tuple[int, int, int]) -> None:
    assert tuple(recordings_per_split(preset("tiny", version=1), count).values()) == spread


def test_each_split_has_one_though_its_share_is_small() -> None:
    config = SampleCorpusConfig(train=1000, validation=10, test=1)
    assert tuple(recordings_per_split(config, 3).values()) == (1, 1, 1)
    assert tuple(recordings_per_split(config, 20).values()) == (18, 1, 1)


@pytest.mark.parametrize("count", [-1, 161])
def test_too_many_are_refused_before_anything_is_written(count: int, tmp_path: Path) -> None:
    with pytest.raises(MsaError, match=f"{count} recordings were asked for; give a number from 0 to 160"):
        write_sample_corpus(tmp_path / "corpus", preset="tiny", recordings=count, version=1)
    assert not (tmp_path / "corpus").exists()


# --- on disk ---


def test_the_folder_holds_what_the_manifest_names(corpus: Path) -> None:
    manifest = read_manifest(corpus)
    assert len(manifest) == COUNT
    assert [row["split"] for row in manifest] == ["train"] * 15 + ["validation"] * 5 + ["test"] * 5
    assert list(manifest[0]) == [
        *("path", "text", "label", "split", "id"),
        *("planted_pitch", "planted_rate", "planted_energy"),
    ]
    assert {row["path"] for row in manifest} == {
        str(file.relative_to(corpus / "recordings")) for file in (corpus / "recordings").rglob("*.wav")
    }
    rows = {row["id"]: row for split in ("train", "validation", "test") for row in load_msa(corpus, split)}
    for row in manifest:
        known = rows[row["id"]]
        assert (row["text"], float(row["label"])) == (known["text"], pytest.approx(known["label"]))
        assert row["path"] == f"{known['video_id']}/{known['clip_id']}.wav"
        with wave.open(str(corpus / "recordings" / row["path"])) as file:
            assert file.getparams()[:3] == (1, 2, 16_000)
            assert file.getnframes() / 16_000 > 0.5


def test_planted_facts_are_apart_from_what_a_model_sees(corpus: Path) -> None:
    planted = read_planted_recordings(corpus)
    assert [row["id"] for row in planted] == [row["id"] for row in read_manifest(corpus)]
    assert {row["synthesizer"] for row in planted} == {FORMANTS}
    first = read_planted(corpus, "train")
    clips = list(zip(planted[:15], first.rows, load_msa(corpus, "train"), strict=False))
    assert len(clips) == 15 and any(facts["latent_audio"] != facts["latent_text"] for _, facts, _ in clips)
    for told, facts, row in clips:
        assert vars(plant_voice(first.config, row, facts["latent_audio"])).items() <= told.items()
    assert not any("pitch" in column for column in load_msa(corpus, "train").column_names)
    assert "as spoken by a synthesiser" in (corpus / "README.md").read_text()


def test_what_is_heard_is_what_was_planted(corpus: Path) -> None:
    planted = np.array(
        [[row[name] for name in ("pitch", "rate", "energy")] for row in read_planted_recordings(corpus)]
    )
    heard = np.array([astuple(voice) for voice in measure_recordings(corpus)])
    for column in range(3):
        assert np.corrcoef(planted[:, column], heard[:, column])[0, 1] > 0.97
    assert min(check_corpus(corpus)["recordings"]["correlations"].values()) > 0.97


def test_equal_seeds_give_equal_bytes_and_more_clips_leave_the_others(
    corpus: Path, tmp_path: Path, no_espeak: None
) -> None:
    again = write_sample_corpus(tmp_path / "again", preset="tiny", seed=3, recordings=COUNT, version=1)
    more = write_sample_corpus(tmp_path / "more", preset="tiny", seed=3, recordings=COUNT + 5, version=1)
    other = write_sample_corpus(tmp_path / "other", preset="tiny", seed=4, recordings=3, version=1)
    paths = [row["path"] for row in read_manifest(corpus)]
    waves = {path: (corpus / "recordings" / path).read_bytes() for path in paths}
    assert waves == {path: (again / "recordings" / path).read_bytes() for path in paths}
    assert waves == {path: (more / "recordings" / path).read_bytes() for path in paths}
    assert (again / "recordings/manifest.csv").read_bytes() == (corpus / "recordings/manifest.csv").read_bytes()
    assert waves[paths[0]] != (other / "recordings" / paths[0]).read_bytes()


def test_without_recordings_nothing_changes(corpus: Path, tmp_path: Path) -> None:
    plain = write_sample_corpus(tmp_path / "plain", preset="tiny", seed=3, version=1)
    assert not (plain / "recordings").exists() and read_planted_recordings(plain) == [] == read_manifest(plain)
    assert check_corpus(plain)["recordings"] is None
    for name in ("data/train-00000-of-00001.parquet", "planted/train.parquet", "planted/corpus.json"):
        assert (plain / name).read_bytes() == (corpus / name).read_bytes()


def test_media_folders_find_them(corpus: Path) -> None:
    pytest.importorskip("librosa")
    row = load_msa(corpus, "train")[0]
    found = MediaFolder(corpus / "recordings").load(row)
    assert found["waveform"].shape[0] > 8000


def test_the_command_line_writes_them(tmp_path: Path, no_espeak: None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "corpus"
    assert main(["sample-corpus", "--preset", "tiny", "--output", str(folder), "--recordings", "3"]) == 0
    assert len(list(folder.glob("recordings/*/*.wav"))) == 3
    assert "3 recordings" in capsys.readouterr().out


# --- what the check finds ---


def test_waves_of_other_clips_fail_the_check(corpus: Path, tmp_path: Path) -> None:
    folder = copy_of(corpus, tmp_path / "copy")
    files = [folder / "recordings" / row["path"] for row in read_manifest(folder)]
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, [*contents[5:], *contents[:5]], strict=True):
        file.write_bytes(content)
    with pytest.raises(MsaError, match="the pitch heard in the recordings correlates"):
        check_corpus(folder)


def test_silent_waves_fail_the_check(corpus: Path, tmp_path: Path) -> None:
    folder = copy_of(corpus, tmp_path / "copy")
    speech.write_wave(folder / "recordings" / read_manifest(folder)[0]["path"], np.zeros(16_000))
    with pytest.raises(MsaError, match=r"the energy heard in the recordings correlates 0\.00"):
        check_corpus(folder)


def test_another_split_in_the_manifest_fails_the_check(corpus: Path, tmp_path: Path) -> None:
    folder = copy_of(corpus, tmp_path / "copy")
    file = folder / "recordings/manifest.csv"
    file.write_text(file.read_text().replace(",train,", ",test,", 1))
    with pytest.raises(MsaError, match="manifest of the recordings"):
        check_corpus(folder)
    file.write_text("path,text\n")
    with pytest.raises(MsaError, match="has not the columns path, text, label"):
        check_corpus(folder)


def test_other_planted_voices_fail_the_check(corpus: Path, tmp_path: Path) -> None:
    folder = copy_of(corpus, tmp_path / "copy")
    file = folder / "planted/recordings.parquet"
    table = pq.read_table(file).to_pydict()
    table["pitch"][0] += 1
    import pyarrow as pa

    pq.write_table(pa.table(table), file)
    with pytest.raises(MsaError, match="does not reproduce what was planted"):
        check_corpus(folder)


@pytest.mark.parametrize("content", [b"", b"RIFF", None])
def test_a_damaged_or_absent_wave_is_one_sentence(corpus: Path, tmp_path: Path, content: bytes | None) -> None:
    folder = copy_of(corpus, tmp_path / "copy")
    file = folder / "recordings" / read_manifest(folder)[0]["path"]
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MsaError, match=r"0\.wav"):
        check_corpus(folder)


def test_a_wave_behind_a_link_out_of_the_folder_is_not_opened(corpus: Path, tmp_path: Path) -> None:
    folder = copy_of(corpus, tmp_path / "copy")
    file = folder / "recordings" / read_manifest(folder)[0]["path"]
    file.rename(tmp_path / "outside.wav")
    file.symlink_to(tmp_path / "outside.wav")
    with pytest.raises(MsaError, match="leads out of"):
        check_corpus(folder)


# --- espeak-ng ---


@pytest.mark.skipif(shutil.which(ESPEAK) is None, reason="espeak-ng is not on the PATH")
def test_espeak_speaks_as_it_is_told(tmp_path: Path) -> None:
    corpus = write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=3, recordings=30, version=1)
    assert {row["synthesizer"] for row in read_planted_recordings(corpus)} == {ESPEAK}
    assert min(check_corpus(corpus)["recordings"]["correlations"].values()) > 0.95


def test_an_espeak_that_fails_is_one_sentence(tmp_path: Path, espeak_that) -> None:  # noqa: ANN001
    espeak_that("echo 'no voice data' >&2; exit 1")
    with pytest.raises(
        MsaError, match=r"espeak-ng does not speak \(no voice data\); mend it, or take it off the PATH"
    ):
        write_sample_corpus(tmp_path / "corpus", preset="tiny", recordings=3, version=1)
    assert not (tmp_path / "corpus").exists()


def test_an_espeak_that_writes_nothing_is_one_sentence(tmp_path: Path, espeak_that) -> None:  # noqa: ANN001
    espeak_that("exit 0")
    with pytest.raises(MsaError, match="espeak-ng does not speak"):
        write_sample_corpus(tmp_path / "corpus", preset="tiny", recordings=3, version=1)


def test_espeak_is_asked_for_pitch_and_speed(tmp_path: Path, espeak_that) -> None:  # noqa: ANN001
    """A stand-in that takes 2.2 seconds at 160 words a minute, whatever it is asked, at 22.05 kHz."""
    stand_in = tmp_path / "tone.wav"
    with wave.open(str(stand_in), "wb") as file:
        file.setparams((1, 2, 22_050, 0, "NONE", ""))
        times = np.arange(round(2.2 * 22_050)) / 22_050
        file.writeframes((8000 * np.sin(2 * np.pi * 150 * times)).astype("<i2").tobytes())
    espeak_that(
        f'echo "$@" >> {tmp_path}/asked; cat >> {tmp_path}/asked; echo >> {tmp_path}/asked; cp {stand_in} "$8"'
    )
    samples = speak(["good", "movie"], Voice(101.0, 3.0, -26.0), np.random.default_rng(0), ESPEAK)
    first, said, second, _ = (tmp_path / "asked").read_text().splitlines()
    # The pitch of its own is asked for; 3 syllables shall take 1 second instead of 2.2: 160 times 2.2 words a minute.
    assert first.split()[:6] == ["-v", "en-us", "-p", "50", "-s", "160"]
    assert second.split()[:6] == ["-v", "en-us", "-p", "50", "-s", "352"]
    assert said == "good movie"
    heard = measure(samples, ["good", "movie"])
    assert heard.pitch == pytest.approx(150, rel=0.01)
    assert heard.energy == pytest.approx(-26, abs=0.1)
    assert len(samples) == pytest.approx((2.2 + 2 * speech.MARGIN_SECONDS) * 16_000, abs=100)
