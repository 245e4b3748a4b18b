"""What lies beside U-ACS's weights goes to the Hub and comes back from it, the adapter when it is needed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi

from hf_msa.hub.push import _contents
from hf_msa.models.modeling_uacs import UacsForSentimentAnalysis
from hf_msa.models.msa_mllm import LocalMllm
from hf_msa.models.msa_verbalizer import MsaVerbalizer
from loopback_hub import OWNER, LoopbackHub
from test_push import save_run

REPO = f"{OWNER}/uacs-mosi"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = save_run(tmp_path / "seed-1", method="uacs")
    model = UacsForSentimentAnalysis.from_pretrained(
        folder, expert_model="/home/somebody/models/omni-7b", expert_adapter=True, tau_1=-1.0
    )
    model.verbalizer = MsaVerbalizer.fit(
        [{"audio": torch.randn(4, 5).numpy()} for _ in range(3)], {"audio": list("abcde")}
    )
    adapter = tmp_path / "lora"
    adapter.mkdir()
    described = {"base_model_name_or_path": "/home/somebody/models/omni-7b", "target_modules": r".*\.q_proj"}
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    model.set_adapter_folder(adapter)
    model.save_pretrained(folder)
    return folder


def push(run_folder: Path) -> None:
    """Without the check in a process of its own, which other tests are about."""
    api = HfApi()
    api.create_repo(REPO)
    operations = [CommitOperationAdd(path, content) for path, content in _contents(run_folder, REPO).items()]
    api.create_commit(REPO, operations, commit_message="all of it")


def test_statistics_come_with_the_model_and_the_adapter_when_the_expert_is_needed(
    loopback_hub: LoopbackHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run_folder)
    model = UacsForSentimentAnalysis.from_pretrained(REPO)
    assert model.verbalizer == UacsForSentimentAnalysis.from_pretrained(run_folder).verbalizer
    assert loopback_hub.count("GET", "adapter_model") == 0
    found: list[Path] = []

    def load(name: str, *, adapter: str, **_: Any) -> None:
        found.append(Path(adapter))

    monkeypatch.setattr(LocalMllm, "from_pretrained", load)
    _ = model.expert
    assert (found[0] / "adapter_model.safetensors").read_bytes() == b"weights"
    assert (found[0] / "adapter_config.json").is_file()
    assert loopback_hub.count("GET", "adapter_model") == 1


def test_no_folder_of_this_machine_is_published(run_folder: Path) -> None:
    contents = _contents(run_folder, REPO)
    published = {}
    for name in ("config.json", "adapter/adapter_config.json"):
        content = contents[name]
        assert isinstance(content, bytes) and b"somebody" not in content
        published[name] = json.loads(content)
    assert published["config.json"]["expert_model"] == "omni-7b"
    original = json.loads((run_folder / "config.json").read_text(encoding="utf-8"))
    assert published["config.json"] == original | {"expert_model": "omni-7b"}
    assert published["adapter/adapter_config.json"]["target_modules"] == r".*\.q_proj"


def test_what_names_no_folder_is_published_as_it_is(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "seed-1", method="uacs")
    assert _contents(folder, REPO)["config.json"] == folder / "config.json"
