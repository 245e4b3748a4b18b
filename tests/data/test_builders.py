import csv
import math

import datasets
import numpy as np
import pytest

from hf_msa.data.builders import MsaBuilder
from hf_msa.data.loading import dataset_facts, load_msa
from hf_msa.data.prepare import prepare_dataset
from hf_msa.data.schema import (
    DATASETS,
    FACTS_FILE,
    DatasetFacts,
    KnownDataset,
    facts_for,
    msa_features,
    register_dataset,
    write_facts,
)
from hf_msa.data.sources import CsvSource, ParquetSource, open_source
from hf_msa.errors import MsaError
from pickle_factory import mmsa, write

LINES = [
    ("vidA", "0001", "one, two", "-1.0", "train"),
    ("vidA", "0002", "NA", "0.5", "train"),
    ("vidB", "0001", "three", "0", "valid"),
    ("vidC", "0001", "four", "1", "test"),
]


def label_csv(folder, lines=LINES, header=("video_id", "clip_id", "text", "label", "mode"), encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "label.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *lines])
    return folder


def feature(folder, modality, name, array):
    path = folder / modality / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def features_for_all(folder, modality="audio", width=3):
    for index, (video, clip, *_) in enumerate(LINES):
        feature(folder, modality, f"{video}/{clip}", np.full((index + 1, width), index + 1.0))


# --- label.csv ---


def test_a_label_csv_alone_is_text_only(tmp_path):
    source = CsvSource(label_csv(tmp_path) / "label.csv")
    assert source.splits == ["train", "validation", "test"]
    assert source.features == msa_features()
    rows = list(source.rows("train"))
    assert [row["text"] for row in rows] == ["one, two", "NA"], "a transcript that looks like a missing value is text"
    assert rows[0]["id"] == "vidA$_$0001"
    assert rows[0]["clip_id"] == "0001"


def test_features_are_found_by_both_names_and_absent_ones_marked(tmp_path):
    label_csv(tmp_path)
    feature(tmp_path, "audio", "vidA/0001", np.ones((4, 3)))
    feature(tmp_path, "audio", "vidB$_$0001", np.full((2, 3), 2.0))
    feature(tmp_path, "audio", "vidC/0001", np.full(3, 5.0))
    source = open_source(tmp_path)
    assert source.widths == {"audio": 3}
    rows = {row["id"]: row for split in source.splits for row in source.rows(split)}
    assert rows["vidA$_$0001"]["audio"].shape == (4, 3)
    assert rows["vidB$_$0001"]["audio"][0, 0] == 2.0
    assert rows["vidC$_$0001"]["audio"].shape == (1, 3), "a single vector is one frame"
    assert [row["audio_present"] for row in rows.values()] == [True, False, True, True]


def test_features_may_lie_elsewhere(tmp_path):
    label_csv(tmp_path / "labels")
    features_for_all(tmp_path / "features", "vision")
    source = open_source(tmp_path / "labels" / "label.csv", tmp_path / "features")
    assert source.widths == {"vision": 3}
    assert "vision_present" not in source.features
    with pytest.raises(MsaError, match="neither a folder 'audio' nor 'vision'"):
        open_source(tmp_path / "labels", tmp_path / "labels")


def test_openface_csv_keeps_features_and_their_names(tmp_path):
    label_csv(tmp_path, LINES[:1])
    folder = tmp_path / "vision" / "vidA"
    folder.mkdir(parents=True)
    (folder / "0001.csv").write_text(
        "frame, face_id, timestamp, confidence, success, gaze_0_x, AU01_r\n"
        "1, 0, 0.0, 0.98, 1, 0.25, 1.5\n2, 0, 0.03, 0.97, 1, -0.5, 0.0\n"
    )
    source = CsvSource(tmp_path)
    assert source.feature_names == {"vision": ("gaze_0_x", "AU01_r")}
    np.testing.assert_array_equal(next(source.rows("train"))["vision"], [[0.25, 1.5], [-0.5, 0.0]])


def test_clips_without_a_face_lack_vision_and_the_notes_say_how_many_frames_had_none(tmp_path):
    label_csv(tmp_path, LINES[:2])
    folder = tmp_path / "vision"
    folder.mkdir()
    header = "frame, face_id, timestamp, confidence, success, AU01_r\n"
    (folder / "vidA$_$0001.csv").write_text(
        header + "1, 0, 0, 0.9, 1, 1\n1, 1, 0, 0.9, 1, 7\n2, 0, 0, 0, 0, 0\n3, 0, 0, 0.7, 1, 2\n"
    )
    (folder / "vidA$_$0002.csv").write_text(header + "1, 0, 0, 0, 0, 0\n")
    source = CsvSource(tmp_path)
    rows = list(source.rows("train"))
    assert [row["vision"].tolist() for row in rows] == [[[1], [2]], [[0]]]
    assert [row["vision_present"] for row in rows] == [True, False]
    assert source.notes == [
        "Of 4 frames of vision of train, 2 without a face (success 0) were left out; 1 of 2 clips have no face at all "
        "and lack the modality; in 1 with several faces, the one seen longest, then the largest, was kept; "
        "mean confidence 0.80."
    ]


def test_a_clip_without_a_face_among_tables_that_do_not_say_is_refused(tmp_path):
    label_csv(tmp_path, LINES[:2])
    folder = tmp_path / "vision"
    folder.mkdir()
    (folder / "vidA$_$0001.csv").write_text("AU01_r\n1\n")
    (folder / "vidA$_$0002.csv").write_text("success,AU01_r\n0,0\n")
    with pytest.raises(MsaError, match="has no frame with a face; keep the column 'success' in all files"):
        list(CsvSource(tmp_path).rows("train"))


def test_opensmile_and_headerless_csv(tmp_path):
    label_csv(tmp_path, LINES[:2])
    folder = tmp_path / "audio"
    folder.mkdir()
    (folder / "vidA$_$0001.csv").write_text("name;frameTime;F0;energy\n'x';0.0;1.5;2.5\n'x';0.1;3.5;4.5\n")
    (folder / "vidA$_$0002.csv").write_text("1,2\n3,4\n5,6\n")
    source = CsvSource(tmp_path)
    rows = list(source.rows("train"))
    np.testing.assert_array_equal(rows[0]["audio"], [[1.5, 2.5], [3.5, 4.5]])
    np.testing.assert_array_equal(rows[1]["audio"], [[1, 2], [3, 4], [5, 6]])
    assert source.feature_names == {"audio": ("F0", "energy")}


@pytest.mark.parametrize("video", ["..", ".", "", "a/b", "../secret", "a\\b", "/etc"])
def test_an_id_never_leads_out_of_the_folder(tmp_path, video):
    label_csv(tmp_path / "data", [(video, "0001", "x", "0", "train"), *LINES])
    features_for_all(tmp_path / "data")
    feature(tmp_path, "secret", "0001", np.ones((1, 3)))
    with pytest.raises(MsaError, match="cannot be part of a file name"):
        open_source(tmp_path / "data")


def test_a_symlink_out_of_the_folder_is_refused(tmp_path):
    label_csv(tmp_path / "data")
    features_for_all(tmp_path / "data")
    secret = feature(tmp_path, "secret", "x", np.ones((1, 3)))
    link = tmp_path / "data" / "audio" / "vidA" / "0001.npy"
    link.unlink()
    link.symlink_to(secret)
    with pytest.raises(MsaError, match="leads out of"):
        open_source(tmp_path / "data")
    link.unlink()
    link.symlink_to(tmp_path / "data" / "audio" / "vidB" / "0001.npy")
    assert next(open_source(tmp_path / "data").rows("train"))["audio"].shape == (3, 3)


def test_a_symlinked_modality_folder_out_of_the_data_is_refused(tmp_path):
    label_csv(tmp_path / "data")
    features_for_all(tmp_path / "elsewhere")
    (tmp_path / "data" / "audio").symlink_to(tmp_path / "elsewhere" / "audio")
    with pytest.raises(MsaError, match="leads out of"):
        open_source(tmp_path / "data")


def test_a_pickled_npy_is_not_run(tmp_path):
    label_csv(tmp_path)
    features_for_all(tmp_path)
    np.save(tmp_path / "audio" / "vidA" / "0001.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(MsaError, match="0001.npy' cannot be read as a feature sequence"):
        list(open_source(tmp_path).rows("train"))


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (LINES, ("video_id", "clip_id", "words", "label", "mode"), "no column 'text'"),
        ([(*LINES[0][:4], "trian")], None, "'trian'.*'train'"),
        ([LINES[0][:4]], None, "Row 2 .* cells"),
        ([(*LINES[0], "more")], None, "Row 2 .* cells"),
        ([], None, "header but no rows"),
    ],
)
def test_a_wrong_label_csv_is_one_sentence(tmp_path, lines, header, message):
    label_csv(tmp_path, lines, header or ("video_id", "clip_id", "text", "label", "mode"))
    with pytest.raises(MsaError, match=message):
        open_source(tmp_path)


def test_a_label_csv_in_another_encoding_is_named(tmp_path):
    label_csv(tmp_path, [("v", "1", "不想", "0", "train")], encoding="gb18030")
    with pytest.raises(MsaError, match="UTF-8"):
        open_source(tmp_path)


def test_feature_columns_that_differ_between_files_are_refused(tmp_path):
    label_csv(tmp_path, LINES[:2])
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "vidA$_$0001.csv").write_text("a,b\n1,2\n")
    (tmp_path / "audio" / "vidA$_$0002.csv").write_text("b,a\n1,2\n")
    with pytest.raises(MsaError, match="other feature columns"):
        list(CsvSource(tmp_path).rows("train"))


def test_a_modality_folder_without_any_match_says_what_was_looked_for(tmp_path):
    label_csv(tmp_path)
    (tmp_path / "audio").mkdir()
    with pytest.raises(MsaError, match="vidA/0001.npy was looked for"):
        open_source(tmp_path)


# --- What a path is ---


def test_sources_are_told_apart(tmp_path):
    pickle = write(tmp_path / "unaligned_50.pkl", mmsa())
    assert open_source(pickle).description == "MMSA pickle"
    assert open_source(label_csv(tmp_path / "csv")).description == "label.csv"
    with pytest.raises(MsaError, match="nothing at"):
        open_source(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MsaError, match="neither a label.csv nor Parquet"):
        open_source(tmp_path / "empty")
    with pytest.raises(MsaError, match="goes with a label.csv"):
        open_source(pickle, tmp_path)


def test_parquet_with_ids_from_video_and_clip_and_plain_lists(tmp_path):
    rows = [
        {"video_id": "v", "clip_id": str(i), "text": "t", "label": 0.5, "audio": [[1.0, i], [2.0, i]]}
        for i in range(3)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "dev.parquet")
    write_facts(tmp_path, facts_for("sims"))
    assert (tmp_path / FACTS_FILE).is_file()
    source = ParquetSource(tmp_path)
    assert source.splits == ["validation"]
    assert source.count("validation") == 3
    assert source.widths == {"audio": 2}
    found = list(source.rows("validation"))
    assert found[2]["id"] == "v$_$2"
    np.testing.assert_array_equal(found[2]["audio"], [[1, 2], [2, 2]])


def test_parquet_without_a_needed_column_is_refused(tmp_path):
    datasets.Dataset.from_list([{"id": "a", "text": "t"}]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(MsaError, match="no column 'label'"):
        ParquetSource(tmp_path)


def test_words_with_other_fields_are_left_out_with_a_note(tmp_path):
    row = {"id": "a$_$1", "text": "t", "label": 1.0, "words": [{"text": "t", "start": "0:00"}]}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "train.parquet")
    source = ParquetSource(tmp_path)
    assert "words" not in source.features and "words" not in next(source.rows("train"))
    assert source.notes == ["No column is made of 'words'; what it holds was left out."]


# --- The builders ---


def test_a_builder_makes_the_rows_and_the_report(tmp_path):
    content = mmsa()
    builder = MsaBuilder("mosi", write(tmp_path / "x.pkl", content), cache_dir=tmp_path / "cache")
    builder.download_and_prepare()
    loaded = builder.as_dataset()
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "validation": 3, "test": 4}
    assert loaded["train"].features == msa_features(5, 4, annotation=True)
    row = loaded["train"].with_format("numpy")[3]
    length = content["train"]["audio_lengths"][3]
    np.testing.assert_array_equal(row["audio"], content["train"]["audio"][3, :length])
    assert builder.report().splits["test"].count == 4
    assert builder.facts.source == "MMSA pickle"


def test_the_cache_is_used_until_the_file_changes(tmp_path):
    path = write(tmp_path / "x.pkl", mmsa())
    first = MsaBuilder("mosi", path, cache_dir=tmp_path / "cache")
    first.download_and_prepare()
    second = MsaBuilder("mosi", path, cache_dir=tmp_path / "cache")
    second.download_and_prepare()
    assert second.cache_dir == first.cache_dir
    with pytest.raises(MsaError, match="came from the cache"):
        second.report()
    content = mmsa()
    content["train"]["raw_text"] = np.array(["changed and longer"] * 6)
    write(path, content)
    assert MsaBuilder("mosi", path, cache_dir=tmp_path / "cache").cache_dir != first.cache_dir


def test_a_builder_works_after_another_has_been_made(tmp_path):
    """`datasets` replaces names such as Path in a module once a builder of it exists."""
    for name in ("a", "b"):
        MsaBuilder("sims", label_csv(tmp_path / name), cache_dir=tmp_path / "cache").download_and_prepare()


def test_custom_needs_a_family(tmp_path):
    with pytest.raises(MsaError, match="label family"):
        MsaBuilder("custom", label_csv(tmp_path))
    builder = MsaBuilder(
        "custom", label_csv(tmp_path), label_family="sims", label_range=(-0.5, 0.5), cache_dir=tmp_path / "cache"
    )
    assert (builder.facts.label_low, builder.facts.label_high) == (-0.5, 0.5)


class TestDatasetsOfOthers:
    @pytest.fixture(autouse=True)
    def _own_table(self, monkeypatch):
        monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

    def test_one_with_files_of_its_own(self, tmp_path):
        asked = []

        def open_files(path, features):
            asked.append((path, features))
            return CsvSource(label_csv(tmp_path / "converted") / "label.csv")

        register_dataset(KnownDataset(DatasetFacts("street", "sims", -1, 1), "Street", {"train": 9}, open=open_files))
        raw = tmp_path / "raw.xml"
        raw.write_text("<x/>")
        assert len(load_msa("street", "train", raw, cache_dir=tmp_path / "cache")) == 2
        report = prepare_dataset("street", raw, tmp_path / "out")
        assert asked == [(str(raw), None)] * 2
        assert any("9" in warning for warning in report.warnings)
        assert dataset_facts(tmp_path / "out").name == "street"
        assert "# Street" in (tmp_path / "out" / "README.md").read_text()

    def test_bad_and_double_names(self):
        for name, message in (
            ("mosi", "There is a data set 'mosi' already"),
            ("custom", "the name of all data sets that have none"),
            ("My Data", "cannot be the name of a data set"),
        ):
            with pytest.raises(MsaError, match=message):
                register_dataset(KnownDataset(DatasetFacts(name, "sims", -1, 1), "X"))


# --- Real rows ---


@pytest.mark.parametrize(
    ("name", "counts", "train", "test"),
    [
        ("sims", (1368, 456, 457), (-0.193, 0.691, (742, 207, 419)), (-0.193, 0.692, (248, 69, 140))),
        ("mosi", (1284, 229, 686), (0.2345, 1.510, (552, 53, 679)), (-0.3170, 1.590, (379, 30, 277))),
        ("simsv2", (2722, 647, 1034), None, None),
        ("mosei", (16274, 1861, 4653), None, None),
    ],
)
def test_real_label_csv_statistics(real_data, tmp_path, name, counts, train, test):
    builder = MsaBuilder(name, real_data / name / "label.csv", cache_dir=tmp_path)
    builder.download_and_prepare()
    found = builder.report().splits
    assert tuple(found[split].count for split in ("train", "validation", "test")) == counts
    for split, expected in (("train", train), ("test", test)):
        if expected is not None:
            check = found[split]
            assert abs(check.mean - expected[0]) < 6e-4
            assert abs(math.sqrt(check.squares / (check.count - 1)) - expected[1]) < 6e-4
            assert found[split].polarity() == expected[2]


def test_real_sims_has_218_inconsistent_test_samples(real_data, tmp_path):
    builder = MsaBuilder("sims", real_data / "sims", cache_dir=tmp_path)
    builder.download_and_prepare()
    test = builder.as_dataset(split="test")
    signs = {name: np.sign(test[name][:]) for name in ("label", "label_text", "label_audio", "label_vision")}
    differs = np.any([signs[name] != signs["label"] for name in list(signs)[1:]], axis=0)
    assert differs.sum() == 218


def test_real_openface_file(real_data, tmp_path):
    label_csv(tmp_path, LINES[:1])
    (tmp_path / "vision" / "vidA").mkdir(parents=True)
    raw = (real_data / "media" / "openface2_featureextraction.csv").read_bytes()
    (tmp_path / "vision" / "vidA" / "0001.csv").write_bytes(raw)
    source = CsvSource(tmp_path)
    assert source.widths == {"vision": 709}
    assert len(source.feature_names["vision"]) == 709
    assert source.feature_names["vision"][0] == "gaze_0_x"
    assert next(source.rows("train"))["vision"].shape == (490, 709)
