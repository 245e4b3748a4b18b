"""The study of U-ACS with scripted experts runs at toy size, and its experts are what it says they are."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hf_msa.data.sample_corpus import write_sample_corpus


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "uacs_stub_study.py"
    spec = importlib.util.spec_from_file_location("uacs_stub_study", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["uacs_stub_study"] = module
    spec.loader.exec_module(module)
    return module


def test_an_expert_errs_more_on_a_few_and_says_so(script: ModuleType) -> None:
    expert = script.Expert()
    answers = np.array([expert.answer(f"clip{index}", 0.0, -9.0, 9.0) for index in range(4000)])
    errors, entropies = np.abs(answers[:, 0]), answers[:, 1]
    # Deviations 0.4 on 85 % and 1.8 on 15 %: mean square 0.136 + 0.486; second answers 0.7 times as far.
    assert np.mean(errors**2) == pytest.approx(0.622, rel=0.1)
    assert np.mean(answers[:, 2] ** 2) == pytest.approx(0.622 * 0.49, rel=0.1)
    assert np.corrcoef(errors, entropies)[0, 1] > 0.6 and entropies.max() <= math.log(10)
    assert expert.answer("clip7", 0.0, -9.0, 9.0) == tuple(answers[7])
    silent = script.EXPERTS["good, entropy says nothing"]
    told = np.array([silent.answer(f"clip{index}", 0.0, -9.0, 9.0) for index in range(4000)])
    assert abs(np.corrcoef(np.abs(told[:, 0]), told[:, 1])[0, 1]) < 0.05


def test_random_routing_lies_between_both_models(script: ModuleType) -> None:
    ends = [{"mae": ([value, 2 * value], np.array([value, value]))} for value in (1.0, 0.0)]
    mixed = script.mixture(*ends, [0.25, 0.75])["mae"]
    assert mixed[0] == [0.75, 0.5] and mixed[1].tolist() == [0.5, 0.5]


def test_the_study_at_toy_size(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _figure, path, **_: Path(path).write_bytes(b"a figure")
    )
    monkeypatch.setattr(script, "RANDOM_DRAWS", 1)
    data = write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=3, version=1)
    output = tmp_path / "out"
    arguments = ["--data", str(data), "--output", str(output), "--seeds", "5", "--experts", "error-prone"]
    assert script.main([*arguments, "--set", "stages.main.num_train_epochs=1"]) == 0
    found = json.loads((output / "uacs_stub_study.json").read_text())
    (values,) = found["experts"].values()
    for counts in values["accounting"]:
        assert sum(route["n"] for route in counts.values()) == found["test clips"]
    ways = {row["way"]: row for row in values["ways"]}
    assert ways["UBM alone"]["calls"] == [0] and ways["expert alone"]["calls"] == [1]
    assert ways["random, equal calls, all draws"]["calls"] == ways["U-ACS"]["calls"]
    summary = (output / "uacs_stub_study.md").read_text()
    assert "## Expert: error-prone" in summary and "| planted hard clip | entropy |" in summary
    tools = {path.name for path in (output / "analysis").iterdir()}
    assert tools == {"accuracy-cost", "cases", "risk-coverage", "routes", "uncertainty"}
