"""Training of OMG-Agent: what each stage may see and change, what is kept, and runs that break off anywhere."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import hf_msa.training.omg.stages as stages_omg
from hf_msa.data.loading import load_split
from hf_msa.data.missing import CompleteProtocol
from hf_msa.data.rows import MsaRows
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.evaluation.sweep import masked_batches
from hf_msa.methods import METHODS
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_executor import LatentVae
from hf_msa.models.omg_knowledge_base import KnowledgeBase
from hf_msa.models.omg_light_planner import LightPlanner, tokenize
from hf_msa.models.omg_observation import observe_rows
from hf_msa.models.omg_planner import _ENCODER_TEXTS
from hf_msa.training.omg.planners import fit_centering, fit_light_planner
from hf_msa.training.omg.plans import (
    CompleteObservations,
    PlannedRows,
    is_partial,
    observed_patterns,
    part_of,
    patterns,
)
from hf_msa.training.omg.stages import OmgTrainer, cross_fitted
from hf_msa.training.recipes import load_recipe
from hf_msa.training.shared_stages import SharedStages, _key
from hf_msa.training.stages import RunContext, prepare_run, run_recipe
from loopback_mllm_server import Server, completion, token
from nonempty import some
from tiny import tiny_omg_config
from tiny_mllm import tiny_mllm_processor, tiny_thinker

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
QUIET = {"disable_tqdm": True, "use_cpu": True}
TRAINED = ("vae", "main", "classifier_after")
SMALL = [
    *("model.denoiser_dim=16", "model.denoiser_layers=2", "model.denoiser_heads=2", "model.num_inference_steps=3"),
    *("model.denoiser_feedforward_dim=16", "model.vae_hidden=8", "model.latent_dim=8", "model.fusion_dim=8"),
    *("model.query_dim=8", "model.top_k=3", "missing.selection_repeats=1", "stages.all.per_device_train_batch_size=8"),
    *(f"stages.{stage}.num_train_epochs=1" for stage in (*TRAINED, "classifier")),
]
ABSENT = (2, 7)
"""Training rows without audio."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of this module's own: other tests change the text encoder of theirs."""
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7, version=1)


@pytest.fixture(scope="module")
def few(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, MsaRows]:
    """Twenty training and six validation rows, two of the former without audio."""
    context = prepare_run(load_recipe("omg/sample"), str(corpus), tmp_path_factory.mktemp("few"), 1, QUIET)
    rows = {}
    for split, count in (("train", 20), ("validation", 6)):
        data = load_split(str(corpus), split).select(range(count)).flatten_indices()
        there = [not (split == "train" and index in ABSENT) for index in range(count)]
        data = data.remove_columns([name for name in data.column_names if name == "audio_present"])
        data = data.add_column("audio_present", there)
        rows[split] = MsaRows(data, split, context.processor.tokenizer, context.processor.text_max_length)
    return rows


def whole_run(
    corpus: Path,
    folder: Path,
    rows: dict[str, MsaRows],
    *assignments: str,
    ablation: str | None = None,
    seed: int = 1,
    shared: Path | None = None,
    rate: float | None = None,
    flags: dict[str, Any] | None = None,
    stages_from: Path | None = None,
) -> RunContext:
    recipe = load_recipe("omg/sample", ablation=ablation, assignments=[*SMALL, *assignments], train_rate=rate)
    return run_recipe(
        recipe, str(corpus), folder, seed, {**QUIET, **(flags or {})}, rows, shared=shared, stages_from=stages_from
    )


def weights(context: RunContext, stage: str) -> dict[str, torch.Tensor]:
    return load_file(context.stage_folder(stage) / "model" / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Which parts of the model differ."""
    names = {name for name in before if not torch.equal(before[name], after[name])}
    return {".".join(name.split(".")[:3:2] if name.startswith("executors") else name.split(".")[:1]) for name in names}


class Watch:
    """What was retrieved in training, and for whom."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.retrieved: dict[str, int] = {}
        self.own = 0
        self.projections: list[float] = []
        self.current = 0
        self.planned = 0
        self._rows: list[int] = []
        self._objective = ""
        inputs, conditioning = OmgTrainer.model_inputs, OmgForSentimentAnalysis.conditioning
        plan_vectors = PlannedRows.vectors

        def model_inputs(trainer: OmgTrainer, batch: Any, training: bool) -> Any:
            base = trainer.model.knowledge_base
            ids = [trainer.train_rows.ids[index] for index in batch["sample_index"].tolist()] if training else []
            self._rows = [] if base is None else base.rows_of(ids).tolist()
            self._objective = str(trainer._objective)
            return inputs(trainer, batch, training)

        def retrieving(model: OmgForSentimentAnalysis, *args: Any, **kwargs: Any) -> Any:
            given = conditioning(model, *args, **kwargs)
            found = given.evidence
            if model.training and found is not None:
                self.retrieved[self._objective] = self.retrieved.get(self._objective, 0) + len(found.entries)
                own = torch.tensor(self._rows).unsqueeze(1)
                self.own += int(((found.entries == own) & (own >= 0)).sum())
                if self._objective == "generate":
                    self.projections.append(model.retriever.projection.weight.detach().sum().item())
                    base = base_of(model)
                    itself = model.retriever(base.observations, base.plans, base)
                    self.current += bool(torch.allclose(itself.similarities[:, 0], torch.ones(len(base)), atol=1e-5))
            return given

        def planning(planned: PlannedRows, *args: Any, always: bool = False) -> Any:
            self.planned += not always
            return plan_vectors(planned, *args, always=always)

        patch.setattr(OmgTrainer, "model_inputs", model_inputs)
        patch.setattr(OmgForSentimentAnalysis, "conditioning", retrieving)
        patch.setattr(PlannedRows, "vectors", planning)


@pytest.fixture(scope="module")
def watched(
    corpus: Path, few: dict[str, MsaRows], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunContext, Watch]:
    """A run of two epochs in the main stage, and what happened in it."""
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        return whole_run(corpus, tmp_path_factory.mktemp("run"), few, "stages.main.num_train_epochs=2"), watch


@pytest.fixture(scope="module")
def run(watched: tuple[RunContext, Watch]) -> RunContext:
    return watched[0]


def loaded(context: RunContext) -> OmgForSentimentAnalysis:
    model = AutoModel.from_pretrained(context.folder)
    assert isinstance(model, OmgForSentimentAnalysis)
    return model


def base_of(model: OmgForSentimentAnalysis) -> KnowledgeBase:
    assert model.knowledge_base is not None
    return model.knowledge_base


def text_states(context: RunContext, model: OmgForSentimentAnalysis) -> list[torch.Tensor]:
    """Of each complete training row, by itself."""
    found = []
    for index in range(len(context.rows["train"])):
        ids = torch.from_numpy(context.rows["train"][index]["input_ids"].copy()).unsqueeze(0)
        found.append(model.encode_text(ids, torch.ones_like(ids)).squeeze(0).detach())
    return found


class TestWhatARunGives:
    def test_all_stages(self, run: RunContext) -> None:
        facts = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
        names = ["plans", "vae", "knowledge_base", "main", "classifier_after"]
        assert [stage["name"] for stage in facts["stages"]] == names
        assert facts["selection"]["stage"] == "main" and facts["language_model_input"] is None
        plans = facts["stages"][0]
        assert plans["planner"] == "light planner"
        counts = {split: len(names) for split, names in plans["patterns"].items()}
        assert counts == {"train": 7, "validation": 7}
        assert facts["stages"][2]["entries"] == 20 - len(ABSENT)
        history = facts["stages"][3]["history"]
        logged = {"loss_noise", "loss_plan", "loss_evidence", "loss_task", "loss_alignment", "eval_loss"}
        assert logged <= {name for entry in history for name in entry}

    def test_the_checkpoint_plans_retrieves_and_predicts(self, run: RunContext) -> None:
        model, rows = loaded(run), [run.rows["validation"][index] for index in range(4)]
        given = run.collator("validation")(rows)
        batch = {name: given[name] for name in given if name.endswith(("_values", "_mask", "_ids"))}
        out = model.predict_rows(batch, rows, run.processor)
        assert torch.isfinite(out.logits).all() and out.planned_score.shape == (4, 1)
        assert model(**batch, labels=given["labels"]).loss.isfinite()

    def test_each_stage_changes_its_own_part(self, run: RunContext) -> None:
        vae, main, after = (weights(run, stage) for stage in TRAINED)
        assert changed(vae, main) == {"executors.denoiser", "executors.alignment", "retriever", "fusion"}
        assert changed(main, after) == {"fusion"}
        assert not changed(after, load_file(run.folder / "model.safetensors"))
        fresh = run.new_model(OmgForSentimentAnalysis).state_dict()
        assert changed(fresh, vae) == {"executors.vae", "executors.semantics", "text_mean", "text_std"}

    def test_latents_of_the_training_split_are_scaled(self, run: RunContext) -> None:
        model = loaded(run)
        base = base_of(model)
        lengths = run.rows["train"].lengths["vision"]
        assert model.config.vision_max_length > 50, (
            "so that all are averaged to 50 positions, and all latents are real"
        )
        masks = torch.ones(20, model.config.positions("vision"), dtype=torch.bool)
        values = base.values["vision"]
        assert LatentVae.latent_mask(masks).shape[1] == values.shape[1] and len(lengths) == 20

    def test_text_is_standardised_by_the_training_split(self, run: RunContext) -> None:
        model = loaded(run)
        states = torch.cat(text_states(run, model))
        assert torch.allclose(model.text_mean, states.mean(0), atol=1e-3)
        assert torch.allclose(model.text_std, states.std(0, correction=0), atol=1e-3)

    def test_latents_of_the_training_split_are_centred_and_of_unit_deviation(self, run: RunContext) -> None:
        model = loaded(run)
        real: dict[str, list[torch.Tensor]] = {}
        train = run.rows["train"]
        for batch in masked_batches(model, run.processor, train, [CompleteProtocol()], "latents"):
            perception = model.perceive(batch.complete)
            for name, latents in model.encode_observed(perception).items():
                real.setdefault(name, []).append(latents[LatentVae.latent_mask(perception.masks[name])])
        assert set(real) == {"text", "audio", "vision"}
        for parts in real.values():
            latents = torch.cat(parts)
            assert torch.allclose(latents.mean(0), torch.zeros(latents.shape[1]), atol=1e-4)
            assert latents.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-4)


class TestKnowledgeBase:
    def test_holds_complete_training_rows_alone(self, run: RunContext) -> None:
        ids = run.rows["train"].ids
        assert base_of(loaded(run)).ids == [name for row, name in enumerate(ids) if row not in ABSENT]
        assert set(run.rows) == {"train", "validation"} and not set(ids) & set(run.rows["validation"].ids)

    def test_values_are_the_rows_latents(self, run: RunContext) -> None:
        model, rows = loaded(run), [run.rows["train"][index] for index in range(2)]
        batch = run.complete_collator("train")(rows)
        latents = model.encode_observed(model.perceive(batch))
        for name, values in some(latents.items()):
            # The text's states were rounded to half precision on their way.
            assert np.allclose(base_of(model).values[name][:2], values, atol=2e-2)

    def test_plans_and_observations_are_those_of_the_complete_rows(self, run: RunContext) -> None:
        model = loaded(run)
        rows = [run.rows["train"][index] for index in (0, 1, 3)]
        choices, _ = model.plan_inputs({}, rows, run.processor)
        assert choices is not None
        for place, (row, choice) in enumerate(zip(rows, choices, strict=True)):
            entry = base_of(model).ids.index(row["id"])
            assert entry == place
            assert np.allclose(base_of(model).plans[entry], choice.plan_vector, atol=2e-3)
            assert np.allclose(base_of(model).observations[entry], choice.observation_vector, atol=2e-3)

    def test_is_saved_with_the_checkpoint_alone(self, run: RunContext) -> None:
        folders = {path.parent.relative_to(run.folder) for path in run.folder.rglob("entries.safetensors")}
        assert folders == {Path("knowledge_base"), Path("stages/knowledge_base/knowledge_base")}

    def test_each_step_retrieves_with_the_keys_of_its_weights(self, watched: tuple[RunContext, Watch]) -> None:
        _, watch = watched
        # In each of six steps the projection was another one, and an entry was always its own nearest neighbour.
        assert len(set(watch.projections)) == 6 and watch.current == 6

    def test_nobody_retrieves_its_own_entry_in_training(self, watched: tuple[RunContext, Watch]) -> None:
        _, watch = watched
        assert watch.retrieved["generate"] == 2 * 20
        assert watch.retrieved["None"] == 20, "the classifier"
        assert watch.own == 0

    def test_data_without_a_complete_row_is_refused(
        self, corpus: Path, few: dict[str, MsaRows], tmp_path: Path
    ) -> None:
        data = few["train"]._dataset
        for name, there in (("audio", True), ("vision", False)):
            data = data.remove_columns([column for column in data.column_names if column == f"{name}_present"])
            data = data.add_column(f"{name}_present", [there] * 10 + [not there] * 10)
        tokenizer = prepare_run(load_recipe("omg/sample"), str(corpus), tmp_path / "p", 1, QUIET).processor.tokenizer
        rows = {**few, "train": MsaRows(data, "train", tokenizer, 50)}
        with pytest.raises(MsaError, match="no probe for text and audio and vision"):
            whole_run(corpus, tmp_path / "run", rows)


class TestPlanner:
    def test_is_fitted_to_the_training_split(self, run: RunContext) -> None:
        model, rows = loaded(run), run.rows["train"]
        seen = observe_rows([rows[index] for index in range(20)], None, run.processor)
        planner = model.planner(run.processor)
        assert isinstance(planner, LightPlanner)
        again = fit_light_planner(seen, rows.labels.tolist(), planner.encode, planner.config, planner.verbalizer)
        fit_centering(again, seen, 1)
        first, second = planner.to_dict(), again.to_dict()
        assert first["lexicon"] == second["lexicon"]
        assert set(planner.lexicon.words) == {word for part in seen for word in tokenize(part.transcript or "")}
        for one, other in zip(first["probes"], second["probes"], strict=True):
            assert np.allclose(one["weights"], other["weights"], atol=1e-4)
        for name, mean in first["centering"].items():
            assert np.allclose(mean, second["centering"][name], atol=1e-3)

    def test_neither_its_fit_nor_its_texts_read_validation_rows(
        self, run: RunContext, corpus: Path, few: dict[str, MsaRows], tmp_path: Path
    ) -> None:
        context = prepare_run(run.recipe, str(corpus), tmp_path / "seed-1", 1, QUIET, few)
        context.rows = {"train": few["train"]}
        model = context.new_model(OmgForSentimentAnalysis).eval()
        values = stages_omg.fit_planner(context, model).to_dict()
        assert values["lexicon"] == json.loads((run.folder / "planner.json").read_text(encoding="utf-8"))["lexicon"]

    def test_what_was_found_is_not_asked_again_for_another_seed(
        self, corpus: Path, few: dict[str, MsaRows], run: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embed, asked = OmgForSentimentAnalysis.embed_texts, []

        def counted(model: OmgForSentimentAnalysis, tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
            asked.extend(text for text in texts if text not in _ENCODER_TEXTS)
            return embed(model, tokenizer, texts)

        monkeypatch.setattr(OmgForSentimentAnalysis, "embed_texts", counted)
        second = whole_run(corpus, run.folder.parent, few, "stages.main.num_train_epochs=2", seed=2)
        assert not asked
        assert second.folder.parent == run.folder.parent and (run.folder.parent / "answers").is_dir()
        assert changed(weights(run, "main"), weights(second, "main"))

    def test_rows_are_planned_for_as_they_are_when_the_model_predicts(self, run: RunContext) -> None:
        model, rows = loaded(run), run.rows["validation"]
        planned = PlannedRows(model, rows, run.processor)
        members = [{**rows[index], "draw": 3} for index in range(4)]
        batch = run.collator("validation")(members)
        there = observed_patterns(model.available(batch))
        assert any(len(names) < 3 for names in there) and not is_partial(batch, model.available(batch))
        found = planned([0, 1, 2, 3], there)
        _, expected = model.plan_inputs(batch, members, run.processor)
        assert found.keys() == expected.keys()
        for name, vectors in found.items():
            assert torch.allclose(vectors, expected[name], atol=1e-3)
            assert torch.equal(vectors, vectors.half().float())

    def test_training_rows_are_planned_for_by_planners_that_do_not_know_them(self, run: RunContext) -> None:
        model, rows = loaded(run), run.rows["train"]
        assert not cross_fitted(run, model)  # one part
        model.config.planner_folds = 3
        planners = cross_fitted(run, model)
        texts = [str(rows[index]["text"]) for index in range(len(rows))]
        for part, planner in enumerate(planners):
            assert isinstance(planner, LightPlanner) and planner.centering is not None
            own = {index for index in range(len(rows)) if part_of(index, len(rows), 3) == part}
            assert len(rows) // 3 <= len(own) <= len(rows) // 3 + 1
            known = {word for index in range(len(rows)) if index not in own for word in tokenize(texts[index])}
            assert planner.lexicon.words.keys() == known
        everything = patterns(model.config.modalities)[0]
        planned = PlannedRows(model, rows, run.processor, planners)
        mixed = [len(rows) - 1, 0, len(rows) // 2]  # not in the order of the parts
        found = planned(mixed, [everything] * 3)
        for row, index in enumerate(mixed):
            observation = CompleteObservations(model, rows, run.processor)[index]
            own = planners[part_of(index, len(rows), 3)].plan([observation])[0].plan_vector
            assert torch.allclose(found["plan_vectors"][row], torch.from_numpy(own), atol=1e-3)

    def test_a_row_is_planned_for_once(self, run: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
        model = loaded(run)
        planned, calls = PlannedRows(model, run.rows["validation"], run.processor), []
        plan = model.plan_observations
        monkeypatch.setattr(
            model, "plan_observations", lambda seen, *a, **k: calls.append(len(seen)) or plan(seen, *a, **k)
        )
        everything = patterns(model.config.modalities)
        planned.fill(everything[:2], "validation")
        assert calls == [12]
        planned([0, 5, 0], [everything[0], everything[1], everything[0]])
        assert calls == [12]
        planned([0, 0], [everything[2], everything[2]])
        assert calls == [12, 1]


class TestHelpers:
    def test_patterns(self) -> None:
        assert patterns(("text", "audio")) == [("text", "audio"), ("text",), ("audio",)]
        found = patterns(("text", "audio", "vision"))
        assert len(found) == 7 and found[0] == ("text", "audio", "vision") and ("text", "vision") in found

    def test_observed_patterns(self) -> None:
        available = {"text": torch.tensor([True, False]), "audio": torch.tensor([True, False])}
        assert observed_patterns(available) == [("text", "audio"), ()]

    def test_scales_by_hand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        vae = LatentVae(5, tiny_omg_config(latent_dim=2))
        monkeypatch.setattr(vae, "encode", lambda values, mask: (values, None))
        # Of the second sample, which has three positions less, the second latent is not real.
        means = torch.tensor([[[1.0, 10.0], [3.0, 10.0]], [[2.0, 10.0], [99.0, 99.0]]])
        mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
        perception = SimpleNamespace(values={"text": means}, masks={"text": mask})
        executors = {"text": SimpleNamespace(vae=vae)}
        model: Any = SimpleNamespace(
            config=SimpleNamespace(modalities=("text",)), executors_by_name=executors, perceive=lambda _: perception
        )
        monkeypatch.setattr(stages_omg, "masked_batches", lambda *_, **__: [SimpleNamespace(complete={})])
        stages_omg.fit_scales(model, None, None)
        assert vae.latent_mean.tolist() == [2.0, 10.0], "each channel has its own center"
        assert vae.latent_std.item() == pytest.approx((2 / 6) ** 0.5), "and all have one deviation"
        perception.values["text"] = torch.ones(2, 2, 2)
        with pytest.raises(MsaError, match="The latents of text in the training split do not vary"):
            stages_omg.fit_scales(model, None, None)

    def test_partial(self) -> None:
        mask = torch.tensor([[True, False], [False, False]])
        assert is_partial({"audio_missing_mask": mask}, {"audio": torch.tensor([True, True])})
        # Of the first nothing is left: it is missing as a whole.
        assert not is_partial({"audio_missing_mask": mask}, {"audio": torch.tensor([False, True])})
        assert not is_partial({"vision_missing_mask": mask}, {"audio": torch.tensor([True, True])})


class Broken(Exception):
    """What a run breaks off with."""


def failing(patch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool], after: bool = False) -> None:
    """Break off in a method the first time that `when` says so."""
    method = getattr(owner, name)

    def broken(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs) if after else None
        if when(*args, **kwargs):
            raise Broken
        return result if after else method(*args, **kwargs)

    patch.setattr(owner, name, broken)


def training(stage: str, step: int = 4) -> tuple[Any, str, Callable[..., bool], bool]:
    """Break off in a stage after so many steps, of which an epoch has three."""

    def when(trainer: OmgTrainer, *_: Any, **__: Any) -> bool:
        is_stage = Path(str(trainer.args.output_dir)).name == stage
        return is_stage and trainer.model.training and trainer.state.global_step >= step

    return OmgTrainer, "compute_loss", when, False


BREAKS: list[tuple[Any, str, Callable[..., bool], bool]] = [
    (stages_omg, "fit_planner", lambda *_: True, True),
    (PlannedRows, "fill", lambda planned, wanted, what: what == "validation", False),
    training("vae"),
    (stages_omg, "fit_scales", lambda *_: True, True),
    (KnowledgeBase, "save", lambda base, folder: "knowledge_base" in str(folder), False),
    training("main"),
    training("classifier_after"),
    (OmgForSentimentAnalysis, "save_pretrained", lambda model, folder, *_, **__: Path(folder).name == "seed-1", False),
]


def test_the_main_stage_goes_on_where_it_broke_off(
    corpus: Path, few: dict[str, MsaRows], run: RunContext, tmp_path: Path
) -> None:
    """Within an epoch, and between two."""
    flags = dict.fromkeys(("save_strategy", "eval_strategy"), "steps") | {"save_steps": 1, "eval_steps": 1}
    contexts = []
    for name, breaks in (("whole", ()), ("broken", (1, 3, 5))):
        shutil.copytree(run.folder.parent / "answers", tmp_path / name / "answers")

        def whole(folder: Path = tmp_path / name) -> RunContext:
            epochs = "stages.main.num_train_epochs=2"
            return whole_run(corpus, folder, few, epochs, shared=run.folder, flags=flags)

        for step in breaks:
            with pytest.MonkeyPatch.context() as patch:
                failing(patch, *training("main", step))
                with pytest.raises(Broken):
                    whole()
            checkpoints = tmp_path / name / "seed-1" / "stages" / "main"
            assert (checkpoints / f"checkpoint-{step}" / "complete.json").is_file()
        contexts.append(whole())
    plain, resumed = contexts
    assert plain.log[3]["epochs"] == 2
    for stage in ("main", "classifier_after"):
        assert not changed(weights(plain, stage), weights(resumed, stage)), stage
    one, other = base_of(loaded(plain)), base_of(loaded(resumed))
    assert torch.equal(one.plans, other.plans) and torch.equal(one.values["text"], other.values["text"])


@pytest.mark.slow
def test_a_run_that_breaks_off_in_every_stage_ends_as_one_that_does_not(
    corpus: Path, few: dict[str, MsaRows], tmp_path: Path
) -> None:
    epochs = [f"stages.{stage}.num_train_epochs=2" for stage in TRAINED]
    plain = whole_run(corpus, tmp_path / "whole", few, *epochs)
    for break_off in BREAKS:
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, *break_off)
            with pytest.raises(Broken):
                whole_run(corpus, tmp_path / "broken", few, *epochs)
                pytest.fail(f"nothing broke off in {break_off}")
    resumed = whole_run(corpus, tmp_path / "broken", few, *epochs)
    assert (plain.folder / "planner.json").read_bytes() == (resumed.folder / "planner.json").read_bytes()
    for stage in TRAINED:
        assert not changed(weights(plain, stage), weights(resumed, stage)), stage
    one, other = base_of(loaded(plain)), base_of(loaded(resumed))
    assert torch.equal(one.plans, other.plans) and torch.equal(one.values["text"], other.values["text"])


class TestProtocols:
    @pytest.mark.parametrize(
        ("protocol", "as_they_come"),
        [
            ("{name: modality, rate: 0.5}", False),
            ("{name: fixed, available: [audio]}", False),
            ("{name: complete}", False),
            ("{name: frame, rate: 0.5}", True),
        ],
    )
    def test_any_will_do(
        self,
        corpus: Path,
        few: dict[str, MsaRows],
        run: RunContext,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        protocol: str,
        as_they_come: bool,
    ) -> None:
        """Where parts of sequences are dropped, samples are planned for as they come."""
        watch = Watch(monkeypatch)
        missing = [f"missing.train={protocol}", f"missing.validation={protocol}"]
        context = whole_run(corpus, tmp_path, few, *missing, shared=run.folder)
        assert bool(watch.planned) == as_they_come and watch.own == 0
        assert changed(weights(run, "vae"), weights(context, "main"))
        history = [entry for entry in context.log[3]["history"] if "loss_noise" in entry]
        # Where no modality is dropped whole there is none to generate: what the absent audio was nobody knows.
        assert (history[-1]["loss_noise"] > 0) == ("modality" in protocol or "fixed" in protocol)

    def test_one_rate_after_the_other_shares_what_rates_have_no_part_in(
        self, corpus: Path, few: dict[str, MsaRows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = whole_run(corpus, tmp_path / "rate-0.0", few, rate=0.0)
        trained: list[str] = []
        train = OmgTrainer.train
        monkeypatch.setattr(
            OmgTrainer,
            "train",
            lambda trainer, *a, **k: trained.append(Path(trainer.args.output_dir).name) or train(trainer, *a, **k),
        )
        second = whole_run(corpus, tmp_path / "rate-0.7", few, rate=0.7, shared=first.folder)
        assert trained == ["main", "classifier_after"]
        facts = [json.loads((one.folder / "run.json").read_text(encoding="utf-8")) for one in (first, second)]
        assert [one["train_rate"] for one in facts] == [0.0, 0.7]
        assert not changed(weights(first, "vae"), weights(second, "vae"))
        assert changed(weights(first, "main"), weights(second, "main")) >= {"executors.denoiser", "fusion"}
        assert (first.folder / "planner.json").read_bytes() == (second.folder / "planner.json").read_bytes()


class TestSharedStages:
    """What one run made of the same things another one takes, and ends with the weights of one that took nothing."""

    def test_an_ablation_takes_what_it_does_not_change(
        self,
        corpus: Path,
        few: dict[str, MsaRows],
        run: RunContext,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        alone = whole_run(corpus, tmp_path / "alone", few, ablation="aux_weight_none")
        fitted: list[str | None] = []
        fit = OmgTrainer.fit
        monkeypatch.setattr(OmgTrainer, "fit", lambda trainer: fitted.append(trainer._objective) or fit(trainer))
        for name in ("encode_rows", "fit_planner", "compute_text_states"):
            monkeypatch.setattr(stages_omg, name, None)
        made = whole_run(corpus, tmp_path / "taking", few, ablation="aux_weight_none", stages_from=run.folder.parent)
        assert fitted == ["generate", None], "neither autoencoders nor anything before them"
        for file in ("model.safetensors", "knowledge_base/entries.safetensors", "planner.json"):
            assert (made.folder / file).read_bytes() == (alone.folder / file).read_bytes(), file
        facts = json.loads((made.folder / "run.json").read_text(encoding="utf-8"))
        taken = {stage["name"]: stage.get("taken_from") for stage in facts["stages"]}
        origin = f"{run.folder.parent.name}/seed-1"
        assert taken == dict.fromkeys(("plans", "main", "classifier_after")) | {
            "vae": origin,
            "knowledge_base": origin,
        }
        assert f"vae: taken from {origin}" in caplog.text

    def test_nothing_is_taken_that_was_made_of_something_else(
        self, corpus: Path, few: dict[str, MsaRows], run: RunContext, tmp_path: Path
    ) -> None:
        def keys(*assignments: str, seed: int = 1, rows: dict[str, MsaRows] = few) -> dict[str, str]:
            recipe = load_recipe("omg/sample", assignments=[*SMALL, *assignments])
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}" / f"seed-{seed}"
            context = prepare_run(recipe, str(corpus), folder, seed, QUIET, rows)
            model = context.new_model(OmgForSentimentAnalysis).eval()
            found = stages_omg.Dependencies(context, model)
            named = {"texts": found.texts, "planner": found.planner, "vae": found.autoencoders}
            return {name: _key(value) for name, value in named.items()}

        same = keys("stages.main.num_train_epochs=3", "model.top_k=5", "model.retrieval_aggregation=none")
        assert same == keys()
        other = keys(seed=2)
        assert other["texts"] == same["texts"]
        assert not set(other.values()) & {same["planner"], same["vae"]}
        assert keys("model.kl_weight=0.5")["vae"] != same["vae"]
        assert keys("stages.vae.learning_rate=0.5")["vae"] != same["vae"]
        shapes = keys("model.injection=concat")
        assert shapes["planner"] == same["planner"] and shapes["vae"] != same["vae"], "other initial weights"
        fewer = {**few, "train": few["validation"]}
        assert not set(keys(rows=fewer).values()) & set(same.values())

    def test_what_is_damaged_or_half_written_is_not_taken(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shared = SharedStages(tmp_path / "omg", "omg/seed-1")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "weights").write_bytes(b"1234")
        shared.give("vae", {"seed": 1}, tmp_path / "made", ["weights"], {"name": "vae", "seconds": 2.0})
        assert shared.take("vae", {"seed": 2}, tmp_path / "a") is None
        assert shared.take("vae", {"seed": 1}, tmp_path / "b") == {
            "name": "vae",
            "seconds": 2.0,
            "taken_from": "omg/seed-1",
        }
        assert (tmp_path / "b" / "weights").read_bytes() == b"1234"
        assert [file.name for file in (tmp_path / "b").iterdir()] == ["weights"]
        elsewhere = SharedStages(tmp_path / "other", "other/seed-1", tmp_path / "omg")
        assert elsewhere.take("vae", {"seed": 1}, tmp_path / "c") is not None
        (entry,) = (tmp_path / "omg" / "shared_stages").iterdir()
        (entry / "weights").write_bytes(b"1235")
        assert shared.take("vae", {"seed": 1}, tmp_path / "d") is None and not (tmp_path / "d").exists()
        assert "is damaged" in caplog.text
        (entry / "stage.json").unlink()
        assert shared.take("vae", {"seed": 1}, tmp_path / "e") is None
        shared.give("vae", {"seed": 1}, tmp_path / "made", ["weights"], {"name": "vae"})
        assert shared.take("vae", {"seed": 1}, tmp_path / "f") == {"name": "vae", "taken_from": "omg/seed-1"}

    def test_seeds_of_one_folder_share_states_of_texts(
        self, corpus: Path, few: dict[str, MsaRows], run: RunContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stages_omg, "compute_text_states", None)
        context = prepare_run(run.recipe, str(corpus), run.folder.parent / "seed-3", 3, QUIET, few)
        model = context.new_model(OmgForSentimentAnalysis).eval()
        states = stages_omg.prepare_texts(context, model, stages_omg.Dependencies(context, model))
        assert torch.equal(model.text_mean, loaded(run).text_mean) and set(states) == {"train", "validation"}

    def test_folders_without_any_are_refused(self, corpus: Path, few: dict[str, MsaRows], tmp_path: Path) -> None:
        with pytest.raises(MsaError, match="has no folder 'shared_stages'"):
            whole_run(corpus, tmp_path / "run", few, stages_from=tmp_path)
        with pytest.raises(MsaError, match="no stages of text are shared by runs, those of tcmr, cmc, omg are"):
            run_recipe(load_recipe("text/sample"), str(corpus), tmp_path / "text", 1, QUIET, stages_from=tmp_path)
        assert not list(tmp_path.iterdir()) or not list(tmp_path.rglob("settings.json"))


class TestAblations:
    def test_wo_task_loss_the_classifier_learns_afterwards(
        self, corpus: Path, few: dict[str, MsaRows], run: RunContext, tmp_path: Path
    ) -> None:
        context = whole_run(corpus, tmp_path, few, ablation="wo_task_loss", shared=run.folder)
        vae, main, after = (weights(context, stage) for stage in TRAINED)
        assert changed(vae, main) == {"executors.denoiser", "executors.alignment", "retriever"}
        assert changed(main, after) == {"fusion"}
        assert not changed(after, load_file(context.folder / "model.safetensors"))

    def test_wo_refit_the_main_stage_is_the_last(
        self, corpus: Path, few: dict[str, MsaRows], run: RunContext, tmp_path: Path
    ) -> None:
        context = whole_run(corpus, tmp_path, few, ablation="wo_refit", shared=run.folder)
        assert [stage["name"] for stage in context.log][-2:] == ["classifier", "main"]
        assert [stage["name"] for stage in context.log] == list(METHODS["omg"].stages.of(context.config))
        assert changed(weights(context, "vae"), weights(context, "classifier")) == {"fusion"}
        assert not changed(weights(context, "main"), load_file(context.folder / "model.safetensors"))
        evaluated = [entry for entry in context.log[-1]["history"] if "eval_loss" in entry]
        # What is validated is what users get: the classes of what is really generated.
        assert 0.5 < evaluated[-1]["eval_loss"] < 4.0

    def test_wo_generation_the_classifier_alone_is_trained(
        self, corpus: Path, few: dict[str, MsaRows], run: RunContext, tmp_path: Path
    ) -> None:
        with pytest.raises(MsaError, match="which is for hf-msa evaluate --set prediction=planner"):
            whole_run(corpus, tmp_path / "planner", few, "model.prediction=planner")
        context = whole_run(corpus, tmp_path / "run", few, ablation="wo_generation", stages_from=run.folder.parent)
        made = load_file(context.folder / "model.safetensors")
        fresh = context.new_model(OmgForSentimentAnalysis).state_dict()
        taken = {"executors.vae", "executors.semantics", "text_mean", "text_std"}
        assert changed(fresh, made) == taken | {"fusion"}

    def test_wo_planner_runs_to_its_end(self, corpus: Path, few: dict[str, MsaRows], tmp_path: Path) -> None:
        context = whole_run(corpus, tmp_path, few, ablation="wo_planner")
        model = loaded(context)
        lengths = base_of(model).plans.norm(dim=1)
        assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-2), "entries have plans of their own"
        rows = [context.rows["validation"][index] for index in range(2)]
        out = model.predict_rows(context.processor.from_rows(rows), rows, context.processor)
        assert out.planned_score is None and torch.isfinite(out.logits).all()

    def test_wo_retriever_runs_to_its_end_and_its_query_stays(
        self, corpus: Path, few: dict[str, MsaRows], run: RunContext, tmp_path: Path
    ) -> None:
        context = whole_run(corpus, tmp_path, few, ablation="wo_retriever", shared=run.folder)
        assert changed(weights(context, "vae"), weights(context, "main")) == {
            "executors.denoiser",
            "executors.alignment",
            "fusion",
        }

    def test_wo_verbalizer_there_is_none(
        self, corpus: Path, few: dict[str, MsaRows], run: RunContext, tmp_path: Path
    ) -> None:
        recipe = load_recipe("omg/sample", ablation="wo_verbalizer", assignments=SMALL)
        context = prepare_run(recipe, str(corpus), tmp_path / "seed-1", 1, QUIET, few)
        model = context.new_model(OmgForSentimentAnalysis).eval()
        assert stages_omg.fit_planner(context, model).to_dict()["verbalizer"] is None
        assert json.loads((run.folder / "planner.json").read_text(encoding="utf-8"))["verbalizer"] is not None


def test_a_planner_that_is_not_there_is_missed_before_training(
    corpus: Path, few: dict[str, MsaRows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_msa.training.omg.stages.compute_text_states", None)
    for options, words in (
        (["model.planner=mllm"], "names none; pass --set model.planner_model=NAME"),
        (["model.planner=mllm", "model.planner_model=./nowhere"], "'./nowhere' cannot be loaded"),
    ):
        with pytest.raises(MsaError, match=words) as error:
            whole_run(corpus, tmp_path, few, *options)
        assert "\n" not in str(error.value)


def test_a_language_model_learns_to_plan_and_its_adapter_goes_with_the_checkpoint(
    corpus: Path, few: dict[str, MsaRows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_thinker().save_pretrained(tmp_path / "thinker")
    tiny_mllm_processor().save_pretrained(tmp_path / "thinker")
    rows = {split: MsaRows(part._dataset.select(range(6)), split) for split, part in few.items()}
    context = prepare_run(load_recipe("omg/sample"), str(corpus), tmp_path / "p", 1, QUIET)
    for split, part in rows.items():
        rows[split] = MsaRows(part._dataset, split, context.processor.tokenizer, 50)
    settings = [
        *("model.planner=mllm", f"model.planner_model={tmp_path / 'thinker'}", "model.num_candidates=2"),
        *("model.plan_max_new_tokens=4", "missing.train={name: fixed, available: [audio]}"),
        *("missing.validation={name: fixed, available: [audio]}", "stages.planner.num_train_epochs=1"),
    ]
    run = whole_run(corpus, tmp_path / "run", rows, *settings)
    assert [stage["name"] for stage in run.log][:2] == ["planner", "plans"]
    assert [stage["name"] for stage in run.log] == list(METHODS["omg"].stages.of(run.config))
    assert run.log[0]["samples"] == 6 and run.log[0]["epochs"] == 1
    model = loaded(run)
    assert model.config.condition_dim == 32 and model.language_model_input == "transcript"
    folder = run.folder / "adapter"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    learned = load_file(folder / "adapter_model.safetensors")
    assert any(value.any() for name, value in learned.items() if "lora_B" in name)
    members = [rows["validation"][index] for index in range(2)]
    batch = run.collator("validation")(members)
    batch = {name: batch[name] for name in batch if name.endswith(("values", "mask", "ids"))}
    out = model.predict_rows(batch, members, run.processor)
    assert torch.isfinite(out.logits).all()
    identity = model.planner(run.processor).identity
    assert identity["adapter"] == run.log[0]["adapter"] == model.planner_values["adapter"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr("hf_msa.training.trainer.MsaTrainer.train", refuse)
    monkeypatch.setattr("hf_msa.training.lora.LoraTrainer.fit", refuse)
    (run.folder / "run.json").unlink()
    again = whole_run(corpus, tmp_path / "run", rows, *settings)
    assert [stage["name"] for stage in again.log] == [stage["name"] for stage in run.log]


def test_a_planner_on_a_server_plans_and_the_text_encoder_gives_its_vectors(
    corpus: Path,
    few: dict[str, MsaRows],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("hf_msa.models.msa_mllm_endpoint._allowed", {})
    monkeypatch.setenv("PLANNER_KEY", "for_the_planner")
    plan = "Entity: a woman; Action: praises the film; Sentiment: positive"
    server = Server()
    server.models = ["org/omni"]
    server.reply = lambda number, body: completion(plan, [token(plan, 0.5, 0.5)])
    settings = [
        *("model.planner=mllm", "model.planner_kind=endpoint", f"model.planner_model={server.url}"),
        *("model.planner_lora=false", "model.planner_key_variable=PLANNER_KEY", "model.num_candidates=1"),
        *("missing.train={name: fixed, available: [audio]}", "missing.validation={name: fixed, available: [audio]}"),
    ]
    run = whole_run(corpus, tmp_path / "run", few, *settings)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer for_the_planner"}
    assert {body["model"] for body in server.bodies} == {"org/omni"}
    saved = json.loads((run.folder / "planner.json").read_text())
    assert (saved["kind"], saved["vectors"], saved["model"]) == ("mllm", "text_encoder", server.url)
    asked = len(server.bodies)
    # The same command again, which finds all but the end done, is the caller's word once more.
    monkeypatch.setattr("hf_msa.models.msa_mllm_endpoint._allowed", {})
    (run.folder / "run.json").unlink()
    whole_run(corpus, tmp_path / "run", few, *settings)
    assert len(server.bodies) == asked
    # Whoever loads the checkpoint has not allowed the server.
    monkeypatch.setattr("hf_msa.models.msa_mllm_endpoint._allowed", {})
    monkeypatch.delenv("HF_MSA_ENDPOINT", raising=False)
    model = loaded(run)
    assert model.config.condition_dim is None and model.config.plan_width == model.config.text_config.hidden_size
    members = [few["validation"][index] for index in range(2)]
    batch = run.collator("validation")(members)
    batch = {name: batch[name] for name in batch if name.endswith(("values", "mask", "ids"))}
    with pytest.raises(ValueError, match="checkpoint's planner is a server, .*has not been allowed"):
        model.predict_rows(batch, members, run.processor)
    assert len(server.bodies) == asked
    monkeypatch.setenv("HF_MSA_ENDPOINT", server.url)
    monkeypatch.setenv("HF_MSA_ENDPOINT_TOKEN", "for_the_planner")
    out = model.predict_rows(batch, members, run.processor)
    assert torch.isfinite(out.logits).all() and out.planned_score.squeeze(1).tolist() == [2.0, 2.0]
    columns = {name: values.numpy() for name, values in model.per_sample_outputs(out).items()}
    cost = OmgForSentimentAnalysis.cost_of(columns)
    assert cost is not None and cost.pop("seconds") > 0
    assert cost == {
        **{"calls": 1.0, "prompt_tokens": None, "tokens": 1.0, "remembered": 0.0, "unreadable": 0.0, "routes": {}}
    }
    columns["fallback_plan"] = np.array([0, 1])
    assert OmgForSentimentAnalysis.cost_of(columns)["unreadable"] == 0.5
    del columns["planner_calls"]
    assert OmgForSentimentAnalysis.cost_of(columns) is None, "a light planner asks nobody"
    # Everything is a fallback plan, and the training says so.
    server.reply = lambda number, body: completion("no plan", [token("no plan", 0.5, 0.5)])
    broken = whole_run(corpus, tmp_path / "broken" / "run", few, *settings)
    (made,) = (entry for entry in broken.log if "fallbacks" in entry)
    assert made["fallbacks"] == sum(map(len, few.values())) * 2 - len(few.get("test", ()))
    assert "answers of the planner could not be read (100 %)" in caplog.text
    server.close()
