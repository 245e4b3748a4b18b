"""The shared encoders: learned tokens, positions, padding, and the last layer that computes only what is used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_msa.models.msa_encoders import CrossTransformer, SequenceEncoder, TokenTransformer, padding_mask, perceptron


def transformer(seed: int = 0, **overrides: int | None) -> TokenTransformer:
    torch.manual_seed(seed)
    sizes = {
        "max_length": 6,
        "dim": 8,
        "depth": 2,
        "num_heads": 2,
        "head_dim": 4,
        "feedforward_dim": 8,
        "num_tokens": 3,
    }
    model = TokenTransformer(**{**sizes, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


class TestPerceptron:
    def test_hidden_layers_leak_a_tenth_and_the_last_does_not(self) -> None:
        network = perceptron([1, 1, 1])
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.ones_(layer.weight)
                nn.init.zeros_(layer.bias)
        assert network(torch.tensor([[-2.0]])).item() == pytest.approx(-0.2)
        assert isinstance(network[-1], nn.Linear)

    def test_has_the_papers_sizes(self) -> None:
        confnet = perceptron([768, 768, 768, 1536, 768, 384, 1])
        assert sum(parameter.numel() for parameter in confnet.parameters()) == 3_838_465
        assert [layer.out_features for layer in confnet if isinstance(layer, nn.Linear)] == [
            768,
            768,
            1536,
            768,
            384,
            1,
        ]


class TestTokenTransformer:
    def test_tokens_start_as_zeros_and_positions_as_a_standard_normal(self) -> None:
        torch.manual_seed(0)
        model = TokenTransformer(500, 32, 1, 2, 4, 8, num_tokens=8)
        assert torch.equal(model.tokens, torch.zeros(8, 32))
        assert model.positions.shape == (508, 32)
        assert abs(model.positions.mean().item()) < 0.03
        assert abs(model.positions.std().item() - 1) < 0.03

    def test_without_learned_tokens_there_is_no_parameter_for_them(self) -> None:
        model = transformer(num_tokens=0)
        assert model.tokens is None
        assert model.positions.shape == (6, 8)
        assert model(torch.randn(2, 6, 8)).shape == (2, 6, 8)

    def test_hidden_states_are_the_input_with_positions_and_every_layer(self) -> None:
        model = transformer()
        sequence = torch.randn(2, 4, 8)
        states = model.hidden_states(sequence)
        tokens = model.tokens.expand(2, -1, -1)
        first = torch.cat([tokens, sequence], 1) + model.positions[:7]
        second = model.layers[0](first)
        assert len(states) == 3
        assert torch.equal(states[0], first)
        assert torch.allclose(states[1], second)
        assert torch.allclose(states[2], model.layers[1](second))
        assert torch.equal(states[2], model(sequence))

    def test_a_sequence_longer_than_the_table_is_refused(self) -> None:
        with pytest.raises(ValueError, match="7 positions was given, but the position table holds 6"):
            transformer()(torch.randn(1, 7, 8))

    @settings(max_examples=25)
    @given(
        depth=st.integers(1, 3),
        length=st.integers(0, 6),
        num_tokens=st.integers(1, 4),
        data=st.data(),
        seed=st.integers(0, 1000),
    )
    def test_keeping_the_first_positions_changes_neither_values_nor_gradients(
        self, depth: int, length: int, num_tokens: int, data: st.DataObject, seed: int
    ) -> None:
        keep = data.draw(st.integers(1, num_tokens + length))
        plain = transformer(seed, depth=depth, num_tokens=num_tokens).double()
        short = transformer(seed, depth=depth, num_tokens=num_tokens, keep=keep).double()
        short.load_state_dict(plain.state_dict())
        sequence = torch.randn(2, length, 8, dtype=torch.float64)
        mask = torch.rand(2, length) > 0.4
        weights = torch.randn(2, keep, 8, dtype=torch.float64)
        inputs = []
        for model in (plain, short):
            inputs.append(sequence.clone().requires_grad_())
            out = model(inputs[-1], mask)[:, :keep]
            (out * weights).sum().backward()
        assert torch.allclose(plain(sequence, mask)[:, :keep], short(sequence, mask), atol=1e-12)
        assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-12)
        gradients = {name: parameter.grad for name, parameter in short.named_parameters()}
        for name, parameter in plain.named_parameters():
            assert torch.allclose(parameter.grad, gradients[name], atol=1e-12), name

    def test_the_last_layer_computes_only_what_is_kept(self) -> None:
        model = transformer(keep=3)
        rows: list[int] = []
        for layer in model.layers:
            layer.feed_forward.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
        model(torch.randn(2, 6, 8))
        assert rows == [9, 3]

    @pytest.mark.parametrize("keep", [None, 3])
    def test_padding_does_not_count_whatever_it_holds_and_however_long(self, keep: int | None) -> None:
        model = transformer(keep=keep)
        sequence = torch.randn(2, 4, 8)
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        padded = torch.cat([sequence, torch.full((2, 2, 8), 1e3)], dim=1)
        padded[1, 2:] = -7.0
        padded_mask = torch.cat([mask, torch.zeros(2, 2, dtype=torch.long)], dim=1)
        before, after = model(sequence, mask), model(padded, padded_mask)
        assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
        assert torch.allclose(before[1, :3], model(sequence[1:, :2])[0, :3], atol=1e-6)

    def test_a_sequence_that_is_all_padding_leaves_the_learned_tokens(self) -> None:
        model = transformer(keep=3)
        nothing = model(torch.randn(1, 5, 8), torch.zeros(1, 5, dtype=torch.long))
        assert torch.isfinite(nothing).all()
        assert torch.allclose(nothing, model(torch.zeros(1, 0, 8)), atol=1e-6)

    def test_zero_frames_count_unless_they_are_padding(self) -> None:
        model = transformer(keep=3)
        sequence = torch.zeros(1, 4, 8)
        attended = model(sequence, torch.ones(1, 4, dtype=torch.long))
        assert not torch.allclose(attended, model(sequence, torch.zeros(1, 4, dtype=torch.long)), atol=1e-3)

    def test_order_of_samples_does_not_matter(self) -> None:
        model = transformer(keep=3)
        sequence, mask = torch.randn(4, 5, 8), torch.rand(4, 5) > 0.3
        order = torch.tensor([2, 0, 3, 1])
        assert torch.allclose(model(sequence, mask)[order], model(sequence[order], mask[order]), atol=1e-6)


def test_sequence_encoder_gives_its_learned_tokens() -> None:
    encoder = SequenceEncoder(5, 6, dim=8, depth=2, num_heads=2, head_dim=4, feedforward_dim=8, num_tokens=3)
    frames = torch.randn(2, 4, 5)
    tokens = encoder(frames)
    assert tokens.shape == (2, 3, 8)
    encoder.transformer.keep = None
    assert torch.allclose(tokens, encoder(frames)[:, :3], atol=1e-6)


class TestCrossTransformer:
    def build(self) -> CrossTransformer:
        torch.manual_seed(0)
        model = CrossTransformer(4, 3, dim=8, depth=2, num_heads=2, head_dim=4, feedforward_dim=8)
        nn.init.normal_(model.token)
        return model

    def test_one_token_starts_both_streams_and_as_zeros(self) -> None:
        model = CrossTransformer(4, 3, dim=8, depth=2, num_heads=2, head_dim=4, feedforward_dim=8)
        assert torch.equal(model.token, torch.zeros(1, 8))
        assert model.source_positions.shape == (5, 8)
        assert model.target_positions.shape == (4, 8)

    def test_equals_the_written_out_computation(self) -> None:
        model = self.build()
        source, target = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
        token = model.token.expand(2, 1, 8)
        context = torch.cat([token, source], 1) + model.source_positions
        hidden = torch.cat([token, target], 1) + model.target_positions
        for layer in model.layers:
            hidden = hidden + layer.attention(hidden, context)
            hidden = hidden + layer.feed_forward(hidden)
        out = model(source, target)
        assert out.shape == (2, 4, 8)
        assert torch.allclose(out, hidden)

    def test_target_positions_do_not_see_each_other(self) -> None:
        model = self.build()
        source, target = torch.randn(1, 4, 8), torch.randn(1, 3, 8)
        changed = target.clone()
        changed[:, 1] += 1
        before, after = model(source, target), model(source, changed)
        assert torch.allclose(before[:, [0, 1, 3]], after[:, [0, 1, 3]], atol=1e-6)
        assert not torch.allclose(before[:, 2], after[:, 2])


def test_a_padding_mask_is_left_out_where_nothing_is_padding() -> None:
    attend = torch.tensor([[True, True], [True, False]])
    assert padding_mask(attend[:1]) is None
    assert padding_mask(attend).tolist() == [[False, False], [False, True]]
