"""UBM: sizes of the paper, sequences read to their end and no further, every uncertainty by hand, what each loss trains."""

import copy
import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_msa.models.configuration_ubm import UNCERTAINTIES, UbmConfig
from hf_msa.models.modeling_ubm import (
    UbmForSentimentAnalysis,
    UbmPass,
    UbmSequenceEncoder,
    class_entropy,
    subset_means,
    thinned,
    variance,
)
from nonempty import some
from tiny import tiny_backbone, tiny_batch, tiny_labels, tiny_processor, tiny_rows, tiny_ubm_config

NEEDS: dict[str, dict[str, Any]] = {"mc_dropout": {"fusion_dropout": 0.5}}


def build(**overrides: Any) -> UbmForSentimentAnalysis:
    """A model with random weights; what is fitted expects an error of at least 0.25."""
    torch.manual_seed(0)
    needs = NEEDS.get(overrides.get("uncertainty_kind", ""), {})
    model = UbmForSentimentAnalysis(tiny_ubm_config(**needs, **overrides)).eval()
    if model.config.fits_errors:
        model.error_weights.copy_(torch.linspace(-1, 1, 18))
        model.error_offsets.copy_(torch.tensor([0.5, 0.25]))
        model.config.conformal_fit = {"coverage": 0.9, "quantile": 2.0}
    return model


def read(model: UbmForSentimentAnalysis) -> tuple[Any, UbmPass]:
    inputs = model.read(tiny_batch(model.config))
    return inputs, model.run_network(inputs)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def mosi(**overrides: Any) -> UbmForSentimentAnalysis:
    """The defaults, which are MOSI's, around a text encoder of BERT's width."""
    backbone = tiny_backbone() | {"hidden_size": 768, "num_hidden_layers": 1}
    with torch.device("meta"):
        return UbmForSentimentAnalysis(
            UbmConfig(text_config=backbone, **{"audio_dim": 5, "vision_dim": 20, **overrides})
        )


class TestSizes:
    def test_parameters_on_mosi_are_the_papers(self) -> None:
        model = mosi()
        assert count(model.audio_encoder) == 5_520
        assert count(model.vision_encoder) == 24_096
        assert count(model.fusion) == 104_576
        assert count(model.regressor) == 16_641
        assert count(model.classifier) == 16_899
        assert count(model) - count(model.text_encoder) == 5_520 + 24_096 + 104_576 + 16_641 + 16_899

    @pytest.mark.parametrize(
        ("kind", "extra"),
        [
            ("prediction_truth", 16_641),
            ("heads", 5 * 16_641),
            ("modality_disagreement", 769 + 17 + 33),
            *((kind, 0) for kind in ("score", "mc_dropout", "learned_error", "conformal")),
        ],
    )
    def test_an_uncertainty_adds_its_own_heads_and_nothing_else(self, kind: str, extra: int) -> None:
        assert count(mosi(uncertainty_kind=kind)) - count(mosi()) == extra
        assert count(mosi(uncertainty_candidates=[kind])) - count(mosi()) == extra

    def test_members_are_whole_networks(self) -> None:
        assert count(mosi(uncertainty_kind="members", ensemble_size=2)) == 3 * count(mosi())

    def test_an_absent_modality_has_no_encoder_and_the_fusion_is_narrower(self) -> None:
        model = mosi(vision_dim=None)
        assert not [name for name, _ in model.named_parameters() if "vision" in name]
        assert model.fusion[0].in_features == 768 + 16


class TestSequences:
    def encoder(self) -> UbmSequenceEncoder:
        torch.manual_seed(1)
        return UbmSequenceEncoder(tiny_ubm_config(), "audio").eval()

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(2)
        mask = (torch.arange(9) < torch.tensor([[9], [4], [1], [6]])).long()
        return torch.randn(4, 9, 5), mask

    def test_each_row_is_its_own_lstm_s_last_state(self) -> None:
        encoder = self.encoder()
        values, mask = self.batch()
        found = encoder(values, mask)
        for row, length in some(enumerate((9, 4, 1, 6))):
            states, _ = encoder.lstm(values[row : row + 1, :length])
            assert torch.allclose(found[row], encoder.projection(states[0, -1]), atol=1e-6)

    @pytest.mark.parametrize("rubbish", [1e6, float("nan"), float("inf")])
    def test_frames_beyond_the_length_have_no_influence(self, rubbish: float) -> None:
        encoder = self.encoder()
        values, mask = self.batch()
        assert torch.equal(encoder(values.masked_fill(mask.unsqueeze(-1) == 0, rubbish), mask), encoder(values, mask))

    def test_real_frames_have_influence(self) -> None:
        encoder = self.encoder()
        values, mask = self.batch()
        changed = values.clone()
        changed[1, 3] += 1.0
        moved = (encoder(changed, mask) != encoder(values, mask)).any(dim=1)
        assert moved.tolist() == [False, True, False, False]

    def test_the_order_of_the_batch_has_no_influence(self) -> None:
        encoder = self.encoder()
        values, mask = self.batch()
        order = torch.tensor([2, 0, 3, 1])
        assert torch.allclose(encoder(values[order], mask[order]), encoder(values, mask)[order], atol=1e-6)

    def test_a_row_without_a_frame_is_one_frame_of_zeros(self) -> None:
        encoder = self.encoder()
        values, mask = self.batch()
        mask[1] = 0
        expected = encoder(torch.zeros(1, 1, 5))
        assert torch.allclose(encoder(values, mask)[1], expected[0], atol=1e-6)

    def test_padding_is_read_where_the_configuration_says_so(self) -> None:
        for mask_padding in (True, False):
            model = build(mask_padding=mask_padding)
            batch = tiny_batch(model.config, pad_to_fixed=True)
            changed = {name: value.clone() for name, value in batch.items()}
            changed["audio_values"][batch["audio_attention_mask"] == 0] = 3.0
            assert torch.equal(model(**changed).logits, model(**batch).logits) is mask_padding


class TestEntropy:
    @pytest.mark.parametrize(
        ("probabilities", "expected"),
        [
            ((1 / 3, 1 / 3, 1 / 3), 1.098612),
            ((0.5, 0.5, 0.0), 0.693147),
            ((0.9, 0.05, 0.05), 0.394398),
            ((1, 0, 0), 0),
        ],
    )
    def test_numbers(self, probabilities: tuple[float, ...], expected: float) -> None:
        found = class_entropy(torch.tensor([probabilities]).log())
        assert found.item() == pytest.approx(expected, abs=1e-6)

    def test_the_order_of_the_classes_changes_nothing(self) -> None:
        logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(class_entropy(logits[:, [2, 0, 1]]), class_entropy(logits), atol=1e-6)

    def test_a_higher_temperature_is_less_sure(self) -> None:
        # softmax((ln 9, 0) / 2) = (3/4, 1/4)
        logits = torch.tensor([[math.log(9), 0.0]])
        assert class_entropy(logits, 2.0).item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))

    def test_half_precision_is_computed_in_single(self) -> None:
        logits = torch.tensor([[0.1, 0.2, 0.3]])
        assert class_entropy(logits.bfloat16()).dtype == torch.float32


class TestUncertainty:
    def output(self, **overrides: Any) -> tuple[UbmForSentimentAnalysis, Any]:
        model = build(**overrides)
        return model, model(**tiny_batch(model.config))

    def test_entropy_is_of_the_tempered_class_logits_which_are_given_as_they_are(self) -> None:
        _, cold = self.output()
        model, warm = self.output(temperature=3.0)
        assert torch.equal(warm.class_logits, cold.class_logits)
        assert torch.allclose(cold.uncertainty.squeeze(1), class_entropy(cold.class_logits))
        assert torch.allclose(warm.uncertainty.squeeze(1), class_entropy(cold.class_logits / 3))
        assert (warm.uncertainty > cold.uncertainty).all()
        assert model.config.temperature == 3.0

    def test_expected_error_is_a_softplus(self) -> None:
        model, out = self.output(uncertainty_kind="prediction_truth")
        raw = model.error_head(out.embeddings)
        assert torch.allclose(out.uncertainty, (1 + raw.exp()).log(), atol=1e-6)
        assert (out.uncertainty > 0).all()

    def test_variance_of_the_ensemble(self) -> None:
        model, out = self.output(uncertainty_kind="heads", ensemble_size=3)
        scores = torch.cat([head(out.embeddings) for head in model.ensemble], dim=1)
        expected = (scores - scores.mean(dim=1, keepdim=True)).square().mean(dim=1)
        assert torch.allclose(out.uncertainty.squeeze(1), expected)
        assert (expected > 0).all()

    def test_minus_the_size_of_the_score(self) -> None:
        _, out = self.output(uncertainty_kind="score")
        assert torch.equal(out.uncertainty, -out.logits.abs())

    def test_variance_by_hand(self) -> None:
        # Mean 2, deviations -2, 0, 2.
        assert variance(torch.tensor([[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]])).tolist() == pytest.approx([8 / 3, 0])

    def test_variance_of_members_that_share_nothing_with_the_model(self) -> None:
        model, out = self.output(uncertainty_kind="members", ensemble_size=3)
        scores = torch.cat([member(**tiny_batch(model.config)).logits for member in model.networks], dim=1)
        assert torch.allclose(out.uncertainty.squeeze(1), scores.var(dim=1, correction=0))
        assert (out.uncertainty > 0).all()
        own = {parameter.data_ptr() for parameter in model.regressor.parameters()}
        assert own.isdisjoint(parameter.data_ptr() for parameter in model.members.parameters())
        assert torch.equal(out.logits, model.regressor(out.embeddings)), "the score is not theirs"

    def test_disagreement_is_the_variance_of_heads_that_see_one_modality(self) -> None:
        model, out = self.output(uncertainty_kind="modality_disagreement")
        _, seen = read(model)
        assert {name: vector.shape[1] for name, vector in seen.vectors.items()} == {
            "text": 32,
            "audio": 4,
            "vision": 3,
        }
        scores = torch.cat([model.unimodal[name](seen.vectors[name]) for name in ("text", "audio", "vision")], dim=1)
        assert torch.allclose(out.uncertainty.squeeze(1), scores.var(dim=1, correction=0))

    def test_expected_error_is_linear_and_never_below_the_least(self) -> None:
        model, out = self.output(uncertainty_kind="learned_error")
        _, seen = read(model)
        beside = torch.stack([seen.logits.squeeze(1).abs(), class_entropy(seen.class_logits)], dim=1)
        features = torch.cat([seen.embeddings, beside], dim=1)
        expected = (features * torch.linspace(-1, 1, 18)).sum(dim=1) + 0.5
        assert torch.allclose(out.uncertainty.squeeze(1), expected.clamp(min=0.25), atol=1e-6)
        assert out.interval_low is None
        model.error_offsets[0] = -10.0
        assert (model(**tiny_batch(model.config)).uncertainty == 0.25).all()

    def test_an_interval_is_so_many_expected_errors_wide_and_within_the_label_range(self) -> None:
        model, out = self.output(uncertainty_kind="conformal")
        _, seen = read(model)
        assert torch.allclose(out.uncertainty.squeeze(1), 2 * model.learned_error(seen))
        assert torch.allclose(out.interval_low, (out.logits - out.uncertainty).clamp(min=-3))
        assert torch.allclose(out.interval_high, (out.logits + out.uncertainty).clamp(max=3))
        model.config.conformal_fit = {"coverage": 0.9, "quantile": 1000.0}
        wide = model(**tiny_batch(model.config))
        assert (wide.interval_low == -3).all() and (wide.interval_high == 3).all()
        assert {"interval_low", "interval_high"} < set(model.per_sample_outputs(wide))

    @pytest.mark.parametrize(("kind", "words"), [("learned_error", "never fitted"), ("conformal", "cannot give")])
    def test_what_was_never_fitted_is_no_uncertainty(self, kind: str, words: str) -> None:
        model = UbmForSentimentAnalysis(tiny_ubm_config(uncertainty_kind=kind)).eval()
        with pytest.raises(ValueError, match=words):
            model(**tiny_batch(model.config))

    def test_a_model_says_which_uncertainties_it_can_give(self) -> None:
        assert build().available_uncertainties == ("entropy", "score")
        assert build(uncertainty_kind="mc_dropout").available_uncertainties == ("entropy", "score", "mc_dropout")
        model = build(uncertainty_candidates=["heads", "conformal"], ensemble_size=2)
        assert model.available_uncertainties == ("entropy", "score", "heads", "learned_error", "conformal")
        inputs, seen = read(model)
        for kind in some(model.available_uncertainties):
            assert model.estimate(kind, inputs, seen).shape == (4,)
        with pytest.raises(ValueError, match="the uncertainty 'members', .*it has entropy, score, heads"):
            model.estimate("members", inputs, seen)

    @pytest.mark.parametrize("kind", UNCERTAINTIES)
    def test_in_training_nobody_asks_for_it(self, kind: str) -> None:
        model = build(uncertainty_kind=kind)
        labels = tiny_labels(model.config)
        assert model(**tiny_batch(model.config), labels=labels, train_uncertainty=False).uncertainty is None
        assert model.train()(**tiny_batch(model.config), labels=labels).uncertainty is None

    @pytest.mark.parametrize("kind", UNCERTAINTIES)
    def test_shapes_and_what_results_keep(self, kind: str) -> None:
        model, out = self.output(uncertainty_kind=kind)
        assert out.uncertainty.shape == (4, 1) and out.embeddings.shape == (4, 16) and out.class_logits.shape == (4, 3)
        assert set(model.per_sample_outputs(out)) - {"interval_low", "interval_high"} == {
            "logits",
            "uncertainty",
            "class_logits_negative",
            "class_logits_neutral",
            "class_logits_positive",
        }


class TestLosses:
    def losses(self, kind: str, **inputs: Any) -> tuple[UbmForSentimentAnalysis, Any, torch.Tensor]:
        model = build(uncertainty_kind=kind)
        labels = tiny_labels(model.config)
        labels[0] = 0.0
        return model, model(**tiny_batch(model.config), labels=labels, **inputs), labels

    @pytest.mark.parametrize("kind", UNCERTAINTIES)
    def test_score_and_class(self, kind: str) -> None:
        _, out, labels = self.losses(kind, train_uncertainty=False)
        classes = torch.tensor([1 if y == 0 else 0 if y < 0 else 2 for y in labels.tolist()])
        task = ((out.logits.squeeze(1) - labels) ** 2).mean()
        chosen = out.class_logits.log_softmax(dim=1)[torch.arange(4), classes]
        assert set(out.losses) == {"task", "class"}
        assert torch.allclose(out.losses["task"], task) and torch.allclose(out.losses["class"], -chosen.mean())
        assert torch.allclose(out.loss, task - chosen.mean())

    def test_the_error_head_learns_the_size_of_the_error(self) -> None:
        _, out, labels = self.losses("prediction_truth")
        target = (out.logits.squeeze(1) - labels).abs()
        expected = (out.uncertainty.squeeze(1) - target).square().mean()
        assert torch.allclose(out.losses["error"], expected)
        assert torch.allclose(out.loss, out.losses["task"] + out.losses["class"] + expected)

    def test_the_score_does_not_learn_to_be_wrong_as_expected(self) -> None:
        gradients = []
        for train in (True, False):
            model, out, _ = self.losses("prediction_truth", train_uncertainty=train)
            out.loss.backward()
            gradients.append([parameter.grad.clone() for parameter in model.regressor.parameters()])
        assert all(torch.allclose(one, other) for one, other in zip(*gradients, strict=True))

    def test_a_head_of_the_ensemble_learns_from_its_own_samples(self) -> None:
        scores = torch.tensor([[1.0, 0.0, 5.0], [3.0, 0.0, 5.0]], requires_grad=True)
        labels = torch.tensor([0.0, 1.0])
        # Errors squared: (1, 0, 25) and (4, 1, 16).
        errors = (scores - labels.unsqueeze(1)).square()
        assert subset_means(errors).tolist() == pytest.approx([2.5, 0.5, 20.5])
        members = torch.tensor([[True, True, False], [False, True, False]])
        means = subset_means(errors, members)
        assert means.tolist() == pytest.approx([1.0, 0.5, 0.0])
        means.sum().backward()
        assert (scores.grad != 0).tolist() == [[True, False, False], [False, True, False]]

    SUBSETS = torch.tensor([[True, False, True, True, False]] * 2 + [[False, True, True, False, True]] * 2)

    def test_the_heads_loss_is_added(self) -> None:
        model, out, labels = self.losses("heads", ensemble_members=self.SUBSETS)
        scores = torch.cat([head(out.embeddings) for head in model.ensemble], dim=1)
        expected = subset_means((scores - labels.unsqueeze(1)).square(), self.SUBSETS).mean()
        assert torch.allclose(out.losses["ensemble"], expected)
        assert torch.allclose(out.loss, out.losses["task"] + out.losses["class"] + expected)

    def test_a_member_learns_as_if_it_were_alone_with_its_samples(self) -> None:
        model, out, labels = self.losses("members", ensemble_members=self.SUBSETS)
        out.loss.backward()
        batch = tiny_batch(model.config)
        for number, member in some(enumerate(model.networks)):
            chosen = self.SUBSETS[:, number]
            alone = copy.deepcopy(member)
            alone.zero_grad()
            part = {name: value[chosen] for name, value in batch.items()}
            alone(**part, labels=labels[chosen]).loss.backward()
            pairs = zip(member.named_parameters(), alone.parameters(), strict=True)
            assert all(torch.allclose(one.grad, other.grad, atol=1e-5) for (_, one), other in pairs)
        assert torch.allclose(out.loss, out.losses["task"] + out.losses["class"] + out.losses["members"])

    def test_a_head_of_one_modality_learns_the_label_and_teaches_nobody(self) -> None:
        model, out, labels = self.losses("modality_disagreement")
        _, seen = read(model)
        expected = (model.unimodal_scores(seen) - labels.unsqueeze(1)).square().mean()
        assert torch.allclose(out.losses["unimodal"], expected)
        expected.backward()
        taught = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert taught == {"unimodal"}

    @pytest.mark.parametrize("absent", [None, "audio", "vision"])
    @pytest.mark.parametrize("kind", UNCERTAINTIES)
    def test_training_uses_every_parameter(self, kind: str, absent: str | None) -> None:
        """Which is what training in several processes at once asks for."""
        model = build(uncertainty_kind=kind, **({f"{absent}_dim": None} if absent else {})).train()
        nobody = torch.zeros(4, 5, dtype=torch.bool)
        out = model(**tiny_batch(model.config), labels=tiny_labels(model.config), ensemble_members=nobody)
        out.loss.backward()
        assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


class TestDropout:
    def model(self, **overrides: Any) -> UbmForSentimentAnalysis:
        backbone = tiny_backbone() | {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
        return build(uncertainty_kind="mc_dropout", text_config=backbone, dropout_passes=4, **overrides)

    def test_a_thinned_layer_by_hand(self) -> None:
        layer = nn.Dropout(0.5).eval()
        with thinned({"layer": layer}, (0, 3)):
            found = layer(torch.ones(2, 3, 64))
        kept = np.random.default_rng([0, 3, zlib.crc32(b"layer")]).random(64) >= 0.5
        assert torch.equal(found, torch.from_numpy(np.where(kept, 2.0, 0.0)).float().expand(2, 3, 64))
        assert torch.equal(layer(torch.ones(5)), torch.ones(5)), "back to normal"

    def test_it_is_the_variance_over_thinned_networks(self) -> None:
        model = self.model()
        assert len(model.dropout_layers) > 4 and "fusion.2" in model.dropout_layers
        batch = tiny_batch(model.config)
        scores = []
        for number in range(4):
            with thinned(model.dropout_layers, (0, number)):
                scores.append(model.run_network(model.read(batch)).logits)
        found = model(**batch).uncertainty
        assert torch.allclose(found, torch.cat(scores, dim=1).var(dim=1, correction=0, keepdim=True))
        assert (found > 0).all() and torch.equal(model(**batch).uncertainty, found)
        assert not torch.allclose(self.model(dropout_seed=1)(**batch).uncertainty, found)

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        model = self.model()
        batch = tiny_batch(model.config)
        together = model(**batch).uncertainty
        for row in range(4):
            alone = model(**{name: value[row : row + 1] for name, value in batch.items()}).uncertainty
            assert torch.allclose(alone, together[row : row + 1], atol=1e-6)

    def test_without_dropout_there_is_none(self) -> None:
        with pytest.raises(ValueError, match="fusion_dropout and encoder_dropout are 0"):
            UbmForSentimentAnalysis(tiny_ubm_config(uncertainty_kind="mc_dropout"))


def test_the_ensemble_of_earlier_versions_is_heads_on_one_trunk() -> None:
    model = build(uncertainty_kind="ensemble", ensemble_size=2)
    assert model.config.uncertainty_kind == "heads"
    assert {name.partition(".")[0] for name in model.state_dict()} >= {"ensemble"}


def test_text_is_the_first_position() -> None:
    model = build()
    batch = tiny_batch(model.config)
    seen: list[torch.Tensor] = []
    model.fusion[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = model(**batch)
    text = model.text_encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.allclose(seen[0][:, :32], text[:, 0], atol=1e-5)
    assert seen[0].shape == (4, 32 + 4 + 3)
    # B.5: the fused vector is what the ReLU gives.
    assert torch.allclose(out.embeddings, F.relu(model.fusion[0](seen[0])))


def test_a_modality_that_no_sample_of_the_batch_has() -> None:
    model = build()
    rows = [{**row, "audio_present": False, "vision_present": False} for row in tiny_rows(model.config)]
    out = model(**tiny_processor(model.config).from_rows(rows))
    assert torch.isfinite(out.logits).all() and torch.isfinite(out.uncertainty).all()


def test_half_precision_keeps_losses_and_uncertainty_in_single() -> None:
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**tiny_batch(model.config), labels=tiny_labels(model.config))
    assert out.loss.dtype == out.uncertainty.dtype == torch.float32
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fusion_dim": 0}, "fusion_dim must be at least 1, got 0"),
        ({"audio_hidden_size": 0}, "audio_hidden_size must be at least 1"),
        ({"fusion_dropout": 1.0}, "fusion_dropout must be at least 0 and below 1"),
        ({"ensemble_size": 1}, "ensemble_size must be at least 2"),
        ({"ensemble_fraction": 0.0}, "ensemble_fraction must be above 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": 2.0, "uncertainty_kind": "score"}, "changes the entropy alone.*'score'"),
        ({"calibrate_temperature": True, "uncertainty_kind": "heads"}, "changes the entropy alone"),
        ({"uncertainty_candidates": ["heads", "dropout"]}, "has 'dropout', but the kinds are entropy, score"),
        ({"dropout_passes": 1}, "dropout_passes must be at least 2"),
        ({"dropout_seed": -1}, "dropout_seed must be at least 0"),
        ({"conformal_coverage": 1.0}, "conformal_coverage must be above 0 and below 1"),
        ({"conformal_fit": {"coverage": 0.9}}, "conformal_fit is .*has to hold coverage and quantile"),
        ({"uncertainty_kind": "variance"}, "uncertainty_kind"),
        ({"audio_dim": None, "vision_dim": None}, "needs at least one of audio, vision"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        tiny_ubm_config(**fields)
