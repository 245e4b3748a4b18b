"""The results page: it is what the template and the kept files give, and its numbers are theirs."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

from hf_msa.evaluation.results import read_results
from nonempty import some

ROOT = Path(__file__).parents[1]
TEMPLATE = (ROOT / "docs" / "results.md.jinja").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
NOTE = "*Generated sample corpus, not a benchmark.*"


@pytest.fixture(scope="module")
def renderer():
    spec = importlib.util.spec_from_file_location("render_results", ROOT / "scripts" / "render_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copied(renderer, tmp_path, monkeypatch):
    """Template and kept files in a folder of their own, from which and into which the page is rendered."""
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    shutil.copy(ROOT / "docs" / "results.md.jinja", tmp_path)
    monkeypatch.setattr(renderer, "ROOT", tmp_path)
    monkeypatch.setattr(renderer, "NUMBERS", tmp_path / "results")
    return tmp_path


def rendered(renderer, folder: Path) -> str:
    assert renderer.main([]) == 0
    return (folder / "results.md").read_text(encoding="utf-8")


def typed_decimals(template: str) -> list[str]:
    """Decimals outside of what the template computes, of code and of addresses."""
    left = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", " ", template, flags=re.DOTALL)
    left = re.sub(r"^```.*?^```", " ", left, flags=re.DOTALL | re.MULTILINE)
    left = re.sub(r"`[^`\n]*`|\]\([^)\n]*\)", " ", left)
    return re.findall(r"(?<![\w.])\d*\.\d+", left)


def test_the_page_is_what_the_files_give(renderer, copied):
    assert rendered(renderer, copied) == PAGE


@pytest.mark.parametrize(
    "file, digits",
    [
        ("mosi-tcmr/results.json", r'(?<="mean_over_rates": \{"acc7": \{"mean": 0\.2)\d'),
        ("mosi-ubm/results.json", r'(?<="mean_over_rates": \{"acc7": \{"mean": 0\.4)\d'),
        ("tools/sample-consistency.md", r"(?<=\| -2\.0)7(?= \[)"),
        ("tools/mosi-prompts.md", r"(?<=-0\.09)2(?= ± )"),
        ("mosi-minus-text.json", r'(?<="mae": \{"value": -0\.0)1'),
        ("readings.json", r'(?<="omg_constant_table": \{"ratio": 0\.76)6'),
        ("mosi-labels.json", r'(?<="test": -0\.3)1'),
    ],
)
def test_a_changed_digit_changes_the_page(renderer, copied, file, digits):
    path = copied / "results" / file
    before = path.read_text(encoding="utf-8")
    changed = re.sub(digits, lambda found: str((int(found[0]) + 5) % 10), before, count=1)
    assert changed != before
    path.write_text(changed, encoding="utf-8")
    assert rendered(renderer, copied) != PAGE


def test_no_decimal_is_typed_into_the_template():
    assert typed_decimals("Corr .44 (1.957 to `0.5`), {{ cell(1.5) }}, p = 0.058.") == [".44", "1.957", "0.058"]
    assert typed_decimals(TEMPLATE) == []


def test_tables_of_the_sample_corpus_say_so():
    """In sections with the corpus in their heading each table has the note; that of another data set has none."""
    sections = some(re.split(r"^(?=##+ )", PAGE, flags=re.MULTILINE)[1:])
    about, noted = "", 0
    for section in sections:
        heading = section.splitlines()[0]
        about = heading if heading.startswith("## ") else about
        on_corpus = "sample corpus" in f"{about} {heading}".lower()
        for after in re.findall(r"^\|[^\n]*\n(?!\|)((?:(?![|#])[^\n]*\n){2,4})", section, flags=re.MULTILINE):
            assert (NOTE in after) == on_corpus, (heading, after)
            noted += on_corpus
    assert noted > 20


def test_cells_and_numbers(renderer, copied):
    (copied / "results" / "t.md").write_text(
        "| run | by | error |\n|:--|--:|--:|\n| a | x | -2.07 [-6.26, 2.37] |\n| a | \\|y\\| | 0.5 ± 0.1 |\n"
    )
    found = renderer.cell("t.md", "error", {"run": "a", "by": "x"})
    assert [renderer.number(found, part) for part in range(3)] == [-2.07, -6.26, 2.37]
    assert renderer.cell("t.md", "error", {"by": "|y|"}) == "0.5 ± 0.1"
    for row, column in (("a", "error"), ("b", "error"), ({"by": "x"}, "bias")):
        with pytest.raises(ValueError, match="rows with"):
            renderer.cell("t.md", column, row)


def test_what_is_kept_of_a_run(renderer, copied, tmp_path):
    """No history, but its last step and the validation MAE beside the lowest; of folders the names; a result as before."""
    run = tmp_path / "run"
    fixture = ROOT / "tests" / "fixtures" / "results" / "sample-text" / "results.json"
    source = json.loads(fixture.read_text(encoding="utf-8"))
    source.pop("training")
    for seed in (1112, 1111):
        (run / f"seed-{seed}").mkdir(parents=True)
        history = [
            {"step": 2, "loss": 3.0},
            {"step": 2, "eval_mae": 1.25},
            {"step": 4, "eval_mae": 1.0},
            {"step": 5, "train_loss": 2.0},
        ]
        stage = {"name": "main", "selection": {"step": 2}, "history": history}
        made = {"name": "made", "selection": None}
        facts = {"seed": seed, "text_model": "/home/me/model", "config": {}, "dataset": {}, "stages": [made, stage]}
        (run / f"seed-{seed}" / "run.json").write_text(json.dumps(facts, indent=2))
    (run / "results.json").write_text(json.dumps(source, indent=2))
    renderer.main(["add", str(run), "new"])
    kept = copied / "results" / "new" / "results.json"
    results = json.loads(kept.read_text(encoding="utf-8"))
    stage = {"name": "main", "selection": {"step": 2}, "steps": 5, "validation_mae": {"chosen": 1.25, "lowest": 1.0}}
    assert results.pop("training") == [
        {"seed": seed, "text_model": "model", "stages": [{"name": "made", "selection": None}, stage]}
        for seed in (1111, 1112)
    ]
    assert results == source and read_results(kept)["runs"] == source["runs"]
    assert len(kept.read_text(encoding="utf-8").splitlines()) == len(source) + 3


def test_drawings_are_kept_small(renderer, copied, tmp_path):
    svg = '<svg>\n <g id="a">\n  <path d="M 1.26 -0.04 \nL 2.50001 3 \nz\n" style="opacity: 0.45"/>\n </g>\n</svg>\n'
    (tmp_path / "f.svg").write_text(svg)
    renderer.main(["keep", str(tmp_path / "f.svg"), "tools/f.svg"])
    assert (copied / "results" / "tools" / "f.svg").read_text() == (
        '<svg>\n <g id="a"> <path d="M 1.3 -0.0 L 2.5 3 z " style="opacity: 0.45"/> </g> </svg>\n'
    )


def test_kept_files_are_compact():
    """No training history and no indentation under docs/results/, and no drawing of thousands of lines."""
    for path in some((ROOT / "docs" / "results").rglob("*.*")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 1000, path
        if path.suffix == ".json":
            assert not any(line.startswith(" ") or '"history"' in line for line in lines), path
