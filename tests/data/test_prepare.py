import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_msa.data import dataset_facts, load_msa, prepare_dataset
from hf_msa.data.prepare import write_dataset
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import facts_for, msa_features
from hf_msa.errors import MsaError
from pickle_factory import mmsa, mmsa_split, write

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def pickle_file(tmp_path):
    return write(tmp_path / "unaligned_50.pkl", mmsa())


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_folder_is_what_load_dataset_reads(tmp_path, pickle_file):
    report = prepare_dataset("mosi", pickle_file, tmp_path / "mosi")
    assert names(tmp_path / "mosi") == [
        "README.md",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
        "msa_dataset.json",
    ]
    loaded = datasets.load_dataset(str(tmp_path / "mosi"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "validation": 3, "test": 4}
    assert loaded["train"].features == msa_features(5, 4, annotation=True)
    assert report.splits["train"].count == 6
    raw = mmsa()["train"]
    rows = MsaRows(loaded["train"], "train")
    for index in range(6):
        np.testing.assert_array_equal(rows[index]["audio"], raw["audio"][index][: raw["audio_lengths"][index]])
        assert rows[index]["text"] == raw["raw_text"][index]


def test_plain_map_works_on_the_rows(tmp_path, pickle_file):
    prepare_dataset("mosi", pickle_file, tmp_path / "mosi")
    train = load_msa(tmp_path / "mosi", "train", cache_dir=tmp_path / "cache")
    longer = train.map(lambda row: {"frames": len(row["audio"])}).filter(lambda row: row["frames"] > 1)
    assert all(frames > 1 for frames in longer["frames"])
    assert MsaRows(longer, "train").lengths["audio"].tolist() == longer["frames"][:]


def test_the_card_has_the_table_the_licence_and_the_splits(tmp_path, pickle_file):
    import yaml

    prepare_dataset("mosi", pickle_file, tmp_path / "mosi")
    text = (tmp_path / "mosi" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "other"
    assert header["task_categories"] == ["text-classification"]
    assert header["configs"][0]["data_files"][1] == {"split": "validation", "path": "data/validation-*.parquet"}
    assert {split["name"]: split["num_examples"] for split in header["dataset_info"]["splits"]}["train"] == 6
    assert "| train | 6 |" in text
    assert "do not redistribute" in text
    assert "official one has 1284" in text


def test_facts_lie_beside_the_rows(tmp_path, pickle_file):
    prepare_dataset("custom", pickle_file, tmp_path / "out", label_family="mosi", label_range=(-3, 3))
    facts = dataset_facts(tmp_path / "out")
    assert (facts.name, facts.label_family, facts.label_high, facts.source) == ("custom", "mosi", 3.0, "MMSA pickle")


def test_a_prepared_folder_is_a_source_too(tmp_path, pickle_file):
    prepare_dataset("mosi", pickle_file, tmp_path / "a")
    prepare_dataset("mosi", tmp_path / "a", tmp_path / "b")
    first, second = (load_msa(tmp_path / name, "test", cache_dir=tmp_path / "cache") for name in "ab")
    assert first.to_dict() == second.to_dict()


def test_large_splits_become_several_shards(tmp_path, pickle_file, monkeypatch):
    monkeypatch.setattr("hf_msa.data.prepare._SHARD_SIZE", 2000)
    monkeypatch.setattr("hf_msa.data.builders._BATCH_BYTES", 1)
    content = {"train": mmsa_split("train", 100)}
    prepare_dataset("mosi", write(tmp_path / "x.pkl", content), tmp_path / "out")
    shards = sorted((tmp_path / "out" / "data").glob("*.parquet"))
    assert len(shards) > 1
    assert shards[0].name == f"train-00000-of-{len(shards):05d}.parquet"
    loaded = load_msa(tmp_path / "out", "train", cache_dir=tmp_path / "cache")
    assert loaded["text"][:] == content["train"]["raw_text"].tolist()


# --- Nothing half-written ---


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path, pickle_file):
    output = tmp_path / "out"
    output.mkdir()
    (output / "precious.txt").write_text("x")
    with pytest.raises(MsaError, match="--overwrite"):
        prepare_dataset("mosi", pickle_file, output)
    assert names(output) == ["precious.txt"]
    prepare_dataset("mosi", pickle_file, output, overwrite=True)
    assert "precious.txt" not in names(output)
    with pytest.raises(MsaError, match="is a file"):
        prepare_dataset("mosi", pickle_file, pickle_file)


def test_bad_data_leaves_nothing_behind(tmp_path):
    content = mmsa()
    content["test"]["regression_labels"][3] = 7
    source = write(tmp_path / "x.pkl", content)
    with pytest.raises(MsaError, match=r"'testvideo1\$_\$3' has label 7") as caught:
        prepare_dataset("mosi", source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pkl"]


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path, pickle_file):
    prepare_dataset("mosi", pickle_file, tmp_path / "out")
    before = names(tmp_path / "out")
    content = mmsa()
    content["train"]["id"][1] = content["train"]["id"][0]
    with pytest.raises(MsaError, match="occurs twice"):
        prepare_dataset("mosi", write(tmp_path / "y.pkl", content), tmp_path / "out", overwrite=True)
    assert names(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "unaligned_50.pkl", "y.pkl"]


@pytest.mark.parametrize(
    "where", ["datasets.arrow_writer.ParquetWriter.write_table", "hf_msa.data.prepare.write_facts"]
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, pickle_file, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(where, full)
    with pytest.raises(MsaError, match="no space left") as caught:
        prepare_dataset("mosi", pickle_file, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unaligned_50.pkl"]


def test_wrong_names_are_suggested(tmp_path, pickle_file):
    with pytest.raises(MsaError, match="'sims'"):
        prepare_dataset("sim", pickle_file, tmp_path / "out")
    with pytest.raises(MsaError, match="label family"):
        prepare_dataset("custom", pickle_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- Rows that are made ---


class Made:
    description = "made"
    splits = ["train", "test"]
    features = msa_features(2)
    widths = {"audio": 2}
    aligned = False
    feature_names = {"audio": ("f0", "energy")}
    notes = ["Made up."]

    def count(self, split):
        return 2

    def rows(self, split):
        for index in range(2):
            identity = {"id": f"{split}$_${index}", "video_id": split, "clip_id": str(index)}
            yield {**identity, "text": "x", "label": 0.5, "audio": np.full((index + 1, 2), index)}


def test_made_rows_take_the_same_way(tmp_path):
    facts = facts_for("custom", "sims")
    report = write_dataset(
        Made(), facts, tmp_path / "out", extra=lambda folder: (folder / "planted.json").write_text("{}")
    )
    assert report.notes == ["Made up."]
    assert "planted.json" in names(tmp_path / "out")
    assert dataset_facts(tmp_path / "out").audio_features == ("f0", "energy")
    test = load_msa(tmp_path / "out", "test", cache_dir=tmp_path / "c")
    assert MsaRows(test, "test")[1]["audio"].tolist() == [[1, 1], [1, 1]]
    with pytest.raises(MsaError, match="not empty"):
        write_dataset(Made(), facts, tmp_path / "out")


# --- Scripts, memory, real files ---


def test_the_script_is_the_same_path_and_exits_with_2_on_bad_input(tmp_path, pickle_file):
    script = [sys.executable, str(REPOSITORY / "dataset_scripts" / "prepare_mosi.py"), "--source"]
    done = subprocess.run(
        [*script, str(tmp_path / "none.pkl"), "--output", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("There is nothing at")
    assert not (tmp_path / "out").exists()


# The high-water mark of /proc belongs to this process; that of getrusage starts with what its parent had.
MEASURE = """
import json, pathlib, re, sys
from hf_msa.data import prepare_dataset
def memory(which):
    return int(re.search(which + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
prepare_dataset("mosei", sys.argv[1], sys.argv[3])
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
prepare_dataset("mosei", sys.argv[2], sys.argv[4])
print(json.dumps([before, memory("VmHWM")]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="/proc measures the memory, on Linux only")
def test_conversion_needs_no_more_than_1_3_times_the_file(tmp_path):
    """A pickle of MOSEI's proportions, about 200 MB: precomputed text vectors, audio 500 x 74, vision 500 x 35."""
    rng = np.random.default_rng(0)

    def split(name, count):
        data = mmsa_split(name, count, audio=(500, 74), vision=(500, 35))
        data["text"] = rng.normal(size=(count, 50, 768)).astype(np.float32)
        return data

    big = {name: split(name, count) for name, count in (("train", 390), ("valid", 45), ("test", 110))}
    source = write(tmp_path / "big.pkl", big)
    del big
    small = write(tmp_path / "small.pkl", mmsa())
    size = source.stat().st_size
    assert 180e6 < size < 220e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(source), str(tmp_path / "a"), str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = json.loads(done.stdout.strip().splitlines()[-1])
    assert after - before < 1.3 * size, f"peak grew by {(after - before) / size:.2f} times the file"


def test_the_real_mosi_file(real_data, tmp_path):
    report = prepare_dataset("mosi", real_data / "mosi" / "mosi_text_audio.pkl", tmp_path / "mosi")
    rows = {cells[0]: cells[1:] for cells in report.split_rows()[1:]}
    assert rows["train"] == ["1284", "52", "0.234", "1.510", "-3 to 3", "552/53/679", "0"]
    assert rows["validation"] == ["229", "10", "0.310", "1.653", "-3 to 3", "92/13/124", "0"]
    assert rows["test"] == ["686", "31", "-0.317", "1.590", "-3 to 3", "379/30/277", "0"]
    assert "vision" not in load_msa(tmp_path / "mosi", "train", cache_dir=tmp_path / "c").column_names
