"""The benchmark runs at toy size, and its reference is the same model done the long way."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import methods
from benchmarks.reference import ReferenceTcmr, reference_sweep
from benchmarks.report import markdown
from benchmarks.shapes import MOSI, TOY, generated_rows, processor, tcmr_config, text_model
from benchmarks.throughput import Setting, all_peaks, main, measure, summarise

from hf_msa.data.collator import MsaCollator
from hf_msa.data.missing import FrameMissing, conditions
from hf_msa.data.rows import DrawnRows
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis
from nonempty import some

SETTING = Setting(rows=8, batch_size=8, repeats=1, threads=1, toy=True)


@pytest.fixture(scope="module")
def content() -> dict:
    return measure(SETTING, memory=False)


@pytest.mark.slow
def test_every_measurement_has_all_numbers(content: dict) -> None:
    assert list(content["measured"]) == ["phase A", "phase B", "epoch", "sweep"]
    for found in content["measured"].values():
        assert set(found["samples_per_second"]) == {"ours", "reference", "bare"}
        for values in (*found["samples_per_second"].values(), found["times_reference"], found["over_bare"]):
            assert 0 < values["low"] <= values["median"] <= values["high"]
    assert content["machine"]["threads"] == 1 and content["setting"]["rates"] == 10
    json.dumps(content)


@pytest.mark.slow
def test_the_report_says_whether_goals_are_reached(content: dict) -> None:
    content["measured"]["sweep"]["times_reference"] = {"low": 19.0, "median": 21.0, "high": 23.0}
    content["measured"]["epoch"]["over_bare"] = {"low": 1.4, "median": 1.6, "high": 1.7}
    sweep_row, epoch_row = (
        next(line for line in markdown(content).splitlines() if word in line) for word in ("evaluation", "one epoch")
    )
    assert "21.00 (19.00 to 23.00); goal at least 20: reached" in sweep_row
    assert "1.60 (1.40 to 1.70); goal at most 1.5: missed" in epoch_row


def test_ratios_are_taken_within_a_turn() -> None:
    turns = [
        {side: {"sweep": load * seconds} for side, seconds in (("ours", 1.0), ("reference", 5.0), ("bare", 0.5))}
        for load in (1.0, 7.0, 3.0)
    ]
    found = summarise(turns)["sweep"]
    assert found["times_reference"] == {"median": 5.0, "low": 5.0, "high": 5.0}
    assert found["over_bare"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert found["samples_per_second"]["ours"] == {"median": 1 / 3, "low": 1 / 7, "high": 1.0}


@pytest.mark.slow
def test_memory_is_read_in_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.throughput.SIDES", ("bare",))
    monkeypatch.setattr("benchmarks.throughput.TASKS", ("training",))
    ballast = torch.ones(2**28)  # 1 GiB
    peaks = all_peaks(SETTING)
    assert set(peaks) == {"phase A", "phase B"}
    if not torch.cuda.is_available():
        for sizes in peaks.values():
            assert 2**26 < sizes["bare"]["loaded"] <= sizes["bare"]["peak"] < ballast.nbytes


def test_the_reference_is_the_model_without_padding_masks() -> None:
    text, config = text_model(None, TOY), tcmr_config(TOY)
    torch.manual_seed(0)
    reference = text.build(ReferenceTcmr, config).eval()
    config.mask_padding = False
    ours = text.build(TcmrForSentimentAnalysis, config).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), reference.state_dict().values(), strict=True)))
    rows = generated_rows(TOY, 4, "train", text.tokenizer)
    collator = MsaCollator(processor(TOY, text.tokenizer), FrameMissing(rate=0.5), pad_to_fixed=True)
    batch = collator([DrawnRows(rows, 1)[index] for index in range(4)])
    assert batch["input_ids"].shape == (4, 12) and batch["vision_values"].shape == (4, 40, 20)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "audio_values", "vision_values")}
    torch.testing.assert_close(reference(**given).logits, ours(**given).logits)


def test_the_reference_sweep_predicts_row_by_row_at_fixed_lengths() -> None:
    text, config = text_model(None, TOY), tcmr_config(TOY)
    config.mask_padding = False
    model = text.build(TcmrForSentimentAnalysis, config).eval()
    rows, made = generated_rows(TOY, 3, "test", text.tokenizer), processor(TOY, text.tokenizer)
    tested = conditions("frame", config.modalities, (0.0, 0.6), (1,))
    for (_, _, protocol), scores in some(zip(tested, reference_sweep(model, made, rows, tested), strict=True)):
        batch = MsaCollator(made, protocol, split="test", pad_to_fixed=True)([rows[index] for index in range(3)])
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "audio_values", "vision_values")}
        with torch.no_grad():
            torch.testing.assert_close(model(**given).logits.squeeze(1), scores, atol=1e-5, rtol=1e-4)


def test_generated_lengths_are_those_of_mosi() -> None:
    lengths = generated_rows(MOSI, 1000, "train", text_model(None, MOSI).tokenizer).lengths
    assert lengths["text"].mean() - 2 == pytest.approx(12, abs=0.6), "words, without the two special tokens"
    assert lengths["text"].max() <= 50 and lengths["audio"].max() <= 375 and lengths["vision"].max() <= 500
    assert lengths["vision"].mean() / lengths["audio"].mean() == pytest.approx(500 / 375, rel=0.01)


@pytest.mark.slow
def test_command_line_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict) -> None:
    monkeypatch.setattr("benchmarks.throughput.measure", lambda setting: content | {"asked": setting.toy})
    main(["--quick", "--threads", "1", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "benchmark.json").read_text())["asked"] is True
    assert (tmp_path / "benchmark.md").read_text().startswith("|  | samples/s |")


def test_command_line_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", "0"])
    assert "--rows is 0; give at least 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def methods_content() -> dict:
    return methods.measure(SETTING)


@pytest.mark.slow
def test_every_method_is_measured(methods_content: dict) -> None:
    measured = methods_content["measured"]
    assert set(methods.LABELS) < set(measured)
    for name in methods.LABELS:
        for values in measured[name].values():
            assert 0 < values["low"] <= values["median"] <= values["high"]
        assert "over_bare" in measured[name]
    assert [name for name in measured if "times_training_graph" in measured[name]] == ["pglh inference"]
    json.dumps(methods_content)


@pytest.mark.slow
def test_the_table_of_the_methods_has_a_row_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods_content: dict
) -> None:
    monkeypatch.setattr(methods, "measure", lambda setting: methods_content | {"asked": setting.toy})
    methods.main(["--quick", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "methods.json").read_text())["asked"] is True
    lines = (tmp_path / "methods.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2 : 2 + len(methods.LABELS)]] == list(methods.LABELS.values())
