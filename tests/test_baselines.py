"""The rows beside which numbers mean something, by one command."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_msa import baselines
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.evaluation.compare import compare_runs
from hf_msa.evaluation.results import read_results
from hf_msa_cli import main
from printed import next_command

QUICK = ["--num_train_epochs", "1", "--use_cpu", "--disable_tqdm", "true", "--set", "missing.selection_repeats=1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7)


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _figure, path, **_: Path(path).write_bytes(b"a figure")
    )


def make(corpus: Path, output: Path) -> int:
    rates = ["--rates", "0", "0.5", "--mask-seeds", "3"]
    return main(["baselines", "--data", str(corpus), "--output", str(output), *rates, *QUICK])


def test_every_row_is_a_result_under_the_same_masks(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The others are trained like any method, see the slow test.
    monkeypatch.setattr(baselines, "ROWS", {name: baselines.ROWS[name] for name in ("constant", "ridge")})
    assert make(corpus, tmp_path) == 0
    names = ["constant", "ridge", "ceiling"]
    results = [read_results(tmp_path / name) for name in names]
    first, *others = [[run["realised"] for run in result["runs"]] for result in results]
    assert all(other == [pytest.approx(shares) for shares in first] for other in others)
    compared = compare_runs([tmp_path / name for name in names], allow_oracle=True)
    assert compared.names == ("ridge (constant)", "ridge", "ceiling [oracle]")
    assert all(row["mae"].p_value is not None for row in compared.differences)
    mae = [result["mean_over_rates"]["mae"]["mean"] for result in results]
    assert mae[2] < min(mae[:2])
    card = (tmp_path / "ridge" / "seed-1111" / "README.md").read_text(encoding="utf-8")
    assert "Ridge probe" in card
    assert next_command(capsys.readouterr().out)[:2] == ["compare", str(tmp_path / "constant")]


def test_recipes_that_there_are_not(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MsaError, match="no recipes 'street' .*; give --recipe mosei or mosi or sample or sims or simsv2"
    ):
        baselines.make_baselines(str(corpus), str(tmp_path), recipe="street")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "frames"}, "'frame'"),
        ({"protocol": "block", "protocol_fields": {"block": 2}}, "'blocks'"),
        ({"rates": [2.0]}, "from 0 to 1"),
        ({"split": "dev"}, "'dev'"),
    ],
)
def test_what_cannot_be_evaluated_is_not_trained(
    corpus: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(MsaError, match=words):
        baselines.make_baselines(str(corpus), str(tmp_path), **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_rows(corpus: Path, tmp_path: Path) -> None:
    assert make(corpus, tmp_path) == 0
    made = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*/results.json")}
    assert made.keys() == {"constant", "ridge", "text", "late_fusion", "ceiling"}
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    # Nothing is trained again.
    assert make(corpus, tmp_path) == 0
    assert weights == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
