"""The forms in which a processor takes text and features, and what it refuses."""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_msa.data.collator import MsaCollator
from hf_msa.errors import MsaError
from hf_msa.methods import METHODS
from nonempty import some
from tiny import TINY_CONFIGS, tiny_processor, tiny_rows

CONFIG = TINY_CONFIGS["tcmr"]()
ROWS = [{"id": f"s{i}", **row} for i, row in enumerate(tiny_rows(CONFIG))]
FORMS = {
    "lists": lambda values: values.tolist(),
    "float64": lambda values: values.astype(np.float64),
    "torch": torch.from_numpy,
    "arrow": lambda values: pa.array(values.tolist()),
    "list of arrays": list,
    "gradient": lambda values: torch.from_numpy(values).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_holds_the_features_the_inputs_are_the_same(form: str) -> None:
    processor, texts = tiny_processor(CONFIG), [row["text"] for row in ROWS]
    expected = processor(texts, audio=[row["audio"] for row in ROWS], vision=[row["vision"] for row in ROWS])
    turned = {name: [FORMS[form](row[name]) for row in ROWS] for name in ("audio", "vision")}
    found = processor(texts, **turned)
    assert found.keys() == expected.keys()
    for key, value in some(expected.items()):
        assert torch.equal(value, found[key]) and value.dtype == found[key].dtype, key


def test_bfloat16_features_are_taken() -> None:
    values = torch.tensor([[1.0, 2.0, 0.5, -4.0, 0.0]]).to(torch.bfloat16)
    inputs = tiny_processor(CONFIG)("great film", audio=[values])
    assert inputs["audio_values"].tolist() == [[[1.0, 2.0, 0.5, -4.0, 0.0]]]


@pytest.mark.parametrize("audio", [ROWS[0]["audio"], ROWS[0]["audio"].tolist(), [ROWS[0]["audio"]], [None], None])
def test_one_text_takes_its_sequence_alone_or_in_a_list(audio: Any) -> None:
    found = tiny_processor(CONFIG)(ROWS[0]["text"], audio=audio)
    is_missing = audio is None or audio[0] is None
    length = 5 if is_missing else len(ROWS[0]["audio"])
    assert len(ROWS[0]["audio"]) != 5
    assert found["audio_attention_mask"].tolist() == [[1] * length]


def test_gaps_in_features_become_zero() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 1.0, 2.0]], dtype=np.float32)
    assert tiny_processor(CONFIG)("great film", audio=values)["audio_values"].tolist() == [[[0, 0, 0, 1, 2]]]


@pytest.mark.parametrize(
    ("text", "audio", "message"),
    [
        ([3.5], None, "The text of sample 0 is 3.5; give a string, or pass '' where it is missing"),
        (["a"], [[[1, 2], [3]]], r"audio of sample 0 is no table of numbers; give \(frames, width\)"),
        (["a"], [["loud"]], "pass sampling_rate, or give a table of numbers"),
        (["a"], [np.zeros((2, 3))], r"audio of sample 0 has shape \(2, 3\), but this checkpoint reads \(frames, 5\)"),
        (["a", "b"], [None], "There are 2 texts but 1 audio sequences"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: Any, audio: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_processor(CONFIG)(text, audio=audio)


def test_a_data_set_is_mapped_in_batches_of_any_size() -> None:
    processor = tiny_processor(CONFIG)
    rows = [{**row, "audio": row["audio"].tolist(), "vision": row["vision"].tolist()} for row in ROWS]
    rows[1]["audio"] = None

    def process(batch: dict[str, list[Any]]) -> dict[str, Any]:
        return dict(processor(batch["text"], audio=batch["audio"], vision=batch["vision"], return_tensors="np"))

    mapped = datasets.Dataset.from_list(rows).map(process, batched=True, batch_size=2)
    assert mapped[1]["audio_missing_mask"][:5] == [True] * 5
    model = METHODS["tcmr"].model_class(CONFIG).eval()
    alone = processor(rows[0]["text"], audio=rows[0]["audio"], vision=rows[0]["vision"])
    given = {key: torch.tensor([mapped[0][key]]) for key in alone}
    with torch.no_grad():
        assert torch.allclose(model(**given).logits, model(**alone).logits, atol=1e-5)


def test_the_stock_trainer_trains_with_the_collator(tmp_path: Any) -> None:
    model = METHODS["tcmr"].model_class(CONFIG)
    before = {name: value.clone() for name, value in model.named_parameters()}
    options: dict[str, Any] = {"max_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    options |= {"save_strategy": "no", "label_names": ["labels"]}
    data: Any = datasets.Dataset.from_list([{**row, "audio": row["audio"].tolist()} for row in ROWS])
    collator = MsaCollator(tiny_processor(CONFIG))
    arguments = TrainingArguments(str(tmp_path), remove_unused_columns=False, **options)
    Trainer(model, arguments, train_dataset=data, data_collator=collator).train()
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    with pytest.raises(MsaError, match="give it remove_unused_columns=False"):
        collator([{"label": 1.0}])
