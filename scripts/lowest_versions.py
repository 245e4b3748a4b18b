"""Print the lowest versions that pyproject.toml allows, one package a line, as constraints for pip.

`make test-lowest` runs tests with them, so that a lower bound is a version that works and not a guess.
"""

import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(project: Mapping[str, Any], extra: str) -> Iterable[Requirement]:
    """What the project requires with an extra, extras that this one takes in included.

    Args:
        project: The table `project` of a pyproject.toml.
        extra: The extra's name.
    """
    yield from map(Requirement, project["dependencies"])
    waiting = [extra]
    while waiting:
        for requirement in map(Requirement, project["optional-dependencies"][waiting.pop()]):
            if requirement.name == project["name"]:
                waiting += requirement.extras
            else:
                yield requirement


def lowest(requirement: Requirement) -> str | None:
    """The constraint ``name==version`` of a requirement, None of one without a lower bound."""
    for specifier in requirement.specifier:
        if specifier.operator == ">=":
            return f"{requirement.name}=={specifier.version}"
    return None


def main() -> int:
    """Print the constraints of the extra `dev`."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    found = {lowest(requirement) for requirement in requirements(project, "dev")}
    sys.stdout.writelines(f"{line}\n" for line in sorted(filter(None, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
