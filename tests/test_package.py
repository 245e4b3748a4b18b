"""The package as it is described, built and installed."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hf_msa.analysis.tools import TOOLS
from hf_msa.errors import EXTRAS
from hf_msa_cli import COMMANDS

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


# --- Built and installed ---


@dataclass(frozen=True)
class Installed:
    """The package as a user has it who asks for no extra.

    Attributes:
        source: The sdist, unpacked.
        wheel: Files of the wheel, which was built of the sdist.
        folder: A fresh virtual environment with the wheel and what it requires.
    """

    source: Path
    wheel: set[str]
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment."""
        return run(self.folder / "bin" / program, *arguments, cwd=self.folder)


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that does not see the repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # into what is linked
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def done(*command: object, cwd: Path) -> None:
    """Run a program that has to succeed."""
    finished = run(*command, cwd=cwd)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def required(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions that requirements bring, as they are installed here; extras only where one is asked for."""
    found: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for asked in ("", *requirement.extras):
            if (name, asked) not in found:
                found.add((name, asked))
                waiting += [(text, asked) for text in metadata.requires(name) or ()]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the sdist, the wheel of it, and install that without extras.

    What it requires is linked from the running environment, one distribution after the other, so that nothing is fetched;
    pip then checks that nothing is lacking.
    """
    folder = tmp_path_factory.mktemp("package")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, files.stdout.split("\0")):
        if not name.startswith("docs/") and (ROOT / name).exists():
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "clone" / name)
    build = "import setuptools.build_meta as backend, sys; getattr(backend, sys.argv[1])(sys.argv[2])"
    done(sys.executable, "-c", build, "build_sdist", folder, cwd=folder / "clone")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as sdist:
        # Which Python 3.11 has from 3.11.4 on.
        sdist.extraction_filter = getattr(tarfile, "data_filter", None)
        sdist.extractall(folder / "sdist")
    (source,) = (folder / "sdist").iterdir()
    done(sys.executable, "-c", build, "build_wheel", folder, cwd=source)
    (wheel,) = folder.glob("*.whl")

    venv.create(folder / "venv", with_pip=False, symlinks=True)
    site = folder / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        contents = set(archive.namelist())
        (about,) = (name for name in contents if name.endswith(".dist-info/METADATA"))
        requirements = email.message_from_bytes(archive.read(about)).get_all("Requires-Dist", [])
    for name in required(requirements):
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(distribution.locate_file(top)))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "venv" / "bin" / "python"]
    done(*pip, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    done(*pip, "check", cwd=folder)
    return Installed(source, contents, folder / "venv")


def tracked(folder: str) -> set[str]:
    """Files of a folder of the repository, without what only people read."""
    names = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in names.stdout.split("\0") if name and not name.endswith("README.md")}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(installed: Installed) -> None:
    expected = {name.removeprefix("src/") for name in tracked("src")}
    expected |= {f"hf_msa/{name}" for name in tracked("model_cards")}
    assert {name for name in installed.wheel if ".dist-info/" not in name} == expected
    assert {"hf_msa/py.typed", "hf_msa/recipes/tcmr/mosi.yaml", "hf_msa/model_cards/template.md"} <= expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in installed.wheel)


@pytest.mark.slow
def test_the_sdist_holds_what_the_wheel_is_built_of(installed: Installed) -> None:
    here = {str(path.relative_to(installed.source)) for path in installed.source.rglob("*") if path.is_file()}
    assert tracked("src") | tracked("model_cards") <= here
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md", "CHANGELOG.md"} <= here
    assert not [name for name in here if name.startswith(("tests/", "docs/", "benchmarks/"))]


@pytest.mark.slow
def test_no_extra_is_installed(installed: Installed) -> None:
    code = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    assert installed.run("python", "-c", code, *EXTRAS).stdout == "[]\n"


# What a command says instead of its help where its code needs an extra.
_NEEDS_EXTRA = (
    r"hf-msa [a-z]+: This needs the package '\w+', which is not installed: pip install 'hf-msa\[[a-z]+\]'\.\n"
)


@pytest.mark.slow
def test_every_command_shows_its_help_without_extras_or_names_one(installed: Installed) -> None:
    assert installed.run("hf-msa", "--version").stdout == f"hf-msa {metadata.version('hf-msa')}\n"
    for words in ([], *(command.name.split() for command in COMMANDS)):
        ran = installed.run("hf-msa", *words, "--help")
        if words == ["analyze"]:  # its tools look into training, and are loaded to be listed
            assert ran.returncode == 2 and re.fullmatch(_NEEDS_EXTRA, ran.stderr), ran.stderr
        else:
            assert (ran.returncode, ran.stderr) == (0, ""), (words, ran.stderr)
            assert ran.stdout.startswith("usage: hf-msa"), words


_HELP_OF_TOOLS = """
import contextlib, io, json, sys
from hf_msa_cli import main
said = {}
for name in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["analyze", name, "--help"])
        except SystemExit as stop:
            status = stop.code or 0
    said[name] = [status, err.getvalue()]
print(json.dumps(said))
"""


@pytest.mark.slow
def test_every_tool_shows_its_help_without_extras_or_names_one(installed: Installed) -> None:
    ran = installed.run("python", "-c", _HELP_OF_TOOLS, *TOOLS)
    assert ran.returncode == 0, ran.stderr
    for name, (status, error) in json.loads(ran.stdout).items():
        assert (status, error) == (0, "") or (status == 2 and re.fullmatch(_NEEDS_EXTRA, error)), (name, error)


@pytest.mark.slow
def test_every_public_name_is_there_without_extras_or_names_one(installed: Installed) -> None:
    code = (
        "import hf_msa\n"
        "from hf_msa.errors import absent_extra\n"
        "for name in hf_msa.__all__:\n"
        "    try: getattr(hf_msa, name)\n"
        "    except Exception as error: assert absent_extra(error), (name, error)\n"
        "from hf_msa.hub import cards\n"
        "from hf_msa.methods import METHODS\n"
        "recipes = [name for method in METHODS.values() for name in method.recipe_names()]\n"
        "print(hf_msa.__file__, len(recipes), cards.load_facts('text').title)\n"
    )
    ran = installed.run("python", "-c", code)
    assert ran.returncode == 0, ran.stderr
    place, recipes, *title = ran.stdout.split(maxsplit=2)
    assert Path(place).is_relative_to(installed.folder)
    assert int(recipes) == len([name for name in tracked("src/hf_msa/recipes") if name.endswith(".yaml")])
    assert title == ["Text-only baseline\n"]
