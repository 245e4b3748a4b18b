"""Attention blocks that the methods share: pre-norm layers with separate norms for queries, keys and values.

The designs follow the LNLN family of models (Zhang et al., NeurIPS 2024), on which TCMR and PGLH build. All attention
goes through `torch.nn.functional.scaled_dot_product_attention`. Masks say what may be attended to: True or 1 = attend.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention in `num_heads` heads over already projected queries, keys and values.

    Args:
        query (`torch.FloatTensor` of shape `(batch, queries, heads * head_dim)`): What asks.
        key (`torch.FloatTensor` of shape `(batch, keys, heads * head_dim)`): What it is compared with.
        value (`torch.FloatTensor` of shape `(batch, keys, heads * head_dim)`): What is averaged.
        num_heads: Number of heads; scores are scaled by `1 / sqrt(head_dim)`.
        mask (`torch.BoolTensor` of shape `(batch, keys)`, *optional*): True = attend. Every row needs one True.

    Returns:
        `torch.FloatTensor` of shape `(batch, queries, heads * head_dim)`.
    """
    query, key, value = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (query, key, value))
    attend = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attend).transpose(1, 2).flatten(-2)


class TriNormAttention(nn.Module):
    """Multi-head attention with a LayerNorm each for queries, keys and values.

    The maps to queries, keys and values have no bias; the output map has one. There is no dropout.

    Args:
        dim: Width of inputs and output.
        num_heads: Number of heads.
        head_dim: Width of a head; `num_heads * head_dim` need not equal `dim`.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.norm_value = nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, inner, bias=False)
        self.to_key = nn.Linear(dim, inner, bias=False)
        self.to_value = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, query: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from `query` to `context`.

        Args:
            query (`torch.FloatTensor` of shape `(batch, queries, dim)`): What asks.
            context (`torch.FloatTensor` of shape `(batch, keys, dim)`): What keys and values are made of.
            mask (`torch.BoolTensor` of shape `(batch, keys)`, *optional*): True = attend.

        Returns:
            `torch.FloatTensor` of shape `(batch, queries, dim)`.
        """
        asked, keys, values = self.norm_query(query), self.norm_key(context), self.norm_value(context)
        if query.shape[1] < context.shape[1]:
            attended = self._attend_with_few(self.to_query(asked), keys, values, mask)
        else:
            attended = multi_head_attention(
                self.to_query(asked), self.to_key(keys), self.to_value(values), self.num_heads, mask
            )
        output: Tensor = self.to_out(attended)
        return output

    def _attend_with_few(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with fewer queries than keys, without mapping every key and value.

        As q . (W k) = (q W) . k, and as averaging commutes with a map without bias, the few queries go through the key
        map, and the few averages through the value map. All heads then read the same keys and values.
        """
        key_map, value_map = (map_.weight.unflatten(0, (self.num_heads, -1)) for map_ in (self.to_key, self.to_value))
        asked = torch.einsum("bqhd,hdc->bhqc", query.unflatten(-1, (self.num_heads, -1)), key_map)
        averaged = F.scaled_dot_product_attention(
            asked.flatten(1, 2).unsqueeze(1),
            keys.unsqueeze(1),
            values.unsqueeze(1),
            attn_mask=None if mask is None else mask[:, None, None, :],
            scale=key_map.shape[1] ** -0.5,
        )
        averaged = averaged.squeeze(1).unflatten(1, (self.num_heads, -1))
        return torch.einsum("bhqc,hdc->bqhd", averaged, value_map).flatten(-2)


class FeedForward(nn.Module):
    """LayerNorm, linear, GELU, linear; no dropout and no residual.

    Args:
        dim: Width of input and output.
        hidden_dim: Width in between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply to every position of `hidden`, shape `(batch, length, dim)`."""
        output: Tensor = self.down(F.gelu(self.up(self.norm(hidden))))
        return output


class PreNormLayer(nn.Module):
    """Attention with residual, then feed-forward with residual; no final norm.

    Args:
        dim: Width of the hidden states.
        num_heads: Number of attention heads.
        head_dim: Width of a head.
        feedforward_dim: Width inside the feed-forward.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.attention = TriNormAttention(dim, num_heads, head_dim)
        self.feed_forward = FeedForward(dim, feedforward_dim)

    def forward(self, hidden: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Update `hidden`.

        Args:
            hidden (`torch.FloatTensor` of shape `(batch, length, dim)`): Queries and residual stream.
            context (`torch.FloatTensor` of shape `(batch, keys, dim)`, *optional*): What is attended to; `hidden`
                itself if not given.
            mask (`torch.BoolTensor` of shape `(batch, keys)`, *optional*): True = attend.

        Returns:
            `torch.FloatTensor` of the shape of `hidden`.
        """
        attended: Tensor = hidden + self.attention(hidden, hidden if context is None else context, mask)
        output: Tensor = attended + self.feed_forward(attended)
        return output


class HyperFusionLayer(nn.Module):
    """One step of text-guided fusion: text queries every feature modality, and the answers are summed.

    The query map and the output map are shared by the modalities, the key and value maps are their own.

    Args:
        dim: Width of text and feature tokens.
        num_heads: Number of heads.
        head_dim: Width of a head.
        modalities: The modalities that text attends to.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, modalities: Sequence[str]) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, inner, bias=False)
        self.norm_context = nn.ModuleDict({name: nn.LayerNorm(dim) for name in modalities})
        self.to_key = nn.ModuleDict({name: nn.Linear(dim, inner, bias=False) for name in modalities})
        self.to_value = nn.ModuleDict({name: nn.Linear(dim, inner, bias=False) for name in modalities})
        self.to_out = nn.Linear(inner, dim)

    def forward(self, query: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        """Compute the update of the fused tokens.

        Args:
            query (`torch.FloatTensor` of shape `(batch, tokens, dim)`): Text tokens.
            features: Per modality a `torch.FloatTensor` of shape `(batch, tokens, dim)`.

        Returns:
            `torch.FloatTensor` of shape `(batch, tokens, dim)`.
        """
        projected = self.to_query(self.norm_query(query))
        attended = torch.zeros_like(projected)
        for name, norm in self.norm_context.items():
            context = norm(features[name])
            key, value = self.to_key[name](context), self.to_value[name](context)
            attended = attended + multi_head_attention(projected, key, value, self.num_heads)
        update: Tensor = self.to_out(attended)
        return update


class HyperFusion(nn.Module):
    """Learned fusion tokens that gather from the feature modalities, layer by layer guided by the text.

    Args:
        dim: Width of all tokens.
        num_heads: Number of heads.
        head_dim: Width of a head.
        num_tokens: Number of fusion tokens; they start as ones.
        depth: Number of layers of the text Transformer whose hidden states guide the fusion.
        modalities: The modalities to gather from.
        style: `"tcmr"`: the fusion tokens are a pure residual path and each text layer's output guides one step (TCMR,
            section 3.5). `"lnln"`: the tokens are layer-normalised before each addition, and the text Transformer's
            input guides a further step at the start (the public LNLN code).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        num_tokens: int,
        depth: int,
        modalities: Sequence[str],
        style: Literal["tcmr", "lnln"] = "tcmr",
    ) -> None:
        super().__init__()
        self.skip = 1 if style == "tcmr" else 0
        steps = depth + 1 - self.skip
        self.tokens = nn.Parameter(torch.empty(num_tokens, dim))
        self.layers = nn.ModuleList(HyperFusionLayer(dim, num_heads, head_dim, modalities) for _ in range(steps))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if style == "lnln" else nn.Identity() for _ in range(steps))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the fusion tokens to ones."""
        nn.init.ones_(self.tokens)

    def forward(self, text_states: Sequence[Tensor], features: Mapping[str, Tensor]) -> Tensor:
        """Fuse.

        Args:
            text_states: Input and layer outputs of the text Transformer, `depth + 1` tensors of shape
                `(batch, num_tokens, dim)`.
            features: Per modality a `torch.FloatTensor` of shape `(batch, tokens, dim)`.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_tokens, dim)`.
        """
        fused = self.tokens.expand(len(text_states[0]), -1, -1)
        for norm, layer, state in zip(self.norms, self.layers, text_states[self.skip :], strict=True):
            fused = norm(fused) + layer(state, features)
        return fused
