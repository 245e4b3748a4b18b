"""What saves arithmetic changes no value and no gradient: few queries over many keys, rows encoded by length."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_msa.models.msa_attention import TriNormAttention, multi_head_attention
from hf_msa.models.msa_encoders import SequenceEncoder, encode_by_length
from nonempty import some


def written_out(attention: TriNormAttention, query: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    keys, values = attention.to_key(attention.norm_key(context)), attention.to_value(attention.norm_value(context))
    asked = attention.to_query(attention.norm_query(query))
    return attention.to_out(multi_head_attention(asked, keys, values, attention.num_heads, mask))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("queries", [1, 4, 10])
def test_few_queries_attend_as_written_out(queries: int, masked: bool) -> None:
    torch.manual_seed(0)
    attention = TriNormAttention(dim=12, num_heads=3, head_dim=5).double()
    for norm in (attention.norm_query, attention.norm_key, attention.norm_value):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    mask = torch.arange(10) < torch.tensor([10, 3])[:, None] if masked else None
    results = []
    for compute in (attention, lambda q, c, m: written_out(attention, q, c, m)):
        query, context = (
            torch.randn(2, n, 12, dtype=torch.double, generator=torch.Generator().manual_seed(n), requires_grad=True)
            for n in (queries, 10)
        )
        output = compute(query, context, mask)
        gradients = torch.autograd.grad(output.square().sum(), [query, context, *attention.parameters()])
        results.append([output, *gradients])
    for ours, expected in some(zip(*results, strict=True)):
        torch.testing.assert_close(ours, expected)


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=80))
def test_rows_encoded_by_length_give_what_they_give_together(lengths: list[int]) -> None:
    torch.manual_seed(0)
    encoder = SequenceEncoder(3, 20, dim=8, depth=2, num_heads=2, head_dim=4, feedforward_dim=8, num_tokens=2).double()
    mask = (torch.arange(20) < torch.tensor(lengths)[:, None]).long()
    frames = torch.randn(len(lengths), 20, 3, dtype=torch.double)
    together = encoder.transformer(encoder.projection(frames), mask)
    grouped = encoder(frames, mask)
    torch.testing.assert_close(grouped, together)
    weights = torch.randn_like(together)
    expected = torch.autograd.grad((together * weights).sum(), list(encoder.parameters()))
    found = torch.autograd.grad((grouped * weights).sum(), list(encoder.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)


def test_little_padding_is_computed() -> None:
    seen: list[tuple[int, ...]] = []

    def encode(sequence: Tensor, mask: Tensor) -> Tensor:
        seen.append(tuple(mask.shape))
        return sequence[:, :1]

    lengths = torch.tensor([50, 1] * 12)
    sequence = torch.arange(24.0)[:, None].expand(24, 50)
    result = encode_by_length(encode, sequence, torch.arange(50) < lengths[:, None], width=128)
    assert seen == [(8, 1), (8, 50), (8, 50)]
    assert result.flatten().tolist() == list(range(24)), "rows come back in their own order"


def test_a_gap_before_the_end_is_not_cut() -> None:
    mask = torch.ones(9, 6)
    mask[:, 1:5] = 0
    widths: set[int] = set()
    encode_by_length(lambda sequence, real: widths.add(real.shape[1]) or sequence, torch.zeros(9, 6), mask, 128)
    assert widths == {6}
