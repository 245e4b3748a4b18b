"""The quickstart of docs/api.md and the example in each public docstring run, on a tiny sample corpus."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_msa
from hf_msa_cli import COMMANDS
from loopback_hub import LoopbackHub, client_environment
from run_examples import example_of, quickstart_of

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
CONSTANTS = {"FEATURE_SETS", "METHODS", "__version__"}
# They train more than the quickstart does.
LONG = {"build_knowledge_base", "calibrate", "impute", "make_baselines"}
PREPARE = """
from hf_msa import sample_corpus, train
few = [f"stages.{stage}.num_train_epochs=1" for stage in ("vae", "main", "classifier_after", "classifier")]
data = sample_corpus("data/sample", "tiny", version=1)
train("text/sample", data, "runs/text", flags={"num_train_epochs": 1})
train("omg/sample", data, "runs/omg", assignments=few)
train("uacs/sample", data, "runs/uacs", flags={"num_train_epochs": 1})
"""


def run_examples(folder: Path, names: list[str], page: Path) -> dict[str, str | None]:
    """Run examples in a folder, with a Hub of their own; the error of each, None for those that ran."""
    with LoopbackHub() as hub:
        environment = client_environment(hub, str(folder / "home"))
        command = [sys.executable, str(Path(__file__).with_name("run_examples.py")), str(page), "ran.jsonl", *names]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "ran.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row["error"] for row in rows}


def test_each_public_name_has_an_example() -> None:
    without = [name for name in hf_msa.__all__ if name not in CONSTANTS and name not in example_of(name)]
    assert not without


def test_the_quickstart_is_short() -> None:
    lines = [line for line in quickstart_of(PAGE).splitlines() if line.strip()]
    assert 5 < len(lines) <= 20


def test_the_quickstart_and_the_examples_run(tmp_path: Path) -> None:
    names = sorted(set(hf_msa.__all__) - CONSTANTS - LONG)
    ran = run_examples(tmp_path, names, PAGE)
    assert ran.keys() == {"quickstart", *names}
    assert not [f"{name}:\n{error}" for name, error in ran.items() if error]


@pytest.mark.slow
def test_the_examples_that_train_run(tmp_path: Path) -> None:
    page = tmp_path / "prepare.md"
    page.write_text(f"```python\n{PREPARE}\n```\n", encoding="utf-8")
    ran = run_examples(tmp_path, sorted(LONG), page)
    assert ran.keys() == {"quickstart", *LONG}
    assert not [f"{name}:\n{error}" for name, error in ran.items() if error]


def test_the_page_names_every_command_and_every_public_name() -> None:
    page = PAGE.read_text(encoding="utf-8")
    commands = set(re.findall(r"\| `hf-msa ([a-z-]+(?: (?:build|inspect))?)", page))
    assert commands == {command.name for command in COMMANDS}
    table = page.partition("## Stable names")[2]
    methods = [method for method in hf_msa.METHODS.values() if method.config_class.__module__.startswith("hf_msa.")]
    for method in methods:
        assert f"`{method.config_class.__name__.removesuffix('Config')}`" in table
    classes = {c.__name__ for method in methods for c in (method.config_class, method.model_class)}
    assert not [name for name in set(hf_msa.__all__) - classes if f"`{name}`" not in table]
