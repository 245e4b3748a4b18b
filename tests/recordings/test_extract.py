"""From clips to a data set: what is in it, what is listed as wrong, and that it goes on where it was."""

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_msa.data.feature_files import FeatureTable
from hf_msa.data.loading import dataset_facts, load_msa
from hf_msa.data.prepare import prepare_dataset
from hf_msa.errors import MsaError
from hf_msa.models.msa_feature_sets import find_feature_set, recorded_frames
from hf_msa.models.msa_openface import OPENFACE_AU_COLUMNS, FaceReport
from hf_msa.recordings import extract as extraction
from hf_msa.recordings.dataset_clips import is_dataset
from hf_msa.recordings.extract import extract
from hf_msa.recordings.manifest import Clip, read_manifest
from hf_msa.recordings.transcripts import Transcript, Word
from hf_msa_cli import main
from made_recordings import write_sound, write_video

pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
pytest.importorskip("librosa", reason="librosa is not installed: pip install 'hf-msa[audio]'")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two videos in sound, one clip without it, one that is damaged."""
    folder = tmp_path / "clips"
    for video, height in (("v", 0.2), ("w", 0.4)):
        write_sound(folder / video / "1.wav", channels=(height,))
    write_video(folder / "w" / "2.mp4", seconds=1, sound=None)
    (folder / "w" / "3.wav").write_bytes(b"RIFF and no more")
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("path", "text", "label", "split"),
                ("v/1.wav", "good", 1.5, "train"),
                ("w/1.wav", "bad", -1, "valid"),
                ("w/2.mp4", "so so", 0, "test"),
                ("w/3.wav", "lost", 0, "test"),
                ("w/none.wav", "gone", 0, "test"),
            ]
        )
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_rows_hold_what_the_recordings_give(clips: Path, tmp_path: Path) -> None:
    made = extract(clips / "list.csv", tmp_path / "out", label_family="mosi", audio_set="prosody")
    assert set(made.failed) == {"w$_$3", "w$_$none"} and made.without == {"text": 0, "audio": 1}
    assert "The clips last 1.0 to 1.0 s, 0.0 minutes together." in made.report.notes
    data = load_msa(tmp_path / "out")
    assert {split: rows["id"] for split, rows in data.items()} == {
        "train": ["v$_$1"],
        "validation": ["w$_$1"],
        "test": ["w$_$2"],
    }
    expected = recorded_frames(find_feature_set("prosody"), clips / "v" / "1.wav")
    assert expected is not None
    assert np.array_equal(np.array(data["train"][0]["audio"], dtype=np.float32), expected.values)
    assert data["train"][0]["text"] == "good" and data["train"][0]["label"] == 1.5
    assert not data["test"][0]["audio_present"]
    facts = dataset_facts(tmp_path / "out")
    assert (facts.audio_set, facts.vision_set) == ("prosody@1", None)
    assert facts.audio_features is not None and facts.audio_features[0] == "pitch"
    with (tmp_path / "out" / "errors.csv").open(newline="") as file:
        errors = {row["path"]: row["error"] for row in csv.DictReader(file)}
    assert "cannot be read as sound or video" in errors["w/3.wav"] and "No such file" in errors["w/none.wav"]
    assert not list(tmp_path.glob("out.parts"))
    with (tmp_path / "out" / "features.csv").open(newline="") as file:
        pitch = next(csv.DictReader(file))
    frames = np.concatenate([np.array(row["audio"])[:, 0] for split in ("train", "validation") for row in data[split]])
    assert (pitch["modality"], pitch["feature"], int(pitch["frames"])) == ("audio", "pitch", len(frames))
    found = [float(pitch[name]) for name in ("mean", "std", "lowest", "highest")]
    assert found == pytest.approx([frames.mean(), frames.std(), frames.min(), frames.max()], rel=1e-4)


def test_a_data_set_of_it_names_the_same_sets(clips: Path, tmp_path: Path) -> None:
    extract(clips / "list.csv", tmp_path / "out", label_family="mosi", audio_set="prosody")
    prepare_dataset("custom", tmp_path / "out", tmp_path / "again", label_family="mosi")
    assert dataset_facts(tmp_path / "again").audio_set == "prosody@1"


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_processes(clips: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        extract(clips / "list.csv", tmp_path / str(workers), label_family="mosi", audio_set="prosody", workers=workers)
    one, two = digests(tmp_path / "1"), digests(tmp_path / "2")
    assert one == two and len(one) >= 5


def test_it_goes_on_where_it_was(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    make = extraction.make_clip

    def interrupted(clip: Any, settings: Any) -> Any:
        seen.append(clip.id)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return make(clip, settings)

    monkeypatch.setattr(extraction, "make_clip", interrupted)
    arguments: dict[str, Any] = {"label_family": "mosi", "audio_set": "prosody"}
    with pytest.raises(KeyboardInterrupt):
        extract(clips / "list.csv", tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
    extract(clips / "list.csv", tmp_path / "out", **arguments)
    assert seen[:3] == ["v$_$1", "w$_$1", "w$_$1"], "the first one is not made twice"
    monkeypatch.undo()
    extract(clips / "list.csv", tmp_path / "whole", **arguments)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_transcripts_are_written_and_features_aligned_to_their_words(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen(waveform: np.ndarray) -> Transcript:
        assert waveform.shape == (16_000,)
        return Transcript("so good", (Word("so", 0.0, 0.5, None), Word("good", 0.5, 1.0, None)), "en")

    monkeypatch.setattr(extraction, "_transcriber", lambda model, language: listen)
    (clips / "wordless.csv").write_text("path,text,label\nv/1.wav,,1\nw/1.wav,bad,-1\n")
    arguments: dict[str, Any] = {"label_family": "mosi", "audio_set": "prosody", "transcribe": "fake"}
    extract(clips / "wordless.csv", tmp_path / "out", **arguments)
    rows = load_msa(tmp_path / "out")["train"]
    assert rows["text"] == ["so good", "bad"] and not dataset_facts(tmp_path / "out").aligned
    spoken = [{"text": "so", "start": 0.0, "end": 0.5}, {"text": "good", "start": 0.5, "end": 1.0}]
    assert list(rows["words"]) == [spoken, []], "nothing tells the times of the words that the list gives"
    prepare_dataset("custom", tmp_path / "out", tmp_path / "again", label_family="mosi")
    assert list(load_msa(tmp_path / "again")["train"]["words"]) == [spoken, []]
    extract(clips / "wordless.csv", tmp_path / "aligned", align=True, **arguments)
    aligned = load_msa(tmp_path / "aligned")["train"]
    assert aligned["text"] == ["so good", "so good"] and dataset_facts(tmp_path / "aligned").aligned
    frames = np.array(rows[0]["audio"], dtype=np.float32)
    expected = [frames[:50].mean(axis=0), frames[50:100].mean(axis=0)]
    assert np.allclose(aligned[0]["audio"], expected, atol=1e-4) and np.shape(aligned[0]["audio"]) == (2, 5)


def data_set(clips: Path, **more: Any) -> datasets.Dataset:
    rows = {"sound": [str(clips / "v" / "1.wav"), str(clips / "w" / "1.wav")], "sentiment": [1.5, -1.0], **more}
    return datasets.Dataset.from_dict({**rows, "text": ["good", "bad"]}).cast_column(
        "sound", datasets.Audio(decode=False)
    )


def embedded(rows: datasets.Dataset) -> datasets.Dataset:
    return rows.map(lambda row: {"sound": {"bytes": Path(row["sound"]["path"]).read_bytes(), "path": "a b.wav"}})


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_data_set_with_recordings_in_it_is_a_list_of_clips(clips: Path, tmp_path: Path, form: str) -> None:
    splits = {"train": embedded(data_set(clips, id=["v$_$1", "w$_$1"]))}
    splits["test"] = embedded(data_set(clips, id=["x$_$1", "x$_$2"]))
    if form == "saved":
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    else:
        for split, rows in splits.items():
            rows.to_parquet(tmp_path / "set" / f"{split}.parquet")
    workers = 2 if form == "saved" else 1
    extract(tmp_path / "set", tmp_path / "out", label_family="mosi", audio_set="prosody", workers=workers)
    data = load_msa(tmp_path / "out")
    assert data["train"]["id"] == ["v$_$1", "w$_$1"] and data["test"]["id"] == ["x$_$1", "x$_$2"]
    assert data["train"]["label"] == [1.5, -1.0] and data["train"]["text"] == ["good", "bad"]
    expected = recorded_frames(find_feature_set("prosody"), clips / "v" / "1.wav")
    assert expected is not None and np.array_equal(np.array(data["test"][0]["audio"], np.float32), expected.values)


def test_clips_beside_a_table_of_scores_are_no_data_set(clips: Path) -> None:
    data_set(clips).to_parquet(clips / "scores.parquet")
    assert not is_dataset(clips) and len(read_manifest(clips)) == 4
    data_set(clips).to_parquet(clips / "train.parquet")
    assert is_dataset(clips)


def test_a_damaged_recording_in_a_data_set_is_listed_by_its_name(clips: Path, tmp_path: Path) -> None:
    rows = embedded(data_set(clips, id=["a", "b"])).map(
        lambda row, place: {"sound": {"bytes": b"RIFF" if place else row["sound"]["bytes"], "path": f"{place}.wav"}},
        with_indices=True,
    )
    rows.save_to_disk(tmp_path / "set")
    made = extract(tmp_path / "set", tmp_path / "out", label_family="mosi", audio_set="prosody")
    assert list(made.failed) == ["b"] and made.failed["b"].startswith("1.wav ")


def test_files_that_a_data_set_names_lie_within_it(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(data_set(clips, id=["a", "b"]).data.table, tmp_path / "set" / "train.parquet")
    with pytest.raises(MsaError, match="None of the 2 recordings could be read; the first one: .*leads out of the"):
        extract(tmp_path / "set", tmp_path / "out", label_family="mosi", audio_set="prosody")
    shutil.copytree(clips, tmp_path / "set" / "clips")
    inside = data_set(tmp_path / "set" / "clips", id=["a", "b"])
    pq.write_table(inside.data.table, tmp_path / "set" / "train.parquet")
    assert not extract(tmp_path / "set", tmp_path / "out", label_family="mosi", audio_set="prosody").failed


@pytest.mark.parametrize("where", ["state.json", "dataset_dict.json", "link"])
def test_a_saved_data_set_reads_no_file_outside_of_it(clips: Path, tmp_path: Path, where: str) -> None:
    rows = embedded(data_set(clips, id=["a", "b"]))
    rows.save_to_disk(tmp_path / "outside")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "set")
    (arrow,) = (tmp_path / "set" / "train").glob("*.arrow")
    if where == "link":
        arrow.unlink()
        arrow.symlink_to(tmp_path / "outside" / arrow.name)
    elif where == "state.json":
        state = json.loads((tmp_path / "set" / "train" / "state.json").read_text())
        state["_data_files"][0]["filename"] = f"../../outside/{arrow.name}"
        (tmp_path / "set" / "train" / "state.json").write_text(json.dumps(state))
    else:
        (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["../outside"]}))
    with pytest.raises(MsaError, match="leads out of the folder"):
        extract(tmp_path / "set", tmp_path / "out", label_family="mosi", audio_set="prosody")


def test_of_what_a_recording_lacks_that_is_named_which_was_asked_for(tmp_path: Path) -> None:
    clip = Clip("a", write_video(tmp_path / "a.mp4", seconds=1.0, sound=None), tmp_path)
    with pytest.raises(MsaError, match="holds nothing of what is asked for: no sound.$"):
        extraction.make_clip(clip, extraction.Settings(audio_set="prosody@1"))


def test_a_data_set_needs_recordings_and_scores(clips: Path, tmp_path: Path) -> None:
    rows = embedded(data_set(clips, id=["a", "b"]))
    rows.remove_columns("sound").save_to_disk(tmp_path / "silent")
    with pytest.raises(MsaError, match="no column of sound or video; it has 'sentiment', 'id', 'text'"):
        extract(tmp_path / "silent", tmp_path / "out", label_family="mosi", audio_set="prosody")
    classes = datasets.ClassLabel(names=["negative", "positive"])
    labels = rows.remove_columns("sentiment").add_column("label", [1, 0]).cast_column("label", classes)
    labels.save_to_disk(tmp_path / "classes")
    with pytest.raises(MsaError, match="are classes .*'negative', 'positive'.*, and scores are needed"):
        extract(tmp_path / "classes", tmp_path / "out", label_family="mosi", audio_set="prosody")
    (tmp_path / "silent" / "state.json").write_text("{")
    with pytest.raises(MsaError, match="cannot be loaded"):
        extract(tmp_path / "silent", tmp_path / "out2", label_family="mosi", audio_set="prosody")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"align": True}, "To align features to words needs a feature set and --transcribe"),
        ({"audio_set": None}, "Nothing is to be made of the recordings"),
        ({"audio_set": "prosodi"}, "did you mean 'prosody'"),
        ({"vision_set": "prosody"}, "There is no vision feature set 'prosody'"),
        (
            {"vision_set": "openface35"},
            "'openface35@1' is made by OpenFace 2, whose program FeatureExtraction is not on the PATH",
        ),
        ({"label_family": "none"}, "none"),
    ],
)
def test_wrong_arguments_are_one_sentence(clips: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"label_family": "mosi", "audio_set": "prosody", **changes}
    with pytest.raises(MsaError, match=message):
        extract(clips / "list.csv", tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.parts").exists()


def test_labels_are_needed_and_a_clip_that_can_be_read(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(MsaError, match="'v.*1' has no label; give a list with a column label"):
        extract(clips, tmp_path / "out", label_family="mosi", audio_set="prosody")
    (clips / "bad.csv").write_text("path,label\nw/3.wav,1\n")
    with pytest.raises(MsaError, match="None of the 1 recordings could be read; the first one: .*3.wav"):
        extract(clips / "bad.csv", tmp_path / "out", label_family="mosi", audio_set="prosody")


def test_the_command_says_what_was_made(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["extract", str(clips / "list.csv"), "--output", str(tmp_path / "out"), "--label-family", "mosi"]
    assert main([*given, "--audio-set", "prosody"]) == 0
    output = capsys.readouterr().out
    assert "Could not be read: 2 clips" in output and "Prepared data set:" in output


def test_openface_gives_the_columns_of_a_set_for_the_part(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (*OPENFACE_AU_COLUMNS[::-1], "gaze_0_x")
    values = np.arange(5 * len(names), dtype=np.float32).reshape(5, -1)
    table = FeatureTable(values, names, np.array([0.0, 0.1, 0.2, 0.5, 0.6]), FaceReport(5, 5, 1))
    monkeypatch.setattr(extraction, "has_openface", lambda: True)
    monkeypatch.setattr("hf_msa.recordings.openface.openface_table", lambda file: table)
    (clips / "parts.csv").write_text("path,label,start,end\nw/2.mp4,1,0.1,0.6\nw/2.mp4,1,5,6\n")
    made = extract(clips / "parts.csv", tmp_path / "out", label_family="mosi", vision_set="openface35")
    (row,) = load_msa(tmp_path / "out")["train"]
    assert np.array_equal(np.array(row["vision"]), values[1:4, 34::-1]) and len(made.failed) == 1
    assert "The face that was followed is in 60% of the pictures." in made.report.notes
    assert dataset_facts(tmp_path / "out").vision_set == "openface35@1"
