"""Reconstruction error and prompt weights: numbers by hand, made logs, and a tiny trained run."""

import csv
import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from hf_msa.analysis import run_tool
from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.pglh.prompts import evenness, spread
from hf_msa.analysis.pglh.reconstruction import ErrorSums, error_rows, reconstruction_sums, training_means
from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FrameMissing
from hf_msa.data.rows import MsaRows
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.models.modeling_pglh import PglhForSentimentAnalysis, PromptAttention, VisibleTokens
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import run_recipe
from tiny import TINY_CONFIGS, tiny_processor, tiny_rows


def read(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_errors_by_hand():
    target = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]])
    made = torch.tensor([[[1.0, 1.0], [1.0, 2.0], [0.0, 0.0]]])
    trivial = torch.tensor([[[0.0, 0.0], [2.0, 1.0], [5.0, 3.0]]])
    sums = ErrorSums()
    sums.add(made, target, torch.tensor([[True, True, False]]), trivial)
    # Squared errors 0, 1, 4, 0 over two positions of width two; of the trivial reconstruction 1, 0, 1, 1.
    assert sums.mean_squared_error() == pytest.approx(1.25) and sums.trivial_error() == pytest.approx(0.75)
    sums.add(made, target, torch.tensor([[False, False, True]]), trivial)
    assert sums.positions == 3 and sums.mean_squared_error() == pytest.approx((5 + 50) / 6)
    assert sums.trivial_error() == pytest.approx((3 + 4) / 6)
    empty = ErrorSums()
    empty.add(made, target, torch.zeros(1, 3, dtype=torch.bool), trivial)
    assert math.isnan(empty.mean_squared_error()) and math.isnan(empty.trivial_error())


def test_rows_beside_the_trivial_reconstruction():
    target, made = torch.tensor([[[0.0], [2.0], [4.0]]]), torch.tensor([[[0.0], [2.0], [3.0]]])
    masked, trivial = torch.tensor([[False, False, True]]), torch.tensor([[[1.0], [2.0], [2.0]]])
    sums = {}
    for kind, where in (("masked", masked), ("visible", ~masked)):
        sums["audio", 0.3, kind] = ErrorSums()
        sums["audio", 0.3, kind].add(made, target, where, trivial)
    rows = {row["positions"]: row for row in error_rows(sums)}
    assert rows["masked"]["trivial mse"] == 4.0 and rows["visible"]["trivial mse"] == 0.5
    assert rows["masked"]["ratio"] == 1 / 4
    assert rows["visible"]["mse"] == 0.0 and rows["visible"]["n"] == 2


def write_logged(folder, values, chosen=2.0):
    history = [
        {"epoch": float(epoch), "loss": 1.0, "alpha_text": value, "beta_audio": 1 - value}
        for epoch, value in enumerate(values, 1)
    ]
    history.insert(1, {"epoch": 1.0, "eval_loss": 2.0})
    facts = {
        "seed": int(folder.name.removeprefix("seed-")),
        "method": "pglh",
        "ablation": None,
        "selection": {"epoch": chosen, "stage": "main"},
        "stages": [{"name": "main", "history": history}],
        "settings": {},
        "flags": {},
        "dataset": {"fingerprint": "made"},
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "config.json").write_text("{}")


def test_prompt_weights_of_a_log(tmp_path):
    write_logged(tmp_path / "run" / "seed-1", [0.5, 0.6, 0.7])
    write_logged(tmp_path / "run" / "seed-2", [0.5, 0.8])
    paths = run_tool("prompts", [str(tmp_path / "run")])
    assert {path.name for path in paths} == {"prompts.csv", "prompts.md", "prompts.png", "prompts.svg"}
    rows = read(paths[0])
    assert [(row["training seed"], row["epoch"]) for row in rows] == [
        tuple(pair) for pair in ("11", "12", "13", "21", "22")
    ]
    assert [float(row["alpha_text"]) for row in rows] == [0.5, 0.6, 0.7, 0.5, 0.8]
    summary = (tmp_path / "run" / "analysis" / "prompts" / "prompts.md").read_text()
    # Chosen: 0.6 and 0.8; last: 0.7 and 0.8; moved: 0.1 and 0.3.
    assert "| alpha_text | 0.500 ± 0.000 | 0.700 ± 0.141 | 0.750 ± 0.071 | 0.200 ± 0.141 |" in summary
    assert "| beta_audio | 0.500 ± 0.000 | 0.300 ± 0.141 | 0.250 ± 0.071 | -0.200 ± 0.141 |" in summary


def test_spread_of_prompts_by_hand():
    prompts = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[3.0, 4.0], [3.0, 4.0]]])
    # Distances from the means 0 and (3, 4): 1, 1, 0, 0. Lengths: 1, 1, 5, 5.
    assert spread(prompts) == (2.0, 52.0)
    assert spread(prompts[1:]) == (0.0, 50.0)


def test_evenness_of_attention_by_hand():
    attention = PromptAttention(2)
    for layer in (attention.query, attention.key):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    # Scores over the root of 2 are log(3) and 0, so weights 3/4 and 1/4; the second prompt asks for nothing.
    prompts = torch.tensor([[math.sqrt(2) * math.log(3), 0.0], [0.0, 0.0]])
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = evenness(attention, prompts, VisibleTokens(hidden, mask, torch.zeros(2, 3).long()))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert found.tolist() == pytest.approx([(entropy + 1) / 2])


def test_runs_without_prompts(tmp_path):
    write_logged(tmp_path / "seed-1", [])
    with pytest.raises(MsaError, match="no alpha or beta"):
        run_tool("prompts", [str(tmp_path / "seed-1")])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=3, version=1))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pglh"
    recipe = load_recipe("pglh/sample", assignments=["stages.main.num_train_epochs=2", "missing.selection_repeats=1"])
    run_recipe(recipe, data, folder, 5, {"disable_tqdm": True})
    return str(folder)


def test_reconstruction_of_a_run(data, trained, tmp_path):
    paths = run_tool("reconstruction", [trained], data=data, output=str(tmp_path), rates=[0.0, 0.5])
    assert {path.name for path in paths} == {f"reconstruction.{kind}" for kind in ("csv", "md", "png", "svg")}
    rows = {(r["modality"], r["rate"], r["positions"]): r for r in read(tmp_path / "reconstruction.csv")}
    assert len(rows) == 3 * 2 * 2
    (run,) = find_runs([trained], "pglh")
    validation = run.rows(data, "validation")
    model, processor = run.load(validation)
    collator = MsaCollator(processor, FrameMissing(rate=0.5, seed=1111), split="validation", return_complete=True)
    batch = collator([validation[index] for index in range(len(validation))])
    inputs = {k: v for k, v in batch.items() if "values" in k or "mask" in k or k in ("complete_input_ids", "labels")}
    with torch.no_grad():
        losses = model(input_ids=batch["input_ids"], **inputs).losses
    # The training loss on the same batch sums what the tool takes apart.
    masked = sum(float(rows[m, "0.5", "masked"]["mse"]) for m in ("text", "audio", "vision"))
    assert masked == pytest.approx(float(losses["mask"]), rel=1e-4)
    everywhere = 0.0
    for modality in ("text", "audio", "vision"):
        parts = [rows[modality, "0.5", kind] for kind in ("masked", "visible")]
        counts = [int(part["n"]) for part in parts]
        everywhere += np.average([float(part["mse"]) for part in parts], weights=counts)
        assert rows[modality, "0", "masked"]["mse"] == "" and int(rows[modality, "0", "visible"]["n"]) == sum(counts)
    assert everywhere == pytest.approx(float(losses["global"]), rel=1e-4)
    means = training_means(model, processor, run.rows(data, "train"))["audio"]
    values, real = batch["complete_audio_values"], batch["audio_attention_mask"].bool()
    mask = batch["audio_missing_mask"] & real
    guess = torch.from_numpy(means.padded(real.sum(dim=1).tolist(), real.shape[1]))
    assert float(rows["audio", "0.5", "masked"]["trivial mse"]) == pytest.approx(
        float((values - guess)[mask].square().mean()), rel=1e-4
    )
    # Longer than any clip: the mean of all training frames, which are standardised.
    assert np.allclose(means(5000)[-1], 0, atol=1e-4)


def test_there_is_no_truth_of_what_a_sample_never_had():
    """At rate 1 the form that stands for audio has 5 frames: as many positions are compared, or as the truth has."""
    config = TINY_CONFIGS["pglh"]()
    rows = [{"id": f"s{i}", **row} for i, row in enumerate(tiny_rows(config))]
    lengths = [len(row["audio"]) for row in rows]
    assert min(lengths) < 5 < max(lengths[1:])
    data = datasets.Dataset.from_list(
        [{**row, "audio_present": index > 0, "audio": row["audio"].tolist()} for index, row in enumerate(rows)]
    )
    processor = tiny_processor(config)
    read = MsaRows(data, "test", processor.tokenizer, processor.text_max_length)
    model = PglhForSentimentAnalysis(config).eval()
    sums = reconstruction_sums(model, processor, read, [0.0, 1.0], training_means(model, processor, read))
    assert sums["audio", 0.0, "visible"].positions == sum(lengths[1:]) and not sums["audio", 0.0, "masked"].positions
    assert sums["audio", 1.0, "masked"].positions == sum(min(length, 5) for length in lengths[1:])


def test_prompt_weights_of_a_run(trained, tmp_path):
    run_tool("prompts", [trained], output=str(tmp_path))
    assert "give a data set with --data" in (tmp_path / "prompts.md").read_text()
    rows = read(tmp_path / "prompts.csv")
    names = {"alpha_text", "alpha_audio", "alpha_vision", "beta_audio", "beta_vision"}
    assert [row["epoch"] for row in rows] == ["1", "2"] and names == set(rows[0]) - {"training seed", "epoch"}
    assert all(float(row[name]) == pytest.approx(0.5, abs=0.1) for row in rows for name in names)


def test_use_of_the_prompts_of_a_run(data, trained, tmp_path):
    run_tool("prompts", [trained], data=data, output=str(tmp_path))
    rows = {(row["prompts"], row["modality"]): row for row in read(tmp_path / "use.csv")}
    fusion, language = (
        [("fusion", m) for m in ("audio", "text", "vision")],
        [("language", m) for m in ("audio", "vision")],
    )
    assert list(rows) == [*fusion, *language]
    (run,) = find_runs([trained], "pglh")
    validation = run.rows(data, "validation")
    model, processor = run.load(validation)
    inputs = processor.from_rows([validation[index] for index in range(len(validation))])
    with torch.no_grad():
        tokens = model.encode(inputs)
        refined = model.refiners["audio"](tokens["audio"], tokens["text"])
    deviation = (refined - refined.mean(dim=1, keepdim=True)).square().sum() / refined.square().sum()
    assert float(rows["fusion", "audio"]["spread"]) == pytest.approx(deviation.sqrt().item(), rel=1e-4)
    assert all(0 < float(rows[key]["evenness"]) < 1 for key in rows)
    assert all(0 < float(rows[key]["spread"]) < 1 for key in fusion)
    assert all(rows[key]["spread"] == "" for key in language)


def test_tools_say_what_single_frames_cannot_show(trained, tmp_path):
    """Clips of one frame of audio and two of vision."""
    (run,) = find_runs([trained], "pglh")
    widths = {name: run.facts["config"][f"{name}_dim"] for name in ("audio", "vision")}
    features = {"audio": np.ones((1, widths["audio"])).tolist(), "vision": np.ones((2, widths["vision"])).tolist()}
    clips = [{"id": f"s{number}", "text": "a good film", "label": 1.0, **features} for number in range(3)]
    splits = {name: datasets.Dataset.from_list(clips) for name in ("train", "validation")}
    for tool in ("prompts", "reconstruction"):
        report = tmp_path / tool
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hf_msa.analysis.common.trained_runs.load_split", lambda data, split: splits[split])
            run_tool(tool, [trained], data="made", output=str(report))
        assert "No clip has more than one frame of audio, so" in (report / f"{tool}.md").read_text()


def test_without_a_decoder_nothing_is_reconstructed(data, trained, tmp_path):
    (run,) = find_runs([trained], "pglh")
    model, processor = run.load(run.rows(data, "validation"))
    kept = type(model).from_pretrained(run.folder, drop_decoder=True)
    folder = tmp_path / "seed-5"
    kept.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "run.json").write_text((run.folder / "run.json").read_text())
    with pytest.raises(MsaError, match="has no decoder"):
        run_tool("reconstruction", [str(folder)], data=data, output=str(tmp_path / "out"))
