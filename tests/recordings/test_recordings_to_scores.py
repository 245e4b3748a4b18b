"""From spoken clips to a data set, to a trained model, to the score of a clip, by the commands alone."""

import csv
import json
from pathlib import Path

import pytest

from hf_msa.data.schema import DatasetFacts
from hf_msa.errors import MsaError
from hf_msa.evaluation.checkpoints import check_feature_sets
from hf_msa_cli import main
from tiny import TINY_CONFIGS, tiny_processor

pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
pytest.importorskip("librosa", reason="librosa is not installed: pip install 'hf-msa[audio]'")


def test_features_of_another_set_are_refused_with_both_names() -> None:
    processor = tiny_processor(TINY_CONFIGS["tcmr"]())
    facts = DatasetFacts("x", "mosi", -3, 3, audio_set="librosa33@1")
    check_feature_sets(processor, facts, "org/model")
    processor.feature_extractor.audio_set = "prosody@1"
    with pytest.raises(MsaError, match="'librosa33@1', but the checkpoint 'org/model' was trained on 'prosody@1'"):
        check_feature_sets(processor, facts, "org/model")


@pytest.mark.slow
def test_by_the_commands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    extract = ["extract", "corpus/recordings/manifest.csv", "--label-family", "mosi"]
    for command in (
        ["sample-corpus", "--preset", "tiny", "--version", "1", "--recordings", "12", "--output", "corpus"],
        [*extract, "--output", "data", "--audio-set", "prosody"],
        [*extract, "--output", "other", "--audio-set", "logmel"],
        ["train", "tcmr/sample", "--data", "data", "--output", "run", "--text-model", "corpus/text_model"]
        + ["--num_train_epochs", "1", "--use_cpu"],
        ["evaluate", "run", "--data", "data", "--protocol", "complete"],
        ["predict", "run/seed-1111", "corpus/recordings", "--output", "scores.csv"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    saved = json.loads((tmp_path / "run/seed-1111/processor_config.json").read_text())
    assert saved["feature_extractor"]["audio_set"] == "prosody@1"
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and all(row["audio_present"] == "True" for row in rows)
    assert len({row["score"] for row in rows}) > 6
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", "other", "--output", "out"]) == 2
    assert "is of the feature set 'logmel@1', but the checkpoint" in capsys.readouterr().err
