"""Uploading a prepared data set to the loopback Hub: what arrives, who may, and what is said otherwise."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hf_msa.data import prepare_dataset
from hf_msa.data.prepare import push_dataset
from hf_msa.errors import MsaError
from loopback_hub import OWNER, READ_TOKEN, LoopbackHub
from pickle_factory import mmsa, write

REPO = f"{OWNER}/mosi"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write(tmp_path / "raw.pkl", mmsa())


def test_what_was_prepared_arrives(loopback_hub: LoopbackHub, raw: Path, tmp_path: Path) -> None:
    prepare_dataset("mosi", raw, tmp_path / "out", push_to_hub=REPO)
    sent = {path: content for path, content in loopback_hub.files(REPO, "dataset").items() if path != ".gitattributes"}
    written = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}
    assert sent == written and len(sent) == 5


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, rf"{OWNER} may not write to {REPO} .*choose a name under"),
        (429, r"answered 429.*wait a few minutes.*out' is complete: the same command with --overwrite"),
        (500, r"answered 500.*try again later.*is complete"),
        (None, r"connection failed.*check the network"),
        ("damaged", r"gave an answer that cannot be used"),
    ],
)
def test_failures_say_what_to_do_and_what_was_prepared_stays(
    loopback_hub: LoopbackHub, raw: Path, tmp_path: Path, status: int | str | None, message: str
) -> None:
    loopback_hub.fail("POST", "/api/repos/create", status=status)
    with pytest.raises(MsaError, match=message):
        prepare_dataset("mosi", raw, tmp_path / "out", push_to_hub=REPO)
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_token_that_may_not_write_is_named(
    loopback_hub: LoopbackHub, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_dataset("mosi", raw, tmp_path / "out")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(MsaError, match="may only read"):
        push_dataset(tmp_path / "out", REPO)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(MsaError, match="no Hub token.*hf auth login"):
        push_dataset(tmp_path / "out", REPO)


def test_a_private_data_set_does_not_become_public(loopback_hub: LoopbackHub, raw: Path, tmp_path: Path) -> None:
    prepare_dataset("mosi", raw, tmp_path / "out")
    push_dataset(tmp_path / "out", REPO, private=True)
    assert loopback_hub.repo(REPO, "dataset").private
    public = f"{OWNER}/open"
    HfApi().create_repo(public, repo_type="dataset")
    with pytest.raises(MsaError, match="exists already and is public"):
        push_dataset(tmp_path / "out", public, private=True)
    assert len(loopback_hub.repo(public, "dataset").commits) == 1


def test_a_wrong_name_is_refused_before_anything_is_prepared(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(MsaError, match="give ORG/NAME"):
        prepare_dataset("mosi", raw, tmp_path / "out", push_to_hub="no such/na me/x")
    assert not (tmp_path / "out").exists()
    with pytest.raises(MsaError, match="not a prepared data set"):
        push_dataset(tmp_path, REPO)
