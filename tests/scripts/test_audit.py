"""What `make lint` says of known vulnerabilities."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_PATH = Path(__file__).resolve().parents[2] / "scripts" / "audit.py"
_SPEC = importlib.util.spec_from_file_location("audit", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
audit = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(audit)

SKIPPED = {"name": "torch", "skip_reason": "Dependency not found"}
CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
KNOWN = {"name": "rich", "version": "1.0", "vulns": [{"id": "X-1", "fix_versions": ["1.1"]}, {"id": "X-2"}]}


@pytest.mark.parametrize("found", [None, [], [SKIPPED, SKIPPED]])
def test_where_nothing_could_be_asked_nothing_is_said_to_be_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: Any
) -> None:
    monkeypatch.setattr(audit, "ask", lambda: found)
    assert (audit.main([]), audit.main(["--strict"])) == (0, 1)
    assert capsys.readouterr().out.startswith("audit: no source of advisories could be reached, so nothing is known")


def test_advisories_are_told_and_fail_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "ask", lambda: [KNOWN, CLEAN, SKIPPED])
    assert (audit.main([]), audit.main(["--strict"])) == (0, 1)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "audit: rich 1.0: X-1, mended in 1.1.",
        "audit: rich 1.0: X-2, mended in no version yet.",
        "audit: 2 packages, 2 advisories; 1 other packages are not known.",
    ]
    monkeypatch.setattr(audit, "ask", lambda: [CLEAN])
    assert audit.main(["--strict"]) == 0
