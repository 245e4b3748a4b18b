"""A saved model lists its files; a copy that lacks one, or has half of one, is refused by the name of the file."""

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import AutoModel, AutoProcessor

import hf_msa  # noqa: F401  (registers the methods with the Auto classes)
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.msa_files import FILES_LIST, check_files, file_facts, file_fault, note_files, read_list
from nonempty import some
from tiny import tiny_omg_config, tiny_processor


def test_facts_are_sizes_and_digests(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_facts(tmp_path, ["a.bin"]) == {"a.bin": {"size": 3, "sha256": digest}}


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    for name in ("a.bin", "b.json"):
        (tmp_path / name).write_bytes(b"abc")
    facts = file_facts(tmp_path, ["a.bin", "b.json"])
    assert file_fault(tmp_path, facts, digests=True) is None
    (tmp_path / "a.bin").write_bytes(b"abd")
    assert file_fault(tmp_path, facts) is None
    assert file_fault(tmp_path, facts, digests=True) == "'a.bin' has other content than was written"
    (tmp_path / "a.bin").write_bytes(b"ab")
    assert file_fault(tmp_path, facts) == "'a.bin' has 2 bytes instead of 3"
    (tmp_path / "a.bin").unlink()
    assert file_fault(tmp_path, facts) == "'a.bin' is missing"


def test_a_text_file_may_be_edited_but_not_be_empty(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    facts = file_facts(tmp_path, ["config.json"])
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert file_fault(tmp_path, facts) is None
    (tmp_path / "config.json").write_text("")
    assert file_fault(tmp_path, facts) == "'config.json' has 0 bytes instead of 2"


def test_model_and_processor_note_their_own(tmp_path: Path) -> None:
    for name in ("a.bin", "old.bin", "b.json", "c.txt"):
        (tmp_path / name).write_text(name)
    note_files(tmp_path, ["*.bin"])
    note_files(tmp_path, ["*.json"])
    assert list(read_list(tmp_path / FILES_LIST)) == ["a.bin", "b.json", "old.bin"]
    (tmp_path / "old.bin").unlink()
    note_files(tmp_path, ["*.bin"])
    assert list(read_list(tmp_path / FILES_LIST)) == ["a.bin", "b.json"], (
        "what is saved anew takes the place of the old"
    )
    (tmp_path / "b.json").unlink()
    check_files(str(tmp_path), ["*.bin"])
    with pytest.raises(ValueError, match="not whole: 'b.json' is missing; copy all of it again"):
        check_files(str(tmp_path), ["*.json"])
    (tmp_path / FILES_LIST).write_text("half of a li")
    check_files(str(tmp_path), ["*.json"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose knowledge base is stood in for by two files."""
    folder = tmp_path_factory.mktemp("saved")
    config = tiny_omg_config()
    model = OmgForSentimentAnalysis(config)
    (folder / "knowledge_base").mkdir()
    (folder / "knowledge_base" / "entries.safetensors").write_bytes(bytes(100))
    (folder / "knowledge_base" / "knowledge_base.json").write_text("{}")
    model.save_pretrained(folder)
    tiny_processor(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_processor_without_its_tokenizer_is_refused(name: str, saved: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(saved, tmp_path / "copied"))
    AutoProcessor.from_pretrained(copied)
    (copied / name).unlink()
    with pytest.raises(ValueError, match=f"not whole: '{name}' is missing"):
        AutoProcessor.from_pretrained(copied)


@pytest.mark.parametrize("name", ["knowledge_base/entries.safetensors", "knowledge_base/knowledge_base.json"])
def test_a_model_without_what_lies_beside_it_is_refused(name: str, saved: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(saved, tmp_path / "copied"))
    AutoModel.from_pretrained(copied)
    (copied / name).unlink()
    with pytest.raises(ValueError, match=f"not whole: '{name}' is missing"):
        AutoModel.from_pretrained(copied)


def test_weights_that_are_cut_off_are_refused(saved: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(saved, tmp_path / "copied"))
    size = (copied / "model.safetensors").stat().st_size
    os.truncate(copied / "model.safetensors", size - 1)
    with pytest.raises(ValueError, match=f"'model.safetensors' has {size - 1} bytes instead of {size}"):
        AutoModel.from_pretrained(copied)


def test_what_was_saved_without_a_list_loads(saved: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(saved, tmp_path / "copied"))
    (copied / FILES_LIST).unlink()
    shutil.rmtree(copied / "knowledge_base")
    AutoModel.from_pretrained(copied)
    AutoProcessor.from_pretrained(copied)


def test_a_file_of_the_list_that_is_not_fetched_is_missed(saved: Path, tmp_path: Path) -> None:
    """As from the Hub, where a folder is not looked at as a whole."""
    copied = Path(shutil.copytree(saved, tmp_path / "copied"))
    model = AutoModel.from_pretrained(copied)
    (copied / "knowledge_base" / "knowledge_base.json").unlink()
    with pytest.raises(ValueError, match="not whole: 'knowledge_base/knowledge_base.json' is missing"):
        model.stored_file("knowledge_base.json", "knowledge_base")
    assert model.stored_file("nothing.json") is None


def test_the_list_names_all_that_was_saved(saved: Path) -> None:
    listed = read_list(saved / FILES_LIST)
    there = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()} - {FILES_LIST}
    assert {name for name in some(there) if not name.endswith(".py")} <= listed.keys() <= there
    json.loads((saved / FILES_LIST).read_text(encoding="utf-8"))
