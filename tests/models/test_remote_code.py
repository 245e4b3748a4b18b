"""Checkpoints load, predict the same bits and save themselves again where hf_msa is not installed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_msa.methods import METHODS
from tiny import TINY_CONFIGS, tiny_batch, tiny_processor, tiny_rows

CHILD = Path(__file__).with_name("remote_code_child.py")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Per method the logits of the saver and what a process without hf_msa found; one process for all methods."""
    root = tmp_path_factory.mktemp("checkpoints")
    expected = {}
    for name, method in METHODS.items():
        torch.manual_seed(3)
        model = method.model_class(TINY_CONFIGS[name]()).eval()
        model.save_pretrained(root / name)
        tiny_processor(model.config).save_pretrained(root / name)
        torch.save(tiny_rows(model.config), root / f"{name}.pt")
        expected[name] = model(**tiny_batch(model.config)).logits.detach()
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules")), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(CHILD), str(root)], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {
        name: {
            "expected": logits,
            "files": {path.name for path in (root / name).iterdir()},
            "files_again": {path.name for path in (root / f"{name}_again").iterdir()},
            **torch.load(root / f"{name}_found.pt", weights_only=False),
        }
        for name, logits in expected.items()
    }


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("load", ["first", "second"])
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
def test_logits_are_the_savers_bit_for_bit(
    saved: dict[str, dict[str, Any]], method: str, load: str, auto: str
) -> None:
    assert torch.equal(saved[method][load][auto], saved[method]["expected"])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("omg", "uacs")])
@pytest.mark.parametrize("load", ["first", "second"])
def test_the_pipeline_travels_too(saved: dict[str, dict[str, Any]], method: str, load: str) -> None:
    """The others would need a planner, and thresholds."""
    assert saved[method][load]["pipeline"] == pytest.approx(saved[method]["expected"].reshape(-1).tolist(), abs=1e-6)


@pytest.mark.parametrize("method", list(METHODS))
def test_the_class_is_the_predicting_one_and_the_code_travels(saved: dict[str, dict[str, Any]], method: str) -> None:
    found = saved[method]
    assert found["first"]["class"] == METHODS[method].model_class.__name__
    assert tuple(found["first"]["modalities"]) == TINY_CONFIGS[method]().modalities
    code = {f"configuration_{method}.py", f"modeling_{method}.py", "configuration_msa.py", "processing_msa.py"}
    assert code <= found["files"]
    assert {name for name in found["files"] if name.endswith(".py")} <= found["files_again"]
