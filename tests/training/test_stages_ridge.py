"""The ridge probe's fit, against the normal equations, and the constant."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.models.modeling_ridge import RidgeForSentimentAnalysis
from hf_msa.training.recipes import load_recipe
from hf_msa.training.ridge import observed_columns
from hf_msa.training.stages import RunContext, run_recipe

QUIET = {"disable_tqdm": True, "use_cpu": True}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7)


def whole_run(
    corpus: Path, folder: Path, *assignments: str, ablation: str | None = None
) -> tuple[RunContext, RidgeForSentimentAnalysis]:
    recipe = load_recipe("ridge/sample", ablation=ablation, assignments=assignments)
    context = run_recipe(recipe, str(corpus), folder, 1, QUIET)
    return context, RidgeForSentimentAnalysis.from_pretrained(context.folder).eval()


def test_the_fit_is_that_of_the_normal_equations(corpus: Path, tmp_path: Path) -> None:
    context, model = whole_run(
        corpus,
        tmp_path,
        "stages.main.num_train_epochs=2",
        "missing.selection_repeats=3",
        "model.text_vector=states",
        "model.penalties=[3.0, 300.0]",
    )
    raw, known, labels = observed_columns(context, model, "train", 2)
    assert len(labels) == 2 * len(context.rows["train"]) and not known.all()
    # The masks of the second draw are others.
    assert not np.allclose(raw[: len(labels) // 2], raw[len(labels) // 2 :])
    held_out, there, truth = observed_columns(context, model, "validation", 3)
    mean = np.array([column[seen].mean() for column, seen in zip(raw.T, known.T, strict=True)])
    std = np.array([column[seen].std() for column, seen in zip(raw.T, known.T, strict=True)])
    std[std < 1e-6] = 1
    x, queries = np.where(known, (raw - mean) / std, 0), np.where(there, (held_out - mean) / std, 0)
    errors = {}
    for penalty in (3.0, 300.0):
        centred = x - x.mean(axis=0)
        weights = np.linalg.solve(
            centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T @ (labels - labels.mean())
        )
        predicted = queries @ weights + labels.mean() - x.mean(axis=0) @ weights
        errors[penalty] = float(np.square(predicted - truth).mean())
    selection = json.loads((context.folder / "run.json").read_text(encoding="utf-8"))["selection"]
    assert selection["penalty"] == min(errors, key=errors.__getitem__) and selection["split"] == "validation"
    assert selection["value"] == pytest.approx(min(errors.values()), rel=1e-4)
    # What is saved predicts that.
    collate = context.collator("validation")
    rows = context.rows["validation"].in_draw(0)
    batch = collate([rows[index] for index in range(len(rows))])
    with torch.no_grad():
        logits = model(**model.inputs_from(batch, predicting=True)).logits[:, 0].numpy()
    expected = queries[: len(rows)] @ model.weights.detach().numpy() + float(model.offset.detach())
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_the_constant_is_the_median_of_the_training_labels(corpus: Path, tmp_path: Path) -> None:
    context, model = whole_run(corpus, tmp_path, ablation="constant")
    assert float(model.offset.detach()) == pytest.approx(float(np.median(context.rows["train"].labels)))
    facts = json.loads((context.folder / "run.json").read_text(encoding="utf-8"))
    assert facts["ablation"] == "constant" and facts["selection"]["rule"] == "last"
    # The same command again fits nothing anew.
    weights = (context.folder / "model.safetensors").stat().st_mtime_ns
    whole_run(corpus, tmp_path, ablation="constant")
    assert (context.folder / "model.safetensors").stat().st_mtime_ns == weights
