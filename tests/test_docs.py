"""What the documents print: commands that exist with these options, snippets without undefined names, and both executed."""

import ast
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import tomllib
import types
import wave
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from hf_msa.analysis import TOOLS
from hf_msa.cli import training_flags
from hf_msa.data.missing import PROTOCOLS
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.evaluation import metrics
from hf_msa.methods import METHODS
from hf_msa.models.msa_label_families import LabelFamily
from hf_msa.training.recipes import load_recipe, train_rates
from hf_msa_cli import build_parser, main
from loopback_hub import LoopbackHub, client_environment
from loopback_mllm_server import Reply, Server, completion, token
from made_recordings import write_sound
from tiny_mllm import tiny_mllm_processor, tiny_thinker

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")))
OTHER_PROGRAMS = {"python", "sqlite3", "vllm"}
LANGUAGE_MODEL = "names a language model; tests/test_docs.py executes it with a tiny one"
RECORDINGS = "needs recordings; tests/test_docs.py executes it with made ones"
_BLOCK = re.compile(
    r"(?:^<!-- not executed: (.+?) -->\n)?^```(bash|python)\n(.*?)^```(?:\n\nIt prints[^\n]*\n\n```text\n(.*?)^```)?",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Block:
    """A block of code of a document; `name` counts those of bash and Python from 0.

    All are parsed and checked for undefined names. What cannot be executed has a comment before it in the document,
    `<!-- not executed: the reason -->`. `prints` is what the document shows of its output.
    """

    name: str
    not_executed: str
    language: str
    code: str
    prints: str

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


def test_a_metric_is_added_as_the_page_says() -> None:
    page = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    entry, terms = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    source = inspect.getsource(metrics)
    for place, added, depth in (
        ("    for metric in (\n", f"{entry.rstrip()},\n", 8),
        ('    """The terms of one metric of a score."""\n', terms, 4),
    ):
        assert source.count(place) == 1
        source = source.replace(place, place + textwrap.indent(added, " " * depth))
    changed = types.ModuleType("hf_msa.evaluation.metrics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, changed.__name__, changed)
        exec(compile(source, "metrics.py", "exec"), changed.__dict__)
        family = LabelFamily.from_dict({"name": "half", "low": -3, "high": 3, "metrics": ["fine_acc", "within_half"]})
        # Misses of .5, .6 and 0.
        assert changed.regression_metrics([0.5, 1.6, -2.0], [0.0, 1.0, -2.0], family)["within_half"] == 2 / 3


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
    (folder / "street").symlink_to(folder / "SIMS")
    for name, part in rows.items():
        for number, column in enumerate(part.column_names):
            if column.startswith("label"):
                part = part.set_column(number, column, pc.divide(part[column], pa.scalar(3, pa.float32())))
        pq.write_table(part, folder / "SIMS" / name)
    (folder / "stars.yaml").write_text("{name: stars, low: -3, high: 3}\n", encoding="utf-8")
    for name in ("mosei", "mine", "mosi", "other", "sample"):
        shutil.copytree(corpus, folder / "data" / name)
    assert main(["prepare", "sims", "--source", str(folder / "SIMS"), "--output", str(folder / "data" / "sims")]) == 0
    return folder


def provide(named: str) -> None:
    """Train and test the runs that a document takes for granted: `runs/<method>...`, and `runs/mosei`."""
    for name in dict.fromkeys(re.findall(r"\bruns/([a-z]+[\w.-]*)", named)):
        method = "text" if name == "mosei" else re.split("[_-]", name)[0]
        if method in METHODS and not Path("runs", name).exists():
            data = {"cmc": "data/sims", "mosei": "data/mosei"}.get(name, "data/mosi")
            fast = ["--set", "model.route=fast"] if method == "uacs" else []
            command = ["train", f"{method}/mosi", "--data", data, "--output", f"runs/{name}", *fast]
            assert main(quick([*command, "--seeds", "1111", "1112"])) == 0
            assert main(["evaluate", f"runs/{name}", "--data", data]) == 0


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
    order = {document: number for number, document in enumerate(DOCUMENTS)}
    # What is trained by a document's commands is used by its snippets.
    with LoopbackHub() as hub:
        for block in sorted(EXECUTED, key=lambda block: (order[block.document], block.language)):
            execute(block, client_environment(hub, str(place / "home")))


def execute(block: Block, environment: dict[str, str]) -> None:
    """Execute a block in the current folder."""
    if block.language == "bash":
        for program, *arguments in map(as_own, commands(block.code)):
            if program == "hf-msa":
                if arguments[0] == "prepare":
                    arguments = [*arguments, "--overwrite"]
                elif arguments[0] != "train":
                    provide(" ".join(arguments))
                if arguments[0] == "push" or "--push-to-hub" in arguments:
                    on_hub(arguments, environment)
                else:
                    assert main(quick(arguments)) == 0, (block.name, arguments)
    else:
        provide(block.code)
        for made in re.findall(r'\b(?:sample_corpus\(|train\("[^"]+", \w+,)\s*"(.+?)"', block.code):
            shutil.rmtree(made, ignore_errors=True)  # which another document has made
        # A model that no snippet pushes, one that is not downloaded, and an organisation that the loopback Hub knows.
        code = block.code.replace("org/tcmr-mosi", "runs/tcmr/seed-1111")
        code = code.replace("bert-base-uncased", "corpus/text_model").replace('"org/', '"lab/')
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, (block.name, done.stderr)
        # Processors differ in the last digits, which training enlarges.
        for ours, theirs in (
            zip(block.prints.splitlines(), done.stdout.splitlines(), strict=True) if block.prints else ()
        ):
            assert _NUMBER.sub("#", ours) == _NUMBER.sub("#", theirs), (block.name, done.stdout)
            values = [[float(value) for value in _NUMBER.findall(line)] for line in (ours, theirs)]
            assert values[0] == pytest.approx(values[1], abs=0.1), (block.name, done.stdout)


def on_hub(arguments: list[str], environment: dict[str, str]) -> None:
    """Run a command in a process whose Hub is the loopback one, which knows the organisation `lab`."""
    command = [sys.executable, "-m", "hf_msa_cli", *(argument.replace("org/", "lab/") for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (arguments, done.stdout + done.stderr)


# --- Executed with made recordings ---


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_reads_recordings_runs_with_made_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words come from the list where the environment names no Whisper model, see CONTRIBUTING.md."""
    monkeypatch.chdir(tmp_path)
    write_sample_corpus("corpus", preset="tiny", seed=7, version=1)
    lines = ["path,text,label,split"]
    for number, split in enumerate(["train"] * 8 + ["validation"] * 3 + ["test"] * 3):
        write_sound(Path("clips", f"{number}.wav"), channels=(0.1 + 0.05 * number,))
        lines.append(f"{number}.wav,a film {number},{number % 7 - 3},{split}")
    Path("clips", "list.csv").write_text("\n".join(lines), encoding="utf-8")
    shutil.copyfile("clips/0.wav", "clip.wav")
    whisper = os.environ.get("HF_MSA_WHISPER") if importlib.util.find_spec("faster_whisper") else None
    with LoopbackHub() as hub:
        environment = client_environment(hub, str(tmp_path / "home"))
        for block in (block for block in (*BASH, *PYTHON) if block.not_executed == RECORDINGS):
            for program, *arguments in commands(block.code) if block.language == "bash" else ():
                if "--transcribe" in arguments:
                    place = arguments.index("--transcribe")
                    arguments[place : place + 2] = ["--transcribe", whisper] if whisper else []
                if program != "hf-msa" or (arguments[0] == "demo" and "--export" not in arguments):
                    continue  # A page is served until it is stopped; tests/test_demo_page.py has one.
                if arguments[0] in ("extract", "train"):
                    shutil.rmtree(arguments[arguments.index("--output") + 1], ignore_errors=True)
                if arguments[0] == "demo":
                    on_hub(["push", "runs/mine/seed-1111", "org/tcmr-mine"], environment)
                    on_hub(arguments, environment)
                else:
                    assert main(quick(arguments)) == 0, (block.name, arguments)
            if block.language == "python":
                code = block.code.replace("org/tcmr-mine", "runs/mine/seed-1111")
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
                assert done.returncode == 0, (block.name, done.stderr)


# --- Executed with a tiny language model ---

_ASKS: dict[str, list[str]] = {
    "uacs": ["model.route=cascade", "model.expert_model=omni", "model.expert_adapter=true"],
    "omg": [
        "model.planner=mllm",
        "model.planner_model=omni",
        "model.num_candidates=2",
        "model.plan_max_new_tokens=64",
    ],
}
"""What recipes of the data sets say of their language model and those of the sample corpus do not, by method."""


def answer(number: int, body: dict[str, Any]) -> Reply:
    """A plan or a score, as it is asked."""
    said = "Entity: a woman; Action: praises it; Sentiment: positive" if "Entity" in str(body) else f"{number % 7 - 3}"
    return completion(said, [token(said, 0.6, 0.3)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_names_a_language_model_runs_with_a_tiny_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_MSA_ENDPOINT_TOKEN", "a key")
    tiny_thinker().save_pretrained("omni")
    tiny_mllm_processor().save_pretrained("omni")
    Path("Raw").mkdir()
    for rows in Path("data/mosi/data").glob("*.parquet"):
        with wave.open(f"Raw/{pq.read_table(rows, columns=['id'])['id'][0].as_py()}.wav", "wb") as file:
            file.setparams((1, 2, 16_000, 16_000, "NONE", ""))
            file.writeframes(bytes(32_000))
    server = Server()
    server.reply = answer
    names = {"HuggingFaceTB/SmolLM2-135M-Instruct": "omni", "org/name": "omni", "http://localhost:8000/v1": server.url}

    def run(*arguments: str) -> None:
        for name, stand_in in names.items():
            arguments = tuple(argument.replace(name, stand_in) for argument in arguments)
        if arguments[0] in ("train", "calibrate", "sample-corpus"):
            shutil.rmtree(arguments[arguments.index("--output") + 1], ignore_errors=True)
        if arguments[0] == "train":
            method = arguments[1].partition("/")[0]
            arguments = (*arguments[:2], "--set", *_ASKS[method], *arguments[2:])
        assert main(quick([*arguments])) == 0, arguments

    asks = [block for block in (*BASH, *PYTHON) if block.not_executed == LANGUAGE_MODEL]
    for block in sorted(asks, key=lambda block: (block.document, block.language)):
        if block.document == "docs/uacs.md" and "train uacs" not in block.code:
            run("train", "uacs/mosi", "--data", "data/mosi", "--output", "runs/uacs", "--seeds", "1111")
            run("evaluate", "runs/uacs", "--data", "data/mosi", "--protocol", "complete")
            for made, name in (("runs/uacs/seed-1111/adapter", "my-adapter"), ("runs/uacs", "runs/uacs_members")):
                shutil.copytree(made, name, dirs_exist_ok=True)
        if block.language == "python":
            code = block.code.replace("org/uacs-mosi", "runs/uacs/seed-1111")
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.returncode == 0, (block.name, done.stderr)
            continue
        for program, *arguments in commands(block.code):
            if program == "hf-msa":
                run(*arguments)
            elif program == "sqlite3":
                with closing(sqlite3.connect(arguments[0])) as database:
                    assert database.execute(arguments[1]).fetchone()
    server.close()
