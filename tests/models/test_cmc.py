"""CMC and its unimodal models: the paper's parts with numbers made by hand, and what must and must not change."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn import functional as F

from hf_msa.models.configuration_cmc import CmcConfig
from hf_msa.models.modeling_cmc import (
    CmcBranch,
    CmcForSentimentAnalysis,
    CmcUnimodalModels,
    MaskedBatchNorm,
    class_score,
    contrast_labels,
    parameter_free_fusion,
    supervised_contrastive_loss,
    topk_softmax,
)
from hf_msa.models.msa_label_families import BUILT_IN
from tiny import tiny_backbone, tiny_batch, tiny_cmc_config, tiny_labels, tiny_processor, tiny_rows

PSEUDO = torch.tensor([[0, 1, 2], [2, 2, 2], [0, 0, 1], [1, 2, 0]])


def build(seed: int = 0, **overrides: Any) -> CmcForSentimentAnalysis:
    torch.manual_seed(seed)
    return CmcForSentimentAnalysis(tiny_cmc_config(**overrides)).eval()


def build_unimodal(seed: int = 0, **overrides: Any) -> CmcUnimodalModels:
    torch.manual_seed(seed)
    return CmcUnimodalModels(tiny_cmc_config(**overrides)).eval()


def branch(modality: str = "audio", **overrides: Any) -> CmcBranch:
    torch.manual_seed(0)
    return CmcBranch(tiny_cmc_config(**overrides), modality, classifies=True)


def frames(*lengths: int, width: int = 5) -> tuple[Tensor, Tensor]:
    """Random frames of these lengths, zeros behind, and their mask."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    values = torch.randn(*mask.shape, width, generator=torch.Generator().manual_seed(3))
    return values * mask.unsqueeze(-1), mask


class TestConfiguration:
    def test_defaults_are_those_of_the_public_code(self) -> None:
        config = CmcConfig(audio_dim=5, vision_dim=20)
        assert (config.embed_dim, config.feedforward_dim, config.top_k) == (32, 128, 3)
        assert (config.fusion_temperature, config.supcon_temperature, config.supcon_weight) == (0.07, 0.07, 1.0)
        assert config.label_momentum == {"text": 0.8, "audio": 0.99, "vision": 0.99}
        assert config.ema_momentum == {"text": 0.8, "audio": 0.9, "vision": 0.6}
        assert config.ema_gamma == {"text": 2.5, "audio": 5.0, "vision": 2.0}
        assert not config.is_oracle

    def test_its_classes_have_names_beside_the_score(self, tmp_path: Path) -> None:
        tiny_cmc_config(label_momentum={"text": 0.5, "audio": 0.6, "vision": 0.7}).save_pretrained(tmp_path)
        config = CmcConfig.from_pretrained(tmp_path)
        assert config.class_names == ("negative", "neutral", "positive")
        assert config.problem_type == "regression" and config.num_labels == 1
        assert config.label_momentum == {"text": 0.5, "audio": 0.6, "vision": 0.7}

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
            ({"top_k": 0}, "top_k must be at least 1"),
            ({"embed_dim": 10, "num_attention_heads": 4}, "multiple of num_attention_heads, got 10 and 4"),
            ({"head_dropout": 1.0}, "head_dropout must be at least 0 and below 1, got 1.0"),
            ({"fusion_temperature": 0}, "fusion_temperature must be above 0, got 0"),
            ({"supcon_weight": -1}, "supcon_weight must be at least 0, got -1"),
            (
                {"label_momentum": {"text": 0.8, "audio": 0.8}},
                "label_momentum needs for vision .* from 0 to 1, got None",
            ),
            ({"ema_momentum": {"text": 0.8, "audio": 2, "vision": 0}}, "ema_momentum needs for audio .* got 2"),
            ({"ema_gamma": {"text": -1, "audio": 1, "vision": 1}}, "ema_gamma needs for text .* at least 0, got -1"),
            ({"pfm": "sum"}, "pfm"),
            ({"audio_dim": None, "vision_dim": None}, "needs at least one of audio, vision"),
        ],
    )
    def test_what_cannot_be_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            tiny_cmc_config(**fields)

    def test_momenta_of_a_modality_that_is_not_there_need_not_be_given(self) -> None:
        config = tiny_cmc_config(vision_dim=None, label_momentum={"text": 0.8, "audio": 0.8})
        assert config.modalities == ("text", "audio")

    @pytest.mark.parametrize(
        ("audio", "vision", "layers", "heads", "expected"),
        [(33, 709, 5, 4, 247_096), (25, 177, 4, 2, 190_624), (5, 20, 2, 4, 108_382), (74, 35, 2, 4, 111_238)],
        ids=["sims", "simsv2", "mosi", "mosei"],
    )
    def test_full_size_models_have_the_public_codes_parameters(
        self, audio: int, vision: int, layers: int, heads: int, expected: int
    ) -> None:
        encoder = {**tiny_backbone(), "hidden_size": 768, "num_hidden_layers": 1}
        sizes = {"audio_dim": audio, "vision_dim": vision, "encoder_layers": layers, "num_attention_heads": heads}
        with torch.device("meta"):
            model = CmcForSentimentAnalysis(CmcConfig(text_config=encoder, **sizes))
        counted = [p.numel() for name, p in model.named_parameters() if not name.startswith("text_encoder.")]
        assert sum(counted) == expected


class TestParameterFreeFusion:
    def test_parallel_rows_share_and_orthogonal_ones_keep_to_themselves(self) -> None:
        rows = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        # The shares are [.5, .5, 6e-7] and [6e-7, 6e-7, 1], with e^(-1/.07) = 6.2e-7.
        tiny = math.exp(-1 / 0.07)
        mixed = parameter_free_fusion(rows, 0.07)
        assert torch.allclose(mixed, rows, atol=2e-6)
        assert mixed[0, 2, 0].item() == pytest.approx(2 * tiny, rel=1e-4)

    def test_the_shares_of_rows_at_an_angle(self) -> None:
        rows = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]])
        shares = torch.tensor([[0.99671, 0.00329, 0.0], [0.00311, 0.94275, 0.05414], [0.0, 0.05431, 0.94569]])
        assert torch.allclose(parameter_free_fusion(rows, 0.07), shares @ rows, atol=1e-5)

    def test_identical_rows_stay_and_a_high_temperature_gives_the_mean(self) -> None:
        same = torch.tensor([[[0.6, 0.8]] * 3])
        assert torch.allclose(parameter_free_fusion(same, 0.07), same, atol=1e-6)
        rows = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]])
        assert torch.allclose(parameter_free_fusion(rows, 1e6), rows.mean(1, keepdim=True).expand(1, 3, 2), atol=1e-5)

    def test_permuting_modalities_permutes_the_result(self) -> None:
        rows = F.normalize(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
        order = [2, 0, 1]
        assert torch.allclose(parameter_free_fusion(rows[:, order], 0.5), parameter_free_fusion(rows, 0.5)[:, order])

    def test_a_row_of_zeros_becomes_the_mean_and_leaves_the_others(self) -> None:
        rows = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
        expected = torch.tensor([[[1.0, 0.0], [1 / 3, 1 / 3], [0.0, 1.0]]])
        assert torch.allclose(parameter_free_fusion(rows, 0.07), expected, atol=1e-5)

    def test_lower_precision_does_not_reach_the_exponent(self) -> None:
        rows = F.normalize(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = parameter_free_fusion(rows, 0.07)
        assert torch.allclose(rough.float(), parameter_free_fusion(rows, 0.07), atol=0.01)


class TestRouter:
    def test_weights_by_hand(self) -> None:
        logits = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, 0.0, 0.0]])
        assert torch.allclose(topk_softmax(logits, 3), torch.tensor([[0.25, 0.25, 0.5], [1 / 3] * 3]))

    def test_only_k_experts_have_a_weight(self) -> None:
        logits = torch.tensor([[0.5, 2.0, 1.0]])
        assert torch.equal(topk_softmax(logits, 1), torch.tensor([[0.0, 1.0, 0.0]]))
        pair = math.exp(2) / (math.exp(2) + math.exp(1))
        assert torch.allclose(topk_softmax(logits, 2), torch.tensor([[0.0, pair, 1 - pair]]))

    def test_more_experts_than_there_are_means_all(self) -> None:
        logits = torch.tensor([[0.5, 2.0]])
        assert torch.equal(topk_softmax(logits, 3), logits.softmax(dim=-1))

    def test_it_reads_the_sum_of_the_mixed_vectors(self) -> None:
        model = build()
        with torch.no_grad():
            model.router.weight.zero_()
            model.router.weight[2, 0] = 1.0
            model.router.bias.zero_()
        rows = torch.zeros(1, 3, 16)
        rows[0, :, 0] = torch.tensor([0.5, 0.5, math.log(2) - 1])
        assert torch.allclose(model.route(rows), torch.tensor([[0.25, 0.25, 0.5]]))

    def test_one_that_reads_rows_can_lower_a_modality_that_contradicts_another(self) -> None:
        """Hidden |text - audio|, in two ReLUs, is taken from audio's logit: log 4 less where the two contradict."""
        model = build(router_input="rows")
        with torch.no_grad():
            for parameter in model.router.parameters():
                parameter.zero_()
            for unit, sign in ((0, 1.0), (1, -1.0)):
                model.router.hidden.weight[unit, 0], model.router.hidden.weight[unit, 16] = sign, -sign
                model.router.output.weight[1, unit] = -math.log(4) / 2
        rows = torch.zeros(4, 3, 16)
        rows[:, 0, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])
        rows[:, 1, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
        agree, contradict = torch.tensor([1 / 3, 1 / 3, 1 / 3]), torch.tensor([4 / 9, 1 / 9, 4 / 9])
        assert torch.allclose(model.route(rows), torch.stack([agree, contradict, contradict, agree]), atol=1e-6)

    @pytest.mark.parametrize(("router_input", "is_additive"), [("sum", True), ("rows", False)])
    def test_the_published_one_is_additive_in_the_modalities(self, router_input: str, is_additive: bool) -> None:
        """Changing text changes its logits by the same, whatever audio is; cosine fusion does not alter that."""
        model = build(router_input=router_input, fusion_temperature=0.07)
        vectors = F.normalize(torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(4)), dim=-1)
        text, audio = vectors[:, 0], vectors[:, 1]
        rows = torch.stack([torch.stack([t, a, vectors[0, 2]]) for t in text for a in audio])
        both = model.router(rows)
        interaction = both[0] - both[1] - both[2] + both[3]
        assert bool((interaction.abs() < 1e-6).all()) == is_additive
        mixed = model.router(model.fuse(rows))
        assert bool(((mixed[0] - mixed[1] - mixed[2] + mixed[3]).abs() < 1e-3).all()) == is_additive

    @pytest.mark.parametrize("router_input", ["sum", "rows"])
    def test_gradients_reach_every_vector(self, router_input: str) -> None:
        model = build(router_input=router_input)
        rows = torch.randn(2, 3, 16, requires_grad=True)
        model.route(rows)[:, 0].sum().backward()
        assert rows.grad is not None and rows.grad.flatten(2).any(dim=-1).all()
        # A sum gives its terms the same gradient; side by side each has its own.
        assert torch.equal(rows.grad[:, 0], rows.grad[:, 1]) == (router_input == "sum")

    def test_only_one_that_reads_rows_learns_who_lies(self) -> None:
        """Audio lies where its sign is not text's: of a sum the best guess stays that of chance."""
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (256, 3, 1), generator=generator) * 2.0 - 1.0
        rows = torch.zeros(256, 3, 16)
        rows[..., :1] = signs
        lies = signs[:, 0, 0] != signs[:, 1, 0]
        losses = {}
        for router_input in ("sum", "rows"):
            router = build(router_input=router_input).router
            optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
            for _ in range(100):
                loss = F.binary_cross_entropy_with_logits(router(rows)[:, 1], lies.float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            losses[router_input] = loss.item()
        assert losses["sum"] > 0.6 and losses["rows"] < 0.1


class TestSupervisedContrast:
    def test_three_vectors_by_hand(self) -> None:
        vectors, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        # Both anchors: -log(e / (e + 1)); the third has no partner.
        for variant in ("log_sum", "khosla"):
            loss = supervised_contrastive_loss(vectors, labels, 1.0, variant)
            assert loss.item() == pytest.approx(0.3132617, abs=1e-6)

    def test_the_variants_differ_where_an_anchor_has_several_partners(self) -> None:
        vectors, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.zeros(4)
        # Every anchor has similarities 1, 0, 0: log(e + 2) - 1/3.
        assert supervised_contrastive_loss(vectors, labels, 1.0, "log_sum").item() == pytest.approx(0.0, abs=1e-6)
        assert supervised_contrastive_loss(vectors, labels, 1.0, "khosla").item() == pytest.approx(1.2181, abs=1e-4)

    @pytest.mark.parametrize("variant", ["log_sum", "khosla"])
    def test_without_partners_it_is_zero_and_still_part_of_the_graph(self, variant: Any) -> None:
        vectors = torch.randn(3, 4, requires_grad=True)
        loss = supervised_contrastive_loss(vectors, torch.arange(3), 0.07, variant)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(vectors.grad, torch.zeros(3, 4))

    @pytest.mark.parametrize("variant", ["log_sum", "khosla"])
    def test_gradients_are_numbers_at_the_temperature_of_the_public_code(self, variant: Any) -> None:
        vectors = F.normalize(torch.randn(12, 4), dim=-1).requires_grad_()
        supervised_contrastive_loss(vectors, torch.arange(12) % 5, 0.07, variant).backward()
        assert torch.isfinite(vectors.grad).all()
        assert vectors.grad.any()

    def test_the_two_groups_depend_on_the_label_family(self) -> None:
        classes = torch.tensor([0, 1, 2])
        assert contrast_labels(classes, False).tolist() == [False, False, True]
        assert contrast_labels(classes, True).tolist() == [False, True, True]


def test_the_gradient_of_the_cross_entropy_has_the_norm_that_guides_pseudo_labels() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log().requires_grad_()
    F.cross_entropy(logits, torch.tensor([0])).backward()
    assert logits.grad.norm().item() == pytest.approx(1.1575837, abs=1e-6)
    assert logits.grad.norm().item() == pytest.approx(math.dist((0.1, 0.2, 0.7), (1, 0, 0)), abs=1e-6)


class TestScore:
    def test_it_is_the_difference_of_two_probabilities_in_label_units(self) -> None:
        logits = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]).log()
        assert torch.allclose(class_score(logits, BUILT_IN["mosi"]), torch.tensor([[1.8], [-0.75], [0.0]]), atol=1e-6)

    @pytest.mark.parametrize(("family", "highest"), [("mosi", 3.0), ("sims", 1.0)])
    def test_the_models_score_is_that_of_its_class_logits(self, family: str, highest: float) -> None:
        model = build(label_family=family)
        out = model(**tiny_batch(model.config))
        probabilities = out.class_logits.softmax(dim=-1)
        assert torch.allclose(out.logits.squeeze(1), highest * (probabilities[:, 2] - probabilities[:, 0]))
        assert out.logits.abs().max() <= highest


class TestMaskedBatchNorm:
    def test_statistics_are_those_of_the_valid_frames(self) -> None:
        values, mask = frames(4, 1, 3)
        ours, reference = MaskedBatchNorm(5), nn.BatchNorm1d(5)
        gathered = values[mask.bool()]
        out = ours(values, mask.bool())
        assert torch.allclose(out[mask.bool()], reference(gathered), atol=1e-6)
        assert not out[~mask.bool()].any()
        assert torch.allclose(ours.running_mean, gathered.mean(0) * 0.1, atol=1e-6)
        for name, buffer in ours.named_buffers():
            assert torch.allclose(buffer, dict(reference.named_buffers())[name]), name
        ours.eval(), reference.eval()
        assert torch.allclose(ours(values, mask.bool())[mask.bool()], reference(gathered), atol=1e-6)

    def test_without_a_mask_it_is_batch_norm_over_all_frames(self) -> None:
        values, _ = frames(4, 1, 3)
        ours, reference = MaskedBatchNorm(5), nn.BatchNorm1d(5)
        for training in (True, False):
            ours.train(training), reference.train(training)
            expected = reference(values.transpose(1, 2)).transpose(1, 2)
            assert torch.allclose(ours(values), expected, atol=1e-6)
        assert torch.allclose(ours.running_var, reference.running_var)

    def test_gradients_are_those_of_the_gathered_frames(self) -> None:
        values, mask = frames(4, 1, 3)
        weights = torch.randn(int(mask.sum()), 5)
        ours, reference = MaskedBatchNorm(5), nn.BatchNorm1d(5)
        values.requires_grad_()
        gathered = values.detach()[mask.bool()].requires_grad_()
        (ours(values, mask.bool())[mask.bool()] * weights).sum().backward()
        (reference(gathered) * weights).sum().backward()
        assert torch.allclose(values.grad[mask.bool()], gathered.grad, atol=1e-5)
        assert not values.grad[~mask.bool()].any()
        assert torch.allclose(ours.weight.grad, reference.weight.grad, atol=1e-5)

    @pytest.mark.parametrize("lengths", [(1, 0), (0, 0)])
    def test_too_few_frames_are_normalised_by_the_running_statistics(self, lengths: tuple[int, int]) -> None:
        norm = MaskedBatchNorm(5)
        norm.running_mean.fill_(1.0)
        norm.running_var.fill_(4.0)
        values = torch.full((2, 3, 5), 5.0)
        mask = torch.arange(3) < torch.tensor(lengths)[:, None]
        out = norm(values, mask)
        assert torch.allclose(out, torch.full_like(out, 2.0), atol=1e-4)
        assert torch.equal(norm.running_mean, torch.ones(5))
        out.sum().backward()
        assert norm.weight.grad is not None

    def test_one_frame_without_a_mask_does_not_fail_either(self) -> None:
        assert torch.isfinite(MaskedBatchNorm(5)(torch.ones(1, 1, 5))).all()


class TestBranch:
    def test_unmasked_it_is_what_the_public_code_computes(self) -> None:
        part = branch().train()
        values, _ = frames(6, 4, 5)
        normalised = nn.BatchNorm1d(5)(values.transpose(1, 2))
        projected = F.conv1d(normalised, part.projection.weight.unsqueeze(-1)).transpose(1, 2)
        for layer in part.encoder.layers:
            asked = layer.norm1(projected)
            projected = projected + layer.self_attn(asked, asked, asked)[0]
            projected = projected + layer.linear2(layer.linear1(layer.norm2(projected)).relu())
        mean = projected.mean(dim=1)
        assert torch.allclose(part.encode(values), mean / mean.norm(dim=-1, keepdim=True), atol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_padding_changes_nothing_neither_vectors_nor_statistics(self, training: bool) -> None:
        values, mask = frames(6, 4, 1)
        short, long = branch().train(training), branch().train(training)
        expected = short.encode(values, mask)
        content = torch.full((3, 5, 5), 7.0)
        padded = torch.cat([torch.where(mask.bool().unsqueeze(-1), values, 9.0), content], dim=1)
        found = long.encode(padded, torch.cat([mask, torch.zeros(3, 5, dtype=torch.long)], dim=1))
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.allclose(long.norm.running_mean, short.norm.running_mean, atol=1e-6)
        assert torch.allclose(long.norm.running_var, short.norm.running_var, atol=1e-6)

    def test_many_rows_are_encoded_in_groups_with_the_same_result(self) -> None:
        values, mask = frames(*[1 + index % 7 for index in range(20)])
        part = branch().eval()
        alone = torch.cat([part.encode(values[i : i + 1], mask[i : i + 1]) for i in range(20)])
        assert torch.allclose(part.encode(values, mask), alone, atol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_a_row_without_a_valid_position_gives_zeros_and_no_nan(self, training: bool) -> None:
        part = branch().train(training)
        values, mask = frames(4, 0, 3)
        values.requires_grad_()
        vectors = part.encode(values, mask)
        assert torch.equal(vectors[1], torch.zeros(16))
        assert torch.allclose(vectors[[0, 2]].norm(dim=-1), torch.ones(2))
        vectors.sum().backward()
        assert torch.isfinite(values.grad).all()
        assert not values.grad[1].any()
        assert all(torch.isfinite(p.grad).all() for p in part.parameters() if p.grad is not None)
        with torch.no_grad():
            assert torch.allclose(branch().train(training).encode(values, mask), vectors, atol=1e-5)

    def test_a_batch_in_which_nobody_has_the_modality_trains(self) -> None:
        part = branch().train()
        vectors = part.encode(torch.zeros(3, 1, 5), torch.zeros(3, 1, dtype=torch.long))
        part.classify(vectors).sum().backward()
        assert not vectors.any()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in part.parameters())

    def test_the_order_of_frames_does_not_count(self) -> None:
        part = branch().eval()
        values, mask = frames(6, 6)
        assert torch.allclose(part.encode(values.flip(1), mask), part.encode(values, mask), atol=1e-5)

    def test_text_has_no_batch_norm(self) -> None:
        part = branch("text")
        assert part.norm is None
        assert part.projection.in_features == 32

    def test_the_classifier_by_hand(self) -> None:
        part = branch(embed_dim=2, num_attention_heads=1)
        head = part.classifier
        with torch.no_grad():
            head.up.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
            head.down.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
            head.output.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
            for linear in (head.up, head.down, head.output):
                linear.bias.zero_()
            head.output.bias[0] = 0.5
        # relu: (0.6, 0), twice: (1.2, 0), plus the vector: (1.8, 0.8).
        assert torch.allclose(part.classify(torch.tensor([[0.6, 0.8]])), torch.tensor([[2.3, 0.8, 2.6]]))

    def test_without_a_classifier_it_says_so(self) -> None:
        part = CmcBranch(tiny_cmc_config(), "audio", classifies=False)
        with pytest.raises(ValueError, match="has no classifier"):
            part.classify(torch.zeros(1, 16))

    def test_layers_start_apart(self) -> None:
        layers = build().branch("audio").encoder.layers
        assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight)


class TestModel:
    def test_shapes_and_the_way_from_vectors_to_logits(self) -> None:
        model = build()
        out = model(**tiny_batch(model.config))
        assert out.embeddings.shape == (4, 3, 16)
        assert torch.allclose(out.embeddings.norm(dim=-1), torch.ones(4, 3))
        mixed = parameter_free_fusion(out.embeddings, 0.07)
        for index, name in enumerate(("text", "audio", "vision")):
            assert torch.allclose(out.unimodal_logits[:, index], model.experts[name](mixed[:, index]), atol=1e-6)
        weights = model.router(mixed).softmax(dim=-1)
        assert torch.allclose(out.router_weights, weights, atol=1e-6)
        assert torch.allclose(out.class_logits, torch.einsum("bm,bmc->bc", weights, out.unimodal_logits), atol=1e-6)

    @pytest.mark.parametrize("mask_padding", [True, False])
    def test_branches_see_padding_only_where_told_to(self, mask_padding: bool) -> None:
        model = build(mask_padding=mask_padding)
        need, fixed = tiny_batch(model.config), tiny_batch(model.config, pad_to_fixed=True)
        close = torch.isclose(model(**need).embeddings, model(**fixed).embeddings, atol=1e-5).all(dim=-1)
        assert close.all() if mask_padding else not close.any()

    def test_padding_leaves_training_alone(self) -> None:
        found = []
        for pad_to_fixed in (False, True):
            model = build().train()
            batch = tiny_batch(model.config, pad_to_fixed=pad_to_fixed)
            loss = model(**batch, labels=tiny_labels(model.config), pseudo_labels=PSEUDO).loss
            loss.backward()
            found.append((loss.detach(), model.branch("vision").projection.weight.grad, model.branch("audio").norm))
        assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
        assert torch.allclose(found[0][1], found[1][1], atol=1e-4)
        assert torch.allclose(found[0][2].running_var, found[1][2].running_var, atol=1e-6)

    def test_losses_by_hand(self) -> None:
        model = build(supcon_weight=0.5, label_family="sims")
        labels = torch.tensor([-0.5, 0.0, 1.0, 0.2])
        out = model(**tiny_batch(model.config), labels=labels, pseudo_labels=PSEUDO)
        assert BUILT_IN["mosi"].polarity(labels).tolist() == [0, 1, 2, 2]
        shares = out.class_logits.log_softmax(dim=-1)
        task = -(shares[0, 0] + shares[1, 1] + shares[2, 2] + shares[3, 2]) / 4
        assert out.losses["task"].item() == pytest.approx(task.item(), rel=1e-5)
        audio = out.unimodal_logits[:, 1].log_softmax(dim=-1)
        expected = -(audio[0, 1] + audio[1, 2] + audio[2, 0] + audio[3, 2]) / 4
        assert out.losses["ce_audio"].item() == pytest.approx(expected.item(), rel=1e-5)
        contrast = supervised_contrastive_loss(out.embeddings.flatten(0, 1), PSEUDO.flatten() == 2, 0.07, "log_sum")
        assert out.losses["supcon"].item() == pytest.approx(contrast.item(), rel=1e-5)
        assert set(out.losses) == {"task", "ce_text", "ce_audio", "ce_vision", "supcon"}
        plain = sum(value.item() for name, value in out.losses.items() if name != "supcon")
        assert out.loss.item() == pytest.approx(plain + 0.5 * contrast.item(), rel=1e-5)

    def test_without_pseudo_labels_the_loss_is_the_tasks(self) -> None:
        model = build()
        out = model(**tiny_batch(model.config), labels=tiny_labels(model.config))
        assert set(out.losses) == {"task"}
        assert out.loss.item() == out.losses["task"].item()

    def test_a_modality_that_a_sample_lacks_is_not_contrasted(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        batch["audio_attention_mask"][0] = 0
        out = model(**batch, pseudo_labels=PSEUDO)
        assert not out.embeddings[0, 1].any()
        kept = [index for index in range(12) if index != 1]
        labels = (PSEUDO.flatten() >= 1)[kept]
        contrast = supervised_contrastive_loss(out.embeddings.flatten(0, 1)[kept], labels, 0.07, "log_sum")
        assert out.losses["supcon"].item() == pytest.approx(contrast.item(), rel=1e-5)

    def test_nor_is_the_form_that_stands_for_it(self) -> None:
        model = build()
        rows = tiny_rows(model.config)
        rows[0]["audio_present"], rows[2]["text"] = False, ""
        out = model(**tiny_processor(model.config).from_rows(rows), pseudo_labels=PSEUDO)
        assert out.embeddings[0, 1].any() and out.embeddings[2, 0].any()
        kept = [index for index in range(12) if index not in (1, 6)]
        labels = (PSEUDO.flatten() >= 1)[kept]
        contrast = supervised_contrastive_loss(out.embeddings.flatten(0, 1)[kept], labels, 0.07, "log_sum")
        assert out.losses["supcon"].item() == pytest.approx(contrast.item(), rel=1e-5)

    def test_what_results_keep_has_names(self) -> None:
        model = build(vision_dim=None)
        out = model(**tiny_batch(model.config))
        assert set(model.per_sample_outputs(out)) == {
            "logits",
            *(f"class_logits_{name}" for name in ("negative", "neutral", "positive")),
            "router_weights_text",
            "router_weights_audio",
            *(
                f"unimodal_logits_{m}_{name}"
                for m in ("text", "audio")
                for name in ("negative", "neutral", "positive")
            ),
        }
        found = model.per_sample_outputs(out)
        assert torch.equal(found["class_logits_positive"], out.class_logits[:, 2])
        assert torch.equal(found["unimodal_logits_audio_neutral"], out.unimodal_logits[:, 1, 1])

    def test_lower_precision_stays_close(self) -> None:
        model = build()
        inputs = {**tiny_batch(model.config), "labels": tiny_labels(model.config), "pseudo_labels": PSEUDO}
        exact = model(**inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(**inputs)
        rough.loss.backward()
        assert torch.allclose(rough.logits.float(), exact.logits, atol=0.1)
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())

    def test_without_gradients_the_scores_are_the_same(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        with torch.no_grad():
            fast = model(**batch).logits
        assert torch.allclose(fast, model(**batch).logits, atol=1e-6)


class TestUnimodalModels:
    def test_each_modality_has_logits_of_its_own(self) -> None:
        model = build_unimodal()
        batch = tiny_batch(model.config)
        out = model(**batch, pseudo_labels=PSEUDO)
        assert out.logits is None
        assert set(out.losses) == {"ce_text", "ce_audio", "ce_vision", "supcon"}
        assert out.loss.item() == pytest.approx(sum(value.item() for value in out.losses.values()), rel=1e-5)
        for index, name in enumerate(model.config.modalities):
            assert torch.equal(out.unimodal_logits[:, index], model.branch(name).classify(out.embeddings[:, index]))
        changed = {**batch, "audio_values": batch["audio_values"] + torch.randn(batch["audio_values"].shape)}
        other = model(**changed).unimodal_logits
        assert torch.equal(other[:, [0, 2]], out.unimodal_logits[:, [0, 2]])
        assert not torch.allclose(other[:, 1], out.unimodal_logits[:, 1])

    def test_without_pseudo_labels_there_is_no_loss(self) -> None:
        model = build_unimodal()
        out = model(**tiny_batch(model.config))
        assert out.loss is None
        assert out.losses is None

    def test_given_hidden_states_stand_for_the_text_encoder(self) -> None:
        model = build_unimodal()
        batch = tiny_batch(model.config)
        hidden = model.encode_text(batch["input_ids"], batch["attention_mask"])
        expected = model(**batch).unimodal_logits
        model.text_encoder = None
        assert torch.equal(model(**batch, text_hidden=hidden).unimodal_logits, expected)

    def test_it_does_not_pose_as_the_predicting_model(self, tmp_path: Path) -> None:
        build_unimodal().save_pretrained(tmp_path)
        assert set(CmcConfig.from_pretrained(tmp_path).auto_map) == {"AutoConfig"}

    @pytest.mark.parametrize("absent", ["audio", "vision"])
    def test_a_modality_that_the_data_lacks_has_no_parts(self, absent: str) -> None:
        model = build_unimodal(**{f"{absent}_dim": None}).train()
        assert not any(absent in name for name, _ in model.named_parameters())
        out = model(**tiny_batch(model.config), pseudo_labels=PSEUDO[:, :2])
        assert out.unimodal_logits.shape == (4, 2, 3)
        out.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


class TestFromUnimodal:
    @pytest.mark.parametrize("overrides", [{}, {"audio_dim": None}])
    def test_it_takes_over_every_tensor(self, overrides: dict[str, Any]) -> None:
        unimodal = build_unimodal(**overrides).train()
        unimodal(**tiny_batch(unimodal.config))
        model = CmcForSentimentAnalysis.from_unimodal(unimodal)
        given = unimodal.state_dict()
        taken = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("router.")}
        assert len(given) == len(taken)
        for name, tensor in given.items():
            target = name
            if ".classifier." in name:
                target = name.replace("branches.", "experts.").replace(".classifier.", ".")
            assert torch.equal(taken[target], tensor), name
        assert unimodal.branch("vision").norm.running_mean.any()

    def test_it_shares_nothing_with_the_first_stage(self) -> None:
        unimodal = build_unimodal()
        model = CmcForSentimentAnalysis.from_unimodal(unimodal)
        owned = {tensor.data_ptr() for tensor in model.state_dict().values()}
        assert not owned & {tensor.data_ptr() for tensor in unimodal.state_dict().values()}
        assert "AutoModel" not in unimodal.config.auto_map
        assert model.config.auto_map["AutoModel"] == "modeling_cmc.CmcForSentimentAnalysis"

    def test_the_router_is_new(self) -> None:
        unimodal = build_unimodal()
        routers = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            routers.append(CmcForSentimentAnalysis.from_unimodal(unimodal).router.weight)
        assert not torch.equal(*routers)


class TestSaving:
    @pytest.mark.parametrize("stage", [CmcForSentimentAnalysis, CmcUnimodalModels])
    @pytest.mark.parametrize("overrides", [{}, {"vision_dim": None}])
    def test_a_reloaded_model_has_the_same_bits_batch_norm_statistics_included(
        self, stage: Any, overrides: dict[str, Any], tmp_path: Path
    ) -> None:
        torch.manual_seed(1)
        model = stage(tiny_cmc_config(**overrides)).train()
        batch = tiny_batch(model.config)
        model(**batch)
        model.eval().save_pretrained(tmp_path)
        loaded = stage.from_pretrained(tmp_path)
        assert loaded.branch("audio").norm.running_mean.any()
        state = loaded.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert torch.equal(loaded(**batch).unimodal_logits, model(**batch).unimodal_logits)
