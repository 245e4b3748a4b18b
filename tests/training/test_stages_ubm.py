"""Training of the UBM: rates of the paper's table, who teaches which head, what validates, the fitted temperature."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel

from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.models.modeling_ubm import UbmForSentimentAnalysis
from hf_msa.training.calibration import fit_errors, fit_temperature
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import RunContext, prepare_run, run_recipe
from hf_msa.training.ubm import UbmTrainer, ensemble_members, validation_logits

QUIET = {"disable_tqdm": True, "use_cpu": True}
SMALL = ["model.fusion_dim=16", "model.head_dim=8", "stages.main.num_train_epochs=1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of this module's own: other tests change the text encoder of theirs."""
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7, version=1)


def whole_run(corpus: Path, folder: Path, *assignments: str, ablation: str | None = None) -> RunContext:
    recipe = load_recipe("ubm/sample", ablation=ablation, assignments=[*SMALL, *assignments])
    return run_recipe(recipe, str(corpus), folder, 1, QUIET)


def trainer(corpus: Path, folder: Path, *assignments: str, recipe: str = "ubm/sample") -> UbmTrainer:
    bundled = str(corpus / "text_model")
    loaded = load_recipe(recipe, assignments=[*SMALL, *assignments], text_model=bundled)
    context = prepare_run(loaded, str(corpus), folder, 1, QUIET)
    return UbmTrainer(
        context.new_model(UbmForSentimentAnalysis),
        context.arguments("main", True),
        context.rows["train"],
        context.rows["validation"],
        context.collator("train"),
        context.collator("validation"),
    )


# Table B.1 of the paper: (learning rate, weight decay) of BERT, audio LSTM, video LSTM, others.
TABLE = {
    "mosi": [(5e-5, 1e-3), (1e-3, 1e-3), (1e-4, 1e-3), (5e-4, 1e-3)],
    "mosei": [(5e-5, 1e-5), (5e-3, 0.0), (1e-3, 0.0), (1e-3, 1e-2)],
    "sims": [(5e-5, 1e-3), (5e-3, 1e-2), (5e-3, 1e-2), (1e-3, 1e-3)],
}


@pytest.mark.parametrize("dataset", TABLE)
def test_the_optimizer_is_adam_with_the_rates_of_the_paper(corpus: Path, tmp_path: Path, dataset: str) -> None:
    made = trainer(corpus, tmp_path, recipe=f"ubm/{dataset}")
    optimizer = made.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    names = {id(parameter): name for name, parameter in made.model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    components = ("text_encoder", "audio_encoder", "vision_encoder")
    for name, (rate, decay) in found.items():
        component = name.partition(".")[0]
        wanted = TABLE[dataset][components.index(component) if component in components else 3]
        spared = component == "text_encoder" and ("bias" in name or "LayerNorm" in name)
        assert (rate, decay) == (wanted[0], 0.0 if spared else wanted[1]), name
    assert made.args.per_device_train_batch_size == 32 and made.args.gradient_accumulation_steps == 4
    assert made.args.early_stopping_patience == 8 and made.args.metric_for_best_model == "eval_mae"


class TestMembers:
    def test_each_head_sees_its_share(self) -> None:
        members = ensemble_members(5000, 5, 0.8, seed=1)
        assert members.shape == (5000, 5) and members.dtype == torch.bool
        assert torch.allclose(members.float().mean(dim=0), torch.full((5,), 0.8), atol=0.02)
        # Independent of each other: a pair of heads shares 0.8 * 0.8 of the rows.
        assert (members[:, 0] & members[:, 1]).float().mean().item() == pytest.approx(0.64, abs=0.03)

    def test_it_depends_on_seed_head_and_row_alone(self) -> None:
        members = ensemble_members(100, 5, 0.8, seed=1)
        assert torch.equal(ensemble_members(100, 5, 0.8, seed=1), members)
        assert torch.equal(ensemble_members(60, 3, 0.8, seed=1), members[:60, :3])
        assert not torch.equal(ensemble_members(100, 5, 0.8, seed=2), members)

    def test_training_passes_on_the_rows_of_the_batch(self, corpus: Path, tmp_path: Path) -> None:
        made = trainer(corpus, tmp_path, "model.uncertainty_kind=heads")
        expected = ensemble_members(96, 5, 0.8, seed=1)
        batch = next(iter(made.get_train_dataloader()))
        given = made.model_inputs(batch, training=True)
        assert given["train_uncertainty"] is True
        assert torch.equal(given["ensemble_members"], expected[batch["sample_index"]])
        assert made.model_inputs(batch, training=False) == {"train_uncertainty": False}


@pytest.mark.parametrize("kind", ["prediction_truth", "heads", "members", "modality_disagreement"])
def test_the_checkpoint_is_chosen_by_score_and_class(corpus: Path, tmp_path: Path, kind: str) -> None:
    made = trainer(corpus, tmp_path, f"model.uncertainty_kind={kind}")
    model = made.model.eval()
    (batch,) = made.get_eval_dataloader()
    loss, _, labels = made.prediction_step(model, batch, prediction_loss_only=False)
    out = model(**{name: batch[name] for name in batch if name.endswith(("_values", "attention_mask", "input_ids"))})
    expected = F.mse_loss(out.logits.squeeze(1), labels) + F.cross_entropy(out.class_logits, labels.sign().long() + 1)
    assert torch.allclose(loss, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "terms"),
    [
        ("entropy", {"task", "class"}),
        ("prediction_truth", {"task", "class", "error"}),
        ("heads", {"task", "class", "ensemble"}),
        ("members", {"task", "class", "members"}),
        ("modality_disagreement", {"task", "class", "unimodal"}),
        *((kind, {"task", "class"}) for kind in ("score", "mc_dropout", "learned_error", "conformal")),
    ],
)
def test_every_uncertainty_trains(corpus: Path, tmp_path: Path, kind: str, terms: set[str]) -> None:
    context = whole_run(corpus, tmp_path, f"model.uncertainty_kind={kind}")
    logged = next(entry for entry in context.log[0]["history"] if "loss" in entry)
    assert {name.removeprefix("loss_") for name in logged if name.startswith("loss_")} == terms
    model = AutoModel.from_pretrained(context.folder)
    uncertainty = model(**context.processor.from_rows([context.rows["validation"][0]])).uncertainty
    assert uncertainty.shape == (1, 1) and torch.isfinite(uncertainty).all()
    assert model.config.temperature == 1.0


def test_members_have_the_rates_of_the_model_and_begin_with_the_pretrained_text_encoder(
    corpus: Path, tmp_path: Path
) -> None:
    made = trainer(corpus, tmp_path, "model.uncertainty_kind=members", "model.ensemble_size=2", recipe="ubm/mosi")
    optimizer = made.create_optimizer()
    names = {id(parameter): name for name, parameter in made.model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    members = {name: rates for name, rates in found.items() if name.startswith("members.")}
    assert len(members) == 2 * (len(found) - len(members))
    for name, rates in members.items():
        assert rates == found[name.split(".", 2)[2]], name
    first, second = made.model.networks
    pairs = zip(first.text_encoder.parameters(), made.model.text_encoder.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(first.fusion[0].weight, second.fusion[0].weight)


def test_errors_and_intervals_are_fitted_on_validation_and_saved(corpus: Path, tmp_path: Path) -> None:
    context = whole_run(corpus, tmp_path, "model.uncertainty_candidates=[conformal]", "model.conformal_coverage=0.8")
    model = AutoModel.from_pretrained(context.folder)
    assert model.config.uncertainty_kind == "entropy"
    rows = context.rows["validation"]
    seen = model.run_network(model.read(context.collator("validation")([rows[i] for i in range(len(rows))])))
    errors = (seen.logits.squeeze(1) - torch.from_numpy(rows.labels)).abs()
    features, errors = model.error_features(seen).detach().double(), errors.detach().double()
    fit = fit_errors(features.numpy(), errors.numpy(), np.arange(len(rows)))
    assert model.error_weights.tolist() == pytest.approx(fit.weights.tolist(), rel=1e-2, abs=1e-4)
    assert model.error_offsets.tolist() == pytest.approx([fit.constant, fit.least], rel=1e-3)
    # Within what is fitted: by the rank the share is at least what was asked for, of held-out ratios.
    width = model.config.conformal_fit["quantile"] * torch.from_numpy(fit.held_out)
    assert model.config.conformal_fit["coverage"] == 0.8
    assert 0.8 <= (errors <= width * 1.001).double().mean() < 0.8 + 3 / len(rows)
    chosen = AutoModel.from_pretrained(context.folder, uncertainty_kind="conformal")
    row = context.processor.from_rows([rows[0]])
    out = chosen(**row)
    assert (out.interval_low <= out.logits).all() and (out.logits <= out.interval_high).all()
    other = AutoModel.from_pretrained(context.folder, uncertainty_kind="conformal", conformal_coverage=0.9)
    with pytest.raises(ValueError, match="fitted for conformal_coverage=0.8, not for 0.9"):
        other(**row)


@pytest.fixture(scope="module")
def calibrated(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return whole_run(corpus, tmp_path_factory.mktemp("run"), ablation="calibrated")


def test_the_temperature_is_fitted_on_validation_and_saved(calibrated: RunContext) -> None:
    model = AutoModel.from_pretrained(calibrated.folder)
    logits, classes = validation_logits(calibrated, model)
    labels = torch.from_numpy(calibrated.rows["validation"].labels)
    assert torch.equal(classes, labels.sign().long() + 1)
    row = model(**calibrated.processor.from_rows([calibrated.rows["validation"][5]]))
    assert torch.allclose(logits[5], row.class_logits[0], atol=1e-5), "logits in the order of the rows"
    temperature = model.config.temperature
    assert temperature == pytest.approx(fit_temperature(logits, classes), rel=1e-4)
    assert temperature != 1.0
    assert F.cross_entropy(logits / temperature, classes) < F.cross_entropy(logits, classes)
    settings: dict[str, Any] = json.loads((calibrated.folder / "run.json").read_text(encoding="utf-8"))
    assert settings["config"]["temperature"] == temperature


def test_an_interrupted_run_fits_the_same_temperature(
    calibrated: RunContext, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = AutoModel.from_pretrained(calibrated.folder).config.temperature
    (calibrated.folder / "run.json").unlink()
    (calibrated.folder / "config.json").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr("hf_msa.training.trainer.MsaTrainer.train", refuse)
    whole_run(corpus, calibrated.folder.parent, ablation="calibrated")
    assert AutoModel.from_pretrained(calibrated.folder).config.temperature == before
