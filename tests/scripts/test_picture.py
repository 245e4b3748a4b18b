"""The picture of the README: rendered from results that are kept, small, and up to date."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("render_picture", ROOT / "scripts" / "render_picture.py")
assert _SPEC is not None and _SPEC.loader is not None
render_picture = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(render_picture)


@pytest.mark.slow
def test_the_picture_is_rendered_from_kept_results(tmp_path: Path) -> None:
    assert render_picture.render(tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_screen_of_the_readme() -> None:
    """Install, ten lines of Python, the two make commands and the picture, before anything else."""
    screen = (ROOT / "README.md").read_text(encoding="utf-8").partition("## ")[0]
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", screen)
    assert (ROOT / picture) == render_picture.PICTURE and 0 < render_picture.PICTURE.stat().st_size < 150_000
    (python,) = re.findall(r"```python\n(.*?)```", screen, flags=re.DOTALL)
    assert 5 < len([line for line in python.splitlines() if line.strip()]) <= 12
    assert "pip install" in screen and "make demo" in screen and "make test" in screen
