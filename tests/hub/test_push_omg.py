"""What lies beside OMG-Agent's weights goes to the Hub and comes back from it, its knowledge base when that is needed."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from transformers import AutoModel, AutoProcessor

from hf_msa.hub.push import _contents, push
from hf_msa.models.modeling_omg import OmgForSentimentAnalysis
from hf_msa.models.omg_knowledge_base import KnowledgeBase
from hf_msa.models.omg_observation import observe_rows
from hf_msa.training.omg.planners import fit_light_planner
from loopback_hub import OWNER, LoopbackHub
from test_push import WORDS, save_run

REPO = f"{OWNER}/omg-mosi"
BESIDE = {"knowledge_base.json", "entries.safetensors"}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers


def made_rows() -> list[dict[str, object]]:
    generator = np.random.default_rng(0)
    return [
        {
            "text": " ".join(generator.choice(WORDS[5:], 5)),
            "audio": generator.normal(size=(6, 5)).astype(np.float32),
            "vision": generator.normal(size=(4, 3)).astype(np.float32),
            **({"audio_present": False} if index == 1 else {}),
            **({"text": ""} if index == 2 else {}),
        }
        for index in range(4)
    ]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = save_run(tmp_path / "seed-1", method="omg")
    model = OmgForSentimentAnalysis.from_pretrained(folder, num_inference_steps=2, top_k=2).eval()
    # A fresh executor does not read its evidence.
    for name, parameter in model.named_parameters():
        if "adapters" in name and ".out." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    processor, rows = AutoProcessor.from_pretrained(folder), made_rows()
    encode = functools.partial(model.embed_texts, processor.tokenizer)
    model.set_planner(fit_light_planner(observe_rows(rows), [-1.0, 2.0, 0.5, 1.0], encode, model.config))
    draw = torch.Generator().manual_seed(1)
    plans, observations = (torch.randn(5, model.config.plan_width, generator=draw) for _ in range(2))
    values = {
        name: torch.randn(5, (model.config.positions(name) + 1) // 2, 32, generator=draw)
        for name in model.config.modalities
    }
    model.knowledge_base = KnowledgeBase([f"train-{index}" for index in range(5)], plans, observations, values)
    model.save_pretrained(folder)
    return folder


def test_from_the_hub_it_plans_retrieves_and_predicts_the_same(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    api = HfApi()
    api.create_repo(REPO)
    operations = [CommitOperationAdd(path, content) for path, content in _contents(run_folder, REPO).items()]
    api.create_commit(REPO, operations, commit_message="all of it")
    model, processor, rows = AutoModel.from_pretrained(REPO), AutoProcessor.from_pretrained(REPO), made_rows()
    assert loopback_hub.count("GET", "knowledge_base") == 0, "it is fetched when it is needed"
    here = OmgForSentimentAnalysis.from_pretrained(run_folder)
    batch = processor.from_rows(rows)
    expected, out = (one.predict_rows(batch, rows, processor) for one in (here, model))
    assert torch.equal(out.logits, expected.logits) and torch.equal(out.planned_score, expected.planned_score)
    made, again = (one.generate_missing(batch, rows, processor) for one in (here, model))
    assert again.evidence_ids == made.evidence_ids and len(made.evidence_ids[1]) == 2
    assert loopback_hub.count("GET", "entries.safetensors") == 1
    here.knowledge_base = None
    here._origin = None
    assert not torch.allclose(here.predict_rows(batch, rows, processor).logits[1], expected.logits[1], atol=1e-6)


def test_pushing_verifies_it_in_a_clean_process(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    pushed = push(run_folder, REPO)
    assert pushed.verified
    files = set(loopback_hub.files(REPO))
    assert {f"knowledge_base/{name}" for name in BESIDE} | {"planner.json", "modeling_omg.py"} <= files


def test_without_hf_msa_it_plans_and_retrieves(
    loopback_hub: LoopbackHub, run_folder: Path, run_python: Callable[..., str], tmp_path: Path
) -> None:
    rows = made_rows()
    torch.save(rows, tmp_path / "rows.pt")
    model, processor = OmgForSentimentAnalysis.from_pretrained(run_folder), AutoProcessor.from_pretrained(run_folder)
    made = model.generate_missing(processor.from_rows(rows), rows, processor)
    found = json.loads(
        run_python(
            f"""
import json, torch
from transformers import AutoModel, AutoProcessor
rows = torch.load({str(tmp_path / "rows.pt")!r}, weights_only=False)
model = AutoModel.from_pretrained({str(run_folder)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(run_folder)!r}, trust_remote_code=True)
made = model.generate_missing(processor.from_rows(rows), rows, processor)
plans = [plan.plan.to_text() for plan in made.plans]
print(json.dumps([made.class_logits.tolist(), made.evidence_ids, plans]))
""",
            without_hf_msa=True,
            OMP_NUM_THREADS=str(torch.get_num_threads()),
        ).splitlines()[-1]
    )
    assert torch.equal(torch.tensor(found[0]), made.class_logits)
    assert made.plans is not None
    assert found[1:] == [made.evidence_ids, [plan.plan.to_text() for plan in made.plans]]


def test_tables_of_other_folders_stay_here(run_folder: Path) -> None:
    """A data set that somebody saved into the run's folder holds words that must not be passed on."""
    other = run_folder / "completed"
    other.mkdir()
    for name in BESIDE:
        (other / name).write_text("words of a data set")
    published = set(_contents(run_folder, REPO))
    assert {f"knowledge_base/{name}" for name in BESIDE} <= published
    assert not any(path.startswith("completed") for path in published)


def test_no_folder_of_this_machine_is_published(run_folder: Path) -> None:
    file = run_folder / "planner.json"
    values = {
        "kind": "mllm",
        "model": "/home/somebody/omni-7b",
        "adapter": None,
        "centering": None,
        "verbalizer": None,
    }
    file.write_text(json.dumps(values))
    content = _contents(run_folder, REPO)["planner.json"]
    assert isinstance(content, bytes) and json.loads(content) == values | {"model": "omni-7b"}
