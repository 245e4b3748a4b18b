"""The Evidence Retriever of OMG-Agent: a query of observation and plan, and sparse attention over the nearest entries."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_omg import OmgConfig
from .omg_faiss import FaissIndex
from .omg_knowledge_base import NO_ENTRY, KnowledgeBase

# Entries whose keys are made together.
_ENTRIES_AT_ONCE = 65536


class Evidence(NamedTuple):
    """What was retrieved for each sample, best first.

    Args:
        values: Modality -> evidence E (B, latents, latent_dim).
        entries: The top K as rows of the knowledge base (B, K), `NO_ENTRY` where there were fewer.
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


class EvidenceRetriever(nn.Module):
    """Queries, keys, and sparse attention over the nearest entries (section 3.4, eqs. 7 to 9).

    The search compares every key with every query, on the model's device; in a base that is too large for that, FAISS
    searches where the configuration names an index. Training searches exactly in any case, as its keys change at every step.

    Where the evidence is a mean of the top K, the alignment cost keeps the attention's weights, through which the projection
    goes on learning. Without evidence nothing teaches the projection, which is therefore frozen.
    """

    def __init__(self, config: OmgConfig) -> None:
        super().__init__()
        self.config = config
        plan_width = 0 if config.retrieval_query == "content" else config.plan_width
        self.projection = nn.Linear(config.observation_width + plan_width, config.query_dim)
        self.projection.requires_grad_(config.retrieval_aggregation != "none")
        self._keys: tuple[tuple[Any, ...], Tensor] | None = None
        self._index: FaissIndex | None = None

    def project(self, observations: Tensor, plans: Tensor) -> Tensor:
        """Project u_X `(..., observation_width)` and c_S `(..., plan_width)` to queries `(..., query_dim)` (eq. 7).

        They are not normalised. Content-only retrieval reads no plans.
        """
        joined = observations if self.config.retrieval_query == "content" else torch.cat([observations, plans], dim=-1)
        return F.gelu(self.projection(joined))

    def keys(self, base: KnowledgeBase) -> Tensor:
        """The same projection of the entries: unit vectors `(N, query_dim)` in full precision, without gradient.

        They are those of the projection as it is now, and made anew only where it has changed.
        """
        weight, bias = self.projection.weight, self.projection.bias
        made_of = (base, weight.data_ptr(), weight._version, bias.data_ptr(), bias._version)
        if self._keys is None or self._keys[0] != made_of:
            # No tensors of inference mode, with which training could not go on.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
                pairs = zip(base.observations.split(_ENTRIES_AT_ONCE), base.plans.split(_ENTRIES_AT_ONCE), strict=True)
                keys = torch.cat([self.project(seen.to(weight), plans.to(weight)).float() for seen, plans in pairs])
                self._keys, self._index = (made_of, F.normalize(keys, dim=-1)), None
        return self._keys[1]

    def _search(self, queries: Tensor, base: KnowledgeBase, count: int) -> Tensor:
        """Rows of the nearest entries (B, count), best first; `NO_ENTRY` where an index has found fewer."""
        keys, config = self.keys(base), self.config
        if self.training or config.index_factory == "Flat":
            return (queries @ keys.T).topk(count, dim=1).indices
        if self._index is None:
            self._index = FaissIndex(keys, config.index_factory, config.index_nprobe, config.index_ef_search)
        return self._index.search(queries, count)

    def forward(
        self,
        observation: Tensor,
        plan: Tensor,
        base: KnowledgeBase,
        own_entries: Tensor | None = None,
        asked: Tensor | None = None,
    ) -> Evidence:
        """Mix the values of the top K (eq. 8), and compare their plans with the sample's (eq. 9).

        Gradients reach the queries and `plan`, never the entries.

        Args:
            observation (`torch.FloatTensor` of shape `(B, observation_width)`): u_X.
            plan (`torch.FloatTensor` of shape `(B, plan_width)`): c_S.
            base: Where to search.
            own_entries (`torch.LongTensor` of shape `(B,)`, *optional*): Rows of the samples themselves, which are left
                out; `NO_ENTRY` for samples that are not in it.
            asked (`torch.FloatTensor` of shape `(B, plan_width)`, *optional*): Plans to search with in place of `plan`.
        """
        queries = F.normalize(self.project(observation, plan if asked is None else asked).float(), dim=-1)
        wanted = self.config.top_k + (own_entries is not None)
        with torch.autocast(queries.device.type, enabled=False):
            entries = self._search(queries.detach(), base, min(wanted, len(base)))
            cosines = torch.einsum("bq,bcq->bc", queries, self.keys(base)[entries.clamp(min=0)])
        valid = entries != NO_ENTRY
        if own_entries is not None:
            valid = valid & (entries != own_entries.unsqueeze(1))
        # A finite number, so that the softmax of a row without any entry has a gradient (of 0).
        lowest = torch.finfo(cosines.dtype).min
        ranked, chosen = cosines.masked_fill(~valid, lowest).topk(min(self.config.top_k, entries.shape[1]), dim=1)
        valid, entries = valid.gather(1, chosen), entries.gather(1, chosen)
        attention = (ranked / self.config.retrieval_temperature).masked_fill(~valid, lowest).softmax(dim=1) * valid
        mean = (valid / valid.sum(dim=1, keepdim=True).clamp(min=1)).to(attention.dtype)
        weights = attention if self.config.retrieval_aggregation == "attention" else mean
        # Of a large base, only what was found leaves the memory that it is mapped into.
        rows = entries.clamp(min=0).to(base.plans.device)
        distances = 1 - F.cosine_similarity(plan.float().unsqueeze(1), base.plans[rows].to(plan.device), dim=-1)
        return Evidence(
            values={
                name: torch.einsum("bk,bktd->btd", weights, value[rows].to(weights))
                for name, value in base.values.items()
            },
            entries=entries.masked_fill(~valid, NO_ENTRY),
            weights=weights,
            similarities=ranked.masked_fill(~valid, 0),
            alignment_cost=(attention * distances).sum(dim=1),
        )
