"""The cards: one is pinned whole, the rest is what must hold for every card."""

import json
import math
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st

from hf_msa.errors import MsaError
from hf_msa.evaluation.metrics import CLASS_METRICS, family_metrics
from hf_msa.hub.cards import (
    cards_folder,
    find_results,
    find_subset_results,
    load_facts,
    render_card,
    without_local_paths,
    write_card,
)
from hf_msa.methods import METHODS
from hf_msa.models.configuration_tcmr import TcmrConfig
from hf_msa.models.configuration_text import TextConfig
from loopback_hub import LoopbackHub
from made_omg import write_checkpoint, write_clips
from nonempty import some
from tiny import TINY_CONFIGS, tiny_processor

RUN: dict[str, Any] = {
    "schema_version": 1,
    "method": "text",
    "recipe": "text/mosi",
    "ablation": None,
    "seed": 1112,
    "dataset": {
        "name": "mosi",
        "label_family": "mosi",
        "language": "en",
        "license": "For research only.",
        "source": "MMSA pickle",
        "homepage": "https://example.org/mosi",
        "citation": "@misc{mosi, title = {MOSI}}",
        "n": {"train": 1284, "validation": 229, "test": 686},
    },
    "selection": {
        "split": "validation",
        "metric": "eval_loss",
        "protocol": {"name": "frame", "rate": 0.5, "seed": 1111},
        "repeats": 5,
        "stage": "main",
        "epoch": 7.0,
        "step": 147,
        "value": 1.0871,
    },
    "stages": [{"name": "main", "seconds": 310.4, "epochs": 12}],
    "versions": {"hf_msa": "0.1.0", "torch": "2.13.0"},
    "text_model": "google-bert/bert-base-uncased",
    "flags": {"logging_dir": "/home/someone/logs"},
}


def block(mae: float, share: float | None, **spread: float | None) -> dict[str, dict[str, Any]]:
    """Estimates of all metrics: the error, and one share that stands for everything else."""
    rest = {"std": None, "n": 2, "ci_low": None, "ci_high": None, **spread}
    return {name: {"mean": mae if name == "mae" else share, **rest} for name in family_metrics("mosi")}


RESULTS: dict[str, Any] = {
    "schema_version": 2,
    "language_model_input": None,
    "method": "text",
    "ablation": None,
    "model": "/home/someone/runs/text",
    "recipe": "text/mosi",
    "oracle": False,
    "dataset": {"name": "mosi", "split": "test", "n": 686, "label_family": "mosi", "fingerprint": "abc"},
    "protocol": {"name": "frame", "rates": [0.0, 0.9], "mask_seeds": [0]},
    "runs": [
        {
            "training_seed": seed,
            "mask_seed": 0,
            "rate": rate,
            "metrics": {name: mae if name == "mae" else mae / 2 for name in family_metrics("mosi")},
            "realised": {},
        }
        for seed, rate, mae in ((1111, 0.0, 0.8), (1111, 0.9, 1.4), (1112, 0.0, 0.9), (1112, 0.9, 1.5))
    ],
    "per_rate": [{"rate": 0.0, "metrics": block(0.85, 0.425)}, {"rate": 0.9, "metrics": block(1.45, None)}],
    "mean_over_rates": block(1.15, 0.575, std=0.0707, ci_low=0.5, ci_high=0.625),
    "bootstrap": {"resamples": 10, "seed": 0, "confidence": 0.95},
    "selection": [{**RUN["selection"], "epoch": 6}, RUN["selection"]],
    "versions": {},
    "config": {},
    "seconds": 12.0,
}

CONFIG = TextConfig(text_config={"model_type": "bert", "hidden_size": 8}, audio_dim=5)


def render(run: dict[str, Any] = RUN, results: dict[str, Any] | None = RESULTS, **options: Any) -> str:
    return render_card(run, results, load_facts(run["method"]), options.pop("config", CONFIG), **options)


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


CARD = """\
---
base_model: google-bert/bert-base-uncased
datasets:
- mosi
language: en
library_name: transformers
license: apache-2.0
metrics:
- accuracy
- f1
- mae
- pearsonr
tags:
- hf_msa
- multimodal-sentiment-analysis
- missing-modalities
- text
model-index:
- name: text-mosi
  results:
  - task:
      type: text-classification
      name: Multimodal sentiment analysis
    dataset:
      name: mosi
      type: mosi
      split: test
      args:
        protocol: frame
        rates:
        - 0.0
        - 0.9
        training_seeds:
        - 1111
        - 1112
        mask_seeds:
        - 0
    metrics:
    - type: accuracy
      value: 0.575
      name: Acc-7 (mean over the missing rates)
<<.*>>
    - type: mae
      value: 1.15
      name: MAE (mean over the missing rates)
    - type: pearsonr
      value: 0.575
      name: Corr (mean over the missing rates)
---

# Text-only baseline on mosi

<<A BERT-family text encoder.*>>

Trained on **mosi** with the recipe `text/mosi`, the full method, training seed 1112.
It reads text and predicts one sentiment score in [-3, 3].

## Use
<<.*>>
model = AutoModel.from_pretrained("lab/text-mosi").eval()
processor = AutoProcessor.from_pretrained("lab/text-mosi")
<<.*>>
model = AutoModel.from_pretrained("lab/text-mosi", trust_remote_code=True, revision="main").eval()
processor = AutoProcessor.from_pretrained("lab/text-mosi", trust_remote_code=True, revision="main")
<<.*>>
rows = [
    dict(
        text="i really liked the way they told this story",
    )
]
inputs = processor.from_rows(rows)
with torch.no_grad():
    score = model.predict_rows(inputs, rows, processor).logits.item()
```
<<.*>>
## How the checkpoint was chosen

- Training seed 1111: best loss on the **validation** split at missing rate 0.5, mask draws averaged: 5 \
(stage main, epoch 6, step 147, value 1.0871).
- Training seed 1112: best loss on the **validation** split at missing rate 0.5, mask draws averaged: 5 \
(stage main, epoch 7, step 147, value 1.0871).

Every number below comes from that one checkpoint per training seed.

## Results

Protocol `frame`: <<Tokens and frames.*>> Mask seeds 0.

| missing | Acc-7 ↑ | Acc-5 ↑ | Has0 Acc-2 ↑ | Has0 F1 ↑ | Non0 Acc-2 ↑ | Non0 F1 ↑ | MAE ↓ | Corr ↑ |
|:---|---:|---:|---:|---:|---:|---:|---:|---:|
| 0 | 42.50 | 42.50 | 42.50 | 42.50 | 42.50 | 42.50 | 0.8500 | 0.4250 |
| 0.9 | - | - | - | - | - | - | 1.4500 | - |
| mean | <<(57.50 ± 7.07 [|] ){6}>>1.1500 ± 0.0707 | 0.5750 ± 0.0707 |
| 95 % | <<(50.00 to 62.50 [|] ){6}>>0.5000 to 0.6250 | 0.5000 to 0.6250 |

<<mosi, test split, 686 samples.*>>

This checkpoint alone (training seed 1112), mean over the same settings: Acc-7 60.00, Acc-5 60.00, Has0 Acc-2 60.00, \
Has0 F1 60.00, Non0 Acc-2 60.00, Non0 F1 60.00, MAE 1.2000, Corr 0.6000.

## Limits

<<- .*>>

## Data

The data are not part of this repository. Terms of use: For research only.
Source: MMSA pickle.
See <https://example.org/mosi>.
Rows: 1284 train, 229 validation, 686 test.

## Training

| | |
|---|---|
| Method | `text`, the full method |
| Recipe | `text/mosi` |
| Training seed | 1112 |
| Stage `main` | 12 epochs, 310 s |
| hf_msa | 0.1.0 |
| torch | 2.13.0 |

## Citation
<<.*>>
The data set:

```bibtex
@misc{mosi, title = {MOSI}}
```
"""


def test_a_whole_card() -> None:
    """<<...>> stands for prose that may change freely; everything else is pinned."""
    parts = re.split(r"<<(.*?)>>", CARD)
    pattern = "".join(part if odd % 2 else re.escape(part) for odd, part in enumerate(parts))
    card = render(repo_id="lab/text-mosi")
    assert re.fullmatch(pattern, card, re.DOTALL), card


def test_a_run_without_results_says_so() -> None:
    card = render(results=None)
    assert "Not evaluated yet" in card and "| missing |" not in card
    assert "model-index" not in front_matter(card) and "metrics" not in front_matter(card)
    assert "- Training seed 1112: best loss on the **validation** split" in card
    assert 'from_pretrained("path/to/this/folder")' in card


def test_the_snippet_follows_the_checkpoint() -> None:
    run = {**RUN, "dataset": {**RUN["dataset"], "language": "zh"}}
    facts = load_facts("tcmr")
    config = TcmrConfig(
        text_config={"model_type": "bert"}, audio_dim=33, vision_dim=709, mask_padding=False, label_family="sims"
    )
    card = render_card(run, None, facts, config)
    assert "        audio=np.zeros((40, 33), dtype=np.float32)," in card
    assert "        vision=np.zeros((40, 709), dtype=np.float32)," in card
    assert "pad_to_fixed=True" in card and "这" in card and "in [-1, 1]" in card
    config = TcmrConfig(text_config={"model_type": "bert"}, audio_dim=33, vision_dim=None)
    card = render_card(run, None, facts, config)
    assert " vision=" not in card and "pad_to_fixed" not in card and "It reads text, audio and" in card


def test_batches_and_devices_are_in_the_table_where_they_are_known() -> None:
    batch = {"device": 16, "accumulation": 2, "processes": 2, "global": 64}
    stages = [{"name": "main", "epochs": 3.0, "seconds": 7.0, "batch": batch}]
    card = render({**RUN, "stages": stages, "devices": {"processes": 2, "type": "cuda", "name": "A100"}})
    assert "| Devices | 2 x cuda (A100) |" in card and "| Stage `main` | 3 epochs, batches of 64, 7 s |" in card
    assert "Devices" not in render() and "batches of" not in render()


def test_an_upper_bound_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextConfig, "is_oracle", property(lambda self: True))
    card = render(results={**RESULTS, "oracle": True})
    assert "not a usable model" in card and "These are upper bounds" in card


@pytest.mark.parametrize("path", ["/data/private/minilm", "~/minilm", "./minilm", "C:\\Users\\me\\minilm", "minilm"])
def test_a_text_model_from_a_folder_is_not_named(path: str) -> None:
    card = render({**RUN, "text_model": path})
    assert "base_model" not in front_matter(card) and "minilm" not in card


def test_a_folder_that_looks_like_a_hub_name_is_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "minilm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "minilm" not in render({**RUN, "text_model": "models/minilm"})


def test_no_path_of_this_machine_gets_into_a_card() -> None:
    secret = "/home/someone/my secret"
    run, results = deepcopy(RUN), deepcopy(RESULTS)
    run |= {"recipe": f"{secret}/mine.yaml", "ablation": f"{secret}/x"}
    run["dataset"] |= {"name": f"{secret}/mosi", "license": f"see {secret}/LICENSE"}
    run["stages"] = [{"name": f"{secret}/main"}]
    run["versions"] = {"hf_msa": f"0.1 at {secret}/hf_msa"}
    results["dataset"]["name"] = f"{secret}/mosi"
    results["protocol"]["name"] = f"user masks of {secret}/masks.json"
    card = render(run, results)
    assert "/home" not in card and "someone" not in card
    assert "with the recipe `mine.yaml`" in card


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/me/a b/model", "model"),
        ("read from /home/me/x.yaml, then", "read from x.yaml, then"),
        ("C:\\Users\\me\\run", "run"),
        ("file:///srv/data/mosi", "mosi"),
        ("../shared/mosi", "mosi"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("and/or 3/4, text/mosi", "and/or 3/4, text/mosi"),
        ("title = {Caf{\\'e} and {\\aa}}, doi = 10.1/22", "title = {Caf{\\'e} and {\\aa}}, doi = 10.1/22"),
        ("Has0 / Non0", "Has0 / Non0"),
    ],
)
def test_local_paths_are_cut_to_their_last_part(text: str, published: str) -> None:
    assert without_local_paths({"key": [text, 1, None]}) == {"key": [published, 1, None]}


@given(st.lists(st.from_regex(r"[a-z0-9_-]{1,8}", fullmatch=True), min_size=1), st.sampled_from(["", "see ", "data="]))
def test_no_absolute_path_survives(parts: list[str], before: str) -> None:
    assert without_local_paths(f"{before}/{'/'.join(parts)}") == before + parts[-1]


def test_the_hub_accepts_the_front_matter(loopback_hub: LoopbackHub) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(render(repo_id="lab/text-mosi"))
    card.validate()
    assert loopback_hub.count("POST", "/api/validate-yaml") == 1
    assert card.data.model_name == "text-mosi"
    first = card.data.eval_results[0]
    assert (first.metric_type, first.metric_value, first.dataset_split) == ("accuracy", 0.575, "test")
    assert type(first.metric_value) is float and first.dataset_args["training_seeds"] == [1111, 1112]


def test_an_undefined_metric_is_not_in_the_index() -> None:
    card = render(results={**RESULTS, "mean_over_rates": block(1.0, None)})
    assert [m["type"] for m in front_matter(card)["model-index"][0]["results"][0]["metrics"]] == ["mae"]


def test_patterns_and_complete_input_have_tables_too() -> None:
    one = {**RESULTS, "per_rate": [{"rate": "text+audio", "metrics": block(1.0, 0.5)}]}
    one |= {"protocol": {"name": "fixed", "rates": ["text+audio"], "mask_seeds": [None]}, "runs": RESULTS["runs"][:1]}
    card = render({**RUN, "seed": 1111}, one)
    assert "| text+audio |" in card and "Mask seeds" not in card and "This checkpoint alone" not in card
    assert "mean over" not in str(front_matter(card))


def test_class_metrics_are_in_table_and_index() -> None:
    extra = dict.fromkeys(CLASS_METRICS, RESULTS["mean_over_rates"]["acc7"])
    results = deepcopy(RESULTS)
    for metrics in (results["mean_over_rates"], *(entry["metrics"] for entry in results["per_rate"])):
        metrics |= extra
    for one in results["runs"]:
        one["metrics"] |= dict.fromkeys(CLASS_METRICS, 0.5)
    card = render(results=results)
    assert "| Corr ↑ | Class Acc-3 ↑ | Class F1-3 ↑ | Class Has0 Acc-2 ↑ | Class Has0 F1 ↑ |" in card
    assert "Corr 0.6000, Class Acc-3 50.00, " in card
    index = {m["name"]: m["type"] for m in front_matter(card)["model-index"][0]["results"][0]["metrics"]}
    assert index["Class Acc-3 (mean over the missing rates)"] == "accuracy"
    assert index["Class F1-3 (mean over the missing rates)"] == "f1"


SUBSET = {"name": "inconsistent", "rule": "differs_from_M", "n_of": 686}


def test_a_subset_is_named_wherever_its_numbers_are() -> None:
    part = deepcopy(RESULTS)
    part["dataset"] |= {"subset": SUBSET, "n": 218}
    card = render(subsets=[part])
    whole, shown = card.split("### The inconsistent subset (differs_from_M)\n")
    assert "mosi, test split, 686 samples;" in whole and "| mean | 57.50" in shown
    assert "mosi, test split, inconsistent subset (differs_from_M), 218 of 686 samples;" in shown
    assert "subset" not in str(front_matter(card))
    # A subset's result that lies in the run's own folder is no result on the whole split.
    entry = front_matter(render(results=part))["model-index"][0]["results"][0]
    assert entry["metrics"][0]["name"] == "Acc-7, inconsistent subset (differs_from_M) (mean over the missing rates)"
    assert entry["dataset"]["args"]["subset"] == SUBSET


def test_results_on_subsets_are_found_beside_those_on_the_whole(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "seed-1112")
    part = deepcopy(RESULTS)
    part["dataset"] |= {"subset": SUBSET, "n": 218}
    for place, name, content in (
        (tmp_path, "subset-inconsistent", part),
        (tmp_path, "subset-consistent", {**part, "method": "tcmr"}),
        (folder, "subset-inconsistent", {**part, "seconds": 1.0}),
    ):
        (place / name).mkdir()
        (place / name / "results.json").write_text(json.dumps(content))
    [found] = find_subset_results(folder, RUN)
    assert found["seconds"] == 1.0, "the run's own goes before that of several seeds"
    assert find_results(folder, RUN) is None
    assert "### The inconsistent subset (differs_from_M)" in write_card(folder).read_text()


def test_a_benchmark_is_known_by_its_name() -> None:
    card = render({**RUN, "dataset": {"name": "sims", "label_family": "sims", "n": {"test": 457}}}, None)
    assert front_matter(card)["language"] == "zh" and "yu2020sims" in card and "Research use only" in card
    card = render({**RUN, "dataset": {"name": "ours"}}, None)
    assert "not on record, ask the owners of the data." in card and "The data set:" not in card


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_its_facts(method: str) -> None:
    facts = load_facts(method)
    assert facts.title and facts.summary and facts.inputs and facts.limits
    assert facts.bibtex.startswith("@") and facts.bibtex.count("{") == facts.bibtex.count("}")
    assert facts.modalities[0] == "text" and set(facts.modalities) <= {"text", "audio", "vision"}


def test_the_template_names_no_method() -> None:
    template = (cards_folder() / "template.md").read_text()
    for facts in some(cards_folder().glob("*.yaml")):
        assert f'"{facts.stem}"' not in template and f"'{facts.stem}'" not in template


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(MsaError, match="Did you mean 'tcmr'"):
        load_facts("tmcr")


def save_run(folder: Path, run: dict[str, Any] = RUN) -> Path:
    folder.mkdir(parents=True)
    CONFIG.save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_a_card_is_written_beside_the_weights(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "seed-1112")
    assert "Not evaluated yet" in write_card(folder).read_text()
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert "| mean | 57.50 ± 7.07" in write_card(folder, "lab/x").read_text()
    assert not list(folder.glob(".README*"))


@pytest.mark.parametrize("change", [{"method": "tcmr"}, {"ablation": "end2end"}, {"runs": RESULTS["runs"][:2]}])
def test_results_of_another_run_are_not_used(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = save_run(tmp_path / "seed-1112")
    (tmp_path / "results.json").write_text(json.dumps({**RESULTS, **change}))
    assert find_results(folder, RUN) is None
    (folder / "results.json").write_text(json.dumps(RESULTS))
    assert find_results(folder, RUN) == RESULTS


MATCHED: dict[str, Any] = {
    **RESULTS,
    "train_rate": "match",
    "protocol": {**RESULTS["protocol"], "name": "modality", "rates": [0.0, 0.7]},
    "per_rate": [{"rate": 0.0, "metrics": block(0.85, 0.425)}, {"rate": 0.7, "metrics": block(1.45, 0.25)}],
    "runs": [{**one, "rate": 0.7 if one["rate"] else 0.0} for one in RESULTS["runs"]],
    "selection": [RUN["selection"]] * 4,
}


def test_a_model_of_one_training_rate_shows_the_table_of_all_and_its_own_numbers(tmp_path: Path) -> None:
    run = {**RUN, "train_rate": 0.7}
    folder = save_run(tmp_path / "rate-0.7" / "seed-1112", run)
    (tmp_path / "results.json").write_text(json.dumps(MATCHED))
    card = write_card(folder).read_text()
    assert "Each row below comes from checkpoints of its own, trained and chosen at that missing rate; " in card
    assert "; this one is of the row 0.7." in card
    assert "one checkpoint per training seed" not in card
    assert "| 0 | 42.50" in card and "| 0.7 | 25.00" in card
    assert "each missing rate by models trained at it; " in card
    # Seed 1112 at rate 0.7: error 1.5, everything else half of that.
    assert (
        "This checkpoint alone (training seed 1112), at missing rate 0.7: Acc-7 75.00, " in card
        and "MAE 1.5000" in card
    )
    [index] = front_matter(card)["model-index"][0]["results"]
    assert index["dataset"]["args"]["rates"] == [0.7]
    assert {m["name"]: m["value"] for m in index["metrics"]}["Acc-7"] == 0.25, "not the mean over other models' rates"
    assert card.count("Training seed 11") == 1, "the other seeds' choices are those of eight models each"


@pytest.mark.parametrize(
    ("place", "rate", "results", "found"),
    [
        ("rate-0.7/seed-1112", 0.7, MATCHED, True),
        ("rate-0.3/seed-1112", 0.3, MATCHED, False),  # not among the rates of the result
        ("group/seed-1112", 0.7, MATCHED, False),  # results two folders up are those of such models only
        ("rate-0.7/seed-1112", 0.7, RESULTS, False),  # of a model that was trained at no single rate
    ],
)
def test_results_of_matched_models_are_found_two_folders_up(
    tmp_path: Path, place: str, rate: float, results: dict[str, Any], found: bool
) -> None:
    run = {**RUN, "train_rate": rate}
    folder = save_run(tmp_path / place, run)
    (tmp_path / "results.json").write_text(json.dumps(results))
    part = deepcopy(results)
    part["dataset"] |= {"subset": SUBSET, "n": 218}
    (tmp_path / "subset-inconsistent").mkdir()
    (tmp_path / "subset-inconsistent" / "results.json").write_text(json.dumps(part))
    assert (find_results(folder, run) is not None) == found == bool(find_subset_results(folder, run))


def test_a_model_of_one_training_rate_tested_by_itself(tmp_path: Path) -> None:
    run = {**RUN, "train_rate": 0.7}
    folder = save_run(tmp_path / "seed-1112", run)
    (tmp_path / "results.json").write_text(json.dumps({**RESULTS, "train_rate": 0.7}))
    card = write_card(folder).read_text()
    assert "trained at missing rate 0.7; " in card and "mean over the same settings: " in card
    (tmp_path / "results.json").write_text(json.dumps({**RESULTS, "train_rate": 0.3}))
    assert find_results(folder, run) is None and find_results(folder, RUN) is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MsaError, match="not a finished run"):
        write_card(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(MsaError, match="cannot be read"):
        write_card(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({**RUN, "method": "txet"}))
    with pytest.raises(MsaError, match="Did you mean 'text'"):
        write_card(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    with pytest.raises(MsaError, match=r"no config\.json"):
        write_card(tmp_path)


def test_results_on_generated_data_are_labelled_and_no_pipeline_is_promised():
    words = "generated sample corpus, not a benchmark"
    results = {**RESULTS, "dataset": {**RESULTS["dataset"], "name": "sample"}}
    card = render({**RUN, "dataset": {**RUN["dataset"], "name": "sample"}}, results)
    data = front_matter(card)
    assert "pipeline_tag" not in data
    assert {one["dataset"]["name"] for one in data["model-index"][0]["results"]} == {f"sample ({words})"}
    assert words in card.split("## Results")[1]


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def tiny_checkpoint(method: str, folder: Path) -> Path:
    """A checkpoint that can predict: OMG-Agent with planner and knowledge base, U-ACS with a threshold."""
    if method == "omg":
        return write_checkpoint(folder, write_clips(folder / "clips"))
    torch.manual_seed(0)
    config = TINY_CONFIGS[method](**({"tau_1": 10.0} if method == "uacs" else {}))
    METHODS[method].model_class(config).save_pretrained(folder)
    tiny_processor(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] if name == "omg" else []) for name in METHODS]
)
def test_the_code_of_every_card_runs(method: str, tmp_path: Path) -> None:
    """Loading with the package, loading with the code that lies beside the weights, and scoring the row of the card."""
    folder = tiny_checkpoint(method, tmp_path)
    config = METHODS[method].config_class.from_pretrained(folder)
    run = {**RUN, "method": method, "recipe": f"{method}/mosi"}
    card = render_card(run, None, load_facts(method), config, "lab/model")
    package, remote, score, *_ = (code.replace("lab/model", str(folder)) for code in code_blocks(card))
    for load in (package, remote):
        names: dict[str, Any] = {}
        exec(load, names)
        exec(score, names)
        assert type(names["score"]) is float and math.isfinite(names["score"])
        assert type(names["model"]).__name__ == METHODS[method].model_class.__name__


@pytest.mark.parametrize("method", list(METHODS))
def test_the_front_matter_of_every_card_is_what_the_hub_reads(method: str) -> None:
    """Read back as `ModelCardData`, with a task that the Hub knows, and results labelled as of generated data."""
    names = {**RUN["dataset"], "name": "sample"}
    run = {**RUN, "method": method, "recipe": f"{method}/sample", "dataset": names}
    results = {**RESULTS, "method": method, "dataset": {**RESULTS["dataset"], "name": "sample"}}
    card = render_card(run, results, load_facts(method), TINY_CONFIGS[method](), "lab/model")
    data = ModelCard(card).data
    assert isinstance(data, ModelCardData) and data.model_name == "model" and "generated" in data.tags
    assert {(one.task_type, one.task_name) for one in data.eval_results} == {
        ("text-classification", "Multimodal sentiment analysis")
    }
    assert all(isinstance(one, EvalResult) and "not a benchmark" in one.dataset_name for one in data.eval_results)
    assert "not a benchmark" in card.split("---\n")[2]
    # The index survives the way to YAML and back.
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n").data
    assert again.eval_results == data.eval_results
