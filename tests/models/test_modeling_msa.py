"""What the base class gives every model: classes of scores, and the numbers that an output says of a sample."""

import pytest
import torch

from hf_msa.models.modeling_text import TextForSentimentAnalysis
from hf_msa.models.msa_label_families import BUILT_IN
from hf_msa.models.msa_outputs import MsaOutput
from hf_msa.models.msa_schema import SENTIMENT_CLASSES
from tiny import tiny_batch, tiny_processor, tiny_rows, tiny_text_config


def test_the_class_of_a_score_is_its_sign() -> None:
    classes = BUILT_IN["mosi"].polarity(torch.tensor([-3.0, -0.2, 0.0, 0.2, 1.0]))
    assert [SENTIMENT_CLASSES[index] for index in classes] == [
        "negative",
        "negative",
        "neutral",
        "positive",
        "positive",
    ]


class NamedColumns(TextForSentimentAnalysis):
    output_columns = {"hidden": ("left", "right")}  # noqa: RUF012


def test_numbers_per_sample_are_single_outputs_and_named_columns() -> None:
    model = NamedColumns(tiny_text_config())
    outputs = MsaOutput(logits=torch.tensor([[1.0], [2.0]]), loss=torch.tensor(3.0))
    outputs["confidence"] = torch.tensor([[0.1], [0.2]])
    outputs["hidden"] = torch.tensor([[4.0, 5.0], [6.0, 7.0]])
    outputs["unnamed"] = torch.zeros(2, 2)
    outputs["tokens"] = torch.zeros(2, 1, 2)
    found = {name: value.tolist() for name, value in model.per_sample_outputs(outputs).items()}
    assert found.pop("confidence") == pytest.approx([0.1, 0.2])
    assert found == {"logits": [1.0, 2.0], "hidden_left": [4.0, 6.0], "hidden_right": [5.0, 7.0]}


def test_an_output_without_a_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="has no logits"):
        NamedColumns(tiny_text_config()).per_sample_outputs(MsaOutput(loss=torch.tensor(1.0)))


def test_rows_are_predicted_as_forward_does_unless_a_method_reads_them() -> None:
    config = tiny_text_config()
    model = TextForSentimentAnalysis(config).eval()
    batch = tiny_batch(config)
    found = model.predict_rows(batch, tiny_rows(config), tiny_processor(config))
    assert torch.equal(found.logits, model(**batch).logits)
