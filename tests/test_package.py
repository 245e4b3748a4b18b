"""The package as it is described and built: metadata, and what its comments point to."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_project_says_whose_it_is_and_what_it_is_about() -> None:
    assert PROJECT["authors"] and all(author.get("name") for author in PROJECT["authors"])
    assert {"multimodal sentiment analysis", "missing modalities", "transformers"} <= set(PROJECT["keywords"])
    assert len(PROJECT["keywords"]) == len(set(PROJECT["keywords"]))


def test_the_python_that_runs_is_one_that_is_declared() -> None:
    declared = {
        name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.fullmatch(r".*Python :: 3\.\d+", name)
    }
    assert "{}.{}".format(*sys.version_info) in declared
    assert PROJECT["requires-python"].removeprefix(">=") == min(declared, key=lambda name: int(name[2:]))


def test_comments_point_to_sections_that_are_there() -> None:
    pointed = [
        (section, page)
        for name in ("pyproject.toml", "Makefile", ".pre-commit-config.yaml")
        if (ROOT / name).exists()
        for section, page in re.findall(r'see "([^"]+)" in (\S+\.md)', (ROOT / name).read_text())
    ]
    assert ("Versions", "CONTRIBUTING.md") in pointed
    for section, page in pointed:
        assert re.search(rf"^#+ {re.escape(section)}$", (ROOT / page).read_text(), re.MULTILINE), (section, page)
