"""What every method must do, over the table of methods; a new method adds a tiny configuration, not tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

import hf_msa  # noqa: F401  (registers the methods with the Auto classes)
from hf_msa.data.missing import apply_missing
from hf_msa.methods import METHODS
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from hf_msa.models.processing_msa import MsaProcessor
from nonempty import some
from tiny import TINY_CONFIGS, UNK, tiny_batch, tiny_labels, tiny_processor, tiny_rows

pytestmark = pytest.mark.parametrize("method", list(METHODS))


def build(method: str, **overrides: Any) -> MsaPreTrainedModel:
    torch.manual_seed(0)
    return METHODS[method].model_class(TINY_CONFIGS[method](**overrides)).eval()


def test_forward_gives_one_score_per_sample(method: str) -> None:
    model = build(method)
    out = model(**tiny_batch(model.config))
    assert out.logits.shape == (4, 1)
    assert torch.isfinite(out.logits).all()
    assert out.loss is None


def test_labels_give_a_loss_and_name_its_terms(method: str) -> None:
    model = build(method)
    out = model(**tiny_batch(model.config), labels=tiny_labels(model.config))
    assert out.loss.shape == ()
    assert out.loss.requires_grad
    labels = tiny_labels(model.config)
    if method in ("cmc", "omg"):
        expected = F.cross_entropy(out.class_logits, model.label_classes(labels))
    else:
        expected = (out.logits.squeeze(1) - labels).square().mean()
    assert out.losses["task"] == pytest.approx(expected.item(), rel=1e-4)
    assert not any(term.requires_grad for term in out.losses.values())


def test_backward_is_free_of_nan(method: str) -> None:
    model = build(method).train()
    model(**tiny_batch(model.config), labels=tiny_labels(model.config)).loss.backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert found
    assert all(torch.isfinite(gradient).all() for gradient in found)


def test_a_sample_alone_gets_the_score_it_gets_in_a_batch(method: str) -> None:
    model = build(method)
    batch = tiny_batch(model.config)
    for index in range(4):
        alone = model(**{name: value[index : index + 1] for name, value in batch.items()})
        assert alone.logits.shape == (1, 1)
        assert torch.allclose(alone.logits, model(**batch).logits[index : index + 1], atol=1e-5)


def test_padding_to_the_need_and_to_the_maximum_give_the_same(method: str) -> None:
    model = build(method)
    fixed = model(**tiny_batch(model.config, pad_to_fixed=True)).logits
    assert torch.allclose(model(**tiny_batch(model.config)).logits, fixed, atol=1e-5)


def test_everything_dropped_still_gives_a_score(method: str) -> None:
    model = build(method)
    batch = tiny_batch(model.config)
    masks = {"text": (batch["attention_mask"] == 1).numpy() & (batch["input_ids"] > UNK + 3).numpy()}
    for name in model.config.modalities[1:]:
        masks[name] = (batch[f"{name}_attention_mask"] == 1).numpy()
    dropped = apply_missing(batch, masks, UNK)
    assert {f"{name}_missing_mask" for name in model.config.modalities} <= set(dropped)
    out = model(**dropped, labels=tiny_labels(model.config))
    assert torch.isfinite(out.logits).all()
    assert torch.isfinite(out.loss)
    assert not torch.equal(out.logits, model(**batch).logits)


def test_a_sample_that_lacks_a_modality_gets_a_score(method: str) -> None:
    model = build(method)
    rows = tiny_rows(model.config)
    rows[0] = {**rows[0], "audio_present": False, "vision_present": False}
    batch = tiny_processor(model.config).from_rows(rows)
    out = model(**batch)
    nothing = dict.fromkeys(model.config.modalities[1:])
    again = tiny_processor(model.config).from_rows([{**rows[0], **nothing}, *rows[1:]])
    assert all(torch.equal(again[name], value) for name, value in batch.items())
    assert torch.isfinite(out.logits).all()
    assert torch.allclose(out.logits[1:], model(**tiny_batch(model.config)).logits[1:], atol=1e-5)


@pytest.mark.parametrize("absent", ["audio", "vision"])
def test_data_without_a_modality_will_do(method: str, absent: str) -> None:
    model = build(method, **{f"{absent}_dim": None}).train()
    batch = tiny_batch(model.config)
    assert not any(absent in name for name in batch)
    out = model(**batch, labels=tiny_labels(model.config))
    out.loss.backward()
    assert torch.isfinite(out.logits).all()


def test_auto_classes_load_the_same_predicting_model_and_processor(method: str, tmp_path: Path) -> None:
    model = build(method)
    processor = tiny_processor(model.config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = tiny_batch(model.config)
    expected = model(**batch).logits
    for auto in (AutoModel, AutoModelForSequenceClassification):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is METHODS[method].model_class
        assert torch.equal(loaded(**batch).logits, expected)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is METHODS[method].config_class
    assert config.modalities == model.config.modalities

    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is MsaProcessor
    again = reloaded.from_rows(tiny_rows(model.config))
    assert set(again) == set(batch)
    assert all(torch.equal(again[name], value) for name, value in batch.items())


def test_a_second_save_gives_the_same_bits(method: str, tmp_path: Path) -> None:
    model = build(method)
    batch = tiny_batch(model.config)
    model.save_pretrained(tmp_path / "first")
    METHODS[method].model_class.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    loaded = METHODS[method].model_class.from_pretrained(tmp_path / "second")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert (tmp_path / "first/model.safetensors").read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()


def test_loaded_weights_lie_where_kernels_expect_them(method: str, tmp_path: Path) -> None:
    """Views of the file start at odd addresses, on which some processors add up in another order."""
    build(method).save_pretrained(tmp_path)
    loaded = METHODS[method].model_class.from_pretrained(tmp_path)
    assert not [name for name, tensor in some(loaded.named_parameters()) if tensor.data_ptr() % 64]


@pytest.mark.parametrize("modality", ["audio", "vision"])
class TestWrongInput:
    def refused(self, model: MsaPreTrainedModel, modality: str, batch: dict[str, torch.Tensor], message: str) -> None:
        """A method that reads the modality says what is wrong; one that reads text alone does not mind."""
        if modality in model.modalities:
            with pytest.raises(ValueError, match=message):
                model(**batch)
        else:
            assert torch.equal(model(**batch).logits, model(**tiny_batch(model.config)).logits)

    def test_a_wrong_width_names_modality_and_field(self, method: str, modality: str) -> None:
        model = build(method)
        batch = tiny_batch(model.config)
        width = getattr(model.config, f"{modality}_dim")
        batch[f"{modality}_values"] = torch.zeros(4, 3, width + 1)
        self.refused(model, modality, batch, f"{modality}_values has width {width + 1}.*{modality}_dim={width}")

    def test_a_modality_that_is_not_given_is_named(self, method: str, modality: str) -> None:
        model = build(method)
        batch = tiny_batch(model.config)
        del batch[f"{modality}_values"]
        self.refused(model, modality, batch, f"reads {modality}, but '{modality}_values' was not given")

    def test_the_processor_names_sample_and_width(self, method: str, modality: str) -> None:
        config = TINY_CONFIGS[method]()
        rows = tiny_rows(config)
        rows[2][modality] = np.zeros((3, 99), dtype=np.float32)
        width = getattr(config, f"{modality}_dim")
        with pytest.raises(ValueError, match=rf"{modality} of sample 2 has shape \(3, 99\).*\(frames, {width}\)"):
            tiny_processor(config).from_rows(rows)


def test_ablations_build_and_predict(method: str) -> None:
    rows = METHODS[method].config_class.ABLATIONS
    assert bool(rows) == (method != "text"), "the plain baseline has none, every other method some"
    for row, fields in rows.items():
        model = build(method, **fields)
        labels = {"labels": tiny_labels(model.config)} if model.config.is_oracle else {}
        assert model(**tiny_batch(model.config), **labels).logits.shape == (4, 1), row
