"""A tiny run is killed, and its disk is full, at very many points: it always ends with the same bits, or in one sentence."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

STEPS = [
    *("--num_train_epochs", "2", "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "2"),
    *("--eval_steps", "2", "--save_total_limit", "2", "--disable_tqdm", "true", "--use_cpu"),
]
RUNTIMES = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
POINTS = 40
# Forks for each run, as importing takes far longer than it. A run ends itself by SIGKILL, or cannot write any more, when the
# Nth file of it is opened for writing, moved or removed; or ends after some seconds, wherever it is.
SERVER = """
import errno, json, os, signal, sys
from hf_msa_cli import main
import hf_msa.cli, hf_msa.evaluation.checkpoints, hf_msa.hub.cards, hf_msa.training.stages

def child(way, limit, seconds, root, counter, log, arguments):
    seen = 0

    def touched(path):
        nonlocal seen
        if not isinstance(path, (str, bytes, os.PathLike)) or not os.fsdecode(path).startswith(root):
            return
        seen += 1
        if seen >= limit > 0:
            if way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))

    def audited(event, given):
        if event == "open" and given[1] and any(letter in str(given[1]) for letter in "wax+"):
            touched(given[0])
        elif event == "os.rename":
            touched(given[1])
        elif event in ("os.remove", "os.rmdir") and way == "kill":
            touched(given[0])

    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if seconds:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    sys.addaudithook(audited)
    status = main(arguments)
    signal.setitimer(signal.ITIMER_REAL, 0)
    with open(counter, "w") as file:
        file.write(str(seen))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try:
            child(**json.loads(line))
        except BaseException:
            import traceback
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILLED, TIMED = -signal.SIGKILL, -signal.SIGALRM


@dataclasses.dataclass
class Runs:
    """Gives the training command, again and again."""

    server: "subprocess.Popen[str]"
    corpus: Path

    def __call__(self, output: Path, way: str = "kill", limit: int = 0, seconds: float = 0.0) -> tuple[int, str]:
        """Run it to its end, or to that of the process: its status, and what it wrote to the terminal."""
        output.parent.mkdir(exist_ok=True)
        arguments = ["train", "text/sample", "--data", str(self.corpus), "--output", str(output), *STEPS]
        log = output.parent / "log"
        job = {"way": way, "limit": limit, "seconds": seconds, "root": str(output), "log": str(log)}
        job |= {
            "counter": str(output.parent / "count"),
            "arguments": [*arguments, "--set", "missing.selection_repeats=1"],
        }
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline()), log.read_text(encoding="utf-8")

    def to_the_end(self, output: Path) -> None:
        """Give it once more, which has to finish it."""
        status, text = self(output)
        assert status == 0, text[-3000:]


@pytest.fixture(scope="module")
def runs(tiny_corpus: Path) -> Iterator[Runs]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, **pipes) as server:
        yield Runs(server, tiny_corpus)


def facts(output: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, object]], set[str]]:
    """Weights, history, and names of all files of a finished run."""
    folder = output / "seed-1111"
    trained = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    history = [{k: v for k, v in e.items() if k not in RUNTIMES} for s in trained["stages"] for e in s["history"]]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return load_file(folder / "model.safetensors"), history, names


def same(one: Path, other: Path) -> bool:
    (weights, history, names), (others, other_history, other_names) = facts(one), facts(other)
    assert names == other_names, names ^ other_names
    assert history == other_history
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run that nothing happens to, and how many writes it makes."""
    output = tmp_path_factory.mktemp("whole") / "run"
    runs.to_the_end(output)
    return output, int((output.parent / "count").read_text())


@pytest.mark.timeout(1800)
def test_killed_at_many_writes(runs: Runs, whole: tuple[Path, int], tmp_path: Path) -> None:
    """Every run is killed at one write, when it is given again at another one, and given once more to the end."""
    undisturbed, writes = whole
    draw = random.Random(0)
    points = sorted(draw.sample(range(1, writes + 1), min(POINTS, writes)))
    found: Counter[int] = Counter()
    for point in points:
        output = tmp_path / str(point) / "run"
        for limit in (point, draw.randint(1, writes)):
            status, text = runs(output, limit=limit)
            assert status in (KILLED, 0), text[-3000:]
            found[status] += 1
        runs.to_the_end(output)
        assert same(output, undisturbed), point
    print(f"{writes} writes, {len(points)} runs, {found[KILLED]} kills, {found[0]} ended before; all ends the same")
    assert found[KILLED] >= len(points)


@pytest.mark.timeout(1200)
def test_killed_at_many_moments(runs: Runs, whole: tuple[Path, int], tmp_path: Path) -> None:
    """Ended by the clock, wherever that is: while other than Python's own means write weights, for example."""
    undisturbed, _ = whole
    started = time.monotonic()
    runs.to_the_end(tmp_path / "timed" / "run")
    seconds = time.monotonic() - started
    found: Counter[int] = Counter()
    for number in range(POINTS):
        output = tmp_path / str(number) / "run"
        status, text = runs(output, seconds=seconds * (number + 0.5) / POINTS)
        assert status in (TIMED, 0), text[-3000:]
        found[status] += 1
        runs.to_the_end(output)
        assert same(output, undisturbed), number
    print(f"{POINTS} moments, {found[TIMED]} ended there; all ends the same")
    assert found[TIMED] >= POINTS // 2


@pytest.mark.timeout(1800)
def test_a_disk_that_is_full_at_many_writes(runs: Runs, whole: tuple[Path, int], tmp_path: Path) -> None:
    """From one write on none succeeds: one sentence, status 2, and the same command ends with the same bits."""
    undisturbed, writes = whole
    points = sorted(random.Random(1).sample(range(1, writes + 1), min(POINTS, writes)))
    sentences: Counter[str] = Counter()
    for point in points:
        output = tmp_path / str(point) / "run"
        status, text = runs(output, "full", point)
        if status != 0:
            assert status == 2 and "Traceback" not in text, (point, text[-3000:])
            # The log is in two streams, whose lines come in any order.
            (said,) = (line for line in text.split("\n") if line.startswith("hf-msa train: "))
            sentences[said.replace(str(output), "OUTPUT")] += 1
        runs.to_the_end(output)
        assert same(output, undisturbed), point
    print(f"{writes} writes, {len(points)} full disks: {dict(sentences)}")
    expected = "hf-msa train: There is no space left to write 'OUTPUT'; free some and run the same command again."
    assert set(sentences) == {expected}
