"""Runs on the tiny corpus: stages, what they leave untouched, what a second command does, what is refused."""

import copy
import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertTokenizer,
    HfArgumentParser,
    RobertaConfig,
    TrainingArguments,
)

from hf_msa.data.missing import ModalityMissing
from hf_msa.errors import MsaError
from hf_msa.methods import METHODS
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis, TcmrPolarityClassifier, TcmrTextRegressor
from hf_msa.training.arguments import MsaTrainingArguments
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import (
    RunContext,
    feature_statistics,
    prepare_run,
    run_recipe,
    split_flags,
    text_positions,
    warn_of_scales,
)
from hf_msa.training.tcmr import AlternatingTcmrTrainer, complete_text_features
from hf_msa.training.trainer import MsaTrainer

SHORT = [f"stages.{stage}.num_train_epochs=1" for stage in ("main", "polarity", "regressor", "confidence")] + [
    "missing.selection_repeats=1"
]
QUIET = {"disable_tqdm": True, "use_cpu": True}


def short_run(
    corpus: Path,
    output: Path,
    name: str = "tcmr/sample",
    ablation: str | None = None,
    seed: int = 1,
    method_set: tuple = (),
) -> RunContext:
    config = METHODS[name.partition("/")[0]].config_class
    stages = {"main", *(("polarity", "regressor", "confidence") if hasattr(config, "optimization") else ())}
    assignments = [item for item in SHORT if item.split(".")[0] != "stages" or item.split(".")[1] in stages]
    recipe = load_recipe(name, ablation=ablation, assignments=[*assignments, *method_set])
    return run_recipe(recipe, str(corpus), output, seed, QUIET)


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return short_run(tiny_corpus, tmp_path_factory.mktemp("run"))


def test_run_gives_a_checkpoint_that_auto_classes_load(trained: RunContext) -> None:
    model = AutoModel.from_pretrained(trained.folder)
    processor = AutoProcessor.from_pretrained(trained.folder)
    row = trained.rows["validation"][0]
    scores = model(**processor.from_rows([row])).logits
    assert scores.shape == (1, 1) and torch.isfinite(scores).all()


def test_run_json_says_how_the_checkpoint_was_chosen(trained: RunContext) -> None:
    run = json.loads((trained.folder / "run.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in run["stages"]] == ["polarity", "regressor", "main"]
    assert run["selection"]["split"] == "validation" and run["selection"]["protocol"]["rate"] == 0.5
    assert run["selection"]["epoch"] == 1 and np.isfinite(run["selection"]["value"])
    assert run["dataset"]["n"] == {"train": 96, "validation": 32}, "the test split is never loaded for training"
    assert not [value for value in json.dumps(run).split('"') if value.startswith("/")], "no path of this machine"


def test_a_finished_run_is_not_repeated(trained: RunContext, tiny_corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*") if path.is_file()}
    short_run(tiny_corpus, trained.folder.parent)
    assert before == {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*") if path.is_file()}


def test_a_folder_is_not_shared_by_two_settings(trained: RunContext, tiny_corpus: Path) -> None:
    with pytest.raises(MsaError, match="other settings .*recipe.*choose another --output"):
        short_run(tiny_corpus, trained.folder.parent, method_set=("model.w_task=2.0",))


def test_finished_stages_are_loaded_not_trained(
    trained: RunContext, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trained.folder / "run.json").unlink()
    weights = load_file(trained.folder / "model.safetensors")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr("hf_msa.training.trainer.MsaTrainer.train", refuse)
    short_run(tiny_corpus, trained.folder.parent)
    again = load_file(trained.folder / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())


@pytest.mark.parametrize("ablation", ["confnet_first", "confnet_later", "end2end", "wo_tce", "ub", "wo_ipfg"])
def test_every_training_scheme_runs(tiny_corpus: Path, tmp_path: Path, ablation: str) -> None:
    context = short_run(tiny_corpus, tmp_path, ablation=ablation)
    run = json.loads((context.folder / "run.json").read_text(encoding="utf-8"))
    stages = [stage["name"] for stage in run["stages"]]
    expected = {"confnet_first": ["confidence", "main"], "confnet_later": ["main", "confidence"]}.get(
        ablation, ["main"]
    )
    assert stages == ["polarity", "regressor", *expected] and run["selection"]["stage"] == "main"
    assert METHODS["tcmr"].stages.of(context.config) == tuple(stages)
    assert f"stage {stages.index('main') + 1} of {len(stages)} 'main'" in context.title("main")
    if len(expected) == 2:
        before, after = (load_file(context.stage_folder(stage) / "model" / "model.safetensors") for stage in expected)
        changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
        of_confnet = {name for name in before if name.startswith("confnet")}
        frozen = {name for name in before if name.startswith("text_encoder")} | of_confnet
        assert changed
        assert not changed & frozen if ablation == "confnet_first" else changed <= of_confnet


def alternating_trainer(context: RunContext, tmp_path: Path) -> AlternatingTcmrTrainer:
    classifier = TcmrPolarityClassifier.from_pretrained(context.stage_folder("polarity") / "model")
    regressor = TcmrTextRegressor.from_pretrained(context.stage_folder("regressor") / "model")
    arguments = context.arguments("main", True)
    arguments.output_dir = str(tmp_path)
    trainer = AlternatingTcmrTrainer(
        context.new_model(TcmrForSentimentAnalysis),
        arguments,
        context.rows["train"],
        context.rows["validation"],
        context.collator("train", return_complete=True),
        context.collator("validation"),
        classifier=classifier,
        text_targets=complete_text_features(context, regressor, tmp_path / "features.safetensors"),
        objective="other",
    )
    return trainer


def test_phases_change_only_their_own_parameters(trained: RunContext, tmp_path: Path) -> None:
    """Algorithm 1: phase A leaves all but text encoder and ConfNet as it is, phase B leaves ConfNet; both step BERT."""
    trainer = alternating_trainer(trained, tmp_path)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model
    phases = {}
    for batch in trainer.get_train_dataloader():
        phases.setdefault(int(batch["draw"][0]) % 2, batch)
    for phase, untouched in (
        (0, lambda name: not name.startswith(("text_encoder", "confnet"))),
        (1, lambda name: name.startswith("confnet")),
    ):
        before = copy.deepcopy(model.state_dict())
        trainer.training_step(model, phases[phase])
        for group in trainer.optimizer.param_groups:
            group["lr"] = 1e-3
        trainer.optimizer.step()
        model.zero_grad()
        after = model.state_dict()
        changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
        assert not {name for name in changed if untouched(name)}
        assert any(name.startswith("text_encoder") for name in changed)


def test_training_masks_differ_by_pass_and_validation_masks_stay(trained: RunContext, tmp_path: Path) -> None:
    trainer = alternating_trainer(trained, tmp_path)
    first, second = ([batch["input_ids"] for batch in trainer.get_eval_dataloader()] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    loader = trainer.get_train_dataloader()
    draws = {int(batch["draw"][0]) for batch in loader}
    assert draws == {0, 1}


def test_targets_of_the_confidence(trained: RunContext, tmp_path: Path) -> None:
    trainer = alternating_trainer(trained, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    targets = trainer.confidence_targets(batch)
    logits = trainer.classifier(batch["input_ids"], batch["attention_mask"]).logits.softmax(-1)
    classes = torch.sign(batch["labels"]).long() + 1
    assert torch.allclose(targets, logits[torch.arange(len(classes)), classes])
    trainer.model.config.confidence_target = "completeness"
    assert torch.allclose(trainer.confidence_targets(batch), 1 - batch["missing_rates"][:, 0])


def test_cached_features_are_those_of_the_complete_text_in_row_order(trained: RunContext, tmp_path: Path) -> None:
    trainer = alternating_trainer(trained, tmp_path)
    regressor = TcmrTextRegressor.from_pretrained(trained.stage_folder("regressor") / "model")
    row = trained.rows["train"][17]
    with torch.no_grad():
        alone = regressor(torch.tensor(row["input_ids"])[None], torch.ones(1, len(row["input_ids"]), dtype=torch.long))
    assert torch.allclose(trainer.text_targets[17].float(), alone.features[0], atol=2e-3)


def test_feature_statistics_match_numpy(trained: RunContext) -> None:
    rows = trained.rows["train"]
    frames = np.concatenate([rows[index]["audio"] for index in range(len(rows))]).astype(np.float64)
    mean, std = feature_statistics(rows, "audio")
    assert np.allclose(mean, frames.mean(0)) and np.allclose(std, frames.std(0), atol=1e-6)


def test_a_constant_feature_has_no_deviation() -> None:
    """Sums of squares leave about 1e-17 of variance, by which nothing may be divided."""
    frames = np.stack([np.full(1000, 0.1), np.arange(1000) * 1e-3], axis=1).astype(np.float32)
    mean, std = feature_statistics([{"audio": frames}], "audio")  # type: ignore[arg-type]
    assert mean[0] == pytest.approx(0.1) and std[0] == 0.0 and std[1] == pytest.approx(0.2887, abs=1e-4)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (
            [188.0, 0.1, 0.0],
            [55.0, 0.14, 0.1],
            "feature 0 has mean 188 and standard deviation 55, .* deviates by 0.14;",
        ),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 30.0], "feature 2 has mean 0 and standard deviation 30, .* deviates by 2;"),
        ([0.0, 3.0, 0.0], [1.0, 1.2, 0.0], None),  # standardised by another split; a dead feature
        ([5.0, 7.0], [0.0, 0.0], None),
    ],
)
def test_scales_that_hide_each_other_are_warned_of(mean: list[float], std: list[float], said: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_scales("audio", mean, std)
    found = [str(warning.message) for warning in caught]
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0])


@pytest.mark.parametrize(
    ("name", "norm", "warned"), [("tcmr", "none", 2), ("tcmr", "standard", 0), ("cmc", "none", 0)]
)
def test_raw_features_are_warned_of_unless_the_model_normalises_them(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, norm: str, warned: int
) -> None:
    monkeypatch.setattr("hf_msa.training.stages._LARGEST_SCALE", 0.5)
    recipe = load_recipe(f"{name}/sample", assignments=[f"feature_norm={norm}"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare_run(recipe, str(tiny_corpus), tmp_path, 1, QUIET)
    assert sum("feature_norm=standard" in str(warning.message) for warning in caught) == warned


def test_flags_on_the_optimiser_concern_the_final_stage() -> None:
    assert split_flags({"learning_rate": 1.0, "use_cpu": True}) == {
        "final": {"learning_rate": 1.0},
        "all": {"use_cpu": True},
    }


def test_every_training_argument_is_known_to_concern_all_stages_or_the_final_one() -> None:
    """A flag that a later version of transformers brings has to be thought about once."""
    optimiser = (
        "adam_",
        "optim",
        "learning_rate",
        "lr_",
        "warmup",
        "weight_decay",
        "max_grad_norm",
        "label_smoothing",
    )
    training = (
        "num_train_epochs",
        "max_steps",
        "neftune",
        "per_device_train",
        "gradient_accumulation",
        "text_learning",
    )
    choice = ("metric_for_best_model", "greater_is_better", "early_stopping", "component_")
    names = [field.name for field in dataclasses.fields(MsaTrainingArguments)]
    final = MsaTrainingArguments.FINAL_STAGE_ONLY
    assert final == {name for name in names if name.startswith((*optimiser, *training, *choice))}
    assert len(final) == 24 and {"adam_beta2", "optim_args", "text_learning_rate", "label_smoothing_factor"} <= final
    everywhere = ("bf16", "fp16", "logging_", "save_", "dataloader_", "ddp_", "eval_", "use_cpu", "seed", "data_seed")
    assert not final & {name for name in names if name.startswith(everywhere)}
    HfArgumentParser(MsaTrainingArguments).parse_args_into_dataclasses(["--output_dir", "x", "--use_cpu"])


class Processes:
    """Stands for accelerate's state where more than one process runs."""

    count = 1
    is_main_process = True
    device = torch.device("cpu")

    def wait_for_everyone(self) -> None: ...

    @property
    def num_processes(self) -> int:
        return self.count


class TestBatch:
    @pytest.fixture(autouse=True)
    def processes(self, monkeypatch: pytest.MonkeyPatch) -> type[Processes]:
        class Some(Processes): ...

        monkeypatch.setattr("hf_msa.training.stages.PartialState", Some)
        return Some

    def per_device(self, corpus: Path, folder: Path, flags: dict[str, Any], *recipe: str) -> int:
        chosen = load_recipe("text/sample", assignments=["stages.main.per_device_train_batch_size=48", *recipe])
        context = prepare_run(chosen, str(corpus), folder, 1, {**QUIET, **flags})
        return context.arguments("main", True).per_device_train_batch_size

    @pytest.mark.parametrize(
        ("count", "flags", "recipe", "expected"),
        [
            (1, {}, [], 48),
            (2, {}, [], 24),
            (3, {"gradient_accumulation_steps": 2}, [], 8),
            (2, {}, ["stages.main.gradient_accumulation_steps=4"], 24),
            (2, {"gradient_accumulation_steps": 8}, ["stages.main.gradient_accumulation_steps=4"], 12),
            (2, {"per_device_train_batch_size": 48}, [], 48),
        ],
    )
    def test_the_recipes_batch_is_that_of_all_processes_and_steps(
        self,
        tiny_corpus: Path,
        tmp_path: Path,
        processes: type[Processes],
        count: int,
        flags: dict[str, Any],
        recipe: list[str],
        expected: int,
    ) -> None:
        processes.count = count
        assert self.per_device(tiny_corpus, tmp_path, flags, *recipe) == expected

    def test_a_batch_that_cannot_be_parted_is_refused(
        self, tiny_corpus: Path, tmp_path: Path, processes: type[Processes]
    ) -> None:
        processes.count = 5
        with pytest.raises(
            MsaError, match=r"batch of 48 rows in stage 'main' cannot be parted .* over 5 .*batch_size=5"
        ):
            self.per_device(tiny_corpus, tmp_path, {})

    def test_another_number_of_processes_is_said_and_another_batch_refused(
        self, tiny_corpus: Path, tmp_path: Path, processes: type[Processes], caplog: pytest.LogCaptureFixture
    ) -> None:
        self.per_device(tiny_corpus, tmp_path, {})
        (tmp_path / "stages" / "main" / "checkpoint-1").mkdir(parents=True)
        processes.count = 2
        assert self.per_device(tiny_corpus, tmp_path, {}) == 24
        assert "was begun with 1 processes and goes on with 2" in caplog.text
        with pytest.raises(MsaError, match=r"\(batch.main differs: 48, now 96; flags"):
            self.per_device(tiny_corpus, tmp_path, {"per_device_train_batch_size": 48})

    def test_what_an_earlier_version_did_not_note_is_no_difference(self, tiny_corpus: Path, tmp_path: Path) -> None:
        self.per_device(tiny_corpus, tmp_path, {})
        (tmp_path / "stages" / "main" / "checkpoint-1").mkdir(parents=True)
        settings = json.loads((tmp_path / "settings.json").read_text())
        del settings["batch"], settings["processes"]
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        assert self.per_device(tiny_corpus, tmp_path, {}) == 48


def test_several_gpus_do_not_become_data_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = MsaTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=4)
    monkeypatch.setattr(arguments, "_n_gpu", 2, raising=False)
    assert TrainingArguments.n_gpu.fget(arguments) == 2, "what the library would do"
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 4


def test_texts_are_cut_at_the_encoder_s_positions_with_a_warning(tiny_corpus: Path, tmp_path: Path) -> None:
    recipe = load_recipe("text/sample", assignments=["model.text_max_length=600"])
    with pytest.warns(UserWarning, match="text_max_length is 600, but .* has positions for 128 tokens"):
        context = prepare_run(recipe, str(tiny_corpus), tmp_path / "run", 1, QUIET)
    assert context.config.text_max_length == context.processor.text_max_length == 128


def test_roberta_counts_positions_from_behind_its_padding() -> None:
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
    assert text_positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1), tokenizer) == 512
    assert text_positions(BertConfig(), tokenizer) == 512


def test_missing_text_encoder_is_one_sentence(tiny_corpus: Path, tmp_path: Path) -> None:
    recipe = load_recipe("text/sample", text_model=str(tmp_path / "nothing"))
    with pytest.raises(MsaError, match="--text-model"):
        prepare_run(recipe, str(tiny_corpus), tmp_path / "run", 1, {})


def test_seeds_lie_in_one_folder_of_runs(trained: RunContext) -> None:
    assert trained.runs_folder == trained.folder.parent


def test_gradient_accumulation_gives_the_larger_batch_s_loss(tiny_corpus: Path, tmp_path: Path) -> None:
    histories = []
    for size, steps in ((8, 1), (4, 2)):
        flags = {
            **QUIET,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": steps,
            "logging_strategy": "steps",
            "logging_steps": 1,
        }
        recipe = load_recipe(
            "text/sample", assignments=["stages.main.num_train_epochs=1", "missing.selection_repeats=1"]
        )
        without_dropout(tiny_corpus)
        context = run_recipe(recipe, str(tiny_corpus), tmp_path / str(size), 1, flags)
        histories.append([entry["loss"] for entry in context.log[-1]["history"] if "loss" in entry])
    assert len(histories[0]) == 12
    assert np.allclose(histories[0], histories[1], rtol=1e-4)


def without_dropout(corpus: Path) -> None:
    """Dropout draws differ between one large and two small batches; the comparison is about the arithmetic."""
    file = corpus / "text_model" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps(config), encoding="utf-8")


def test_attending_to_padding_needs_fixed_lengths(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(MsaError, match="pad_to_fixed=true"):
        short_run(tiny_corpus, tmp_path, method_set=("model.mask_padding=false",))
    context = short_run(tiny_corpus, tmp_path, method_set=("model.mask_padding=false", "pad_to_fixed=true"))
    model = AutoModel.from_pretrained(context.folder)
    processor = AutoProcessor.from_pretrained(context.folder)
    rows = [context.rows["validation"][index] for index in range(3)]
    inputs = processor.from_rows(rows)
    assert inputs["audio_values"].shape[1] == model.config.audio_max_length
    assert inputs["input_ids"].shape[1] == model.config.text_max_length
    alone = model(**processor.from_rows(rows[:1])).logits
    assert torch.allclose(model(**inputs).logits[:1], alone, atol=1e-5), "a neighbour changed a prediction"


def test_without_selection_the_last_checkpoint_is_kept_and_said_to_be(tiny_corpus: Path, tmp_path: Path) -> None:
    recipe = load_recipe("text/sample", assignments=["stages.main.num_train_epochs=2", "missing.selection_repeats=1"])
    flags = {**QUIET, "load_best_model_at_end": False}
    context = run_recipe(recipe, str(tiny_corpus), tmp_path, 1, flags)
    selection = json.loads((context.folder / "run.json").read_text(encoding="utf-8"))["selection"]
    assert selection["rule"] == "last" and selection["epoch"] == 2 and selection["step"] == 6
    last = load_file(context.stage_folder("main") / "checkpoint-6" / "model.safetensors")
    kept = load_file(context.folder / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in last.items())


# --- One training rate ---


@pytest.mark.parametrize("method", METHODS)
def test_rate_free_stages_are_stages_and_not_the_one_that_predicts(method: str) -> None:
    stages = METHODS[method].stages
    assert stages.final in stages.names
    assert set(stages.rate_free) <= set(stages.names) - {stages.final}


def test_a_run_at_another_rate_takes_over_what_no_rate_has_a_part_in(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(output: Path, rate: float, shared: Path | None = None) -> RunContext:
        recipe = load_recipe("tcmr/sample", assignments=SHORT[:3] + SHORT[4:], train_rate=rate)
        return run_recipe(recipe, str(tiny_corpus), output, 1, QUIET, shared=shared)

    first = run(tmp_path / "rate-0.0", 0.0)
    trained: list[str] = []
    fit = MsaTrainer.fit

    def noted(trainer: MsaTrainer) -> Any:
        trained.append(Path(trainer.args.output_dir).name)
        return fit(trainer)

    monkeypatch.setattr(MsaTrainer, "fit", noted)
    other = run(tmp_path / "rate-0.7", 0.7, first.folder)
    assert trained == ["main"]
    for stage in ("polarity", "regressor"):
        made, taken = (context.stage_folder(stage) / "model" / "model.safetensors" for context in (first, other))
        assert made.read_bytes() == taken.read_bytes()
    facts = json.loads((other.folder / "run.json").read_text(encoding="utf-8"))
    assert other.runs_folder == first.runs_folder == tmp_path
    assert facts["train_rate"] == 0.7 and [stage["name"] for stage in facts["stages"]] == [
        "polarity",
        "regressor",
        "main",
    ]
    assert facts["selection"]["protocol"] == {"name": "modality", "rate": 0.7}
    assert facts["settings"]["missing"]["train"] == {"name": "modality", "rate": 0.7}
    # The same command again trains nothing.
    run(tmp_path / "rate-0.7", 0.7, first.folder)
    assert trained == ["main"]


def test_training_masks_are_those_of_the_whole_split(tiny_corpus: Path, tmp_path: Path) -> None:
    recipe = load_recipe("tcmr/sample", train_rate=0.7)
    context = prepare_run(recipe, str(tiny_corpus), tmp_path, 3, QUIET)
    for split, seed in (("train", 3), ("validation", 1111)):
        collator = context.collator(split)
        assert collator.protocol == ModalityMissing(0.7, seed=seed)
        rows = context.rows[split]
        masks = collator.masks([{**rows[index], "draw": 0} for index in range(len(rows))])
        assert (masks.rates.sum(axis=1) == 2).all(), "each sample keeps one of three modalities"
