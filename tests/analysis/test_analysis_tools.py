"""Every tool from a trained run to its files: a TCMR of a few epochs on the tiny corpus, no numbers expected of it."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hf_msa.analysis import run_tool
from hf_msa.analysis.common.trained_runs import find_runs
from hf_msa.analysis.tcmr.gradients import loss_gradients, training_batches
from hf_msa.analysis.tcmr.judged_model import judge, polarity_classifier, text_regressor
from hf_msa.data.collator import MsaCollator
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import run_recipe
from hf_msa_cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=3, version=1))


@pytest.fixture(scope="module")
def output(data, tmp_path_factory):
    """One seed of TCMR with every checkpoint kept."""
    folder = tmp_path_factory.mktemp("runs") / "tcmr"
    recipe = load_recipe(
        "tcmr/sample",
        assignments=[
            "stages.polarity.num_train_epochs=2",
            "stages.regressor.num_train_epochs=1",
            "stages.main.num_train_epochs=2",
            "missing.selection_repeats=2",
        ],
    )
    run_recipe(recipe, data, folder, 5, {"save_total_limit": 100, "disable_tqdm": True})
    return str(folder)


def read(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_clues(data, output, tmp_path):
    run_tool("clues", [output], data=data, output=str(tmp_path), thresholds=[0.2, 0.1, 0.34])
    summary = (tmp_path / "clues.md").read_text()
    assert "160 texts (all splits)" in summary and "planted cues among the top words" in summary
    table = read(tmp_path / "clues.csv") if (tmp_path / "clues.csv").is_file() else []
    for row in table:
        assert 0 < int(row["flips"]) <= int(row["masked"])
        assert float(row["rate"]) == pytest.approx(int(row["flips"]) / int(row["masked"]), rel=1e-5)
    with pytest.raises(MsaError, match="reading 'opposit'.*'opposite'"):
        run_tool("clues", [output], data=data, output=str(tmp_path / "one"), reading="opposit")
    run_tool(
        "clues", [output], data=data, output=str(tmp_path / "one"), split="test", reading="wrong", thresholds=[0.2]
    )
    assert "A flip is a turn from right to wrong" in (tmp_path / "one" / "clues.md").read_text()
    run_tool("clues", [output], data=data, output=str(tmp_path / "one"), split="test", pieces=True)
    assert "32 texts (test)" in (tmp_path / "one" / "clues.md").read_text()


def test_confidence(data, output, tmp_path):
    run_tool("confidence", [output], data=data, output=str(tmp_path), rates=[0.0, 0.5])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("confidence.csv", "calibration.csv", "cue_masking.csv"),
        *("confidence.md", "confidence.png", "confidence.svg"),
    }
    none, half = read(tmp_path / "confidence.csv")
    assert none["corr with kept share"] == "" and half["corr with kept share"] != ""
    assert sum(int(row["n"]) for row in read(tmp_path / "calibration.csv")) == 64
    (planted,) = read(tmp_path / "cue_masking.csv")
    assert float(planted["confidence: difference"]) == pytest.approx(
        float(planted["confidence: cues"]) - float(planted["confidence: fillers"]), abs=1e-5
    )


def test_judged_numbers_are_the_models_own(data, output):
    """Prediction, confidence and truth of a sweep are those of a plain forward under the same masks."""
    (run,) = find_runs([output], "tcmr")
    rows = run.rows(data, "validation")
    (part,) = judge(run, rows, [0.6], [9])
    model, processor = run.load(rows)
    from hf_msa.data.missing import FrameMissing

    batch = MsaCollator(processor, FrameMissing(rate=0.6, seed=9), split="validation")([rows[i] for i in range(5)])
    inputs = {k: v for k, v in batch.items() if "mask" in k or "values" in k or k == "input_ids"}
    with torch.no_grad():
        made = model(**inputs)
        truth = polarity_classifier(run).true_class_probability(
            batch["input_ids"], batch["attention_mask"], batch["labels"]
        )
    np.testing.assert_allclose(part["prediction"][:5], made.logits[:, 0], atol=1e-5)
    np.testing.assert_allclose(part["confidence"][:5], made.confidence[:, 0], atol=1e-5)
    np.testing.assert_allclose(part["truth"][:5], truth, atol=1e-5)
    for index in range(5):
        mask = batch["text_missing_mask"][index].numpy()
        assert part["text_masks"][index].sum() == mask.sum()
        assert part["kept"][index] == pytest.approx(1 - mask.sum() / (len(rows[index]["input_ids"]) - 2))


def test_quadrants(data, output, tmp_path):
    run_tool("quadrants", [output], data=data, output=str(tmp_path), split="test")
    cells = read(tmp_path / "quadrants.csv")
    assert [(cell["missing rate"], cell["cue words"]) for cell in cells] == [
        *(("low", "kept"), ("low", "dropped"), ("high", "kept"), ("high", "dropped")),
    ]
    table = pq.read_table(tmp_path / "quadrants.parquet")
    assert "text" not in table.column_names
    assert sum(int(cell["n"]) for cell in cells) + table["fate"].to_pylist().count("mixed") == table.num_rows
    for row in read(tmp_path / "examples.csv"):
        assert len(row["text"].split()) == len(row["read as"].split())
    assert "## Examples" in (tmp_path / "quadrants.md").read_text()


def test_utterances_of_other_data_stay_out_of_the_summary(data, output, tmp_path):
    """Data without planted facts counts as real: cue words come from clues or a list, utterances only on demand."""
    real = tmp_path / "real"
    shutil.copytree(data, real, ignore=shutil.ignore_patterns("planted"))
    with pytest.raises(MsaError, match="--cues"):
        run_tool("quadrants", [output], data=str(real), output=str(tmp_path / "a"))
    words = tmp_path / "words.txt"
    words.write_text("good\nbad\ngreat\nawful\nnice\nboring\nthe\n")
    run_tool("quadrants", [output], data=str(real), output=str(tmp_path / "a"), cues=str(words), rates=[0.1, 0.9])
    assert "## Examples" not in (tmp_path / "a" / "quadrants.md").read_text()
    assert read(tmp_path / "a" / "examples.csv")
    run_tool("quadrants", [output], data=str(real), output=str(tmp_path / "b"), cues=str(words), examples=True)
    assert "## Examples" in (tmp_path / "b" / "quadrants.md").read_text()
    table = Path(output) / "analysis" / "clues" / "clues.csv"
    table.parent.mkdir(parents=True)
    table.write_text("threshold,word,flips,masked,rate\n0.5,the,9,10,0.9\n0.9,good,2,4,0.5\n0.9,is,1,99,0.01\n")
    run_tool("quadrants", [output], data=str(real), output=str(tmp_path / "c"))
    assert "1 cue words (clues.csv, threshold 0.9)" in (tmp_path / "c" / "quadrants.md").read_text()
    shutil.rmtree(table.parents[1])


def test_gradients(data, output, tmp_path):
    run_tool("gradients", [output], data=data, output=str(tmp_path), steps=3)
    table = read(tmp_path / "gradients.csv")
    assert len(table) == 2 * 3 and len({row["step"] for row in table}) == 2
    assert all(-1 <= float(row["cosine"]) <= 1 for row in table)
    assert all(
        float(row[f"{name} gradient"]) > 0 for row in table for name in ("confidence", "task", "reconstruction")
    )
    assert any(row["cosine on the text encoder"] != row["without the path"] for row in table)
    assert [row["checkpoint"] for row in read(tmp_path / "gradients_by_checkpoint.csv")][-1] == "chosen"


def test_gradients_are_those_of_the_losses(data, output):
    """A step against the confidence gradient lowers the confidence loss; the model keeps its weights."""
    (run,) = find_runs([output], "tcmr")
    rows = run.rows(data, "train")
    model, processor = run.load(rows)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch, other = training_batches(run, rows, processor, 4)[::3]
    assert not torch.equal(batch["sample_index"], other["sample_index"])
    classifier, regressor = polarity_classifier(run), text_regressor(run)
    inputs = {key: batch[key] for key in model.inputs_from(batch, predicting=True)}
    kept = model(**inputs).confidence.detach()
    for which in ("confidence", "task", "detached task"):
        model.load_state_dict(before)
        gradient = loss_gradients(model, classifier, regressor, batch)[which]

        def loss(which=which):
            targets = classifier.true_class_probability(batch["input_ids"], batch["attention_mask"], batch["labels"])
            with torch.no_grad():
                out = model(**inputs, confidence=kept if which == "detached task" else None)
            if which == "confidence":
                return torch.nn.functional.mse_loss(out.confidence[:, 0], targets)
            return torch.nn.functional.mse_loss(out.logits[:, 0], batch["labels"])

        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        start = loss()
        length = sum(float(part.square().sum()) for part in gradient if part is not None)
        step = 1e-3 * float(start) / length
        with torch.no_grad():
            for parameter, part in zip(model.confidence_parameters(), gradient, strict=True):
                if part is not None:
                    parameter -= step * part
        # First order: the loss falls by step * |gradient|^2, a thousandth of itself.
        assert float(start - loss()) == pytest.approx(1e-3 * float(start), rel=0.3)


def test_the_task_reaches_the_estimator_by_the_predicted_confidence_alone(data, output):
    (run,) = find_runs([output], "tcmr")
    rows = run.rows(data, "train")
    model, processor = run.load(rows)
    (batch,) = training_batches(run, rows, processor, 1)
    found = loss_gradients(model, polarity_classifier(run), text_regressor(run), batch)
    estimator = len(list(model.confnet.parameters()))
    assert any(part is not None and part.abs().sum() > 0 for part in found["task"][-estimator:])
    assert all(part is None for part in found["detached task"][-estimator:])


def test_proxy(data, output, tmp_path):
    paths = run_tool("proxy", [output], data=data, output=str(tmp_path), rates=[0.0, 0.5])
    assert {path.name for path in paths} == {f"proxy.{kind}" for kind in ("csv", "md", "png", "svg")}
    none, half = read(tmp_path / "proxy.csv")
    assert float(none["error of the mean"]) == pytest.approx(float(half["error of the mean"]))
    assert float(none["text: error"]) < float(half["text: error"])
    # Where words alone are lost, the frames are those of complete clips, and so is what the generators make of them.
    run_tool("proxy", [output], data=data, output=str(tmp_path / "words"), rates=[0.0, 0.5], modalities=["text"])
    whole, words = read(tmp_path / "words" / "proxy.csv")
    assert whole == none and words["text: error"] == half["text: error"]
    assert float(words["proxy: error"]) == pytest.approx(float(none["proxy: error"]), rel=1e-5)
    assert words["proxy: error"] != half["proxy: error"]
    with pytest.raises(MsaError, match="modalities"):
        run_tool("proxy", [output], data=data, modalities=["sound"])
    # The score as trained is the model's own, the error of text the training term's of a full confidence.
    (run,) = find_runs([output], "tcmr")
    rows = run.rows(data, "validation")
    (part,) = judge(run, rows, [0.5], [1111])
    assert float(half["mae as trained"]) == pytest.approx(np.abs(part["prediction"] - part["label"]).mean(), rel=1e-4)
    assert float(half["confidence"]) == pytest.approx(part["confidence"].mean(), rel=1e-4)
    model, processor = run.load(rows)
    regressor = text_regressor(run)
    batch = MsaCollator(processor, None, split="validation")([rows[i] for i in range(len(rows))])
    inputs = model.inputs_from(batch, predicting=True)
    others = run.rows(data, "train")
    trained = MsaCollator(processor, None, split="train")([others[i] for i in range(len(others))])
    with torch.no_grad():
        wanted = regressor(batch["input_ids"], batch["attention_mask"]).features
        mean = regressor(trained["input_ids"], trained["attention_mask"]).features.mean(0)
        own = (wanted - mean).square().mean()
        out = model(**inputs, confidence=torch.ones(len(rows)), text_targets=wanted)
    assert float(none["error of the mean"]) == pytest.approx(float(own), rel=1e-4)
    expected = float(out.losses["reconstruct_text"] * model.text_variance / own)
    assert float(none["text: error"]) == pytest.approx(expected, rel=1e-4)
    assert float(none["mae text alone"]) == pytest.approx(
        float((out.logits[:, 0] - batch["labels"]).abs().mean()), rel=1e-4
    )


def test_selection(data, output, tmp_path):
    run_tool("selection", [output], data=data, output=str(tmp_path), rates=[0.0, 0.5])
    checkpoints = read(tmp_path / "checkpoints.csv")
    assert len(checkpoints) == 2
    selection = json.loads((Path(output) / "seed-5" / "run.json").read_text())["selection"]
    # The recomputed selection error is the one that training chose by.
    chosen = min(checkpoints, key=lambda row: float(row["validation"]))
    assert int(chosen["step"]) == selection["step"]
    assert float(chosen["validation"]) == pytest.approx(selection["value"], rel=1e-4)
    assert all(float(row["optimism"] or 0) >= 0 for row in read(tmp_path / "selection.csv"))
    assert "must not be reported" in (tmp_path / "selection.md").read_text()


def test_selection_needs_checkpoints(data, output, tmp_path):
    copy = tmp_path / "seed-5"
    shutil.copytree(Path(output) / "seed-5", copy)
    for folder in sorted((copy / "stages" / "main").glob("checkpoint-*"))[1:]:
        shutil.rmtree(folder)
    with pytest.raises(MsaError, match="kept 1 checkpoint of a whole model"):
        run_tool("selection", [str(copy)], data=data)


def test_runs_that_a_tool_cannot_use(data, output, tmp_path):
    seed = Path(output) / "seed-5"
    copy = tmp_path / "copy"
    shutil.copytree(seed, copy, ignore=shutil.ignore_patterns("stages"))
    with pytest.raises(MsaError, match="no longer has its polarity classifier"):
        run_tool("clues", [str(copy)], data=data)
    with pytest.raises(MsaError, match="no longer has its text regressor .* an earlier version did not keep it"):
        run_tool("proxy", [str(copy)], data=data)
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(facts | {"ablation": "wo_tce"}))
    with pytest.raises(MsaError, match=r"seeds of one kind"):
        run_tool("confidence", [str(seed), str(copy)], data=data)
    (copy / "run.json").write_text(json.dumps(facts))
    with pytest.raises(MsaError, match=rf"both of seed {facts['seed']}, which would count twice"):
        run_tool("confidence", [str(seed), str(copy)], data=data)
    other = {
        "settings": {"settings": facts["settings"] | {"feature_norm": "none"}},
        "flags": {"flags": facts["flags"] | {"learning_rate": 0.5}},
        "data": {"dataset": facts["dataset"] | {"fingerprint": "of other rows"}},
    }
    for name, change in other.items():
        (copy / "run.json").write_text(json.dumps(facts | {"seed": facts["seed"] + 1} | change))
        with pytest.raises(MsaError, match=f"trained with different {name}; give seeds of one kind"):
            run_tool("confidence", [str(seed), str(copy)], data=data)
    (copy / "run.json").write_text(json.dumps(facts | {"method": "text"}))
    with pytest.raises(MsaError, match="a run of 'text', but this tool looks into 'tcmr'"):
        run_tool("confidence", [str(copy)], data=data)
    (copy / "run.json").unlink()
    with pytest.raises(MsaError, match=r"no run\.json"):
        run_tool("confidence", [str(copy)], data=data)
    with pytest.raises(MsaError, match="no finished checkpoint"):
        run_tool("confidence", [str(tmp_path)], data=data)
    (run,) = find_runs([output])
    with pytest.raises(MsaError, match="Did you mean 'validation'"):
        run.rows(data, "validatoin")
    with pytest.raises(MsaError, match="Unknown split 'all'"):
        run_tool("confidence", [output], data=data, split="all")
    with pytest.raises(MsaError, match="a low and a high"):
        run_tool("quadrants", [output], data=data, rates=[0.5])
    with pytest.raises(MsaError, match="steps is 0"):
        run_tool("gradients", [output], data=data, steps=0)


def test_the_upper_bound_predicts_no_confidence(data, output, tmp_path):
    recipe = load_recipe(
        "tcmr/sample",
        ablation="ub",
        assignments=[f"stages.{s}.num_train_epochs=1" for s in ("polarity", "regressor", "main")],
    )
    run_recipe(recipe, data, tmp_path, 5, {"disable_tqdm": True})
    for tool in ("confidence", "quadrants", "gradients"):
        with pytest.raises(MsaError, match="upper bound"):
            run_tool(tool, [str(tmp_path)], data=data, output=str(tmp_path / "out"))
    assert run_tool("clues", [str(tmp_path)], data=data, output=str(tmp_path / "out"))


def test_command_line(data, output, tmp_path, capsys):
    assert main(["analyze", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {tool} " in listed for tool in ("clues", "upper-bound", "selection"))
    assert "For runs of tcmr:" in listed and "For runs of ubm and uacs:" in listed
    assert main(["analyze", "gradients", output, "--data", data, "--steps", "1", "--output", str(tmp_path)]) == 0
    assert f"Wrote {tmp_path / 'gradients.md'}" in capsys.readouterr().out
    assert main(["analyze", "gradient", output, "--data", data]) == 2
    assert "Did you mean 'gradients'" in capsys.readouterr().err
    assert main(["analyze", "clues", output]) == 2
    assert "--data" in capsys.readouterr().err
