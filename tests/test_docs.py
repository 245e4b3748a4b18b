"""What the documents print: commands that exist with these options, snippets without undefined names, and both executed."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from hf_msa.analysis import TOOLS
from hf_msa.cli import training_flags
from hf_msa.data.missing import PROTOCOLS
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.methods import METHODS
from hf_msa.training.recipes import load_recipe, train_rates
from hf_msa_cli import build_parser, main

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")))
OTHER_PROGRAMS = {"python", "sqlite3", "vllm"}
<<<<<<< HEAD
_BLOCK = re.compile(r"(?:^<!-- not executed: (.+?) -->\n)?^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
=======
# What is not executed, and why. All of it is parsed and checked for undefined names.
_NEEDS_HUB = "needs an account of the Hub, or a model on it"
_NEEDS_SPEECH = "needs a Whisper model"
_NEEDS_LANGUAGE_MODEL = "needs a language model or its server"
_TRAINED_ELSEWHERE = "needs runs of several methods; tests of each method execute these commands"
NOT_EXECUTED = {
    "README.md#0": "installs packages",
    "README.md#2": "make test is what runs this; scripts/demo.sh is tests/test_cli.py in other words",
    "README.md#4": _NEEDS_HUB,
    "README.md#5": _NEEDS_SPEECH,
    "docs/analysis.md#1": _TRAINED_ELSEWHERE,
    "docs/analysis.md#2": _TRAINED_ELSEWHERE,
    "docs/analysis.md#3": _TRAINED_ELSEWHERE,
    "docs/evaluation.md#0": _TRAINED_ELSEWHERE,
    "docs/evaluation.md#1": "tests/evaluation/test_foreign.py makes and scores such files",
    "docs/evaluation.md#2": "tests/test_baselines.py executes it",
    "docs/evaluation.md#3": _TRAINED_ELSEWHERE,
    **{f"docs/omg.md#{number}": _NEEDS_LANGUAGE_MODEL for number in (0, 1, 2, 3, 4)},
    **{f"docs/omg.md#{number}": _TRAINED_ELSEWHERE for number in range(5, 13)},
    "docs/recordings.md#0": _NEEDS_SPEECH,
    "docs/recordings.md#1": _NEEDS_HUB,
    "docs/recordings.md#2": _NEEDS_SPEECH,
    "docs/recordings.md#3": _NEEDS_HUB,
    "docs/retrieval.md#0": _TRAINED_ELSEWHERE,
    "docs/retrieval.md#1": _TRAINED_ELSEWHERE,
    "docs/servers.md#0": _NEEDS_LANGUAGE_MODEL,
    "docs/tcmr.md#0": "trains eight rows; tests/models/test_tcmr_ablations.py makes them all",
    "docs/training.md#0": "README.md#6 executes it",
    "docs/training.md#1": _TRAINED_ELSEWHERE,
    **{f"docs/uacs.md#{number}": _NEEDS_LANGUAGE_MODEL for number in range(10)},
}
>>>>>>> face2-show


@dataclass(frozen=True)
class Block:
    """A block of code of a document; `name` counts those of bash and Python from 0.

    All are parsed and checked for undefined names. What cannot be executed has a comment before it in the document,
    `<!-- not executed: the reason -->`.
    """

    name: str
    not_executed: str
    language: str
    code: str

    @property
    def document(self) -> str:
        return self.name.partition("#")[0]


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        if not Path(document).name.startswith("results"):
            text = (ROOT / document).read_text(encoding="utf-8")
            for number, found in enumerate(_BLOCK.findall(text)):
                yield Block(f"{document}#{number}", *found)


BASH = [block for block in blocks() if block.language == "bash"]
PYTHON = [block for block in blocks() if block.language == "python"]


def commands(code: str) -> list[list[str]]:
    """The commands of a block, as bash expands them, without running any."""
    names = ("hf-msa", "accelerate", "make", "pip", *OTHER_PROGRAMS)
    stubs = "\n".join(f"{name}() {{ printf '%s\\0' {name} \"$@\"; printf '\\n'; }}" for name in names)
    done = subprocess.run(
        [str(shutil.which("bash")), "-euc", f"{stubs}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/nowhere"},
    )
    return [line.split("\0")[:-1] for line in done.stdout.splitlines()]


def as_own(command: list[str]) -> list[str]:
    """A launcher's command as the one of hf-msa that it is."""
    if command[:3] == ["accelerate", "launch", "train.py"]:
        return ["hf-msa", "train", *command[3:]]
    return command


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("block", BASH, ids=lambda block: block.name)
def test_printed_commands_exist_with_these_options(block: Block) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = commands(block.code)
    assert found
    for program, *arguments in map(as_own, found):
        if program == "pip":
            for extra in re.findall(r"(?:hf-msa|\.)\[(.*)\]", " ".join(arguments)):
                assert set(extra.split(",")) <= project["optional-dependencies"].keys()
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        elif program == "hf-msa":
            check_command(arguments)
        else:
            assert program in OTHER_PROGRAMS


def check_command(arguments: list[str]) -> None:
    parsed, rest = build_parser().parse_known_args(arguments)
    assert parsed.command is not None, arguments
    if parsed.command.takes_training_flags:
        training_flags(rest)
    else:
        assert not rest, rest
    if parsed.command.name == "train":
        for rate in train_rates(parsed.train_rate):
            load_recipe(parsed.recipe, ablation=parsed.ablation, assignments=parsed.assignments, train_rate=rate)
    if getattr(parsed, "protocol", None) is not None:
        PROTOCOLS.find(parsed.protocol)
    if parsed.command.name == "analyze":
        TOOLS.find(parsed.tool).parse(parsed.options)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_snippets_import_what_there_is_and_define_all_names(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        for name in node.names if isinstance(node, ast.Import) else ():
            importlib.import_module(name.name)
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", "--ignore", "F401", "-"]
    done = subprocess.run(ruff, input=block.code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- Executed ---

QUICK = ["--num_train_epochs", "1", "--use_cpu", "--disable_tqdm", "true", "--set", "missing.selection_repeats=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample corpus in the place of all that the documents name."""
    folder = tmp_path_factory.mktemp("docs")
    corpus = write_sample_corpus(folder / "corpus", preset="tiny", seed=7, version=1)
    rows = {file.name: pq.read_table(file) for file in sorted(corpus.glob("data/*.parquet"))}
    pq.write_table(pa.concat_tables(rows.values()), folder / "my.parquet")
    for name in ("unaligned_50.pkl", "reviews"):
        shutil.copytree(corpus, folder / name)
    (folder / "SIMS").mkdir()
    for name, part in rows.items():
        for number, column in enumerate(part.column_names):
            if column.startswith("label"):
                part = part.set_column(number, column, pc.divide(part[column], pa.scalar(3, pa.float32())))
        pq.write_table(part, folder / "SIMS" / name)
    (folder / "stars.yaml").write_text("{name: stars, low: -3, high: 3}\n", encoding="utf-8")
    for name in ("mosei", "mine", "sims", "other"):
        shutil.copytree(corpus, folder / "data" / name)
    return folder


def quick(arguments: list[str]) -> list[str]:
    """A command on the sample corpus's text encoder, with one epoch per stage and two seeds at most."""
    if arguments[0] != "train":
        return arguments
    method = arguments[1].partition("/")[0]
    last = len(arguments)
    if "--seeds" in arguments:
        begin = arguments.index("--seeds") + 1
        last = next((n for n in range(begin, last) if not arguments[n].isdigit()), last)
        arguments = arguments[: min(begin + 2, last)] + arguments[last:]
    stages = [f"stages.{stage}.num_train_epochs=1" for stage in METHODS[method].stages.names]
    arguments = ["train", f"{method}/sample", *arguments[2:]]
    return [*arguments, "--text-model", "corpus/text_model", *QUICK, *stages]


EXECUTED = [block for block in (*BASH, *PYTHON) if not block.not_executed]


def test_every_reason_stands_before_a_block() -> None:
    reasons = sum((ROOT / document).read_text(encoding="utf-8").count("<!-- not executed") for document in DOCUMENTS)
    assert reasons == len(BASH) + len(PYTHON) - len(EXECUTED) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_documents_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    pages = ["README.md", *(f"docs/{method}.md" for method in METHODS)]
    order = {document: number for number, document in enumerate(dict.fromkeys([*pages, *DOCUMENTS]))}
    # What is trained by the commands of methods' pages is used by the guides, and by a document's snippets.
    for block in sorted(EXECUTED, key=lambda block: (order[block.document], block.language)):
        if block.language == "bash":
            for program, *arguments in map(as_own, commands(block.code)):
                needs_hub = arguments[0] == "push" or "--push-to-hub" in arguments
                if program == "hf-msa" and not needs_hub:
                    if arguments[0] == "prepare":
                        arguments = [*arguments, "--overwrite"]
                    assert main(quick(arguments)) == 0, (block.name, arguments)
        else:
            code = block.code.replace("org/tcmr-mosi", "runs/tcmr/seed-1111")
            code = code.replace("org/tcmr-start", "runs/start/seed-1111")
            code = code.replace("bert-base-uncased", "corpus/text_model")
            code = re.sub(r"^.*\bpush\(.*$", "", code, flags=re.MULTILINE)  # which needs the Hub
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, (block.name, done.stderr)
