"""Every command on a tiny corpus, and every way of using it wrongly: status 2, one sentence, nothing half-written."""

import argparse
import errno
import hashlib
import importlib
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError

from hf_msa.cli import training_flags
from hf_msa.data import missing
from hf_msa.data.loading import load_msa
from hf_msa.errors import EXTRAS, MsaError, next_step
from hf_msa.evaluation.results import read_predictions, read_results
from hf_msa.models.msa_schema import MODALITIES
from hf_msa.training.recipes import load_recipe, recipe_names
from hf_msa_cli import COMMANDS, Command, main
from printed import next_command

QUICK = ["--num_train_epochs", "1", "--use_cpu", "--disable_tqdm", "true", "--set", "missing.selection_repeats=1"]
PRE_TRAINING = ["stages.polarity.num_train_epochs=1", "stages.regressor.num_train_epochs=1"]
RESULT_FILES = {"results.json", "predictions.parquet", "curves.png", "curves.svg"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a trained `text` of two seeds and a trained `tcmr` of one, all made by commands."""
    folder = tmp_path_factory.mktemp("cli")
    data = ["--data", str(folder / "corpus")]
    made = ["sample-corpus", "--preset", "tiny", "--version", "1", "--seed", "7", "--output", str(folder / "corpus")]
    assert main(made) == 0
    assert main(["train", "text/sample", *data, "--output", str(folder / "text"), "--seeds", "1", "2", *QUICK]) == 0
    tcmr = ["train", "tcmr/sample", *data, "--output", str(folder / "tcmr"), "--seeds", "1", *QUICK]
    # A second --set adds to the first.
    assert main([*tcmr, "--set", *PRE_TRAINING]) == 0
    return folder


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder, hidden ones too, and what is in them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else that an evaluation does, and has tests of its own."""
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _figure, path, **_: Path(path).write_bytes(b"a figure")
    )


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail properly, and give its sentence; files below `tmp_path` must stay as they are."""

    def run(*argv: Any) -> str:
        before = snapshot(tmp_path)
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as stop:
            status = int(stop.code or 0)
        lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
        bars = ("it/s]", "s/it]", "examples/s]")
        said = [line for line in lines if line.strip() and not line.endswith(bars) and " examples [" not in line]
        assert status == 2 and len(said) == 1, (status, said)
        assert said[0].startswith("hf-msa") and said[0].endswith((".", "?")), said[0]
        assert snapshot(tmp_path) == before
        return said[0]

    return run


# --- Packages that are not installed ---

_WITHOUT = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
absent = lambda name: name.partition(".")[0] in {packages}
PathFinder.find_spec = staticmethod(lambda name, *rest: None if absent(name) else find(name, *rest))
from hf_msa_cli import main
sys.exit(main({arguments}))
"""


def without(packages: set[str], *arguments: object) -> tuple[int, str]:
    """Status and errors of a command where packages are not installed."""
    code = _WITHOUT.format(packages=packages, arguments=[str(argument) for argument in arguments])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_training_without_accelerate_is_one_sentence(work: Path, tmp_path: Path) -> None:
    command = ("train", "text/sample", "--data", work / "corpus", "--output", tmp_path / "run")
    status, said = without({"accelerate"}, *command)
    assert status == 2
    assert said == (
        "hf-msa train: This needs the package 'accelerate', which is not installed: pip install 'hf-msa[train]'.\n"
    )


def test_predicting_needs_no_extra(work: Path) -> None:
    assert without({*EXTRAS}, "predict", work / "text" / "seed-1", "--text", "good")[0] == 0


@pytest.mark.slow
def test_every_command_does_without_extras_or_names_one(work: Path, tmp_path: Path) -> None:
    data, run = ("--data", work / "corpus"), work / "text" / "seed-1"
    for needed, command in (
        (False, ("evaluate", run, *data, "--protocol", "complete", "--output", tmp_path / "results")),
        (False, ("recipes",)),
        (
            False,
            ("prepare", "custom", "--source", work / "corpus", "--output", tmp_path / "d", "--label-family", "mosi"),
        ),
        (False, ("sample-corpus", "--preset", "tiny", "--output", tmp_path / "corpus")),
        (True, ("baselines", *data, "--output", tmp_path / "rows")),
        (True, ("demo", run)),
        (True, ("analyze", "headroom", *data)),
    ):
        status, said = without({*EXTRAS}, *command)
        assert status == (2 if needed else 0), (command, said)
        if needed:
            assert "Traceback" not in said and "pip install 'hf-msa[" in said, (command, said)


# --- Help ---


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "hf_msa_cli", "--help"], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5
    assert "evaluate" in done.stdout and not done.stderr


def test_help_loads_neither_torch_nor_the_package() -> None:
    code = (
        "import sys, hf_msa_cli\n"
        "for argv in (['--help'], ['train', '--help']):\n"
        "    try: hf_msa_cli.main(argv)\n"
        "    except SystemExit: pass\n"
        "hf_msa_cli.main([])\n"
        "assert not {'torch', 'transformers', 'numpy', 'hf_msa'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_takes_what_its_parser_gives(command: Command) -> None:
    parser = argparse.ArgumentParser(add_help=not command.has_own_help)
    command.add_arguments(parser)
    given = {action.dest for action in parser._actions} - {"help"}
    module, _, function = command.target.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    named = {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert named <= given | ({"flags"} if command.takes_training_flags else set())
    assert given <= named or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from hf_msa import __version__

    assert main(["--version"]) == 0 and capsys.readouterr().out == f"hf-msa {__version__}\n"


# --- The commands ---


def test_sample_corpus_and_training_leave_what_they_say(work: Path) -> None:
    assert (work / "corpus" / "msa_dataset.json").is_file() and (work / "corpus" / "text_model").is_dir()
    for run, stages in (
        ("text/seed-1", ["main"]),
        ("text/seed-2", ["main"]),
        ("tcmr/seed-1", ["polarity", "regressor", "main"]),
    ):
        folder = work / run
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        assert [(stage["name"], stage["epochs"]) for stage in content["stages"]] == [(name, 1) for name in stages]
        assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in folder.iterdir()}


def test_recipes_lists_methods_recipes_and_ablations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert "tcmr/sample" in shown and "text/mosi" in shown and "wo_tce" in shown
    assert main(["recipes", "--method", "text"]) == 0
    assert "tcmr" not in capsys.readouterr().out


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_pickle(tmp_path / "raw.pkl")
    assert main(["prepare", "mosi", "--source", str(source), "--output", str(tmp_path / "mosi")]) == 0
    assert (tmp_path / "mosi" / "msa_dataset.json").is_file()
    assert "train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("protocol", "rates"),
    [
        ("frame", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("modality", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("fixed", ["audio", "vision", "text", "audio+vision", "text+audio", "text+vision", "text+audio+vision"]),
        ("complete", [0.0]),
    ],
)
def test_evaluate_puts_the_seeds_together(
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    protocol: str,
    rates: list[Any],
) -> None:
    if protocol != "complete":
        request.getfixturevalue("quick_figures")
    out = tmp_path / "out"
    command = ["evaluate", str(work / "text"), "--data", str(work / "corpus"), "--protocol", protocol]
    assert main([*command, "--output", str(out)]) == 0
    results = read_results(out)
    assert [entry["rate"] for entry in results["per_rate"]] == rates
    assert {run["training_seed"] for run in results["runs"]} == {1, 2}
    assert results["mean_over_rates"]["mae"]["n"] == 2 and results["mean_over_rates"]["mae"]["std"] is not None
    assert results["protocol"]["name"] == protocol and results["dataset"]["n"] == 32
    assert {path.name for path in out.iterdir()} == RESULT_FILES
    assert "MAE" in capsys.readouterr().out


@pytest.mark.usefixtures("quick_figures")
def test_evaluate_takes_rates_seeds_and_split(work: Path, tmp_path: Path) -> None:
    command = ["evaluate", str(work / "tcmr"), "--data", str(work / "corpus"), "--output", str(tmp_path)]
    assert main([*command, "--rates", "0", "0.5", "--mask-seeds", "3", "4", "--split", "validation"]) == 0
    results = read_results(tmp_path)
    assert results["protocol"]["mask_seeds"] == [3, 4] and results["dataset"]["split"] == "validation"
    assert len(results["runs"]) == 4
    assert "confidence" in pq.read_schema(tmp_path / "predictions.parquet").names


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    ("protocol", "settings", "tested"),
    [
        ("frame", ["modalities=[text]"], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("block", ["blocks=2"], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("pattern", [], ["pattern"]),
        ("fixed", ["available=[audio]"], ["audio"]),
        ("legacy_lnln", ["text_width=400", "audio_width=400", "vision_width=400"], [0.1 * n for n in range(10)]),
    ],
)
def test_evaluate_under_every_protocol(
    work: Path, tmp_path: Path, protocol: str, settings: list[str], tested: list[Any]
) -> None:
    command = ["evaluate", str(work / "text" / "seed-1"), "--data", str(work / "corpus"), "--output", str(tmp_path)]
    options = ["--protocol-set", *settings] if settings else []
    assert main([*command, "--protocol", protocol, *options]) == 0
    results = read_results(tmp_path)
    assert [entry["rate"] for entry in results["per_rate"]] == pytest.approx(tested)
    assert results["protocol"]["name"] == protocol
    if protocol == "frame":
        assert results["protocol"]["modalities"] == ["text"]
        shares = {run["rate"]: run["realised"] for run in results["runs"]}
        assert shares[0.9]["audio"] == 0 and shares[0.9]["text"] > 0.8
    if protocol == "block":
        assert results["protocol"]["blocks"] == 2
        shares = {run["rate"]: run["realised"]["audio"] for run in results["runs"]}
        assert shares[0.0] == 0 and shares[0.9] == pytest.approx(0.9, abs=0.03)


@pytest.mark.usefixtures("quick_figures")
def test_evaluate_under_masks_of_ones_own(work: Path, tmp_path: Path) -> None:
    rows = load_msa(work / "corpus", "test")
    masks = [{"id": row["id"], "audio": [1] * len(row["audio"])} for row in rows]
    (tmp_path / "masks.json").write_text(json.dumps(masks))
    command = ["evaluate", str(work / "tcmr" / "seed-1"), "--data", str(work / "corpus"), "--protocol"]
    source = f"source={tmp_path / 'masks.json'}"
    assert main([*command, "user", "--protocol-set", source, "--output", str(tmp_path / "own")]) == 0
    assert main([*command, "fixed", "--output", str(tmp_path / "fixed")]) == 0
    own, fixed = read_predictions(tmp_path / "own"), read_predictions(tmp_path / "fixed")
    assert own.rates == ("user",)
    expected = fixed.scores[0, 0, fixed.rates.index("text+vision")]
    np.testing.assert_allclose(own.scores[0, 0, 0], expected, atol=1e-6)


@pytest.mark.usefixtures("quick_figures")
def test_evaluate_takes_another_configuration(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(work / "text" / "seed-1"), "--data", str(work / "corpus"), "--protocol", "complete"]
    assert main([*command, "--output", str(tmp_path), "--set", "mask_padding=false"]) == 0
    assert read_results(tmp_path)["config"]["mask_padding"] is False
    capsys.readouterr()
    assert main([*command, "--set", "mask_padding=false"]) == 2
    assert "give a folder as --output" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path), "--set", "mask_padding"]) == 2
    assert "has no '='" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_figures")
def test_compare(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("text", "tcmr"):
        command = ["evaluate", str(work / run), "--data", str(work / "corpus"), "--rates", "0", "0.5"]
        assert main([*command, "--output", str(tmp_path / run)]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "text"), str(tmp_path / "tcmr"), "--output", str(tmp_path / "c")]) == 0
    shown = capsys.readouterr().out
    assert "text" in shown and "tcmr" in shown
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        *("comparison.md", "comparison.csv", "comparison.tex", "curves.png", "curves.svg")
    }


@pytest.mark.usefixtures("quick_figures")
def test_evaluate_takes_a_subset(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of(work / "text", tmp_path / "text")
    command = ["evaluate", str(run), "--data", str(work / "corpus"), "--protocol", "complete"]
    assert main(command) == 0
    assert main([*command, "--subset", "inconsistent", "--subset-rule", "not_all_equal"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "test split, inconsistent subset (not_all_equal)," in shown and "of 32 samples" in shown
    folder = run / "subset-inconsistent-not_all_equal"
    assert {path.name for path in folder.iterdir()} == RESULT_FILES
    results = read_results(folder)
    assert 0 < results["dataset"]["n"] < 32 and read_results(run)["dataset"]["n"] == 32
    card = (run / "seed-2" / "README.md").read_text(encoding="utf-8")
    assert card.index("32 samples") < card.index("### The inconsistent subset (not_all_equal)")
    assert f"{results['dataset']['n']} of 32 samples" in card


@pytest.mark.usefixtures("quick_figures")
def test_compare_takes_several_papers(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(work / "text" / "seed-1"), "--data", str(work / "corpus"), "--output", str(tmp_path)]
    assert main(command) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    results["dataset"]["name"] = results["trained_on"] = "mosi"  # The corpus is of no paper.
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    capsys.readouterr()
    assert main(["compare", "--paper", "tcmr", str(tmp_path), "--paper", "pglh"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("TCMR") < shown.index("PGLH") and "Table 2" in shown and "Table 8" in shown


@pytest.mark.usefixtures("quick_figures")
def test_the_next_command_runs_as_printed_in_the_recipe_s_own_protocol(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(work / "corpus")]
    run = tmp_path / "a run"
    complete = [f"missing.{part}={{name: complete}}" for part in ("train", "validation")]
    assert main(["train", "text/sample", *data, "--output", str(run), "--seeds", "1", *QUICK, "--set", *complete]) == 0
    command = next_command(capsys.readouterr().out)
    assert command == ["evaluate", str(run), *data, "--protocol", "complete"]
    assert main(command) == 0
    assert read_results(run)["protocol"]["name"] == "complete"
    assert main(command[:-2]) == 0
    assert read_results(run)["protocol"]["name"] == "complete"


def test_the_next_command_of_another_program_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert next_step("evaluate", "a b") == f"Next: {sys.executable} -m hf_msa_cli evaluate 'a b'"


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_is_tested_under_its_own_protocol(recipe: str) -> None:
    own = load_recipe(recipe).missing.validation
    protocol, fields = missing.tested_as(own)
    assert protocol == {"pattern": "fixed"}.get(own["name"], own["name"])
    assert missing.conditions(protocol, MODALITIES, **fields)


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    ("other", "words"),
    [
        (["--protocol", "frame"], "protocol 'complete', now 'frame'"),
        (["--protocol", "complete", "--split", "validation"], "split 'test', now 'validation'"),
    ],
)
def test_results_of_another_test_are_not_replaced(
    work: Path, tmp_path: Path, refused: Callable[..., str], other: list[str], words: str
) -> None:
    run = copy_of(work / "text", tmp_path / "text")
    command = ["evaluate", str(run), "--data", str(work / "corpus")]
    assert main([*command, "--protocol", "complete"]) == 0
    assert words in refused(*command, *other)
    assert main([*command, *other, "--output", str(run / "other")]) == 0
    assert read_results(run)["protocol"]["name"] == "complete"


@pytest.mark.usefixtures("quick_figures")
def test_results_are_replaced_by_those_of_more_rates_and_mask_seeds(
    work: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    command = ["evaluate", str(work / "text" / "seed-1"), "--data", str(work / "corpus"), "--output", str(tmp_path)]
    assert main([*command, "--rates", "0.5", "--mask-seeds", "3"]) == 0
    assert main([*command, "--rates", "0", "0.5", "--mask-seeds", "3", "4"]) == 0
    assert "rates 0.0, which are not tested now" in refused(*command, "--rates", "0.5", "--mask-seeds", "3", "4")
    assert "mask seeds 4, which" in refused(*command, "--rates", "0", "0.5", "--mask-seeds", "3")
    assert "protocol 'frame', now 'block'" in refused(*command, "--protocol", "block")
    assert len(read_results(tmp_path)["runs"]) == 4


def test_predict(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "audio.npy", np.ones((4, 5), dtype=np.float32))
    command = ["predict", str(work / "tcmr"), "--text", "a wonderful film"]
    assert main([*command, "--audio", str(tmp_path / "audio.npy")]) == 0
    shown = dict(line.split(": ", 1) for line in capsys.readouterr().out.strip().splitlines())
    assert float(shown["score"]) and shown["polarity"] in ("positive", "negative")
    assert 0 <= float(shown["confidence"]) <= 1


@pytest.mark.usefixtures("quick_figures")
def test_a_model_for_each_missing_rate(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_msa.training.recipes.MODALITY_RATES", (0.0, 0.7))
    run, data = str(tmp_path / "matched"), ["--data", str(work / "corpus")]
    train = ["train", "text/sample", *data, "--output", run, "--seeds", "1", "--train-rate", "match", *QUICK]
    assert main(train) == 0
    assert next_command(capsys.readouterr().out) == ["evaluate", run, *data, "--protocol", "modality"]
    folders = [tmp_path / "matched" / f"rate-{rate}" / "seed-1" for rate in ("0.0", "0.7")]
    facts = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in folders]
    assert [(one["train_rate"], one["selection"]["protocol"]["rate"]) for one in facts] == [(0.0, 0.0), (0.7, 0.7)]
    assert main(["evaluate", run, *data, "--protocol", "modality"]) == 0
    assert "text (match)" in capsys.readouterr().out
    results = read_results(tmp_path / "matched")
    assert results["protocol"]["rates"] == [0.0, 0.7] and results["train_rate"] == "match"
    for folder, rate in zip(folders, ("0", "0.7"), strict=True):
        assert f"at missing rate {rate}: Acc-7 " in (folder / "README.md").read_text(encoding="utf-8")
    assert main(["compare", run, run]) == 0
    assert "Each missing rate of text (match), matched is that of models trained at it." in " ".join(
        capsys.readouterr().out.split()
    )
    # One rate, in the usual place.
    one = ["train", "text/sample", *data, "--output", str(tmp_path / "one"), "--seeds", "1", "--train-rate", "0.7"]
    assert main([*one, *QUICK]) == 0
    weights = [folder / "model.safetensors" for folder in (folders[1], tmp_path / "one" / "seed-1")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_stray_word_is_no_training_flag() -> None:
    with pytest.raises(MsaError, match="Unexpected argument 'stray'; training arguments begin with '--'"):
        training_flags(["stray"])


def test_training_flags_are_those_that_were_given() -> None:
    assert training_flags(["--num_train_epochs", "5", "--bf16", "--learning-rate=1e-4"]) == {
        "num_train_epochs": 5.0,
        "bf16": True,
        "learning_rate": 1e-4,
    }
    assert training_flags([]) == {}
    with pytest.raises(MsaError, match="'seed'"):
        training_flags(["--seed", "3"])  # Seeds are --seeds.


# --- Wrong names and values ---


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tran"], "invalid choice: 'tran'"),
        (["recipes", "--method", "tcm"], "Unknown method 'tcm'. Did you mean 'tcmr'?"),
        (["recipes", "--methd", "tcmr"], "recipes takes no --methd tcmr"),
        (["sample-corpus", "--preset", "tinny", "--output", "o"], "Did you mean 'tiny'?"),
        (["analyze", "quadrant"], "Did you mean 'quadrants'?"),
        (["compare", "--paper", "tcmr"], "A comparison needs two runs"),
    ],
)
def test_wrong_commands(refused: Callable[..., str], argv: list[str], words: str) -> None:
    assert words in refused(*argv)


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("tcmrr/sample", [], "Unknown method 'tcmrr'. Did you mean 'tcmr'?"),
        ("tcmr/sampel", [], "Unknown recipe 'tcmr/sampel'. Did you mean 'tcmr/sample'?"),
        ("none.yaml", [], "There is no recipe file 'none.yaml'"),
        ("tcmr/sample", ["--ablation", "wo_tec"], "'wo_tec'. Did you mean 'wo_tce'?"),
        ("tcmr/sample", ["--set", "model.num_token=4"], "Did you mean 'num_tokens'?"),
        ("tcmr/sample", ["--set", "model.num_tokens=four"], "expected int, got str (value: 'four')"),
        ("tcmr/sample", ["--set", "model.num_tokens=0"], "num_tokens must be at least 1, got 0."),
        ("tcmr/sample", ["--set", "model.optimization=aso"], "expected one of ('aos',"),
        ("tcmr/sample", ["--set", "model.num_tokens=[4"], "'[4' is no YAML value"),
        ("tcmr/sample", ["--set", "model=4"], "'model' has to be a group of KEY: VALUE, but is 4."),
        ("tcmr/sample", ["--set", "missing.train=4"], "'missing.train' has to be a group"),
        ("tcmr/sample", ["--set", "missing.train.name=fram"], "Did you mean 'frame'?"),
        ("tcmr/sample", ["--set", "missing.selection_repeats=0"], "give a whole number from 1"),
        ("tcmr/sample", ["--train-rate", "matched"], "give mixed, match, or one of the rates 0.0, 0.1, ... 0.7."),
        ("tcmr/sample", ["--train-rate", "0.9"], "The modality missing rate is 0.9; use 0.0, 0.1, ... 0.7"),
        ("tcmr/sample", ["--train-rate", "0.5", "--set", "missing.train=4"], "leave one of them out"),
        (
            "tcmr/sample",
            ["--set", "stages.mian.num_train_epochs=1"],
            "Unknown stage of tcmr 'mian'. Did you mean 'main'?",
        ),
        ("tcmr/sample", ["--set", "stages.main.learning_rat=1"], "Did you mean 'learning_rate'?"),
        ("tcmr/sample", ["--set", "stages.main.learning_rate=fast"], "has to be of type float"),
        ("tcmr/sample", ["--set", "stages.main.lr_scheduler_type=cosin"], "cosin is not a valid SchedulerType"),
        ("tcmr/sample", ["--set", "stages.main.metric_for_best_model=mea"], "Did you mean 'mae'?"),
        (
            "tcmr/sample",
            ["--set", "model.audio_dim=null", "model.vision_dim=null"],
            "needs at least one of audio, vision",
        ),
        (
            "tcmr/sample",
            ["--num_train_epoch", "1"],
            "Unknown training argument 'num_train_epoch'. Did you mean 'num_train_epochs'?",
        ),
        ("tcmr/sample", ["--num_train_epochs", "many"], "invalid float value: 'many'."),
        ("tcmr/sample", ["--bf16", "--fp16"], "At most one of fp16 and bf16 can be True"),
        ("tcmr/sample", ["stray"], "got stray but expected one of yes/no"),  # It stands after --use_cpu.
        ("tcmr/sample", ["--seeds", "one"], "invalid int value: 'one'"),
        ("text/sample", ["--text-model", "./nowhere"], "pass --text-model with a folder or Hub name"),
    ],
)
def test_wrong_training(
    refused: Callable[..., str], work: Path, tmp_path: Path, recipe: str, options: list[str], words: str
) -> None:
    command = ["train", recipe, "--data", work / "corpus", "--output", tmp_path / "run", "--use_cpu"]
    assert words in refused(*command, *options)
    assert not (tmp_path / "run").exists()


def test_a_value_that_was_refused_does_not_stand_in_the_way_of_the_right_one(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "text/sample", "--data", str(work / "corpus"), "--output", str(tmp_path / "run"), *QUICK]

    def broken(*_: object, **__: object) -> None:
        raise ValueError("this model cannot be built.\nMore about it.")

    with monkeypatch.context() as patched:
        patched.setattr("hf_msa.models.modeling_msa.AutoModel.from_pretrained", broken)
        assert main(command) == 2
    assert main([*command, "--learning_rate", "1e-4"]) == 0


def test_training_data_must_be_there(refused: Callable[..., str], work: Path, tmp_path: Path) -> None:
    command = ["train", "text/sample", "--output", tmp_path / "run", "--use_cpu", "--data"]
    assert "There is no folder" in refused(*command, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "has no msa_dataset.json" in refused(*command, tmp_path / "empty")
    data = copy_of(work / "corpus", tmp_path / "data")
    file = next((data / "data").glob("train-*"))
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert "The split 'train'" in refused(*command, data)
    file.unlink()
    assert "has no split 'train'" in refused(*command, data)
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file_is_no_output(refused: Callable[..., str], work: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    data = ["--data", work / "corpus", "--output", file]
    assert "Not a directory" in refused("train", "text/sample", *data, "--use_cpu")
    assert "is a file; give a folder" in refused("evaluate", work / "text", *data)
    assert "is a file; give a folder" in refused("sample-corpus", "--preset", "tiny", "--output", file)


# --- Wrong evaluations ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--protocol", "framee"], "Unknown protocol 'framee'. Did you mean 'frame'?"),
        (["--protocol", "fixed", "--rates", "0.1"], "The protocol 'fixed' has no rates; leave --rates out"),
        (["--protocol", "complete", "--rates", "0.1"], "The protocol 'complete' has no rates"),
        (["--protocol", "pattern", "--rates", "0.1"], "The protocol 'pattern' has no rates"),
        (["--protocol", "user"], "The missing protocol 'user' needs 'source'; add it."),
        (
            ["--protocol", "block", "--protocol-set", "block=2"],
            "Unknown field of the missing protocol 'block': 'block'.",
        ),
        (["--protocol", "block", "--protocol-set", "blocks"], "--protocol-set takes KEY=VALUE, e.g. blocks=2"),
        (["--protocol", "legacy_lnln", "--protocol-set", "audio_width=2"], "audio_width is 2; set audio_width"),
        (["--rates", "1.5"], "The missing rate is 1.5; give a number from 0 to 1."),
        (["--rates", "0.1", "0.1"], "each once"),
        (["--mask-seeds", "1", "1"], "each once"),
        (["--split", "valid"], "Did you mean 'validation'?"),
        (["--batch-size", "0"], "--batch-size is 0; give at least 1."),
        (["--rates", "half"], "invalid float value: 'half'"),
        (["--subset", "consistant"], "Unknown subset 'consistant'. Did you mean 'consistent'?"),
        (["--subset", "consistent", "--subset-rule", "x"], "Unknown subset rule 'x'."),
        (["--subset-rule", "not_all_equal"], "give --subset as well."),
    ],
)
def test_wrong_evaluation(
    refused: Callable[..., str], work: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    command = ["evaluate", work / "text", "--data", work / "corpus", "--output", tmp_path / "out"]
    assert words in refused(*command, *options)


def test_models_and_data_that_will_not_do(refused: Callable[..., str], work: Path, tmp_path: Path) -> None:
    corpus = ["--data", work / "corpus", "--output", tmp_path / "out"]
    (tmp_path / "empty").mkdir()
    assert "holds no finished checkpoint" in refused("evaluate", tmp_path / "empty", *corpus)
    assert "No checkpoint can be loaded" in refused("evaluate", tmp_path / "nothing", *corpus)
    assert "but a BertModel" in refused("evaluate", work / "corpus" / "text_model", *corpus)
    run = copy_of(work / "text" / "seed-1", tmp_path / "cut")
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:1000])
    assert "No checkpoint can be loaded" in refused("evaluate", run, *corpus)
    output = ["--output", tmp_path / "out", "--data"]
    assert "There is no folder" in refused("evaluate", work / "text", *output, tmp_path / "nothing")
    assert "has no msa_dataset.json" in refused("evaluate", work / "text", *output, tmp_path / "empty")
    data = copy_of(work / "corpus", tmp_path / "data")
    file = next((data / "data").glob("test-*"))
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert "The split 'test'" in refused("evaluate", work / "text", *output, data)


def test_features_of_another_width_are_refused(refused: Callable[..., str], work: Path, tmp_path: Path) -> None:
    source = write_pickle(tmp_path / "raw.pkl", audio=7)
    main(["prepare", "mosi", "--source", str(source), "--output", str(tmp_path / "mosi")])
    command = ["evaluate", work / "tcmr", "--data", tmp_path / "mosi", "--output", tmp_path / "out"]
    assert "audio of width 7, but the checkpoint" in refused(*command)
    np.save(tmp_path / "audio.npy", np.zeros((3, 7), dtype=np.float32))
    assert "this checkpoint reads (frames, 5)" in refused(
        "predict", work / "tcmr", "--text", "x", "--audio", tmp_path / "audio.npy"
    )


def test_wrong_predictions(refused: Callable[..., str], work: Path, tmp_path: Path) -> None:
    assert "several training seeds" in refused("predict", work / "text", "--text", "x")
    assert "cannot be read" in refused("predict", work / "tcmr", "--text", "x", "--audio", tmp_path / "none.npy")


def test_results_that_are_not_there_cannot_be_compared(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text("{")
    assert "There is no result at" in refused("compare", tmp_path / "b", tmp_path / "a")
    assert "is not a JSON file" in refused("compare", tmp_path / "a", tmp_path / "b")


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("stages", "planted")))


# --- Wrong raw data ---


def mmsa(audio: int = 5) -> dict[str, dict[str, Any]]:
    """A small MMSA pickle's content."""
    rng = np.random.default_rng(0)
    return {
        split: {
            "raw_text": np.array([f"{split} {index}" for index in range(4)]),
            "id": np.array([f"{split}$_${index}" for index in range(4)]),
            "regression_labels": np.linspace(-3, 3, 4, dtype=np.float32),
            "audio": rng.normal(size=(4, 6, audio)).astype(np.float32),
            "vision": rng.normal(size=(4, 6, 20)).astype(np.float32),
        }
        for split in ("train", "valid", "test")
    }


def write_pickle(path: Path, change: Callable[[dict[str, Any]], None] | None = None, **shape: int) -> Path:
    content = mmsa(**shape)
    if change is not None:
        change(content)
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


class Hostile:
    def __reduce__(self) -> Any:
        return (os.system, ("touch hostile-ran",))


def fewer_audio(content: dict[str, Any]) -> None:
    content["train"]["audio"] = content["train"]["audio"][:-1]


def too_long(content: dict[str, Any]) -> None:
    content["train"]["audio_lengths"] = [99, 1, 1, 1]


def label_out_of_range(content: dict[str, Any]) -> None:
    content["test"]["regression_labels"][1] = 7


def empty_test(content: dict[str, Any]) -> None:
    content["test"] = {name: values[:0] for name, values in content["test"].items()}


def hostile(content: dict[str, Any]) -> None:
    content["train"]["id"] = Hostile()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fewer_audio, "has 4 transcripts but 3 of 'audio'."),
        (too_long, "has 99 frames, but its array has 6"),
        (label_out_of_range, "has label 7, outside [-3, 3] of 'mosi'"),
        (empty_test, "The split 'test' of"),
        (hostile, "posix.system"),
    ],
)
def test_wrong_raw_data(
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], None],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_pickle(tmp_path / "raw.pkl", change)
    assert words in refused("prepare", "mosi", "--source", source, "--output", tmp_path / "out")


def test_a_truncated_pickle_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    source = write_pickle(tmp_path / "raw.pkl")
    source.write_bytes(source.read_bytes()[:-40])
    assert "ends in the middle" in refused("prepare", "mosi", "--source", source, "--output", tmp_path / "out")


def test_a_corpus_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample-corpus", "--preset", "tiny", "--version", "1", "--output", str(tmp_path / "corpus")]
    for said in ("per second", "160 clips, which were there already"):
        assert main(command) == 0
        assert said in capsys.readouterr().out


def test_wrong_sources(refused: Callable[..., str], tmp_path: Path) -> None:
    source = write_pickle(tmp_path / "raw.pkl")
    output = ["--output", tmp_path / "out"]
    assert "There is nothing at" in refused("prepare", "mosi", "--source", tmp_path / "none.pkl", *output)
    assert "Did you mean 'mosi'?" in refused("prepare", "mosii", "--source", source, *output)
    assert "needs a label family" in refused("prepare", "custom", "--source", source, *output)
    assert "required: --source" in refused("prepare", "mosi", *output)
    assert "is not empty" in refused("prepare", "mosi", "--source", source, "--output", tmp_path)


# --- No space left ---


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_preparing(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pickle(tmp_path / "raw.pkl")
    command = ["prepare", "mosi", "--source", source, "--output", tmp_path / "out", "--overwrite"]
    main([str(argument) for argument in command])
    monkeypatch.setattr("hf_msa.data.prepare.write_facts", no_space)
    assert "There is no space left to write" in refused(*command)
    assert "There is no space left to write" in refused(*command[:5], tmp_path / "new")


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    "writer",
    [
        "hf_msa.evaluation.results.write_json",
        "hf_msa.evaluation.evaluate.write_results",
        "matplotlib.figure.Figure.savefig",
    ],
)
def test_a_full_disk_while_evaluating(
    refused: Callable[..., str], work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    command = ["evaluate", work / "text", "--data", work / "corpus", "--protocol", "complete"]
    main([str(argument) for argument in [*command, "--output", tmp_path / "out"]])
    monkeypatch.setattr(writer, no_space)
    for name in ("out", "new"):
        sentence = refused(*command, "--output", tmp_path / name)
        assert f"There is no space left to write '{tmp_path / name}'" in sentence
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULT_FILES and not (tmp_path / "new").exists()


def test_a_full_disk_while_training_can_be_continued_from(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "text/sample", "--data", str(work / "corpus"), "--output", str(tmp_path / "run"), *QUICK]

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr("hf_msa.models.modeling_text.TextForSentimentAnalysis.save_pretrained", full)
        assert main(command) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message == (
        f"hf-msa train: There is no space left to write '{tmp_path / 'run'}'; free some and run the same command again."
    )
    assert not list(tmp_path.rglob("run.json")) and not list(tmp_path.rglob("stage.json"))
    assert main(command) == 0 and list(tmp_path.rglob("run.json"))


def test_a_bug_is_not_hidden(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise KeyError("a name that the code got wrong")

    monkeypatch.setattr("hf_msa.api.evaluate_runs", bug)
    with pytest.raises(KeyError):
        main(["evaluate", str(work / "text"), "--data", str(work / "corpus")])


def test_interrupting_says_how_to_go_on(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_msa.api.evaluate_runs", interrupted)
    assert main(["evaluate", str(work / "text"), "--data", str(work / "corpus")]) == 130
    assert "interrupted; the same command continues where it can." in capsys.readouterr().err
