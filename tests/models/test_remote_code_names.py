"""Checkpoints in folders of one name, in one process that has neither hf_msa nor a plugin: each runs its own code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hf_msa
from hf_msa.methods import METHODS
from hf_msa.models.modeling_msa import bundle_code
from tiny import TINY_CONFIGS, tiny_processor

SOURCE = Path(hf_msa.__file__).parents[1]
# Loads in the given order, and says whose code it was that ran.
CHILD = """
import json, sys
sys.modules["hf_msa"] = sys.modules["hf_msa_gated"] = None
from transformers import AutoModel, AutoProcessor
found = []
for folder in sys.argv[1:]:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    code = [sys.modules[type(part).__module__] for part in (model, processor, processor.feature_extractor)]
    assert model(**processor(["a film"])).logits.shape == (1, 1)
    found.append([type(model).__name__, [getattr(module, "WHOSE", None) for module in code]])
print(json.dumps(found))
"""
# A plugin registers when it is imported, which is not for this process.
SAVE_PLUGIN = """
import sys
from hf_msa_gated import GatedConfig, GatedForSentimentAnalysis
from tiny import LENGTHS, WIDTHS, tiny_backbone, tiny_processor
config = GatedConfig(text_config=tiny_backbone(), **WIDTHS, **LENGTHS)
GatedForSentimentAnalysis(config).save_pretrained(sys.argv[1])
tiny_processor(config).save_pretrained(sys.argv[1])
"""


def run(code: str, *arguments: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_runs_its_own_code(tmp_path: Path) -> None:
    ours, changed, plugin = (tmp_path / name / "seed-1111" for name in ("ours", "changed", "plugin"))
    for folder, whose in ((ours, "ours"), (changed, "changed")):
        model = METHODS["tcmr"].model_class(TINY_CONFIGS["tcmr"]()).eval()
        model.save_pretrained(folder)
        tiny_processor(model.config).save_pretrained(folder)
        # The same method as another version of hf_msa would save it: the configuration's own code is the same.
        for name in ("modeling_tcmr.py", "processing_msa.py", "feature_extraction_msa.py"):
            (folder / name).write_text(f"{(folder / name).read_text()}\nWHOSE = {whose!r}\n")
        bundle_code(folder, "configuration_tcmr")
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (SOURCE, tests / "models", tests / "fixtures" / "plugin")))
    run(SAVE_PLUGIN, plugin, PYTHONPATH=path)

    order = (ours, plugin, changed, ours)
    found = json.loads(run(CHILD, *order, HF_MODULES_CACHE=str(tmp_path / "modules")))
    whose = {ours: ["ours"] * 3, changed: ["changed"] * 3, plugin: [None] * 3}
    names = {
        ours: "TcmrForSentimentAnalysis",
        changed: "TcmrForSentimentAnalysis",
        plugin: "GatedForSentimentAnalysis",
    }
    assert found == [[names[folder], whose[folder]] for folder in order]


def test_the_hash_is_that_of_the_code(tmp_path: Path) -> None:
    model = METHODS["text"].model_class(TINY_CONFIGS["text"]())
    for name in ("a", "b", "a"):
        model.save_pretrained(tmp_path / name)
    a, b = ((tmp_path / name / "configuration_text.py").read_text() for name in "ab")
    assert a == b and a.count("# The code of this checkpoint: ") == 1
    own = SOURCE / "hf_msa" / "models" / "configuration_text.py"
    assert a.startswith(own.read_text())
    (tmp_path / "b" / "msa_schema.py").write_text("")
    bundle_code(tmp_path / "b", "configuration_text")
    assert (tmp_path / "b" / "configuration_text.py").read_text() != a
