"""The Makefile: which build of torch is taken where, what is done without its index, and the checks that hooks share."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in *--index-url*) exit "$INDEX_STATUS" ;; esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def installed(
    folder: Path, *, has_gpu: bool = False, index_status: int = 0, options: tuple[str, ...] = ()
) -> list[str]:
    """What `make setup` has pip install, without an interpreter."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    programs = {".venv/bin/python": PYTHON} | ({"tools/nvidia-smi": "#!/bin/sh\n"} if has_gpu else {})
    for name, content in programs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    # The programs that the Makefile calls, and no GPU's.
    (folder / "tools").mkdir(exist_ok=True)
    for name in ("sh", "test", "touch", "awk"):
        (folder / "tools" / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(folder / "tools"), "LOG": str(folder / "log"), "INDEX_STATUS": str(index_status)}
    make = str(shutil.which("make"))
    subprocess.run([make, "setup", *options], cwd=folder, env=environment, check=True, capture_output=True)
    lines = (folder / "log").read_text().splitlines()
    assert not any("--quiet" in line for line in lines)
    return [line.removeprefix("-m pip install --disable-pip-version-check ") for line in lines]


def torch_version() -> str:
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("TORCH ?= "))
    return line.removeprefix("TORCH ?= ")


def test_without_a_gpu_torch_is_the_cpu_build(tmp_path: Path) -> None:
    assert installed(tmp_path) == [f"--retries 1 --index-url {CPU_INDEX} {torch_version()}", "-e .[dev]"]


def test_where_that_index_cannot_be_reached_the_default_one_is_asked(tmp_path: Path) -> None:
    asked = installed(tmp_path, index_status=1)
    assert asked == [f"--retries 1 --index-url {CPU_INDEX} {torch_version()}", torch_version(), "-e .[dev]"]


def test_with_a_gpu_torch_is_that_of_the_default_index(tmp_path: Path) -> None:
    assert installed(tmp_path, has_gpu=True) == [torch_version(), "-e .[dev]"]


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (("TORCH_INDEX=",), torch_version()),
        (
            ("TORCH_INDEX=https://example.org", "TORCH=torch>=2.13"),
            "--retries 1 --index-url https://example.org torch>=2.13",
        ),
    ],
)
def test_index_and_version_can_be_given(tmp_path: Path, options: tuple[str, ...], first: str) -> None:
    assert installed(tmp_path, options=options) == [first, "-e .[dev]"]
    assert os.path.exists(tmp_path / ".venv" / ".installed")


def test_all_is_installed_within_given_constraints(tmp_path: Path) -> None:
    asked = installed(tmp_path, options=("CONSTRAINTS=low.txt", "TORCH_INDEX="))
    assert asked == [f"--constraint low.txt {torch_version()}", "--constraint low.txt -e .[dev]"]


def test_the_hooks_of_commits_are_the_checks_of_lint() -> None:
    (lint,) = re.findall(r"^lint: (.*?) *##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "tools of other repositories would have versions of their own"
    assert [hook["id"] for hook in repository["hooks"]] == lint.split()
    for hook in repository["hooks"]:
        assert (hook["language"], hook["entry"]) == ("system", f"make --silent {hook['id']}")
