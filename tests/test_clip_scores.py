"""Scores of many recordings: what the table holds, that it goes on where it was, and what each part of an utterance adds."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_msa import clip_scores
from hf_msa.clip_scores import explain, find_clips, score_clips, write_scores
from hf_msa.errors import MsaError
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.msa_feature_sets import Frames
from hf_msa.models.msa_pipeline import MsaPipeline
from hf_msa.pipelines import load_pipeline
from hf_msa.recordings.transcripts import Transcript, Word
from hf_msa_cli import main
from made_recordings import save_listener, write_sound, write_video

pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
pytest.importorskip("librosa", reason="librosa is not installed: pip install 'hf-msa[audio]'")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_listener(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipeline(model: str) -> MsaPipeline:
    return load_pipeline(model)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for number, height in enumerate((0.1, 0.3)):
        write_sound(tmp_path / "clips" / f"{number}.wav", channels=(height,))
    (tmp_path / "clips" / "bad.wav").write_bytes(b"RIFF and no more")
    (tmp_path / "clips" / "list.csv").write_text("path,id,text\n0.wav,a,great film\n1.wav,b,\nbad.wav,c,so\n")
    return tmp_path / "clips"


def test_each_recording_has_a_score_or_a_reason(pipeline: MsaPipeline, clips: Path) -> None:
    rows = list(score_clips(pipeline, find_clips([], str(clips / "list.csv")), batch_size=2))
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["score"] == pytest.approx(pipeline({"text": "great film", "audio": str(clips / "0.wav")})["score"])
    assert rows[1]["present"] == {"text": False, "audio": True, "vision": False}
    assert "cannot be read as sound or video" in rows[2]["error"] and "score" not in rows[2]


def test_what_is_heard_is_written_down_where_there_is_no_text(pipeline: MsaPipeline, clips: Path) -> None:
    heard = []

    def listen(waveform: np.ndarray) -> Transcript:
        heard.append(waveform)
        return Transcript("great film", (Word("great", 0.0, 0.4), Word("film", 0.4, 0.9)), "en")

    samples = np.full(8_000, 0.1, dtype=np.float32)
    given = [str(clips / "0.wav"), {"array": samples, "sampling_rate": 8_000}]
    found = [pipeline({"audio": audio}, transcriber=listen) for audio in given]
    assert [wave.shape for wave in heard] == [(16_000,), (16_000,)]
    assert found[0]["transcript"]["text"] == "great film" and found[0]["transcript"]["words"][1]["start"] == 0.4
    assert found[0]["score"] == pytest.approx(pipeline({"text": "great film", "audio": given[0]})["score"], abs=1e-6)
    assert "transcript" not in pipeline({"text": "so so", "audio": given[0]}, transcriber=listen) and len(heard) == 2


def test_a_video_needs_a_set_of_its_pictures(pipeline: MsaPipeline, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (row,) = score_clips(pipeline, find_clips([str(tmp_path / "a.mp4")], None))
    assert "Nothing says how the 7 vision features" in row["error"]


def test_openface_is_asked_for_what_it_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4")
    values = np.ones((4, 35), dtype=np.float32)
    asked: list[Any] = []

    def frames(features: Any, file: Path, start: float, end: float | None) -> Frames:
        asked.append((features.id, file.name, start, end))
        return Frames(values, np.arange(4) / 10, 5)

    monkeypatch.setattr(clip_scores, "has_openface", lambda: True)
    monkeypatch.setattr(clip_scores, "openface_frames", frames)
    (clip,) = find_clips([str(tmp_path / "a.mp4")], None)
    given = clip_scores.utterance(clip, MsaFeatureExtractor(vision_dim=35, vision_set="openface35@1"))
    assert given["vision"] is values and given["audio"].endswith("a.mp4") and "video" not in given
    assert asked == [("openface35@1", "a.mp4", 0.0, None)]
    assert "video" in clip_scores.utterance(clip, MsaFeatureExtractor(vision_dim=210, vision_set="face@1"))


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_the_table_holds_all_of_them(pipeline: MsaPipeline, clips: Path, tmp_path: Path, ending: str) -> None:
    listed, output = find_clips([], str(clips / "list.csv")), tmp_path / f"scores{ending}"
    written = write_scores(pipeline, listed, output, model="m")
    assert [(row["id"], "error" in row) for row in written] == [("a", False), ("b", False), ("c", True)]
    rows: list[dict[str, Any]]
    if ending == ".csv":
        with output.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    elif ending == ".jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        rows = pq.read_table(output).to_pylist()
    expected = list(score_clips(pipeline, listed))
    assert [row["id"] for row in rows] == ["a", "b", "c"] and rows[2]["error"] == expected[2]["error"]
    assert float(rows[0]["score"]) == pytest.approx(expected[0]["score"], abs=1e-6)
    assert not list(tmp_path.glob("*.parts"))


def test_it_goes_on_where_it_was(
    pipeline: MsaPipeline, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, output, seen = find_clips([], str(clips / "list.csv")), tmp_path / "scores.jsonl", []
    utterance = clip_scores.utterance

    def interrupted(clip: Any, extractor: Any) -> Any:
        seen.append(clip.id)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return utterance(clip, extractor)

    monkeypatch.setattr(clip_scores, "utterance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scores(pipeline, listed, output, model="m", batch_size=1)
    (part,) = tmp_path.glob("scores.jsonl.parts/*.jsonl")
    with part.open("a") as file:
        file.write('{"id": "b", "sco')
    write_scores(pipeline, listed, output, model="m", batch_size=1)
    assert seen == ["a", "b", "b", "c"] and len(output.read_text().splitlines()) == 3
    write_scores(pipeline, listed, output, model="another", batch_size=1)
    assert seen[4:] == ["a", "b", "c"]


def test_what_each_part_adds(pipeline: MsaPipeline, clips: Path) -> None:
    given = {"text": "great film", "audio": str(clips / "0.wav")}
    found = explain(pipeline, given)
    silent = pipeline({"text": "great film"})["score"]
    short = pipeline({"text": "film", "audio": str(clips / "0.wav")})["score"]
    assert found["score"] == pytest.approx(pipeline(given)["score"], abs=1e-6)
    assert found["modalities"].keys() == {"text", "audio"}
    assert found["modalities"]["audio"] == pytest.approx(found["score"] - silent, abs=1e-5)
    assert [word for word, _ in found["words"]] == ["great", "film"]
    assert found["words"][0][1] == pytest.approx(found["score"] - short, abs=1e-5)


class TestCommand:
    def test_one_utterance_with_its_figure(
        self, model: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("matplotlib")
        figure = tmp_path / "why.png"
        given = ["--text", "great film", "--audio", str(clips / "0.wav"), "--explain", str(figure)]
        assert main(["predict", model, *given]) == 0
        output = capsys.readouterr().out
        assert "score: " in output and "great" in output and figure.stat().st_size > 1000

    def test_many_recordings_on_the_screen_and_in_a_table(
        self, model: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["predict", model, str(clips)]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        assert [row["id"] for row in rows] == ["0", "1", "bad"] and np.isfinite(rows[0]["score"])
        given = ["--manifest", str(clips / "list.csv"), "--output", str(tmp_path / "a.csv")]
        assert main(["predict", model, *given]) == 0
        assert "Scored 2 of 3 recordings" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "There is nothing to score; give recordings, --text"),
            (["CLIPS", "--text", "x"], "--text is of a single utterance"),
            (["CLIPS", "--explain", "a.png"], "--explain is of a single utterance"),
            (["--text", "x", "--output", "a.csv"], "--output is for recordings"),
            (["CLIPS", "--output", "a.txt"], "must end in one of .csv, .jsonl, .parquet"),
            (["CLIPS", "CLIPS"], "Two recordings have the id '0'"),
            (["CLIPS", "--batch-size", "0"], "--batch-size is 0"),
            (["--text", "x", "--set", "rout=fast"], "rout"),
        ],
    )
    def test_what_cannot_be_is_one_sentence(
        self, model: str, clips: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["predict", model, *[str(clips) if one == "CLIPS" else one for one in arguments]]) != 0
        assert message in capsys.readouterr().err


def test_a_package_that_is_absent_ends_the_run_in_one_sentence(
    pipeline: MsaPipeline, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MsaError, match=r"pip install 'hf-msa\[video\]'"):
        list(score_clips(pipeline, find_clips([], str(clips / "list.csv"))))


def test_nothing_is_asked_of_who_cannot_be(clips: Path) -> None:
    with pytest.raises(MsaError, match="There is no list of recordings"):
        find_clips([str(clips / "none")], None)
