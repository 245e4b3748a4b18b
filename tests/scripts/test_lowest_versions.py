"""The lowest versions that pyproject.toml allows, and what else names versions."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("lowest_versions", ROOT / "scripts" / "lowest_versions.py")
assert _SPEC is not None and _SPEC.loader is not None
lowest_versions = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(lowest_versions)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("requirement", "constraint"),
    [
        ("torch>=2.13", "torch==2.13"),
        ("transformers<6,>=5.23.1", "transformers==5.23.1"),
        ("types-PyYAML", None),
        ("atheris>=3; sys_platform == 'linux'", "atheris==3"),
    ],
)
def test_the_lowest_version_is_the_lower_bound(requirement: str, constraint: str | None) -> None:
    assert lowest_versions.lowest(Requirement(requirement)) == constraint


def test_an_extra_brings_those_that_it_takes_in() -> None:
    project = {
        "name": "p",
        "dependencies": ["a>=1"],
        "optional-dependencies": {"dev": ["p[x]", "d>=4"], "x": ["p[y]", "b>=2"], "y": ["c>=3"], "other": ["e>=5"]},
    }
    found = [str(requirement) for requirement in lowest_versions.requirements(project, "dev")]
    assert sorted(found) == ["a>=1", "b>=2", "c>=3", "d>=4"]


def test_constraints_are_printed_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert lowest_versions.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines)
    assert len({line.partition("==")[0].lower() for line in lines}) == len(lines), "one lower bound for each package"


def test_whatever_is_always_installed_has_a_lower_bound() -> None:
    assert all(lowest_versions.lowest(Requirement(text)) for text in PROJECT["dependencies"])


def test_the_torch_of_make_is_allowed() -> None:
    (version,) = re.findall(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (torch,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    assert torch.specifier.contains(version)
    for page in ("README.md", "Makefile"):
        assert f'TORCH="{torch}"' in (ROOT / page).read_text(), page
