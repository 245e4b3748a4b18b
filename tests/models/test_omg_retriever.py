"""The retriever's query, its search, its sparse attention and its alignment cost, with numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.modeling_omg import random_entries
from hf_msa.models.omg_knowledge_base import NO_ENTRY, KnowledgeBase
from hf_msa.models.omg_retriever import Evidence, EvidenceRetriever
from tiny import tiny_omg_config

QUERY = torch.tensor([[2.0, 0.0]])
PLAN = torch.tensor([[1.0, 0.0]])


def small(**options: Any) -> OmgConfig:
    return tiny_omg_config(**{"condition_dim": 2, "query_dim": 2, "latent_dim": 2, **options})


def entries(count: int, plans: Tensor | None = None) -> KnowledgeBase:
    """Entries whose values are 1, 10, 100, ..."""
    values = (10.0 ** torch.arange(count)).reshape(count, 1, 1).expand(count, 3, 4).contiguous()
    plans = PLAN.expand(count, 2) if plans is None else plans
    observations = torch.zeros(count, 2)
    return KnowledgeBase(list("abcdefgh"[:count]), plans, observations, {"text": values, "audio": -values[:, :2]})


def made(*cosines: float, **options: Any) -> EvidenceRetriever:
    """A retriever that asks `QUERY`, with keys at these cosines from it."""
    retriever = EvidenceRetriever(small(**options))
    keys = torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines])
    retriever.project = lambda *_: QUERY.expand(len(_[0]), 2)  # type: ignore[method-assign]
    retriever.keys = lambda base: keys  # type: ignore[method-assign]
    return retriever


def retrieve(*cosines: float, own: int | None = None, plans: Tensor | None = None, **options: Any) -> Evidence:
    own_entries = None if own is None else torch.tensor([own])
    found: Evidence = made(*cosines, **options)(PLAN, PLAN, entries(len(cosines), plans), own_entries)
    return found


class TestAttention:
    @pytest.mark.parametrize(
        ("cosines", "weights"), [((0.9, 0.83), (0.7311, 0.2689)), ((1.0, 0.5), (0.99921, 0.00079))]
    )
    def test_weights_of_two(self, cosines: tuple[float, ...], weights: tuple[float, ...]) -> None:
        found = retrieve(*cosines)
        torch.testing.assert_close(found.weights, torch.tensor([weights]), atol=5e-5, rtol=0)
        torch.testing.assert_close(found.similarities, torch.tensor([cosines]))
        expected = weights[0] + 10 * weights[1]
        torch.testing.assert_close(found.values["text"], torch.full((1, 3, 4), expected), atol=1e-3, rtol=0)
        torch.testing.assert_close(found.values["audio"], torch.full((1, 2, 4), -expected), atol=1e-3, rtol=0)

    def test_the_best_alone_is_the_evidence(self) -> None:
        found = retrieve(0.1, 0.9, 0.5, top_k=1)
        assert found.entries.tolist() == [[1]] and found.weights.tolist() == [[1.0]]
        assert torch.equal(found.values["text"], torch.full((1, 3, 4), 10.0))

    def test_best_first_and_no_more_than_k(self) -> None:
        found = retrieve(-0.2, 0.9, 0.5, 0.7, top_k=3)
        assert found.entries.tolist() == [[1, 3, 2]]
        torch.testing.assert_close(found.weights.sum(), torch.tensor(1.0))

    def test_a_high_temperature_is_the_mean(self) -> None:
        mean = retrieve(0.9, 0.1, -0.8, retrieval_aggregation="mean", top_k=2)
        assert torch.equal(mean.values["text"], torch.full((1, 3, 4), 5.5))
        hot = retrieve(0.9, 0.1, -0.8, retrieval_temperature=1e6, top_k=2)
        torch.testing.assert_close(hot.values, mean.values, atol=1e-4, rtol=0)


class TestWhatIsLeftOut:
    def test_a_samples_own_entry(self) -> None:
        found = retrieve(1.0, 0.9, 0.83, own=0, top_k=2)
        assert found.entries.tolist() == [[1, 2]]
        torch.testing.assert_close(found.weights, torch.tensor([[0.7311, 0.2689]]), atol=5e-5, rtol=0)

    @pytest.mark.parametrize("aggregation", ["attention", "mean"])
    def test_it_has_no_weight_where_k_is_not_reached(self, aggregation: str) -> None:
        found = retrieve(1.0, 0.5, own=0, retrieval_aggregation=aggregation)
        assert found.entries.tolist() == [[1, NO_ENTRY]]
        assert found.weights.tolist() == [[1.0, 0.0]]
        assert torch.equal(found.values["text"], torch.full((1, 3, 4), 10.0))

    def test_what_an_index_has_not_found_and_samples_without_an_entry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        retriever = made(0.9, 0.99, 0.83)
        monkeypatch.setattr(retriever, "_search", lambda *_: torch.tensor([[0, NO_ENTRY, 2]]))
        found = retriever(PLAN, PLAN, entries(3), torch.tensor([NO_ENTRY]))
        assert found.entries.tolist() == [[0, 2, NO_ENTRY]]
        torch.testing.assert_close(found.weights, torch.tensor([[0.7311, 0.2689, 0.0]]), atol=5e-5, rtol=0)

    def test_nothing_retrieved_is_zero_with_finite_gradients(self) -> None:
        retriever, query = made(1.0), QUERY.clone().requires_grad_()
        retriever.project = lambda *_: query  # type: ignore[method-assign]
        found = retriever(PLAN, PLAN, entries(1), torch.tensor([0]))
        assert not found.values["text"].any() and found.alignment_cost.tolist() == [0.0]
        assert found.weights.tolist() == [[0.0]] and found.entries.tolist() == [[NO_ENTRY]]
        (found.values["text"].sum() + found.alignment_cost.sum()).backward()
        assert query.grad is not None and query.grad.tolist() == [[0.0, 0.0]]

    def test_a_sample_is_the_same_alone_and_in_a_batch(self) -> None:
        retriever, base = made(0.9, 0.83, 0.2), entries(3)
        together = retriever(PLAN.expand(2, 2), PLAN.expand(2, 2), base, torch.tensor([NO_ENTRY, 0]))
        alone = retriever(PLAN, PLAN, base, torch.tensor([NO_ENTRY]))
        torch.testing.assert_close(together.values["text"][:1], alone.values["text"])
        assert together.entries.tolist() == [[0, 1, 2], [1, 2, NO_ENTRY]]


class TestAlignmentCost:
    def test_is_the_weighted_distance_of_plans(self) -> None:
        # Plans at cosine 1 and -1: 0.7311 * 0 + 0.2689 * 2.
        found = retrieve(0.9, 0.83, plans=torch.tensor([[5.0, 0.0], [-2.0, 0.0]]))
        torch.testing.assert_close(found.alignment_cost, torch.tensor([0.5379]), atol=1e-4, rtol=0)

    def test_same_plans_cost_nothing_and_opposite_ones_two(self) -> None:
        assert retrieve(0.9, 0.1).alignment_cost.item() == pytest.approx(0, abs=1e-6)
        assert retrieve(0.9, 0.1, plans=-PLAN.expand(2, 2)).alignment_cost.item() == pytest.approx(2, abs=1e-6)

    def test_keeps_its_weights_where_the_evidence_is_a_mean(self) -> None:
        plans = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        mean = retrieve(0.9, 0.83, plans=plans, retrieval_aggregation="mean")
        assert mean.alignment_cost.item() == retrieve(0.9, 0.83, plans=plans).alignment_cost.item()

    def test_teaches_the_query_to_leave_what_was_not_planned(self) -> None:
        retriever, query = made(1.0, 0.0), torch.tensor([[1.0, 1.0]], requires_grad=True)
        retriever.project = lambda *_: query  # type: ignore[method-assign]
        base = entries(2, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        retriever(PLAN, PLAN, base).alignment_cost.sum().backward()
        assert query.grad is not None
        step = -query.grad[0]
        assert step[0] > 0 > step[1]


class TestProjection:
    def test_is_the_gelu_of_a_linear_layer_of_both(self) -> None:
        retriever = EvidenceRetriever(small(condition_dim=1, query_dim=1))
        with torch.no_grad():
            retriever.projection.weight.copy_(torch.tensor([[2.0, -1.0]]))
            retriever.projection.bias.fill_(0.5)
        # 2 * 1 - 1.5 + 0.5 = 1, and GELU(1) = 0.841345.
        found = retriever.project(torch.tensor([[1.0]]), torch.tensor([[1.5]]))
        torch.testing.assert_close(found, torch.tensor([[0.841345]]))

    def test_content_only_does_not_read_the_plan(self) -> None:
        torch.manual_seed(0)
        observations, plans = torch.randn(4, 2), torch.randn(4, 2)
        content = EvidenceRetriever(small(retrieval_query="content"))
        assert torch.equal(content.project(observations, plans), content.project(observations, -plans))
        both = EvidenceRetriever(small())
        assert not torch.equal(both.project(observations, plans), both.project(observations, -plans))

    @pytest.mark.parametrize("aggregation", ["attention", "mean"])
    def test_gradients_reach_it_and_not_the_knowledge_base(self, aggregation: str) -> None:
        torch.manual_seed(0)
        retriever = EvidenceRetriever(small(retrieval_aggregation=aggregation))
        base = entries(2, torch.randn(2, 2))
        for table in (base.plans, base.observations):
            table.requires_grad_()
        plan = PLAN.clone().requires_grad_()
        found = retriever(torch.ones(1, 2), plan, base)
        (found.values["text"].sum() + found.alignment_cost.sum()).backward()
        assert all(p.grad is not None for p in retriever.parameters()) and plan.grad is not None
        assert base.observations.grad is None

    def test_without_evidence_it_does_not_learn(self) -> None:
        retriever = EvidenceRetriever(small(retrieval_aggregation="none"))
        assert not any(p.requires_grad for p in retriever.parameters())


class TestKeys:
    def retriever(self, **options: Any) -> tuple[EvidenceRetriever, KnowledgeBase]:
        torch.manual_seed(0)
        base = KnowledgeBase([str(row) for row in range(90)], torch.randn(90, 2), torch.randn(90, 2), {
            "text": torch.randn(90, 3, 2),
        })  # fmt: skip
        return EvidenceRetriever(small(query_dim=5, **options)).eval(), base

    def test_are_the_queries_of_the_entries_as_unit_vectors_without_gradient(self) -> None:
        retriever, base = self.retriever()
        keys = retriever.keys(base)
        assert not keys.requires_grad and keys.dtype == torch.float32
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(90))
        cosine = torch.nn.functional.cosine_similarity(keys, retriever.project(base.observations, base.plans))
        torch.testing.assert_close(cosine, torch.ones(90))

    def test_are_those_of_the_projection_as_it_is_now(self) -> None:
        """After a step of an optimiser, weights that are loaded, or another knowledge base; else they are not made anew."""
        retriever, base = self.retriever()
        before = retriever.keys(base)
        assert retriever.keys(base) is before
        optimizer = torch.optim.Adam(retriever.parameters())
        retriever.project(base.observations, base.plans).sum().backward()
        optimizer.step()
        stepped = retriever.keys(base)
        assert not torch.equal(stepped, before)
        state = {name: value + 1 for name, value in retriever.state_dict().items()}
        retriever.load_state_dict(state)
        loaded = retriever.keys(base)
        assert not torch.equal(loaded, stepped) and retriever.keys(base) is loaded
        other = KnowledgeBase(base.ids, -base.plans, base.observations, base.values)
        assert not torch.equal(retriever.keys(other), loaded) and torch.equal(retriever.keys(base), loaded)

    def test_do_not_depend_on_how_they_were_asked_for(self) -> None:
        retriever, base = self.retriever()
        expected = retriever.keys(base)
        for context in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
            retriever, _ = self.retriever()
            with context:
                assert torch.equal(retriever.keys(base), expected)
            # Training can go on with them.
            retriever(torch.ones(1, 2), PLAN, base).weights.square().sum().backward()

    def test_half_precision_finds_what_full_precision_finds(self) -> None:
        retriever, base = self.retriever()
        exact = retriever(base.observations, base.plans, base)
        with torch.autocast("cpu", torch.bfloat16):
            retriever.project = lambda *_: retriever.keys(base)  # type: ignore[method-assign]
            assert torch.equal(retriever(base.observations, base.plans, base).entries, exact.entries)

    def test_an_index_searches_in_prediction_and_training_compares_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("faiss")
        retriever, base = self.retriever(index_factory="IVF9,Flat", top_k=3)
        exact, _ = self.retriever(top_k=3)
        truth = exact(base.observations, base.plans, base).entries
        # A single list of nine misses some.
        assert not torch.equal(retriever(base.observations, base.plans, base).entries, truth)
        assert torch.equal(retriever.train()(base.observations, base.plans, base).entries, truth)
        retriever, _ = self.retriever(index_factory="IVF9,Flat", index_nprobe=9, top_k=3)
        assert torch.equal(retriever(base.observations, base.plans, base).entries, truth)
        built = retriever._index
        retriever(base.observations, base.plans, base)
        assert retriever._index is built, "it is built once"
        torch.nn.init.normal_(retriever.projection.weight)
        retriever(base.observations, base.plans, base)
        assert retriever._index is not built, "and again when the keys are others"


class TestRandomPlans:
    def test_never_the_samples_own_and_every_other(self) -> None:
        numbers = list(range(300))
        assert set(random_entries(numbers, [2] * 300, entries=4, seed=1)) == {0, 1, 3}
        assert set(random_entries(numbers, [NO_ENTRY] * 300, 4, 1)) == {0, 1, 2, 3}

    def test_depends_on_the_number_and_the_seed_alone(self) -> None:
        numbers, own = [7, 8, 9, 10], [0, 1, NO_ENTRY, 3]
        drawn = random_entries(numbers, own, 1000, seed=1)
        assert random_entries([9], own[2:3], 1000, seed=1) == drawn[2:3]
        assert random_entries(numbers, own, 1000, seed=2) != drawn

    def test_needs_another_entry(self) -> None:
        with pytest.raises(ValueError, match="no entry other than the sample's own"):
            random_entries([1], [0], entries=1, seed=0)
