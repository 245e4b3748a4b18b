"""Checkpoints that earlier versions wrote load and predict what they predicted then; see `fixtures/make_checkpoints.py`."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

import hf_msa  # noqa: F401  (registers the methods with the Auto classes)
from hf_msa.data.missing import apply_missing
from hf_msa.hub.push import PUBLISHED
from nonempty import some
from tiny import UNK

CHECKPOINTS = Path(__file__).parents[1] / "fixtures" / "checkpoints"
NAMES = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))


def test_there_are_checkpoints() -> None:
    assert NAMES == ["cmc", "omg", "tcmr_without_vision", "uacs"]


def old_rows() -> list[dict[str, Any]]:
    rows = json.loads((CHECKPOINTS / "rows.json").read_text(encoding="utf-8"))
    features = ("audio", "vision")
    return [{k: np.array(v, dtype=np.float32) if k in features else v for k, v in row.items()} for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_an_old_checkpoint_predicts_what_it_predicted(name: str) -> None:
    model = AutoModel.from_pretrained(CHECKPOINTS / name).eval()
    processor = AutoProcessor.from_pretrained(CHECKPOINTS / name)
    expected = json.loads((CHECKPOINTS / name / "expected.json").read_text(encoding="utf-8"))
    rows = old_rows()
    complete = dict(processor.from_rows(rows))
    dropped = apply_missing(complete, {"audio": complete["audio_attention_mask"].bool().numpy()}, UNK)
    with torch.no_grad():
        found = {
            "forward": model(**complete),
            "predict_rows": model.predict_rows(complete, rows, processor),
            "without_audio": model.predict_rows(dropped, rows, processor),
        }
    for way, output in some(found.items()):
        assert output.logits.squeeze(1).tolist() == pytest.approx(expected[way], abs=2e-6), way


def test_an_old_checkpoint_finds_what_lies_beside_its_weights() -> None:
    model = AutoModel.from_pretrained(CHECKPOINTS / "uacs")
    assert model.verbalizer is not None
    words = model.verbalizer.describe({"audio": old_rows()[0]["audio"]})
    assert words


@pytest.mark.parametrize("name", NAMES)
def test_all_that_lies_beside_the_weights_is_declared(name: str) -> None:
    model_class = type(AutoModel.from_pretrained(CHECKPOINTS / name))
    patterns = (*PUBLISHED, *(file.pattern for file in model_class.SIDE_FILES))
    files = [path.relative_to(CHECKPOINTS / name).as_posix() for path in (CHECKPOINTS / name).rglob("*.*")]
    assert len(files) > 5
    undeclared = {path for path in files if not any(fnmatch(path, pattern) for pattern in patterns)}
    assert undeclared == {"expected.json"}
