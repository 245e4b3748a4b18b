"""`hf-msa impute` and `hf-msa kb build`: what they write and say, and their refusals in one sentence."""

from pathlib import Path

import pytest

from hf_msa.data.loading import load_msa
from hf_msa.models.omg_knowledge_base import KnowledgeBase
from hf_msa_cli import main
from made_omg import write_checkpoint, write_clips

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("impute")
    write_clips(folder / "clips")
    write_checkpoint(folder, folder / "clips")
    return folder


def test_impute(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["impute", str(work / "model"), "--data", str(work / "clips"), "--output", str(tmp_path / "out")]
    options = ["--protocol", "fixed", "--available", "text", "audio", "--splits", "validation", "test"]
    assert main([*command, *options, "--batch-size", "8"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "vision was generated in 12 of 12 samples of 'test'." in shown
    assert shown.endswith(f"Completed data set: {tmp_path / 'out'}")
    completed = load_msa(tmp_path / "out")
    assert list(completed) == ["validation", "test"] and all(completed["test"]["vision_generated"])
    assert main([*command, *options]) == 2
    assert "is not empty; give another one, or --overwrite to replace it." in capsys.readouterr().err
    assert main([*command, *options[:4], "--splits", "test", "--overwrite"]) == 0
    assert list(load_msa(tmp_path / "out")) == ["test"]


def test_build_a_knowledge_base(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["kb", "build", str(work / "model"), "--data", str(work / "clips"), "--output", str(tmp_path / "kb")]
    assert main([*command, "--split", "test"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Knowledge base: {tmp_path / 'kb'} entries: 12 latents: audio 6 x 6, text 6 x 6, vision 6 x 6" in shown
    assert KnowledgeBase.load(tmp_path / "kb").ids[0] == "test$_$0"
    assert main(["kb", "inspect", str(tmp_path / "kb"), "--id", "test$_$0", "--neighbours", "2"]) == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["impute", "nowhere/at/all", "--data", "clips", "--output", "out"], "impute: No checkpoint can be loaded"),
        (["impute", "model", "--data", "nowhere", "--output", "out"], "impute: There is no folder 'nowhere'"),
        (["impute", "model", "--data", "clips", "--output", "out", "--protocol", "block"], "give modality, fixed"),
        (["impute", "model", "--data", "clips"], "--output"),
        (
            ["kb", "build", "model", "--data", "clips", "--output", "out", "--split", "dev"],
            "kb build: Unknown split 'dev'",
        ),
        (["kb", "build", "model", "--data", "clips", "--output", "out", "--batch-size", "0"], "give at least 1"),
    ],
)
def test_refusals(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(work)
    before = sorted(work.rglob("*"))
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr().err.splitlines()
    assert status == 2 and words in said[-1] and said[-1].endswith(".") and len(said) == 1, said
    assert sorted(work.rglob("*")) == before
