"""Each ablation of OMG-Agent does what its row of the paper's tables says, and nothing is an ablation that does nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.msa_verbalizer import MsaVerbalizer
from hf_msa.models.omg_observation import observe_rows
from hf_msa.models.omg_planner import MllmPlanner
from nonempty import some
from scripted_mllm import ScriptedMllm, says
from test_omg import (
    LOST,
    base_of,
    drop,
    entries_as_samples,
    evidence,
    fixed_draws,
    fresh,
    give_base,
    learning,
    some_vectors,
    unit,
    whole,
)
from tiny import tiny_batch, tiny_names, tiny_omg_config, tiny_processor, tiny_rows

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
MODALITIES = ("text", "audio", "vision")


def ablated(name: str, **overrides: Any) -> OmgForSentimentAnalysis:
    """With a knowledge base."""
    model = fresh(**{**OmgConfig.ABLATIONS[name], **overrides})
    give_base(model)
    return model


def predict(model: OmgForSentimentAnalysis, **changes: Tensor) -> Tensor:
    logits: Tensor = model(**{**drop(tiny_batch(model.config), *LOST), **some_vectors(), **changes}).class_logits
    return logits


def learn(model: OmgForSentimentAnalysis) -> Any:
    """A training step with the same draws in every model."""
    patch = pytest.MonkeyPatch()
    fixed_draws(model, patch, [10, 20, 30, 40])
    return model.train()(**learning(model), objective="generate")


def total(losses: dict[str, Tensor], **weights: float) -> float:
    """The loss by the paper's weights, but for those that are given."""
    known = {"noise": 1.0, "plan": 0.1, "evidence": 0.1, "task": 0.1, "alignment": 0.1, **weights}
    return sum(known[name] * value.item() for name, value in losses.items())


def test_the_full_model_is_none_of_them() -> None:
    full = tiny_omg_config().to_dict()
    for name, fields in some(OmgConfig.ABLATIONS.items()):
        assert fields and all(full[field] != value for field, value in fields.items()), name


def test_the_full_model_s_weights() -> None:
    out = learn(whole())
    assert set(out.losses) == {"noise", "plan", "evidence", "task", "alignment"}
    assert all(value > 0 for value in out.losses.values())
    assert out.loss.item() == pytest.approx(total(out.losses), rel=1e-5)


class TestPlanner:
    def test_wo_planner_plans_are_noise(self) -> None:
        model, full = ablated("wo_planner"), ablated("wo_refit")
        other = {"plan_vectors": unit(4, seed=99)}
        assert torch.equal(predict(model), predict(model, **other))
        assert not torch.allclose(predict(full)[0], predict(full, **other)[0], atol=1e-5)
        seen = model.perceive(drop(tiny_batch(model.config), *LOST))
        given = model.conditioning(seen, {"plan_vectors": some_vectors()["plan_vectors"]})
        assert torch.allclose(given.plan.norm(dim=1), torch.ones(4)) and given.plan_tokens.shape == (4, 1, 32)
        assert torch.equal(given.plan, model.conditioning(seen, {}).plan), "a sample keeps its own"
        assert len({tuple(row.tolist()) for row in given.plan}) == 4
        model.train()
        drawn = [model.conditioning(seen, {}).plan for _ in range(2)]
        assert not torch.equal(*drawn), "in training it is another one each time"

    def test_wo_planner_the_observation_is_still_given(self) -> None:
        model = whole(**OmgConfig.ABLATIONS["wo_planner"])
        rows, processor = tiny_rows(model.config), tiny_processor(model.config)
        plans, vectors = model.plan_inputs({}, rows, processor)
        assert plans is None and set(vectors) == {"observation_vectors"}
        expected = model.planner(processor).embed_observations(observe_rows(rows))
        assert torch.equal(vectors["observation_vectors"], torch.from_numpy(expected))
        # What a knowledge base is made of are plans all the same.
        plans, vectors = model.plan_observations(observe_rows(rows), processor, always=True)
        assert plans is not None and vectors["plan_vectors"].shape == (4, 32)

    @pytest.mark.parametrize(("name", "chosen"), [("wo_reranking", 1), ("wo_refit", 2)])
    def test_wo_reranking_the_first_that_keeps_to_the_schema_wins(self, name: str, chosen: int) -> None:
        model = fresh(**OmgConfig.ABLATIONS[name], condition_dim=2)
        plan = "Entity: he; Action: {}; Sentiment: positive"
        script = says(("nonsense", [0.0]), (plan.format("waits"), [-5.0]), (plan.format("laughs"), [-1.0]))
        model.set_planner(MllmPlanner(ScriptedMllm(script), model.config))
        rows = tiny_rows(model.config)
        assert [plan.chosen for plan in model.plan_inputs({}, rows, tiny_processor(model.config))[0]] == [chosen] * 4

    @pytest.mark.parametrize(("name", "chosen"), [("mean_log_prob", 1), ("wo_refit", 0)])
    def test_mean_log_prob_counts_a_token_and_not_the_plan(self, name: str, chosen: int) -> None:
        model = fresh(**OmgConfig.ABLATIONS[name], condition_dim=2)
        plan = "Entity: he; Action: {}; Sentiment: positive"
        script = says((plan.format("waits"), [-1.0]), (plan.format("laughs"), [-0.5, -0.5, -0.5]))
        model.set_planner(MllmPlanner(ScriptedMllm(script), model.config))
        rows = tiny_rows(model.config)[:1]
        assert model.plan_inputs({}, rows, tiny_processor(model.config))[0][0].chosen == chosen

    def test_wo_lora_no_adapter_is_loaded(self, tmp_path: Path) -> None:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / file).write_bytes(b"{}")
        full = fresh(planner="mllm", planner_model="somewhere")
        full.set_adapter_folder(tmp_path)
        full.save_pretrained(tmp_path / "full")
        loaded = OmgForSentimentAnalysis.from_pretrained(tmp_path / "full")
        assert loaded.adapter_folder() == tmp_path / "full" / "adapter"
        frozen = OmgForSentimentAnalysis.from_pretrained(tmp_path / "full", **OmgConfig.ABLATIONS["wo_lora"])
        assert frozen.adapter_folder() is None

    def test_wo_verbalizer_no_features_are_said(self) -> None:
        model = fresh(planner="mllm", **OmgConfig.ABLATIONS["wo_verbalizer"])
        verbalizer = MsaVerbalizer.fit(
            [{m: row[m] for m in MODALITIES[1:]} for row in tiny_rows(model.config)], tiny_names(model.config)
        )
        spoken = fresh(planner="mllm")
        spoken.planner_values = {"verbalizer": verbalizer.to_dict()}
        assert (model.language_model_input, spoken.language_model_input) == ("transcript", "words")
        seen = observe_rows(tiny_rows(model.config))
        asked = [
            MllmPlanner(ScriptedMllm(says()), model.config, given).request(seen[0]).prompt
            for given in (verbalizer, None)
        ]
        assert "Voice:" in asked[0] and "Voice:" not in asked[1]

    def test_plan_per_constraint_attends_to_three(self) -> None:
        model = ablated("plan_per_constraint")
        three = torch.stack([unit(4, seed=seed) for seed in (1, 2, 3)], dim=1)
        seen = model.perceive(tiny_batch(model.config))
        given = model.conditioning(seen, {**some_vectors(), "constraint_vectors": three})
        assert torch.equal(given.plan_tokens, three) and torch.equal(given.plan, some_vectors()["plan_vectors"])
        swapped = three[:, [0, 2, 1]] * torch.tensor([1.0, 1.0, -1.0]).view(1, 3, 1)
        changed = (predict(model, constraint_vectors=three) - predict(model, constraint_vectors=swapped)).abs().sum(
            1
        ) > 0
        assert changed.tolist() == [True, False, True, True]
        full = ablated("wo_refit")
        assert torch.equal(predict(full, constraint_vectors=three), predict(full, constraint_vectors=swapped))


class TestRows:
    def test_wo_generation_the_classifier_reads_zeros_for_what_is_missing(self) -> None:
        model, full = ablated("wo_generation"), ablated("wo_refit")
        full.load_state_dict(model.state_dict())
        batch, vectors = drop(tiny_batch(model.config), *LOST), some_vectors()
        out = model(**batch, **vectors)
        perception = model.perceive(batch)
        latents = model.encode_observed(perception)
        assert not latents["audio"][0].any() and not latents["vision"][2:].any() and not latents["text"][2].any()
        expected = model.classify(perception, model.conditioning(perception, vectors), latents)
        assert torch.equal(out.class_logits, expected)
        assert torch.isnan(out.alignment_cost).all() and torch.isnan(out.path_cost).all()
        differs = (out.class_logits - predict(full)).abs().amax(dim=1) > 1e-6
        assert differs.tolist() == [True, False, True, True]
        with pytest.raises(ValueError, match="trained without generation"):
            model.generate_missing(batch)

    def test_the_planner_alone_is_its_score_in_label_units(self) -> None:
        """Sentiments 2 and -1 of 3: a mean of .5; on a scale to 1 a sixth."""
        plan = "Entity: he; Action: waits; Sentiment: {}"
        script = says((plan.format("positive"), [-1.0]), (plan.format("slightly negative"), [-1.0]))
        for family, expected in (("mosi", 0.5), ("sims", 0.5 / 3)):
            model = fresh(prediction="planner", planner="mllm", label_family=family, condition_dim=2)
            rows, processor = tiny_rows(model.config), tiny_processor(model.config)
            model.set_planner(MllmPlanner(ScriptedMllm(script), model.config))
            out = model.predict_rows(processor.from_rows(rows), rows, processor)
            assert out.logits.tolist() == [[pytest.approx(expected, abs=1e-5)]] * 4
            assert out.class_logits is None and out.planner_calls.tolist() == [[1.0]] * 4
            with pytest.raises(ValueError, match="needs the words of a sample"):
                model(**processor.from_rows(rows))

    def test_what_has_no_score_is_refused(self) -> None:
        with pytest.raises(StrictDataclassError, match="Noise in the place of plans has no score"):
            tiny_omg_config(prediction="planner", plan_source="noise")


class TestRetriever:
    def test_wo_retriever_the_knowledge_base_is_not_read(self) -> None:
        model, full = ablated("wo_retriever"), ablated("wo_refit")
        before, before_full = predict(model), predict(full)
        for one in (model, full):
            give_base(one, seed=9)
        assert torch.equal(predict(model), before)
        assert not torch.allclose(predict(full)[0], before_full[0], atol=1e-5)
        model.knowledge_base = None
        assert torch.equal(predict(model), before), "its evidence is zero"
        out = model(**drop(tiny_batch(model.config), *LOST), **some_vectors())
        assert torch.isnan(out.alignment_cost).all()
        assert "alignment" not in learn(model).losses
        assert not any(p.requires_grad for p in model.retriever.parameters())

    def test_wo_sparse_attention_the_evidence_is_the_mean(self) -> None:
        model = ablated("wo_sparse_attention")
        found = evidence(model, tiny_batch(model.config), some_vectors())
        assert torch.allclose(
            found.values["vision"], base_of(model).values["vision"][found.entries].mean(1), atol=1e-6
        )
        assert torch.equal(found.weights, torch.full((4, 3), 1 / 3))

    def test_content_only_retrieval_does_not_ask_for_the_plan(self) -> None:
        model, full = ablated("content_only_retrieval"), ablated("wo_refit")
        batch, other = tiny_batch(model.config), {**some_vectors(), "plan_vectors": unit(4, seed=99)}
        assert torch.equal(evidence(model, batch, some_vectors()).entries, evidence(model, batch, other).entries)
        assert not torch.equal(evidence(full, batch, some_vectors()).entries, evidence(full, batch, other).entries)
        assert model.retriever.projection.in_features == 32 and full.retriever.projection.in_features == 64
        moved = {**some_vectors(), "observation_vectors": unit(4, seed=99)}
        assert not torch.equal(evidence(model, batch, some_vectors()).entries, evidence(model, batch, moved).entries)

    def test_random_plan_retrieval_asks_with_the_plan_of_another(self) -> None:
        model = ablated("random_plan_retrieval")
        batch, other = tiny_batch(model.config), {**some_vectors(), "plan_vectors": unit(4, seed=99)}
        first, second = evidence(model, batch, some_vectors()), evidence(model, batch, other)
        assert torch.equal(first.similarities, second.similarities)
        assert not torch.allclose(first.alignment_cost, second.alignment_cost), "that is of the sample's own plan"
        base = base_of(model)
        vectors = entries_as_samples(model, list(range(len(base))))
        query = model.retriever.project(
            some_vectors()["observation_vectors"][:1].expand(len(base), -1), vectors["plan_vectors"]
        )
        cosines = nn.functional.normalize(query, dim=-1) @ model.retriever.keys(base).T
        best = cosines.topk(3, dim=1).values
        assert (best - first.similarities[0]).abs().max(1).values.min() < 1e-5, "one entry's plan it was"

    def test_wo_alignment_loss(self) -> None:
        out = learn(ablated("wo_alignment_loss"))
        assert out.losses["alignment"] > 0
        assert out.loss.item() == pytest.approx(total(out.losses, alignment=0.0), rel=1e-5)

    @pytest.mark.parametrize("count", [1, 5, 20, 50])
    def test_top_k(self, count: int) -> None:
        found = evidence(model := fresh_with_base(f"top_k_{count}"), tiny_batch(model.config), some_vectors())
        assert (found.weights > 0).sum(1).tolist() == [min(count, 12)] * 4


def fresh_with_base(name: str) -> OmgForSentimentAnalysis:
    """As configured, with the ablation's own number of entries."""
    return ablated(name, **OmgConfig.ABLATIONS[name], retrieval_temperature=1.0)


class TestLosses:
    @pytest.mark.parametrize(
        ("name", "without"),
        [
            ("wo_plan_loss", ("plan",)),
            ("wo_evidence_loss", ("evidence",)),
            ("wo_consistency_losses", ("plan", "evidence")),
            ("wo_task_loss", ("task",)),
        ],
    )
    def test_without_a_loss(self, name: str, without: tuple[str, ...]) -> None:
        out = learn(ablated(name))
        assert all(out.losses[term] > 0 for term in without), "it is still logged"
        assert out.loss.item() == pytest.approx(total(out.losses, **dict.fromkeys(without, 0.0)), rel=1e-5)
        assert abs(out.loss.item() - total(out.losses)) > 1e-3

    def test_wo_task_loss_the_classifier_learns_nothing(self) -> None:
        model, full = ablated("wo_task_loss"), ablated("wo_refit")
        for one in (model, full):
            learn(one).loss.backward()
        found = [
            sum(p.grad.abs().sum().item() for p in one.fusion.parameters() if p.grad is not None)
            for one in (model, full)
        ]
        assert found[0] == 0.0 and found[1] > 0.0
        assert any(p.grad is not None and p.grad.any() for p in model.executors.parameters())

    @pytest.mark.parametrize("weight", [0.01, 0.05, 0.5, 1.0])
    def test_lambda_task(self, weight: float) -> None:
        out = learn(ablated(f"lambda_task_{weight:g}"))
        assert out.loss.item() == pytest.approx(total(out.losses, task=weight), rel=1e-5)

    def test_direct_classification_reads_the_noisy_latents(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = ablated("direct_classification")
        noises = fixed_draws(model, monkeypatch, [500] * 4)
        inputs = learning(model)
        out = model.train()(**inputs, objective="generate")
        seen, complete = model.perceive(inputs), model.perceive(tiny_batch(model.config))
        latents, targets = model.encode_observed(seen), model.encode_observed(complete)
        bar = model._schedule.alphas_cumprod[500]
        for name, row in (("audio", 0), ("text", 2), ("vision", 2), ("vision", 3)):
            noisy = bar.sqrt() * targets[name][row] + (1 - bar).sqrt() * noises[name][row]
            real = complete.masks[name][row].unflatten(0, (-1, 2)).any(1).unsqueeze(1)
            latents[name] = latents[name].index_copy(0, torch.tensor([row]), (noisy * real).unsqueeze(0))
        expected = model.classify(seen, model.conditioning(seen, inputs), latents)
        assert torch.allclose(out.class_logits, expected, atol=1e-4)

    def test_direct_classification_teaches_the_denoiser_nothing_about_the_task(self) -> None:
        weights = {"plan_loss_weight": 0.0, "evidence_loss_weight": 0.0, "alignment_loss_weight": 0.0}
        for name, learns in (("direct_classification", False), ("wo_refit", True)):
            model = ablated(name, **weights)
            out = learn(model)
            task = nn.functional.cross_entropy(out.class_logits, torch.zeros(4, dtype=torch.long))
            task.backward()
            grads = [p.grad for p in model.executors.parameters() if p.grad is not None]
            assert any(grad.any() for grad in grads) == learns, name

    def test_aux_weight_none_counts_estimates_of_all_steps_alike(self) -> None:
        late, early = [990] * 4, [0] * 4
        for name, grows in (("aux_weight_none", True), ("wo_refit", False)):
            model = ablated(name).train()
            patch = pytest.MonkeyPatch()
            found = []
            for steps in (late, early):
                fixed_draws(model, patch, steps)
                found.append(model(**learning(model), objective="generate").losses["evidence"].item())
            assert (found[0] > found[1] / 100) == grows, name

    def test_epsilon_prediction_is_equation_15_to_the_letter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = ablated("epsilon_prediction").train()
        noises = fixed_draws(model, monkeypatch, [10, 20, 30, 40])
        for executor in model.executors_by_name.values():
            nn.init.zeros_(executor.denoiser.project_out.weight)
            nn.init.zeros_(executor.denoiser.project_out.bias)
        out = model(**learning(model), objective="generate")
        # Nothing is predicted, so all of the noise is missed, on as many latents as are real.
        seen = model.perceive(tiny_batch(model.config))
        missed = []
        for name, row in (("audio", 0), ("text", 2), ("vision", 2), ("vision", 3)):
            real = seen.masks[name][row].unflatten(0, (-1, 2)).any(1)
            missed.append(noises[name][row][real].square().mean().item())
        assert out.losses["noise"].item() == pytest.approx(sum(missed) / 4, rel=1e-4)

    def test_wo_refit_is_a_matter_of_stages(self) -> None:
        model, full = ablated("wo_refit"), fresh()
        give_base(full)
        assert not model.config.refit_classifier and full.config.refit_classifier
        assert torch.equal(predict(model), predict(full))


@pytest.mark.parametrize(
    ("name", "evidence_in", "plan_in"),
    [
        ("concat_injection", {"0", "1"}, set()),
        ("reversed_injection", {"1"}, {"0"}),
        ("single_stream", {"0"}, set()),
        ("wo_refit", {"0"}, {"1"}),
    ],
)
def test_what_is_injected_where(name: str, evidence_in: set[str], plan_in: set[str]) -> None:
    model = ablated(name)
    for executor in model.executors_by_name.values():
        assert set(executor.denoiser.adapters) == evidence_in and set(executor.denoiser.plan_attention) == plan_in
    # Whether the plan reaches what is generated other than through the evidence.
    model.knowledge_base = None
    moved = not torch.equal(predict(model), predict(model, plan_vectors=unit(4, seed=99)))
    assert moved == (name != "single_stream")


def test_every_ablation_has_a_test() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    named = {f"top_k_{count}" for count in (1, 5, 20, 50)} | {f"lambda_task_{w:g}" for w in (0.01, 0.05, 0.5, 1.0)}
    untested = {name for name in OmgConfig.ABLATIONS if name not in named and f'"{name}"' not in source}
    assert not untested
