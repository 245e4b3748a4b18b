"""What is no file, damaged, or gone: one sentence each time, and nothing half-written."""

import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_msa.data import load_msa, prepare_dataset
from hf_msa.data.schema import read_facts
from hf_msa.data.sources import CsvSource, ParquetSource, open_source, parquet_files
from hf_msa.errors import MsaError
from pickle_factory import mmsa, write

HEADER = ["video_id", "clip_id", "text", "label", "mode"]


def label_csv(folder, rows=(), header=HEADER):
    folder.mkdir(exist_ok=True)
    rows = rows or [["v", "1", "words", "0.5", "train"]]
    (folder / "label.csv").write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return folder


def with_audio(folder):
    label_csv(folder)
    (folder / "audio" / "v").mkdir(parents=True)
    np.save(folder / "audio" / "v" / "1.npy", np.ones((2, 3)))
    return folder / "audio" / "v" / "1.npy"


# --- Feature files ---


@pytest.mark.parametrize("kind", ["dangling", "pipe", "folder"])
def test_what_is_no_file_is_no_absent_modality(tmp_path, kind):
    file = with_audio(tmp_path / "data")
    file.unlink()
    if kind == "dangling":
        file.symlink_to(tmp_path / "nothing")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    message = {"dangling": "a link that leads nowhere", "pipe": "is a pipe", "folder": "is a folder"}[kind]
    with pytest.raises(MsaError, match=f"1.npy {message}|1.npy is {message}"):
        open_source(tmp_path / "data")


def test_two_files_for_one_clip_are_refused_and_upper_case_is_read(tmp_path):
    file = with_audio(tmp_path / "data")
    file.rename(file.with_suffix(".NPY"))
    assert open_source(tmp_path / "data").widths == {"audio": 3}
    file.with_suffix(".csv").write_text("1,2,3\n")
    with pytest.raises(MsaError, match="for one clip; keep one"):
        open_source(tmp_path / "data")


def test_a_modality_that_is_no_folder_is_not_absent(tmp_path):
    (label_csv(tmp_path / "data") / "audio").write_text("")
    with pytest.raises(MsaError, match="audio is no folder"):
        open_source(tmp_path / "data")
    (tmp_path / "data" / "audio").unlink()
    (tmp_path / "data" / "audio").symlink_to(tmp_path / "nothing")
    with pytest.raises(MsaError, match="audio is no folder"):
        open_source(tmp_path / "data")


@pytest.mark.parametrize("kind", ["dangling", "pipe"])
@pytest.mark.parametrize("name", ["label.csv", "train.parquet", "x.pkl"])
def test_a_source_that_is_no_file(tmp_path, kind, name):
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(tmp_path / "nothing")
    for given in (tmp_path / name, tmp_path) if name != "x.pkl" else (tmp_path / name,):
        with pytest.raises(MsaError, match="is a pipe|a link that leads nowhere"):
            open_source(given)


# --- label.csv ---


def test_empty_optional_columns_of_a_label_csv_are_left_out(tmp_path):
    header = [*HEADER, "label_T", "label_A", "label_V", "annotation", "speaker"]
    source = CsvSource(label_csv(tmp_path, [["v", "1", "x", "1", "valid", "", " ", "", "", "me"]], header))
    assert list(source.features) == ["id", "video_id", "clip_id", "text", "label"]
    assert source.notes == [
        "'annotation' has no value, and was left out.",
        "'label_T', 'label_A', 'label_V' has no value, and was left out.",
        "No column is made of 'speaker'; what it holds was left out.",
    ]


def test_an_optional_label_that_some_samples_lack_is_refused(tmp_path):
    header = [*HEADER, "label_T", "label_A", "label_V"]
    rows = [["v", "1", "x", "1", "train", "0", "0", "0"], ["w", "1", "x", "1", "val", "0", "0", ""]]
    with pytest.raises(MsaError, match=r"'w\$_\$1' has no label_vision; give it one, or leave the column out"):
        prepare_dataset("mosi", label_csv(tmp_path / "data", rows, header), tmp_path / "out")


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ([*HEADER, "text"], ["v", "1", "a", "0", "train", "b"], "more than one column 'text'"),
        (HEADER, ["v", "1", "a", "0", "eval"], "Row 2 of .* has the split 'eval', and only train"),
    ],
)
def test_a_label_csv_that_can_be_read_in_two_ways_is_refused(tmp_path, header, row, message):
    with pytest.raises(MsaError, match=message):
        CsvSource(label_csv(tmp_path, [row], header))


# --- Parquet ---


def parquet(folder, name="train", **columns):
    rows = {"id": ["a$_$1", "b_2"], "text": ["x", "y"], "label": [0.5, -1.0], **columns}
    folder.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({key: value for key, value in rows.items() if value is not None}), folder / f"{name}.parquet"
    )
    return folder


def rows_of(folder, split="train"):
    source = ParquetSource(folder)
    return source, list(source.rows(split))


FRAMES = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.list_(pa.float64())), pa.large_list(pa.large_list(pa.float32())), pa.list_(pa.list_(pa.float16()))]
    + [pa.list_(pa.list_(pa.int64())), pa.list_(pa.list_(pa.int8(), 2))],
)
def test_features_of_other_types_are_read(tmp_path, kind):
    source, rows = rows_of(parquet(tmp_path, audio=pa.array(np.array(FRAMES, dtype=object).tolist(), kind)))
    assert source.widths == {"audio": 2}
    assert [row["audio"].tolist() for row in rows] == FRAMES


def test_other_types_of_plain_columns_are_read(tmp_path):
    import decimal

    _, rows = rows_of(
        parquet(
            tmp_path,
            id=None,
            video_id=pa.array([7, 8]),
            clip_id=pa.array([1.0, 2.0]),
            text=pa.array(["x", None]).dictionary_encode(),
            label=pa.array([decimal.Decimal("0.5"), decimal.Decimal("-1.0")]),
            annotation=pa.array(["A", None], pa.large_string()),
        )
    )
    assert [(row["id"], row["text"], row["label"], row["annotation"]) for row in rows] == [
        ("7$_$1", "x", 0.5, "A"),
        ("8$_$2", None, -1.0, None),
    ]


def test_samples_without_frames_lack_the_modality(tmp_path):
    for cell in (None, []):
        source, rows = rows_of(parquet(tmp_path, vision=[FRAMES[0], cell]))
        assert [row["vision_present"] for row in rows] == [True, False]
        assert rows[1]["vision"].shape == (1, 2)
    _, rows = rows_of(parquet(tmp_path, vision=[FRAMES[0], None], vision_present=pa.array([None, True])))
    assert [row["vision_present"] for row in rows] == [True, False]


def test_a_number_that_is_not_there_is_nan(tmp_path):
    _, rows = rows_of(parquet(tmp_path, audio=[[[1.0, None]], [[2.0, 3.0]]]))
    np.testing.assert_array_equal(rows[0]["audio"], [[1, np.nan]])


def test_ids_and_unknown_columns(tmp_path):
    source, rows = rows_of(parquet(tmp_path, speaker=["m", "n"], video_id=["a", "b_2"], clip_id=["1", ""]))
    assert [(row["video_id"], row["clip_id"]) for row in rows] == [("a", "1"), ("b", "2")], "also of earlier versions"
    assert source.notes == ["No column is made of 'speaker'; what it holds was left out."]
    with pytest.raises(MsaError, match="Row 1 of 'train' .* has no id"):
        rows_of(parquet(tmp_path, id=["a", None]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": [1, 2]}, "'text' .* is of type int64; store strings"),
        ({"audio": [[1.0], [2.0]]}, r"'audio' .* is of type list<.*; store a list of frames"),
        ({"audio": [[["x"]], [["y"]]]}, "hold string, not numbers"),
        ({"audio": [[[1.0, 2.0]], [[1.0]]]}, "frames of different widths"),
        ({"audio": pa.array([None, None], pa.list_(pa.list_(pa.float32())))}, "No sample has a frame"),
        ({"label": None}, "no column 'label'"),
    ],
)
def test_columns_that_will_not_do_are_one_sentence(tmp_path, columns, message):
    with pytest.raises(MsaError, match=message):
        rows_of(parquet(tmp_path, **columns))


@pytest.mark.parametrize("there", ["train", "test"])
def test_splits_with_other_columns_are_named(tmp_path, there):
    for name in ("train", "test"):
        parquet(tmp_path, name, audio=FRAMES if name == there else None)
    with pytest.raises(MsaError, match=r"The split 'test' \(.*test.parquet\) has .* 'audio', unlike 'train'"):
        ParquetSource(tmp_path)


def test_an_annotation_that_one_split_lacks_is_left_out(tmp_path):
    parquet(tmp_path, "train", annotation=["A", "B"])
    source, _ = rows_of(parquet(tmp_path, "test"))
    assert "annotation" not in source.features
    assert source.notes == ["'annotation' is not in every split, and was left out."]


def test_names_of_parquet_files(tmp_path):
    assert list(parquet_files(parquet(tmp_path, "val-00000-of-00001"))) == ["validation"]
    assert ParquetSource(tmp_path / "val-00000-of-00001.parquet").splits == ["validation"]
    for name, message in (("eval", "is named after no split"), ("test_for_train", "after the splits test and train")):
        parquet(tmp_path / name, name)
        with pytest.raises(MsaError, match=message):
            parquet_files(tmp_path / name)
    (tmp_path / "data").mkdir()
    assert list(parquet_files(tmp_path)) == ["validation"], "an empty folder data holds nothing"
    parquet(tmp_path / "data", "train")
    with pytest.raises(MsaError, match="keep those of one data set"):
        parquet_files(tmp_path)


def test_one_parquet_file_is_one_split(tmp_path):
    file = parquet(tmp_path, "mine") / "mine.parquet"
    report = prepare_dataset("mosi", file, tmp_path / "out")
    assert list(report.splits) == ["train"] and "taken for train" in report.notes[0]


# --- Damage and loss ---


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare_dataset("mosi", write(folder / "x.pkl", mmsa()), folder / "data")
    return folder / "data"


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten"])
def test_a_damaged_shard_is_one_sentence(tmp_path, prepared, damage):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    [file] = (folder / "data").glob("test-*")
    content = file.read_bytes()
    file.write_bytes(
        {"cut": content[:300], "emptied": b"", "overwritten": content[:4] + b"x" * 2000 + content[2004:]}[damage]
    )
    for call in (
        lambda: load_msa(folder, cache_dir=tmp_path / "c"),
        lambda: prepare_dataset("mosi", folder, tmp_path / "o"),
    ):
        with pytest.raises(MsaError, match="damaged|cannot be read as Parquet") as error:
            call()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[" * 100_000, b"{", b"[]", b'{"name": 1}', b'{"name": "a", "label_family": 5}']
)
def test_damaged_facts_are_one_sentence(tmp_path, content):
    (tmp_path / "msa_dataset.json").write_bytes(content)
    with pytest.raises(MsaError, match="prepare the data set again|label family") as error:
        read_facts(tmp_path / "msa_dataset.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["data[1]", "*", "?", "{a,b}", "a b", "data[!1]"])
def test_a_folder_is_itself_and_no_pattern(tmp_path, prepared, name):
    for other in ("data1", "data2", "x", "a"):
        shutil.copytree(prepared, tmp_path / other)
    content = mmsa()
    for split in content.values():
        split["raw_text"] = np.array(["mine"] * len(split["raw_text"]))
    prepare_dataset("mosi", write(tmp_path / "y.pkl", content), tmp_path / name)
    assert set(load_msa(tmp_path / name, "train", cache_dir=tmp_path / "c")["text"]) == {"mine"}


def test_a_name_that_would_be_taken_for_an_address_is_refused(tmp_path, prepared):
    with pytest.raises(MsaError, match="taken for an address"):
        prepare_dataset("mosi", prepared, tmp_path / "zip::x")


def test_a_split_by_video_keeps_clips_together_whatever_the_form_of_their_ids(tmp_path):
    for form in ("{}$_${}", "{}[{}]", "{}_{}", "{}/{}"):
        ids = [form.format(f"v{video}", clip) for video in range(8) for clip in range(3)]
        frame = pd.DataFrame({"id": ids, "text": "x", "label": np.linspace(-3, 3, 24)})
        frame.to_parquet(tmp_path / "train.parquet")
        report = prepare_dataset(
            "mosi", tmp_path / "train.parquet", tmp_path / "out", split_by_video=(0.5, 0.25, 0.25), overwrite=True
        )
        assert sorted(count for split in report.splits.values() for count in split.videos.values()) == [3] * 8
        assert not any("in more than one split" in warning for warning in report.warnings)
    pd.DataFrame({"id": list("abcd"), "text": "x", "label": 0.5}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(MsaError, match="The id 'a' says nothing about the video"):
        prepare_dataset("mosi", tmp_path / "train.parquet", tmp_path / "no", split_by_video=(0.5, 0.25, 0.25))


def test_a_video_in_two_splits_is_seen_in_every_form_of_ids(tmp_path):
    for form in ("v[{}]", "v_{}", "v/{}"):
        for number, name in enumerate(("train", "test")):
            frame = pd.DataFrame({"id": [form.format(number)], "text": "x", "label": 0.5})
            frame.to_parquet(tmp_path / f"{name}.parquet")
        report = prepare_dataset("mosi", tmp_path, tmp_path / "out", overwrite=True)
        assert any("1 videos (such as 'v') have clips in more than one split" in text for text in report.warnings)


def test_a_new_split_by_video_keeps_what_was_said_about_the_source(tmp_path):
    content = {"train": mmsa()["train"] | {"motion": 1}}
    content["train"]["audio"][0, 0, 0] = np.nan
    report = prepare_dataset(
        "mosi", write(tmp_path / "x.pkl", content), tmp_path / "o", split_by_video=(0.4, 0.3, 0.3)
    )
    assert "1 values that were NaN or infinite are now 0." in report.notes
    assert "No column is made of 'motion'; what it holds was left out." in report.notes
