import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_msa.data import load_msa, prepare_dataset
from hf_msa.data.sources import open_source
from hf_msa.errors import MsaError
from nonempty import some

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'hf-msa[csd]'")

FOLDS = {"train": ["one", "two"], "valid": ["three"], "test": ["absent"]}


def write_csd(
    file: Path, name: str, videos: dict[str, tuple[Any, Any]], metadata: dict[str, Any] | None = None
) -> None:
    """A file as the SDK writes it: per video features and intervals, and metadata in JSON."""
    with h5py.File(file, "w") as written:
        root = written.create_group(name)
        data = root.create_group("data")
        for video, (features, intervals) in videos.items():
            data.create_group(video).create_dataset("features", data=features)
            data[video].create_dataset("intervals", data=np.array(intervals, float))
        kept = root.create_group("metadata")
        for key, value in (metadata or {}).items():
            kept.create_dataset(key, (1,), dtype=h5py.string_dtype())
            kept[key][0] = json.dumps(value)


def words(*texts: str) -> np.ndarray:
    return np.array([[text.encode()] for text in texts], "S16")


# Video one: two samples, 0 to 2 s and 2 to 4 s. Words at 0-1, (a pause), 1.5-2, 2-3.
# Audio has a frame every half second, (i, 10 i) for frame i; its last ones are not there.
ONE_AUDIO = (np.array([[i, 10.0 * i] for i in range(6)]), [[i / 2, i / 2 + 0.5] for i in range(6)])


def write_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_csd(
        folder / "CMU_MOSI_Opinion_Labels.csd",
        "Opinion Segment Labels",
        {
            "one": ([[2.5], [-1.0]], [[0, 2], [2, 4]]),
            "two": ([[0.5, 1, 0, 0, 0, 0, 0][:1]], [[0, 1]]),
            "three": ([[1.0]], [[0, 1]]),
            "four": ([[1.0]], [[0, 1]]),
        },
    )
    write_csd(
        folder / "CMU_MOSI_TimestampedWords.csd",
        "words",
        {
            "one": (words("it", "sp", "was", "good"), [[0, 1], [1, 1.5], [1.5, 2], [2, 3]]),
            "three": (words("café"), [[0, 1]]),
        },
    )
    write_csd(
        folder / "CMU_MOSI_COVAREP.csd",
        "COVAREP",
        {"one": ONE_AUDIO, "three": (np.array([[-math.inf, 4.0], [2.0, 8.0]]), [[0, 0.5], [0.5, 1]])},
        {"dimension names": ["f0", "energy"], "version": 1},
    )
    write_csd(
        folder / "CMU_MOSI_TimestampedWordVectors.csd", "glove_vectors", {"one": (np.ones((4, 3)), np.ones((4, 2)))}
    )
    (folder / "folds.json").write_text(json.dumps(FOLDS))
    return folder


def test_rows_are_aligned_to_the_words(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path))
    assert (source.splits, source.aligned, source.widths) == (["train", "validation"], True, {"audio": 2})
    assert source.feature_names == {"audio": ("f0", "energy")}
    assert [source.count(split) for split in source.splits] == [3, 1]
    first, second, third = source.rows("train")
    assert [(row["id"], row["video_id"], row["clip_id"]) for row in (first, second, third)] == [
        ("one[0]", "one", "0"),
        ("one[1]", "one", "1"),
        ("two[0]", "two", "0"),
    ]
    # The pause is no word. "it" has the frames with middles .25 and .75; "was" that at 1.75.
    assert (first["text"], first["label"]) == ("it was", 2.5)
    assert first["audio"].tolist() == [[0.5, 5], [3, 30]]
    # Frames at 2.25 and 2.75.
    assert (second["text"], second["label"]) == ("good", -1.0)
    assert second["audio"].tolist() == [[4.5, 45]]
    # No word and no sound.
    assert (third["text"], third["audio_present"], third["audio"].tolist()) == ("", False, [[0, 0]])


def test_a_video_without_a_label_and_an_interval_that_runs_back(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    with h5py.File(folder / "CMU_MOSI_Opinion_Labels.csd", "a") as file:
        for name, shape in {"features": (0, 1), "intervals": (0, 2)}.items():
            del file["Opinion Segment Labels/data/two"][name]
            file["Opinion Segment Labels/data/two"].create_dataset(name, shape, "f8")
    assert [row["id"] for row in open_source(folder).rows("train")] == ["one[0]", "one[1]"]
    write_csd(folder / "CMU_MOSI_TimestampedWords.csd", "words", {"one": (words("it"), [[1, 0]])})
    with pytest.raises(MsaError, match="'one' of .*COVAREP.csd: Intervals to align to are start and end"):
        list(open_source(folder).rows("train"))


def test_what_is_not_finite_counts_as_zero_and_is_told(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path))
    list(source.rows("train"))
    (row,) = source.rows("validation")
    assert (row["text"], row["audio"].tolist(), row["audio_present"]) == ("café", [[1, 6]], True)
    assert source.notes == [
        "No column is made of 'CMU_MOSI_TimestampedWordVectors.csd', which was left out.",
        "1 videos are in no fold and were left out: 'four'.",
        "1 videos of the folds have no label: 'absent'.",
        "1 samples have no word; each has one frame, the mean of all its frames.",
        "1 values of the frames are NaN or infinite; they count as 0 in the means.",
    ]


def test_words_without_a_frame_are_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    # A face in the first half second only.
    write_csd(folder / "CMU_MOSI_Visual_Facet_42.csd", "FACET_4.2", {"one": ([[7.0], [9.0]], [[0, 0.2], [0.2, 0.4]])})
    source = open_source(folder)
    first, second, _ = source.rows("train")
    assert (first["vision"].tolist(), first["vision_present"]) == ([[8], [0]], True)
    assert (second["vision"].tolist(), second["vision_present"]) == ([[0]], False)
    list(source.rows("validation"))
    assert source.notes[-1] == "1 words have no vision frame where others of their sample have; it is 0."


def test_prepare_and_load(tmp_path: Path) -> None:
    report = prepare_dataset("mosi", write_folder(tmp_path / "sdk"), tmp_path / "out")
    assert "NaN or infinite" in report.markdown()
    rows = load_msa(str(tmp_path / "out"), "train")
    assert rows["label"] == [2.5, -1.0, 0.5] and rows[0]["text"] == "it was"
    np.testing.assert_array_equal(rows[0]["audio"], [[0.5, 5], [3, 30]])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "made from: CMU-MultimodalSDK" in card and "are aligned to the words" in card


def test_the_first_of_several_labels_is_the_sentiment(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    write_csd(folder / "CMU_MOSI_Opinion_Labels.csd", "All Labels", {"one": ([[1.5, 0, 3, 0, 0, 0, 0]], [[0, 2]])})
    assert [row["label"] for row in open_source(folder).rows("train")] == [1.5]


def test_files_that_the_sdk_has_aligned(tmp_path: Path) -> None:
    """Their keys are segments, with the times of the video."""
    span = [[2, 4]]
    write_csd(tmp_path / "Opinion Segment Labels.csd", "Opinion Segment Labels", {"one[1]": ([[-1.0]], span)})
    write_csd(tmp_path / "words.csd", "words", {"one[1]": (words("good"), [[2, 3]])})
    write_csd(tmp_path / "COVAREP.csd", "COVAREP", {"one[1]": ([[4.5]], [[2, 3]])})
    (tmp_path / "folds.json").write_text(json.dumps(FOLDS))
    (row,) = open_source(tmp_path).rows("train")
    assert (row["id"], row["video_id"], row["clip_id"], row["text"]) == ("one[1]", "one", "1", "good")
    assert row["audio"].tolist() == [[4.5]]


def test_words_as_texts_of_any_length_and_frames_in_any_order(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    values, spans = ONE_AUDIO
    backwards = (values[::-1].astype("f2"), spans[::-1])
    write_csd(folder / "CMU_MOSI_COVAREP.csd", "COVAREP", {"one": backwards})
    with h5py.File(folder / "CMU_MOSI_TimestampedWords.csd", "a") as file:
        del file["words/data/one/features"]
        texts = np.array(["it", "sp", "was", "good"], object)
        file["words/data/one"].create_dataset("features", data=texts, dtype=h5py.string_dtype())
    first, *_ = open_source(folder).rows("train")
    assert (first["text"], first["audio"].tolist()) == ("it was", [[0.5, 5], [3, 30]])


class TestFolds:
    def test_the_sdks_python_file_is_read_and_not_run(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path)
        (folder / "folds.json").unlink()
        (folder / "cmu_mosi_std_folds.py").write_text(
            '"""Folds."""\n'
            "import os\n"
            f"open({str(tmp_path / 'canary')!r}, 'w')\n"
            "standard_train_fold=['one','two']\n"
            "standard_valid_fold=['three']\n"
            "standard_test_fold=[]\n"
        )
        source = open_source(folder)
        assert [source.count(split) for split in some(source.splits)] == [3, 1]
        assert not (tmp_path / "canary").exists()

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("folds.json", "{", "is no list of folds"),
            ("folds.json", "[" * 100_000, "is no list of folds"),
            ("folds.json", "[]", "write an object"),
            ("folds.json", '{"train": "one"}', "no list of videos for 'train'"),
            ("folds.json", '{"train": [1]}', "no list of videos for 'train'"),
            ("folds.json", '{"later": ["one"]}', "the split 'later'"),
            ("folds.json", '{"train": ["one"], "test": ["one"]}', "'one' in train and in test"),
            ("folds.json", '{"train": ["other"]}', "No video of"),
            ("folds.json", " " * (1 << 22) + "{}", "too long"),
            ("folds.py", "standard_train_fold = [", "is no list of folds"),
            ("folds.py", "standard_train_fold = list('one')", "is no list of folds"),
            ("folds.py", "x = " + "(" * 5000, "is no list of folds"),
        ],
    )
    def test_others_are_refused(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        folder = write_folder(tmp_path)
        (folder / "folds.json").unlink()
        (folder / name).write_text(text)
        with pytest.raises(MsaError, match=message):
            open_source(folder)

    def test_there_must_be_one(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path)
        (folder / "more.py").write_text("")
        with pytest.raises(MsaError, match="holds 'folds.json', 'more.py'; put one beside"):
            open_source(folder)
        (folder / "folds.json").unlink()
        (folder / "more.py").unlink()
        with pytest.raises(MsaError, match="holds no list of folds; put one beside"):
            open_source(folder)


class TestWhichFile:
    def test_labels_and_words_must_be_there(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path)
        (folder / "CMU_MOSI_TimestampedWords.csd").unlink()
        with pytest.raises(MsaError, match="has no .csd file with words; its files are 'CMU_MOSI_COVAREP.csd'"):
            open_source(folder)

    def test_two_of_a_kind(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path)
        write_csd(folder / "CMU_MOSI_openSMILE_IS09.csd", "OpenSMILE", {"one": ([[1.0]], [[0, 1]])})
        with pytest.raises(MsaError, match="both hold the audio; leave one"):
            open_source(folder)

    def test_one_file_alone(self, tmp_path: Path) -> None:
        with pytest.raises(MsaError, match="give the folder"):
            open_source(write_folder(tmp_path) / "CMU_MOSI_COVAREP.csd")

    def test_without_h5py(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = write_folder(tmp_path)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MsaError, match=r"pip install 'hf-msa\[csd\]'"):
            open_source(folder)


def replace(path: str, make: Callable[[Any, str], Any]) -> Callable[[Path], None]:
    """Put something else in the place of an array."""

    def change(file: Path) -> None:
        with h5py.File(file, "a") as opened:
            del opened[path]
            make(opened, path)

    return change


def external_array(opened: Any, path: str) -> None:
    opened.create_dataset(path, (6, 2), "f8", external=[("secret.bin", 0, 96)])


def virtual_array(opened: Any, path: str) -> None:
    layout = h5py.VirtualLayout((6, 2), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (6, 2))
    opened.create_virtual_dataset(path, layout)


AUDIO = "COVAREP/data/one/features"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_bytes(b"no HDF5"), "damaged or no .csd file"),
        (lambda file: file.write_bytes(file.read_bytes()[:1500]), "damaged or no .csd file"),
        (lambda file: h5py.File(file, "w").close(), "holds one sequence"),
        (replace("COVAREP/data", lambda file, path: file.create_group(path)), "holds no video"),
        (replace("COVAREP/data", lambda file, path: file.create_dataset(path, data=1)), "damaged or no .csd file"),
        (
            replace("COVAREP/data/one", lambda file, path: file.create_dataset(path, data=1)),
            "has no 'features' of its own",
        ),
        (replace(AUDIO, lambda file, path: None), "has no 'features' of its own"),
        (replace(AUDIO, lambda file, path: file.create_group(path)), "has no array"),
        (replace(AUDIO, lambda file, path: file.create_dataset(path, data=1.0)), "features of shape"),
        (
            replace(AUDIO, lambda file, path: file.create_dataset(path, data=np.zeros((6, 2), "S4"))),
            "numbers of shape",
        ),
        (replace(AUDIO, lambda file, path: file.create_dataset(path, data=np.zeros((5, 2)))), "each of 5 are needed"),
        (
            replace(AUDIO, lambda file, path: file.create_dataset(path, (1 << 40, 2), "f8", chunks=(64, 2))),
            "than a video",
        ),
        (
            replace(
                "COVAREP/data/three/features", lambda file, path: file.create_dataset(path, data=np.zeros((2, 3)))
            ),
            r"features of shape \(2, 3\)",
        ),
        (
            replace(
                "COVAREP/data/one/intervals",
                lambda file, path: file.create_dataset(path, data=np.full((6, 2), np.nan)),
            ),
            "intervals of shape",
        ),
        (replace(AUDIO, external_array), "keeps '/COVAREP/data/one/features' in another file"),
        (replace(AUDIO, virtual_array), "keeps '/COVAREP/data/one/features' in another file"),
        (
            replace(AUDIO, lambda file, path: file.__setitem__(path, h5py.ExternalLink("other.h5", "/x"))),
            "not followed",
        ),
        (replace(AUDIO, lambda file, path: file.__setitem__(path, h5py.SoftLink("/COVAREP/data"))), "not followed"),
        (
            replace("COVAREP", lambda file, path: file.__setitem__(path, h5py.ExternalLink("other.h5", "/"))),
            "not followed",
        ),
    ],
)
def test_what_is_damaged_or_leads_out_is_refused(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    folder = write_folder(tmp_path)
    change(folder / "CMU_MOSI_COVAREP.csd")
    with pytest.raises(MsaError, match=message):
        source = open_source(folder)
        for split in source.splits:
            list(source.rows(split))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((4, 1)), "words are needed"),
        (np.array([[b"\xff"]] * 4), "is not UTF-8"),
        (words("it", "was"), "each of 2 are needed"),
    ],
)
def test_words_must_be_words(tmp_path: Path, features: np.ndarray, message: str) -> None:
    folder = write_folder(tmp_path)
    replace("words/data/one/features", lambda file, path: file.create_dataset(path, data=features))(
        folder / "CMU_MOSI_TimestampedWords.csd"
    )
    with pytest.raises(MsaError, match=message):
        list(open_source(folder).rows("train"))


@pytest.mark.parametrize("names", ["{", "[1, 2]", '["one"]', '{"a": 1}', "[" * 100_000])
def test_names_of_another_form_are_none(tmp_path: Path, names: str) -> None:
    folder = write_folder(tmp_path)
    with h5py.File(folder / "CMU_MOSI_COVAREP.csd", "a") as file:
        file["COVAREP/metadata/dimension names"][0] = names
    assert open_source(folder).feature_names == {}
