"""One meaning of "missing": however a sample comes to be without a modality, a model is given the same inputs."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FixedPattern, MissingModality
from hf_msa.methods import METHODS
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.msa_schema import MODALITIES
from hf_msa.models.processing_msa import MsaProcessor
from tiny import TINY_CONFIGS, UNK, tiny_processor, tiny_rows

PATTERNS = [kept for size in (1, 2, 3) for kept in itertools.combinations(MODALITIES, size)]
# Of the modalities that a method reads one has to be left.
CASES = [
    pytest.param(method, kept, id=f"{method}-{'+'.join(kept)}")
    for method in METHODS
    for kept in PATTERNS
    if set(kept) & set(TINY_CONFIGS[method]().modalities)
]


def without(row: dict[str, Any], kept: tuple[str, ...], how: str) -> dict[str, Any]:
    """The row as it comes where only some of its modalities were recorded."""
    lost = set(MODALITIES) - set(kept)
    found = {**row, **({"text": "" if how == "flag" else None} if "text" in lost else {})}
    for name in (lost - {"text"}) & set(row):
        found |= {f"{name}_present": False} if how == "flag" else {name: None}
    return found


def ways(model: MsaPreTrainedModel, processor: MsaProcessor, kept: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Inputs and rows of the same samples, by the ways in which a modality can be missing."""
    rows: list[dict[str, Any]] = [{"id": f"s{i}", **row} for i, row in enumerate(tiny_rows(model.config))]
    bare = [without(row, kept, "none") for row in rows]
    yield "rows without it", (processor.from_rows(bare), bare)
    flagged = [without(row, kept, "flag") for row in rows]
    yield "rows that say so", (processor.from_rows(flagged), flagged)
    sequences = {name: [row[name] for row in bare] for name in ("audio", "vision") if name in rows[0]}
    yield "processor", (processor([row["text"] for row in bare], **sequences), bare)
    yield "collator", (MsaCollator(processor)(flagged), flagged)
    protocol = FixedPattern(tuple(name for name in kept if name in rows[0]))
    yield "protocol", (MsaCollator(processor, protocol, "test")(rows), rows)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    mapped = MissingModality(protocol, processor.tokenizer, "test", processor.text_max_length)(columns)
    carried = [{key: values[i] for key, values in mapped.items()} for i in range(len(rows))]
    yield "mask columns", (MsaCollator(processor)(carried), rows)


@pytest.mark.filterwarnings("ignore:.*was called without:UserWarning")
@pytest.mark.parametrize(("method", "kept"), CASES)
def test_however_it_comes_to_be_missing_the_score_is_the_same(method: str, kept: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    config = TINY_CONFIGS[method]()
    model = METHODS[method].model_class(config).eval()
    processor = tiny_processor(config)
    scores = {}
    for way, (inputs, _) in ways(model, processor, kept):
        given = model.inputs_from(inputs, predicting=True)
        with torch.no_grad():
            scores[way] = model(**given).logits
    assert len(scores) == 6
    first, *others = scores.values()
    # Not the same bits: how far a batch is padded is the batch's own.
    assert all(torch.allclose(first, other, rtol=0, atol=1e-6) for other in others), scores


def test_the_form_is_missing_rate_1_at_the_median_length_of_training() -> None:
    config = TINY_CONFIGS["tcmr"]()
    processor = tiny_processor(config)
    frames = np.ones((9, config.audio_dim), dtype=np.float32)
    inputs = processor([None, "great film"], audio=[frames, None], vision=None)
    tokenizer = processor.tokenizer
    ids = [tokenizer.cls_token_id, *[UNK] * 4, tokenizer.sep_token_id]
    assert inputs["input_ids"][0].tolist() == ids
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    assert inputs["text_missing_mask"].tolist() == [[False, *[True] * 4, False], [False] * 6]
    assert inputs["audio_attention_mask"].sum(1).tolist() == [9, 5]
    assert inputs["audio_missing_mask"].sum(1).tolist() == [0, 5] and not inputs["audio_values"][1].any()
    assert inputs["vision_values"].shape[1] == 6 and inputs["vision_missing_mask"].all()


def test_how_long_the_lost_part_was_does_not_show() -> None:
    processor = tiny_processor(TINY_CONFIGS["tcmr"]())
    rows: list[dict[str, Any]] = [{"id": f"s{i}", **row} for i, row in enumerate(tiny_rows(TINY_CONFIGS["tcmr"]()))]
    batch = MsaCollator(processor, FixedPattern(("text",)), "test")(rows)
    assert len({len(row["audio"]) for row in rows}) > 1
    for name in ("audio_attention_mask", "audio_missing_mask", "vision_attention_mask"):
        assert (batch[name] == batch[name][0]).all(), name


def test_complete_values_keep_their_own_lengths() -> None:
    config = TINY_CONFIGS["tcmr"]()
    rows: list[dict[str, Any]] = [{"id": f"s{i}", **row} for i, row in enumerate(tiny_rows(config))]
    rows[0]["audio_present"] = False
    batch = MsaCollator(tiny_processor(config), FixedPattern(("text",)), "test", return_complete=True)(rows)
    lengths = [0, *(len(row["audio"]) for row in rows[1:])]
    assert batch["complete_audio_attention_mask"].sum(1).tolist() == lengths
    assert batch["complete_audio_values"].shape == batch["audio_values"].shape
    assert (batch["audio_attention_mask"].sum(1) == 5).all()


def test_a_processor_of_an_earlier_version_says_what_it_takes() -> None:
    processor = tiny_processor(TINY_CONFIGS["tcmr"]())
    processor.missing_lengths = None
    with pytest.warns(UserWarning, match="no missing_lengths"):
        inputs = processor("great film", audio=None, vision=np.ones((3, TINY_CONFIGS["tcmr"]().vision_dim)))
    assert inputs["audio_values"].shape[1] == processor.feature_extractor.audio_max_length
