"""The benchmark of the cascade runs at toy size, and compares with what it says it compares with."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import cascade
from benchmarks.cascade import RATES, CascadeBench, Setting, StubExpert, main, markdown, measure, summarise
from benchmarks.thinker import SHAPES, thinker_config
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from hf_msa.models.msa_mllm import MllmRequest

SETTING = Setting(rows=12, thinker_rows=4, batch_size=4, call_seconds=0.001, repeats=1, toy=True)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "RATES", (0.0, 0.5))
        return measure(SETTING)


@pytest.mark.slow
def test_every_measurement_has_all_numbers(content: dict[str, Any]) -> None:
    measured = content["measured"]
    assert list(measured["stub"]) == ["small", "expert", "0", "0.5", "0.1 twice", "0.5 twice"]
    assert list(measured["thinker"]) == ["small", "expert", "0", "0.5"]
    for expert in ("stub", "thinker"):
        for found in measured[expert].values():
            for values in (value for value in found.values() if isinstance(value, dict)):
                assert 0 < values["low"] <= values["median"] <= values["high"]
    asked = {name: found["questions_per_sample"] for name, found in list(measured["stub"].items())[2:]}
    assert asked == {"0": 0, "0.5": 0.5, "0.1 twice": pytest.approx(2 / 12), "0.5 twice": 1}
    assert measured["thinker"]["0.5"]["questions_per_sample"] == 0.5
    assert measured["adapter"]["samples_per_second"]["median"] > 0
    assert content["setting"]["parameters"] > 500_000 and content["setting"]["dtype"] == "float32"
    assert 0 < content["memory"]["loaded"] <= content["memory"]["adapter"]
    json.dumps(content)


def test_the_ideal_is_the_small_model_and_the_questions_taken_within_each_turn() -> None:
    turns = [
        {
            "small": {"seconds": load * 0.01},
            "expert": {"seconds": load * 0.1},
            "0.25": {"seconds": load * 0.05, "questions": 0.25},
        }
        for load in (1.0, 9.0, 4.0)
    ]
    found = summarise(turns)
    assert found["0.25"]["ideal_samples_per_second"]["high"] == pytest.approx(1 / 0.035)
    for name, expected in (("of_ideal", 0.7), ("times_expert", 2.0)):
        assert list(found["0.25"][name].values()) == pytest.approx([expected] * 3)
    assert set(found["small"]) == {"samples_per_second"}


@pytest.mark.parametrize("stub", [True, False])
def test_the_expert_gets_full_batches(stub: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = CascadeBench(dataclasses.replace(SETTING, rows=40, thinker_rows=40), stub)
    asked: list[int] = []
    plain = StubExpert(0.0, 8)

    def generate(requests: list[MllmRequest], *arguments: Any) -> Any:
        asked.append(len(requests))
        assert all((request.audio is None) == stub == (request.frames is None) for request in requests)
        assert all(("Voice:" in request.prompt) == stub for request in requests)
        return plain.generate(requests, *arguments)

    monkeypatch.setattr(bench.expert, "generate", generate)
    for rate, run in zip(RATES, list(bench.sides().values())[2:], strict=True):
        asked.clear()
        assert run()["questions"] == rate
        # Answers are kept after every 32, four full batches; two of the toy's clips are the same question.
        assert all(count == 32 for count in asked[:-1]) and round(40 * rate) - sum(asked) in (0, 1)


def test_a_call_takes_its_time_however_full_it_is() -> None:
    expert = StubExpert(0.5, 8)
    for count, seconds in ((1, 0.5), (8, 1.0), (9, 2.0)):
        assert len(expert.generate([MllmRequest("?")] * count, 16)) == count
        assert expert.seconds == seconds


def test_what_the_stub_takes_is_counted() -> None:
    sides = CascadeBench(dataclasses.replace(SETTING, call_seconds=100.0), stub=True).sides()
    assert sides["expert"]()["seconds"] == pytest.approx(200 / 12, abs=0.5)
    assert sides["small"]()["seconds"] < 1
    assert sides["0.5"]()["seconds"] == pytest.approx(100 / 12, abs=0.5)


@pytest.mark.parametrize(("name", "billions"), [("3b", 4.703), ("7b", 8.932)])
def test_true_sizes(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(thinker_config(SHAPES[name]))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)


@pytest.mark.slow
def test_named_sizes_are_measured_in_half_precision_without_the_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "3b", SHAPES["tiny"])
    monkeypatch.setattr(cascade, "RATES", (0.5,))
    found = measure(dataclasses.replace(SETTING, shapes="3b", thinker_rows=2))
    assert found["setting"]["dtype"] == "bfloat16" and "stub" not in found["measured"]
    assert "The stub" not in markdown(found) and "Qwen2.5-Omni, 3b" in markdown(found)


@pytest.mark.slow
def test_command_line_writes_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]
) -> None:
    content["measured"]["stub"]["0.5"]["of_ideal"] = {"low": 0.85, "median": 0.89, "high": 0.95}
    monkeypatch.setattr(cascade, "measure", lambda setting: content | {"asked": dataclasses.asdict(setting)})
    main(["--quick", "--shapes", "7b", "--output", str(tmp_path)])
    asked = json.loads((tmp_path / "cascade.json").read_text())["asked"]
    assert asked["toy"] is True and asked["shapes"] == "7b" and asked["rows"] == 16
    lines = (tmp_path / "cascade.md").read_text().splitlines()
    assert "0.89 (0.85 to 0.95); goal at least 0.9: missed" in next(line for line in lines if "| stub | 50% |" in line)
    assert any(line.startswith("| stub | 50%, each asked twice |") for line in lines)
    assert any(line.startswith("| thinker | all: the expert alone |") for line in lines)


def test_command_line_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--thinker-rows", "0"])
    assert "--thinker-rows is 0; give at least 1" in capsys.readouterr().err
