"""A run that is killed and started again ends with the same weights, bit for bit, as an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SETTINGS = [
    *(
        "--set",
        "missing.selection_repeats=1",
        "stages.polarity.num_train_epochs=2",
        "stages.regressor.num_train_epochs=2",
    ),
    *("--num_train_epochs", "3", "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "4"),
    *("--eval_steps", "4", "--disable_tqdm", "true", "--use_cpu"),
]


def command(corpus: Path, output: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "hf_msa_cli",
        "train",
        "tcmr/sample",
        "--data",
        str(corpus),
        "--output",
        str(output),
        *SETTINGS,
    ]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "seed-1111" / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(tiny_corpus, output), check=True, capture_output=True, timeout=280)
    return weights(output)


def kill_when(process: subprocess.Popen[bytes], folder: Path, pattern: str, seconds: float = 200) -> bool:
    """SIGKILL the process group as soon as a file matches; False if the process ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(folder.glob(pattern)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    raise AssertionError(f"{pattern} did not appear in {seconds} s")


@pytest.mark.timeout(600)
def test_killed_in_every_stage(tiny_corpus: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    """Killed inside the classifier, the regressor, twice inside the main stage (once in each phase of an epoch)."""
    moments = [
        "seed-1111/stages/polarity/checkpoint-4/complete.json",
        "seed-1111/stages/regressor/checkpoint-*/model.safetensors",  # while a checkpoint is being written
        "seed-1111/stages/main/checkpoint-4/complete.json",  # in phase B of the second epoch's batches or before
        "seed-1111/stages/main/checkpoint-8/trainer_state.json",
        "seed-1111/stages/main/checkpoint-12/complete.json",
    ]
    kills = 0
    for moment in moments:
        process = subprocess.Popen(
            command(tiny_corpus, tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        kills += kill_when(process, tmp_path, moment)
    assert kills == len(moments), "every kill must have hit a running process"
    subprocess.run(command(tiny_corpus, tmp_path), check=True, capture_output=True, timeout=280)
    resumed = weights(tmp_path)
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())
