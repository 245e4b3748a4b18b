"""TCMR and its two text stages: the paper's equations with numbers made by hand, and what must and must not change."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from hf_msa.data.missing import apply_missing
from hf_msa.models.configuration_tcmr import TcmrConfig
from hf_msa.models.modeling_tcmr import (
    OBJECTIVES,
    ProxyGenerator,
    TcmrForSentimentAnalysis,
    TcmrPolarityClassifier,
    TcmrTextRegressor,
)
from hf_msa.models.msa_label_families import BUILT_IN
from nonempty import some
from tiny import UNK, tiny_batch, tiny_labels, tiny_tcmr_config

STAGES = [TcmrPolarityClassifier, TcmrTextRegressor]
ABSENT = [{"vision_dim": None}, {"audio_dim": None}]


class Constant(nn.Module):
    """Gives the same tensor whatever comes in, once per sample."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, inputs: Any, *_: Any) -> Tensor:
        batch = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
        return self.value.expand(batch, *self.value.shape)


class ConstantProxy(Constant):
    """The same as a proxy generator: there is no gate."""

    def forward(self, inputs: Any, *_: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(inputs), None


def build(seed: int = 0, **overrides: Any) -> TcmrForSentimentAnalysis:
    torch.manual_seed(seed)
    return TcmrForSentimentAnalysis(tiny_tcmr_config(**overrides)).eval()


def full_inputs(config: TcmrConfig, count: int = 4) -> dict[str, Tensor]:
    """A batch with every target that the model can have."""
    batch = tiny_batch(config, count)
    generator = torch.Generator().manual_seed(5)
    for modality in config.modalities[1:]:
        batch[f"complete_{modality}_values"] = torch.randn(batch[f"{modality}_values"].shape, generator=generator)
    batch["labels"] = tiny_labels(config, count)
    batch["confidence_targets"] = torch.rand(count, generator=generator)
    batch["text_targets"] = torch.randn(count, config.num_tokens, config.hidden_size, generator=generator)
    return batch


def fix_output(network: nn.Sequential, values: list[float]) -> None:
    """Make a perceptron give `values` for every input."""
    nn.init.zeros_(network[-1].weight)
    with torch.no_grad():
        network[-1].bias.copy_(torch.tensor(values))


def perturb(parameters: Iterator[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))


def gradients(model: nn.Module) -> set[str]:
    """Top-level modules of which any parameter has a gradient that is not zero."""
    return {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }


class TestConfiguration:
    def test_defaults_are_table_4_and_table_1(self) -> None:
        config = TcmrConfig(audio_dim=5, vision_dim=20)
        assert config.confnet_hidden == [768, 768, 1536, 768, 384]
        assert (config.w_conf, config.w_rec_text, config.w_rec_aux, config.w_task) == (0.1, 0.8, 0.1, 1.0)
        assert (config.optimization, config.proxy, config.confidence_target) == ("aos", "gated", "tcp")
        assert not config.is_oracle
        assert config.detach_confidence

    def test_full_size_modules_have_the_shapes_of_table_4(self) -> None:
        with torch.device("meta"):
            model = TcmrForSentimentAnalysis(
                TcmrConfig(audio_dim=5, vision_dim=20, text_max_length=50, audio_max_length=375, vision_max_length=500)
            )
        lengths = {name: len(encoder.transformer.positions) - 8 for name, encoder in model.encoders.items()}
        assert lengths == {"text": 49, "audio": 375, "vision": 500}
        widths = {name: encoder.projection.in_features for name, encoder in model.encoders.items()}
        assert widths == {"text": 768, "audio": 5, "vision": 20}
        generators = model.proxy_generator.generators
        assert {name: len(generator.positions) for name, generator in generators.items()} == {
            "audio": 16,
            "vision": 16,
        }
        assert len(model.refinement.positions) == 8
        assert model.refinement.tokens is None
        assert {name: len(part.positions) for name, part in model.reconstructors.items()} == {"audio": 8, "vision": 8}
        assert [layer.out_features for layer in model.confnet if isinstance(layer, nn.Linear)] == [
            *[768, 768, 1536, 768, 384],
            1,
        ]
        assert sum(parameter.numel() for parameter in model.confnet.parameters()) == 3_838_465
        assert sum(parameter.numel() for parameter in model.proxy_generator.gate.parameters()) == 33_025
        transformers = [encoder.transformer for encoder in model.encoders.values()]
        transformers += [*generators.values(), *model.reconstructors.values(), model.refinement]
        for part in [*transformers, model.cross]:
            assert sum(parameter.numel() for parameter in part.layers.parameters()) == 592_640
        assert model.fusion.layers[0].to_query.out_features == 128
        assert model.regressor.in_features == 128

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("proxy", "gate"),
            ("optimization", "AOS"),
            ("hidden_size", 0),
            ("confnet_hidden", [16, 0]),
            ("w_task", -1.0),
            ("hidden_size", "16"),
        ],
    )
    def test_values_that_make_no_sense_are_refused(self, field: str, value: Any) -> None:
        with pytest.raises(StrictDataclassError, match=field):
            tiny_tcmr_config(**{field: value})

    def test_what_was_saved_without_today_s_fields_stays_what_it_was(self) -> None:
        new = {"center_text": True, "start_from_regressor": True, "reconstruction_reduction": "variance"}
        old = {"center_text": False, "start_from_regressor": False, "reconstruction_reduction": "mean"}
        config = tiny_tcmr_config()
        saved = {name: value for name, value in config.to_dict().items() if name not in new}
        written = {name: value for name, value in saved.items() if name != "transformers_version"}
        for values, fields in ((config.to_dict(), new), (saved, old), (written, new)):
            read = TcmrConfig.from_dict(values)
            assert {name: getattr(read, name) for name in fields} == fields
        assert TcmrConfig.from_dict(saved, center_text=True).center_text

    def test_oracle_of_completeness_is_refused(self) -> None:
        with pytest.raises(StrictDataclassError, match="needs confidence_target='tcp', got 'completeness'"):
            tiny_tcmr_config(confidence_source="oracle", confidence_target="completeness")

    def test_text_alone_is_refused(self) -> None:
        with pytest.raises(StrictDataclassError, match="needs at least one of audio, vision"):
            tiny_tcmr_config(audio_dim=None, vision_dim=None)


class TestReconstruction:
    """Eq. 10: confidence times text plus the rest times proxy."""

    def test_numbers(self) -> None:
        model = build(hidden_size=2, num_tokens=1)
        model.encoders["text"] = Constant(torch.tensor([[2.0, 0.0]]))
        model.proxy_generator = ConstantProxy(torch.tensor([[0.0, 4.0]]))
        out = model(**tiny_batch(model.config), confidence=torch.full((4,), 0.25))
        assert torch.equal(out.reconstructed_features, torch.tensor([[[0.5, 3.0]]]).expand(4, 1, 2))

    def test_full_confidence_is_the_text_and_needs_no_proxy(self) -> None:
        model, one = build(), torch.ones(4)
        batch = tiny_batch(model.config)
        before = model(**batch, confidence=one)
        assert torch.equal(before.reconstructed_features, before.text_features)
        perturb(model.proxy_generator.parameters())
        after = model(**batch, confidence=one)
        assert not torch.equal(after.proxy_features, before.proxy_features)
        assert torch.equal(after.logits, before.logits)

    def test_no_confidence_is_the_proxy_and_needs_no_text_tokens(self) -> None:
        model, zero = build(), torch.zeros(4)
        batch = tiny_batch(model.config)
        before = model(**batch, confidence=zero)
        assert torch.equal(before.reconstructed_features, before.proxy_features)
        perturb(model.encoders["text"].parameters())
        after = model(**batch, confidence=zero)
        assert not torch.equal(after.text_features, before.text_features)
        assert torch.equal(after.logits, before.logits)

    def test_prediction_is_what_the_estimator_says(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        fix_output(model.confnet, [math.log(3.0)])
        out = model(**batch)
        assert torch.allclose(out.confidence, torch.full((4, 1), 0.75))
        assert torch.allclose(
            out.reconstructed_features, 0.75 * out.text_features + 0.25 * out.proxy_features, atol=1e-6
        )
        assert torch.equal(out.logits, model(**batch, confidence=out.confidence.squeeze(1)).logits)

    def test_confidence_reads_the_first_token_only(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        sentence = model.encode_text(batch["input_ids"], batch["attention_mask"])[:, 0]
        assert torch.equal(model(**batch).confidence, model.estimate_confidence(sentence))


class TestCentredText:
    """Text features and their target as deviations from the training mean per position."""

    TARGETS = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]])

    def centred(self, **overrides: Any) -> TcmrForSentimentAnalysis:
        """H_t is (6, 0) and H_p (2, 6) before the mean of the targets, (2, 2), is taken off."""
        model = build(hidden_size=2, num_tokens=1, **overrides)
        model.encoders["text"] = Constant(torch.tensor([[6.0, 0.0]]))
        if model.proxy_generator is not None:
            model.proxy_generator = ConstantProxy(torch.tensor([[2.0, 6.0]]))
        model.measure_targets(self.TARGETS)
        return model

    def test_numbers(self) -> None:
        model = self.centred()
        assert torch.equal(model.text_mean, torch.tensor([[2.0, 2.0]]))
        # Deviations (-1, -2) and (1, 2): (1 + 4 + 1 + 4) / 4.
        assert model.text_variance.item() == 2.5
        out = model(**tiny_batch(model.config, 2), confidence=torch.full((2,), 0.25))
        assert torch.equal(out.text_features[0], torch.tensor([[4.0, -2.0]]))
        assert torch.equal(out.proxy_features[0], torch.tensor([[0.0, 4.0]]))
        assert torch.equal(out.reconstructed_features[0], torch.tensor([[1.0, 2.5]]))

    @pytest.mark.parametrize(("reduction", "expected"), [("mean", 6.125), ("sum", 12.25), ("variance", 2.45)])
    def test_reductions(self, reduction: str, expected: float) -> None:
        model = self.centred(reconstruction_reduction=reduction)
        inputs = {**tiny_batch(model.config, 2), "confidence": torch.full((2,), 0.25), "text_targets": self.TARGETS}
        # (1, 2.5) against (-1, -2) and (1, 2): squares 4, 20.25, 0, 0.25; their mean is 6.125.
        assert model(**inputs).losses["reconstruct_text"].item() == pytest.approx(expected)

    def test_the_mean_costs_one(self) -> None:
        model = self.centred(proxy="none")
        inputs = {**tiny_batch(model.config, 2), "confidence": torch.zeros(2), "text_targets": self.TARGETS}
        out = model(**inputs)
        assert not out.reconstructed_features.any()
        assert out.losses["reconstruct_text"].item() == pytest.approx(1.0)

    def test_normalised_targets_are_measured_as_they_are_compared(self) -> None:
        model = self.centred(target_norm="layernorm")
        # (1, -1) and (-1, 1).
        assert torch.allclose(model.text_mean, torch.zeros(1, 2), atol=1e-5)
        assert model.text_variance.item() == pytest.approx(1.0, abs=1e-4)

    def test_targets_that_are_all_alike_are_refused(self) -> None:
        targets = torch.ones(3, 1, 2)
        with pytest.raises(ValueError, match="same features, so there is nothing to rebuild"):
            build(hidden_size=2, num_tokens=1).measure_targets(targets)
        model = build(hidden_size=2, num_tokens=1, reconstruction_reduction="mean")
        model.measure_targets(targets)
        assert torch.equal(model.text_mean, torch.ones(1, 2))

    def test_they_are_saved_with_the_model(self, tmp_path: Path) -> None:
        model = self.centred()
        model.save_pretrained(tmp_path)
        loaded = TcmrForSentimentAnalysis.from_pretrained(tmp_path)
        assert torch.equal(loaded.text_mean, model.text_mean) and loaded.text_variance.item() == 2.5

    def test_the_term_reaches_the_text_encoder_by_the_inverse_of_the_variance(self) -> None:
        targets = 0.01 * torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(1))
        found = {}
        for reduction in ("mean", "variance"):
            model = build(reconstruction_reduction=reduction)
            model.measure_targets(targets)
            inputs = {**tiny_batch(model.config), "confidence": torch.ones(4), "text_targets": targets}
            model(**inputs, objective="other").loss.backward()
            found[reduction] = torch.cat(
                [p.grad.flatten() for p in model.text_encoder.parameters() if p.grad is not None]
            )
        variance = (targets - targets.mean(0)).square().mean()
        assert torch.allclose(found["variance"], found["mean"] / variance, rtol=1e-3, atol=1e-4)


class TestProxy:
    """Eq. 8 and 9: one generator per modality, mixed by a gate."""

    def test_gate_is_a_share_and_mixes(self) -> None:
        model = build()
        out = model(**tiny_batch(model.config))
        assert out.gate.shape == (4, 1)
        assert ((out.gate > 0) & (out.gate < 1)).all()
        generator = ProxyGenerator(tiny_tcmr_config(hidden_size=2, num_tokens=1))
        generator.generators["audio"] = Constant(torch.tensor([[8.0, 0.0]]))
        generator.generators["vision"] = Constant(torch.tensor([[0.0, 4.0]]))
        fix_output(generator.gate, [-math.log(3.0)])
        proxy, gate = generator({name: torch.zeros(1, 1, 2) for name in ("audio", "vision")})
        assert gate.item() == pytest.approx(0.25)
        assert torch.allclose(proxy, torch.tensor([[[2.0, 3.0]]]))

    def test_gate_reads_the_token_means_of_both(self) -> None:
        generator = ProxyGenerator(tiny_tcmr_config(hidden_size=2, num_tokens=2, gate_hidden=1))
        generator.generators["audio"] = Constant(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        generator.generators["vision"] = Constant(torch.tensor([[0.0, 1.0], [0.0, 3.0]]))
        with torch.no_grad():
            generator.gate[0].weight.copy_(torch.tensor([[1.0, 0.5, 7.0, -1.0]]))
            generator.gate[0].bias.zero_()
            generator.gate[2].weight.fill_(1.0)
            generator.gate[2].bias.zero_()
        # Means (2, 4) and (0, 2): 2 + 2 + 0 - 2 = 2.
        gate = generator({name: torch.zeros(1, 2, 2) for name in ("audio", "vision")})[1]
        assert gate.item() == pytest.approx(1 / (1 + math.exp(-2.0)))

    @pytest.mark.parametrize(("logit", "unused"), [(1e4, "vision"), (-1e4, "audio")])
    def test_a_closed_gate_leaves_out_the_generator_but_not_the_modality(self, logit: float, unused: str) -> None:
        model = build()
        batch = tiny_batch(model.config)
        fix_output(model.proxy_generator.gate, [logit])
        before = model(**batch).logits
        perturb(model.proxy_generator.generators[unused].parameters())
        assert torch.equal(model(**batch).logits, before)
        batch[f"{unused}_values"] = batch[f"{unused}_values"] + 1
        assert not torch.allclose(model(**batch).logits, before)


class TestFusion:
    """Section 3.5: refine the reconstructed text, gather from audio and vision, cross, predict."""

    def test_equals_the_written_out_computation(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        out = model(**batch)
        features = {
            name: model.encode(name, batch[f"{name}_values"], batch[f"{name}_attention_mask"])
            for name in ("audio", "vision")
        }
        refined = [out.reconstructed_features + model.refinement.positions]
        for layer in model.refinement.layers:
            refined.append(layer(refined[-1]))
        fused = torch.ones(8, 16)
        for layer, state in zip(model.fusion.layers, refined[1:], strict=True):
            fused = fused + layer(state, features)
        crossed = model.cross(source=fused, target=refined[-1])
        expected = model.regressor(crossed[:, 1:9].mean(dim=1))
        assert torch.allclose(out.logits, expected, atol=1e-6)

    def test_the_learned_token_of_the_cross_is_not_averaged(self) -> None:
        model = build()
        model.cross.forward = lambda source, target: torch.cat([torch.full((4, 1, 16), 1e6), target * 0 + 2], dim=1)
        nn.init.ones_(model.regressor.weight)
        nn.init.zeros_(model.regressor.bias)
        assert torch.allclose(model(**tiny_batch(model.config)).logits, torch.full((4, 1), 32.0))


class TestLosses:
    def test_classes_are_the_sign(self) -> None:
        labels = torch.tensor([-0.2, 0.0, 0.6, 3.0, -3.0])
        assert BUILT_IN["mosi"].polarity(labels).tolist() == [0, 1, 2, 2, 0]

    def test_true_class_probability(self) -> None:
        classifier = TcmrPolarityClassifier(tiny_tcmr_config()).eval()
        fix_output(classifier.classifier, [math.log(0.2), math.log(0.3), math.log(0.5)])
        batch = tiny_batch(classifier.config)
        labels = torch.tensor([1.4, -0.6, 0.0, 0.2])
        probability = classifier.true_class_probability(batch["input_ids"], batch["attention_mask"], labels)
        assert torch.allclose(probability, torch.tensor([0.5, 0.2, 0.3, 0.5]))
        assert not probability.requires_grad
        column = classifier.true_class_probability(batch["input_ids"], batch["attention_mask"], labels.unsqueeze(1))
        assert torch.equal(column, probability)
        with pytest.raises(ValueError, match="labels have shape"):
            classifier.true_class_probability(batch["input_ids"], batch["attention_mask"], labels.unsqueeze(0))
        loss = classifier(**batch, labels=labels).loss
        assert loss.item() == pytest.approx(-(2 * math.log(0.5) + math.log(0.2) + math.log(0.3)) / 4, rel=1e-5)

    def test_confidence_loss(self) -> None:
        model = build()
        fix_output(model.confnet, [math.log(9.0)])
        targets = torch.full((4,), 0.5)
        out = model(**tiny_batch(model.config), confidence_targets=targets, objective="confidence")
        assert out.loss.item() == pytest.approx(0.16)
        assert out.losses["confidence"].item() == pytest.approx(0.16)
        assert out.logits is None

    def test_confidences_are_one_per_sample_and_never_paired_with_all(self) -> None:
        model = build()
        batch, confidences = tiny_batch(model.config), torch.tensor([0.1, 0.4, 0.6, 0.9])
        for name in ("confidence_targets", "confidence"):
            rows, column = (
                model(**batch, labels=tiny_labels(model.config), **{name: given})
                for given in (confidences, confidences.unsqueeze(1))
            )
            assert torch.equal(rows.loss, column.loss)
            for wrong in (confidences.unsqueeze(0), torch.zeros(4, 4), confidences[:1]):
                with pytest.raises(ValueError, match="confidence.*have shape .* for 4 samples"):
                    model(**batch, **{name: wrong})

    def test_task_and_text_losses_are_means_over_all_elements(self) -> None:
        model = build(hidden_size=2, num_tokens=1)
        model.encoders["text"] = Constant(torch.tensor([[2.0, 0.0]]))
        model.proxy_generator = ConstantProxy(torch.tensor([[0.0, 4.0]]))
        nn.init.zeros_(model.regressor.weight)
        nn.init.constant_(model.regressor.bias, 0.5)
        out = model(
            **tiny_batch(model.config, 2),
            confidence=torch.full((2,), 0.25),
            labels=torch.tensor([1.5, -1.5]),
            text_targets=torch.tensor([[[0.5, 1.0]], [[1.5, 3.0]]]),
            objective="other",
        )
        # Reconstructed (0.5, 3): errors 0, 2, 1, 0.
        assert out.losses["reconstruct_text"].item() == pytest.approx((4 + 1) / 4)
        assert out.losses["task"].item() == pytest.approx((1 + 4) / 2)
        assert out.loss.item() == pytest.approx(1.0 * 2.5 + 0.8 * 1.25)

    def test_auxiliary_loss_is_over_audio_and_vision_together(self) -> None:
        model = build(hidden_size=2, num_tokens=1)
        for name, rebuilt, target in (("audio", 1.0, 3.0), ("vision", 5.0, 6.0)):
            model.reconstructors[name] = Constant(torch.full((1, 2), rebuilt))
            model.encoders[name] = Constant(torch.full((1, 2), target))
        batch = tiny_batch(model.config)
        zeros = {name: torch.zeros_like(batch[f"{name}_values"]) for name in ("audio", "vision")}
        batch["complete_audio_values"] = zeros["audio"]
        out = model(**batch, objective="other")
        assert out.losses["reconstruct_aux"].item() == pytest.approx(4.0)
        out = model(**batch, complete_vision_values=zeros["vision"], objective="other")
        assert out.losses["reconstruct_aux"].item() == pytest.approx((4.0 + 1.0) / 2)
        assert out.loss.item() == pytest.approx(0.1 * 2.5)

    def test_auxiliary_loss_as_printed_is_the_sum_of_both_norms(self) -> None:
        model = build(hidden_size=2, num_tokens=1, reconstruction_reduction="sum")
        for name, rebuilt, target in (("audio", 1.0, 3.0), ("vision", 5.0, 6.0)):
            model.reconstructors[name] = Constant(torch.full((1, 2), rebuilt))
            model.encoders[name] = Constant(torch.full((1, 2), target))
        batch = tiny_batch(model.config)
        complete = {f"complete_{name}_values": batch[f"{name}_values"] for name in ("audio", "vision")}
        out = model(**batch, **complete, objective="other")
        # Per sample 2 * 2^2 for audio and 2 * 1^2 for vision.
        assert out.losses["reconstruct_aux"].item() == pytest.approx(10.0)

    def test_end_to_end_loss_is_the_weighted_sum(self) -> None:
        model = build()
        out = model(**full_inputs(model.config))
        terms = out.losses
        expected = (
            1.0 * terms["task"]
            + 0.1 * terms["confidence"]
            + 0.8 * terms["reconstruct_text"]
            + 0.1 * terms["reconstruct_aux"]
        )
        assert out.loss.item() == pytest.approx(expected.item())
        assert not any(term.requires_grad for term in terms.values())

    @pytest.mark.parametrize("objective", list(OBJECTIVES))
    def test_every_objective_has_its_own_terms(self, objective: str) -> None:
        model = build()
        out = model(**full_inputs(model.config), objective=objective)
        assert set(out.losses) == set(OBJECTIVES[objective]) - {"reconstruct_proxy"}, "as published"
        taught = build(w_rec_proxy=0.8)(**full_inputs(model.config), objective=objective)
        assert set(taught.losses) == set(OBJECTIVES[objective])

    @pytest.mark.parametrize(
        ("target", "term"),
        [
            ("labels", "task"),
            ("confidence_targets", "confidence"),
            ("text_targets", "reconstruct_text"),
            ("complete_audio_values", "reconstruct_aux"),
        ],
    )
    def test_a_term_is_there_when_its_target_is_given(self, target: str, term: str) -> None:
        model = build()
        batch, inputs = tiny_batch(model.config), full_inputs(model.config)
        assert set(model(**batch, **{target: inputs[target]}).losses) == {term}
        out = model(**batch)
        assert out.loss is None
        assert out.losses is None

    def test_normalised_targets_have_mean_0_and_variance_1(self) -> None:
        model = build(target_norm="layernorm", hidden_size=2, num_tokens=1)
        model.encoders["text"] = Constant(torch.tensor([[1.0, -1.0]]))
        targets = torch.tensor([[[9.0, 5.0]]]).expand(4, 1, 2)
        out = model(**tiny_batch(model.config), confidence=torch.ones(4), text_targets=targets)
        assert out.losses["reconstruct_text"].item() == pytest.approx(0.0, abs=1e-6)

    def test_an_unknown_objective_is_named(self) -> None:
        model = build()
        with pytest.raises(ValueError, match="Unknown objective 'tasks'; known are all, confidence, other, task."):
            model(**tiny_batch(model.config), objective="tasks")


class TestGradients:
    def test_the_first_phase_reaches_text_encoder_and_estimator_only(self) -> None:
        model = build()
        model(**full_inputs(model.config), objective="confidence").loss.backward()
        assert gradients(model) == {"text_encoder", "confnet"}

    def test_the_first_phase_does_not_read_audio_and_vision(self) -> None:
        model = build()
        inputs = full_inputs(model.config)
        other = {name: torch.randn_like(inputs[name]) for name in ("audio_values", "vision_values")}
        losses = [model(**{**inputs, **changed}, objective="confidence").loss for changed in ({}, other)]
        assert torch.equal(*losses)

    def test_the_second_phase_leaves_the_estimator_alone(self) -> None:
        model = build()
        model(**full_inputs(model.config), objective="other").loss.backward()
        everything = {name for name, _ in model.named_children()}
        assert gradients(model) == everything - {"confnet", "polarity_classifier"}
        assert all(parameter.grad is None for parameter in model.confnet.parameters())

    @pytest.mark.parametrize(("overrides", "objective"), [({"detach_confidence": False}, "other"), ({}, "all")])
    def test_other_losses_reach_the_estimator_unless_detached(self, overrides: dict[str, Any], objective: str) -> None:
        model = build(**overrides)
        inputs = full_inputs(model.config)
        del inputs["confidence_targets"]
        model(**inputs, objective=objective).loss.backward()
        assert "confnet" in gradients(model)

    def test_each_step_changes_its_own_parameters_and_both_the_text_encoder(self) -> None:
        model = build().train()
        optimizers = {
            "confidence": torch.optim.AdamW(model.confidence_parameters(), lr=1e-2),
            "other": torch.optim.AdamW(model.other_parameters(), lr=1e-2),
        }
        for objective, frozen in (("confidence", "rest"), ("other", "confnet")):
            before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            model.zero_grad()
            model(**full_inputs(model.config), objective=objective).loss.backward()
            optimizers[objective].step()
            changed = {name.split(".")[0] for name, value in model.named_parameters() if not value.equal(before[name])}
            assert "text_encoder" in changed
            if frozen == "rest":
                assert changed == {"text_encoder", "confnet"}
            else:
                assert changed == {name for name, _ in model.named_children()} - {"confnet"}

    def test_parameter_groups_share_the_text_encoder_and_cover_everything(self) -> None:
        model = build()
        first = {id(parameter) for parameter in model.confidence_parameters()}
        second = {id(parameter) for parameter in model.other_parameters()}
        assert first | second == {id(parameter) for parameter in model.parameters()}
        assert first & second == {id(parameter) for parameter in model.text_encoder.parameters()}

    def test_reconstruction_of_what_is_complete_costs_nothing_with_identity(self) -> None:
        model = build()
        inputs = full_inputs(model.config)
        for name in ("audio", "vision"):
            model.reconstructors[name] = nn.Identity()
            inputs[f"complete_{name}_values"] = inputs[f"{name}_values"]
        out = model(**inputs, objective="other")
        assert out.losses["reconstruct_aux"].item() == 0.0

    def test_no_gradient_enters_the_reconstruction_target(self) -> None:
        model = build()
        inputs = full_inputs(model.config)
        features = {name: model.encode(name, inputs[f"{name}_values"], None) for name in ("audio", "vision")}
        complete = {name: inputs[f"complete_{name}_values"] for name in features}
        masks: dict[str, Tensor | None] = {"audio": None, "vision": None}
        model.reconstruction_loss(features, complete, masks).backward()
        found = {
            name: parameter.grad.clone() for name, parameter in model.encoders.named_parameters() if "text" not in name
        }

        model.zero_grad()
        for name in some(features):
            constant = model.encode(name, complete[name], None).detach()
            rebuilt = model.reconstructors[name](model.encode(name, inputs[f"{name}_values"], None))
            (nn.functional.mse_loss(rebuilt, constant) / 2).backward()
        for name, gradient in some(found.items()):
            assert torch.allclose(gradient, model.encoders.get_parameter(name).grad, atol=1e-7), name

    def test_the_text_target_gets_no_gradient(self) -> None:
        model = build()
        inputs = full_inputs(model.config)
        assert not inputs["text_targets"].requires_grad
        features = TcmrTextRegressor(model.config)(**tiny_batch(model.config)).features
        assert features.shape == inputs["text_targets"].shape


class TestInputs:
    def test_order_of_samples_does_not_matter(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        order = torch.tensor([2, 0, 3, 1])
        shuffled = {name: value[order] for name, value in batch.items()}
        before, after = model(**batch), model(**shuffled)
        for name in ("logits", "confidence", "gate", "text_features", "proxy_features", "reconstructed_features"):
            assert torch.allclose(before[name][order], after[name], atol=1e-6), name

    def test_a_sample_alone_gets_the_score_it_gets_in_a_batch(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        alone = model(**{name: value[1:2] for name, value in batch.items()})
        assert alone.logits.shape == (1, 1)
        assert torch.allclose(alone.logits, model(**batch).logits[1:2], atol=1e-6)

    @pytest.mark.parametrize("stage", [TcmrForSentimentAnalysis, *STAGES])
    def test_padding_does_not_count_whatever_it_holds(self, stage: type[nn.Module]) -> None:
        torch.manual_seed(0)
        model = stage(tiny_tcmr_config()).eval()
        need = tiny_batch(model.config)
        fixed = tiny_batch(model.config, pad_to_fixed=True)
        assert fixed["audio_values"].shape[1] > need["audio_values"].shape[1]
        assert fixed["input_ids"].shape[1] > need["input_ids"].shape[1]
        for name in ("audio", "vision"):
            fixed[f"{name}_values"][fixed[f"{name}_attention_mask"] == 0] = 50.0
        fixed["input_ids"][fixed["attention_mask"] == 0] = UNK
        assert torch.allclose(model(**need).logits, model(**fixed).logits, atol=1e-6)

    def test_reference_behaviour_attends_to_padding(self) -> None:
        model = build(mask_padding=False)
        need, fixed = tiny_batch(model.config), tiny_batch(model.config, pad_to_fixed=True)
        assert not torch.allclose(model(**need).logits, model(**fixed).logits, atol=1e-3)

    @pytest.mark.parametrize("key", ["attention_mask", "audio_attention_mask", "vision_attention_mask"])
    def test_a_sample_without_a_single_position_works(self, key: str) -> None:
        model = build()
        inputs = full_inputs(model.config)
        others = model(**inputs).logits[1:]
        inputs[key][0] = 0
        out = model(**inputs)
        out.loss.backward()
        assert torch.isfinite(out.logits).all()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        assert torch.allclose(out.logits[1:], others, atol=1e-6)

    def test_what_was_dropped_cannot_influence_the_output(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        generator = np.random.default_rng(0)
        masks = {
            name: (generator.random(batch[mask].shape) < 0.5) & (batch[mask].numpy() == 1)
            for name, mask in (("text", "attention_mask"), ("audio", "audio_attention_mask"))
        }
        masks["vision"] = batch["vision_attention_mask"].numpy() == 1
        other = dict(batch)
        for name, key in (("text", "input_ids"), ("audio", "audio_values"), ("vision", "vision_values")):
            dropped = torch.from_numpy(masks[name])
            other[key] = batch[key].clone()
            other[key][dropped] = 6 if name == "text" else 123.0
        assert not torch.allclose(model(**batch).logits, model(**other).logits, atol=1e-3)
        left, right = (model(**apply_missing(inputs, masks, UNK)) for inputs in (batch, other))
        assert torch.equal(left.logits, right.logits)

    def test_dropped_frames_are_attended_to_and_padded_ones_are_not(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        batch["vision_values"] = torch.zeros_like(batch["vision_values"])
        dropped = model(**batch).logits
        batch["vision_attention_mask"] = torch.zeros_like(batch["vision_attention_mask"])
        assert not torch.allclose(dropped, model(**batch).logits, atol=1e-4)

    @pytest.mark.parametrize("modality", ["text", "audio", "vision"])
    def test_a_sequence_longer_than_the_table_is_refused(self, modality: str) -> None:
        model = build()
        batch = tiny_batch(model.config)
        del batch[f"{modality}_missing_mask"]
        if modality == "text":
            batch["input_ids"] = torch.full((4, 13), UNK)
            batch["attention_mask"] = torch.ones(4, 13, dtype=torch.long)
        else:
            batch[f"{modality}_values"] = torch.zeros(4, 13, batch[f"{modality}_values"].shape[-1])
            batch[f"{modality}_attention_mask"] = torch.ones(4, 13, dtype=torch.long)
        table = 11 if modality == "text" else 12
        with pytest.raises(ValueError, match=f"the position table holds {table}"):
            model(**batch)

    def test_lower_precision_stays_close(self) -> None:
        model = build()
        inputs = full_inputs(model.config)
        exact = model(**inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(**inputs)
        rough.loss.backward()
        assert torch.allclose(rough.logits.float(), exact.logits, atol=0.1)
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("overrides", ABSENT)
@pytest.mark.parametrize("proxy", ["gated", "lnln", "mean", "none"])
def test_a_modality_that_is_not_there_has_no_parts_and_the_rest_trains(overrides: dict[str, Any], proxy: str) -> None:
    model = build(**overrides, proxy=proxy)
    absent = next(iter(overrides)).removesuffix("_dim")
    assert not any(absent in name or "gate" in name for name, _ in model.named_parameters())
    inputs = full_inputs(model.config)
    out = model(**inputs)
    assert out.gate is None
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    present = "audio" if absent == "vision" else "vision"
    changed = {**inputs, f"{present}_values": inputs[f"{present}_values"] + 1}
    assert not torch.allclose(model(**changed).logits, out.logits)


def test_with_one_modality_the_proxy_is_that_modalitys() -> None:
    model = build(vision_dim=None)
    batch = tiny_batch(model.config)
    out = model(**batch)
    audio = model.encode("audio", batch["audio_values"], batch["audio_attention_mask"])
    assert torch.equal(out.proxy_features, model.proxy_generator.generators["audio"](audio))


class TestUpperBound:
    @pytest.fixture
    def model(self) -> TcmrForSentimentAnalysis:
        return build(confidence_source="oracle")

    def test_without_labels_it_says_what_is_needed(self, model: TcmrForSentimentAnalysis) -> None:
        with pytest.raises(ValueError, match="upper bound TCMR-ub.*pass labels or confidence"):
            model(**tiny_batch(model.config))
        assert model.config.is_oracle

    def test_with_labels_it_uses_the_true_class_probability(self, model: TcmrForSentimentAnalysis) -> None:
        batch, labels = tiny_batch(model.config), tiny_labels(model.config)
        out = model(**batch, labels=labels)
        true = model.polarity_classifier.true_class_probability(batch["input_ids"], batch["attention_mask"], labels)
        assert torch.equal(out.confidence.squeeze(1), true)
        assert torch.equal(out.logits, model(**batch, confidence=true).logits)

    def test_there_is_no_estimator_to_train(self, model: TcmrForSentimentAnalysis) -> None:
        assert model.confnet is None
        with pytest.raises(ValueError, match="has no ConfNet"):
            model(**tiny_batch(model.config), confidence_targets=torch.ones(4), objective="confidence")

    def test_the_classifier_stays_frozen_through_training_mode_and_loading(
        self, model: TcmrForSentimentAnalysis, tmp_path: Path
    ) -> None:
        model.save_pretrained(tmp_path)
        loaded = TcmrForSentimentAnalysis.from_pretrained(tmp_path)
        for candidate in (model, loaded):
            candidate.train()
            assert candidate.regressor.training
            assert not any(module.training for module in candidate.polarity_classifier.modules())
            assert not any(parameter.requires_grad for parameter in candidate.polarity_classifier.parameters())
            candidate(**full_inputs(model.config), objective="other").loss.backward()
            assert "polarity_classifier" not in gradients(candidate)
            trained = {id(parameter) for parameter in candidate.other_parameters()}
            assert not trained & {id(parameter) for parameter in candidate.polarity_classifier.parameters()}

    def test_it_takes_over_the_weights_of_the_trained_stage(self, model: TcmrForSentimentAnalysis) -> None:
        torch.manual_seed(9)
        stage = TcmrPolarityClassifier(tiny_tcmr_config()).eval()
        model.polarity_classifier.load_state_dict(stage.state_dict())
        batch, labels = tiny_batch(model.config), tiny_labels(model.config)
        expected = stage.true_class_probability(batch["input_ids"], batch["attention_mask"], labels)
        assert torch.equal(model(**batch, labels=labels).confidence.squeeze(1), expected)


class TestSaving:
    @pytest.mark.parametrize("stage", [TcmrForSentimentAnalysis, *STAGES])
    @pytest.mark.parametrize("overrides", [{}, {"vision_dim": None}, {"fusion_style": "lnln"}])
    def test_a_reloaded_model_gives_the_same_bits(
        self, stage: type[nn.Module], overrides: dict[str, Any], tmp_path: Path
    ) -> None:
        torch.manual_seed(1)
        model = stage(tiny_tcmr_config(**overrides)).eval()
        batch = tiny_batch(model.config)
        model.save_pretrained(tmp_path)
        loaded = stage.from_pretrained(tmp_path)
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
        assert all(getattr(loaded.config, name) == value for name, value in overrides.items())

    def test_learned_tokens_and_positions_missing_from_a_file_are_drawn_anew(self, tmp_path: Path) -> None:
        model = build()
        lost = {"fusion.tokens", "encoders.audio.transformer.positions", "encoders.audio.transformer.tokens"}
        state = {name: value for name, value in model.state_dict().items() if name not in lost}
        model.save_pretrained(tmp_path, state_dict=state)
        loaded = TcmrForSentimentAnalysis.from_pretrained(tmp_path)
        assert torch.equal(loaded.fusion.tokens, torch.ones_like(loaded.fusion.tokens))
        assert torch.equal(loaded.encoders["audio"].transformer.tokens, torch.zeros(8, 16))
        assert 0.8 < loaded.encoders["audio"].transformer.positions.std() < 1.2
        assert torch.equal(loaded.cross.source_positions, model.cross.source_positions)

    @pytest.mark.parametrize("stage", STAGES)
    def test_stages_do_not_pose_as_the_predicting_model(self, stage: type[nn.Module], tmp_path: Path) -> None:
        stage(tiny_tcmr_config()).save_pretrained(tmp_path)
        assert set(TcmrConfig.from_pretrained(tmp_path).auto_map) == {"AutoConfig"}

    def test_upper_bound_names_the_predicting_class(self) -> None:
        model = build(confidence_source="oracle")
        assert model.config.auto_map["AutoModel"] == "modeling_tcmr.TcmrForSentimentAnalysis"


class TestTextRegressor:
    def test_score_is_a_linear_map_of_the_token_mean(self) -> None:
        model = TcmrTextRegressor(tiny_tcmr_config(hidden_size=2, num_tokens=2)).eval()
        model.encoder = Constant(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        with torch.no_grad():
            model.regressor.weight.copy_(torch.tensor([[0.5, -1.0]]))
            model.regressor.bias.fill_(1.0)
        out = model(**tiny_batch(model.config), labels=torch.full((4,), 1.0))
        # Mean (2, 4): 1 - 4 + 1 = -2; squared error 9.
        assert torch.allclose(out.logits, torch.full((4, 1), -2.0))
        assert out.loss.item() == pytest.approx(9.0)

    def test_features_are_of_all_tokens_but_the_first(self) -> None:
        model = TcmrTextRegressor(tiny_tcmr_config()).eval()
        batch = tiny_batch(model.config)
        hidden = model.encode_text(batch["input_ids"], batch["attention_mask"])
        expected = model.encoder(hidden[:, 1:], batch["attention_mask"][:, 1:])
        assert torch.equal(model(**batch).features, expected)

    def test_it_trains_all_its_parameters(self) -> None:
        model = TcmrTextRegressor(tiny_tcmr_config())
        model(**tiny_batch(model.config), labels=tiny_labels(model.config)).loss.backward()
        assert gradients(model) == {"text_encoder", "encoder", "regressor"}
