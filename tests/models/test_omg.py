"""OMG-Agent as one model: what it perceives, retrieves, generates and learns, by hand-computed numbers."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FixedPattern, apply_missing
from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.msa_inputs import INPUT_KEYS, inner_tokens
from hf_msa.models.msa_verbalizer import MsaVerbalizer
from hf_msa.models.omg_batches import Perception, average_positions
from hf_msa.models.omg_executor import LatentVae
from hf_msa.models.omg_knowledge_base import KnowledgeBase
from hf_msa.models.omg_observation import observe_rows
from hf_msa.models.omg_planner import MllmPlanner
from hf_msa.training.omg.planners import fit_centering, fit_light_planner
from nonempty import some
from scripted_mllm import ScriptedMllm, says
from tiny import UNK, VOCABULARY, WORDS, tiny_batch, tiny_omg_config, tiny_processor, tiny_rows

Batch = dict[str, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
ENTRIES = 12
MODALITIES = ("text", "audio", "vision")


def fresh(**overrides: Any) -> OmgForSentimentAnalysis:
    """A tiny model in which evidence, plan and observation all matter from the start."""
    torch.manual_seed(0)
    model = OmgForSentimentAnalysis(tiny_omg_config(**{"top_k": 3, **overrides})).eval()
    for name, parameter in model.named_parameters():
        if "adapters" in name and ".out." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def training_rows(model: OmgForSentimentAnalysis) -> list[dict[str, Any]]:
    return [{**row, "id": f"train-{index}"} for index, row in enumerate(tiny_rows(model.config, ENTRIES, seed=5))]


def give_base(model: OmgForSentimentAnalysis, seed: int = 1) -> None:
    """Entries whose vectors and latents are random."""
    draw = torch.Generator().manual_seed(seed)
    model.knowledge_base = KnowledgeBase(
        [f"train-{index}" for index in range(ENTRIES)],
        unit(ENTRIES, seed=seed),
        unit(ENTRIES, model.config.observation_width, seed=seed + 1),
        {
            name: torch.randn(
                ENTRIES, (model.config.positions(name) + 1) // 2, model.config.latent_dim, generator=draw
            )
            for name in model.config.modalities
        },
    )


def give_planner(model: OmgForSentimentAnalysis) -> None:
    """A light planner that is fitted to `training_rows`."""
    rows = training_rows(model)
    encode = functools.partial(model.embed_texts, tiny_processor(model.config).tokenizer)
    labels = [row["label"] for row in rows]
    planner = fit_light_planner(observe_rows(rows), labels, encode, model.config)
    fit_centering(planner, observe_rows(rows))
    model.set_planner(planner)


def whole(**overrides: Any) -> OmgForSentimentAnalysis:
    """With knowledge base and planner."""
    model = fresh(**overrides)
    give_base(model)
    give_planner(model)
    return model


def drop(batch: Batch, *dropped: tuple[str, ...]) -> Batch:
    """Take whole modalities from a batch, for each sample those that are named."""
    masks = {}
    for name in MODALITIES:
        real = batch["attention_mask" if name == "text" else f"{name}_attention_mask"].bool()
        real = inner_tokens(real) if name == "text" else real
        lost = torch.tensor([name in names for names in dropped])
        masks[name] = (real & lost.unsqueeze(1)).numpy()
    return apply_missing(batch, masks, UNK)


LOST = (("audio",), (), ("text", "vision"), ("vision",))


def unit(count: int, width: int = 32, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def some_vectors(count: int = 4, seed: int = 7) -> Batch:
    return {"plan_vectors": unit(count, seed=seed), "observation_vectors": unit(count, seed=seed + 50)}


def complete(batch: Batch) -> Batch:
    names = {"complete_input_ids": "input_ids", "complete_audio_values": "audio_values"}
    names["complete_vision_values"] = "vision_values"
    return {name: batch[source] for name, source in names.items()}


def learning(model: OmgForSentimentAnalysis, lost: tuple[tuple[str, ...], ...] = LOST, **options: Any) -> Batch:
    """Arguments of a training step."""
    batch = tiny_batch(model.config, len(lost))
    labels = torch.tensor([-2.0, 0.4, 3.0, -0.6])[: len(lost)]
    return {**drop(batch, *lost), **complete(batch), **some_vectors(len(lost)), "labels": labels, **options}


def train_only(model: OmgForSentimentAnalysis, *parts: str) -> None:
    """Let these parts of executors and model learn, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(f".{part}." in f".{name}" for part in parts))


def picked(batch: Batch, rows: list[int]) -> Batch:
    return {name: value[rows] for name, value in batch.items()}


class TestPerceiving:
    @pytest.mark.parametrize(
        ("real", "inner"),
        [
            ([1, 1, 1, 1, 0], [0, 1, 1, 0, 0]),
            ([0, 1, 1, 1, 1], [0, 0, 1, 1, 0]),
            ([1, 1, 0, 0, 0], [0, 0, 0, 0, 0]),
            ([1, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
            ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        ],
    )
    def test_tokens_between_the_special_ones(self, real: list[int], inner: list[int]) -> None:
        assert inner_tokens(torch.tensor([real]).bool()).int().tolist() == [inner]

    def test_averages_by_hand(self) -> None:
        values = torch.tensor([[1.0, 2, 3, 4, 5], [1, 0, 3, 0, 0], [7, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).unsqueeze(-1)
        visible = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
        # Five positions in two bins share the third; of two positions each has its bin, a gap between them or not.
        averages, there = average_positions(values, visible, 2)
        assert averages.squeeze(-1).tolist() == [[2, 4], [1, 3], [7, 7], [0, 0]]
        assert there.tolist() == [[True] * 2, [True] * 2, [True] * 2, [False] * 2]
        # Two positions in three bins: the first, both, the second.
        assert average_positions(values, visible, 3)[0][1].squeeze(-1).tolist() == [1, 2, 3]
        # As many bins as positions change nothing.
        assert torch.equal(average_positions(values, visible, 5)[0][0], values[0])

    def test_long_sequences_are_averaged_to_the_fixed_number_of_positions(self) -> None:
        model = fresh(sequence_length=4)
        batch = tiny_batch(model.config)
        batch = drop(batch, (), (), ("audio",), ())
        batch["audio_missing_mask"][0, 1] = True
        batch["audio_values"][0, 1] = math.nan
        seen = model.perceive(batch)
        frames = batch["audio_values"][0, [0, 2, 3]]
        # Three frames are left for four bins: 0..0.75, 0.75..1.5, 1.5..2.25, 2.25..3.
        expected = torch.stack([frames[0], frames[:2].mean(0), frames[1:].mean(0), frames[2]])
        assert torch.allclose(seen.values["audio"][0], expected, atol=1e-6)
        assert seen.masks["audio"].tolist() == [[True] * 4, [True] * 4, [False] * 4, [True] * 4]
        assert seen.wanted["audio"].all(), "what is generated has that length as well"

    def test_short_sequences_are_padded(self) -> None:
        model = fresh()
        batch = drop(tiny_batch(model.config), (), ("vision",), (), ())
        seen = model.perceive(batch)
        lengths = batch["vision_attention_mask"].sum(1).tolist()
        assert seen.values["vision"].shape == (4, 12, 7)
        assert seen.masks["vision"].sum(1).tolist() == [lengths[0], 0, lengths[2], lengths[3]]
        assert seen.wanted["vision"].sum(1).tolist() == lengths
        assert torch.equal(seen.values["vision"][0, : lengths[0]], batch["vision_values"][0, : lengths[0]])
        assert not seen.values["vision"][0, lengths[0] :].any() and not seen.values["vision"][1].any()

    def test_what_is_missing_is_generated_at_the_length_of_its_form(self) -> None:
        model = fresh()
        processor = tiny_processor(model.config)
        processor.missing_lengths = {"text": 6, "audio": 3, "vision": 99}
        rows = tiny_rows(model.config)
        rows[0] = {**rows[0], "audio_present": False, "vision_present": False}
        rows[1] = {**rows[1], "text": ""}
        seen = model.perceive(processor.from_rows(rows))
        assert {name: value.tolist() for name, value in seen.available.items()} == {
            "text": [True, False, True, True],
            "audio": [False, True, True, True],
            "vision": [False, True, True, True],
        }
        assert seen.lacking.tolist() == [True, True, False, False]
        assert seen.wanted["audio"][0].tolist() == [True] * 3 + [False] * 9
        assert seen.wanted["vision"][0].all()
        assert seen.wanted["text"][1].tolist() == [True] * 6 + [False] * 6

    def test_its_length_is_what_those_of_observed_modalities_let_expect(self) -> None:
        """By hand: half of the text's tokens and one, else twice the sound's frames, else the median."""
        fits = {"vision": [["text", 0.5, 1.0], ["audio", 2.0, 0.0]], "audio": [["vision", 0.1, -9.0]]}
        model = fresh(missing_length="observed", missing_length_fits=fits)
        processor = tiny_processor(model.config)
        processor.missing_lengths = {"text": 6, "audio": 3, "vision": 5}
        row = tiny_rows(model.config)[0]
        row |= {"text": " ".join(WORDS[:6]), "audio": np.zeros((4, 5)), "vision": np.ones((7, 7))}
        rows = [
            {**row, "vision_present": False},
            {**row, "vision_present": False, "text": ""},
            {**row, "vision_present": False, "text": "", "audio": np.zeros((9, 5))},
            {**row, "audio_present": False},
            {**row, "audio_present": False, "vision_present": False},
            {**row, "text": ""},
        ]
        seen = model.perceive(processor.from_rows(rows))
        # Eight tokens with the special ones: 5. Of 18 frames the longest has 12; of a length below 1 there is none.
        assert seen.lengths["vision"].tolist() == [5, 8, 12, 7, 5, 7]
        assert seen.lengths["audio"].tolist() == [4, 4, 9, 1, 3, 4]
        assert seen.lengths["text"].tolist() == [8, 6, 6, 8, 8, 6], "no fit: the median"
        assert seen.wanted["vision"].sum(1).tolist() == [5, 8, 12, 7, 5, 7]
        made = model.generate_missing(processor.from_rows(rows))
        assert made.masks["vision"].sum(1).tolist() == [5, 8, 12, 0, 5, 0]
        assert made.lengths["vision"].tolist() == [5, 8, 12, 7, 5, 7]
        # As before where nothing was fitted.
        plain = fresh().perceive(processor.from_rows(rows))
        assert plain.lengths["vision"].tolist() == [5, 5, 5, 7, 5, 7]

    def test_text_without_any_content_is_missing_and_its_special_tokens_go_with_it(self) -> None:
        model = fresh()
        batch = drop(tiny_batch(model.config), ("text",), (), (), ())
        seen = model.perceive(batch)
        assert seen.available["text"].tolist() == [False, True, True, True]
        assert not seen.masks["text"][0].any() and not seen.values["text"][0].any()
        assert model.available(batch)["text"].tolist() == [False, True, True, True]

    def test_dropped_tokens_are_holes(self) -> None:
        model = fresh()
        batch = tiny_batch(model.config)
        real = batch["attention_mask"].bool()
        mask = torch.zeros_like(real)
        mask[3, 2] = True
        batch = apply_missing(batch, {"text": mask.numpy()}, UNK)
        seen = model.perceive(batch)
        assert torch.equal(seen.masks["text"][:, : real.shape[1]], real & ~mask)
        states = model.encode_text(batch["input_ids"], batch["attention_mask"])
        assert torch.allclose(seen.values["text"][3, 1], states[3, 1], atol=1e-5)
        assert not seen.values["text"][3, 2].any()

    def test_states_are_standardised_and_may_be_given(self) -> None:
        model = fresh()
        model.text_mean.copy_(torch.arange(32.0))
        model.text_std.fill_(2.0)
        batch = tiny_batch(model.config)
        states = torch.randn(*batch["input_ids"].shape, 32)
        seen = model.perceive(batch, states)
        assert torch.allclose(seen.values["text"][1, 0], (states[1, 0] - torch.arange(32.0)) / 2)
        assert torch.equal(
            model.perceive(drop(batch, ("text",), (), (), ()), states).values["text"][0], torch.zeros(12, 32)
        )

    def test_digests_are_of_what_is_observed_alone(self) -> None:
        model = fresh()
        batch = drop(tiny_batch(model.config), *LOST)
        digests = model.perceive(batch).digests
        assert len(set(digests)) == 4
        for name in ("audio", "vision"):
            batch[f"{name}_values"][batch[f"{name}_missing_mask"]] = math.nan
            padding = batch[f"{name}_attention_mask"] == 0
            batch[f"{name}_values"][padding] = 5.0
        batch["input_ids"][batch["text_missing_mask"]] = VOCABULARY["great"]
        batch["input_ids"][batch["attention_mask"] == 0] = VOCABULARY["great"]
        assert model.perceive(batch).digests == digests
        batch["vision_values"][0, 0, 0] += 1e-3
        changed = model.perceive(batch).digests
        assert changed[0] != digests[0] and changed[1:] == digests[1:]

    def test_seeds_differ_by_purpose_seed_and_sample(self) -> None:
        seen = fresh().perceive(tiny_batch(tiny_omg_config()))
        drawn = [*seen.seeds(0, "audio"), *seen.seeds(0, "vision"), *seen.seeds(1, "audio")]
        assert len(set(drawn)) == 12 and seen.seeds(0, "audio") == drawn[:4]
        assert all(0 <= seed < 2**63 - 3 for seed in drawn)


def evidence(model: OmgForSentimentAnalysis, batch: Batch, vectors: Batch, own: Tensor | None = None) -> Any:
    seen = model.perceive(batch)
    return model.conditioning(seen, vectors, own).evidence


def base_of(model: OmgForSentimentAnalysis) -> KnowledgeBase:
    assert model.knowledge_base is not None
    return model.knowledge_base


def entries_as_samples(model: OmgForSentimentAnalysis, rows: list[int]) -> Batch:
    """Vectors of entries, of which each is its own nearest neighbour."""
    base = base_of(model)
    return {"plan_vectors": base.plans[rows], "observation_vectors": base.observations[rows]}


class TestRetrieving:
    def test_the_own_entry_is_the_nearest_and_is_left_out_in_training(self) -> None:
        model = fresh()
        give_base(model)
        batch, vectors = tiny_batch(model.config), entries_as_samples(model, [3, 0, 7, 11])
        found = evidence(model, batch, vectors)
        assert found.entries[:, 0].tolist() == [3, 0, 7, 11]
        assert torch.allclose(found.similarities[:, 0], torch.ones(4), atol=1e-5)
        own = torch.tensor([3, 0, -1, 11])
        left = evidence(model, batch, vectors, own)
        assert left.entries.shape == (4, 3)
        assert left.entries[2].tolist() == found.entries[2].tolist(), "who is not in the base loses nothing"
        for row in (0, 1, 3):
            assert own[row] not in left.entries[row]
            assert left.entries[row, :2].tolist() == found.entries[row, 1:].tolist()
        assert torch.allclose(left.weights.sum(1), torch.ones(4))

    def test_a_training_step_retrieves_for_itself_what_it_is_told_to(self) -> None:
        model = whole(top_k=1)
        vectors = entries_as_samples(model, [3, 0, 7, 11])
        losses = [
            model(**{**learning(model, own_entries=own), **vectors}, objective="generate").losses["alignment"]
            for own in (None, torch.tensor([3, 0, 7, 11]))
        ]
        assert losses[0] == pytest.approx(0.0, abs=1e-5), "a sample's own plan is as far from it as can be: not at all"
        assert losses[1] > 0.1

    def test_of_one_entry_the_evidence_is_its_value(self) -> None:
        model = fresh(top_k=1)
        give_base(model)
        found = evidence(model, tiny_batch(model.config), entries_as_samples(model, [5, 5, 2, 0]))
        assert torch.equal(found.weights, torch.ones(4, 1))
        for name in MODALITIES:
            assert torch.equal(found.values[name], base_of(model).values[name][[5, 5, 2, 0]])

    def test_a_high_temperature_is_the_mean(self) -> None:
        batch, vectors, found = tiny_batch(tiny_omg_config()), some_vectors(), []
        for options in ({"retrieval_temperature": 1e6}, {"retrieval_aggregation": "mean"}, {}):
            model = fresh(**options)
            give_base(model)
            found.append(evidence(model, batch, vectors))
        assert torch.allclose(found[0].values["audio"], found[1].values["audio"], atol=1e-5)
        assert torch.allclose(found[0].weights, torch.full((4, 3), 1 / 3), atol=1e-5)
        assert not torch.allclose(found[2].values["audio"], found[1].values["audio"], atol=1e-3)

    def test_weights_and_cost_by_hand(self) -> None:
        model = fresh(top_k=2)
        give_base(model)
        vectors, base = some_vectors(), base_of(model)
        found = evidence(model, tiny_batch(model.config), vectors)
        joined = torch.cat([vectors["observation_vectors"], vectors["plan_vectors"]], dim=-1)
        query = F.normalize(
            F.gelu(joined @ model.retriever.projection.weight.T + model.retriever.projection.bias), dim=-1
        )
        cosines = query @ model.retriever.keys(base).T
        best, places = cosines.topk(2, dim=1)
        weights = (best / 0.07).softmax(dim=1)
        assert found.entries.tolist() == places.tolist()
        assert torch.allclose(found.weights, weights, atol=1e-5)
        cost = (weights * (1 - (base.plans[places] * vectors["plan_vectors"].unsqueeze(1)).sum(-1))).sum(1)
        assert torch.allclose(found.alignment_cost, cost, atol=1e-5)

    def test_a_changed_projection_searches_with_its_own_keys(self) -> None:
        model = fresh()
        give_base(model)
        batch, four = tiny_batch(model.config), entries_as_samples(model, [0, 4, 8, 11])
        evidence(model, batch, four)
        torch.nn.init.normal_(model.retriever.projection.weight)
        found = evidence(model, batch, four)
        assert found.entries[:, 0].tolist() == [0, 4, 8, 11]
        assert torch.allclose(found.similarities[:, 0], torch.ones(4), atol=1e-5)

    def test_a_knowledge_base_of_another_model_is_refused(self) -> None:
        model = fresh()
        give_base(model)
        for options in ({"latent_dim": 5}, {"sequence_length": 4}, {"condition_dim": 16}, {"vision_dim": None}):
            with pytest.raises(ValueError, match="but this model needs .* build it with this model"):
                fresh(**options).knowledge_base = model.knowledge_base

    def test_fewer_entries_than_are_wanted(self) -> None:
        model = fresh(top_k=50)
        give_base(model)
        found = evidence(model, tiny_batch(model.config), some_vectors(), torch.tensor([0, -1, 2, 3]))
        assert (found.entries != -1).sum(1).tolist() == [ENTRIES - 1, ENTRIES, ENTRIES - 1, ENTRIES - 1]
        assert torch.isfinite(found.values["text"]).all() and torch.allclose(found.weights.sum(1), torch.ones(4))

    def test_without_a_knowledge_base_there_is_no_evidence(self) -> None:
        model = fresh()
        assert evidence(model, tiny_batch(model.config), some_vectors()) is None
        made = model.generate_missing({**drop(tiny_batch(model.config), *LOST), **some_vectors()})
        assert made.evidence_ids == [[]] * 4 and made.latents["audio"][0].any()


class TestWhatIsReadBesideThePaper:
    def test_pooled_features_follow_the_vector_of_the_words(self) -> None:
        model = fresh(observation_features=True)
        give_base(model)
        batch = drop(tiny_batch(model.config), *LOST)
        given = model.conditioning(model.perceive(batch), some_vectors())
        widths = {name: getattr(model.config, f"{name}_dim") for name in ("audio", "vision")}
        assert given.observation.shape == (4, 32 + 2 * sum(widths.values())) == (4, model.config.observation_width)
        words, audio, vision = given.observation.split([32, 2 * widths["audio"], 2 * widths["vision"]], dim=1)
        assert torch.equal(words, some_vectors()["observation_vectors"])
        assert not audio[0].any() and not vision[2:].any() and vision[0].any()  # what is dropped gives zeros
        heard = batch["audio_values"][1][batch["audio_attention_mask"][1].bool()]
        assert len(heard) <= model.config.positions("audio")  # nothing is averaged
        expected = torch.cat([heard.mean(0), heard.std(0, correction=0)])
        assert torch.allclose(audio[1], expected, atol=1e-5)
        assert fresh().config.observation_width == 32

    def test_entries_of_other_observations_are_refused(self) -> None:
        model = fresh()
        give_base(model)
        with pytest.raises(ValueError, match="observations of 32 .* build it with this model"):
            fresh(observation_features=True).knowledge_base = model.knowledge_base

    def test_the_classifier_reads_plan_and_score_by_hand(self) -> None:
        model = fresh(classifier_plan=True)
        batch, vectors = (
            tiny_batch(model.config),
            {**some_vectors(), "plan_scores": torch.tensor([[1.0], [0], [-1], [0.5]])},
        )
        seen = model.perceive(batch)
        latents = model.encode_observed(seen)
        fusion = model.fusion
        assert fusion.plan is not None
        read = torch.cat([vectors["plan_vectors"], vectors["plan_scores"]], dim=1)
        parts = [fusion.observation(vectors["observation_vectors"]), fusion.plan(read)]
        for name, layer in fusion.latents.items():
            there = LatentVae.latent_mask(seen.masks[name])
            parts.append(layer(latents[name].sum(1) / there.sum(1, keepdim=True)))
        expected = fusion.classifier(F.relu(fusion.hidden(torch.cat(parts, dim=1))))
        assert torch.allclose(model(**batch, **vectors).class_logits, expected, atol=1e-5)

    def test_without_a_planner_there_is_no_score_either(self) -> None:
        model = fresh(classifier_plan=True, plan_source="noise")
        given = model.conditioning(model.perceive(tiny_batch(model.config)), {"plan_scores": torch.ones(4, 1)})
        assert not given.score.any()

    def test_the_score_is_that_of_the_planner(self) -> None:
        model = whole(classifier_plan=True)
        rows, processor = tiny_rows(model.config), tiny_processor(model.config)
        plans, vectors = model.plan_inputs({}, rows, processor)
        assert plans is not None
        scores = [[float(np.float32(choice.score / 3))] for choice in plans]
        assert vectors["plan_scores"].tolist() == scores and len({*map(tuple, scores)}) > 1
        assert "plan_scores" not in whole().plan_inputs({}, rows, processor)[1]


class TestPredicting:
    def test_complete_samples_are_only_classified(self) -> None:
        model = fresh()
        batch, vectors = tiny_batch(model.config), some_vectors()
        out = model(**batch, **vectors)
        seen = model.perceive(batch)
        parts = [model.fusion.observation(vectors["observation_vectors"])]
        for name, layer in model.fusion.latents.items():
            latents = model.executors_by_name[name].vae.latents(seen.values[name], seen.masks[name])
            lengths = LatentVae.latent_mask(seen.masks[name]).sum(1, keepdim=True)
            parts.append(layer(latents.sum(1) / lengths))
        expected = model.fusion.classifier(F.relu(model.fusion.hidden(torch.cat(parts, dim=1))))
        assert torch.allclose(out.class_logits, expected, atol=1e-5)
        assert torch.isnan(out.alignment_cost).all() and torch.isnan(out.path_cost).all()

    def test_the_score_is_the_mean_of_the_classes_scores(self) -> None:
        model = fresh()
        logits = torch.tensor([[0.0] * 7, [0.0] * 6 + [99.0], [math.log(3), *[-99.0] * 5, 0.0]])
        assert model.score(logits).squeeze(1).tolist() == pytest.approx([0.0, 3.0, -3 * 0.75 + 3 * 0.25], abs=1e-5)
        sims = fresh(label_family="sims")
        assert sims.score(torch.tensor([[99.0, 0, 0, 0, 0], [0, 0, 0, 99.0, 0]])).squeeze(1).tolist() == pytest.approx(
            [-0.85, 0.4]
        )
        assert sims(**tiny_batch(sims.config)).class_logits.shape == (4, 5)

    def test_classes_of_labels(self) -> None:
        labels = torch.tensor([-4.0, -3.0, -2.5, -0.5, -0.2, 0.0, 0.5, 0.6, 1.5, 2.8, 3.0])
        assert fresh().label_classes(labels).tolist() == [0, 0, 1, 3, 3, 3, 3, 4, 5, 6, 6]
        labels = torch.tensor([-1.0, -0.7, -0.6, -0.1, 0.0, 0.1, 0.2, 0.7, 0.8, 1.0])
        assert fresh(label_family="sims").label_classes(labels).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]

    def test_columns_of_results(self) -> None:
        model = whole()
        rows = tiny_rows(model.config)
        batch = drop(tiny_batch(model.config), *LOST)
        found = model.per_sample_outputs(model.predict_rows(batch, rows, tiny_processor(model.config)))
        assert {"class_logits_strongly_negative", "class_logits_neutral", "alignment_cost", "path_cost"} <= set(found)
        assert found["fallback_plan"].tolist() == [0.0] * 4
        assert torch.isnan(found["path_cost"]).tolist() == [False, True, False, False]
        assert torch.isnan(found["alignment_cost"]).tolist() == [False, True, False, False]
        assert set(found["planned_score"].tolist()) <= set(map(float, range(-3, 4)))

    def test_costs_of_modalities_are_averaged(self) -> None:
        model = whole()
        batch = {**drop(tiny_batch(model.config), *LOST), **some_vectors()}
        made, out = model.generate_missing(batch), model(**batch)
        costs = [made.step_costs[name].mean(1) for name in MODALITIES]
        assert out.path_cost[0, 0] == pytest.approx(costs[1][0].item())
        assert out.path_cost[2, 0] == pytest.approx(((costs[0][2] + costs[2][2]) / 2).item())
        assert made.evidence is not None
        assert out.alignment_cost[2, 0] == pytest.approx(made.evidence.alignment_cost[2].item())

    @pytest.mark.parametrize("options", [{}, {"plan_source": "noise"}, {"retrieval_query": "random_plan"}])
    @pytest.mark.parametrize("scheduler", ["ddpm", "dpm_solver++"])
    def test_neighbours_and_order_change_nothing(self, options: dict[str, Any], scheduler: str) -> None:
        model = whole(scheduler=scheduler, **options)
        processor, rows = tiny_processor(model.config), tiny_rows(model.config)
        rows[1] = {**rows[1], "audio_present": False}

        def predict(order: list[int]) -> Any:
            members = [rows[index] for index in order]
            batch = drop(processor.from_rows(members), *(LOST[index] for index in order))
            made = model.generate_missing(batch, members, processor)
            return model.predict_rows(batch, members, processor), made

        expected, made = predict([0, 1, 2, 3])
        for order in ([2, 0, 3, 1], [2, 2, 0], [0], [1], [2], [3]):
            out, again = predict(order)
            assert torch.allclose(out.logits, expected.logits[order], atol=1e-4), order
            assert again.evidence_ids == [made.evidence_ids[index] for index in order]
            for name in MODALITIES:
                assert torch.allclose(again.latents[name], made.latents[name][order], atol=1e-3)

    def test_the_seed_and_what_is_observed_decide_the_noise(self) -> None:
        batch = {**drop(tiny_batch(tiny_omg_config()), *LOST), **some_vectors()}
        first, again, other = (fresh(generation_seed=seed).generate_missing(batch).latents for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in MODALITIES)
        assert not torch.allclose(first["audio"][0], other["audio"][0], atol=1e-2)
        batch["vision_values"][0, 0, 0] += 1e-4
        moved = fresh().generate_missing(batch).latents
        assert not torch.allclose(first["audio"][0], moved["audio"][0], atol=1e-2)
        assert torch.equal(first["text"], moved["text"])

    def test_drawing_leaves_the_global_state_alone(self) -> None:
        model = whole(plan_source="noise")
        batch = {**drop(tiny_batch(model.config), *LOST), **some_vectors()}
        torch.manual_seed(3)
        expected = torch.rand(3)
        torch.manual_seed(3)
        model(**batch)
        assert torch.equal(torch.rand(3), expected)

    @pytest.mark.parametrize(
        "options",
        [{}, {"plan_tokens": "per_constraint"}, {"retrieval_query": "random_plan"}, {"plan_source": "noise"}],
    )
    def test_what_is_missing_has_no_influence_whatever_stands_there(self, options: dict[str, Any]) -> None:
        """Through the whole chain: planner, its store, evidence, noise and classifier, bit for bit."""
        model = whole(**options)
        processor, rows = tiny_processor(model.config), tiny_rows(model.config)
        others = [dict(row) for row in rows]
        others[0]["audio"] = np.full_like(rows[0]["audio"], np.nan)
        others[2]["text"] = " ".join(["great"] * len(rows[2]["text"].split()))
        others[2]["vision"] = rows[2]["vision"] * 100
        others[3]["vision"] = np.full_like(rows[3]["vision"], np.inf)

        def predict(members: list[dict[str, Any]]) -> tuple[Any, Any]:
            batch = processor.from_rows(members)
            masked = drop(batch, *LOST)
            # Not even zeros are put in the place of what is dropped.
            masked |= {name: batch[name] for name in ("input_ids", "audio_values", "vision_values")}
            return model.predict_rows(masked, members, processor), model.generate_missing(masked, members, processor)

        expected, made = predict(rows)
        for store in ("shared", "new"):
            if store == "new":
                give_planner(model)
            out, again = predict(others)
            for name in ("logits", "class_logits", "alignment_cost", "path_cost", "planned_score"):
                found, wanted = getattr(out, name), getattr(expected, name)
                assert (found is None and wanted is None) or torch.equal(found.nan_to_num(9.0), wanted.nan_to_num(9.0))
            assert again.evidence_ids == made.evidence_ids
            assert all(torch.equal(again.values[name], made.values[name]) for name in MODALITIES)

    def test_what_is_observed_has_one(self) -> None:
        model = whole()
        processor, rows = tiny_processor(model.config), tiny_rows(model.config)
        batch = drop(processor.from_rows(rows), *LOST)
        expected = model.predict_rows(batch, rows, processor)
        others = [{**row, "text": row["text"].replace(row["text"].split()[0], "great")} for row in rows]
        out = model.predict_rows(drop(processor.from_rows(others), *LOST), others, processor)
        assert not torch.allclose(out.logits[0], expected.logits[0], atol=1e-5)
        assert torch.equal(out.logits[2], expected.logits[2]), "here the words are missing"


class TestGenerating:
    def test_what_is_missing_and_nothing_else(self) -> None:
        model = whole()
        batch = drop(tiny_batch(model.config), *LOST)
        made = model.generate_missing({**batch, **some_vectors()})
        seen = model.perceive(batch)
        for name in MODALITIES:
            lost = torch.tensor([name in names for names in LOST])
            assert torch.equal(made.masks[name].any(1), lost)
            assert torch.equal(made.masks[name], seen.wanted[name] & lost.unsqueeze(1))
            assert not made.values[name][~made.masks[name]].any()
            assert made.values[name][made.masks[name]].abs().sum(-1).all()
            assert torch.equal(made.latents[name].flatten(1).any(1), lost)
            assert torch.equal(torch.isnan(made.step_costs[name]).all(1), ~lost)
        assert made.plans is None
        assert torch.equal(made.class_logits, model(**batch, **some_vectors()).class_logits)

    def test_text_comes_in_the_units_of_the_text_encoder(self) -> None:
        model = fresh()
        batch = {**drop(tiny_batch(model.config), ("text",), (), (), ()), **some_vectors()}
        plain = model.generate_missing(batch)
        model.text_mean.fill_(3.0)
        model.text_std.fill_(2.0)
        scaled = model.generate_missing(batch)
        real = plain.masks["text"]
        assert torch.allclose(scaled.values["text"][real], plain.values["text"][real] * 2 + 3, atol=1e-4)
        assert not scaled.values["text"][~real].any()

    def test_from_rows_with_plans_and_ids(self) -> None:
        model = whole()
        processor, rows = tiny_processor(model.config), training_rows(model)[:4]
        batch = drop(processor.from_rows(rows), *LOST)
        made = model.generate_missing(batch, rows, processor)
        assert made.plans is not None and [len(plan.candidates) for plan in made.plans] == [5] * 4
        assert made.evidence is not None
        assert made.evidence_ids == [[f"train-{entry}" for entry in row] for row in made.evidence.entries.tolist()]
        assert all(row["id"] not in ids for row, ids in zip(rows, made.evidence_ids, strict=True))
        nearest = evidence(model, batch, entries_as_samples(model, [0, 1, 2, 3]))
        assert nearest.entries[:, 0].tolist() == [0, 1, 2, 3]

    def test_a_sample_is_not_predicted_from_the_entry_under_its_own_id(self) -> None:
        model = whole()
        processor = tiny_processor(model.config)
        rows = [{**row, "id": f"new-{index}"} for index, row in enumerate(training_rows(model)[:4])]
        batch = drop(processor.from_rows(rows), *LOST)
        nearest = [ids[0] for ids in model.generate_missing(batch, rows, processor).evidence_ids]
        named = [{**row, "id": entry} for row, entry in zip(rows, nearest, strict=True)]
        found = model.generate_missing(batch, named, processor).evidence_ids
        assert all(
            len(ids) == model.config.top_k and entry not in ids for entry, ids in zip(nearest, found, strict=True)
        )
        stranger, own = (model.predict_rows(batch, members, processor) for members in (rows, named))
        lost = torch.tensor([bool(names) for names in LOST])
        assert (stranger.alignment_cost[lost] != own.alignment_cost[lost]).all()

    @pytest.mark.parametrize(("scheduler", "steps"), [("ddpm", 7), ("ddim", 7), ("dpm_solver++", 3), ("ddpm", 61)])
    def test_any_number_of_steps(self, scheduler: str, steps: int) -> None:
        model = fresh(scheduler=scheduler, num_inference_steps=steps)
        made = model.generate_missing({**drop(tiny_batch(model.config), *LOST), **some_vectors()})
        assert made.step_costs["audio"].shape == (4, steps)
        assert torch.isfinite(made.values["audio"]).all()

    def test_several_draws_are_averaged(self) -> None:
        model = fresh(num_inference_steps=4)
        inputs = {**drop(tiny_batch(model.config), *LOST), **some_vectors()}
        one = model.generate_missing(inputs)
        assert not one.spreads
        perception = model.perceive(inputs)
        given, observed = model.conditioning(perception, inputs), model.encode_observed(perception)
        drawn = [model.execute(perception, given, observed, draw) for draw in range(3)]
        assert torch.equal(drawn[0][1]["audio"], one.values["audio"])
        assert not torch.allclose(drawn[0][1]["audio"], drawn[1][1]["audio"])
        model.config.num_samples = 3
        made = model.generate_missing(inputs)
        audio = torch.stack([values["audio"] for _, values, _ in drawn])
        assert torch.allclose(made.values["audio"], audio.mean(0), atol=1e-5)
        spread = made.spreads["audio"]
        assert torch.allclose(spread, audio.std(0), atol=1e-5) and spread[0].any() and not spread[1].any()
        shares = [model.classify(perception, given, latents).softmax(-1) for latents, _, _ in drawn]
        assert torch.allclose(made.class_logits.exp(), torch.stack(shares).mean(0), atol=1e-5)
        # What a sample gets does not depend on its neighbours.
        alone = model.generate_missing({name: value[:1] for name, value in inputs.items()})
        assert torch.allclose(alone.values["audio"], made.values["audio"][:1], atol=1e-4)

    def test_a_short_chain_will_do(self) -> None:
        model = fresh(num_train_timesteps=20, num_inference_steps=20)
        made = model.generate_missing({**drop(tiny_batch(model.config), *LOST), **some_vectors()})
        assert made.step_costs["audio"].shape == (4, 20)
        assert torch.isfinite(model.train()(**learning(model), objective="generate").loss)


def fixed_draws(
    model: OmgForSentimentAnalysis, monkeypatch: pytest.MonkeyPatch, timesteps: list[int]
) -> dict[str, Tensor]:
    """Time steps and noises that a test knows."""
    noises = {
        name: torch.randn(len(timesteps), 6, 6, generator=torch.Generator().manual_seed(place))
        for place, name in enumerate(model.config.modalities)
    }
    monkeypatch.setattr(model, "_draws", lambda *_: (torch.tensor(timesteps), noises))
    return noises


WEIGHTS = {
    "plan_loss_weight": 0.2,
    "evidence_loss_weight": 0.3,
    "task_loss_weight": 0.5,
    "alignment_loss_weight": 0.7,
}
STEPS = [0, 499, 200, 999]
# Of the linear schedule; the first, second and last are in the specification.
BARS = torch.tensor([0.9999, 0.0785872, 0.6579517, 4.0358e-5])


class TestLearning:
    @pytest.mark.parametrize(("aux_weight", "prediction_type"), [("alpha_bar", "v_prediction"), ("none", "epsilon")])
    def test_the_loss_is_put_together_as_equations_15_and_18_say(
        self, aux_weight: str, prediction_type: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = whole(aux_weight=aux_weight, prediction_type=prediction_type, **WEIGHTS).train()
        noises = fixed_draws(model, monkeypatch, STEPS)
        inputs = learning(model)
        out = model(**inputs, objective="generate")

        bars = torch.tensor([model._schedule.alphas_cumprod[step] for step in STEPS])
        assert torch.allclose(bars[[0, 1, 3]], BARS[[0, 1, 3]], rtol=1e-4)
        trust = bars if aux_weight == "alpha_bar" else torch.ones(4)
        seen = model.perceive(inputs)
        target = model.perceive({**tiny_batch(model.config)})
        given = model.conditioning(seen, inputs)
        assert given.evidence is not None
        latents = model.encode_observed(seen)
        sums = dict.fromkeys(("noise", "plan", "evidence"), 0.0)
        for name, row in (("audio", 0), ("text", 2), ("vision", 2), ("vision", 3)):
            executor, one = model.executors_by_name[name], slice(row, row + 1)
            losses, _, estimate = executor(
                model.encode_observed(target)[name][one],
                torch.tensor([STEPS[row]]),
                noises[name][one],
                model._schedule,
                given.observation[one],
                given.plan_tokens[one],
                given.evidence.values[name][one],
                target.masks[name][one],
            )
            sums["noise"] += losses["noise"].item()
            sums["plan"] += (trust[row] * losses["plan"]).item()
            sums["evidence"] += (trust[row] * losses["evidence"]).item()
            latents[name] = latents[name].index_copy(0, torch.tensor([row]), estimate)
        logits = model.classify(target, given, latents)
        labels = model.label_classes(inputs["labels"])
        assert labels.tolist() == [1, 3, 6, 2]
        cross_entropy = -logits.log_softmax(1)[torch.arange(4), labels]
        # The second sample misses nothing: its classes are no estimate.
        factors = torch.tensor([trust[0], 1.0, trust[2], trust[3]])
        costs = given.evidence.alignment_cost
        expected = {
            "noise": sums["noise"] / 4,
            "plan": sums["plan"] / 4,
            "evidence": sums["evidence"] / 4,
            "task": (factors * cross_entropy).mean().item(),
            "alignment": (costs[[0, 2, 3]].sum() / 3).item(),
        }
        assert {name: value.item() for name, value in out.losses.items()} == pytest.approx(expected, rel=1e-3)
        assert torch.allclose(out.class_logits, logits, rtol=1e-3, atol=1e-3)
        total = (
            expected["noise"]
            + 0.2 * expected["plan"]
            + 0.3 * expected["evidence"]
            + 0.5 * expected["task"]
            + 0.7 * expected["alignment"]
        )
        assert out.loss.item() == pytest.approx(total, rel=1e-3)

    def test_every_time_step_is_drawn_and_every_sample_has_its_own(self) -> None:
        model = fresh(num_train_timesteps=5, num_inference_steps=2).train()
        seen = model.perceive(tiny_batch(model.config, 64))
        targets = {name: torch.zeros(64, 6, 6) for name in MODALITIES}
        steps, noises = model._draws(seen, targets)
        assert set(steps.tolist()) == set(range(5))
        assert not torch.equal(noises["text"], noises["audio"]) and not torch.equal(
            noises["text"][0], noises["text"][1]
        )
        assert torch.cat([noise.flatten() for noise in noises.values()]).std() == pytest.approx(1, abs=0.05)

    def test_validation_draws_the_same_for_a_sample_wherever_it_stands(self) -> None:
        model = whole()
        inputs = learning(model)
        steps, noises = model._draws(model.perceive(inputs), {name: torch.zeros(4, 6, 6) for name in MODALITIES})
        order = [2, 0]
        moved = model._draws(
            model.perceive(picked(inputs, order)), {name: torch.zeros(2, 6, 6) for name in MODALITIES}
        )
        assert moved[0].tolist() == steps[order].tolist()
        assert all(torch.equal(moved[1][name], noises[name][order]) for name in MODALITIES)
        assert not torch.equal(noises["text"][0], noises["audio"][0])
        assert model(**inputs, objective="generate").loss == model(**inputs, objective="generate").loss

    def test_where_nothing_is_missing_the_classifier_reads_what_it_reads_in_predicting(self) -> None:
        """Parts of sequences that are dropped count for nothing in both."""
        model = whole().train()
        batch = tiny_batch(model.config)
        masks = {}
        for name in MODALITIES:
            real = batch["attention_mask" if name == "text" else f"{name}_attention_mask"].bool()
            masks[name] = torch.zeros_like(real)
            masks[name][:, 2:4] = real[:, 2:4]
        inputs = {**apply_missing(batch, {name: mask.numpy() for name, mask in masks.items()}, UNK), **some_vectors()}
        assert not model.perceive(inputs).lacking.any()
        out = model(**inputs, **complete(batch), labels=torch.zeros(4), objective="generate")
        assert torch.equal(out.class_logits, model(**inputs).class_logits)
        expected = F.cross_entropy(out.class_logits, torch.full((4,), 3))
        assert out.losses["task"] == pytest.approx(expected.item()), "nothing is weighted down"
        assert {name: out.losses[name].item() for name in ("noise", "plan", "evidence", "alignment")} == dict.fromkeys(
            ("noise", "plan", "evidence", "alignment"), 0.0
        )

    def test_it_learns_at_the_truth_s_length_whatever_that_of_the_form(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, losses = whole().train(), []
        rows: list[dict[str, Any]] = [{"id": f"s{i}", **row} for i, row in enumerate(tiny_rows(model.config))]
        for length in (2, 11):
            processor = tiny_processor(model.config)
            processor.missing_lengths = {"text": length, "audio": length, "vision": length}
            batch = MsaCollator(processor, FixedPattern(("vision",)), return_complete=True)(rows)
            assert (batch["audio_attention_mask"].sum(1) == length).all()
            fixed_draws(model, monkeypatch, STEPS)
            inputs = {key: batch[key] for key in (*INPUT_KEYS, "labels")}
            losses.append(model(**inputs, **some_vectors(), objective="generate").losses)
        assert len(losses[0]) == 5
        for name, value in losses[0].items():
            assert torch.allclose(value, losses[1][name], atol=1e-5), name

    def test_what_a_sample_never_had_is_not_learned_and_the_evidence_stands_in(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = whole().train()
        fixed_draws(model, monkeypatch, STEPS)
        rows = tiny_rows(model.config)
        rows[3] = {**rows[3], "audio_present": False}
        batch = tiny_processor(model.config).from_rows(rows)
        inputs = {**batch, **complete(batch), **some_vectors(), "labels": torch.zeros(4)}
        inputs["complete_audio_attention_mask"] = batch["audio_attention_mask"] * torch.tensor([[1], [1], [1], [0]])
        out = model(**inputs, objective="generate")
        assert out.losses["noise"] == 0 and out.losses["plan"] == 0
        seen = model.perceive(batch)
        given = model.conditioning(seen, inputs)
        assert given.evidence is not None
        latents = model.encode_observed(seen)
        latents["audio"] = torch.cat([latents["audio"][:3], given.evidence.values["audio"][3:]])
        assert torch.allclose(out.class_logits, model.classify(seen, given, latents), atol=1e-5)
        expected = F.cross_entropy(out.class_logits, torch.full((4,), 3))
        assert out.losses["task"] == pytest.approx(expected.item()), "there is no estimate in it to distrust"
        assert out.losses["alignment"] == pytest.approx(given.evidence.alignment_cost[3].item())
        # With a modality dropped beside it there is one.
        inputs = {
            **drop(batch, (), (), (), ("vision",)),
            **complete(batch),
            **some_vectors(),
            "labels": torch.zeros(4),
        }
        both = model(**inputs, objective="generate")
        assert both.losses["noise"] > 0
        assert both.losses["task"] < both.class_logits[:3].log_softmax(1)[:, 3].neg().sum() / 4 + 1e-2

    def test_states_that_are_given_are_those_of_the_complete_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = whole().train()
        fixed_draws(model, monkeypatch, STEPS)
        inputs = learning(model)
        states = model.encode_text(inputs["complete_input_ids"], inputs["attention_mask"])
        found = model(**inputs, text_states=states, objective="generate").losses
        assert found == pytest.approx(
            {k: v.item() for k, v in model(**inputs, objective="generate").losses.items()}, rel=1e-4
        )

    def test_who_learns(self) -> None:
        model = whole().train()
        train_only(model, "denoiser", "alignment", "retriever", "fusion")
        model(**learning(model), objective="generate").loss.backward()
        learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert {name.split(".")[2] for name in learns if name.startswith("executors")} == {"denoiser", "alignment"}
        assert {name.split(".")[0] for name in learns} == {"executors", "retriever", "fusion"}
        assert learns == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        silent = {name for name in learns if not model.get_parameter(name).grad.any()}
        # Attention to a single plan vector does not depend on what asks.
        assert all(".plan_attention." in name for name in silent), silent

    @pytest.mark.parametrize("lost", [((), ()), (("audio",), ("audio",)), (("audio", "vision"), ("text",))])
    def test_every_part_is_in_the_graph_of_every_batch(self, lost: tuple[tuple[str, ...], ...]) -> None:
        """Several processes wait for the gradients of all parameters."""
        model = whole().train()
        train_only(model, "denoiser", "alignment", "retriever", "fusion")
        model(**learning(model, lost), objective="generate").loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())
        for name in MODALITIES:
            learned = any(grad.any() for key, grad in grads.items() if key.startswith(f"executors.{name}.denoiser"))
            assert learned == any(name in names for names in lost)

    @pytest.mark.parametrize("injection", ["single_stream", "hierarchical", "reversed", "concat"])
    def test_only_in_a_single_stream_no_gradient_of_the_plan_comes_through_the_denoiser(self, injection: str) -> None:
        model = fresh(
            injection=injection, retrieval_query="content", plan_loss_weight=0.0, alignment_loss_weight=0.0
        ).train()
        give_base(model)
        inputs = learning(model)
        inputs["plan_vectors"].requires_grad_()
        model(**inputs, objective="generate").loss.backward()
        grad = inputs["plan_vectors"].grad
        assert (grad is not None and bool(grad.any())) == (injection != "single_stream")

    def test_labels_and_complete_inputs_are_needed(self) -> None:
        model = whole()
        inputs = learning(model)
        for name in ("labels", "complete_audio_values"):
            with pytest.raises(ValueError, match="return_complete=True"):
                model(**{key: value for key, value in inputs.items() if key != name}, objective="generate")

    def test_autoencoders_and_semantics_learn_from_what_is_there(self) -> None:
        model = fresh()
        train_only(model, "vae", "semantics")
        batch, plans = drop(tiny_batch(model.config), *LOST), unit(4, seed=7)
        out = model(**batch, plan_vectors=plans, objective="pretrain")
        seen, expected, total = model.perceive(batch), {}, 0.0
        for name, executor in model.executors_by_name.items():
            rows = seen.available[name]
            values, masks = seen.values[name][rows], seen.masks[name][rows]
            reconstruction, kl = executor.vae(values, masks)
            distance = 1 - F.cosine_similarity(executor.semantics(values, masks), plans[rows])
            expected |= {f"reconstruction_{name}": reconstruction.item(), f"kl_{name}": kl.item()}
            expected[f"semantics_{name}"] = distance.mean().item()
            total += (reconstruction + 1e-4 * kl + distance.mean()).item()
        assert {name: value.item() for name, value in out.losses.items()} == pytest.approx(expected, rel=1e-4)
        assert out.loss.item() == pytest.approx(total, rel=1e-4)
        out.loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        with pytest.raises(ValueError, match="give plan_vectors"):
            model(**batch, objective="pretrain")

    @pytest.mark.parametrize("objective", ["pretrain", "generate", None])
    def test_half_precision_will_do(self, objective: str | None) -> None:
        """As on a GPU: weights in full, what is computed of them in bfloat16."""
        model = whole().train()
        inputs = learning(model, own_entries=torch.tensor([0, -1, 2, 3]))
        exact = model(**inputs, objective=objective).loss
        with torch.autocast("cpu", torch.bfloat16):
            out = model(**inputs, objective=objective)
        out.loss.backward()
        assert torch.isfinite(out.loss)
        if objective != "generate":
            assert out.loss.item() == pytest.approx(exact.item(), rel=0.1)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        with torch.autocast("cpu", torch.bfloat16):
            made = model.eval().generate_missing(inputs)
        assert all(torch.isfinite(value).all() for value in made.values.values())


class TestPlanning:
    def test_forward_takes_what_the_planner_found(self) -> None:
        model = whole(plan_tokens="per_constraint")
        processor, rows = tiny_processor(model.config), tiny_rows(model.config)
        batch = drop(processor.from_rows(rows), *LOST)
        plans, vectors = model.plan_inputs(batch, rows, processor)
        assert plans is not None
        expected = model.planner(processor).plan(observe_rows(rows, batch, processor))
        assert [plan.plan for plan in plans] == [plan.plan for plan in expected]
        for index, plan in enumerate(expected):
            assert np.array_equal(vectors["plan_vectors"][index], plan.plan_vector)
            assert np.array_equal(vectors["observation_vectors"][index], plan.observation_vector)
            assert plan.constraint_vectors is not None
            assert np.array_equal(vectors["constraint_vectors"][index], plan.constraint_vectors)
        out = model.predict_rows(batch, rows, processor)
        assert torch.equal(out.logits, model(**batch, **vectors).logits)
        assert out.planned_score.squeeze(1).tolist() == [float(plan.plan.score) for plan in expected]

    def test_a_plan_that_fell_back_is_marked(self) -> None:
        model = fresh(condition_dim=2)
        good = "Entity: he; Action: laughs; Sentiment: positive"
        script = lambda request: says((good if "Words" in request.prompt else "No idea.", [-1.0]))(request)  # noqa: E731
        model.set_planner(MllmPlanner(ScriptedMllm(script), model.config))
        processor, rows = tiny_processor(model.config), tiny_rows(model.config)
        out = model.predict_rows(drop(processor.from_rows(rows), *LOST), rows, processor)
        assert out.fallback_plan.squeeze(1).tolist() == [0.0, 0.0, 1.0, 0.0]
        assert out.planned_score.squeeze(1).tolist() == [2.0, 2.0, 0.0, 2.0]

    def test_without_a_planner_it_says_so(self) -> None:
        model = fresh()
        rows, processor = tiny_rows(model.config), tiny_processor(model.config)
        with pytest.raises(ValueError, match=r"no planner: there is no planner\.json") as error:
            model.predict_rows(processor.from_rows(rows), rows, processor)
        assert "\n" not in str(error.value)
        mllm = fresh(planner="mllm")
        mllm.planner_values = {"kind": "mllm", "centering": None, "verbalizer": None, "adapter": None}
        with pytest.raises(ValueError, match="names no planner; load it with planner_model="):
            mllm.predict_rows(processor.from_rows(rows), rows, processor)

    def test_another_kind_of_planner_than_the_configuration_names_is_refused(self, tmp_path: Path) -> None:
        whole().save_pretrained(tmp_path)
        model = OmgForSentimentAnalysis.from_pretrained(tmp_path, planner="mllm", planner_model="somewhere")
        with pytest.raises(ValueError, match="is of the kind 'light', but the configuration says planner='mllm'"):
            model.planner(tiny_processor(model.config))

    def test_a_planner_is_not_moved_to_a_server_or_from_one(self) -> None:
        """The vectors that all was trained with would be others."""
        server = {"planner_kind": "endpoint", "planner_lora": False}
        for options, vectors in ((server, "planner"), (server, None), ({}, "text_encoder")):
            model = fresh(planner="mllm", planner_model="http://127.0.0.1:1/v1", **options)
            model.planner_values = {"kind": "mllm", "vectors": vectors}
            with pytest.raises(ValueError, match="load the checkpoint with the planner_kind that it was trained with"):
                model.planner(tiny_processor(model.config))

    def test_vectors_of_texts_are_means_over_their_tokens(self) -> None:
        model = fresh()
        tokenizer = tiny_processor(model.config).tokenizer
        texts = ["a great film", "what a dull dull plot it was", "good"]
        found = model.embed_texts(tokenizer, texts)
        for text, vector in some(zip(texts, found, strict=True)):
            ids = torch.tensor(
                [[VOCABULARY["[CLS]"], *(VOCABULARY[word] for word in text.split()), VOCABULARY["[SEP]"]]]
            )
            expected = model.encode_text(ids, torch.ones_like(ids)).mean(1).squeeze(0)
            assert np.allclose(vector, expected.detach(), atol=1e-5)

    def test_long_texts_are_cut_at_what_the_encoder_reads(self) -> None:
        """RoBERTa's positions begin at 2: of 18 it can use 16, which its tokenizer says."""
        roberta = {**fresh().config.text_config.to_dict(), "model_type": "roberta", "max_position_embeddings": 18}
        model = fresh(text_config={**roberta, "pad_token_id": 1})
        tokenizer = tiny_processor(model.config).tokenizer
        tokenizer.model_max_length = 16
        assert np.isfinite(model.embed_texts(tokenizer, ["great " * 50])).all()


class TestFiles:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_weights_of_half_the_bits_plan_retrieve_and_generate(self, tmp_path: Path, dtype: torch.dtype) -> None:
        model = whole(plan_tokens="per_constraint")
        processor, rows = tiny_processor(model.config), tiny_rows(model.config)
        batch = drop(processor.from_rows(rows), *LOST)
        model.to(dtype).save_pretrained(tmp_path)
        loaded = OmgForSentimentAnalysis.from_pretrained(tmp_path).eval()
        scores, made = (
            loaded.predict_rows(batch, rows, processor).logits,
            loaded.generate_missing(batch, rows, processor),
        )
        assert loaded.dtype == dtype and torch.isfinite(scores).all()
        assert all(torch.isfinite(values).all() for values in made.values.values())
        again = OmgForSentimentAnalysis.from_pretrained(tmp_path).eval().predict_rows(batch, rows, processor)
        assert torch.equal(again.logits, scores)

    def test_a_saved_model_plans_retrieves_and_predicts_the_same_bits(self, tmp_path: Path) -> None:
        model = whole(plan_tokens="per_constraint")
        processor, rows = tiny_processor(model.config), tiny_rows(model.config)
        rows[1] = {**rows[1], "audio_present": False}
        batch = drop(processor.from_rows(rows), *LOST)
        expected, made = model.predict_rows(batch, rows, processor), model.generate_missing(batch, rows, processor)
        model.save_pretrained(tmp_path / "first")
        assert {path.name for path in (tmp_path / "first").iterdir() if not path.name.endswith(".py")} == {
            "config.json",
            "hf_msa_files.json",
            "knowledge_base",
            "model.safetensors",
            "planner.json",
        }
        loaded = OmgForSentimentAnalysis.from_pretrained(tmp_path / "first")
        # Saved again before anything was asked of it.
        loaded.save_pretrained(tmp_path / "second")
        for folder in ("first", "second"):
            again = OmgForSentimentAnalysis.from_pretrained(tmp_path / folder)
            out = again.predict_rows(batch, rows, processor)
            assert torch.equal(out.logits, expected.logits) and torch.equal(out.planned_score, expected.planned_score)
            assert again.generate_missing(batch, rows, processor).evidence_ids == made.evidence_ids
        for name in ("planner.json", "model.safetensors"):
            assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()

    def test_a_planner_that_was_used_is_saved_as_it_was_fitted(self, tmp_path: Path) -> None:
        model = whole()
        model.save_pretrained(tmp_path / "first")
        loaded = OmgForSentimentAnalysis.from_pretrained(tmp_path / "first")
        loaded.planner(tiny_processor(model.config))
        loaded.save_pretrained(tmp_path / "second")
        first, second = (json.loads((tmp_path / name / "planner.json").read_text()) for name in ("first", "second"))
        assert first == second and first["kind"] == "light"

    def test_saving_over_itself_keeps_everything(self, tmp_path: Path) -> None:
        model = whole()
        model.save_pretrained(tmp_path)
        loaded = OmgForSentimentAnalysis.from_pretrained(tmp_path)
        assert len(base_of(loaded)) == ENTRIES
        loaded.save_pretrained(tmp_path)
        again = OmgForSentimentAnalysis.from_pretrained(tmp_path)
        assert base_of(again).ids == [f"train-{i}" for i in range(ENTRIES)]
        assert again.planner_values == loaded.planner_values

    def test_a_fresh_model_has_neither(self, tmp_path: Path) -> None:
        model = fresh()
        model.save_pretrained(tmp_path)
        assert not (tmp_path / "knowledge_base").exists() and not (tmp_path / "planner.json").exists()
        loaded = OmgForSentimentAnalysis.from_pretrained(tmp_path)
        assert loaded.knowledge_base is None and loaded.planner_values is None

    def test_another_knowledge_base_may_be_put_in_its_place(self, tmp_path: Path) -> None:
        model = whole()
        batch = {**drop(tiny_batch(model.config), *LOST), **some_vectors()}
        before = model(**batch).logits
        give_base(model, seed=9)
        base_of(model).save(tmp_path / "other")
        other = model(**batch).logits
        assert not torch.allclose(before[0], other[0], atol=1e-5) and torch.equal(before[1], other[1])
        model.knowledge_base = KnowledgeBase.load(tmp_path / "other")
        assert torch.equal(model(**batch).logits, other)

    def test_an_adapter_goes_with_the_checkpoint(self, tmp_path: Path) -> None:
        adapter = tmp_path / "lora"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text("{}")
        (adapter / "adapter_model.safetensors").write_bytes(b"weights")
        (adapter / "optimizer.pt").write_bytes(b"not this")
        model = fresh(planner="mllm", planner_model="somewhere")
        assert model.adapter_folder() is None
        model.set_adapter_folder(adapter)
        model.save_pretrained(tmp_path / "first")
        OmgForSentimentAnalysis.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
        copied = tmp_path / "second" / "adapter"
        assert {path.name for path in copied.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        assert (copied / "adapter_model.safetensors").read_bytes() == b"weights"
        frozen = OmgForSentimentAnalysis.from_pretrained(tmp_path / "first", planner_lora=False)
        assert frozen.adapter_folder() is None


class TestConfiguration:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"top_k": 0}, "top_k must be at least 1"),
            (
                {"planner": "mllm", "planner_kind": "endpoint"},
                "A server loads its model itself: set planner_lora to False",
            ),
            ({"planner_timeout": 0}, "planner_timeout must be above 0"),
            ({"planner_key_variable": "sk-key"}, "planner_key_variable must be the name of an environment variable"),
            ({"task_loss_weight": -0.1}, "task_loss_weight must be at least 0"),
            ({"retrieval_temperature": 0.0}, "retrieval_temperature must be above 0"),
            ({"num_inference_steps": 1001}, "must be at most 1000, got 1001, as the noise schedule"),
            ({"task_loss_weight": 0.0, "refit_classifier": False}, "leave refit_classifier on"),
            ({"denoiser_layers": 5}, "the first two must be even"),
            ({"denoiser_dim": 18, "denoiser_heads": 4}, "the second a multiple of the third"),
            ({"injection": "both"}, "injection"),
            ({"plan_temperature": 0.0}, "plan_temperature must be above 0"),
            ({"plan_top_p": 1.1}, "plan_top_p must be above 0 and at most 1"),
            ({"num_candidates": 0}, "num_candidates must be at least 1"),
            ({"log_prob": "max"}, "log_prob"),
            ({"index_factory": "IVF2,Flat", "index_nprobe": 0}, "index_nprobe must be at least 1"),
            ({"index_ef_search": 4}, "are for an index; name it by index_factory"),
        ],
    )
    def test_values_that_make_no_sense_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(StrictDataclassError, match=message):
            tiny_omg_config(**options)

    def test_classes_have_names(self) -> None:
        config = tiny_omg_config()
        assert len(config.class_names) == 7 and config.class_names[::3] == (
            "strongly_negative", "neutral", "strongly_positive",
        )  # fmt: skip
        sims = tiny_omg_config(label_family="sims")
        assert len(sims.class_names) == 5 and sims.family.classes["neutral"] == 0.0
        assert OmgConfig.from_dict(sims.to_dict()).class_names == sims.class_names

    def test_positions(self) -> None:
        config = tiny_omg_config(sequence_length=10, audio_max_length=4)
        assert [config.positions(name) for name in MODALITIES] == [10, 4, 10]

    def test_what_an_expert_is_given(self) -> None:
        assert fresh().language_model_input is None
        model = fresh(planner="mllm")
        assert model.language_model_input == "transcript"
        clips = [{"audio": np.arange(4.0).reshape(2, 2)}]
        for names, found in ((None, "transcript"), (("pitch", "energy"), "words")):
            said = MsaVerbalizer.fit(clips, {"audio": names, "vision": None})
            model.planner_values = {"verbalizer": said.to_dict()}
            assert model.language_model_input == found
        model.media = lambda row: {}
        assert model.language_model_input == "media"
        assert fresh(planner="mllm", use_verbalizer=False).language_model_input == "transcript"


def test_perceptions_know_how_many_they_are() -> None:
    model = fresh()
    assert isinstance(seen := model.perceive(tiny_batch(model.config, 3)), Perception) and len(seen) == 3


def test_the_text_encoder_never_drops_out() -> None:
    model = fresh().train()
    assert model.training and not model.text_encoder.training
    assert not any(parameter.requires_grad for parameter in model.text_encoder.parameters())
