"""The retriever's query, its sparse attention and its alignment cost, with numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from hf_msa.models.omg_retriever import NO_ENTRY, Candidates, Evidence, EvidenceRetriever, random_entries

QUERY = torch.tensor([[2.0, 0.0]])
PLAN = torch.tensor([[1.0, 0.0]])


def at_cosines(*cosines: float, plans: Tensor | None = None) -> Candidates:
    """One query's candidates, whose keys have these cosines with `QUERY` and whose values are 1, 10, 100, ..."""
    count = len(cosines)
    keys = torch.tensor([[3 * c, 3 * math.sqrt(1 - c * c)] for c in cosines])
    values = 10.0 ** torch.arange(count).reshape(1, count, 1, 1).expand(1, count, 3, 4)
    return Candidates(
        entries=torch.arange(count).unsqueeze(0) + 20,
        keys=keys.unsqueeze(0),
        plans=PLAN.expand(1, count, 2) if plans is None else plans.unsqueeze(0),
        values={"text": values, "audio": -values[:, :, :2]},
    )


def retrieve(candidates: Candidates, own: int | None = None, **options: object) -> Evidence:
    retriever = EvidenceRetriever(embedding_dim=2, query_dim=2, **options)  # type: ignore[arg-type]
    found: Evidence = retriever(QUERY, PLAN, candidates, None if own is None else torch.tensor([own]))
    return found


class TestAttention:
    @pytest.mark.parametrize(
        ("cosines", "weights"), [((0.9, 0.83), (0.7311, 0.2689)), ((1.0, 0.5), (0.99921, 0.00079))]
    )
    def test_weights_of_two(self, cosines: tuple[float, ...], weights: tuple[float, ...]) -> None:
        found = retrieve(at_cosines(*cosines))
        torch.testing.assert_close(found.weights, torch.tensor([weights]), atol=5e-5, rtol=0)
        torch.testing.assert_close(found.similarities, torch.tensor([cosines]))
        expected = weights[0] + 10 * weights[1]
        torch.testing.assert_close(found.values["text"], torch.full((1, 3, 4), expected), atol=1e-3, rtol=0)
        torch.testing.assert_close(found.values["audio"], torch.full((1, 2, 4), -expected), atol=1e-3, rtol=0)

    def test_the_best_alone_is_the_evidence(self) -> None:
        found = retrieve(at_cosines(0.1, 0.9, 0.5), top_k=1)
        assert found.entries.tolist() == [[21]] and found.weights.tolist() == [[1.0]]
        assert torch.equal(found.values["text"], torch.full((1, 3, 4), 10.0))

    def test_best_first_and_no_more_than_k(self) -> None:
        found = retrieve(at_cosines(-0.2, 0.9, 0.5, 0.7), top_k=3)
        assert found.entries.tolist() == [[21, 23, 22]]
        torch.testing.assert_close(found.weights.sum(), torch.tensor(1.0))

    def test_a_high_temperature_is_the_mean(self) -> None:
        candidates = at_cosines(0.9, 0.1, -0.8)
        mean = retrieve(candidates, aggregation="mean", top_k=2)
        assert torch.equal(mean.values["text"], torch.full((1, 3, 4), 5.5))
        hot = retrieve(candidates, temperature=1e6, top_k=2)
        torch.testing.assert_close(hot.values, mean.values, atol=1e-4, rtol=0)

    def test_values_keep_their_type(self) -> None:
        candidates = at_cosines(0.9, 0.5)
        found = retrieve(candidates._replace(values={"text": candidates.values["text"].to(torch.float16)}))
        assert found.values["text"].dtype == torch.float16 and found.weights.dtype == torch.float32


class TestWhatIsLeftOut:
    def test_a_samples_own_entry(self) -> None:
        found = retrieve(at_cosines(1.0, 0.9, 0.83), own=20, top_k=2)
        assert found.entries.tolist() == [[21, 22]]
        torch.testing.assert_close(found.weights, torch.tensor([[0.7311, 0.2689]]), atol=5e-5, rtol=0)

    @pytest.mark.parametrize("aggregation", ["attention", "mean"])
    def test_it_has_no_weight_where_k_is_not_reached(self, aggregation: str) -> None:
        found = retrieve(at_cosines(1.0, 0.5), own=20, aggregation=aggregation)
        assert found.entries.tolist() == [[21, NO_ENTRY]]
        assert found.weights.tolist() == [[1.0, 0.0]]
        assert torch.equal(found.values["text"], torch.full((1, 3, 4), 10.0))

    def test_absent_candidates_and_samples_without_an_entry(self) -> None:
        candidates = at_cosines(0.9, 0.99, 0.83)
        candidates.entries[0, 1] = NO_ENTRY
        found = retrieve(candidates, own=NO_ENTRY)
        assert found.entries.tolist() == [[20, 22, NO_ENTRY]]
        torch.testing.assert_close(found.weights, torch.tensor([[0.7311, 0.2689, 0.0]]), atol=5e-5, rtol=0)

    def test_nothing_retrieved_is_zero_with_finite_gradients(self) -> None:
        queries = QUERY.clone().requires_grad_()
        retriever = EvidenceRetriever(2, 2)
        found = retriever(queries, PLAN, at_cosines(1.0), torch.tensor([20]))
        assert not found.values["text"].any() and found.alignment_cost.tolist() == [0.0]
        assert found.weights.tolist() == [[0.0]] and found.entries.tolist() == [[NO_ENTRY]]
        (found.values["text"].sum() + found.alignment_cost.sum()).backward()
        assert queries.grad is not None and queries.grad.tolist() == [[0.0, 0.0]]

    def test_a_sample_is_the_same_alone_and_in_a_batch(self) -> None:
        one, other = at_cosines(0.9, 0.83), at_cosines(0.2, -0.7)
        entries, keys, plans = (torch.cat(pair) for pair in zip(one[:3], other[:3], strict=True))
        values = {name: torch.cat([one.values[name], other.values[name]]) for name in one.values}
        both = Candidates(entries, keys, plans, values)
        retriever = EvidenceRetriever(2, 2)
        together = retriever(QUERY.expand(2, 2), PLAN.expand(2, 2), both, torch.tensor([NO_ENTRY, 20]))
        alone = retriever(QUERY, PLAN, one)
        torch.testing.assert_close(together.values["text"][:1], alone.values["text"])
        assert together.entries.tolist() == [[20, 21], [21, NO_ENTRY]]


class TestAlignmentCost:
    def test_is_the_weighted_distance_of_plans(self) -> None:
        # Plans at cosine 1 and -1: 0.7311 * 0 + 0.2689 * 2.
        found = retrieve(at_cosines(0.9, 0.83, plans=torch.tensor([[5.0, 0.0], [-2.0, 0.0]])))
        torch.testing.assert_close(found.alignment_cost, torch.tensor([0.5379]), atol=1e-4, rtol=0)

    def test_same_plans_cost_nothing_and_opposite_ones_two(self) -> None:
        assert retrieve(at_cosines(0.9, 0.1)).alignment_cost.item() == pytest.approx(0, abs=1e-6)
        opposite = at_cosines(0.9, 0.1, plans=-PLAN.expand(2, 2))
        assert retrieve(opposite).alignment_cost.item() == pytest.approx(2, abs=1e-6)

    def test_keeps_its_weights_where_the_evidence_is_a_mean(self) -> None:
        candidates = at_cosines(0.9, 0.83, plans=torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        mean = retrieve(candidates, aggregation="mean")
        assert mean.alignment_cost.item() == retrieve(candidates).alignment_cost.item()

    def test_teaches_the_query_to_leave_what_was_not_planned(self) -> None:
        queries = torch.tensor([[1.0, 1.0]], requires_grad=True)
        keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        plans = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
        candidates = Candidates(torch.tensor([[0, 1]]), keys, plans, {"text": torch.zeros(1, 2, 1, 1)})
        EvidenceRetriever(2, 2)(queries, PLAN, candidates).alignment_cost.sum().backward()
        assert queries.grad is not None
        step = -queries.grad[0]
        assert step[0] > 0 > step[1]


class TestProjection:
    def test_is_the_gelu_of_a_linear_layer_of_both(self) -> None:
        retriever = EvidenceRetriever(embedding_dim=1, query_dim=1)
        with torch.no_grad():
            retriever.projection.weight.copy_(torch.tensor([[2.0, -1.0]]))
            retriever.projection.bias.fill_(0.5)
        # 2 * 1 - 1.5 + 0.5 = 1, and GELU(1) = 0.841345.
        found = retriever.project(torch.tensor([[1.0]]), torch.tensor([[1.5]]))
        torch.testing.assert_close(found, torch.tensor([[0.841345]]))

    def test_keys_are_the_same_as_unit_vectors_without_gradient(self) -> None:
        torch.manual_seed(0)
        retriever = EvidenceRetriever(3, 5)
        observations, plans = torch.randn(4, 3), torch.randn(4, 3)
        keys = retriever.keys(observations, plans)
        assert not keys.requires_grad
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(4))
        cosine = torch.nn.functional.cosine_similarity(keys, retriever.project(observations, plans))
        torch.testing.assert_close(cosine, torch.ones(4))

    def test_content_only_does_not_read_the_plan(self) -> None:
        torch.manual_seed(0)
        observations, plans = torch.randn(4, 3), torch.randn(4, 3)
        content = EvidenceRetriever(3, 5, query="content")
        assert torch.equal(content.project(observations, plans), content.project(observations, -plans))
        both = EvidenceRetriever(3, 5)
        assert not torch.equal(both.project(observations, plans), both.project(observations, -plans))

    @pytest.mark.parametrize("aggregation", ["attention", "mean", "none"])
    def test_gradients_reach_it_and_not_the_knowledge_base(self, aggregation: str) -> None:
        torch.manual_seed(0)
        retriever = EvidenceRetriever(2, 2, aggregation=aggregation)
        candidates = at_cosines(0.9, 0.3, plans=torch.randn(2, 2))
        for table in (candidates.keys, candidates.plans, *candidates.values.values()):
            table.requires_grad_()
        found = retriever(retriever.project(torch.ones(1, 2), PLAN), PLAN, candidates)
        loss = found.values["text"].sum() + found.alignment_cost.sum()
        if aggregation == "none":
            assert not loss.requires_grad and not any(p.requires_grad for p in retriever.parameters())
            return
        loss.backward()
        assert all(p.grad is not None for p in retriever.parameters())
        assert candidates.keys.grad is None and candidates.plans.grad is None

    def test_without_retriever_the_evidence_is_zero(self) -> None:
        found = retrieve(at_cosines(0.9, 0.5), aggregation="none")
        assert found.values["audio"].shape == (1, 2, 4) and not found.values["audio"].any()
        assert found.entries.tolist() == [[NO_ENTRY, NO_ENTRY]] and found.alignment_cost.tolist() == [0.0]


class TestRandomPlans:
    def test_never_the_samples_own_and_every_other(self) -> None:
        ids = [f"s{number}" for number in range(300)]
        drawn = random_entries(ids, torch.full((300,), 2), entries=4, seed=1)
        assert set(drawn.tolist()) == {0, 1, 3}
        assert set(random_entries(ids, torch.full((300,), NO_ENTRY), 4, 1).tolist()) == {0, 1, 2, 3}

    def test_depends_on_the_id_and_the_seed_alone(self) -> None:
        ids, own = ["a", "b", "c", "d"], torch.tensor([0, 1, NO_ENTRY, 3])
        drawn = random_entries(ids, own, 1000, seed=1)
        assert random_entries(["c"], own[2:3], 1000, seed=1).tolist() == drawn[2:3].tolist()
        assert random_entries(ids, own, 1000, seed=2).tolist() != drawn.tolist()

    def test_needs_another_entry(self) -> None:
        with pytest.raises(ValueError, match="none of them other than the sample's own"):
            random_entries(["a"], torch.tensor([0]), entries=1, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0; at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"query": "plans"}, "query is 'plans'; it must be one of plan, content"),
        ({"aggregation": "max"}, "aggregation is 'max'; it must be one of attention, mean, none"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvidenceRetriever(2, **options)  # type: ignore[arg-type]


def test_another_width_of_embeddings_is_named() -> None:
    with pytest.raises(ValueError, match="The plans have width 3; this retriever was made for 2"):
        EvidenceRetriever(2).project(torch.zeros(1, 2), torch.zeros(1, 3))
