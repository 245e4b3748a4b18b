"""The `evaluate` module: loaded by path, without a network, with the numbers of the plain functions."""

import math
from pathlib import Path

import pytest

from hf_msa.evaluation import msa_metric
from hf_msa.evaluation.metrics import METRICS, class_metrics, family_metrics, regression_metrics

evaluate = pytest.importorskip("evaluate")

FOLDER = Path(msa_metric.__file__).parent


@pytest.fixture
def metric(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path / "cache"))


def test_loads_from_its_folder(metric):
    predictions, references = [0.4, -1.2, 2.9, 0.0], [1.0, -0.8, 3.0, 0.0]
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(
        regression_metrics(predictions, references, "mosi")
    )
    assert metric.compute(predictions=[0.2, -0.4], references=[0.1, 0.3], family="sims") == pytest.approx(
        regression_metrics([0.2, -0.4], [0.1, 0.3], "sims")
    )
    assert all(name in metric.inputs_description for name in METRICS)


def test_class_logits_are_welcome(metric):
    predictions, references, logits = [0.4, -1.2], [1.0, -0.8], [[0.1, 0.2, 0.9], [0.1, 0.0, 0.2]]
    got = metric.compute(predictions=predictions, references=references, class_logits=logits)
    assert got == pytest.approx(
        regression_metrics(predictions, references, "mosi") | class_metrics(logits, references, "mosi")
    )
    assert got["class_acc3"] == 0.5 and "class_f1_3 (with 3 class_logits)" in metric.inputs_description


def test_batches_add_up(metric):
    metric.add_batch(predictions=[0.4, -1.2], references=[1.0, -0.8])
    metric.add_batch(predictions=[2.9, 0.0], references=[3.0, 0.0])
    expected = regression_metrics([0.4, -1.2, 2.9, 0.0], [1.0, -0.8, 3.0, 0.0], "mosi")
    assert metric.compute() == pytest.approx(expected)


def test_importable_without_loading(tmp_path):
    from hf_msa.evaluation.msa_metric.msa_metric import MsaMetric

    got = MsaMetric(cache_dir=str(tmp_path)).compute(predictions=[1.0, 1.0], references=[1.0, 2.0])
    assert set(got) == set(family_metrics("mosi"))
    assert math.isnan(got["corr"])


def test_one_import_per_line():
    # The library's scanner reads `import a, b` as one package named "a,".
    lines = (FOLDER / "msa_metric.py").read_text().splitlines()
    assert not [line for line in lines if line.startswith("import ") and "," in line]
