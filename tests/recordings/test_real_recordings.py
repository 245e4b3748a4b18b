"""Real clips, a real recogniser and a real face model: from recordings to a data set and to a score.

Read from the folders that the environment names, see CONTRIBUTING.md; skipped where it names none.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_msa.data.loading import load_msa
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis
from hf_msa.models.msa_feature_sets import FEATURE_SETS
from hf_msa.pipelines import load_pipeline
from hf_msa.recordings.extract import extract
from tiny import TINY_CONFIGS, tiny_processor

CLIPS = {"single_face.mp4": 0.0, "arctic_a0007.wav": 0.5, "mosi_03bSnISJMiM_1_stereo.wav": 1.5}


def optional(name: str, package: str) -> str:
    pytest.importorskip(package)
    if not os.environ.get(name):
        pytest.skip(f"{name} is not set")
    return os.environ[name]


@pytest.fixture
def clips(real_data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in CLIPS:
        shutil.copyfile(real_data / "media" / name, folder / name)
    lines = [f"{name},v_{place},{label}" for place, (name, label) in enumerate(CLIPS.items())]
    (folder / "list.csv").write_text("\n".join(["path,id,label", *lines]))
    return folder


def model_of(folder: Path, **sets: str) -> str:
    """An untrained model that reads these feature sets."""
    widths = {f"{name.partition('_')[0]}_dim": len(FEATURE_SETS[one].columns) for name, one in sets.items()}
    config = TINY_CONFIGS["tcmr"](**{"audio_dim": None, "vision_dim": None, **widths})
    processor = tiny_processor(config)
    for name, one in sets.items():
        setattr(processor.feature_extractor, name, FEATURE_SETS[one].id)
    TcmrForSentimentAnalysis(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["prosody", "librosa33", "logmel", "egemaps25"])
def test_a_data_set_and_a_pipeline_make_the_same_features(clips: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("av")
    pytest.importorskip("opensmile" if name == "egemaps25" else "librosa")
    extract(clips / "list.csv", tmp_path / "data", label_family="mosi", audio_set=name)
    pipeline = load_pipeline(model_of(tmp_path / "model", audio_set=name))
    for row, clip in zip(load_msa(tmp_path / "data")["train"], CLIPS, strict=True):
        values = np.array(row["audio"], dtype=np.float32)
        made = pipeline.preprocess({"audio": str(clips / clip)})["audio"]
        assert row["audio_present"] == (made is not None), clip
        if made is not None:
            assert np.array_equal(values, made) and np.isfinite(values).all(), clip
            scores = [pipeline({"audio": one})["score"] for one in (str(clips / clip), values)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_words_and_faces(clips: Path, tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "transcribe": optional("HF_MSA_WHISPER", "faster_whisper"),
        "face_model": optional("HF_MSA_FACE_MODEL", "mediapipe"),
    }
    extract(
        clips / "list.csv", tmp_path / "data", label_family="mosi", audio_set="librosa33", vision_set="face", **made
    )
    face, arctic, mosi = load_msa(tmp_path / "data")["train"]
    assert mosi["text"] == "Anyhow, it was really good." and not mosi["vision_present"]
    assert "superlative degree" in arctic["text"]
    assert [word["text"] for word in mosi["words"]] == "Anyhow, it was really good.".split()
    times = [time for word in mosi["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= 3.4
    assert face["vision_present"] and len(face["vision"]) >= 13 and not face["text"]
    pipeline = load_pipeline(
        model_of(tmp_path / "model", audio_set="librosa33", vision_set="face"), face_model=made["face_model"]
    )
    found = pipeline({"video": str(clips / "single_face.mp4"), "text": "so so"})
    assert found["present"] == {"text": True, "audio": True, "vision": True} and np.isfinite(found["score"])
    row = pipeline.preprocess({"video": str(clips / "single_face.mp4")}, face_model=made["face_model"])
    assert row["looked_at"]["vision"] == 24 and len(row["vision"]) / 24 > 40 / 72
