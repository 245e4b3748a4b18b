"""Every row of TCMR's ablation tables builds, trains, and changes what it is said to change."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_msa.models.configuration_tcmr import TcmrConfig
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis, TcmrPolarityClassifier
from nonempty import some
from tiny import tiny_batch, tiny_labels, tiny_tcmr_config

ROWS = list(TcmrConfig.ABLATIONS)


def build(row: str | None = None, **overrides: Any) -> TcmrForSentimentAnalysis:
    torch.manual_seed(0)
    fields = TcmrConfig.ABLATIONS[row] if row else {}
    return TcmrForSentimentAnalysis(tiny_tcmr_config(**fields, **overrides)).eval()


def inputs() -> dict[str, Tensor]:
    config = tiny_tcmr_config()
    return {**tiny_batch(config), "labels": tiny_labels(config)}


def parameter_names(model: TcmrForSentimentAnalysis) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def estimator_gradient(model: TcmrForSentimentAnalysis, objective: str) -> bool:
    model(**inputs(), objective=objective).loss.backward()
    return any(parameter.grad is not None for parameter in model.confnet.parameters())


def drops_the_gate_for_one_joint_generator() -> None:
    added = parameter_names(build("wo_ipfg")) - parameter_names(build())
    gone = parameter_names(build()) - parameter_names(build("wo_ipfg"))
    assert {".".join(name.split(".")[:3]) for name in added} == {"proxy_generator.generators.joint"}
    assert {".".join(name.split(".")[:3]) for name in gone} == {
        "proxy_generator.generators.audio",
        "proxy_generator.generators.vision",
        "proxy_generator.gate.0",
        "proxy_generator.gate.2",
    }
    # 8 learned tokens before 8 of audio and 8 of vision.
    assert len(build("wo_ipfg").proxy_generator.generators["joint"].positions) == 24


def drops_only_the_gate() -> None:
    model = build("proxy_mean")
    gone = parameter_names(build()) - parameter_names(model)
    assert gone
    assert all(name.startswith("proxy_generator.gate") for name in gone)
    batch = tiny_batch(model.config)
    out = model(**batch)
    generated = [
        generator(model.encode(name, batch[f"{name}_values"], batch[f"{name}_attention_mask"]))
        for name, generator in model.proxy_generator.generators.items()
    ]
    assert torch.allclose(out.proxy_features, (generated[0] + generated[1]) / 2)


def drops_the_proxy() -> None:
    model = build("proxy_none")
    assert not any("proxy" in name for name in parameter_names(model))
    out = model(**tiny_batch(model.config))
    assert not out.proxy_features.any()
    assert torch.equal(out.reconstructed_features, out.confidence.unsqueeze(-1) * out.text_features)


def teaches_the_proxy_by_itself() -> None:
    (taught, batch), (model, _) = rebuilding("proxy_taught"), rebuilding(None)
    taught.load_state_dict(model.state_dict())
    for each in (taught, model):
        each.proxy_generator.forward = lambda features: (torch.tensor([[[2.0, 2.0]], [[2.0, 6.0]]]), None)
    out, plain = taught(**batch, objective="other"), model(**batch, objective="other")
    # Less the mean (2, 2): (0, 0) and (0, 4) for (-1, -2) and (1, 2); mean of 1, 4, 1 and 4, in units of the variance 2.5.
    assert out.losses["reconstruct_proxy"].item() == pytest.approx(1.0)
    assert out.loss.item() == pytest.approx(plain.loss.item() + 0.8)


def takes_a_frozen_classifier_for_the_estimator() -> None:
    model = build("ub")
    names = {name.split(".")[0] for name in parameter_names(model) ^ parameter_names(build())}
    assert names == {"confnet", "polarity_classifier"}
    assert model.config.is_oracle


def lets_the_task_reach_the_estimator() -> None:
    assert not estimator_gradient(build(), "other")
    assert estimator_gradient(build("end2end"), "all")


def trains_the_rest_on_a_frozen_text_encoder() -> None:
    model = build("confnet_first")
    for parameter in model.confidence_parameters():
        parameter.requires_grad_(False)
    model(**inputs(), objective="other").loss.backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert not trained & {"text_encoder", "confnet"}


def mixes_by_the_target_confidence() -> None:
    model = build("confnet_later")
    batch = inputs()
    classifier = TcmrPolarityClassifier(model.config).eval()
    target = classifier.true_class_probability(batch["input_ids"], batch["attention_mask"], batch["labels"])
    given, predicted = model(**batch, confidence=target, objective="other"), model(**batch, objective="other")
    assert torch.equal(given.confidence.squeeze(1), target)
    assert not torch.allclose(given.logits, predicted.logits, atol=1e-5)
    given.loss.backward()
    assert all(parameter.grad is None for parameter in model.confnet.parameters())


def learns_another_confidence() -> None:
    model = build("wo_tce")
    batch = inputs()
    classifier = TcmrPolarityClassifier(model.config).eval()
    tcp = classifier.true_class_probability(batch["input_ids"], batch["attention_mask"], batch["labels"])
    completeness = 1 - torch.tensor([0.1, 0.2, 0.9, 0.4])
    losses = [model(**batch, confidence_targets=c, objective="confidence").loss.item() for c in (tcp, completeness)]
    assert losses[0] != pytest.approx(losses[1])


TARGETS = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]])


def rebuilding(row: str | None) -> tuple[TcmrForSentimentAnalysis, dict[str, Tensor]]:
    """A model of one token of width two that has measured `TARGETS`, and two samples with them."""
    model = build(row, hidden_size=2, num_tokens=1)
    model.measure_targets(TARGETS)
    return model, {name: value[:2] for name, value in inputs().items()} | {"text_targets": TARGETS}


def leaves_the_mean_in() -> None:
    (with_mean, batch), (centred, _) = rebuilding("uncentred"), rebuilding(None)
    shift = torch.tensor([2.0, 2.0])
    raw, deviation = with_mean(**batch), centred(**batch)
    for name in ("text_features", "proxy_features", "reconstructed_features"):
        assert torch.allclose(raw[name] - shift, deviation[name], atol=1e-6), name
    # The error is the same; what is fused is not.
    assert torch.allclose(raw.losses["reconstruct_text"], deviation.losses["reconstruct_text"], atol=1e-5)
    assert not torch.allclose(raw.logits, deviation.logits)


def starts_anew() -> None:
    """What it does is tested with `start_model`; the model itself is that of the full method."""
    assert parameter_names(build("random_start")) == parameter_names(build())


def takes_the_plain_mean() -> None:
    (plain, batch), (measured, _) = rebuilding("rec_mean"), rebuilding(None)
    # Mean (2, 2); deviations (1, 2) and (1, 2) in absolute value: variance (1 + 4 + 1 + 4) / 4.
    assert measured.text_variance.item() == 2.5
    ratio = plain(**batch).losses["reconstruct_text"] / measured(**batch).losses["reconstruct_text"]
    assert ratio.item() == pytest.approx(2.5)


def takes_the_sum() -> None:
    (summed, batch), (plain, _) = rebuilding("rec_sum"), rebuilding("rec_mean")
    batch |= {f"complete_{name}_values": batch[f"{name}_values"] for name in ("audio", "vision")}
    ours, mean = summed(**batch).losses, plain(**batch).losses
    # Two numbers per sample for text, and two for each of audio and vision.
    assert ours["reconstruct_text"].item() == pytest.approx(2 * mean["reconstruct_text"].item())
    assert ours["reconstruct_aux"].item() == pytest.approx(4 * mean["reconstruct_aux"].item())


def measures_nothing() -> None:
    model, _ = rebuilding("literal")
    assert not hasattr(model, "text_mean") and not hasattr(model, "text_variance")
    assert not model.config.start_from_regressor


EFFECTS: dict[str, Callable[[], None]] = {
    "confnet_first": trains_the_rest_on_a_frozen_text_encoder,
    "end2end": lets_the_task_reach_the_estimator,
    "confnet_later": mixes_by_the_target_confidence,
    "wo_ipfg": drops_the_gate_for_one_joint_generator,
    "wo_tce": learns_another_confidence,
    "ub": takes_a_frozen_classifier_for_the_estimator,
    "proxy_mean": drops_only_the_gate,
    "proxy_none": drops_the_proxy,
    "proxy_taught": teaches_the_proxy_by_itself,
    "uncentred": leaves_the_mean_in,
    "random_start": starts_anew,
    "rec_mean": takes_the_plain_mean,
    "rec_sum": takes_the_sum,
    "literal": measures_nothing,
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_changes_what_it_says(row: str) -> None:
    EFFECTS[row]()


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_fields_that_exist_and_changes_their_default(row: str) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(TcmrConfig)}
    for name, value in some(TcmrConfig.ABLATIONS[row].items()):
        assert defaults[name] != value
        assert getattr(tiny_tcmr_config(**TcmrConfig.ABLATIONS[row]), name) == value


@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains_every_parameter_it_builds(row: str) -> None:
    model = build(row)
    batch = inputs()
    targets: dict[str, Tensor] = {
        "complete_audio_values": batch["audio_values"],
        "complete_vision_values": batch["vision_values"],
        "confidence_targets": torch.full((4,), 0.5),
        "text_targets": torch.zeros(4, model.config.num_tokens, model.config.hidden_size),
    }
    model(**batch, **targets).loss.backward()
    frozen = set() if model.polarity_classifier is None else set(model.polarity_classifier.parameters())
    for name, parameter in some(model.named_parameters()):
        if parameter not in frozen:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_the_papers_rows_are_all_there() -> None:
    assert {"confnet_first", "end2end", "confnet_later", "wo_ipfg", "wo_tce", "ub"} <= set(ROWS)
    assert set(EFFECTS) == set(ROWS)
