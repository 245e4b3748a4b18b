"""The shared attention blocks against numbers made by hand."""

import math

import pytest
import torch
from torch import nn

from hf_msa.models.msa_attention import (
    FeedForward,
    HyperFusion,
    PreNormLayer,
    TriNormAttention,
    multi_head_attention,
)

LOG3 = math.log(3.0)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, norms included, values that do not cancel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestMultiHeadAttention:
    def test_weights_are_the_softmax_of_the_scores(self) -> None:
        # Scores 0 and log 3 give weights 1/4 and 3/4.
        out = multi_head_attention(
            torch.tensor([[[1.0]]]), torch.tensor([[[0.0], [LOG3]]]), torch.tensor([[[0.0], [4.0]]]), num_heads=1
        )
        assert out.item() == pytest.approx(3.0)

    def test_scores_are_scaled_by_the_square_root_of_the_head_width(self) -> None:
        # Four features: the score 4 c is halved, so c = log(3) / 2 gives weights 1/4 and 3/4 again.
        key = torch.stack([torch.zeros(4), torch.full((4,), LOG3 / 2)]).unsqueeze(0)
        value = torch.tensor([[[0.0] * 4, [4.0] * 4]])
        out = multi_head_attention(torch.ones(1, 1, 4), key, value, num_heads=1)
        assert torch.allclose(out, torch.full((1, 1, 4), 3.0))

    def test_every_head_has_weights_of_its_own(self) -> None:
        key = torch.tensor([[[0.0, LOG3], [LOG3, 0.0]]])
        value = torch.tensor([[[0.0, 0.0], [4.0, 4.0]]])
        out = multi_head_attention(torch.ones(1, 1, 2), key, value, num_heads=2)
        assert torch.allclose(out, torch.tensor([[[3.0, 1.0]]]))

    def test_what_is_masked_does_not_count(self) -> None:
        query, key = torch.tensor([[[1.0]]]), torch.tensor([[[0.0], [LOG3], [9.0]]])
        value = torch.tensor([[[0.0], [4.0], [1e9]]])
        mask = torch.tensor([[True, True, False]])
        assert multi_head_attention(query, key, value, 1, mask).item() == pytest.approx(3.0)


class TestTriNormAttention:
    def test_equals_the_written_out_computation(self) -> None:
        block = randomise(TriNormAttention(dim=6, num_heads=2, head_dim=3))
        query, context = torch.randn(2, 3, 6), torch.randn(2, 5, 6)

        q = block.norm_query(query) @ block.to_query.weight.T
        k = block.norm_key(context) @ block.to_key.weight.T
        v = block.norm_value(context) @ block.to_value.weight.T
        heads = []
        for part in (slice(0, 3), slice(3, 6)):
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(3)
            heads.append(scores.softmax(-1) @ v[..., part])
        expected = torch.cat(heads, -1) @ block.to_out.weight.T + block.to_out.bias
        assert torch.allclose(block(query, context), expected, atol=1e-5)

    def test_only_the_output_map_has_a_bias(self) -> None:
        block = TriNormAttention(dim=128, num_heads=8, head_dim=64)
        assert block.to_query.weight.shape == block.to_key.weight.shape == block.to_value.weight.shape == (512, 128)
        assert block.to_query.bias is block.to_key.bias is block.to_value.bias is None
        assert block.to_out.bias is not None

    def test_norms_of_queries_keys_and_values_are_separate(self) -> None:
        block = randomise(TriNormAttention(dim=4, num_heads=1, head_dim=4))
        hidden = torch.randn(1, 3, 4)
        before = block(hidden, hidden)
        for norm in (block.norm_query, block.norm_key, block.norm_value):
            original = norm.weight.detach().clone()
            with torch.no_grad():
                norm.weight.mul_(2)
            assert not torch.allclose(block(hidden, hidden), before)
            with torch.no_grad():
                norm.weight.copy_(original)


def test_feed_forward_is_norm_linear_gelu_linear() -> None:
    block = FeedForward(dim=2, hidden_dim=1)
    with torch.no_grad():
        block.up.weight.copy_(torch.tensor([[1.0, 0.0]]))
        block.up.bias.fill_(0.0)
        block.down.weight.copy_(torch.tensor([[2.0], [3.0]]))
        block.down.bias.copy_(torch.tensor([0.0, 1.0]))
    # The norm of (3, 1) is (1, -1); gelu(1) = 0.8413447.
    out = block(torch.tensor([[3.0, 1.0]]))
    assert torch.allclose(out, torch.tensor([[2 * 0.8413447, 3 * 0.8413447 + 1]]), atol=1e-4)


class TestPreNormLayer:
    @pytest.mark.parametrize(("head_dim", "expected"), [(64, 592_640), (16, 199_424)])
    def test_two_layers_have_the_known_number_of_parameters(self, head_dim: int, expected: int) -> None:
        layers = nn.ModuleList(PreNormLayer(128, 8, head_dim, 128) for _ in range(2))
        assert count(layers) == expected

    def test_both_parts_are_residual(self) -> None:
        layer = randomise(PreNormLayer(4, 2, 2, 8))
        hidden = torch.randn(2, 3, 4)
        middle = hidden + layer.attention(hidden, hidden)
        assert torch.allclose(layer(hidden), middle + layer.feed_forward(middle))

    def test_context_is_the_hidden_states_unless_given(self) -> None:
        layer = randomise(PreNormLayer(4, 2, 2, 8))
        hidden, other = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
        assert torch.equal(layer(hidden), layer(hidden, context=hidden))
        assert not torch.allclose(layer(hidden), layer(hidden, context=other))


class TestHyperFusion:
    def states(self, seed: int = 0) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        states = [torch.randn(2, 3, 8, generator=generator) for _ in range(3)]
        features = {name: torch.randn(2, 3, 8, generator=generator) for name in ("audio", "vision")}
        return states, features

    def build(self, style: str = "tcmr", modalities: tuple[str, ...] = ("audio", "vision")) -> HyperFusion:
        fusion = randomise(HyperFusion(8, 2, 4, num_tokens=3, depth=2, modalities=modalities, style=style))
        fusion.reset_parameters()
        return fusion

    def test_tokens_start_as_ones(self) -> None:
        assert torch.equal(HyperFusion(8, 2, 4, 3, 2, ("audio",)).tokens, torch.ones(3, 8))

    def test_without_output_maps_the_tokens_come_out_as_they_are(self) -> None:
        fusion = self.build()
        for layer in fusion.layers:
            nn.init.zeros_(layer.to_out.weight)
            nn.init.zeros_(layer.to_out.bias)
        assert torch.equal(fusion(*self.states()), torch.ones(2, 3, 8))

    def test_adds_one_update_per_layer_of_the_text(self) -> None:
        fusion = self.build()
        states, features = self.states()
        assert len(fusion.layers) == 2
        expected = 1 + fusion.layers[0](states[1], features) + fusion.layers[1](states[2], features)
        assert torch.allclose(fusion(states, features), expected)

    def test_lnln_style_has_a_step_more_and_normalises_the_path(self) -> None:
        fusion = self.build("lnln")
        states, features = self.states()
        assert len(fusion.layers) == 3
        expected = torch.ones(2, 3, 8)
        for norm, layer, state in zip(fusion.norms, fusion.layers, states, strict=True):
            expected = norm(expected) + layer(state, features)
        assert torch.allclose(fusion(states, features), expected)

    @pytest.mark.parametrize(("style", "reads_input"), [("tcmr", False), ("lnln", True)])
    def test_only_lnln_style_reads_the_input_of_the_text_transformer(self, style: str, reads_input: bool) -> None:
        fusion = self.build(style)
        states, features = self.states()
        before = fusion(states, features)
        states[0] = states[0] + 1
        assert torch.equal(before, fusion(states, features)) is not reads_input

    def test_query_and_output_maps_are_shared_key_and_value_maps_are_not(self) -> None:
        names = {name.removesuffix(".weight") for name, _ in self.build().layers[0].named_parameters()}
        assert {"to_query", "to_out", "to_key.audio", "to_key.vision", "to_value.audio", "to_value.vision"} <= names
        assert {"norm_query", "norm_context.audio", "norm_context.vision"} <= names

    def test_the_two_attentions_are_summed_before_the_output_map(self) -> None:
        layer = self.build().layers[0]
        states, features = self.states()
        both = layer(states[1], features)
        alone = []
        for name in ("audio", "vision"):
            query = layer.to_query(layer.norm_query(states[1]))
            context = layer.norm_context[name](features[name])
            alone.append(multi_head_attention(query, layer.to_key[name](context), layer.to_value[name](context), 2))
        assert torch.allclose(both, layer.to_out(alone[0] + alone[1]), atol=1e-6)

    def test_a_modality_that_is_not_there_has_no_parameters_and_is_not_read(self) -> None:
        fusion = self.build(modalities=("audio",))
        states, features = self.states()
        assert not any("vision" in name for name, _ in fusion.named_parameters())
        assert torch.equal(fusion(states, features), fusion(states, {"audio": features["audio"]}))
