"""The sample corpus' ceiling as a result: its numbers, its masks, and what it is called."""

from pathlib import Path

import numpy as np
import pytest

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FrameMissing
from hf_msa.data.sample_corpus import ceiling_predictions, kept_masks, read_planted, write_sample_corpus
from hf_msa.data.sample_corpus.corpus_files import is_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.evaluation.ceiling import evaluate_ceiling
from hf_msa.evaluation.compare import compare_runs
from hf_msa.evaluation.results import read_predictions
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import prepare_run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7)


def test_it_is_the_ceiling_under_the_masks_that_models_meet(corpus: Path, tmp_path: Path) -> None:
    made = evaluate_ceiling(str(corpus), str(tmp_path / "made"), rates=[0.0, 0.5], mask_seeds=[5], split="validation")
    # The processor of a model's run, which pads otherwise and cuts at 50 tokens.
    context = prepare_run(load_recipe("text/sample"), str(corpus), tmp_path / "run", 1, {"use_cpu": True})
    rows = context.rows["validation"]
    collator = MsaCollator(context.processor, FrameMissing(rate=0.5, seed=5), "validation")
    members = [rows[index] for index in range(len(rows))]
    planted = read_planted(corpus, "validation")
    expected = ceiling_predictions(planted, kept_masks(planted, collator.masks(members).masks))
    grid = read_predictions(tmp_path / "made", made.content)
    order = [rows.ids.index(name) for name in grid.ids]
    np.testing.assert_allclose(grid.scores[0, 0, 1], expected[order], atol=1e-5)
    half = next(run for run in made.content["runs"] if run["rate"] == 0.5)
    assert half["realised"] == pytest.approx(collator.realised(members).shares())
    errors = [entry["metrics"]["mae"]["mean"] for entry in made.content["per_rate"]]
    assert errors[0] < errors[1]


def test_it_is_marked_as_an_oracle(corpus: Path, tmp_path: Path) -> None:
    made = evaluate_ceiling(str(corpus), str(tmp_path), protocol="complete")
    assert made.content["method"] == "ceiling" and made.content["oracle"] and made.content["recipe"] is None
    assert made.content["dataset"]["name"] == made.content["trained_on"] == "sample"
    assert compare_runs([tmp_path, tmp_path], allow_oracle=True).names[0].startswith("ceiling [oracle]")


def test_other_data_has_none(tmp_path: Path) -> None:
    assert not is_sample_corpus(str(tmp_path))
    with pytest.raises(MsaError, match="not a sample corpus"):
        evaluate_ceiling(str(tmp_path), str(tmp_path / "out"))
