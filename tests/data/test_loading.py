import numpy as np
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from hf_msa.data import dataset_facts, load_msa, prepare_dataset
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hub_answers import answer
from pickle_factory import mmsa, write


@pytest.fixture
def prepared(tmp_path):
    prepare_dataset("sims", write(tmp_path / "x.pkl", small_labels()), tmp_path / "sims")
    return tmp_path / "sims"


def small_labels():
    content = mmsa()
    for split in content.values():
        split["regression_labels"] = split["regression_labels"] / 3
    return content


def test_a_prepared_folder_gives_splits_or_all_of_them(prepared, tmp_path):
    assert len(load_msa(prepared, "validation", cache_dir=tmp_path / "c")) == 3
    assert list(load_msa(str(prepared), cache_dir=tmp_path / "c")) == ["train", "validation", "test"]


def test_a_raw_file_with_its_name_gives_the_same_rows(prepared, tmp_path):
    raw = load_msa("sims", "train", tmp_path / "x.pkl", cache_dir=tmp_path / "c")
    ready = load_msa(prepared, "train", cache_dir=tmp_path / "c")
    assert raw.features == ready.features
    for one, other in zip(iter(MsaRows(raw, "train")), iter(MsaRows(ready, "train")), strict=True):
        np.testing.assert_array_equal(one.pop("audio"), other.pop("audio"))
        np.testing.assert_array_equal(one.pop("vision"), other.pop("vision"))
        assert one == other


def test_errors_in_the_raw_file_come_out_as_they_are(tmp_path):
    content = mmsa()
    with pytest.raises(MsaError, match=r"label -3, outside \[-1, 1\]"):
        load_msa("sims", "train", write(tmp_path / "x.pkl", content), cache_dir=tmp_path / "c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mosii",), "Did you mean 'mosi'"),
        (("mosi",), "give the file that you have as data_dir"),
        (("sims", "dev"), "Unknown split 'dev'"),
        (("a/b/c",), "no Hub name"),
        (("./none/here",), "no folder"),
        (("mosii", "train", "/nowhere"), "Did you mean 'mosi'"),
        (("mosi", "train", "/nowhere"), "nothing at /nowhere"),
        (("custom", "train", "/nowhere"), "label family"),
    ],
)
def test_wrong_names_are_one_sentence(arguments, message):
    with pytest.raises(MsaError, match=message):
        load_msa(*arguments)


def test_an_absent_split_and_an_empty_folder_are_named(tmp_path):
    content = {"valid": small_labels()["valid"]}
    prepare_dataset("sims", write(tmp_path / "x.pkl", content), tmp_path / "sims")
    with pytest.raises(MsaError, match="no split 'train'; it has validation"):
        load_msa(tmp_path / "sims", "train", cache_dir=tmp_path / "c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MsaError, match="hf-msa prepare"):
        load_msa(tmp_path / "empty", "train")


def test_facts_of_folders_names_and_files_without_facts(prepared):
    assert dataset_facts(prepared).label_family == "sims"
    assert dataset_facts("mosei").label_high == 3.0
    (prepared / "msa_dataset.json").unlink()
    with pytest.raises(MsaError, match="nothing says which metrics apply"):
        dataset_facts(prepared)
    assert dataset_facts(prepared, "mosi").label_low == -3.0


def test_the_hub_answers_are_sentences(monkeypatch):
    def raising(error):
        def call(*_, **__):
            raise error

        return call

    monkeypatch.setattr("datasets.load_dataset", raising(DatasetNotFoundError("no")))
    with pytest.raises(MsaError, match="no data set on the Hub called 'me/none'"):
        load_msa("me/none", "train")
    monkeypatch.setattr("datasets.load_dataset", raising(ConnectionError("down")))
    with pytest.raises(MsaError, match="could not be loaded from the Hub .down.; .*local folder"):
        load_msa("me/none", "train")
    response = answer(404)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", raising(RepositoryNotFoundError("no", response=response)))
    with pytest.raises(MsaError, match="private"):
        dataset_facts("me/none")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", raising(RemoteEntryNotFoundError("no", response=response)))
    assert dataset_facts("me/some", "sims").label_family == "sims"
    with pytest.raises(MsaError, match="nothing says"):
        dataset_facts("me/some")
    for status, words in ((403, "403|may not|refused"), (429, "too many|429"), (500, "500")):
        error = HfHubHTTPError(str(status), response=answer(status))
        monkeypatch.setattr("huggingface_hub.hf_hub_download", raising(error))
        with pytest.raises(MsaError, match=f"The facts of 'me/some' could not be loaded from the Hub: .*({words})"):
            dataset_facts("me/some")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", raising(LocalEntryNotFoundError("offline")))
    with pytest.raises(MsaError, match="could not be loaded from the Hub"):
        dataset_facts("me/some", "sims")
