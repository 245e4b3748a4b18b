"""A checkpoint of a method that is not registered: tested with its own code where that is asked for, and not otherwise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_msa.data.sample_corpus import write_sample_corpus

PLUGIN = Path(__file__).parents[1] / "fixtures" / "plugin"
SAVE = """
import sys
sys.path.insert(0, sys.argv[1])
from transformers import AutoTokenizer
import hf_msa_gated
from hf_msa import MsaFeatureExtractor, MsaProcessor
from hf_msa.data.loading import load_split
from hf_msa.data.rows import MsaRows
from hf_msa.methods import METHODS
data, folder = sys.argv[2:]
tokenizer = AutoTokenizer.from_pretrained(data + "/text_model")
rows = MsaRows(load_split(data, "train"), "train", tokenizer, 50)
widths = {f"{name}_dim": rows[0][name].shape[1] for name in ("audio", "vision")}
gated = METHODS["gated"]
model = gated.model_class.from_text_pretrained(data + "/text_model", gated.config_class(**widths))
MsaProcessor(MsaFeatureExtractor(**widths), tokenizer, text_max_length=50).save_pretrained(folder)
model.save_pretrained(folder)
"""


@pytest.mark.slow
def test_code_of_a_checkpoint_runs_when_it_is_trusted_alone(tmp_path: Path) -> None:
    data, folder = write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=7, version=1), tmp_path / "gated"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "CUDA_VISIBLE_DEVICES": ""}

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)

    saved = call("-c", SAVE, PLUGIN, data, folder)
    assert saved.returncode == 0, saved.stderr
    evaluate = ("-m", "hf_msa_cli", "evaluate", folder, "--data", data, "--protocol", "complete")
    refused = call(*evaluate)
    assert refused.returncode == 2 and not (tmp_path / "modules").exists()
    *_, sentence = refused.stderr.splitlines()
    assert "brings code of its own, which is run with --trust-remote-code alone" in sentence
    done = call(*evaluate, "--trust-remote-code")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    assert results["method"] == "gated" and results["dataset"]["n"] == 32
