"""Damaged files of every kind are read or refused in one sentence, in little time and memory; nothing else may happen."""

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mutations import mutated
from targets import TARGETS, file_of

SECONDS = 2.0
"""The most that one small file may take, on a machine that has other things to do."""
MEGABYTES = 150
"""The most by which all of them together may raise the peak of memory."""


def fuzz(name: str, folder: Path, count: int, seed: int) -> dict[str, int]:
    target, chance = TARGETS[name], random.Random(f"{name} {seed}")
    counts = {"tried": 0, "read": 0, "refused": 0}
    with file_of(target, folder) as read:
        for data in target.seeds:
            assert read(data) is not None, "the seeds are files that are read"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(count):
            data = mutated(chance.choice(target.seeds), target.seeds, target.tokens, chance)
            start = time.perf_counter()
            try:
                answer = read(data)
            except BaseException as error:
                (folder / "crash").write_bytes(data)
                raise AssertionError(f"{type(error).__name__} of {name} at {data[:2000]!r}") from error
            assert time.perf_counter() - start < SECONDS, data[:2000]
            counts["tried"] += 1
            counts["refused" if answer is None else "read"] += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < MEGABYTES, f"{grown:.0f} MB"
    return counts


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    counts = fuzz(name, tmp_path, 120, seed=1)
    assert counts["tried"] == 120 and counts["refused"] and counts["read"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_files_are_read_or_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    counts = fuzz(name, tmp_path, 5000, seed=2)
    with capsys.disabled():
        print(f"\n{name}: {counts['tried']} tried, {counts['refused']} refused, {counts['read']} read, 0 crashes")


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_coverage_guided_damage(tmp_path: Path, name: str) -> None:
    pytest.importorskip("atheris", reason="pip install 'hf-msa[fuzz]'")
    places = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("with_atheris.py")), name, "-runs=20000", "-max_total_time=120"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "DONE" in done.stderr, done.stderr[-3000:]
