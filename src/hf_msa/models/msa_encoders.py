"""Encoders that the methods share: Transformers over learned tokens and frames, and over two streams.

Positions are learned tables over the longest sequence; a shorter one takes the first positions. Masks say what may be
attended to: True or 1 = attend.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .msa_attention import PreNormLayer


def _group_rows(width: int) -> int:
    """Rows that a CPU encodes together: few enough that they have like lengths and stay in the cache."""
    return max(8, min(32, 1024 // width))


def encode_by_length(encode: Callable[[Tensor, Tensor], Tensor], sequence: Tensor, mask: Tensor, width: int) -> Tensor:
    """Encode rows of like length together, each group cut behind its longest, so that less padding is computed.

    For encoders that leave padding out and give every row the same number of positions the result is that of
    `encode(sequence, mask)`. That is what is called on a GPU, where several small calls cost more than one large one.

    Args:
        encode: Takes a sequence and its mask.
        sequence (`torch.Tensor` of shape `(batch, length, ...)`): What to encode.
        mask (`torch.Tensor` of shape `(batch, length)`): 1 or True = a real position.
        width: Width of the hidden states within the encoder.
    """
    group_rows = _group_rows(width)
    if sequence.device.type != "cpu" or len(sequence) <= group_rows:
        return encode(sequence, mask)
    ends = (mask.bool() * torch.arange(1, mask.shape[1] + 1)).amax(dim=1)
    order = ends.argsort(stable=True)
    groups = []
    for rows in order.split(group_rows):
        longest = max(1, int(ends[rows[-1]]))
        groups.append(encode(sequence[rows, :longest], mask[rows, :longest]))
    return torch.cat(groups)[order.argsort()]


def padding_mask(attend: Tensor) -> Tensor | None:
    """What torch's Transformers take for padding.

    Args:
        attend (`torch.BoolTensor` of shape `(batch, length)`): True = attend.

    Returns:
        True = padding; None where a CPU finds that there is none, as its attention is much faster without a mask. To know
        it of a GPU would mean to wait for it.
    """
    return None if attend.device.type == "cpu" and bool(attend.all()) else ~attend


def sinusoidal_positions(places: Tensor, width: int) -> Tensor:
    """Fixed positions: sines and cosines in turn, of wavelengths from 2 pi to 20000 pi.

    Args:
        places (`torch.Tensor` of any shape): Places in a sequence, or time steps.
        width: Width of a position, even.

    Returns:
        `torch.FloatTensor` of shape `(*places.shape, width)`.
    """
    steps = torch.arange(0, width, 2, device=places.device, dtype=torch.float32)
    angles = places.float().unsqueeze(-1) * torch.exp(steps * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Build linear layers with LeakyReLU(0.1) between them and nothing after the last.

    Args:
        widths: Input width, hidden widths, output width.
    """
    layers: list[nn.Module] = []
    for width, next_width in pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers[:-1])


class TokenTransformer(nn.Module):
    """Pre-norm Transformer over learned tokens followed by a sequence.

    Args:
        max_length: Longest sequence, learned tokens not counted.
        dim: Width of the hidden states.
        depth: Number of layers.
        num_heads: Number of attention heads.
        head_dim: Width of a head.
        feedforward_dim: Width inside the feed-forward.
        num_tokens: Number of learned tokens before the sequence; they start as zeros, all positions as N(0, 1).
        keep: Return only the first `keep` positions. The last layer then computes no others: as no position reads
            another's result within a layer, values and gradients are those of the full computation.
    """

    def __init__(
        self,
        max_length: int,
        dim: int,
        depth: int,
        num_heads: int,
        head_dim: int,
        feedforward_dim: int,
        num_tokens: int = 0,
        keep: int | None = None,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.num_tokens = num_tokens
        self.keep = keep
        self.tokens = nn.Parameter(torch.empty(num_tokens, dim)) if num_tokens else None
        self.positions = nn.Parameter(torch.empty(num_tokens + max_length, dim))
        self.layers = nn.ModuleList(PreNormLayer(dim, num_heads, head_dim, feedforward_dim) for _ in range(depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the learned tokens and draw the positions from N(0, 1)."""
        if self.tokens is not None:
            nn.init.zeros_(self.tokens)
        nn.init.normal_(self.positions)

    def hidden_states(self, sequence: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Run all layers and return what goes in and what each layer gives.

        Args:
            sequence (`torch.FloatTensor` of shape `(batch, length, dim)`): What to encode.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 or True = attend. Learned tokens are always
                attended to.

        Returns:
            `depth + 1` tensors of shape `(batch, num_tokens + length, dim)`: the input with learned tokens and
            positions, then every layer's output, of which the last has `keep` positions if `keep` is set.

        Raises:
            ValueError: If the sequence is longer than the position table.
        """
        batch, length, _ = sequence.shape
        if length > self.max_length:
            raise ValueError(
                f"A sequence of {length} positions was given, but the position table holds {self.max_length}; cut the "
                "sequence to the configuration's maximum length."
            )
        hidden = sequence
        if self.tokens is not None:
            hidden = torch.cat([self.tokens.to(sequence.dtype).expand(batch, -1, -1), sequence], dim=1)
        hidden = hidden + self.positions[: self.num_tokens + length]
        if mask is not None:
            mask = torch.cat([mask.new_ones(batch, self.num_tokens), mask], dim=1).bool()
        states = [hidden]
        for layer in self.layers[:-1]:
            states.append(layer(states[-1], mask=mask))
        states.append(self.layers[-1](states[-1][:, : self.keep], context=states[-1], mask=mask))
        return states

    def forward(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a sequence; see `hidden_states`, of which this is the last."""
        return self.hidden_states(sequence, mask)[-1]


class SequenceEncoder(nn.Module):
    """Summarise a sequence of frames in a few learned tokens: linear map, `TokenTransformer`, its first outputs.

    Args:
        input_dim: Width of a frame.
        max_length: Longest sequence.
        dim, depth, num_heads, head_dim, feedforward_dim: See `TokenTransformer`.
        num_tokens: Number of learned tokens, and of output tokens.
    """

    def __init__(
        self,
        input_dim: int,
        max_length: int,
        dim: int,
        depth: int,
        num_heads: int,
        head_dim: int,
        feedforward_dim: int,
        num_tokens: int,
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(input_dim, dim)
        self.transformer = TokenTransformer(
            max_length, dim, depth, num_heads, head_dim, feedforward_dim, num_tokens=num_tokens, keep=num_tokens
        )

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            frames (`torch.FloatTensor` of shape `(batch, length, input_dim)`): What to encode.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 = attend; without it all frames are.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_tokens, dim)`.
        """
        if mask is None:
            return self._encode(frames, None)
        return encode_by_length(self._encode, frames, mask, self.projection.out_features)

    def _encode(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        tokens: Tensor = self.transformer(self.projection(frames), mask)
        return tokens


class CrossTransformer(nn.Module):
    """Layers in which a target stream attends to a source stream that stays as it is.

    One learned token, the same for both, is put before source and target.

    Args:
        source_length, target_length: Lengths of the two streams, learned token not counted.
        dim: Width of the hidden states.
        depth: Number of layers.
        num_heads: Number of attention heads.
        head_dim: Width of a head.
        feedforward_dim: Width inside the feed-forward.
    """

    def __init__(
        self,
        source_length: int,
        target_length: int,
        dim: int,
        depth: int,
        num_heads: int,
        head_dim: int,
        feedforward_dim: int,
    ) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, dim))
        self.source_positions = nn.Parameter(torch.empty(1 + source_length, dim))
        self.target_positions = nn.Parameter(torch.empty(1 + target_length, dim))
        self.layers = nn.ModuleList(PreNormLayer(dim, num_heads, head_dim, feedforward_dim) for _ in range(depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the learned token and draw the positions from N(0, 1)."""
        nn.init.zeros_(self.token)
        nn.init.normal_(self.source_positions)
        nn.init.normal_(self.target_positions)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Update the target.

        Args:
            source (`torch.FloatTensor` of shape `(batch, source_length, dim)`): What is attended to.
            target (`torch.FloatTensor` of shape `(batch, target_length, dim)`): What asks.

        Returns:
            `torch.FloatTensor` of shape `(batch, 1 + target_length, dim)`; position 0 is the learned token's.
        """
        token = self.token.to(source.dtype).expand(len(source), -1, -1)
        source = torch.cat([token, source], dim=1) + self.source_positions
        hidden = torch.cat([token, target], dim=1) + self.target_positions
        for layer in self.layers:
            hidden = layer(hidden, context=source)
        return hidden
