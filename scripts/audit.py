"""Ask for known vulnerabilities of everything that is installed here, and say how much of it could be asked about.

Run by `make lint`, where advisories are told and change nothing: they appear without a change of the code. `make audit`
fails for them. pip-audit alone says that nothing is known also where its source knows no package at all.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = 45


def ask() -> Sequence[Mapping[str, Any]] | None:
    """What pip-audit found of each package; None where it could not ask."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", "--timeout=5"]
    try:
        done = subprocess.run(
            [*command, "--skip-editable"], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        found: Sequence[Mapping[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (KeyError, TypeError, ValueError, subprocess.TimeoutExpired):
        return None
    return found


def summary(found: Sequence[Mapping[str, Any]] | None) -> tuple[list[str], bool]:
    """Lines that say what was found, and whether something was asked about and nothing found.

    Args:
        found: Of `ask`.
    """
    audited = [package for package in found or () if "skip_reason" not in package]
    if not audited:
        return ["audit: no source of advisories could be reached, so nothing is known about any package."], False
    lines = [
        f"audit: {package['name']} {package['version']}: {advisory['id']}, mended in "
        f"{', '.join(advisory.get('fix_versions') or ()) or 'no version yet'}."
        for package in audited
        for advisory in package.get("vulns") or ()
    ]
    unknown = len(found or ()) - len(audited)
    total = f"audit: {len(audited)} packages, {len(lines)} advisories; {unknown} other packages are not known."
    return [*lines, total], not lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the summary; the exit status is 1 with `--strict` where there are advisories, or none could be asked for."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--strict", action="store_true", help="fail for advisories, and where there is no source of them"
    )
    strict = parser.parse_args(arguments).strict
    lines, clean = summary(ask())
    sys.stdout.write("\n".join(lines) + "\n")
    return int(strict and not clean)


if __name__ == "__main__":
    sys.exit(main())
