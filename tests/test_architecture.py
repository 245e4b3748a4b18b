"""The rules of the house: which way imports go, what `models/` may hold, what a method has to bring."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from hf_msa.methods import METHODS
from hf_msa.models.configuration_msa import MsaConfig
from hf_msa.models.modeling_msa import MsaPreTrainedModel
from nonempty import some
from tiny import TINY_CONFIGS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "hf_msa"
MODELS = PACKAGE / "models"

# A part may import from its own level and from lower ones. The package's `__init__` stands above all: it names them.
LEVELS = {
    "_version": 0,
    "errors": 0,
    "assignments": 0,
    "files": 0,
    "figures": 1,
    "registry": 1,
    "uploads": 1,
    "models": 1,
    "label_families": 2,
    "methods": 2,
    "feature_sets": 2,
    "data": 3,
    "recordings": 4,
    "evaluation": 4,
    "training": 5,
    "hub": 6,
    "analysis": 7,
    "baselines": 7,
    "imputation": 7,
    "omg_knowledge_bases": 7,
    "uacs_calibration": 7,
    "pipelines": 7,
    "clip_scores": 7,
    "demo_page": 7,
    "api": 8,
    "cli": 9,
}
# Shipped to the Hub with every checkpoint, so they must do without the rest of the package.
MODELS_MAY_IMPORT = {"torch", "transformers", "numpy", "huggingface_hub"}
# A method that is made of another one may import it.
MADE_OF = {("uacs", "ubm")}
# Files of no method that import those of methods, and why.
# A name that is none makes the registry look for packages each time.
NAMES = {*METHODS}
KNOWS_METHODS = {
    "hf_msa": "names all that is public",
    "hf_msa.methods": "registers the methods that come with hf_msa",
    "hf_msa.imputation": "writes what OMG-Agent generates, which no other method does",
}
# Names that mean to transformers what they always mean there.
OF_TRANSFORMERS = {
    *(
        "accepts_loss_kwargs",
        "base_model_prefix",
        "config_class",
        "main_input_name",
        "supports_gradient_checkpointing",
    ),
    *("keys_to_ignore_at_inference", "model_type", "sub_configs", "sub_configs_defaults", "validate"),
}
HEAVY = ("datasets", "peft", "librosa", "matplotlib")


@dataclass(frozen=True)
class Import:
    """One imported thing: where, and what.

    Args:
        source: Dotted name of the importing module.
        target: Dotted name of what is imported; for `from a import b` that is a.b where b is a module, else a.
        line: Line number.
    """

    source: str
    target: str
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(name: str, path: Path) -> Iterator[Import]:
    """Every import in a file, also in functions and under TYPE_CHECKING."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                base = f"{parent}.{base}".rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(name, inner if inner in sources() else base, node.lineno)


@cache
def inner_imports() -> tuple[Import, ...]:
    """All imports from one module of hf_msa to another."""
    every = (found for name, path in sources().items() for found in imports_of(name, path))
    return tuple(
        found for found in every if found.target.partition(".")[0] == "hf_msa" and found.target != found.source
    )


def part(name: str) -> str:
    """The first name under hf_msa; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def method_of(name: str) -> str | None:
    """The method to which a module belongs, by the words of its path: `training.cmc.stages`, `models.omg_planner`."""
    *_, before, last = ("", *re.split(r"[._]", name))
    if last == "text":  # which is also the name of a modality
        return "text" if before in ("configuration", "modeling") else None
    words = f"_{name.replace('.', '_')}_"
    return next((method for method in NAMES if method != "text" and f"_{method}_" in words), None)


def test_every_part_has_a_level() -> None:
    assert {part(name) for name in sources()} - {""} <= set(LEVELS)


def test_no_import_runs_back() -> None:
    wrong = [
        f"{found.source}:{found.line} imports {found.target}"
        for found in inner_imports()
        if part(found.source) and part(found.target) and LEVELS[part(found.target)] > LEVELS[part(found.source)]
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_in_the_package_imports_its_head() -> None:
    wrong = [f"{found.source}:{found.line}" for found in inner_imports() if found.target == "hf_msa"]
    assert not wrong, f"import from the module that defines the name, not from hf_msa: {wrong}"


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in sources()}
    for found in inner_imports():
        graph[found.source].add(found.target)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_method_imports_another() -> None:
    wrong = [
        f"{found.source}:{found.line} imports {found.target}"
        for found in inner_imports()
        if (source := method_of(found.source)) and (target := method_of(found.target))
        if source != target and (source, target) not in MADE_OF
    ]
    assert not wrong, "\n".join(wrong)


def test_a_file_of_no_method_imports_none_of_one() -> None:
    wrong = [
        f"{found.source}:{found.line} imports {found.target}"
        for found in inner_imports()
        if method_of(found.source) is None and method_of(found.target) and found.source not in KNOWS_METHODS
    ]
    assert not wrong, "\n".join(wrong)


def test_the_words_of_a_path_say_whose_it_is() -> None:
    found = {name: method_of(f"hf_msa.{name}") for name in ("analysis.tcmr.clues", "models.omg_plan", "data.rows")}
    assert list(found.values()) == ["tcmr", "omg", None]
    assert (method_of("hf_msa.models.modeling_text"), method_of("hf_msa.training.text_states")) == ("text", None)
    assert {method_of(name) for name in sources()} == {None, *METHODS}


class TestModelsFolder:
    """What the remote-code machinery of transformers can copy and load."""

    files = sorted(MODELS.glob("*.py"))

    def test_is_flat(self) -> None:
        assert not [path.name for path in MODELS.iterdir() if path.is_dir() and path.name != "__pycache__"]

    @pytest.mark.parametrize("path", files, ids=lambda path: path.stem)
    def test_imports_are_siblings_or_allowed_packages(self, path: Path) -> None:
        for node in some(ast.walk(tree(path))):
            if isinstance(node, ast.Import):
                packages = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level:
                sibling = node.module and (MODELS / f"{node.module}.py").is_file()
                assert node.level == 1 and sibling, (
                    f"line {node.lineno}: only `from .name import A` is copied to the Hub"
                )
                continue
            elif isinstance(node, ast.ImportFrom):
                packages = {(node.module or "").partition(".")[0]}
            else:
                continue
            extra = packages - MODELS_MAY_IMPORT - set(sys.stdlib_module_names)
            assert not extra, f"line {node.lineno}: {sorted(extra)} may not be there where a checkpoint is loaded"

    @pytest.mark.parametrize("path", files, ids=lambda path: path.stem)
    def test_no_text_looks_like_a_relative_import(self, path: Path) -> None:
        # transformers finds the files to copy with these two patterns, in docstrings too.
        real = {node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)}
        for number, line in some(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)):
            if re.match(r"\s*(from\s+\.|import\s+\.)", line):
                assert number in real, f"line {number} is taken for an import when a checkpoint is saved: {line!r}"

    @pytest.mark.parametrize("path", files, ids=lambda path: path.stem)
    def test_annotations_of_model_classes_are_real(self, path: Path) -> None:
        body = tree(path).body
        postponed = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in body)
        models = [
            node.name
            for node in body
            if isinstance(node, ast.ClassDef)
            for line in node.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id == "config"
        ]
        assert not (postponed and models), (
            f"{models}: `config: X` must be a class, not the string that it is postponed to"
        )


@pytest.mark.parametrize("method", list(METHODS))
def test_a_method_brings_all_its_parts(method: str) -> None:
    parts = {
        f"src/hf_msa/models/configuration_{method}.py": (MODELS / f"configuration_{method}.py").is_file(),
        f"src/hf_msa/models/modeling_{method}.py": (MODELS / f"modeling_{method}.py").is_file(),
        f"src/hf_msa/recipes/{method}/*.yaml": bool(list((PACKAGE / "recipes" / method).glob("*.yaml"))),
        f"model_cards/{method}.yaml": (ROOT / "model_cards" / f"{method}.yaml").is_file(),
        f"tests/models/tiny.py TINY_CONFIGS[{method!r}]": method in TINY_CONFIGS,
    }
    absent = [name for name, there in parts.items() if not there]
    assert not absent, f"method {method!r} lacks {', '.join(absent)}"


@pytest.mark.parametrize("method", list(METHODS))
def test_a_methods_classes_go_together(method: str) -> None:
    entry = METHODS[method]
    assert entry.config_class.model_type == f"hf_msa_{method}"
    assert entry.model_class.__name__.endswith("ForSentimentAnalysis")
    assert entry.model_class.config_class is entry.config_class


def test_importing_the_package_is_light() -> None:
    code = f"import sys, hf_msa; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("owner", [MsaPreTrainedModel, MsaConfig])
def test_the_contract_names_all_that_a_method_can_override(owner: type) -> None:
    """The tables of CONTRIBUTING.md are complete, and name nothing that is gone."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition(f"(`{owner.__name__}`) |")[2].partition("\n\n")[0]
    named = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    own = {name for name in (*vars(owner), *owner.__annotations__) if not name.startswith("_")}
    assert named - OF_TRANSFORMERS <= own and own - OF_TRANSFORMERS <= named, (named - own, own - named)
