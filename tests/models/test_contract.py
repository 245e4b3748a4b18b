"""What transformers promises of a model for sequence classification, kept by every method; what a method has to bring."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)
from transformers.utils import ModelOutput

from hf_msa.data.collator import MsaCollator
from hf_msa.methods import METHODS
from hf_msa.models.configuration_text import TextConfig
from hf_msa.models.modeling_msa import MsaPreTrainedModel, build_text_encoder, masked_mean
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis
from hf_msa.models.msa_inputs import INPUT_KEYS, MsaInputs
from hf_msa.models.msa_outputs import MsaOutput
from nonempty import some
from tiny import TINY_CONFIGS, tiny_batch, tiny_labels, tiny_processor, tiny_rows, tiny_tcmr_config, tiny_text_config

QUIET = pytest.mark.filterwarnings("ignore:(U-ACS|OMG-Agent) was called without:UserWarning")
every_method = pytest.mark.parametrize("method", list(METHODS))


def build(method: str, **overrides: Any) -> MsaPreTrainedModel:
    torch.manual_seed(0)
    return METHODS[method].model_class(TINY_CONFIGS[method](**overrides)).eval()


# --- What the library documents ---


@every_method
def test_a_configuration_can_be_made_without_arguments(method: str) -> None:
    config = AutoConfig.for_model(f"hf_msa_{method}")
    assert (config.audio_dim, config.vision_dim) == (5, 20)
    assert (config.text_max_length, config.audio_max_length, config.vision_max_length) == (50, 375, 500)
    assert config.text_config.model_type == "bert"


@every_method
def test_the_configuration_says_what_the_logits_are(method: str, tmp_path: Path) -> None:
    config = TINY_CONFIGS[method]()
    assert config.num_labels == 1 and config.problem_type == "regression" and config.id2label == {0: "sentiment"}
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.num_labels == 1 and again.problem_type == "regression" and again.label2id == {"sentiment": 0}
    for fields in ({"num_labels": 3}, {"problem_type": "single_label_classification", "num_labels": 2}):
        with pytest.raises(ValueError, match="predicts one score"):
            TINY_CONFIGS[method](**fields)


@every_method
def test_what_earlier_versions_saved_of_classes_is_read(method: str) -> None:
    config = TINY_CONFIGS[method]()
    if config.class_names:
        old = dict(enumerate(config.class_names))
        again = TINY_CONFIGS[method](id2label=old, problem_type="single_label_classification")
        assert again.num_labels == 1 and again.problem_type == "regression"
    else:
        assert config.id2label == {0: "sentiment"}


@QUIET
@every_method
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_the_stock_trainer_trains_predicts_and_keeps_the_best(method: str, auto: Any, tmp_path: Path) -> None:
    model = build(method)
    model.save_pretrained(tmp_path / "model")
    rows = [{"id": str(index), **row} for index, row in enumerate(tiny_rows(model.config, 6))]
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        num_train_epochs=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="mae",
        greater_is_better=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )

    def mae(prediction: EvalPrediction) -> dict[str, float]:
        assert prediction.predictions.shape == (6, 1) and prediction.label_ids.shape == (6,)
        return {"mae": float(np.abs(prediction.predictions[:, 0] - prediction.label_ids).mean())}

    trained = auto.from_pretrained(tmp_path / "model")
    collator = MsaCollator(tiny_processor(model.config))
    trainer = Trainer(trained, arguments, collator, rows, rows, compute_metrics=mae)
    trainer.train()
    changed = [not torch.equal(value, model.state_dict()[name]) for name, value in trained.state_dict().items()]
    assert any(changed)
    measured = [entry["eval_mae"] for entry in trainer.state.log_history if "eval_mae" in entry]
    assert len(measured) == 2 and trainer.state.best_metric == min(measured)
    predicted = trainer.predict(rows)
    assert predicted.predictions.shape == (6, 1) and np.isfinite(predicted.predictions).all()
    assert predicted.metrics["test_mae"] == pytest.approx(min(measured), rel=1e-4)
    with torch.no_grad():
        assert np.allclose(trained.eval()(**collator(rows)).logits.numpy(), predicted.predictions, atol=1e-4)


@QUIET
@every_method
def test_a_batch_of_the_collator_can_be_handed_over_as_it_is(method: str) -> None:
    model = build(method)
    rows = [{"id": str(index), "label_text": 0.5, **row} for index, row in enumerate(tiny_rows(model.config))]
    batch = MsaCollator(tiny_processor(model.config), return_complete=True)(rows)
    out = model(**batch, token_type_ids=torch.zeros_like(batch["input_ids"]))
    assert out.loss.ndim == 0
    assert torch.allclose(out.logits, model(**tiny_batch(model.config)).logits, atol=1e-6)


@QUIET
@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_the_bits_take_what_the_processor_gives(
    method: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = build(method)
    processor = tiny_processor(model.config)
    inputs = model.inputs_from(processor.from_rows(tiny_rows(model.config)), predicting=True)
    with torch.no_grad():
        expected = model(**inputs).logits
    model.to(dtype).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert loaded.dtype == dtype
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits.float(), expected, rtol=0.02, atol=0.01)
    loss = loaded.train()(**inputs, labels=torch.zeros(len(expected))).loss
    if loss is not None:
        loss.backward()
    assert loss is None or math.isfinite(loss.detach())


@QUIET
@every_method
def test_a_tuple_on_request(method: str) -> None:
    model = build(method)
    batch = tiny_batch(model.config)
    labels = tiny_labels(model.config)
    loss, logits, *_ = model(**batch, labels=labels, return_dict=False)
    expected = model(**batch, labels=labels)
    assert torch.equal(loss, expected.loss) and torch.equal(logits, expected.logits)
    model.config.return_dict = False
    assert torch.equal(model(**batch)[0], expected.logits)


def stage_models() -> list[type[MsaPreTrainedModel]]:
    """All classes of the package that learn from labels, those of single stages and of no method's table included."""
    found, waiting = [], [MsaPreTrainedModel]
    while waiting:
        below = [each for each in waiting.pop().__subclasses__() if each.__module__.startswith("hf_msa.")]
        found += [each for each in below if "compute" in each.__dict__]
        waiting += below
    return found


@QUIET
@pytest.mark.parametrize("model_class", stage_models(), ids=lambda each: each.__name__)
def test_no_model_pairs_every_score_with_every_label(model_class: type[MsaPreTrainedModel]) -> None:
    """Squared errors of (4,) against (4, 1) are sixteen; what is done of labels goes for every class and every loss term."""
    torch.manual_seed(0)
    model = model_class(TINY_CONFIGS[model_class.config_class.model_type.removeprefix("hf_msa_")]()).eval()
    assert len(stage_models()) > len(METHODS)
    batch, labels = tiny_batch(model.config), tiny_labels(model.config)
    with warnings.catch_warnings():
        # Of torch: "Using a target size that is different to the input size".
        warnings.filterwarnings("error", message="Using a target size")
        rows, column = (model(**batch, labels=given) for given in (labels, labels.unsqueeze(1)))
    assert (rows.loss is None and column.loss is None) or torch.equal(rows.loss, column.loss)
    assert all(torch.equal(term, column.losses[name]) for name, term in (rows.losses or {}).items())
    with pytest.raises(ValueError, match=r"labels have shape \(1, 4\) for 4 samples"):
        model(**batch, labels=labels.unsqueeze(0))


@QUIET
# OMG-Agent plans before it predicts rows, and then hands its labels to forward.
@pytest.mark.parametrize("method", [name for name in METHODS if name != "omg"])
def test_raw_rows_are_predicted_with_labels_of_either_shape(method: str) -> None:
    model = build(method, **({"route": "fast"} if method == "uacs" else {}))
    rows = [{"id": str(index), **row} for index, row in enumerate(tiny_rows(model.config))]
    batch, labels = tiny_batch(model.config), tiny_labels(model.config)
    processor = tiny_processor(model.config)
    losses = [
        model.predict_rows({**batch, "labels": given}, rows, processor).loss for given in (labels, labels.unsqueeze(1))
    ]
    assert torch.equal(*losses)


@QUIET
@every_method
def test_labels_are_understood_in_every_shape_that_says_one_score_per_sample(method: str) -> None:
    model = build(method)
    batch, labels = tiny_batch(model.config), tiny_labels(model.config)
    expected = model(**batch, labels=labels).loss
    assert torch.equal(model(**batch, labels=labels.unsqueeze(1)).loss, expected)
    one = {name: value[:1] for name, value in batch.items()}
    assert torch.equal(model(**one, labels=labels[0]).loss, model(**one, labels=labels[:1]).loss)
    assert torch.isfinite(model(**batch, labels=torch.tensor([1, -2, 0, 3])).loss)
    for wrong in (labels[:3], labels.unsqueeze(0), labels[0], torch.zeros(4, 2)):
        with pytest.raises(ValueError, match=r"labels have shape .* for 4 samples; give one score per sample"):
            model(**batch, labels=wrong)


@QUIET
@every_method
def test_gradient_checkpointing_gives_the_same_gradients(method: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(method).train()
        model.text_encoder.requires_grad_(True)
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model(**tiny_batch(model.config), labels=tiny_labels(model.config)).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert gradients[0]
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.allclose(plain, checkpointed, atol=1e-6)


@every_method
def test_input_embeddings_are_the_text_encoders(method: str) -> None:
    model = build(method)
    assert model.get_input_embeddings() is model.text_encoder.get_input_embeddings()


# --- What is refused ---


@every_method
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("audios_values", "takes no argument 'audios_values'; the nearest name is 'audio_values'"),
        ("label", "takes no argument 'label'; the nearest name is 'labels'"),
        ("output_hidden_states", r"not supported; those of the text come from model.text_encoder\("),
    ],
)
def test_unknown_arguments_are_refused(method: str, name: str, message: str) -> None:
    model = build(method)
    with pytest.raises(TypeError, match=message):
        model(**tiny_batch(model.config), **{name: torch.zeros(1)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_values": torch.zeros(3, 5, 5)}, r"audio_values has shape \(3, 5, 5\); give \(4, frames, 5\)"),
        ({"audio_values": torch.zeros(4, 5)}, r"audio_values has shape \(4, 5\); give \(4, frames, 5\)"),
        ({"attention_mask": torch.ones(4, 2)}, r"attention_mask has shape \(4, 2\) beside input_ids"),
        ({"vision_missing_mask": torch.ones(4, 2)}, r"vision_missing_mask has shape \(4, 2\) beside vision_values"),
        ({"complete_audio_values": torch.ones(4, 2, 5)}, r"complete_audio_values has shape .* beside audio_values"),
        ({"input_ids": None}, "reads text, but 'input_ids' was not given"),
    ],
)
def test_shapes_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    model = build("tcmr")
    with pytest.raises(ValueError, match=message):
        model(**{**tiny_batch(model.config), **changes})


def test_masks_that_are_not_given_are_ones() -> None:
    model = build("tcmr")
    batch = tiny_batch(model.config)
    values = {name: value for name, value in batch.items() if not name.endswith("mask")}
    ones = {name: torch.ones_like(value) for name, value in batch.items() if name.endswith("mask")}
    assert torch.equal(model(**values).logits, model(**values, **ones).logits)


# --- What is read of a batch ---


def test_a_prediction_gets_what_a_user_has() -> None:
    batch = {name: torch.zeros(1) for name in (*INPUT_KEYS, "labels", "draw", "sample_index")}
    complete = {name for name in INPUT_KEYS if name.startswith("complete")}
    model = build("tcmr")
    assert set(model.inputs_from(batch, predicting=False)) == {*INPUT_KEYS, "labels"}
    assert set(model.inputs_from(batch, predicting=True)) == {*INPUT_KEYS} - complete
    oracle = build("tcmr", confidence_source="oracle")
    assert set(oracle.inputs_from(batch, predicting=True)) == {*INPUT_KEYS, "labels"} - complete
    feature_level = build("pglh", text_mask_level="feature")
    expected = {*INPUT_KEYS} - complete | {"complete_input_ids", "complete_attention_mask"}
    assert set(feature_level.inputs_from(batch, predicting=True)) == expected


def test_modalities_that_are_not_read_are_left_alone() -> None:
    model = build("text")
    batch = tiny_batch(TINY_CONFIGS["tcmr"]())
    assert model.modalities == ("text",)
    assert torch.equal(model(**batch).logits, model(**{**batch, "audio_values": torch.zeros(9, 9, 99)}).logits)
    assert model.read(batch).audio_values is None


def test_completed_inputs_are_those_before_anything_was_dropped() -> None:
    ids, frames, mask = torch.tensor([[1, 2]]), torch.zeros(1, 2, 5), torch.tensor([[True, False]])
    inputs = MsaInputs(
        ids, mask, frames, mask, text_missing_mask=mask, audio_missing_mask=mask, complete_input_ids=ids + 1
    )
    whole = inputs.completed()
    assert whole.input_ids.tolist() == [[2, 3]] and whole.audio_values is frames
    assert whole.text_missing_mask is None and whole.audio_missing_mask is None and whole.attention_mask is mask


# --- What a method has to bring, when its class is created ---


@dataclass
class ToyOutput(MsaOutput):
    mood: Tensor | None = None


class ToyConfig(TextConfig):
    model_type = "hf_msa_toy_contract"


def test_a_method_in_a_few_lines() -> None:
    class Toy(MsaPreTrainedModel):
        config: ToyConfig

        def __init__(self, config: ToyConfig) -> None:
            super().__init__(config)
            self.text_encoder = build_text_encoder(config.text_config)
            self.head = nn.Linear(config.text_config.hidden_size, 1)
            self.post_init()

        def compute(self, inputs: MsaInputs, labels: Tensor | None, *, scale: float = 1.0) -> ToyOutput:
            hidden = self.encode_text(inputs.input_ids, inputs.attention_mask)
            logits = self.head(masked_mean(hidden, inputs.attention_mask)) * scale
            loss = None if labels is None else (logits.squeeze(1) - labels).square().mean()
            return ToyOutput(loss=loss, logits=logits, mood=logits.sign())

    model = Toy(ToyConfig(**tiny_text_config().to_dict())).eval()
    batch = tiny_batch(model.config)
    assert torch.allclose(model(**batch, scale=2.0).logits, 2 * model(**batch).logits)
    assert ToyConfig.keys_to_ignore_at_inference == ["losses", "mood"]
    assert math.isfinite(model(**batch, labels=torch.zeros(4)).loss.item())


def test_a_forward_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match="Toy defines forward, which the base class owns; implement compute"):

        class Toy(MsaPreTrainedModel):
            config: ToyConfig

            def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Any = None, **inputs: Any) -> Any:
                return MsaOutput()


def test_a_compute_of_another_signature_is_refused() -> None:
    def inputs_alone(self: Any, inputs: MsaInputs) -> MsaOutput: ...
    def swallows(self: Any, inputs: MsaInputs, labels: Any, **rest: Any) -> MsaOutput: ...
    def positional(self: Any, inputs: MsaInputs, labels: Any, weight: float = 1.0) -> MsaOutput: ...
    def needs(self: Any, inputs: MsaInputs, labels: Any, *, weight: float) -> MsaOutput: ...
    def hides(self: Any, inputs: MsaInputs, labels: Any, *, audio_values: Any = None) -> MsaOutput: ...
    def says_nothing(self: Any, inputs: MsaInputs, labels: Any): ...  # type: ignore[no-untyped-def]
    def says_other(self: Any, inputs: MsaInputs, labels: Any) -> ModelOutput: ...

    wrong = {
        "takes inputs; it has to take inputs and labels": inputs_alone,
        "takes inputs, labels, rest": swallows,
        "takes inputs, labels, weight": positional,
        "'weight' of Toy.compute has no default": needs,
        "'audio_values' of Toy.compute is the name of an input": hides,
        "has to be annotated with what it returns": says_nothing,
        "a class made of MsaOutput": says_other,
    }
    for message, compute in some(wrong.items()):
        with pytest.raises(TypeError, match=message):
            type("Toy", (MsaPreTrainedModel,), {"compute": compute, "__annotations__": {"config": ToyConfig}})


def test_a_model_without_a_configuration_of_its_own_is_refused() -> None:
    def compute(self: Any, inputs: MsaInputs, labels: Any) -> MsaOutput: ...

    with pytest.raises(TypeError, match="annotate config with its class"):
        type("Toy", (MsaPreTrainedModel,), {"compute": compute})


def test_what_only_training_gives_is_known() -> None:
    assert {
        "objective",
        "text_targets",
        "confidence",
        "confidence_targets",
    } == TcmrForSentimentAnalysis._training_arguments
    model = TcmrForSentimentAnalysis(tiny_tcmr_config()).eval()
    out = model(**tiny_batch(model.config), confidence=torch.full((4,), 0.25))
    assert out.confidence.squeeze(1).tolist() == [0.25] * 4


# --- The processor ---


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("visual", "takes no argument 'visual'; did you mean 'vision'?"),
        ("images", "did you mean 'video'?"),
        ("audios", "did you mean 'audio'?"),
        ("texts", "did you mean 'text'?"),
        (
            "padding",
            "it takes text, audio, vision, video, sampling_rate, frames_per_second, face_model, pad_to_fixed",
        ),
    ],
)
def test_the_processor_refuses_what_it_does_not_know(argument: str, message: str) -> None:
    processor = tiny_processor(tiny_tcmr_config())
    with pytest.raises(TypeError, match=message.replace("?", r"\?")):
        processor(["good film"], **{argument: [np.zeros((3, 7), dtype=np.float32)]})
    if argument in ("visual", "audios"):
        with pytest.raises(TypeError, match="MsaFeatureExtractor takes no argument"):
            processor.feature_extractor(**{argument: [None]})
