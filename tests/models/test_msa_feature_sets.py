"""Feature sets: found by name and version, and made of whatever holds a recording, through the processor as well."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from transformers import AutoProcessor

from hf_msa.models import msa_feature_sets
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.msa_feature_sets import (
    PICTURES,
    TABLE,
    FeatureSet,
    find_feature_set,
    recorded_frames,
    sound_features,
)
from hf_msa.models.processing_msa import MsaProcessor
from made_recordings import write_sound, write_video
from tiny import tiny_processor, tiny_text_config

pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
RATE = 8_000


def loudness(waveform: np.ndarray) -> np.ndarray:
    """Mean and peak of every tenth of a second."""
    blocks = np.abs(waveform[: len(waveform) // 800 * 800].reshape(-1, 800))
    return np.stack([blocks.mean(axis=1), blocks.max(axis=1)], axis=1)


def brightness(pictures: Iterator[tuple[float, np.ndarray]], face_model: str | None = None) -> Any:
    """Mean of each picture that is not black, and when it was taken."""
    found = [(time, picture.mean()) for time, picture in pictures if picture.mean() > 4]
    table = np.array([[mean, 1.0, 0.0] for _, mean in found], dtype=np.float32).reshape(-1, 3)
    return table, [time for time, _ in found]


@pytest.fixture(autouse=True)
def sets(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        FeatureSet("loudness", 2, "audio", ("mean", "peak"), rate=RATE, compute=loudness),
        FeatureSet("brightness", 1, "vision", ("mean", "one", "zero"), PICTURES, rate=10, compute=brightness),
        FeatureSet("openface", 1, "vision", ("AU01_r",), TABLE),
    ]
    monkeypatch.setattr(msa_feature_sets, "FEATURE_SETS", {one.name: one for one in made})


@pytest.fixture
def processor() -> MsaProcessor:
    made = tiny_processor(tiny_text_config())
    made.feature_extractor = MsaFeatureExtractor(
        audio_dim=2, vision_dim=3, audio_set="loudness@2", vision_set="brightness@1"
    )
    return made


class TestNames:
    def test_by_name_and_by_version(self) -> None:
        assert find_feature_set("loudness").id == find_feature_set("loudness@2", "audio").id == "loudness@2"

    @pytest.mark.parametrize(
        ("name", "modality", "message"),
        [
            ("loudnes", None, "There is no feature set 'loudnes'; did you mean 'loudness'?"),
            ("loudness", "vision", "There is no vision feature set 'loudness'; there are brightness, openface."),
            ("loudness@1", None, "'loudness@1' is asked for, but this version of hf_msa makes 'loudness@2'"),
        ],
    )
    def test_others_are_refused(self, name: str, modality: str | None, message: str) -> None:
        with pytest.raises(ValueError) as error:
            find_feature_set(name, modality)
        assert message in str(error.value)


class TestWaveforms:
    def test_whole_numbers_and_other_rates(self) -> None:
        half = np.full(4_000, 2**14, dtype=np.int16)
        assert sound_features(find_feature_set("loudness"), half, RATE).tolist() == [[0.5, 0.5]] * 5
        assert sound_features(find_feature_set("loudness"), half[:, None], RATE).tolist() == [[0.5, 0.5]] * 5
        assert sound_features(find_feature_set("loudness"), half, 2 * RATE).shape == (2, 2)

    @pytest.mark.parametrize(
        "waveform", [np.zeros(0), np.zeros((2, 9)), np.array(["a"]), np.array([0.1, np.nan], dtype=np.float32)]
    )
    def test_what_is_no_waveform_is_refused(self, waveform: np.ndarray) -> None:
        with pytest.raises(ValueError, match="A waveform has shape|holds values that are no numbers"):
            sound_features(find_feature_set("loudness"), waveform, RATE)

    def test_a_set_that_others_make_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="'openface@1' is not made from pictures, but by another program"):
            recorded_frames(find_feature_set("openface"), write_video(tmp_path / "a.mp4"))


class TestProcessor:
    def test_however_a_recording_is_given_the_features_are_the_same(
        self, processor: MsaProcessor, tmp_path: Path
    ) -> None:
        values = np.random.default_rng(0).uniform(-1, 1, 4_000).astype(np.float32)
        file = tmp_path / "a.wav"
        soundfile.write(file, values, RATE, subtype="FLOAT")
        expected = loudness(values)
        ways = {
            "features": expected,
            "path": str(file),
            "content": file.read_bytes(),
            "datasets": {"array": values, "sampling_rate": RATE},
            "datasets, not decoded": {"bytes": None, "path": str(file)},
        }
        for way, audio in ways.items():
            inputs = processor(["good", "bad"], audio=[audio, None])
            assert np.allclose(inputs["audio_values"][0, :5].numpy(), expected, atol=1e-6), way
            assert inputs["audio_attention_mask"][0].sum() == 5
        for audio in (values, [values]):
            inputs = processor("good", audio=audio, sampling_rate=RATE)
            assert np.allclose(inputs["audio_values"][0].numpy(), expected, atol=1e-6)

    def test_a_video_gives_both(self, processor: MsaProcessor, tmp_path: Path) -> None:
        file = write_video(tmp_path / "a.mp4", seconds=2)
        inputs = processor("good", video=file)
        # Twenty pictures, the first of which is black.
        assert inputs["vision_attention_mask"].sum() == 19 and inputs["audio_attention_mask"].sum() in (20, 21)
        assert np.diff(inputs["vision_values"][0, :, 0].numpy()).min() > 0
        mine = processor("good", video=file, audio=np.ones((4, 2), np.float32))
        assert mine["audio_values"].tolist() == np.ones((1, 4, 2)).tolist()
        pictures = np.stack([np.full((4, 6, 3), level, np.uint8) for level in (0, 50, 100)])
        taken = processor("good", video=pictures, frames_per_second=5)
        assert taken["vision_values"][0, :2, 0].tolist() == [50, 100]

    def test_a_track_that_is_not_there_is_a_missing_modality(self, processor: MsaProcessor, tmp_path: Path) -> None:
        silent = processor("good", video=write_video(tmp_path / "a.mp4", sound=None))
        without = processor("good", audio=None, vision=[silent["vision_values"][0].numpy()])
        assert silent["audio_missing_mask"].all() and without["audio_missing_mask"].all()
        heard = processor("good", video=write_sound(tmp_path / "a.wav"))
        assert heard["vision_missing_mask"].all() and not heard["audio_missing_mask"].any()

    def test_sets_are_saved_and_those_of_others_refused(self, processor: MsaProcessor, tmp_path: Path) -> None:
        processor.save_pretrained(tmp_path / "p")
        again = AutoProcessor.from_pretrained(tmp_path / "p")
        assert (again.feature_extractor.audio_set, again.feature_extractor.vision_set) == (
            "loudness@2",
            "brightness@1",
        )
        again.feature_extractor.audio_set = None
        with pytest.raises(ValueError, match="Nothing says how the 2 audio features of this checkpoint were made"):
            again("good", audio=str(write_sound(tmp_path / "a.wav")))
        again.feature_extractor.audio_set = "loudness@1"
        with pytest.raises(ValueError, match="'loudness@1' is asked for, but .* 'loudness@2'"):
            again("good", audio=str(tmp_path / "a.wav"))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                {"audio": np.zeros(9)},
                "Audio of one axis is a waveform, of None samples per second; pass sampling_rate",
            ),
            ({"audio": {"samples": 1}}, "A recording has samples; give array and sampling_rate, bytes or path"),
            ({"audio": "none.wav"}, "none.wav cannot be read as sound or video: No such file"),
            ({"video": np.zeros((2, 4, 4, 3), np.uint8)}, "pass frames_per_second"),
            ({"audio": ["a.wav", "b.wav"]}, "There are 1 texts but 2 audio sequences"),
        ],
    )
    def test_what_cannot_be_read_is_one_sentence(self, processor: MsaProcessor, given: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            processor("good", **given)

    def test_what_holds_anything_else_is_never_run(self, processor: MsaProcessor) -> None:
        with pytest.raises(ValueError, match="The recording cannot be read as sound or video"):
            processor("good", audio=pickle.dumps([1]))
        content = io.BytesIO()
        np.save(content, np.zeros(9))
        with pytest.raises(ValueError, match="The recording cannot be read as sound or video"):
            processor("good", audio=content.getvalue())
