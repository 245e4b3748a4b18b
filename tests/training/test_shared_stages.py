"""Stages that TCMR and CMC train once for a model and its ablations."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_msa.models.configuration_cmc import CmcConfig
from hf_msa.models.configuration_tcmr import TcmrConfig
from hf_msa.training import tcmr
from hf_msa.training.cmc import stages as cmc
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import RunContext, run_recipe, weights_digest

QUIET = {"disable_tqdm": True, "use_cpu": True}
SMALL = {
    "tcmr": ["stages.polarity.num_train_epochs=1", "stages.regressor.num_train_epochs=1"],
    "cmc": ["model.embed_dim=8", "model.feedforward_dim=16", "stages.unimodal.num_train_epochs=1"],
}
SHARED = {"tcmr": ["polarity", "regressor"], "cmc": ["unimodal"]}


def whole_run(
    method: str, corpus: Path, folder: Path, *assignments: str, ablation: str | None = None, taking: Path | None = None
) -> RunContext:
    given = [*SMALL[method], "stages.main.num_train_epochs=1", *assignments]
    recipe = load_recipe(f"{method}/sample", ablation=ablation, assignments=given)
    return run_recipe(recipe, str(corpus), folder / "seed-1", 1, QUIET, stages_from=taking)


def taken(context: RunContext) -> list[str]:
    return [stage["name"] for stage in context.log if "taken_from" in stage]


def weights(context: RunContext) -> dict[str, torch.Tensor]:
    return load_file(context.folder / "model.safetensors")


@pytest.fixture(scope="module", params=["tcmr", "cmc"])
def full(request: pytest.FixtureRequest, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return whole_run(request.param, tiny_corpus, tmp_path_factory.mktemp("full"))


def test_an_ablation_takes_what_it_shares_and_ends_as_if_it_had_trained_it(
    full: RunContext, tiny_corpus: Path, tmp_path: Path
) -> None:
    method = full.recipe.method
    ablation = {"tcmr": "proxy_none", "cmc": "mcr_static"}[method]
    own = whole_run(method, tiny_corpus, tmp_path / "own", ablation=ablation)
    taking = whole_run(method, tiny_corpus, tmp_path / "taking", ablation=ablation, taking=full.runs_folder)
    assert (taken(full), taken(own), taken(taking)) == ([], [], SHARED[method])
    one, other = weights(own), weights(taking)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert one.keys() != weights(full).keys()
    configs = [json.loads((context.folder / "config.json").read_text(encoding="utf-8")) for context in (own, taking)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("change", ["seed of the masks", "learning rate", "width"])
def test_what_is_made_of_other_things_is_trained(
    full: RunContext, tiny_corpus: Path, tmp_path: Path, change: str
) -> None:
    method = full.recipe.method
    first = SHARED[method][0]
    assignment = {
        "seed of the masks": "missing.validation={name: frame, rate: 0.5, seed: 3}",
        "learning rate": f"stages.{first}.learning_rate=0.002",
        "width": "model.num_attention_heads=1" if method == "cmc" else "model.hidden_size=16",
    }[change]
    context = whole_run(method, tiny_corpus, tmp_path, assignment, taking=full.runs_folder)
    # TCMR's text models see complete texts alone.
    kept = {"seed of the masks": ["polarity", "regressor"], "learning rate": ["regressor"]} if method == "tcmr" else {}
    assert taken(context) == kept.get(change, [])


def test_a_run_that_breaks_off_after_taking_goes_on_with_its_own_configuration(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = whole_run("cmc", tiny_corpus, tmp_path / "full")

    def begin() -> RunContext:
        return whole_run("cmc", tiny_corpus, tmp_path / "taking", ablation="mcr_static", taking=full.runs_folder)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(cmc.CmcTrainer, "train", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            begin()
    context = begin()
    assert taken(context) == ["unimodal"]
    assert CmcConfig.from_pretrained(context.folder).mcr == "static"


def test_an_entry_costs_no_second_copy_of_the_weights(full: RunContext) -> None:
    for stage in SHARED[full.recipe.method]:
        (entry,) = (full.runs_folder / "shared_stages").glob(f"{stage}-*")
        ours, theirs = (place / "model" / "model.safetensors" for place in (full.stage_folder(stage), entry))
        assert os.path.samefile(ours, theirs)


def test_every_later_field_is_one_of_the_configuration() -> None:
    assert set(tcmr.LATER_FIELDS) <= set(TcmrConfig().to_dict())
    assert set(cmc.LATER_FIELDS) <= set(CmcConfig().to_dict())


def test_a_digest_is_of_names_shapes_and_numbers() -> None:
    state = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3)}
    others = [
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)},
        {"a": torch.tensor([[1.0, 2.5]]), "b": torch.tensor(3)},
        {"c": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3)},
    ]
    assert weights_digest(state) == weights_digest({name: value.clone() for name, value in state.items()})
    assert len({weights_digest(one) for one in (state, *others)}) == 4
