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
    *("--num_train_epochs", "3", "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "4"),
    *("--eval_steps", "4", "--disable_tqdm", "true", "--use_cpu"),
]
# Per method what makes its run short, and the files whose appearance it is killed by, one kill after the other.
METHODS = {
    "tcmr": (
        ["stages.polarity.num_train_epochs=2", "stages.regressor.num_train_epochs=2"],
        [
            "polarity/checkpoint-4/complete.json",
            "regressor/checkpoint-*/model.safetensors",  # while a checkpoint is being written
            "main/checkpoint-4/complete.json",  # in phase B of the second epoch's batches or before
            "main/checkpoint-8/trainer_state.json",
            "main/checkpoint-12/complete.json",
        ],
    ),
    "pglh": (
        ["stages.main.per_device_train_batch_size=8"],
        [
            "main/checkpoint-4/complete.json",
            "main/checkpoint-12/model.safetensors",  # while a checkpoint is being written
            "main/checkpoint-20/complete.json",
        ],
    ),
    "cmc": (
        ["stages.unimodal.num_train_epochs=3", "stages.all.per_device_train_batch_size=8"],
        [
            "unimodal/text_states_train.safetensors",  # before there is any checkpoint
            "unimodal/checkpoint-8/complete.json",  # in the middle of an epoch
            "unimodal/checkpoint-16/trainer_state.json",  # before the tables of this checkpoint are there
            "unimodal/checkpoint-24/complete.json",  # at the end of an epoch
            "main/checkpoint-8/complete.json",
        ],
    ),
    "omg": (
        [
            *("stages.vae.num_train_epochs=2", "stages.classifier_after.num_train_epochs=2"),
            "model.num_inference_steps=2",
            "stages.all.per_device_train_batch_size=16",
        ],
        [
            "plans/text_states_train.safetensors",  # before there is a planner
            "plans/planner.json",  # before there is a plan
            "vae/checkpoint-8/complete.json",
            "vae/stage.json",  # before there is a knowledge base
            "main/checkpoint-4/complete.json",  # in the middle of an epoch
            "main/checkpoint-12/trainer_state.json",  # before the checkpoint counts
            "classifier_after/checkpoint-4/complete.json",
        ],
    ),
}


def command(method: str, corpus: Path, output: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "hf_msa_cli", "train", f"{method}/sample"),
        *("--data", str(corpus), "--output", str(output), *SETTINGS),
        *("--set", "missing.selection_repeats=1", *METHODS[method][0]),
    ]


def results(output: Path) -> dict[str, torch.Tensor]:
    """The final weights and every table that a stage gives."""
    run = output / "seed-1111"
    tables = {
        f"{file.parent.name}/{name}": value
        for file in run.glob("stages/*/*.safetensors")
        for name, value in load_file(file).items()
    }
    return load_file(run / "model.safetensors") | tables


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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS)
def test_killed_in_every_stage(method: str, tiny_corpus: Path, tmp_path: Path) -> None:
    subprocess.run(command(method, tiny_corpus, tmp_path / "whole"), check=True, capture_output=True, timeout=280)
    undisturbed = results(tmp_path / "whole")
    broken, moments = tmp_path / "broken", METHODS[method][1]
    kills = 0
    for moment in moments:
        process = subprocess.Popen(
            command(method, tiny_corpus, broken),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        kills += kill_when(process, broken, f"seed-1111/stages/{moment}")
    assert kills == len(moments), "every kill must have hit a running process"
    subprocess.run(command(method, tiny_corpus, broken), check=True, capture_output=True, timeout=280)
    resumed = results(broken)
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())
