"""Batches on their way through OMG-Agent: as they are perceived, what generation depends on, and what was generated."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .modeling_msa import masked_mean
from .omg_planner import PlanChoice
from .omg_retriever import Evidence


@dataclass(frozen=True, eq=False)
class Perception:
    """What a batch holds, modality by modality, on the positions that the executor works on.

    Args:
        values: Features `(batch, positions, width)`, zeros where nothing is observed.
        masks: True = an observed position `(batch, positions)`.
        wanted: True = a position that exists or is to be generated `(batch, positions)`.
        available: Whether anything of the modality is observed `(batch,)`.
        lengths: Positions of the inputs that the modality has or, where it is missing, is taken to have `(batch,)`.
        seen: Modality -> the inputs' own values, and True = an observed position of them.
    """

    values: dict[str, Tensor]
    masks: dict[str, Tensor]
    wanted: dict[str, Tensor]
    available: dict[str, Tensor]
    lengths: dict[str, Tensor]
    seen: dict[str, tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.available["text"])

    @functools.cached_property
    def digests(self) -> tuple[bytes, ...]:
        """One per sample, of the values at its observed positions; padding and what is dropped are not in it."""
        # numpy has no bfloat16; token ids are whole numbers.
        values = {
            name: value.float() if value.is_floating_point() else value for name, (value, _) in self.seen.items()
        }
        parts = {
            name: (values[name].detach().cpu().numpy(), real.cpu().numpy()) for name, (_, real) in self.seen.items()
        }

        def digest(index: int) -> Iterator[bytes]:
            for name, (value, visible) in parts.items():
                shown = np.ascontiguousarray(value[index][visible[index]])
                yield f"{name}:{len(shown)}/".encode() + shown.tobytes()

        return tuple(hashlib.blake2b(b"".join(digest(index)), digest_size=16).digest() for index in range(len(self)))

    @functools.cached_property
    def pooled(self) -> dict[str, Tensor]:
        """Mean and deviation of the observed features of sound and pictures `(batch, 2 * width)`, zeros without any."""
        found = {}
        for name in [name for name in self.values if name != "text"]:
            values, mask = self.values[name], self.masks[name]
            mean = masked_mean(values, mask)
            deviation = masked_mean((values - mean.unsqueeze(1)).square(), mask).sqrt()
            found[name] = torch.cat([mean, deviation], dim=-1)
        return found

    @functools.cached_property
    def lacking(self) -> Tensor:
        """Whether a sample misses any modality `(batch,)`."""
        return ~torch.stack(list(self.available.values())).all(dim=0)

    def seeds(self, seed: int, purpose: str) -> list[int]:
        """A number per sample that depends on the seed, the purpose, and what is observed of the sample."""
        keyed = [hashlib.blake2b(digest + f"/{seed}/{purpose}".encode(), digest_size=7) for digest in self.digests]
        return [int.from_bytes(key.digest(), "big") for key in keyed]


class Conditioning(NamedTuple):
    """What generation depends on beside the noise.

    Args:
        plan: c_S `(batch, plan_width)`.
        plan_tokens: What the denoiser attends to `(batch, tokens, plan_width)`.
        observation: u_X `(batch, observation_width)`.
        evidence: What was retrieved; None without a knowledge base.
        score: The planner's `(batch, 1)`, from -1 to 1.
    """

    plan: Tensor
    plan_tokens: Tensor
    observation: Tensor
    evidence: Evidence | None
    score: Tensor


@dataclass(eq=False)
class GeneratedBatch:
    """What was generated, with the plan and the evidence behind it.

    Args:
        values: Modality -> features `(batch, positions, width)` in the model's units, of text states of the text encoder;
            zeros in rows that have the modality, as in `latents`.
        masks: Modality -> True = a generated position `(batch, positions)`.
        lengths: Modality -> positions of the inputs that it is taken to have `(batch,)`, of which `positions` may be means.
        latents: Modality -> z_0* `(batch, latents, latent_dim)`.
        step_costs: Modality -> mean squared change of the latents in each step `(batch, steps)`, NaN in such rows.
        spreads: Modality -> deviation of the features over several draws, of the shape and in the units of `values`; empty
            where one was made.
        evidence: What was retrieved; None without a knowledge base.
        evidence_ids: Ids of the entries per sample, best first; their weights are in `evidence`.
        class_logits: The classifier's `(batch, classes)`.
        plans: The planner's choices with all candidates; None where the batch came without rows.
    """

    values: dict[str, Tensor]
    masks: dict[str, Tensor]
    lengths: dict[str, Tensor]
    latents: dict[str, Tensor]
    step_costs: dict[str, Tensor]
    spreads: dict[str, Tensor]
    evidence: Evidence | None
    evidence_ids: list[list[str]]
    class_logits: Tensor
    plans: list[PlanChoice] | None = None


def average_positions(values: Tensor, visible: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Average what is visible of each sequence into a fixed number of bins of equal length.

    Neighbouring bins share a position where the length is no multiple of their number, and repeat positions where the
    sequence is shorter.

    Args:
        values (`torch.FloatTensor` of shape `(batch, length, width)`): Zeros where nothing is visible.
        visible (`torch.BoolTensor` of shape `(batch, length)`): True = counts.
        positions: Number of bins.

    Returns:
        Averages `(batch, positions, width)`, and True in all bins of rows that have anything visible `(batch, positions)`.
    """
    order = (~visible).to(torch.uint8).argsort(dim=1, stable=True)
    packed = values.gather(1, order.unsqueeze(-1).expand_as(values))
    counts = visible.sum(dim=1, keepdim=True)
    bins = torch.arange(positions, device=values.device)
    begins = bins * counts // positions
    ends = torch.maximum(((bins + 1) * counts + positions - 1) // positions, begins + 1).clamp(max=values.shape[1])
    sums = F.pad(packed.double().cumsum(dim=1), (0, 0, 1, 0))
    until = [sums.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[2])) for places in (begins, ends)]
    averages = ((until[1] - until[0]) / (ends - begins).clamp(min=1).unsqueeze(-1)).to(values.dtype)
    there = (counts > 0).expand(-1, positions)
    return averages.masked_fill(~there.unsqueeze(-1), 0.0), there
