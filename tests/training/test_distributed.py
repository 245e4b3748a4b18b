"""Two real processes give the loss curve of one process at the same global batch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, torch.distributed as dist
from hf_msa_cli import main
status = main(sys.argv[2:])
if dist.is_initialized() and dist.get_rank() == 0:
    open(sys.argv[1], "w").write(str(dist.get_world_size()))
sys.exit(status)
"""


def without_dropout(corpus: Path) -> None:
    """Each process draws dropout of its own; the comparison is about the arithmetic."""
    file = corpus / "text_model" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps(config), encoding="utf-8")


def losses(tmp_path: Path, corpus: Path, processes: int, batch: int) -> list[float]:
    script, sizes, output = tmp_path / "launch.py", tmp_path / f"size-{processes}", tmp_path / f"run-{processes}"
    script.write_text(SCRIPT, encoding="utf-8")
    arguments = [
        *(str(script), str(sizes), "train", "tcmr/sample", "--data", str(corpus), "--output", str(output)),
        *(
            "--set",
            "missing.selection_repeats=1",
            "stages.polarity.num_train_epochs=1",
            "stages.regressor.num_train_epochs=1",
        ),
        f"stages.all.per_device_train_batch_size={batch}",
        *("--num_train_epochs", "2", "--logging_strategy", "steps", "--logging_steps", "1"),
        *("--disable_tqdm", "true", "--use_cpu", "--ddp_find_unused_parameters", "true"),
    ]
    launcher = (
        []
        if processes == 1
        else ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "29611"]
    )
    done = subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    if processes > 1:
        assert sizes.read_text() == str(processes), "the launcher must really have started that many processes"
    run = json.loads((output / "seed-1111" / "run.json").read_text(encoding="utf-8"))
    return [entry["loss"] for stage in run["stages"] for entry in stage["history"] if "loss" in entry]


@pytest.mark.timeout(600)
def test_two_processes_give_the_curve_of_one(tiny_corpus: Path, tmp_path: Path) -> None:
    without_dropout(tiny_corpus)
    alone, together = losses(tmp_path, tiny_corpus, 1, 16), losses(tmp_path, tiny_corpus, 2, 8)
    assert len(alone) == len(together) == 6 + 6 + 2 * 12
    assert np.allclose(alone, together, rtol=2e-3, atol=1e-4), np.abs(np.subtract(alone, together)).max()
