"""Training of U-ACS: thresholds from the validation split, an expert that may fail half way, an adapter on answers."""

import hashlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from safetensors.torch import load_file
from transformers import AutoModel

from hf_msa.data.media import MediaFolder
from hf_msa.data.missing import CompleteProtocol
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.evaluation.evaluate import evaluate_runs
from hf_msa.evaluation.report import caption, results_markdown
from hf_msa.evaluation.sweep import sweep
from hf_msa.hub.cards import card_of, without_local_paths
from hf_msa.methods import METHODS
from hf_msa.models import msa_remembering
from hf_msa.models.configuration_uacs import UacsConfig
from hf_msa.models.modeling_uacs import ExpertAnswer, UacsForSentimentAnalysis
from hf_msa.models.msa_answer_store import ANSWERS_FILE
from hf_msa.models.msa_mllm import LocalMllm, MllmRequest
from hf_msa.models.msa_verbalizer import MsaVerbalizer
from hf_msa.models.uacs_prompts import SECOND_OPINION, answer_text
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import RunContext, run_recipe
from hf_msa.training.uacs.calibration import validation_requests
from hf_msa.training.uacs.stages import AnsweredRows
from hf_msa.training.uacs.thresholds import fit_agreement
from hf_msa.uacs_calibration import calibrate, run_command
from stub_expert import Says, StubExpert
from tiny_mllm import tiny_mllm_processor, tiny_thinker
from tiny_text_models import tiny_text_model, tiny_text_tokenizer

QUIET = {"disable_tqdm": True, "use_cpu": True}
SMALL = ["model.fusion_dim=16", "model.head_dim=8", "stages.ubm.num_train_epochs=1"]
# Where an expert is that the tests put in its place; nothing asks whether it is there.
EXPERT = ["model.route=cascade", "model.expert_kind=endpoint", "model.expert_model=http://127.0.0.1:1/v1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of this module's own: other tests change the text encoder of theirs."""
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7, version=1)


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _figure, path, **_: Path(path).write_bytes(b"a figure")
    )


def whole_run(
    corpus: Path, folder: Path, *assignments: str, ablation: str | None = None, media: Path | None = None
) -> RunContext:
    recipe = load_recipe("uacs/sample", ablation=ablation, assignments=[*SMALL, *assignments])
    return run_recipe(recipe, str(corpus), folder, 1, QUIET, media=media)


def by_hash(request: MllmRequest) -> Says:
    """An answer for each question, of both signs and of all entropies."""
    draw = int(hashlib.sha256(request.prompt.encode()).hexdigest(), 16)
    return Says(draw % 61 / 10 - 3, draw % 97 / 50)


def answers_of(model: UacsForSentimentAnalysis, requests: Sequence[MllmRequest]) -> list[ExpertAnswer]:
    """What the scripted expert says, asked anew."""
    model.answers_folder = None
    model.set_expert(StubExpert(by_hash))
    return model.ask_expert(requests)


def kept_answers(runs: Path) -> list[dict[str, Any]]:
    """All that lies in the answers of a folder of runs."""
    with closing(sqlite3.connect(runs / "answers" / ANSWERS_FILE)) as database:
        return [json.loads(value) for (value,) in database.execute("SELECT value FROM answers")]


class Failing(StubExpert):
    """Answers some calls and is then gone."""

    def __init__(self, calls: int) -> None:
        super().__init__(by_hash)
        self.left = calls

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("The server does not answer.")
        return super().generate(*args, **kwargs)


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Callable[[StubExpert], StubExpert]:
    """Put an expert in the place of the one that the configuration names."""

    def put(expert: StubExpert) -> StubExpert:
        monkeypatch.setattr(UacsForSentimentAnalysis, "load_language_model", lambda *_: expert)
        # These count what is asked.
        monkeypatch.setattr("hf_msa.training.uacs.stages.check_language_model", lambda *_: None)
        return expert

    return put


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr("hf_msa.training.trainer.MsaTrainer.train", refuse)
    monkeypatch.setattr("hf_msa.training.lora.LoraTrainer.fit", refuse)


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """The small model alone."""
    return whole_run(corpus, tmp_path_factory.mktemp("run"), "model.calibrate_temperature=true")


class TestSmallModelAlone:
    def test_its_threshold_is_that_of_the_validation_split(self, run: RunContext) -> None:
        model = AutoModel.from_pretrained(run.folder)
        rows = run.rows["validation"]
        (found,), _ = sweep(model, run.processor, rows, [(0, "all", CompleteProtocol())])
        fit = fit_agreement(found["prediction"], rows.labels, found["uncertainty"], "mosi")
        assert fit.same is not None and fit.opposite is not None
        assert model.config.tau_1 == pytest.approx((fit.same.mean + fit.opposite.mean) / 2, rel=1e-4)
        kept = model.config.calibration["small"]
        assert kept["same"]["n"] + kept["opposite"]["n"] == int((rows.labels != 0).sum())
        assert kept["same"]["std"] == pytest.approx(fit.same.std, rel=1e-3)
        assert model.config.tau_2 is None and "expert" not in model.config.calibration
        assert model.config.route == "fast" and model.config.temperature != 1.0

    def test_what_the_run_says_of_itself(self, run: RunContext) -> None:
        facts = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
        assert facts["selection"]["stage"] == "ubm"
        assert [stage["name"] for stage in facts["stages"]] == ["ubm", "calibration"]
        assert facts["config"]["tau_1"] == AutoModel.from_pretrained(run.folder).config.tau_1

    def test_the_verbaliser_s_statistics_are_those_of_the_training_split(self, run: RunContext) -> None:
        rows = run.rows["train"]
        names = {"audio": run.facts.audio_features or None, "vision": run.facts.vision_features or None}
        expected = MsaVerbalizer.fit([rows[index] for index in range(len(rows))], names)
        assert AutoModel.from_pretrained(run.folder).verbalizer == expected

    def test_a_lambda_moves_the_threshold(self, corpus: Path, tmp_path: Path) -> None:
        config = AutoModel.from_pretrained(whole_run(corpus, tmp_path, ablation="lambda_0").folder).config
        assert config.tau_1 == pytest.approx(config.calibration["small"]["same"]["mean"])


class TestExpert:
    def test_thresholds_of_both_and_a_cascade_that_runs(
        self, corpus: Path, tmp_path: Path, give: Callable[[StubExpert], StubExpert]
    ) -> None:
        expert = give(StubExpert(by_hash))
        run = whole_run(corpus, tmp_path, *EXPERT, "model.expert_batch_size=5")
        rows = run.rows["validation"]
        assert expert.calls == len(rows) and max(map(len, expert.asked)) <= 35
        model = AutoModel.from_pretrained(run.folder)
        requests = model.expert_requests([rows[index] for index in range(len(rows))])
        asked = [request for chunk in expert.asked for request in chunk]
        assert [request.digest for request in asked] == [request.digest for request in requests]
        answers = answers_of(model, requests)
        fit = fit_agreement(
            np.array([answer.score for answer in answers]),
            rows.labels,
            np.array([a.uncertainty for a in answers]),
            "mosi",
        )
        assert fit.same is not None and fit.opposite is not None
        assert model.config.tau_2 == pytest.approx((fit.same.mean + fit.opposite.mean) / 2)
        assert model.config.calibration["expert"] == fit.to_dict() and model.config.route == "cascade"

        expert.asked.clear()
        table = evaluate_runs(str(run.folder), str(corpus), protocol="complete", output=str(tmp_path / "results"))
        assert table.content["method"] == "uacs"
        assert 0 < expert.calls, "the cascade runs where a checkpoint is evaluated"

    def test_an_interrupted_calibration_asks_only_the_rest(
        self,
        corpus: Path,
        tmp_path: Path,
        give: Callable[[StubExpert], StubExpert],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        give(Failing(1))
        monkeypatch.setattr(msa_remembering, "_KEPT_TOGETHER", 8)
        assignments = (*EXPERT, "model.expert_batch_size=4")
        with pytest.raises(MsaError, match=r"^The server does not answer\.$"):
            whole_run(corpus, tmp_path, *assignments)
        assert len(kept_answers(tmp_path)) == 8
        no_training(monkeypatch)
        expert = give(StubExpert(by_hash))
        run = whole_run(corpus, tmp_path, *assignments)
        rows, protocol = run.rows["validation"], run.collator("validation").protocol
        assert expert.calls == len(rows) - 8
        model = AutoModel.from_pretrained(run.folder)
        given = answers_of(model, list(validation_requests(model, run.processor, rows, protocol)))
        fit = fit_agreement(
            np.array([answer.score for answer in given]),
            rows.labels,
            np.array([answer.uncertainty for answer in given]),
            "mosi",
        )
        assert model.config.calibration["expert"] == fit.to_dict()
        assert {answer["question"] for answer in kept_answers(tmp_path)} == {
            request.prompt for request in validation_requests(model, run.processor, rows, protocol)
        }

        (run.folder / "run.json").unlink()
        expert.asked.clear()
        whole_run(corpus, tmp_path, *assignments)
        assert expert.calls == 0, "a finished calibration is read"
        assert AutoModel.from_pretrained(run.folder).config.tau_2 == model.config.tau_2

    def test_an_expert_without_a_number_needs_a_threshold_that_is_given(
        self, corpus: Path, tmp_path: Path, give: Callable[[StubExpert], StubExpert]
    ) -> None:
        give(StubExpert(lambda _: Says("I cannot tell.")))
        with pytest.raises(MsaError, match="tau_2 cannot be calibrated"):
            whole_run(corpus, tmp_path / "without", *EXPERT)
        run = whole_run(corpus, tmp_path / "given", *EXPERT, "model.tau_2=0.4", "model.tau_1=.inf")
        config = AutoModel.from_pretrained(run.folder).config
        assert (config.tau_1, config.tau_2) == (float("inf"), 0.4)
        assert config.calibration["expert"] == {"same": None, "opposite": None}
        assert run.log[-1]["unparsed"] == len(run.rows["validation"])

    @pytest.mark.parametrize(
        ("assignments", "words"),
        [
            (["model.route=cascade"], "but the recipe names none; pass --set model.expert_model"),
            (["model.route=mllm", "model.expert_model=./nowhere"], "'./nowhere' cannot be loaded"),
            (EXPERT, "The expert cannot be asked .*name another with --set model.expert_model=NAME"),
            (
                ["model.expert_model={folder}", "model.route=cascade", "model.expert_adapter=true"]
                + ["stages.lora.lora_target_modules=nothing"],
                r"No layer of the language model .*\('nothing'\)",
            ),
        ],
    )
    def test_an_expert_that_is_not_there_is_missed_before_training(
        self,
        corpus: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        assignments: list[str],
        words: str,
    ) -> None:
        no_training(monkeypatch)
        tiny_text_model().save_pretrained(tmp_path / "text")
        tiny_text_tokenizer().save_pretrained(tmp_path / "text")
        assignments = [one.format(folder=tmp_path / "text") for one in assignments]
        with pytest.raises(MsaError, match=words) as error:
            whole_run(corpus, tmp_path / "run", *assignments)
        assert "\n" not in str(error.value)


def config_of(folder: Path) -> dict[str, Any]:
    return dict(UacsConfig.from_pretrained(folder).to_dict())


class TestCalibrate:
    def test_an_expert_for_a_small_model_that_was_trained_alone(
        self,
        corpus: Path,
        run: RunContext,
        give: Callable[[StubExpert], StubExpert],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        no_training(monkeypatch)
        expert = give(StubExpert(by_hash))
        runs = run.folder.parent
        assigned = ["route=cascade", "expert_kind=endpoint", "expert_model=http://127.0.0.1:1/v1"]
        made: dict[str, dict[str, Any]] = {}
        for name, budget in (("expert", None), ("budget", "25%"), ("time", "100s")):
            output = str(runs / name)
            run_command(run=str(runs), data=str(corpus), output=output, assignments=assigned, budget=budget)
            made[name] = config_of(runs / name / "seed-1")
        before = config_of(run.folder)
        assert expert.calls == len(run.rows["validation"]), "asked once for all three"
        assert made["expert"]["tau_1"] == pytest.approx(before["tau_1"])
        assert made["expert"]["calibration"]["small"] == before["calibration"]["small"]
        assert made["expert"]["tau_2"] == made["budget"]["tau_2"] == made["time"]["tau_2"]
        assert made["budget"]["budget_share"] == 0.25 and made["time"]["budget_seconds"] == 100
        assert made["time"]["tau_1"] == float("-inf")
        rows = run.rows["validation"]
        results = evaluate_runs(
            str(runs / "budget"), str(corpus), protocol="complete", split="validation", output=str(runs / "results")
        )
        assert results.content["config"]["tau_1"] == made["budget"]["tau_1"]
        table = pyarrow.parquet.read_table(runs / "results" / "predictions.parquet").to_pydict()
        handed_on = sum(route > 0 for route in table["route"])
        assert 0 < handed_on <= len(rows) // 4, "fewer where some are equally uncertain"
        assert handed_on == sum(uncertainty > made["budget"]["tau_1"] for uncertainty in table["uncertainty"])
        share = handed_on / len(rows)
        cost = results.content["cost"]
        assert cost["calls"] == pytest.approx(np.mean(table["expert_calls"])) and cost["unreadable"] == 0
        assert cost["routes"]["fast"] == pytest.approx(1 - share) and sum(cost["routes"].values()) == pytest.approx(1)
        assert cost["tokens"] > cost["calls"] and cost["seconds"] == pytest.approx(np.mean(table["seconds"]), rel=1e-5)
        assert f"fast {1 - share:.1%}".replace("%", " %") in results_markdown(results.content)
        facts = json.loads((runs / "budget" / "seed-1" / "run.json").read_text(encoding="utf-8"))
        _, printed, everything = re.findall(r"on validation ([\d.]+) % are handed on", capsys.readouterr().out)
        assert everything == "100.0"
        # A small model of one epoch is almost equally sure of everything: rounding may put these on either side.
        on_the_edge = sum(abs(uncertainty - made["budget"]["tau_1"]) < 1e-6 for uncertainty in table["uncertainty"])
        assert abs(share - float(printed) / 100) < (on_the_edge + 0.5) / len(rows)
        assert (
            facts["calibration"]["changes"]["budget_share"] == 0.25 and facts["language_model_input"] == "transcript"
        )

        give(StubExpert(lambda _: Says("nobody is asked")))
        calibrate(run=str(runs), data=str(corpus), output=str(runs / "budget"), assignments=assigned, budget="25%")
        with pytest.raises(MsaError, match="exists and holds something else"):
            calibrate(run=str(runs), data=str(corpus), output=str(runs / "budget"), assignments=assigned)
        for name in ("expert", "budget", "time"):
            shutil.rmtree(runs / name)

    def test_lambda_at_evaluation_moves_the_threshold_and_the_result_says_so(
        self, corpus: Path, run: RunContext, tmp_path: Path
    ) -> None:
        made = evaluate_runs(
            str(run.folder),
            str(corpus),
            protocol="complete",
            changes={"threshold_lambda": 1},
            output=str(tmp_path),
        )
        before = config_of(run.folder)
        assert made.content["config"]["tau_1"] == before["calibration"]["small"]["opposite"]["mean"] != before["tau_1"]
        assert made.content["changes"] == {"threshold_lambda": 1}
        with pytest.raises(MsaError, match="tau_1 was calibrated with temperature=.* run `hf-msa calibrate"):
            evaluate_runs(
                str(run.folder), str(corpus), changes={"route": "cascade", "temperature": 3.0}, output=str(tmp_path)
            )

    def test_unreadable_answers_are_said_wherever_one_looks(
        self,
        corpus: Path,
        run: RunContext,
        tmp_path: Path,
        give: Callable[[StubExpert], StubExpert],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        give(StubExpert(lambda request: Says("well") if by_hash(request).entropy < 0.5 else by_hash(request)))
        made = evaluate_runs(
            str(run.folder),
            str(corpus),
            protocol="complete",
            changes={"route": "mllm", "expert_kind": "endpoint", "expert_model": "http://127.0.0.1:1/v1"},
            output=str(tmp_path),
        )
        table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pydict()
        lost = [score for score, unparsed in zip(table["prediction"], table["unparsed"], strict=True) if unparsed]
        assert set(lost) == {0.0} and len(lost) < len(table["id"]), "the neutral score, never the small model's"
        assert made.content["cost"]["unreadable"] == pytest.approx(len(lost) / len(table["id"]))
        assert "answers could not be read" in caplog.text
        assert "too many to judge" in results_markdown(made.content)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"budget": "a lot"}, "--budget is 'a lot'; give a share of the samples such as 20%"),
            ({"budget": "2s"}, "the route 'fast' has none; set route=cascade"),
            ({"assignments": ["expert_model=other"]}, "asks no expert; add --set route=cascade"),
            ({"assignments": ["budget_share=2"]}, "budget_share must be at least 0 and at most 1"),
        ],
    )
    def test_what_cannot_be(
        self, corpus: Path, run: RunContext, tmp_path: Path, arguments: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(MsaError, match=words) as error:
            calibrate(run=str(run.folder), data=str(corpus), output=str(tmp_path / "new"), **arguments)
        assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def media(run: RunContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound of a height of its own for every clip but the first of each split."""
    folder = tmp_path_factory.mktemp("media")
    for rows in run.rows.values():
        for index in range(1, len(rows)):
            row = rows[index]
            file = folder / row["video_id"] / f"{row['clip_id']}.wav"
            file.parent.mkdir(exist_ok=True)
            soundfile.write(file, np.full(160, index / 1000, dtype=np.float32), 16_000, subtype="FLOAT")
    return folder


class TestMedia:
    def test_the_expert_hears_the_clips_and_all_that_is_written_says_so(
        self,
        corpus: Path,
        tmp_path: Path,
        media: Path,
        give: Callable[[StubExpert], StubExpert],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        expert = give(StubExpert(by_hash))
        recipe = load_recipe("uacs/sample", assignments=[*SMALL, *EXPERT, "model.expert_batch_size=5"])
        run = run_recipe(recipe, str(corpus), tmp_path, 1, QUIET, media=media)
        rows = run.rows["validation"]
        requests = [request for asked in expert.asked for request in asked]
        assert [None if request.audio is None else round(1000 * float(request.audio[0])) for request in requests] == [
            None,
            *range(1, len(rows)),
        ]
        # The corpus has no names for its features, so nothing is said of them.
        assert not any("Voice:" in request.prompt or "Face:" in request.prompt for request in requests)
        assert "You cannot hear or see the clip." in requests[0].prompt
        assert all("You cannot see the clip." in request.prompt for request in requests[1:])
        facts = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
        assert facts["language_model_input"] == "media"
        assert facts["media"]["validation"] == {"clips": len(rows), "without_file": 1}
        with pytest.raises(MsaError, match=r"a run with other settings \(media differs: .*, now None\)"):
            run_recipe(recipe, str(corpus), tmp_path, 1, QUIET)

        options: dict[str, Any] = {"protocol": "complete", "split": "validation"}
        expert.asked.clear()
        made = evaluate_runs(str(run.folder), str(corpus), output=str(tmp_path / "a"), media=str(media), **options)
        assert made.content["language_model_input"] == "media"
        assert made.content["media"] == {"clips": len(rows), "without_file": 1}
        assert all(SECOND_OPINION in request.prompt for asked in expert.asked for request in asked), (
            "the rest is known"
        )
        assert "given the transcript with sound and pictures (1 of" in caption(made.content)

        caplog.clear()
        made = evaluate_runs(str(run.folder), str(corpus), output=str(tmp_path / "b"), **options)
        assert made.content["language_model_input"] == "transcript" and made.content["media"] is None
        assert ["its thresholds may not fit" in record.getMessage() for record in caplog.records] == [True]
        assert "given the transcript with sound and pictures; given" in card_of(run.folder)

    def test_an_example_is_read_when_it_is_asked_for(self, run: RunContext, media: Path) -> None:
        model = AutoModel.from_pretrained(run.folder)
        read: list[str] = []

        def load(row: Mapping[str, Any]) -> dict[str, Any]:
            read.append(row["id"])
            return MediaFolder(media).load(row)

        model.media = load
        examples = AnsweredRows(model, run.rows["train"])
        assert len(examples) == len(run.rows["train"]) and read == []
        example = examples[3]
        assert read == [run.rows["train"].ids[3]] and float(example.request.audio[0]) == pytest.approx(0.003)
        assert example.answer == answer_text(float(run.rows["train"].labels[3]))

    def test_media_without_an_expert_are_refused(self, corpus: Path, run: RunContext, media: Path) -> None:
        with pytest.raises(MsaError, match="--media is for models that ask a multimodal language model"):
            evaluate_runs(str(run.folder), str(corpus), media=str(media))
        for name in ("uacs/sample", "text/sample"):
            with pytest.raises(MsaError, match=f"'{name}' reads features only"):
                run_recipe(load_recipe(name), str(corpus), run.folder.parent / "other", 1, QUIET, media=media)


def test_an_adapter_is_trained_saved_and_asked(
    corpus: Path, tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_thinker().save_pretrained(tmp_path / "models" / "thinker")
    tiny_mllm_processor().save_pretrained(tmp_path / "models" / "thinker")
    monkeypatch.chdir(tmp_path)
    assignments = [
        *("model.route=cascade", "model.expert_model=models/thinker", "model.expert_adapter=true"),
        # Random weights write no numbers from which a threshold could be taken.
        *("model.tau_1=-1", "model.tau_2=0.5", "model.expert_max_new_tokens=4"),
        *("stages.lora.max_steps=1", "stages.lora.gradient_accumulation_steps=1", "stages.lora.learning_rate=0.01"),
    ]
    run = whole_run(corpus, tmp_path / "run", *assignments, media=media)
    assert [stage["name"] for stage in run.log] == ["ubm", "lora", "calibration"]
    assert METHODS["uacs"].stages.of(run.config) == ("ubm", "lora", "calibration")
    assert METHODS["uacs"].stages.of(UacsConfig(route="fast")) == ("ubm", "calibration")
    published = without_local_paths(json.loads((run.folder / "run.json").read_text(encoding="utf-8")))
    assert published["settings"]["model"]["expert_model"] == published["config"]["expert_model"] == "thinker"
    assert "models/thinker" not in json.dumps(published)
    weights = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    assert any(value.abs().sum() > 0 for name, value in weights.items() if "lora_B" in name), "it has learned"
    described = json.loads((run.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (described["r"], described["lora_alpha"], described["lora_dropout"]) == (16, 32, 0.05)

    model = AutoModel.from_pretrained(run.folder)
    rows = [run.rows["validation"][index] for index in range(3)]
    out = model.predict_rows(run.processor.from_rows(rows), rows, run.processor)
    assert (out.expert_calls >= 1).all() and model.expert.name.endswith("adapter")
    assert len(kept_answers(tmp_path / "run")) == len(run.rows["validation"])
    model.media = MediaFolder(media).load
    request = model.expert_requests(rows[1:2])[0]
    assert request.audio is not None
    (anew,) = model.ask_expert([request])
    model.answers_folder = tmp_path / "run" / "answers"
    monkeypatch.setattr(LocalMllm, "generate", None)
    assert model.ask_expert([request])[0].text == anew.text, "the saved adapter has the identity of the one asked"

    no_training(monkeypatch)
    (run.folder / "run.json").unlink()
    again = whole_run(corpus, tmp_path / "run", *assignments, media=media)
    assert [stage["name"] for stage in again.log] == ["ubm", "lora", "calibration"]
