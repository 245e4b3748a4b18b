"""Completing data sets: what is generated and what is left alone, in which units, from which evidence, how it is marked."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_msa.data.loading import dataset_facts, load_msa
from hf_msa.data.missing import ModalityMissing
from hf_msa.data.rows import MsaRows
from hf_msa.errors import MsaError
from hf_msa.evaluation.checkpoints import attach_answers, load_checkpoint
from hf_msa.evaluation.evaluate import evaluate_runs
from hf_msa.imputation import IMPUTATION_FILE, impute, stretched
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.modeling_text import TextForSentimentAnalysis
from hf_msa.models.omg_knowledge_base import KnowledgeBase
from hf_msa.training.omg.entries import build_knowledge_base
from made_omg import SIZES, write_checkpoint, write_clips
from nonempty import some
from tiny import MISSING_LENGTHS, tiny_omg_config, tiny_processor, tiny_text_config

pytest.importorskip("diffusers")


def lacking(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """Of every third clip the pictures are absent, of clips 1 and 3 the words, of clip 3 the sound as well."""
    changes: dict[str, Any] = {}
    if number % 3 == 0:
        changes["vision_present"] = False
    if number in (1, 3):
        changes["text"] = " "
    if number == 3:
        changes["audio_present"] = False
    return changes


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Complete clips in `clips`, others in `lacking`, a checkpoint in `model`."""
    folder = tmp_path_factory.mktemp("imputation")
    write_clips(folder / "clips")
    write_clips(folder / "lacking", lacking)
    write_checkpoint(folder, folder / "clips")
    return folder


@pytest.fixture(scope="module")
def completed(work: Path) -> Path:
    impute(str(work / "model"), str(work / "lacking"), str(work / "completed"))
    return work / "completed"


def table(folder: Path, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "data" / f"{split}-00000-of-00001.parquet").to_pylist()
    return rows


class TestWhatIsAbsent:
    def test_it_is_generated_and_marked(self, completed: Path) -> None:
        for split, size in some(SIZES.items()):
            rows = table(completed, split)
            assert [row["id"] for row in rows] == [f"{split}$_${number}" for number in range(size)]
            for number, row in enumerate(rows):
                assert row["vision_generated"] == (number % 3 == 0) and row["audio_generated"] == (number == 3)
                assert row["audio_present"] and row["vision_present"]
                assert (row["text"] == "") == (number in (1, 3)), "no words come out of generated states"

    def test_the_rest_stays_as_it_was(self, work: Path, completed: Path) -> None:
        for split in SIZES:
            for before, after in some(zip(table(work / "lacking", split), table(completed, split), strict=True)):
                for column in before.keys() - {"text", "audio_present", "vision_present"}:
                    if not after.get(f"{column}_generated", False):
                        assert before[column] == after[column], column

    def test_plan_and_evidence_go_with_it(self, completed: Path) -> None:
        ids = {f"train$_${number}" for number in range(SIZES["train"])}
        for row in some(table(completed, "test")):
            if not row["vision_generated"]:
                assert row["plan"] is None and row["evidence"] == []
                continue
            assert row["plan"].keys() == {"entity", "action", "sentiment", "is_fallback"} and row["plan"]["sentiment"]
            weights = [entry["weight"] for entry in row["evidence"]]
            assert (
                len(weights) == 3 and sum(weights) == pytest.approx(1.0) and weights == sorted(weights, reverse=True)
            )
            assert {entry["id"] for entry in row["evidence"]} <= ids

    def test_it_is_what_the_model_says_of_the_sample_alone(self, work: Path, completed: Path) -> None:
        model, processor = load_checkpoint(str(work / "model"))
        assert isinstance(model, OmgForSentimentAnalysis)
        rows = MsaRows(load_msa(work / "lacking", "test"), "test")
        made = model.generate_missing(processor.from_rows([rows[6]]), [rows[6]], processor)
        frames = made.values["vision"][0][made.masks["vision"][0]].numpy()
        written = np.array(table(completed, "test")[6]["vision"])
        assert written.shape == (6, 7), "the typical length of pictures"
        np.testing.assert_allclose(written, frames * 2.0 + 5.0, atol=1e-4)
        assert made.evidence_ids[0] == [entry["id"] for entry in table(completed, "test")[6]["evidence"]]

    def test_its_length_is_expected_of_what_is_observed_in_the_time_base_of_the_data(
        self, work: Path, tmp_path: Path
    ) -> None:
        fits = {"missing_length": "observed", "missing_length_fits": {"vision": [["audio", 1.0, 3.0]]}}
        write_checkpoint(tmp_path, work / "clips", sequence_length=4, **fits)
        impute(str(tmp_path / "model"), str(work / "lacking"), str(tmp_path / "made"), splits=["test"])
        rows = table(tmp_path / "made", "test")
        for number in (0, 6, 9):
            written = np.array(rows[number]["vision"])
            assert len(written) == min(len(rows[number]["audio"]) + 3, 12) == min(4 + number % 5 + 3, 12)
            assert len(np.unique(written, axis=0)) == 4, "means of four parts, repeated"
        # Without anything observed it is the median.
        assert len(rows[3]["vision"]) == 6 and len(rows[3]["audio"]) == 5

    def test_frames_are_repeated_evenly(self) -> None:
        frames = np.array([[1.0], [2.0], [3.0]])
        assert stretched(frames, 7)[:, 0].tolist() == [1, 1, 1, 2, 2, 3, 3]
        assert stretched(frames, 3) is frames and stretched(frames, 2) is frames

    def test_batches_do_not_matter(self, work: Path, completed: Path) -> None:
        impute(str(work / "model"), str(work / "lacking"), str(work / "one"), splits=["test"], batch_size=1)
        assert [path.name for path in (work / "one" / "data").iterdir()] == ["test-00000-of-00001.parquet"]
        for one, other in zip(table(work / "one", "test"), table(completed, "test"), strict=True):
            assert one["plan"] == other["plan"]
            np.testing.assert_allclose(one["vision"], other["vision"], atol=1e-4)

    def test_everything_that_reads_data_reads_it(
        self, work: Path, completed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).touch())
        assert set(load_msa(completed)) == set(SIZES)
        facts = dataset_facts(completed)
        assert facts.name == "clips_imputed" and facts.source == "invention, completed by omg"
        output = work / "results"
        content = evaluate_runs(str(work / "model"), str(completed), protocol="complete", output=str(output)).content
        assert content["dataset"]["name"] == "clips_imputed" and content["dataset"]["n"] == SIZES["test"]

    def test_the_folder_says_where_it_comes_from(self, completed: Path) -> None:
        about = json.loads((completed / IMPUTATION_FILE).read_text(encoding="utf-8"))
        assert about["method"] == "omg" and about["model"] == "model" and about["protocol"] is None
        assert len(about["weights_sha256"]) == 64 and about["config"]["generation_seed"] == 0
        assert about["generated"]["test"] == {"samples": 12, "audio": 1, "vision": 4}
        card = (completed / "README.md").read_text(encoding="utf-8")
        assert about["weights_sha256"] in card and "no recording of what was said or shown" in card
        assert "- Note: vision was generated in 4 of 12 samples of 'test'." in card

    def test_a_modality_that_the_data_does_not_have(self, work: Path, tmp_path: Path) -> None:
        write_clips(tmp_path / "heard", audio=5)
        impute(str(work / "model"), str(tmp_path / "heard"), str(tmp_path / "seen"), splits=["validation"])
        rows = table(tmp_path / "seen", "validation")
        assert all(row["vision_generated"] and not row["audio_generated"] for row in rows)
        assert np.array(rows[0]["vision"]).shape == (6, 7)

    def test_a_modality_that_the_model_does_not_read_stays_absent(self, work: Path, tmp_path: Path) -> None:
        write_clips(tmp_path / "heard", audio=5)
        write_checkpoint(tmp_path, tmp_path / "heard", vision_dim=None)
        impute(str(tmp_path / "model"), str(work / "lacking"), str(tmp_path / "out"), splits=["test"])
        for number, row in some(enumerate(table(tmp_path / "out", "test"))):
            assert row["vision_present"] == (number % 3 != 0) and not row["vision_generated"]
            assert row["audio_present"] and row["audio_generated"] == (number == 3)


class TestUnits:
    def test_ones_become_mean_plus_deviation(
        self, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = OmgForSentimentAnalysis.generate_missing

        def ones(self: OmgForSentimentAnalysis, *args: Any, **kwargs: Any) -> Any:
            made = original(self, *args, **kwargs)
            for values in made.values.values():
                values.fill_(1.0)
            return made

        monkeypatch.setattr(OmgForSentimentAnalysis, "generate_missing", ones)
        impute(str(work / "model"), str(work / "lacking"), str(tmp_path / "out"), splits=["validation"])
        row = table(tmp_path / "out", "validation")[3]
        assert row["vision"] == [[7.0] * 7] * 6
        # A feature that never differed in training is its mean.
        assert row["audio"] == [[11.0, 22.0, 30.5, 41.0, 50.0]] * 5


class TestDraws:
    def test_the_mean_of_several_draws_and_how_far_they_differ(self, work: Path, tmp_path: Path) -> None:
        options: dict[str, Any] = {"splits": ["test"], "steps": 3, "changes": {"generation_seed": 4}}
        impute(str(work / "model"), str(work / "lacking"), str(tmp_path / "out"), draws=3, **options)
        facts = json.loads((tmp_path / "out" / IMPUTATION_FILE).read_text(encoding="utf-8"))
        config = facts["config"]
        assert (config["num_samples"], config["num_inference_steps"], config["generation_seed"]) == (3, 3, 4)
        model, processor = load_checkpoint(str(work / "model"), {"num_inference_steps": 3, "generation_seed": 4})
        assert isinstance(model, OmgForSentimentAnalysis)
        model.config.num_samples = 3
        rows = MsaRows(load_msa(str(work / "lacking"))["test"], "test", processor.tokenizer, processor.text_max_length)
        for place, row in enumerate(some(table(tmp_path / "out", "test"))):
            assert (row["vision_spread"] is None) == (not row["vision_generated"])
            if row["vision_generated"]:
                made = model.generate_missing(processor.from_rows([rows[place]]), [rows[place]], processor)
                mask = made.masks["vision"][0]
                assert row["vision_spread"] == pytest.approx(float(made.spreads["vision"][0][mask].mean()), rel=1e-3)
                assert row["vision_spread"] > 0
        assert len(load_msa(str(tmp_path / "out"))["test"]) == len(rows)

    def test_the_variance_of_what_is_generated_is_compared_with_the_datas_own(self, completed: Path) -> None:
        facts = json.loads((completed / IMPUTATION_FILE).read_text(encoding="utf-8"))
        rows = [row for split in ("train", "validation", "test") for row in table(completed, split)]
        for name in ("audio", "vision"):
            frames = {
                made: np.concatenate([row[name] for row in rows if row[f"{name}_generated"] == made])
                for made in (True, False)
            }
            expected = np.median(frames[True].var(axis=0) / frames[False].var(axis=0))
            assert facts["variance"][name] == pytest.approx(expected, rel=1e-3)
        assert "vision_spread" not in rows[0]  # of one draw there is none

    def test_where_nothing_is_missing_nothing_is_written(self, work: Path, tmp_path: Path) -> None:
        with pytest.raises(MsaError, match="there is nothing to complete; use the data as it is") as error:
            impute(str(work / "model"), str(work / "clips"), str(tmp_path / "out"))
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


class TestProtocols:
    def test_what_a_protocol_drops_is_generated(self, work: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        impute(str(work / "model"), str(work / "clips"), str(out), protocol="modality", rate=0.5, mask_seed=3)
        ids = [f"test$_${number}" for number in range(SIZES["test"])]
        protocol = ModalityMissing(0.5, seed=3).bind(ids)
        rows, clips = table(out, "test"), table(work / "clips", "test")
        lengths = {name: np.array([len(row[name]) for row in clips]) for name in ("audio", "vision")}
        words = np.array([len(row["text"].split()) for row in clips])
        masks = protocol.masks(
            ids, "test", np.zeros(len(ids), int), {"text": words, **lengths}, np.zeros((len(ids), words.max()), bool)
        ).masks
        lost = {name: mask.any(axis=1).tolist() for name, mask in masks.items()}
        assert any(lost["text"]) and any(lost["audio"]) and any(lost["vision"])
        assert [row["text"] == "" for row in rows] == lost["text"]
        for name in ("audio", "vision"):
            assert [row[f"{name}_generated"] for row in rows] == lost[name]
            for before, after, gone in zip(clips, rows, lost[name], strict=True):
                assert len(after[name]) == (MISSING_LENGTHS[name] if gone else len(before[name]))
                assert (before[name] == after[name]) != gone
        about = json.loads((out / IMPUTATION_FILE).read_text(encoding="utf-8"))
        assert about["protocol"] == {"name": "modality", "rate": 0.5, "seed": 3}

    def test_a_sample_is_no_evidence_for_itself(self, work: Path, tmp_path: Path) -> None:
        options = {"protocol": "fixed", "available": ["text"], "splits": ["train"]}
        impute(str(work / "model"), str(work / "clips"), str(tmp_path / "out"), **options)  # type: ignore[arg-type]
        rows = table(tmp_path / "out", "train")
        assert all(row["audio_generated"] and row["vision_generated"] and row["text"] for row in rows)
        assert all(row["id"] not in {entry["id"] for entry in row["evidence"]} for row in rows)
        assert {len(row["evidence"]) for row in rows} == {3}

    def test_the_pattern_of_each_sample(self, work: Path, tmp_path: Path) -> None:
        impute(str(work / "model"), str(work / "clips"), str(tmp_path / "out"), protocol="pattern", splits=["test"])
        rows = table(tmp_path / "out", "test")
        kept = {(row["text"] != "", not row["audio_generated"], not row["vision_generated"]) for row in rows}
        assert len(kept) > 3 and (False, False, False) not in kept


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"protocol": "frame"}, "give modality, fixed or pattern, which drop whole modalities"),
            ({"rate": 0.5}, "--rate belongs to a --protocol"),
            ({"protocol": "modality"}, "needs 'rate'"),
            ({"protocol": "modality", "rate": 0.55}, "use 0.0, 0.1"),
            ({"protocol": "fixed", "available": ["audio"], "mask_seed": 1}, "'seed'"),
            ({"batch_size": 0}, "--batch-size is 0"),
            ({"draws": 0}, "num_samples"),
            ({"steps": 100_000}, "must be at most"),
            ({"changes": {"top_q": 1}}, "top_k"),
            ({"splits": ["tset"]}, "Did you mean 'test'"),
            ({"media": "nowhere"}, "There is no folder 'nowhere'"),
        ],
    )
    def test_options(self, work: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
        with pytest.raises(MsaError, match=words) as error:
            impute(str(work / "model"), str(work / "clips"), str(tmp_path / "out"), **options)
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()

    def test_outputs(self, work: Path, completed: Path, tmp_path: Path) -> None:
        before = table(completed, "test")
        with pytest.raises(MsaError, match="not empty"):
            impute(str(work / "model"), str(work / "clips"), str(completed))
        with pytest.raises(MsaError, match="is the data that is to be completed"):
            impute(str(work / "model"), str(work / "clips"), str(work / "clips"), overwrite=True)
        assert table(completed, "test") == before

    def test_data(self, work: Path, completed: Path, tmp_path: Path) -> None:
        with pytest.raises(MsaError, match="was itself made by imputation"):
            impute(str(work / "model"), str(completed), str(tmp_path / "out"))
        write_clips(tmp_path / "wide", audio=5, vision=9)
        for run in (impute, build_knowledge_base):
            with pytest.raises(MsaError, match="vision of width 9, but the checkpoint .* was built for vision_dim=7"):
                run(str(work / "model"), str(tmp_path / "wide"), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_models(self, work: Path, tmp_path: Path) -> None:
        config = tiny_text_config()
        TextForSentimentAnalysis(config).save_pretrained(tmp_path / "text")
        tiny_processor(config).save_pretrained(tmp_path / "text")
        with pytest.raises(MsaError, match="method 'text', which generates no features; give one of omg"):
            impute(str(tmp_path / "text"), str(work / "clips"), str(tmp_path / "out"))
        with pytest.raises(MsaError, match="method 'text', which has no knowledge base"):
            build_knowledge_base(str(tmp_path / "text"), str(work / "clips"), str(tmp_path / "kb"))
        shutil.copytree(work / "model", tmp_path / "unplanned")
        for name in ("planner.json", "hf_msa_files.json"):
            (tmp_path / "unplanned" / name).unlink()
        with pytest.raises(MsaError, match="has no planner"):
            impute(str(tmp_path / "unplanned"), str(work / "lacking"), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists() and not (tmp_path / "kb").exists()

    def test_nothing_is_left_of_an_interrupted_run(
        self, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original, calls = OmgForSentimentAnalysis.generate_missing, iter(range(99))

        def interrupted(self: OmgForSentimentAnalysis, *args: Any, **kwargs: Any) -> Any:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        monkeypatch.setattr(OmgForSentimentAnalysis, "generate_missing", interrupted)
        with pytest.raises(KeyboardInterrupt):
            impute(str(work / "model"), str(work / "lacking"), str(tmp_path / "out"), batch_size=4)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("planner", "is_run", "is_kept"), [("mllm", True, True), ("light", True, False), ("mllm", False, False)]
)
def test_where_plans_are_kept(tmp_path: Path, planner: Any, is_run: bool, is_kept: bool) -> None:
    (tmp_path / "seed-1").mkdir()
    if is_run:
        (tmp_path / "seed-1" / "run.json").touch()
    network = OmgForSentimentAnalysis(tiny_omg_config(planner=planner))
    attach_answers(network, str(tmp_path / "seed-1"))
    assert network.answers_folder == (tmp_path / "answers" if is_kept else None)


class TestKnowledgeBases:
    def test_it_holds_the_complete_rows_of_the_split(self, work: Path, tmp_path: Path) -> None:
        base = build_knowledge_base(
            str(work / "model"), str(work / "lacking"), str(tmp_path / "kb"), split="test", batch_size=5
        )
        assert base.ids == [f"test$_${number}" for number in range(12) if number % 3 and number != 1]
        assert base.ids == KnowledgeBase.load(tmp_path / "kb").ids

    def test_its_numbers_are_those_of_the_model(self, work: Path) -> None:
        model, processor = load_checkpoint(str(work / "model"))
        assert isinstance(model, OmgForSentimentAnalysis)
        base = model.knowledge_base
        assert base is not None and len(base) == SIZES["train"]
        row = MsaRows(load_msa(work / "clips", "train"), "train")[2]
        inputs = processor.from_rows([row])
        plans, _ = model.plan_inputs(inputs, [row], processor)
        assert plans is not None
        (choice,) = plans
        latents = model.encode_observed(model.perceive(inputs))
        np.testing.assert_allclose(base.plans[2], choice.plan_vector, atol=1e-3)
        np.testing.assert_allclose(base.observations[2], choice.observation_vector, atol=1e-3)
        np.testing.assert_allclose(base.values["vision"][2], latents["vision"][0].numpy(), atol=1e-5)

    def test_another_index(self, work: Path, tmp_path: Path) -> None:
        pytest.importorskip("faiss")
        row = {**load_msa(work / "clips", "test")[0], "vision_present": False}
        found = []
        for factory in ("Flat", "HNSW4"):
            model, processor = load_checkpoint(str(work / "model"), {"index_factory": factory})
            assert isinstance(model, OmgForSentimentAnalysis)
            found.append(model.generate_missing(processor.from_rows([row]), [row], processor).evidence_ids)
            assert (model.retriever._index is None) == (factory == "Flat")
        assert found[0] == found[1], "so few entries a graph finds all of"
        model.config.index_factory = "Flot"
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        with pytest.raises(MsaError, match="FAISS cannot build the index 'Flot'"):
            impute(str(tmp_path / "model"), str(work / "lacking"), str(tmp_path / "out"))

    def test_numbers_that_are_not_finite(self, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        encode = OmgForSentimentAnalysis.encode_observed
        monkeypatch.setattr(
            OmgForSentimentAnalysis,
            "encode_observed",
            lambda model, seen: {name: value / 0 for name, value in encode(model, seen).items()},
        )
        with pytest.raises(MsaError, match="hold numbers that are not finite"):
            build_knowledge_base(str(work / "model"), str(work / "clips"), str(tmp_path / "kb"))
        assert not (tmp_path / "kb").exists()

    def test_data_without_a_complete_row(self, work: Path, tmp_path: Path) -> None:
        write_clips(tmp_path / "blind", lambda _, __: {"vision_present": False})
        with pytest.raises(MsaError, match="No sample has all of text, audio, vision"):
            build_knowledge_base(str(work / "model"), str(tmp_path / "blind"), str(tmp_path / "kb"))
        assert not (tmp_path / "kb").exists()
