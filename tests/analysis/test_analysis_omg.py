"""The tools of OMG-Agent: numbers by hand, and a tiny trained run against the model's own public parts."""

import csv
import dataclasses
import json
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_msa.analysis import run_tool
from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.estimates import Estimate
from hf_msa.analysis.omg.evidence import (
    class_shares,
    diversity,
    diversity_rows,
    diversity_summary,
    entry_labels,
    evidence_columns,
    nearest_by_content,
    share_summary,
)
from hf_msa.analysis.omg.execution import OmgOnRows, stacked
from hf_msa.analysis.omg.imputation import (
    Means,
    complete_rows,
    error_rows,
    error_summary,
    impute_rows,
    score_summary,
    squared_errors,
    training_means,
)
from hf_msa.analysis.omg.latency import PARTS, Stopwatch, latency_summary
from hf_msa.analysis.omg.plans import correlation, judge_plan, word_value
from hf_msa.analysis.omg.settings import SettingScores, parse_settings, setting_summary
from hf_msa.analysis.omg.trace import add_section, plan_trace, utility_trace, without_data
from hf_msa.analysis.tool_report import Report
from hf_msa.data.collator import MsaCollator
from hf_msa.data.loading import load_msa
from hf_msa.data.missing import FixedPattern
from hf_msa.data.rows import MsaRows
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.evaluation.checkpoints import find_model, load_checkpoint
from hf_msa.evaluation.evaluate import evaluate_runs
from hf_msa.models.msa_label_families import BUILT_IN
from hf_msa.models.omg_plan import FALLBACK_PLAN, Plan, sentiment_word
from hf_msa.models.omg_planner import Candidate, PlanChoice
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import run_recipe
from made_omg import write_checkpoint, write_clips

MODALITIES = ("text", "audio", "vision")


def read(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=3, version=1))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "omg"
    sizes = {"vae_hidden": 8, "latent_dim": 4, "query_dim": 8, "denoiser_dim": 16, "denoiser_layers": 2}
    sizes |= {"denoiser_heads": 2, "denoiser_feedforward_dim": 16, "num_inference_steps": 2, "sequence_length": 10}
    sizes |= {"scheduler": "ddim"}
    stages = ("vae", "main", "classifier_after")
    recipe = load_recipe(
        "omg/sample",
        assignments=[
            *(f"model.{name}={value}" for name, value in sizes.items()),
            *(f"stages.{name}.num_train_epochs=1" for name in stages),
            "missing.selection_repeats=1",
        ],
    )
    run_recipe(recipe, data, folder, 5, {"disable_tqdm": True})
    return str(folder)


@pytest.fixture(scope="module")
def loaded(data, trained):
    """A model and the rows of the validation split."""
    (run,) = find_runs([trained], "omg")
    return OmgOnRows.load(run, run.rows(data, "validation"))


def left(loaded, available, count):
    """Inputs of the first rows under a pattern, and the rows."""
    members = [loaded.rows[index] for index in range(count)]
    batch = MsaCollator(loaded.processor, FixedPattern(available=available), split="validation")(members)
    keys = [key for key in batch if "values" in key or "mask" in key or key == "input_ids"]
    return {key: batch[key] for key in keys}, members


# --- What the tools share ---


def test_patterns_are_all_but_the_complete_one(loaded):
    names = ["+".join(protocol.available) for protocol in loaded.incomplete_patterns()]
    assert names == ["audio", "vision", "text", "audio+vision", "text+audio", "text+vision"]


# --- imputation ---


def test_squared_errors_by_hand():
    truth = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]], [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])
    made = torch.tensor([[[1.0, 1.0], [1.0, 2.0], [0.0, 0.0]], [[1.0, 4.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # (0 + 1 + 4 + 0) / 4 and (0 + 9) / 2: what does not count does not count, and long samples weigh no more.
    assert squared_errors(made, truth, mask).tolist() == [1.25, 4.5]


def made_imputations(error, scores):
    mean = "training mean"
    return {
        ("error", "generated", "features"): error,
        ("error", mean, "features"): [2.0, 2.0, 2.0, 2.0],
        ("spread", "generated", "features"): [1.0, 1.0, 1.0, 3.0],
        ("spread", mean, "features"): [0.0] * 4,
        ("score", "generated", ""): scores,
        ("score", mean, ""): [0.5] * 4,
    }


def test_tables_of_imputations_by_hand():
    made = [
        made_imputations([1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0]),
        made_imputations([3.0, 3.0, 3.0, 3.0], [1.0, -1.0, -1.0, -1.0]),
    ]
    made = stacked(made)
    rows = error_rows({"audio": made}, [5, 6])
    generated = {row["training seed"]: row for row in rows if row["imputed"] == "generated"}
    assert (generated[5]["mse"], generated[5]["ratio"], generated[5]["spread"]) == (1.0, 0.5, 0.75)
    assert (generated[6]["mse"], generated[6]["ratio"], generated[6]["n"]) == (3.0, 1.5, 4)
    own, mean = error_summary({"audio": made}, "features")
    assert own["ratio"].text() == "1.000 ± 0.707 [1.000, 1.000]"
    assert mean["spread"].text() == "0.000 ± 0.000 [0.000, 0.000]"
    labels = np.array([1.0, -1.0, 1.0, -1.0], dtype=np.float32)
    own, mean = score_summary({"audio": made}, labels, BUILT_IN["mosi"])
    # Absolute errors 0, 0, 0, 2 in the one seed and 0, 0, 2, 0 in the other; 0.5, 1.5, 0.5, 1.5 with the mean.
    assert own["MAE"].text().startswith("0.500 ± 0.000 [") and own["MAE, difference"].startswith("-0.500 [")
    assert [row["Non0 Acc-2"].text()[:13] for row in (own, mean)] == ["0.750 ± 0.000", "0.500 ± 0.000"]
    assert own["Non0 Acc-2, difference"].startswith("+0.250 [") and mean["MAE, difference"] is None


def test_training_means_are_those_of_real_positions(data, trained, loaded):
    model = loaded.model
    (run,) = find_runs([trained], "omg")
    train = run.rows(data, "train")
    omg = dataclasses.replace(loaded, rows=train)
    assert len(list(omg.batches(None, "rows"))) > 1
    means = training_means(omg)
    batch = MsaCollator(loaded.processor, None, split="train")([train[index] for index in range(len(train))])
    labels = batch.pop("labels")
    perception = model.perceive(batch)
    classes = torch.round(labels.clamp(-3, 3)).long() + 3
    for name in MODALITIES:
        mask = perception.masks[name]
        latents, vae = model.encode_observed(perception)[name], model.executors_by_name[name].vae
        for own, values, real in (
            (means[name].features, perception.values[name], mask),
            (means[name].latents, latents, vae.latent_mask(mask)),
        ):
            # Longer than any row: the mean over all positions.
            torch.testing.assert_close(
                torch.from_numpy(own[0](5000)[-1]).float(), values[real].mean(dim=0), atol=1e-4, rtol=1e-4
            )
            filled = Means.fill(own, torch.zeros_like(classes), real)
            assert torch.equal(filled, filled * real.unsqueeze(-1))
            # Every sample has a first position.
            torch.testing.assert_close(
                torch.stack([torch.from_numpy(own[0](5000)[0]).float()]),
                values[:, 0].mean(dim=0)[None],
                atol=1e-4,
                rtol=1e-4,
            )
            for number in range(7):
                members = classes == number
                assert own[1 + number].is_empty == (not members.any())
                if members.any():
                    expected = values[members][real[members]].mean(dim=0)
                    found = torch.from_numpy(own[1 + number](5000)[-1]).float()
                    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_imputation_of_a_run(data, trained, loaded, tmp_path):
    paths = run_tool("imputation", [trained], data=data, output=str(tmp_path))
    kinds = {f"imputation.{kind}" for kind in ("csv", "md", "png", "svg")}
    assert {path.name for path in paths} == kinds | {"imputation_scores.csv"}
    errors = {(r["modality"], r["imputed"], r["space"]): r for r in read(tmp_path / "imputation.csv")}
    scores = {(r["modality"], r["imputed"]): r for r in read(tmp_path / "imputation_scores.csv")}
    assert len(errors) == 3 * 5 * 3 and len(scores) == 3 * 5
    model, processor, rows = loaded.model, loaded.processor, loaded.rows
    whole = model.perceive(left(loaded, MODALITIES, len(rows))[0])
    truth = model.encode_observed(whole)
    for name in MODALITIES:
        inputs, members = left(loaded, tuple(other for other in MODALITIES if other != name), len(rows))
        made = model.generate_missing(inputs, members, processor)
        mask = model.executors_by_name[name].vae.latent_mask(whole.masks[name])
        mean = [
            float((made.latents[name][index][mask[index]] - truth[name][index][mask[index]]).square().mean())
            for index in range(len(rows))
        ]
        found = errors[name, "generated", "latents"]
        assert float(found["mse"]) == pytest.approx(np.mean(mean), rel=1e-4) and int(found["n"]) == len(rows)
        assert float(errors[name, "truth", "latents"]["mse"]) == 0.0
        assert float(errors[name, "truth", "latents"]["spread"]) == pytest.approx(1.0)
        assert float(errors[name, "training mean", "features"]["ratio"]) == 1.0
        assert math.isfinite(float(errors[name, "evidence", "features"]["mse"]))
        # What is generated is what the model predicts with.
        predicted = model.predict_rows(inputs, members, processor).logits[:, 0].numpy()
        mae = np.abs(predicted - rows.labels).mean()
        assert float(scores[name, "generated"]["mae"]) == pytest.approx(mae, rel=1e-4)
        latents = {**model.encode_observed(model.perceive(inputs)), name: truth[name]}
        vectors = model.plan_inputs(inputs, members, processor)[1]
        perception = model.perceive(inputs)
        logits = model.classify(perception, model.conditioning(perception, vectors), latents)
        mae = np.abs(model.score(logits)[:, 0].detach().numpy() - rows.labels).mean()
        assert float(scores[name, "truth"]["mae"]) == pytest.approx(mae, rel=1e-4)


def test_what_is_compared_with_the_truth_has_its_length(tmp_path):
    clips = write_clips(tmp_path / "clips")
    model, processor = load_checkpoint(find_model(str(write_checkpoint(tmp_path / "model", clips))))
    found = []
    for length in (2, 8):
        processor.missing_lengths = {"text": length, "audio": length, "vision": length}
        rows = MsaRows(load_msa(clips, "test"), "test", processor.tokenizer, processor.text_max_length)
        omg = OmgOnRows(model, processor, rows)
        found.append(impute_rows(omg, range(len(rows)), "audio", training_means(omg)["audio"]))
    assert len(set(rows.lengths["audio"].tolist())) > 2
    for key, values in found[0].items():
        np.testing.assert_allclose(values, found[1][key], rtol=1e-4, err_msg=str(key))


class Lacking:
    """Rows of which some have no audio."""

    batches = MsaRows.batches

    def __init__(self, rows, lacking):
        self._rows, self._lacking = rows, lacking
        self.split, self.ids = rows.split, rows.ids

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return {**self._rows[index], "audio_present": index not in self._lacking}


def test_rows_that_lack_a_modality_are_no_truth(loaded):
    rows = loaded.rows
    some, none = (
        dataclasses.replace(loaded, rows=Lacking(rows, places)) for places in ({0, 3}, set(range(len(rows))))
    )
    assert complete_rows(some) == [index for index in range(len(rows)) if index not in (0, 3)]
    with pytest.raises(MsaError, match="has all of text, audio, vision"):
        complete_rows(none)


# --- evidence ---


def test_shares_of_a_class_by_hand():
    same = torch.tensor([[True, False, True, False], [False, False, True, True]])
    rows, weights = torch.tensor([[0, 1, 2], [3, 0, -1]]), torch.tensor([[0.5, 0.3, 0.2], [0.25, 0.75, 0.0]])
    found = class_shares(same, rows, weights)
    torch.testing.assert_close(found["weight"], torch.tensor([0.7, 0.25]))
    # An empty place is no entry: one of two, not of three.
    torch.testing.assert_close(found["entries"], torch.tensor([2 / 3, 0.5]))


def test_nearest_by_content_by_hand():
    entries = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.6, 0.8], [-1.0, 0.0]])
    observed = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    rows, weights = nearest_by_content(observed, entries, torch.tensor([-1, 0]), 2, 0.2)
    # Cosines 1, 0, 0.6, -1; the second sample is the first entry.
    assert rows.tolist() == [[0, 2], [2, 1]]
    first, second = 1 / (1 + math.exp(-0.4 / 0.2)), 1 / (1 + math.exp(-0.6 / 0.2))
    torch.testing.assert_close(weights, torch.tensor([[first, 1 - first], [second, 1 - second]]))
    rows, weights = nearest_by_content(observed[1:], entries[:2], torch.tensor([0]), 5, 0.2)
    assert rows.tolist() == [[1, -1]] and weights.tolist() == [[1.0, 0.0]]


def test_differences_of_shares_are_paired():
    own, other = np.array([[0.9, 0.1, 0.5]]), np.array([[0.8, 0.0, 0.4]])
    columns = {
        ("sign", source, measure): other for source in ("content-only", "chance") for measure in ("weight", "entries")
    }
    columns |= {("sign", "retrieved", measure): own for measure in ("weight", "entries")}
    (row,) = share_summary({"text": columns}, "sign")
    assert row["weight - chance"].text() == "0.100 [0.100, 0.100]" and row["weight"].text().startswith("0.500 [")


def test_entries_without_a_label(loaded):
    with pytest.raises(MsaError, match="is no row of the training split"):
        entry_labels(loaded.model.knowledge_base, loaded.rows)


def test_diversity_by_hand():
    """Four samples, two entries each of five: entry 0 is everybody's, three others stand once or twice."""
    rows = np.array([[0, 1], [0, 2], [1, 0], [3, 0]], dtype=float)
    found = diversity(rows, 5)
    # Shares of the eight: 1/2, 1/4, 1/8, 1/8.
    assert found == {"ever used": 0.8, "most frequent": 1.0, "effective number": pytest.approx(1 / (22 / 64))}
    # Where there is no second entry nothing counts in its place.
    assert diversity(np.array([[2.0, -1.0], [0.0, -1.0]]), 4) == {
        "ever used": 0.5,
        "most frequent": 0.5,
        "effective number": 2.0,
    }
    assert diversity(np.array([[-1.0]]), 1) == {"ever used": 0.0, "most frequent": 0.0, "effective number": 0.0}


def test_diversity_is_told_by_pattern_and_source_with_the_spread_over_seeds():
    one, other = [[0, 1], [0, 1]], [[0, 1], [2, 3]]
    columns = {("rows", "retrieved", ""): np.array([one, other]), ("rows", "content-only", ""): np.array([one, one])}
    rows = diversity_rows({"text": columns}, [7, 8], 4)
    assert [(row["training seed"], row["by"], row["ever used"]) for row in rows] == [
        (7, "retrieved", 0.5),
        (7, "content-only", 0.5),
        (8, "retrieved", 1.0),
        (8, "content-only", 0.5),
    ]
    retrieved, content = diversity_summary(rows)
    assert retrieved["ever used"] == "0.750 ± 0.354" and retrieved["effective number"] == "3.0 ± 1.4"
    assert (content["observed"], content["by"], content["most frequent"]) == ("text", "content-only", "1.000 ± 0.000")


def test_evidence_of_a_run(data, trained, loaded, tmp_path):
    paths = run_tool("evidence", [trained], data=data, output=str(tmp_path))
    names = {f"evidence.{kind}" for kind in ("csv", "md", "png", "svg")} | {"diversity.csv"}
    assert {path.name for path in paths} == names
    table = {(row["observed"], row["classes"]): row for row in read(tmp_path / "evidence.csv")}
    assert len(table) == 7 * 2
    model, processor, rows = loaded.model, loaded.processor, loaded.rows
    (run,) = find_runs([trained], "omg")
    train = run.rows(data, "train")
    labels = dict(zip(train.ids, train.labels, strict=True))
    inputs, members = left(loaded, ("audio", "vision"), len(rows))
    made = model.generate_missing(inputs, members, processor)
    signs = [
        [np.sign(labels[entry]) == np.sign(member["label"]) for entry in entries]
        for member, entries in zip(members, made.evidence_ids, strict=True)
    ]
    counts = Counter(entry for entries in made.evidence_ids for entry in entries)
    told = {(row["observed"], row["by"]): row for row in read(tmp_path / "diversity.csv")}
    assert float(told["audio+vision", "retrieved"]["most frequent"]) == pytest.approx(
        max(counts.values()) / len(rows), rel=1e-4
    )
    assert "## How diverse it is" in (tmp_path / "evidence.md").read_text(encoding="utf-8")
    row = table["audio+vision", "sign"]
    assert float(row["retrieved, entries"]) == pytest.approx(np.mean(signs), rel=1e-4)
    expected = (np.array(signs) * made.evidence.weights.numpy()).sum(axis=1).mean()
    assert float(row["retrieved, weight"]) == pytest.approx(expected, rel=1e-4)
    chance = np.mean([[np.sign(a) == np.sign(b) for b in train.labels] for a in rows.labels])
    assert float(row["chance"]) == pytest.approx(chance, rel=1e-4)
    means = [float(row["retrieved, weight"]) for (name, kind), row in table.items() if kind == "class"]
    assert means[-1] == pytest.approx(np.mean(means[:-1]), rel=1e-4)


def test_a_training_samples_own_entry_is_never_counted(data, trained, loaded):
    """Alone in a knowledge base of itself and one other, each sample finds the other."""
    model = loaded.model
    (run,) = find_runs([trained], "omg")
    train, whole = run.rows(data, "train"), model.knowledge_base
    rows = [whole.ids.index(train.ids[index]) for index in (0, 1)]
    two = type(whole)(
        [whole.ids[row] for row in rows],
        whole.plans[rows],
        whole.observations[rows],
        {name: values[rows] for name, values in whole.values.items()},
    )
    model.knowledge_base = two
    try:
        labels = torch.tensor([-1.0, 1.0])
        pair = dataclasses.replace(loaded, rows=Pair(train, labels))
        columns = evidence_columns(pair, labels, FixedPattern(available=("text",)))
    finally:
        model.knowledge_base = whole
    assert all((values == 0).all() for (kind, *_), values in columns.items() if kind in ("sign", "class"))
    np.testing.assert_allclose(columns["effective entries", "", ""], 1.0)


# --- settings ---


def test_grid_of_settings():
    grid = parse_settings(["scheduler=ddpm,dpm_solver++", "num_inference_steps=8,20"])
    assert [tuple(setting.values()) for setting in grid] == [
        ("ddpm", 8), ("ddpm", 20), ("dpm_solver++", 8), ("dpm_solver++", 20),
    ]  # fmt: skip
    for wrong in ("top_k", "top_k=", "=1,2", "top_k=1,,2", "top_k=[,2"):
        with pytest.raises(MsaError, match="--vary takes FIELD=VALUE"):
            parse_settings([wrong])
    for wrong in (["top_k=1,5,1"], ["top_k=1", "top_k=2"]):
        with pytest.raises(MsaError, match="twice"):
            parse_settings(wrong)


def test_table_of_settings_by_hand():
    def scores(value, own, mae, drawn, seconds):
        values = {"mae": [mae, mae + 0.2], "non0_acc2": [0.5, 0.5], "acc7": [0.25, 0.25]}
        metrics = {name: [Estimate(np.array(seeds), np.array([drawn, drawn]))] for name, seeds in values.items()}
        return SettingScores({"top_k": value}, own, metrics, seconds)

    first = scores(1, False, 1.0, 1.0, [0.010, 0.030])
    own = scores(10, True, 0.5, 0.7, [0.010, 0.010])
    one, two = setting_summary([first, own], 0, ["mae", "acc7"], ["mae"])
    assert (one["top_k"], two["top_k"]) == ("1", "10 *")
    assert one["MAE"].text() == "1.100 ± 0.141 [1.000, 1.000]" and one["Acc-7"] == "25.000 ± 0.000"
    assert one["MAE, difference"] == "+0.500 [0.300, 0.300]" and two["MAE, difference"] is None
    assert one["ms per sample"] == "20.00 ± 14.14" and two["samples/s"] == "100.0 ± 0.0"


def test_settings_of_a_run(data, trained, tmp_path):
    """A value of a field scores what an evaluation with `--set` does."""
    options = {"data": data, "vary": ["scheduler=ddim,ddpm", "num_inference_steps=2,3"], "rates": [0.3, 0.7]}
    paths = run_tool("settings", [trained], output=str(tmp_path), **options)
    assert {path.name for path in paths} == {f"settings.{kind}" for kind in ("csv", "md", "png", "svg")}
    table = {(r["scheduler"], r["num_inference_steps"], r["rate"]): r for r in read(tmp_path / "settings.csv")}
    assert len(table) == 2 * 2 * 2
    assert [key for key, row in table.items() if row["own"] == "True"] == [("ddim", "2", "0.3"), ("ddim", "2", "0.7")]
    changes = {"scheduler": "ddpm", "num_inference_steps": 3}
    evaluation = evaluate_runs(
        trained, data, protocol="modality", rates=[0.7], mask_seeds=[1111], split="validation",
        output=str(tmp_path / "evaluated"), changes=changes,
    )  # fmt: skip
    for name, estimate in evaluation.content["per_rate"][0]["metrics"].items():
        assert float(table["ddpm", "3", "0.7"][name]) == pytest.approx(estimate["mean"], abs=1e-5)
    seconds = [float(row["seconds per sample"]) for row in table.values()]
    assert min(seconds) > 0 and float(table["ddpm", "3", "0.3"]["samples per second"]) == pytest.approx(
        1 / float(table["ddpm", "3", "0.3"]["seconds per sample"]), rel=1e-4
    )
    assert "ddim | 2 *" in (tmp_path / "settings.md").read_text()


def test_settings_that_cannot_be(data, trained, tmp_path):
    def vary(assignment, **options):
        run_tool("settings", [trained], data=data, output=str(tmp_path), vary=[assignment], **options)

    with pytest.raises(MsaError, match="top_k"):
        vary("topk=1,2")
    with pytest.raises(MsaError, match="scheduler"):
        vary("scheduler=euler")
    with pytest.raises(MsaError, match="metric 'mea'"):
        vary("top_k=1", metrics=["mea"])


# --- latency ---


def test_a_stopwatch_adds_up():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch.timing("execution"):
            time.sleep(0.02)
    assert 0.04 <= watch.seconds["execution"] < 1 and watch.seconds["retrieval"] == 0.0


def test_table_of_latencies_by_hand():
    table = []
    # Repeats with totals 60, 50 and 160 uncached and 50, 20 and 140 cached.
    for uncached, cached, execution in ((20, 10, 36), (40, 10, 6), (30, 10, 126)):
        values = (uncached, cached, 1, 1, execution, 2)
        table.append({"observed": "text", "repeat": len(table)} | dict(zip(PARTS, map(float, values), strict=True)))
    (row,) = latency_summary(table)
    assert row["planning, uncached"] == "30.00 [20.00, 40.00]" and row["execution"] == "36.00 [6.00, 126.00]"
    assert row["total, uncached"] == "60.00 [50.00, 160.00]" and row["total, cached"] == "50.00 [20.00, 140.00]"
    # The middle ones of 1/3, 4/5 and 3/16, and of 1/5, 1/2 and 1/14.
    assert row["share of planning, uncached"] == "33%" and row["share of planning, cached"] == "20%"


def test_latency_of_a_run(data, trained, tmp_path):
    paths = run_tool("latency", [trained], data=data, output=str(tmp_path), samples=3, batch_size=2)
    assert {path.name for path in paths} == {f"latency.{kind}" for kind in ("csv", "md", "png", "svg")}
    table = read(tmp_path / "latency.csv")
    assert len(table) == 6 * 5 and all(float(row[part]) > 0 for row in table for part in PARTS)
    # What is remembered need not be read again.
    planning = {kind: np.median([float(row[f"planning, {kind}"]) for row in table]) for kind in ("uncached", "cached")}
    assert planning["cached"] < planning["uncached"]
    summary = (tmp_path / "latency.md").read_text()
    assert "3 samples (validation) in batches of 2 on" in summary and "84 ms per sample, 45% planning" in summary
    assert "light planner" in summary and "not comparable" in summary
    with pytest.raises(MsaError, match="must be at least 1"):
        run_tool("latency", [trained], data=data, output=str(tmp_path), samples=0)


# --- trace ---


def test_utility_by_hand():
    found = utility_trace({"reconstruction": 2.0, "semantic": 0.5, "evidence": 0.4, "path": 1.0}, 0.3)
    assert found["value"] == pytest.approx(-(2 + 0.3 * 0.5 + 0.1 * 0.4 + 0.1 * 1))
    # Without evidence that part is 0; without a truth there is no utility.
    found = utility_trace({"reconstruction": 2.0, "semantic": 0.5, "evidence": None, "path": 1.0}, 0.3)
    assert found["value"] == pytest.approx(-(2 + 0.15 + 0.1))
    assert utility_trace({"reconstruction": None, "semantic": 0.5, "evidence": 0.4, "path": 1.0}, 0.3)["value"] is None


def test_trace_of_plans():
    vector, across = np.array([1.0, 0.0], np.float32), np.array([0.6, 0.8], np.float32)
    plan = Plan("Zebra", "jumps", "positive")
    candidates = (
        Candidate("Zebra jumps", -0.5, None, ("the fields are not entity, action, sentiment",)),
        Candidate(plan.to_text(), -1.0, plan, (), 0.4, -1.12),
    )
    found = plan_trace(PlanChoice(plan, candidates, 1, vector, across))
    assert (found["entity"], found["score"], found["chosen"], found["is_fallback"]) == ("Zebra", 2, 1, False)
    assert found["semantic_cost"] == pytest.approx(0.4)
    broken, winner = found["candidates"]
    assert broken["violations"] and not math.isfinite(broken["utility"]) and not math.isfinite(broken["semantic_cost"])
    assert winner["utility"] == -1.12 and winner["sentiment"] == "positive"
    fallback = plan_trace(PlanChoice(FALLBACK_PLAN, candidates[:1], None, vector, across))
    assert fallback["is_fallback"] and fallback["chosen"] is None


def made_trace():
    plan = {
        "entity": "Zebra", "action": "jumps", "sentiment": "positive", "score": 2, "is_fallback": False, "chosen": 0,
        "semantic_cost": 0.4,
        "candidates": [
            {"text": "Zebra; jumps", "sentiment": "positive", "log_prob": -1.0, "semantic_cost": 0.4, "utility": -1.1,
             "violations": []},
            {"text": "Zebra | eats", "sentiment": None, "log_prob": -2.0, "semantic_cost": None, "utility": None,
             "violations": ["the entity is Zebra"]},
        ],
    }  # fmt: skip
    entry = {"id": "clip-7", "weight": 1.0, "cosine": 0.9, "label": 1.75, "text": "the Zebra runs"}
    return {
        "id": "clip-5", "label": -2.25, "text": "a Zebra jumped", "observed": ["audio"], "plan": plan,
        "retrieval": {"alignment_cost": 0.25, "entries": [entry]},
        "execution": {"text": {"latents": 3, "step_norms": [float(n) for n in range(20)], "path_cost": 0.5,
                               "reconstruction_error": None}},
        "class_probabilities": {"negative": 0.25, "positive": 0.75}, "score": 1.5,
        "utility": {"value": None, "costs": {"path": 0.5}, "weights": {"path": 0.1}},
    }  # fmt: skip


def readable(trace, folder):
    report = Report(folder)
    report.summary("trace.md", "Traces")
    add_section(report, trace, 1)
    (path,) = report.write()
    return path.read_text()


def test_the_structure_of_a_trace_holds_no_row(tmp_path):
    trace = made_trace()
    bare = without_data(trace)
    for told in (json.dumps(bare), readable(bare, tmp_path)):
        assert not any(word in told for word in ("Zebra", "jump", "clip-", "runs", "eats", "-2.25", "-2.2", "1.75"))
    assert bare["plan"]["candidates"][1]["violations"] == 1 and bare["retrieval"]["entries"] == [
        {"weight": 1.0, "cosine": 0.9}
    ]
    assert trace == made_trace()
    told = readable(trace, tmp_path)
    assert "## Sample 1: clip-5" in told and "hidden from the model" in told and "Zebra \\| eats" in told
    assert "Root mean square of some of 20 steps: 0.000 2.000" in told and "17.000 19.000." in told
    assert "| * | Zebra; jumps | positive | -1.000 | 0.400 | -1.100 | - |" in told


def test_trace_of_a_run(data, trained, loaded, tmp_path):
    model, processor, rows = loaded.model, loaded.processor, loaded.rows
    options = {"data": data, "available": ["text", "vision"], "ids": [rows.ids[3], rows.ids[0]]}
    paths = run_tool("trace", [trained], output=str(tmp_path), **options)
    assert [path.name for path in paths] == ["trace.json", "trace.md"]
    trace = json.loads(paths[0].read_text())
    assert trace["available"] == ["text", "vision"] and trace["planner"] == "light planner"
    assert trace["settings"]["scheduler"] == "ddim" and [s["id"] for s in trace["samples"]] == options["ids"]
    inputs, members = left(loaded, ("text", "vision"), 4)
    made = model.generate_missing(inputs, members, processor)
    truth = model.encode_observed(model.perceive(left(loaded, MODALITIES, 4)[0]))["audio"]
    mask = model.executors_by_name["audio"].vae.latent_mask(made.masks["audio"])
    (run,) = find_runs([trained], "omg")
    train = run.rows(data, "train")
    known = dict(zip(train.ids, train.labels.tolist(), strict=True))
    for sample, row in zip(trace["samples"], (3, 0), strict=True):
        choice = made.plans[row]
        assert sample["label"] == pytest.approx(float(rows.labels[row])) and sample["observed"] == ["text", "vision"]
        assert sample["plan"]["entity"] == choice.plan.entity and sample["plan"]["chosen"] == choice.chosen
        assert [c["text"] for c in sample["plan"]["candidates"]] == [c.text for c in choice.candidates]
        assert sample["plan"]["semantic_cost"] == pytest.approx(choice.candidates[choice.chosen].cost, abs=1e-5)
        entries = sample["retrieval"]["entries"]
        assert [entry["id"] for entry in entries] == made.evidence_ids[row]
        assert [entry["weight"] for entry in entries] == pytest.approx(made.evidence.weights[row].tolist(), abs=1e-5)
        assert all(entry["label"] == pytest.approx(known[entry["id"]]) and entry["text"] for entry in entries)
        audio = sample["execution"]["audio"]
        assert set(sample["execution"]) == {"audio"} and audio["latents"] == int(mask[row].sum())
        costs = made.step_costs["audio"][row].tolist()
        assert [norm**2 for norm in audio["step_norms"]] == pytest.approx(costs, rel=1e-3)
        assert audio["path_cost"] == pytest.approx(np.mean(costs), rel=1e-3)
        error = (made.latents["audio"][row][mask[row]] - truth[row][mask[row]]).square().mean()
        assert audio["reconstruction_error"] == pytest.approx(float(error), rel=1e-3)
        parts = (1, float(error)), (0.3, sample["plan"]["semantic_cost"]), (0.1, np.mean(costs))
        parts += ((0.1, sample["retrieval"]["alignment_cost"]),)
        assert sample["utility"]["value"] == pytest.approx(-sum(a * b for a, b in parts), rel=1e-3)
        assert sum(sample["class_probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert sample["score"] == pytest.approx(float(model.score(made.class_logits[row : row + 1])), abs=1e-4)


def test_traces_of_complete_samples_and_without_words(data, trained, loaded, tmp_path):
    """With nothing missing nothing is generated; the defaults are the first samples without their text."""
    paths = run_tool("trace", [trained], data=data, output=str(tmp_path / "a"), available=MODALITIES, samples=1)
    (sample,) = json.loads(paths[0].read_text())["samples"]
    assert sample["execution"] == {} and sample["utility"]["value"] is None and sample["observed"] == list(MODALITIES)
    rows = loaded.rows
    paths = run_tool("trace", [trained], data=data, output=str(tmp_path / "b"), structure=True)
    trace = json.loads(paths[0].read_text())
    assert len(trace["samples"]) == 3 and all(s["observed"] == ["audio", "vision"] for s in trace["samples"])
    told = paths[0].read_text() + paths[1].read_text()
    assert not any(rows.ids[index] in told or rows[index]["text"] in told for index in range(3))
    with pytest.raises(MsaError, match="no sample 'nobody'"):
        run_tool("trace", [trained], data=data, output=str(tmp_path), ids=["nobody"])
    with pytest.raises(MsaError, match="at least 1 sample"):
        run_tool("trace", [trained], data=data, output=str(tmp_path), samples=0)


class Pair:
    """The first two rows, with other labels."""

    batches = MsaRows.batches

    def __init__(self, rows, labels):
        self._rows, self._labels = rows, labels
        self.split, self.ids = rows.split, rows.ids[:2]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {**self._rows[index], "label": float(self._labels[index])}


# --- plans ---


def test_plans_are_judged_by_hand():
    plan, vector = Plan("a", "b", "slightly positive"), np.zeros(2)
    candidates = (Candidate("?", -1.0, None, ("broken",)), Candidate(plan.to_text(), -2.0, plan, (), 0.25, -2.1))
    judged = judge_plan(PlanChoice(plan, candidates, 1, vector, vector, 2.0), 0.6, BUILT_IN["mosi"])
    assert judged == {"valid": 0.5, "fallback": 0, "word": 1, "sign": 1, "error": 1.4, "cost": 0.25, "score": 2.0}
    judged = judge_plan(PlanChoice(FALLBACK_PLAN, candidates[:1], None, vector, vector), -0.4, BUILT_IN["sims"])
    assert math.isnan(judged.pop("cost"))
    assert judged == {"valid": 0, "fallback": 1, "word": 0, "sign": 0, "error": 0.4, "score": 0}
    assert [word_value(word, BUILT_IN["sims"]) for word in ("strongly negative", "neutral")] == [-1.0, 0.0]


def test_correlations_are_numpys():
    draw = np.random.default_rng(0)
    labels, scores = draw.normal(size=30), draw.normal(size=(2, 30))
    found = correlation(scores, labels)
    assert found.per_seed == pytest.approx([np.corrcoef(row, labels)[0, 1] for row in scores])
    assert np.isnan(correlation(np.ones((1, 30)), labels).per_seed).all()


def test_plans_of_a_run(data, trained, loaded, tmp_path):
    run_tool("plans", [trained], data=data, output=str(tmp_path))
    table = {row["observed"]: row for row in read(tmp_path / "plans.csv")}
    assert len(table) == 7 + 1 and list(table)[0] == "text+audio+vision" and list(table)[-1] == "constant"
    plans, _ = loaded.model.plan_inputs(
        {}, [loaded.rows[index] for index in range(len(loaded.rows))], loaded.processor
    )
    words = [
        choice.plan.sentiment == sentiment_word(label, loaded.model.config.family)
        for choice, label in zip(plans, loaded.rows.labels, strict=True)
    ]
    row = table["text+audio+vision"]
    assert float(row["right word"]) == pytest.approx(np.mean(words), rel=1e-4)
    assert float(row["valid candidates"]) == 1.0 and float(row["fallback plans"]) == 0.0
    errors = [abs(choice.score - label) for choice, label in zip(plans, loaded.rows.labels, strict=True)]
    assert float(row["MAE of the score"]) == pytest.approx(np.mean(errors), rel=1e-4)
    (run,) = find_runs([trained], "omg")
    mean = run.rows(data, "train").labels.mean()
    expected = np.abs(loaded.rows.labels - mean).mean()
    assert float(table["constant"]["MAE of the score"]) == pytest.approx(expected, rel=1e-4)
