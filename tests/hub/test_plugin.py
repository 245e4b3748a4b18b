"""A package of somebody else adds a method, a protocol, a data set and a tool: installed into a fresh environment, used."""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from hf_msa.data.sample_corpus import write_sample_corpus
from loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "fixtures" / "plugin"
REPO = "lab/gated-sample"
# What a stranger does with the pushed model, on a machine without hf_msa and without the package.
RELOAD = """
import sys
sys.modules["hf_msa"] = sys.modules["hf_msa_gated"] = None
from transformers import AutoModelForSequenceClassification, AutoProcessor
name = sys.argv[1]
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)
print(type(model).__name__, tuple(model(**processor(["a film", "no"])).logits.shape))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a fresh environment that has what this one has, and the package."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    found = home / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([found, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    inherited = [str(ROOT / "src"), *site.getsitepackages()]
    (packages / "inherited.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in inherited))
    # Building leaves files behind in the sources.
    source = shutil.copytree(PLUGIN, home / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", found, "install", "--quiet", "--no-deps", "--no-index"]
        + ["--no-build-isolation", "--no-cache-dir", source],
        check=True,
    )
    return found


@pytest.mark.slow
def test_train_evaluate_push_reload(python: Path, tmp_path: Path, loopback_hub: LoopbackHub) -> None:
    corpus = write_sample_corpus(tmp_path / "corpus", preset="tiny", seed=5, version=1)
    run = tmp_path / "runs" / "seed-3"

    def call(*arguments: object) -> str:
        done = subprocess.run(
            [python, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "recipes:   gated/sample" in call("-m", "hf_msa_cli", "recipes", "--method", "gated")
    data = ("--data", corpus)
    call("-m", "hf_msa_cli", "train", "gated/sample", *data, "--output", run.parent, "--seeds", 3, "--use_cpu")
    silence = ("--protocol", "silence", "--rates", 0, 0.9)
    assert "gated" in call("-m", "hf_msa_cli", "evaluate", run, *data, *silence)
    results = json.loads((run / "results.json").read_text())
    assert results["method"] == "gated" and results["protocol"]["name"] == "silence"
    assert results["protocol"]["rates"] == [0, 0.9]
    assert "GATED" in (run / "README.md").read_text()
    assert "--digits" in call("-m", "hf_msa_cli", "analyze", "openness", "--help")
    call("-m", "hf_msa_cli", "analyze", "openness", run, "--digits", 3)
    assert (run / "analysis" / "openness" / "openness.csv").read_text().count("\n") == 4
    call("-m", "hf_msa_cli", "prepare", "street", "--source", corpus, "--output", "street")
    assert "# Street interviews" in (tmp_path / "street" / "README.md").read_text()
    assert "logits equal" in call("-m", "hf_msa_cli", "push", run, REPO)
    code = {name: content for name, content in loopback_hub.files(REPO).items() if name.endswith(".py")}
    assert {"modeling_gated.py", "configuration_gated.py", "modeling_msa.py"} <= set(code)
    assert "GatedForSentimentAnalysis (2, 1)" in call("-c", RELOAD, REPO)
