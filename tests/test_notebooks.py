"""The notebooks run from an empty folder, cell by cell, and are stored without outputs.

Their code is plain Python without magics, so that an interpreter runs it: a kernel (nbclient, ipykernel) would bring some
thirty packages and show nothing more.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells_of(notebook: Path, kind: str) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["quickstart", "your_own_method"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_outputs_no_magics_and_no_dead_links(notebook: Path) -> None:
    for cell in cells_of(notebook, "code"):
        assert not cell["outputs"] and cell["execution_count"] is None
        compile("".join(cell["source"]), notebook.name, "exec")  # a magic is no Python
    for cell in cells_of(notebook, "markdown"):
        for link in re.findall(r"\]\(([^)#]+)", "".join(cell["source"])):
            assert (notebook.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook: Path, tmp_path: Path) -> None:
    code = "\n".join("".join(cell["source"]) for cell in cells_of(notebook, "code"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| share" in done.stdout if notebook.stem == "your_own_method" else "| pglh" in done.stdout, done.stdout
