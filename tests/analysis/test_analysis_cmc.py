"""Router, pseudo labels and consistency gap: numbers by hand, then files from made predictions and a tiny run."""

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from hf_msa.analysis import TOOLS, run_tool
from hf_msa.analysis.cmc.pseudo_labels import (
    agreement_row,
    confusion,
    drift_rows,
    first_epoch_share,
    flip_limits,
    movable_mass,
    settling,
)
from hf_msa.analysis.cmc.refit import ROUTERS, Experts, accuracy, fit
from hf_msa.analysis.cmc.router import WEIGHINGS, lie_row, weighing_rows, weight_rows
from hf_msa.analysis.common.consistency_gap import GAP_ALARM, difference_row, subset_scores
from hf_msa.analysis.common.prediction_columns import SampleNumbers
from hf_msa.analysis.common.split_labels import SplitLabels, best_lie_areas, planted_liars, read_labels
from hf_msa.analysis.common.trained_runs import TrainedRun
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.data.sample_corpus.corpus_files import write_checks
from hf_msa.errors import MsaError
from hf_msa.evaluation.evaluate import evaluate_runs
from hf_msa.evaluation.metrics import METRICS
from hf_msa.evaluation.results import Predictions, predictions_table, write_results
from hf_msa.evaluation.statistics import resample_counts
from hf_msa.models.configuration_cmc import CmcConfig
from hf_msa.models.msa_label_families import BUILT_IN
from hf_msa.models.msa_schema import MODALITIES, SENTIMENT_CLASSES
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import run_recipe
from hf_msa_cli import main
from made_results import make_results


def read(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Router


def made_experts(rows):
    """Two experts; the one is right where the vectors are alike, the other where they are not."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (rows, 3), generator=generator).float() * 2 - 1
    first, second, label = signs.T
    mixed = torch.stack([torch.stack([first, label], dim=1), torch.stack([second, label], dim=1)], dim=1)
    right = torch.stack([first == second, first != second], dim=1)
    said = torch.where(right, label[:, None], -label[:, None])
    logits = torch.stack([-said, torch.full_like(said, -9), said], dim=2) * 3
    return Experts(mixed, logits, label, (label + 1).long(), torch.full((rows, 2), 0.5))


def test_a_router_that_compares_is_told_from_one_that_adds():
    config = CmcConfig(audio_dim=2, vision_dim=None, embed_dim=2, num_attention_heads=1)
    experts, others = made_experts(1000), made_experts(400)
    found = {}
    for kind, make in ROUTERS.items():
        torch.manual_seed(1)
        router = fit(make(config), experts, torch.Generator().manual_seed(1))
        with torch.no_grad():
            weights = router(others.mixed).softmax(dim=-1)
        found[kind] = accuracy((weights.unsqueeze(-1) * others.logits).sum(dim=1), others, config)[0]
    # Whether two signs are alike is no sum of theirs.
    assert found["rows"] > 0.95
    assert found["constant"] < 0.7 and found["sum"] < 0.7


def test_weights_where_a_modality_lies():
    weights = np.array([[0.2, 0.4, 0.6, 0.6], [0.0, 0.2, 0.8, 0.8]])
    lies = np.array([True, True, False, False])
    row = lie_row(weights, lies)
    assert (row["n lying"], row["n others"]) == (2, 2)
    # Seeds: 0.3 against 0.6, and 0.1 against 0.8.
    assert row["weight lying"] == pytest.approx(0.2) and row["weight others"] == pytest.approx(0.7)
    assert row["difference"] == pytest.approx(-0.5)
    assert row["sd over seeds"] == pytest.approx(0.4 / math.sqrt(2))
    # Of the seeds' mean weights (0.1, 0.3, 0.7, 0.7) a resample holds any of the lying ones.
    assert row["low"] == pytest.approx(0.1 - 0.7) and row["high"] == pytest.approx(0.3 - 0.7)
    # No lying sample has the larger weight. Against a third weight of 0.4 (0.2) one of four pairs is a tie.
    assert row["AUC"] == row["AUC low"] == row["AUC high"] == 1.0 and row["AUC sd"] == 0.0
    tied = lie_row(np.array([[0.2, 0.4, 0.4, 0.1]]), lies)
    assert tied["AUC"] == pytest.approx((1 + 0.5 + 0 + 0) / 4) and math.isnan(tied["AUC sd"])
    assert lie_row(np.full((1, 4), 1 / 3), lies)["AUC"] == 0.5
    for side in (lies & False, lies | True):
        empty = lie_row(weights, side)
        assert math.isnan(empty["AUC"])
        assert math.isnan(empty["difference"]) and empty["n lying"] + empty["n others"] == 4


def test_the_same_experts_under_constant_weights():
    """Text says + + - -, audio - + + -, and labels are those of whoever does not lie; the router knows who."""
    has0, acc3 = METRICS["class_has0_acc2"].pretty, METRICS["class_acc3"].pretty
    labels = np.array([1.0, 1.0, 1.0, -1.0])
    signs = {"text": np.array([[1.0, 1.0, -1.0, -1.0]]), "audio": np.array([[-2.0, 2.0, 2.0, -2.0]])}
    weights = {"text": np.array([[0.9, 0.5, 0.1, 0.5]]), "audio": np.array([[0.1, 0.5, 0.9, 0.5]])}
    columns = {"prediction": np.zeros((1, 4))}
    for modality, values in signs.items():
        for name, sign in (("negative", -1.0), ("neutral", 0.0), ("positive", 1.0)):
            columns[f"unimodal_logits_{modality}_{name}"] = sign * values
    numbers = SampleNumbers("run", {"dataset": {"label_family": "mosi"}}, tuple("abcd"), labels, (1,), columns)
    rows = {row["weights"]: row for row in weighing_rows(numbers, weights)}
    # .9 - .2 and -.1 + 1.8 are right; at equal weights text, whose logits are half as large, loses in the first sample.
    assert rows["router"][has0].mean == 1.0
    for kind in WEIGHINGS[1:]:
        assert rows[kind][has0].mean == rows[kind][acc3].mean == 0.75
        assert rows[kind]["router minus it"].mean == 0.25
    assert rows["router"]["router minus it"].bounds == (0.0, 0.0)
    # Means of .8 and .2 give text the first sample and take the third from audio.
    unequal = {"text": np.array([[0.9, 0.9, 0.5, 0.9]]), "audio": np.array([[0.1, 0.1, 0.5, 0.1]])}
    mean = weighing_rows(numbers, unequal)[1]
    assert mean[has0].mean == 0.75
    assert weighing_rows(dataclasses.replace(numbers, columns={"prediction": np.zeros((1, 4))}), weights) == []


def test_interval_of_the_difference_is_the_plain_bootstrap():
    generator = np.random.default_rng(0)
    weights, lies = generator.random((1, 30)), generator.random(30) < 0.3
    row = lie_row(weights, lies)
    drawn = []
    for counts in resample_counts(30).astype(int):
        index = np.repeat(np.arange(30), counts)
        drawn.append(weights[0, index][lies[index]].mean() - weights[0, index][~lies[index]].mean())
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_distribution_of_weights():
    values = np.array([[0.0, 0.25, 0.5, 0.75, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    first, second = weight_rows({"text": values}, (1, 2))
    assert (first["training seed"], first["modality"], first["n"]) == (1, "text", 5)
    assert first["mean"] == 0.5 and first["sd"] == pytest.approx(math.sqrt(0.625 / 4))
    assert [first[f"q{n}"] for n in ("05", "25", "50", "75", "95")] == pytest.approx([0.05, 0.25, 0.5, 0.75, 0.95])
    assert second["sd"] == 0.0 and second["q05"] == 1.0


# Pseudo labels


def test_how_much_of_a_label_can_leave():
    assert movable_mass(0.8, 0.5, 1) == pytest.approx(0.2)
    # Epoch 4 has momentum 1 - 0.2 / 2.
    assert movable_mass(0.8, 0.5, 4) == pytest.approx(
        1 - 0.8 * (1 - 0.2 / math.sqrt(2)) * (1 - 0.2 / math.sqrt(3)) * 0.9
    )
    assert movable_mass(0.99, 0.5, 100) == pytest.approx(0.170, abs=5e-4)
    assert movable_mass(0.99, 0.5, 20) == pytest.approx(0.073, abs=5e-4)
    assert movable_mass(0.8, 0.5, 100) == pytest.approx(0.978, abs=5e-4)


def test_how_much_of_a_teacher_is_that_of_the_first_epoch():
    assert first_epoch_share(0.9, 5.0, 22, 1) == 1.0
    # Epoch 2 keeps 1 - .1 / 32 at each of its two steps, epoch 3 keeps 1 - .1 / 243.
    assert first_epoch_share(0.9, 5.0, 2, 3) == pytest.approx(0.996875**2 * (1 - 0.1 / 243) ** 2)
    # The published values on CH-SIMS: 1368 rows in batches of 64, at most 100 epochs.
    shares = {"text": (0.8, 2.5), "audio": (0.9, 5.0), "vision": (0.6, 2.0)}
    found = {name: first_epoch_share(*values, 22, 100) for name, values in shares.items()}
    assert found["audio"] == pytest.approx(0.92, abs=0.005)
    assert found["text"] < 0.25 and found["vision"] < 0.01


def history(changes, flips=None, start=1):
    flips = flips or [0.0] * len(changes)
    return [
        {"epoch": float(epoch), "step": 22 * epoch, "loss": 1.0, "flip_rate_text": flip, "label_change_text": change}
        for epoch, (change, flip) in enumerate(zip(changes, flips, strict=True), start)
    ]


def made_run(folder, changes, flips=None, **config):
    entries = history(changes, flips)
    # What stands between the epochs' ends: validation, and a log in the middle of the second epoch.
    entries.insert(1, {"epoch": 1.0, "eval_loss": 2.0})
    entries.insert(2, {"epoch": 1.5, "loss": 1.0, "flip_rate_text": 0.9, "label_change_text": 0.9})
    facts = {
        "seed": 7,
        "method": "cmc",
        "ablation": None,
        "stages": [{"name": "unimodal", "history": entries}, {"name": "main", "history": []}],
        "settings": {},
        "flags": {},
        "dataset": {"fingerprint": "made"},
        "config": {
            "label_momentum": {"text": 0.8, "audio": 0.99},
            "label_gamma": 0.5,
            "ema_momentum": {"text": 0.8, "audio": 0.9},
            "ema_gamma": {"text": 2.5, "audio": 5.0},
        }
        | config,
    }
    return TrainedRun(Path(folder), facts)


def test_drift_is_what_was_logged_at_the_end_of_an_epoch():
    run = made_run("x", [0.4, 0.2, 0.1], [0.0, 0.1, 0.25])
    rows = drift_rows(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["flip_rate_text"] for row in rows] == [0.0, 0.1, 0.25]
    assert [row["label_change_text"] for row in rows] == [0.4, 0.2, 0.1]
    assert set(rows[0]) == {"training seed", "epoch", "flip_rate_text", "label_change_text"}
    assert flip_limits(run, rows) == {"text": pytest.approx(movable_mass(0.8, 0.5, 3))}
    facts = {**run.facts, "stages": run.facts["stages"][1:]}
    with pytest.raises(MsaError, match="moved no pseudo labels"):
        drift_rows(TrainedRun(Path("x"), facts))


@pytest.mark.parametrize(
    ("changes", "epoch", "alarm"),
    [
        ([0.4, 0.2, 0.039], 3, False),
        ([0.4, 0.2, 0.041], 3, True),
        # The largest change may come late.
        ([0.1, 0.5, 0.049], 3, False),
        # No change at all is rest.
        ([0.0, 0.0], 2, False),
        # Judged at epoch 40, whatever comes after.
        ([1.0] * 39 + [0.09] + [1.0] * 20, 40, False),
        ([1.0] * 40 + [0.0] * 20, 40, True),
    ],
)
def test_labels_have_settled_or_not(changes, epoch, alarm):
    state = settling(drift_rows(made_run("x", changes)), "text")
    assert (state["epoch"], state["alarm"]) == (epoch, alarm)
    judged = changes[:40]
    assert state["share"] == pytest.approx(judged[-1] / max(judged) if max(judged) else 0.0)


def test_confusion_and_agreement_by_hand():
    multimodal = np.array([0, 0, 1, 2, 2])
    hard = np.array([0, 2, 1, 2, 0])
    assert confusion(multimodal, hard).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    own = np.array([0, 2, 2, 2, 0])
    # Pseudo labels are right in samples 0, 1, 3, 4; a second seed's (the multimodal ones) and the baseline in 0, 3.
    row = agreement_row([hard, multimodal], multimodal, own)
    assert (
        row["n"] == 5 and row["pseudo label"] == pytest.approx(0.6) and row["multimodal label"] == pytest.approx(0.4)
    )
    assert row["difference"] == pytest.approx(0.2) and row["low"] >= 0.0


# Consistency


def grid_of(labels, scores, logits=None):
    """Predictions of one mask seed and rate; scores (S, N), logits (S, N, 3)."""
    parts = []
    for seed, values in enumerate(scores):
        part = {"id": [f"s{i}" for i in range(len(labels))], "training_seed": seed, "mask_seed": 1, "rate": 0.0}
        part |= {"prediction": np.array(values), "label": np.array(labels)}
        if logits is not None:
            part |= {f"class_logits_{name}": np.array(logits)[seed, :, i] for i, name in enumerate(SENTIMENT_CLASSES)}
        parts.append(part)
    return Predictions.from_table(predictions_table(parts))


def test_gap_by_hand():
    labels = [1.0, -1.0, 2.0, -2.0, 1.0, 0.0]
    inconsistent = np.array([False, False, False, False, True, True])
    # Consistent: all right, then three of four. Inconsistent (0 is not negative): one of two, then none.
    first = subset_scores(grid_of(labels, [[1, -1, 1, -1, 1, -1], [1, -1, 1, 1, -1, -1]]), "mosi", inconsistent)
    consistent, gap = first["consistent"], first["gap"]
    assert first["metric"] == "has0_acc2" and consistent.per_seed.tolist() == [1.0, 0.75]
    assert consistent.mean == pytest.approx(0.875) and first["inconsistent"].mean == pytest.approx(0.25)
    assert gap.mean == pytest.approx(0.625) and gap.mean > GAP_ALARM
    assert gap.std == pytest.approx(0.25 / math.sqrt(2))
    assert consistent.bounds[0] <= 0.875 <= consistent.bounds[1] <= 1.0
    # Class logits come first where there are any: a neutral logit does not count.
    logits = np.zeros((1, 6, 3))
    logits[0, :, 2] = [1, -1, 1, -1, 1, 1]
    logits[0, :, 1] = 9
    other = subset_scores(grid_of(labels, [[-1, 1, -1, 1, -1, -1]], logits), "mosi", inconsistent)
    assert other["metric"] == "class_has0_acc2" and other["gap"].mean == 0.0
    difference = difference_row(gap, other["gap"])
    assert difference["gap minus first"] == pytest.approx(-0.625) and difference["high"] < 0
    same = difference_row(gap, gap)
    assert same == {"gap minus first": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_gap_resamples_both_subsets_and_both_runs_together():
    generator = np.random.default_rng(1)
    labels, inconsistent = generator.normal(size=10), generator.random(10) < 0.4
    predictions = generator.normal(size=(2, 10))
    gaps = [subset_scores(grid_of(labels, [values]), "mosi", inconsistent)["gap"] for values in predictions]
    hits = (predictions >= 0) == (labels >= 0)
    drawn = []
    for counts in resample_counts(10).astype(int):
        index = np.repeat(np.arange(10), counts)
        lies = inconsistent[index]
        if 0 < lies.sum() < 10:
            first, second = (hit[index][~lies].mean() - hit[index][lies].mean() for hit in hits)
            drawn.append(second - first)
    assert len(drawn) < 1000
    row = difference_row(*gaps)
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


# From files


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=3, version=1))


@pytest.fixture
def write_cmc(data, tmp_path):
    """Write predictions of the corpus's test split whose text weight is 0.9, or 0.1 where the text lies."""

    def write(name, *, rate=0.0, router=True, method="cmc", right=1.0, **facts):
        labels, liars = read_labels(data, "test"), planted_liars(data, "test")
        text = np.array([0.1 if liars[sample] == "text" else 0.9 for sample in labels.ids])
        parts = []
        for seed in (1, 2):
            part = {"id": labels.ids, "training_seed": seed, "mask_seed": 1, "rate": rate, "label": labels.multimodal}
            part["prediction"] = labels.multimodal * right
            if router:
                part |= {"router_weights_text": text, "router_weights_audio": 1 - text}
            parts.append(part)
        table = predictions_table(parts)
        write_results(tmp_path / name, make_results(table, method=method, **facts), table)
        return str(tmp_path / name)

    return write


def test_router_files(data, write_cmc, tmp_path):
    run = write_cmc("cmc")
    paths = run_tool("router", [run])
    assert {path.name for path in paths} == {"router.csv", "router.md", "router.png", "router.svg"}
    assert "give the data set with --data" in (tmp_path / "cmc/analysis/router/router.md").read_text()
    run_tool("router", [run, write_cmc("static", ablation="mcr_static")], data=data, output=str(tmp_path / "out"))
    assert [(row["run"], row["training seed"], row["modality"]) for row in read(tmp_path / "out" / "router.csv")] == [
        (name, seed, modality)
        for name in ("cmc", "cmc (mcr_static)")
        for seed in "12"
        for modality in ("text", "audio")
    ]
    rows = [row for row in read(tmp_path / "out" / "lies.csv") if row["run"] == "cmc"]
    assert [(row["lies by"], row["modality"]) for row in rows] == [
        (kind, modality) for kind in ("own label", "planted") for modality in ("text", "audio")
    ]
    assert float(rows[2]["AUC"]) == 1.0
    planted = planted_liars(data, "test")
    lying = sum(name == "text" for name in planted.values())
    assert 0 < lying == int(rows[2]["n lying"]) and int(rows[2]["n others"]) == 32 - lying
    assert float(rows[2]["difference"]) == pytest.approx(-0.8, abs=1e-5) == float(rows[2]["low"])
    # Labels that differ from the whole by the annotators' noise alone dilute what the labels say of lies.
    assert -0.8 < float(rows[0]["difference"]) < 0
    summary = (tmp_path / "out" / "router.md").read_text()
    mean = (0.1 * lying + 0.9 * (32 - lying)) / 32
    assert f"**Alarm, cmc:** the mean text weight is {mean:.3f}" in summary and mean > 0.7


def test_router_beside_the_best_guess(data, write_cmc, tmp_path):
    copied = shutil.copytree(data, tmp_path / "corpus")
    write_checks(copied, {"mechanisms": {"clips": 300, "lies": {"text": 0.875, "audio": 0.75, "vision": None}}})
    assert best_lie_areas(str(copied)) == ({"text": 0.875, "audio": 0.75}, 300)
    run_tool("router", [write_cmc("cmc")], data=str(copied), output=str(tmp_path / "out"))
    rows = read(tmp_path / "out" / "lies.csv")
    assert [(row["lies by"], row["modality"], row["AUC of the best guess"]) for row in rows] == [
        ("own label", "text", ""), ("own label", "audio", ""), ("planted", "text", "0.875"), ("planted", "audio", "0.75")
    ]  # fmt: skip
    assert "over its first 300 test clips" in (tmp_path / "out" / "router.md").read_text()
    assert (tmp_path / "out" / "lies.png").is_file()
    # Nothing was measured of other data, and of corpora of few clips or of version 1.
    for measured in ({}, {"mechanisms": None}):
        write_checks(copied, measured)
        assert best_lie_areas(str(copied)) == ({}, 0)
    run_tool("router", [str(tmp_path / "cmc")], data=str(copied), output=str(tmp_path / "other"))
    assert "AUC of the best guess" not in read(tmp_path / "other" / "lies.csv")[0]
    assert "which is not known of this data" in (tmp_path / "other" / "router.md").read_text()


def test_router_takes_complete_data_of_the_same_samples(data, write_cmc, tmp_path):
    with pytest.raises(MsaError, match="no router weights"):
        run_tool("router", [write_cmc("a", router=False)])
    with pytest.raises(MsaError, match="not evaluated on complete data"):
        run_tool("router", [write_cmc("b", rate=0.5)])
    run = write_cmc("c")
    facts = json.loads((Path(run) / "results.json").read_text())
    facts["dataset"]["split"] = "validation"
    (Path(run) / "results.json").write_text(json.dumps(facts))
    with pytest.raises(MsaError, match="other samples or labels"):
        run_tool("router", [run], data=data)
    (Path(run) / "predictions.parquet").unlink()
    with pytest.raises(MsaError, match="no predictions"):
        run_tool("router", [run])


def test_consistency_files(data, write_cmc, tmp_path):
    runs = [write_cmc("cmc"), write_cmc("wrong", ablation="mean_fusion", right=-1.0), write_cmc("t", method="text")]
    paths = run_tool("consistency-gap", runs, data=data, output=str(tmp_path / "out"))
    assert {path.name for path in paths} == {
        *("consistency.csv", "differences.csv", "consistency.md", "consistency.png", "consistency.svg"),
    }
    ours, wrong, _ = read(tmp_path / "out" / "consistency.csv")
    assert (float(ours["consistent"]), float(ours["inconsistent"]), ours["alarm"]) == (1.0, 1.0, "False")
    # Only a label of zero is right with its sign turned.
    labels = read_labels(data, "test")
    differs = np.any([labels.disagreeing(modality) for modality in MODALITIES], axis=0)
    assert float(wrong["inconsistent"]) == pytest.approx((labels.multimodal[differs] == 0).mean(), abs=1e-5)
    summary = (tmp_path / "out" / "consistency.md").read_text()
    assert f"{int((~differs).sum())} consistent and {int(differs.sum())} inconsistent" in summary
    assert [row["run"] for row in read(tmp_path / "out" / "differences.csv")] == ["cmc (mean_fusion)", "text"]
    command = ["analyze", "consistency-gap", runs[0], "--data", data, "--output", str(tmp_path / "cli")]
    assert main([*command, "--subset-rule", "polarity_conflict"]) == 0
    assert "rule polarity_conflict" in (tmp_path / "cli" / "consistency.md").read_text()
    assert main([*command, "--subset-rule", "polarity"]) == 2


def test_consistency_needs_labels_and_the_same_samples(data, write_cmc, write_run, tmp_path):
    run = write_cmc("cmc")
    with pytest.raises(MsaError, match="cannot be compared"):
        run_tool("consistency-gap", [run, str(write_run("other"))], data=data)
    with pytest.raises(MsaError, match="cannot be compared"):
        run_tool("consistency-gap", [run, write_cmc("masked", rate=0.5)], data=data)
    with pytest.raises(MsaError, match="--data"):
        run_tool("consistency-gap", [run])
    options = {option.flag: option.is_required for option in TOOLS["consistency-gap"].options}
    assert options == {"--data": True, "--subset-rule": False}


def test_labels_in_the_order_of_predictions():
    labels = SplitLabels(("a", "b", "c"), np.float32([1, -1, 0]), {"text": np.float32([1, 1, 0])}, BUILT_IN["mosi"])
    found = labels.of(["c", "b"], [0.0, -1.0], "run")
    assert found.multimodal.tolist() == [0, -1] and found.disagreeing("text").tolist() == [False, True]
    with pytest.raises(MsaError, match="no sample 'd'"):
        labels.of(["d"], [1.0], "run")
    with pytest.raises(MsaError, match="other samples or labels"):
        labels.of(["a"], [2.0], "run")


def test_pseudo_label_files(data, tmp_path):
    labels = read_labels(data, "train")
    classes = np.sign(labels.multimodal).astype(int) + 1
    soft = np.eye(3, dtype=np.float32)[np.stack([classes, np.zeros_like(classes)], axis=1)]
    runs = []
    for seed in (1, 2):
        folder = tmp_path / "run" / f"seed-{seed}"
        run = made_run(folder, [0.4, 0.2, 0.1])
        entries = [
            e | {"flip_rate_audio": 0.0, "label_change_audio": 0.0} if "loss" in e else e
            for e in run.facts["stages"][0]["history"]
        ]
        facts = {**run.facts, "seed": seed}
        facts["stages"] = [{"name": "unimodal", "history": entries}]
        (folder / "stages" / "unimodal").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(facts))
        (folder / "config.json").write_text("{}")
        save_file({"train": soft}, folder / "stages" / "unimodal" / "pseudo_labels.safetensors")
        runs.append(folder)
    run_tool("pseudo-labels", [str(tmp_path / "run")])
    assert len(read(tmp_path / "run" / "analysis" / "pseudo-labels" / "drift.csv")) == 6
    run_tool("pseudo-labels", [str(tmp_path / "run")], data=data, output=str(tmp_path / "out"))
    rows = read(tmp_path / "out" / "confusion.csv")
    counts = np.array([[int(row[name]) for name in SENTIMENT_CLASSES] for row in rows])
    sizes = 2 * np.bincount(classes, minlength=3)
    assert counts[:3].tolist() == np.diag(sizes).tolist() and counts[3:, 0].tolist() == sizes.tolist()
    text, audio = read(tmp_path / "out" / "agreement.csv")
    assert float(text["difference"]) == 0.0 and text["pseudo label"] == text["multimodal label"]
    assert float(audio["pseudo label"]) == pytest.approx((labels.unimodal["audio"] < 0).mean(), abs=1e-5)
    summary = (tmp_path / "out" / "pseudo_labels.md").read_text()
    # Text: a quarter of the largest change is left. Audio could lose 0.01, 0.007 and 0.006 at most.
    assert "**Alarm, seed 1:** the labels of text still move at epoch 3 (the stage ended before" in summary
    # Three epochs take at most 0.2, 0.14 and 0.12 of what is left of a text label.
    assert f"{movable_mass(0.8, 0.5, 3):.3f} of a label of text" in summary
    assert summary.count("**No flips possible:**") == 2
    # 22 steps at 1 - .1 / 32 and 22 at 1 - .1 / 243.
    assert "- 93% of the averaged teacher of audio at the last epoch is what it was after the first one" in summary
    save_file({"train": soft[1:]}, runs[0] / "stages" / "unimodal" / "pseudo_labels.safetensors")
    with pytest.raises(MsaError, match="95 samples, but"):
        run_tool("pseudo-labels", [str(tmp_path / "run")], data=data, output=str(tmp_path / "out"))
    (runs[0] / "stages" / "unimodal" / "pseudo_labels.safetensors").unlink()
    with pytest.raises(MsaError, match="stages included"):
        run_tool("pseudo-labels", [str(tmp_path / "run")], data=data, output=str(tmp_path / "out"))


# From a trained run


def test_tools_on_a_tiny_run(data, tmp_path):
    recipe = load_recipe(
        "cmc/sample",
        assignments=[
            "stages.unimodal.num_train_epochs=2",
            "stages.main.num_train_epochs=1",
            "model.encoder_layers=1",
            "model.label_momentum={text: 0.1, audio: 0.1, vision: 0.99}",
        ],
    )
    run_recipe(recipe, data, tmp_path / "run", 5, {"disable_tqdm": True})
    run = str(tmp_path / "run")
    evaluate_runs(run, data, protocol="complete")
    names = pq.read_schema(tmp_path / "run" / "predictions.parquet").names
    assert {f"router_weights_{modality}" for modality in MODALITIES} <= set(names)
    run_tool("router", [run], data=data, output=str(tmp_path / "router"))
    kinds = {row["weights"]: row for row in read(tmp_path / "router" / "weighings.csv")}
    assert tuple(kinds) == WEIGHINGS
    facts = json.loads((tmp_path / "run" / "results.json").read_text())["mean_over_rates"]
    for metric in ("class_has0_acc2", "class_acc3"):
        routed = float(kinds["router"][METRICS[metric].pretty])
        assert routed == pytest.approx(facts[metric]["mean"], abs=1e-5)
    run_tool("refit", [run], data=data, output=str(tmp_path / "refit"))
    refit = (tmp_path / "refit" / "refit.md").read_text()
    assert all(f"| {kind} | {source} |" in refit for kind in ROUTERS for source in ("train", "half of test"))
    with pytest.raises(MsaError, match="--split train is what the experts were trained on"):
        run_tool("refit", [run], data=data, split="train")
    router = (tmp_path / "router" / "router.md").read_text()
    assert "cmc: its router reads the sum of the modalities" in router and "No AUC can be above" in router
    means = [float(row["mean"]) for row in read(tmp_path / "router" / "router.csv")]
    assert len(means) == 3 and sum(means) == pytest.approx(1.0, abs=1e-4)
    run_tool("consistency-gap", [run], data=data, output=str(tmp_path / "gap"))
    (row,) = read(tmp_path / "gap" / "consistency.csv")
    assert row["metric"] == "class_has0_acc2"
    run_tool("pseudo-labels", [run], data=data, output=str(tmp_path / "labels"))
    drift = read(tmp_path / "labels" / "drift.csv")
    assert [row["epoch"] for row in drift] == ["1", "2"] and float(drift[0]["label_change_text"]) > 0
    # Momenta of 0.1 let labels flip in two epochs; 0.99 does not.
    summary = (tmp_path / "labels" / "pseudo_labels.md").read_text()
    assert summary.count("**No flips possible:**") == 1 and "of a label of vision could leave" in summary
    assert float(drift[-1]["flip_rate_vision"]) == 0.0
    counts = np.array(
        [[int(row[name]) for name in SENTIMENT_CLASSES] for row in read(tmp_path / "labels" / "confusion.csv")]
    )
    assert counts.reshape(3, 3, 3).sum(axis=(1, 2)).tolist() == [96] * 3
