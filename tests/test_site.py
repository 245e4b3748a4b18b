"""The documentation site: it builds, every public name can be found, and the methods' pages say what the code says."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

import hf_msa
from hf_msa.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {"tcmr": ("tcmr",), "pglh": ("pglh",), "omg": ("omg",), "cmc": ("cmc",), "uacs": ("uacs", "ubm")}
ABLATION_TABLES = {
    "tcmr": ("paper (Table 3, 6)",),
    "pglh": ("paper (Tables 3, 4, 8)",),
    "cmc": ("what", "`--ablation`"),
    "uacs": ("paper (Table 4, B.2)",),
}


def rows_under(text: str, *header: str) -> list[list[str]]:
    """Cells of the rows of all tables whose header begins so."""
    tables = re.findall(r"^(\|.*)\n\|[-|: ]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = [
        [cell.strip() for cell in row.strip("| \n").split(" | ")] for _, rows in tables for row in rows.splitlines()
    ]
    wanted = [first for first, rows in tables for _ in rows.splitlines()]
    return [row for row, first in zip(cells, wanted, strict=True) if first.startswith("| " + " | ".join(header))]


def test_the_reference_has_every_public_name_once() -> None:
    found = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: hf_msa\.(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert sorted(found) == sorted(hf_msa.__all__)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_its_search_finds_every_public_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    index = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[2]: entry for entry in index["docs"]}
    for name in hf_msa.__all__:
        assert found[f"hf_msa.{name}"]["text"], name
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link rel=.stylesheet.)[^>]*(?:src|href)=.(https?:[^\"' >]+)", page.read_text()
        )
        assert not loaded, f"{page} loads {loaded}"


@pytest.mark.parametrize("page", PAGES)
def test_defaults_on_a_page_of_a_method_are_those_of_its_configuration(page: str) -> None:
    rows = rows_under((DOCS / f"{page}.md").read_text(encoding="utf-8"), "field", "default", "paper")
    rows += rows_under((DOCS / f"{page}.md").read_text(encoding="utf-8"), "field", "default", "public code")
    assert len(rows) >= 6
    config = METHODS[page].config_class()
    for field, default, *_ in rows:
        value = getattr(config, field.strip("`"))
        assert default == value or float(default) == value, f"{field}: {value}"


@pytest.mark.parametrize("page", PAGES)
def test_ablations_on_a_page_of_a_method_exist_and_are_all_there(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    own = METHODS[page].config_class.ABLATIONS
    assert set(re.findall(r"--ablation (\w[\w.-]*)", text)) <= own.keys()
    listed = {name for row in rows_under(text, *ABLATION_TABLES.get(page, ("none",))) for name in named_in(row[1:2])}
    assert listed <= own.keys()
    assert f"hf-msa recipes --method {page}" in text or own.keys() <= {
        *re.findall(r"`(?:--ablation )?([^`\n]+)`", text)
    }


def named_in(cells: list[str]) -> list[str]:
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_sizes_and_stages_on_the_overview_are_those_of_the_models() -> None:
    overview = (DOCS / "methods.md").read_text(encoding="utf-8")
    for names in PAGES.values():
        for name in names:
            method = METHODS[name]
            with torch.device("meta"):
                config = method.config_class(audio_dim=5, vision_dim=20, text_config=BertConfig().to_dict())
                model = method.model_class(config)
            size = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("text_encoder."))
            (row,) = (
                row for row in rows_under(overview, "page") if f"]({page_of(name)}.md)" in row[0] and of(row, name)
            )
            assert row[-1].startswith(f"{size:,}"), f"{name}: {size:,}"
            assert named_in(row[3:4]) == list(method.stages.names)
            assert f"{size:,} parameters" in (DOCS / f"{page_of(name)}.md").read_text(encoding="utf-8")


def page_of(name: str) -> str:
    return next(page for page, names in PAGES.items() if name in names)


def of(row: list[str], name: str) -> bool:
    return name == re.sub(r"\W|agent", "", row[0].partition("]")[0].lower())
