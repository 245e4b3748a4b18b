"""Two real processes give the loss curve of one process by the same command, and agree on all that they keep."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

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


# What makes a run short, and the loss of a batch the mean of those of its parts: PGLH's reconstruction is a mean over the
# positions that are hidden in a batch, of which two parts have different numbers.
METHODS = {
    "tcmr": ["stages.polarity.num_train_epochs=1", "stages.regressor.num_train_epochs=1"],
    "pglh": [
        "model.dropout=0.0",
        "model.w_global=0.0",
        "model.w_mask=0.0",
        "stages.main.per_device_train_batch_size=16",
    ],
}
STEPS = {"tcmr": 6 + 6 + 2 * 12, "pglh": 2 * 6}


def losses(method: str, tmp_path: Path, corpus: Path, processes: int) -> list[float]:
    script, sizes, output = tmp_path / "launch.py", tmp_path / f"size-{processes}", tmp_path / f"run-{processes}"
    script.write_text(SCRIPT, encoding="utf-8")
    arguments = [
        *(str(script), str(sizes), "train", f"{method}/sample", "--data", str(corpus), "--output", str(output)),
        *("--set", "missing.selection_repeats=1", *METHODS[method]),
        "stages.all.per_device_train_batch_size=16",
        *("--num_train_epochs", "2", "--logging_strategy", "steps"),
        *("--logging_steps", "1", "--disable_tqdm", "true", "--use_cpu"),
        *(("--ddp_backend", "gloo") if processes > 1 else ()),
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
    assert run["devices"]["processes"] == processes
    expected = {"device": 16 // processes, "accumulation": 1, "processes": processes, "global": 16}
    assert all(stage["batch"] == expected for stage in run["stages"])
    return [entry["loss"] for stage in run["stages"] for entry in stage["history"] if "loss" in entry]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_give_the_curve_of_one(method: str, tiny_corpus: Path, tmp_path: Path) -> None:
    without_dropout(tiny_corpus)
    alone, together = (losses(method, tmp_path, tiny_corpus, processes) for processes in (1, 2))
    assert len(alone) == len(together) == STEPS[method]
    assert np.allclose(alone, together, rtol=2e-3, atol=1e-4), np.abs(np.subtract(alone, together)).max()


@pytest.mark.timeout(300)
def test_two_processes_validate_every_row_once(tiny_corpus: Path, tmp_path: Path) -> None:
    """32 rows in batches of 12: three for two processes. Nothing is learned, so the numbers have to be the same ones."""
    found = []
    for processes in (1, 2):
        output = tmp_path / f"run-{processes}"
        arguments = [
            *("train", "text/sample", "--data", str(tiny_corpus), "--output", str(output), "--num_train_epochs", "1"),
            *("--learning_rate", "0", "--text_learning_rate", "0", "--per_device_eval_batch_size", "12"),
            *("--use_cpu", "--disable_tqdm", "true"),
        ]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29614"]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "hf_msa_cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=140)
        assert done.returncode == 0, done.stderr[-3000:]
        run = json.loads((output / "seed-1111" / "run.json").read_text(encoding="utf-8"))
        assert run["devices"]["processes"] == processes
        (measured,) = [entry for entry in run["stages"][0]["history"] if "eval_loss" in entry]
        found.append(
            {name: value for name, value in measured.items() if "per_second" not in name and "runtime" not in name}
        )
    assert found[0] == pytest.approx(found[1], rel=1e-6)


# One row less than the corpus has, so that the processes' last batches differ in size.
TABLES_SCRIPT = """
import sys, torch
from accelerate import PartialState
from safetensors.torch import save_file
import hf_msa.training.stages as stages
from hf_msa.training.cmc.pseudo_labels import PseudoLabels
from hf_msa.training.cmc.stages import CmcUnimodalTrainer
from hf_msa_cli import main

load_split, fit, update = stages.load_split, CmcUnimodalTrainer.fit, PseudoLabels.update
updates = []

def one_row_less(data, split):
    rows = load_split(data, split)
    return rows.select(range(len(rows) - 1))

def noted(self, indices, probabilities, epoch):
    updates.append((len(self.soft), epoch, indices.clone()))
    update(self, indices, probabilities, epoch)

def kept(self):
    state = fit(self)
    tensors = {f"table/{name}": table.soft.clone() for name, table in self._labels.items()}
    tensors |= {f"teacher/{k}": v.clone() for k, v in self.teachers.branches.state_dict().items()}
    tensors |= {f"model/{k}": v.clone() for k, v in self.model.state_dict().items()}
    for rows in {rows for rows, _, _ in updates}:
        for epoch in (1, 2):
            seen = [i for r, e, i in updates if (r, e) == (rows, epoch)]
            tensors[f"seen/{rows}/{epoch}"] = torch.cat(seen)
    save_file(tensors, f"{sys.argv[1]}-{PartialState().process_index}")
    return state

stages.load_split, CmcUnimodalTrainer.fit, PseudoLabels.update = one_row_less, kept, noted
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.timeout(600)
def test_processes_agree_on_labels_and_teachers(tiny_corpus: Path, tmp_path: Path) -> None:
    """CMC's curve is another one with two processes: batch norm and the contrast see the rows of one process only.

    What has to hold is that every process ends with the same tables, teachers and weights, and that every row was seen
    once per epoch.
    """
    script, tables, output = tmp_path / "launch.py", tmp_path / "tables", tmp_path / "run"
    script.write_text(TABLES_SCRIPT, encoding="utf-8")
    arguments = [
        *(str(script), str(tables), "train", "cmc/sample", "--data", str(tiny_corpus), "--output", str(output)),
        *("--set", "stages.unimodal.num_train_epochs=2", "stages.all.per_device_train_batch_size=8"),
        *("--num_train_epochs", "1", "--disable_tqdm", "true", "--use_cpu"),
    ]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29612"]
    done = subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(f"{tables}-{rank}") for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for rows in (95, 31):
        for epoch in (1, 2):
            assert sorted(first[f"seen/{rows}/{epoch}"].tolist()) == list(range(rows))
    products = load_file(output / "seed-1111" / "stages" / "unimodal" / "pseudo_labels.safetensors")
    assert torch.equal(products["train_history"][-1].long(), first["table/train"].argmax(-1))
    assert (output / "seed-1111" / "run.json").is_file()


OMG_SCRIPT = """
import sys, torch
from pathlib import Path
from accelerate import PartialState
from safetensors.torch import save_file
import hf_msa.training.stages as stages
import hf_msa.training.omg.stages as stages_omg
from hf_msa.training.omg.plans import PlannedRows
from hf_msa.training.omg.stages import OmgTrainer
from hf_msa_cli import main

load_split, fit, fit_planner, fill = stages.load_split, OmgTrainer.fit, stages_omg.fit_planner, PlannedRows.fill
kept = {}

def one_row_less(data, split):
    rows = load_split(data, split)
    return rows.select(range(len(rows) - 1))

def once(*args):
    assert PartialState().is_main_process
    return fit_planner(*args)

def filled(self, wanted, what):
    assert PartialState().is_main_process
    fill(self, wanted, what)

def keep(self):
    stage, base = Path(self.args.output_dir).name, self.model.knowledge_base
    if base is not None:
        kept[f"{stage}/keys_before"] = self.model.retriever.keys(base).clone()
    state = fit(self)
    kept.update({f"{stage}/{k}": v.clone() for k, v in self.model.state_dict().items()})
    if base is not None:
        kept[f"{stage}/keys"] = self.model.retriever.keys(base).clone()
    save_file(kept, f"{sys.argv[1]}-{PartialState().process_index}")
    return state

stages.load_split, OmgTrainer.fit, stages_omg.fit_planner, PlannedRows.fill = one_row_less, keep, once, filled
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.timeout(600)
def test_processes_agree_on_every_stage_of_omg(tiny_corpus: Path, tmp_path: Path) -> None:
    """OMG-Agent's curve is another one with two processes: its losses are means over what is missing in a part of a batch.

    The planner is fitted and plans are made by one process; no parameter goes without a gradient, whatever is missing.
    """
    script, tables, output = tmp_path / "launch.py", tmp_path / "tables", tmp_path / "run"
    script.write_text(OMG_SCRIPT, encoding="utf-8")
    epochs = [f"stages.{name}.num_train_epochs=1" for name in ("vae", "classifier_after")]
    arguments = [
        *(str(script), str(tables), "train", "omg/sample", "--data", str(tiny_corpus), "--output", str(output)),
        *("--set", *epochs, "model.num_inference_steps=2", "stages.all.per_device_train_batch_size=4"),
        *("missing.selection_repeats=1", "--num_train_epochs", "2", "--disable_tqdm", "true", "--use_cpu"),
    ]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29613"]
    done = subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(f"{tables}-{rank}") for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    final = load_file(output / "seed-1111" / "model.safetensors")
    assert all(torch.equal(first[f"classifier_after/{name}"], value) for name, value in final.items())
    assert not torch.equal(first["main/keys"], first["main/keys_before"])
