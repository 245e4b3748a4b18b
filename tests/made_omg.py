"""A small data set of invented clips, and a checkpoint of OMG-Agent that fits it: untrained but for its planner."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_msa.data.loading import load_msa
from hf_msa.data.prepare import write_dataset
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import DatasetFacts, msa_features
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_observation import observe_rows
from hf_msa.training.omg.entries import build_knowledge_base
from hf_msa.training.omg.planners import fit_centering, fit_light_planner
from tiny import WIDTHS, WORDS, tiny_omg_config, tiny_processor

SIZES = {"train": 16, "validation": 4, "test": 12}
STATISTICS = {
    "audio_mean": [10.0, 20.0, 30.0, 40.0, 50.0],
    "audio_std": [1.0, 2.0, 0.5, 1.0, 0.0],
    "vision_mean": [5.0] * 7,
    "vision_std": [2.0] * 7,
}
Change = Callable[[int, dict[str, Any]], Mapping[str, Any]]


class Clips:
    """Rows `<split>$_$<number>`; a `RowSource`.

    Args:
        change: Takes the number of a row and the row, and gives the columns that are other ones.
        widths: Width of sound and pictures, as far as there are any.
    """

    description = "invention"
    aligned = False

    def __init__(self, change: Change, widths: Mapping[str, int]) -> None:
        self._change = change
        self.splits = list(SIZES)
        self.widths = dict(widths)
        self.features = msa_features(*(self.widths.get(name) for name in ("audio", "vision")), presence=True)
        self.feature_names: dict[str, tuple[str, ...]] = {}
        self.notes: list[str] = []

    def count(self, split: str) -> int:
        return SIZES[split]

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        random = np.random.default_rng(len(split))
        for number in range(SIZES[split]):
            row: dict[str, Any] = {
                "id": f"{split}$_${number}",
                "video_id": split,
                "clip_id": str(number),
                "text": " ".join(random.choice(WORDS, 3 + number % 4)),
                "label": float(random.uniform(-3, 3)),
            }
            for name, width in self.widths.items():
                values = STATISTICS[f"{name}_mean"][0] + random.normal(size=(4 + number % 5, width))
                row[name] = values.astype(np.float32)
                row[f"{name}_present"] = True
            yield row | dict(self._change(number, row))


def write_clips(folder: Path, change: Change = lambda _, __: {}, **widths: int) -> Path:
    """Write the clips as a data set."""
    widths = widths or {name.removesuffix("_dim"): width for name, width in WIDTHS.items()}
    write_dataset(Clips(change, widths), DatasetFacts("clips", "mosi", -3.0, 3.0), folder)
    return folder


def write_checkpoint(folder: Path, data: Path, **fields: Any) -> Path:
    """Write a model with a fitted light planner and a knowledge base of the training split of complete clips."""
    torch.manual_seed(0)
    config = tiny_omg_config(top_k=3, **fields)
    model, processor = OmgForSentimentAnalysis(config).eval(), tiny_processor(config)
    for name, value in STATISTICS.items():
        setattr(processor.feature_extractor, name, value)
    rows = MsaRows(load_msa(data, "train"), "train")
    observations = observe_rows([rows[index] for index in range(len(rows))], processor=processor)
    encode = functools.partial(model.embed_texts, processor.tokenizer)
    planner = fit_light_planner(observations, rows.labels.tolist(), encode, config)
    fit_centering(planner, observations)
    model.set_planner(planner)
    model.save_pretrained(folder / "bare")
    processor.save_pretrained(folder / "bare")
    model.knowledge_base = build_knowledge_base(str(folder / "bare"), str(data), str(folder / "entries"))
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model"
