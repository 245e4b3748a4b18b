"""`hf-msa kb`: what it says of a knowledge base, and what it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_msa.models.omg_knowledge_base import ENTRIES_FILE, KnowledgeBase
from hf_msa_cli import main


def knowledge_base() -> KnowledgeBase:
    """Four observations in a plane, 0, 30, 60 and 120 degrees from the first; plans are the same in all but the third."""
    degrees = torch.deg2rad(torch.tensor([0.0, 30.0, 60.0, 120.0]))
    observations = torch.stack([degrees.cos(), degrees.sin()], dim=1)
    plans = torch.tensor([[1.0, 0], [1, 0], [3, 4], [1, 0]])
    latents = {"text": torch.ones(4, 5, 2), "audio": torch.ones(4, 6, 2)}
    return KnowledgeBase(["a$_$0", "a$_$1", "b$_$0", "b$_$1"], plans, observations, latents)


def shown(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    capsys.readouterr()
    assert main(["kb", "inspect", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    knowledge_base().save(tmp_path / "kb")
    out = shown(capsys, tmp_path / "kb")
    for line in (
        f"Knowledge base: {tmp_path / 'kb'}",
        "entries: 4",
        "latents: audio 6 x 2, text 5 x 2",
        "vectors: 2",
        "on disk: 0.0 MiB",
    ):
        assert line in re.sub(" +", " ", out)
    assert "Nearest" not in out


def test_size_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    knowledge_base().save(tmp_path / "kb")
    (tmp_path / "kb" / f"other-{ENTRIES_FILE}").write_bytes(bytes(3 * 2**20))
    assert "3.0 MiB" in shown(capsys, tmp_path / "kb")


def test_what_lies_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    knowledge_base().save(tmp_path / "kb")
    out = shown(capsys, tmp_path / "kb", "--id", "a$_$0", "--neighbours", "2")
    rows = [re.findall(r"[^\s│|]+", line) for line in out.splitlines() if "$_$" in line and "Nearest" not in line]
    assert rows == [["a$_$1", "0.866", "1.000"], ["b$_$0", "0.500", "0.600"]]
    assert len(re.findall(r"[ab]\$_\$\d", shown(capsys, tmp_path / "kb", "--id", "b$_$1"))) == 1 + 3


def test_a_run_stands_for_the_knowledge_bases_of_its_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (2, 1):
        knowledge_base().save(tmp_path / f"seed-{seed}" / "knowledge_base")
    out = shown(capsys, tmp_path)
    assert out.count("entries:") == 2 and out.index("seed-1") < out.index("seed-2")
    assert shown(capsys, tmp_path / "seed-2").count("entries:") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["inspect", "kb", "--id", "a$_$2"], "Unknown entry 'a$_$2'. Did you mean 'a$_$"),
        (["inspect", "kb", "--neighbours", "0"], "--neighbours is 0; give at least 1."),
        (["inspect", "kb", "--all"], "kb inspect takes no --all"),
        (
            ["inspect", "."],
            "'.' holds no knowledge base (no knowledge_base.json, no knowledge_base/knowledge_base.json,",
        ),
        (["inspect", "nowhere"], "'nowhere' holds no knowledge base"),
        (["inspect", "broken"], "broken: The knowledge base cannot be read ("),
        ([], "the following arguments are required: ACTION"),
        (["inspekt", "kb"], "invalid choice: 'inspekt'"),
    ],
)
def test_what_is_refused(
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    knowledge_base().save("kb")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "knowledge_base.json").write_text("[")
    capsys.readouterr()
    try:
        status = main(["kb", *options])
    except SystemExit as stop:
        status = int(stop.code or 0)
    error = capsys.readouterr().err
    assert status == 2 and words in error and error.startswith("hf-msa") and len(error.splitlines()) == 1
