"""Small MMSA pickles made by hand."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"train": 6, "valid": 3, "test": 4}


def mmsa_split(
    split: str, count: int, *, audio: tuple[int, int] | None = (7, 5), vision: tuple[int, int] | None = (9, 4)
) -> dict[str, Any]:
    """One split in MMSA's schema; frames beyond a sample's length are zero, those within are not."""
    rng = np.random.default_rng(len(split) + count)
    data: dict[str, Any] = {
        "raw_text": np.array([f"{split} text {index}" for index in range(count)]),
        "id": np.array([f"{split}video{index // 2}$_${index}" for index in range(count)]),
        "regression_labels": np.linspace(-3, 3, count, dtype=np.float32),
        "annotations": np.array(["Positive"] * count),
        "classification_labels": np.zeros(count),
        "text": np.zeros((count, 4, 8), dtype=np.float32),
        "text_bert": np.zeros((count, 3, 4), dtype=np.float32),
    }
    for modality, shape in (("audio", audio), ("vision", vision)):
        if shape is not None:
            frames, width = shape
            lengths = rng.integers(1, frames + 1, count)
            array = rng.normal(size=(count, frames, width)).astype(np.float32)
            array[np.arange(frames)[None, :] >= lengths[:, None]] = 0
            data[modality] = array
            data[f"{modality}_lengths"] = lengths.tolist()
    return data


def mmsa(**options: Any) -> dict[str, dict[str, Any]]:
    """A whole file."""
    return {split: mmsa_split(split, count, **options) for split, count in SIZES.items()}


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path
