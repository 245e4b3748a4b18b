"""What is checked of a language model before anything is trained."""

from pathlib import Path

import pytest

from hf_msa.evaluation.checkpoints import locate_language_model, with_located_model
from tiny import tiny_uacs_config


def test_a_folder_is_named_by_its_whole_path_and_a_hub_name_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given, kept in (
        ("models/small", str(tmp_path / "models" / "small")),
        ("org/small", "org/small"),
        (None, None),
    ):
        config = tiny_uacs_config(expert_model=given)
        locate_language_model(config)
        assert config.expert_model == kept
        assert with_located_model({"expert_model": given, "route": "fast"}, config)["expert_model"] == kept
