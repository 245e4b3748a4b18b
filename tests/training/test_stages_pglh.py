"""PGLH on the tiny corpus: what is trained, what the checkpoint is chosen by, what the log holds."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from hf_msa.models.configuration_pglh import PglhConfig
from hf_msa.models.modeling_pglh import PglhForSentimentAnalysis
from hf_msa.training.pglh import PglhTrainer, run, single_frame_note
from hf_msa.training.recipes import load_recipe, recipe_names
from hf_msa.training.stages import RunContext, run_recipe

QUIET = {"disable_tqdm": True, "use_cpu": True}
SHORT = ["stages.main.num_train_epochs=2", "missing.selection_repeats=1"]


def short_run(corpus: Path, output: Path, ablation: str | None = None) -> RunContext:
    recipe = load_recipe("pglh/sample", ablation=ablation, assignments=SHORT)
    return run_recipe(recipe, str(corpus), output, 1, QUIET)


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return short_run(tiny_corpus, tmp_path_factory.mktemp("run"))


def history(context: RunContext) -> list[dict[str, Any]]:
    stage = json.loads((context.stage_folder("main") / "stage.json").read_text(encoding="utf-8"))
    entries: list[dict[str, Any]] = stage["history"]
    return entries


def trainer_of(context: RunContext, folder: Path) -> PglhTrainer:
    arguments = context.arguments("main", True)
    arguments.output_dir = str(folder)
    return PglhTrainer(
        PglhForSentimentAnalysis.from_pretrained(context.folder),
        arguments,
        context.rows["train"],
        context.rows["validation"],
        context.collator("train", return_complete=True),
        context.collator("validation"),
    )


def test_run_gives_a_checkpoint_that_predicts_without_its_decoders(trained: RunContext) -> None:
    processor = AutoProcessor.from_pretrained(trained.folder)
    inputs = processor.from_rows([trained.rows["validation"][0]])
    full = AutoModel.from_pretrained(trained.folder)
    small = AutoModel.from_pretrained(trained.folder, drop_decoder=True)
    assert torch.equal(full(**inputs).logits, small(**inputs).logits)
    assert small.num_parameters() < full.num_parameters()


def test_losses_and_learned_balances_are_logged_every_epoch(trained: RunContext) -> None:
    logged = [entry for entry in history(trained) if "loss" in entry]
    assert [entry["epoch"] for entry in logged] == [1, 2]
    names = {"alpha_text", "alpha_audio", "alpha_vision", "beta_audio", "beta_vision"}
    for entry in logged:
        expected = entry["loss_task"] + 0.05 * entry["loss_global"] + 0.05 * entry["loss_mask"]
        # The library rounds its own loss.
        assert entry["loss"] == pytest.approx(expected, abs=1e-3)
        assert all(0 < entry[name] < 1 and entry[name] != 0.5 for name in names)
    weights = load_file(trained.stage_folder("main") / "model" / "model.safetensors")
    best = json.loads((trained.folder / "run.json").read_text(encoding="utf-8"))["selection"]["epoch"]
    at_best = next(entry for entry in logged if entry["epoch"] == best)
    for modality in ("audio", "vision"):
        beta = weights[f"reconstructors.{modality}.balance.logit"].sigmoid().item()
        assert at_best[f"beta_{modality}"] == pytest.approx(beta, abs=1e-6)


def test_validation_loss_is_the_error_of_the_score_alone(trained: RunContext, tmp_path: Path) -> None:
    run = json.loads((trained.folder / "run.json").read_text(encoding="utf-8"))
    protocol = run["selection"]["protocol"]
    assert protocol == {"name": "frame", "rate": 0.5, "seed": 1111}
    trainer = trainer_of(trained, tmp_path)
    squared = []
    model = trainer.model.eval()
    for batch in trainer.get_eval_dataloader():
        with torch.no_grad():
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        squared += (logits.squeeze(1) - batch["labels"]).square().tolist()
    assert run["selection"]["value"] == pytest.approx(np.mean(squared), rel=1e-4)


def test_validation_ignores_complete_inputs_that_a_batch_may_hold(trained: RunContext, tmp_path: Path) -> None:
    trainer = trainer_of(trained, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert "complete_audio_values" in batch
    trainer.model.eval()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert list(outputs.losses) == ["task"] and torch.equal(loss.detach(), outputs.losses["task"])
    trainer.model.train()
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert set(outputs.losses) == {"task", "global", "mask"}


def test_alphas_and_betas_have_a_rate_of_their_own(trained: RunContext, tmp_path: Path) -> None:
    trainer = trainer_of(trained, tmp_path)
    groups = trainer.create_optimizer().param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in trainer.model.named_parameters()}
    assert {name for name, rate in found.items() if rate == 1e-2} == {n for n in found if n.endswith("balance.logit")}
    assert set(found.values()) == {1e-2, 1e-3}


def test_a_configuration_without_alphas_and_betas_takes_the_recipes_rates(trained: RunContext, tmp_path: Path) -> None:
    trainer = trainer_of(trained, tmp_path)
    config = PglhConfig.from_pretrained(trained.folder, ubpf=False, language_prompt=False)
    trainer.model = PglhForSentimentAnalysis(config)
    groups = trainer.build_optimizer(list(trainer.model.named_parameters())).param_groups
    assert {group["lr"] for group in groups} == {1e-3}


def test_clips_of_a_single_frame_are_warned_of(
    trained: RunContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = copy.copy(trained.rows["train"])
    assert single_frame_note(rows, rows.lengths) is None
    rows.lengths = {**rows.lengths, "vision": np.ones(len(rows), dtype=np.int64)}
    note = single_frame_note(rows, ("text", "audio", "vision"))
    assert note is not None and note.startswith("No clip has more than one frame of vision, so")
    assert single_frame_note(rows, ("text", "audio")) is None
    context = copy.copy(trained)
    context.rows = {**trained.rows, "train": rows}
    with caplog.at_level("WARNING"):
        run(context)
    assert note in caplog.messages


def test_nothing_is_frozen(trained: RunContext) -> None:
    start = trained.new_model(PglhForSentimentAnalysis).state_dict()
    end = load_file(trained.folder / "model.safetensors")
    changed = {name.split(".")[0] for name, value in end.items() if not torch.equal(value, start[name])}
    assert changed == {"text_encoder", "encoders", "reconstructors", "refiners", "regressor"}


@pytest.mark.parametrize("ablation", ["wo_reconstruction_losses", "text_mask_feature", "wo_ubpf"])
def test_variants_run(tiny_corpus: Path, tmp_path: Path, ablation: str) -> None:
    context = short_run(tiny_corpus, tmp_path, ablation)
    assert np.isfinite([entry["eval_loss"] for entry in history(context) if "eval_loss" in entry]).all()
    logged = {name for entry in history(context) if "loss" in entry for name in entry}
    assert ("loss_mask" in logged) == (ablation != "wo_reconstruction_losses")
    assert ("alpha_text" in logged) == (ablation != "wo_ubpf")


def test_recipes_hold_the_papers_protocol() -> None:
    names = [name for name in recipe_names() if name.startswith("pglh/")]
    assert names == ["pglh/mosei", "pglh/mosi", "pglh/sample", "pglh/sims"]
    for name in names:
        recipe = load_recipe(name)
        assert recipe.missing.train == {"name": "frame", "rate_range": [0.0, 0.9]}
        assert recipe.missing.validation == {"name": "frame", "rate": 0.5, "seed": 1111}
        assert recipe.feature_norm == "standard"
        stage = recipe.stages["main"]
        assert stage["component_learning_rates"] == {"balances": 1e-2}
    main = load_recipe("pglh/mosi").stages["main"]
    assert (main["num_train_epochs"], main["per_device_train_batch_size"]) == (200, 64)
    assert PglhConfig(**load_recipe("pglh/mosi").model, audio_dim=5, vision_dim=20).w_mask == 0.05
