"""The Evidence Retriever of OMG-Agent: a query of what was observed and planned, and sparse attention over what is like it.

The search for candidates is not part of it: an index gives each query's nearest entries, and what is here weighs them, so
that gradients reach the projection of the query.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERIES = ("plan", "content")
"""What a query and a key are made of: the observation and the plan, or the observation alone."""
AGGREGATIONS = ("attention", "mean", "none")
"""How the values of the top K become evidence: weighted by their similarity, all alike, or zeros in their place."""
NO_ENTRY = -1
"""Stands where an index has found no entry, and for a sample that is not in the knowledge base."""


class Candidates(NamedTuple):
    """Entries of a knowledge base that an index has found for each query.

    Args:
        entries: Their rows in the knowledge base (B, C), `NO_ENTRY` where there is none.
        keys: Their keys (B, C, query_dim).
        plans: Embeddings of their plans (B, C, embedding_dim).
        values: Modality -> their latents (B, C, frames, latent_dim).
    """

    entries: Tensor
    keys: Tensor
    plans: Tensor
    values: dict[str, Tensor]

    def to(self, device: torch.device | str) -> "Candidates":
        """Return the same candidates on a device."""
        values = {name: value.to(device) for name, value in self.values.items()}
        return Candidates(self.entries.to(device), self.keys.to(device), self.plans.to(device), values)


class Evidence(NamedTuple):
    """What was retrieved for each sample, best first.

    Args:
        values: Modality -> evidence E (B, frames, latent_dim).
        entries: The top K as rows of the knowledge base (B, K), `NO_ENTRY` where there were fewer; K is at most the number
            of candidates.
        weights: Share of each of them in the evidence (B, K); they sum to 1, or are all 0 where nothing was retrieved.
        similarities: Cosine of query and key (B, K), 0 where there is no entry.
        alignment_cost: C_evi (B,) in [0, 2], how far the plans of what was retrieved are from the sample's own (eq. 9);
            0 where nothing was retrieved.
    """

    values: dict[str, Tensor]
    entries: Tensor
    weights: Tensor
    similarities: Tensor
    alignment_cost: Tensor


def random_entries(sample_ids: Sequence[str], own_entries: Tensor, entries: int, seed: int) -> Tensor:
    """Draw for each sample an entry other than its own, whose plan stands in for the sample's (Random-Plan retrieval).

    A draw depends on the seed, the sample's id and the size of the knowledge base, not on the rest of the batch.

    Args:
        sample_ids: The samples' ids, B of them.
        own_entries: The samples' rows in the knowledge base (B,), `NO_ENTRY` for those that are not in it.
        entries: Size of the knowledge base.
        seed: Of the draws.

    Returns:
        Rows of the knowledge base (B,), on the CPU.

    Raises:
        ValueError: If there is no entry to draw.
    """
    drawn = []
    for sample_id, own in zip(sample_ids, own_entries.tolist(), strict=True):
        others = entries - (own != NO_ENTRY)
        if others < 1:
            raise ValueError(
                f"The knowledge base has {entries} entries, none of them other than the sample's own; add one."
            )
        digest = hashlib.blake2b(f"{seed}/{sample_id}".encode(), digest_size=8).digest()
        row = int.from_bytes(digest, "big") % others
        drawn.append(row + (own != NO_ENTRY and row >= own))
    return torch.tensor(drawn, dtype=torch.long)


class EvidenceRetriever(nn.Module):
    """Queries, keys, and sparse attention over candidates (OMG-Agent section 3.4, eq. 7-9).

    With `aggregation="mean"` the evidence alone changes: the alignment cost keeps the attention's weights, through which
    the projection goes on learning. With `"none"` nothing teaches the projection, which is therefore frozen.

    Args:
        embedding_dim: Width of the embeddings of observations and plans.
        query_dim: Width of queries and keys. The paper gives none.
        top_k: How many entries are attended to.
        temperature: Kappa, by which cosines are divided.
        query: One of `QUERIES`; ``"content"`` is the ablation Content-Only. (Random-Plan is ``"plan"`` with the plans of
            `random_entries` given to `project`.)
        aggregation: One of `AGGREGATIONS`; ``"mean"`` is the ablation w/o Sparse Attn, ``"none"`` w/o Retriever.

    Raises:
        ValueError: If a value is none of those.
    """

    def __init__(
        self,
        embedding_dim: int,
        query_dim: int = 256,
        top_k: int = 10,
        temperature: float = 0.07,
        query: str = "plan",
        aggregation: str = "attention",
    ) -> None:
        super().__init__()
        for name, value, allowed in (("query", query, QUERIES), ("aggregation", aggregation, AGGREGATIONS)):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; at least 1 entry must be retrieved.")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0.")
        self.embedding_dim = embedding_dim
        self.top_k = top_k
        self.temperature = temperature
        self.query = query
        self.aggregation = aggregation
        self.projection = nn.Linear(embedding_dim * (2 if query == "plan" else 1), query_dim)
        self.projection.requires_grad_(aggregation != "none")

    def project(self, observations: Tensor, plans: Tensor) -> Tensor:
        """Project observations and plans to queries (eq. 7); keys are the same of complete samples, see `keys`.

        Args:
            observations: Embeddings u_X of what was observed (..., embedding_dim).
            plans: Embeddings c_S of the plans, of the same shape; not read by content-only retrieval.

        Returns:
            Queries (..., query_dim), not normalised.

        Raises:
            ValueError: If an embedding has another width.
        """
        for name, given in (("observations", observations), ("plans", plans)):
            if given.shape[-1] != self.embedding_dim:
                raise ValueError(
                    f"The {name} have width {given.shape[-1]}; this retriever was made for {self.embedding_dim}."
                )
        joined = torch.cat([observations, plans], dim=-1) if self.query == "plan" else observations
        return F.gelu(self.projection(joined))

    @torch.no_grad()
    def keys(self, observations: Tensor, plans: Tensor) -> Tensor:
        """Project entries of the knowledge base to keys: unit vectors without gradient, to be made anew each epoch.

        Args:
            observations: Embeddings of the complete samples (N, embedding_dim).
            plans: Embeddings of their plans or transcripts (N, embedding_dim).

        Returns:
            Keys (N, query_dim), float32.
        """
        return F.normalize(self.project(observations, plans).float(), dim=-1)

    def forward(
        self, queries: Tensor, plans: Tensor, candidates: Candidates, own_entries: Tensor | None = None
    ) -> Evidence:
        """Weigh the top K of the candidates and mix their values (eq. 8), and compare their plans with the sample's (eq. 9).

        Gradients reach `queries` and `plans`, never the candidates.

        Args:
            queries: From `project` (B, query_dim).
            plans: The samples' own plans c_S (B, embedding_dim), also where `project` was given others.
            candidates: What the index found; for K entries besides the sample's own it has to be asked for K + 1.
            own_entries: Rows of the samples in the knowledge base (B,), which are left out; `NO_ENTRY` for samples that
                are not in it. None: nothing is left out (evaluation).

        Returns:
            The evidence; in float32, except the values, which keep their type.
        """
        entries = candidates.entries
        valid = entries != NO_ENTRY
        if own_entries is not None:
            valid = valid & (entries != own_entries.unsqueeze(1))
        if self.aggregation == "none":
            valid = torch.zeros_like(valid)
        keys = F.normalize(candidates.keys.detach().float(), dim=-1)
        cosines = torch.einsum("bq,bcq->bc", F.normalize(queries.float(), dim=-1), keys)
        # A finite number, so that the softmax of a row without any entry has a gradient (of 0).
        lowest = torch.finfo(cosines.dtype).min
        ranked, chosen = cosines.masked_fill(~valid, lowest).topk(min(self.top_k, cosines.shape[1]), dim=1)
        valid = valid.gather(1, chosen)
        attention = (ranked / self.temperature).masked_fill(~valid, lowest).softmax(dim=1) * valid
        mean = valid / valid.sum(dim=1, keepdim=True).clamp(min=1)
        weights = attention if self.aggregation == "attention" else mean.to(attention.dtype)

        batch = torch.arange(len(entries), device=entries.device).unsqueeze(1)
        entry_plans = candidates.plans.detach()[batch, chosen].float()
        distances = 1 - F.cosine_similarity(plans.float().unsqueeze(1), entry_plans, dim=-1)
        return Evidence(
            values={
                name: torch.einsum("bk,bktd->btd", weights.to(value.dtype), value.detach()[batch, chosen])
                for name, value in candidates.values.items()
            },
            entries=entries.gather(1, chosen).masked_fill(~valid, NO_ENTRY),
            weights=weights,
            similarities=ranked.masked_fill(~valid, 0),
            alignment_cost=(attention * distances).sum(dim=1),
        )
