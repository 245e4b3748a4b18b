"""Recipes: every one loads, every value has a source, every wrong name gets the nearest right one."""

import importlib.resources
from pathlib import Path

import pytest

from hf_msa.data.schema import DATASETS
from hf_msa.errors import MsaError
from hf_msa.methods import METHODS
from hf_msa.training.recipes import as_known, load_recipe, recipe_names, train_rates
from nonempty import some


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_loads_and_fits_its_configuration(name: str) -> None:
    recipe = load_recipe(name)
    METHODS[recipe.method].config_class(audio_dim=5, **recipe.model)
    validation = recipe.missing.validation
    assert validation["name"] in ("complete", "pattern") or validation["rate"] == 0.5
    assert recipe.pad_to_fixed or recipe.model.get("mask_padding", True)


@pytest.mark.parametrize("name", recipe_names())
def test_every_value_has_a_source(name: str) -> None:
    text = (importlib.resources.files("hf_msa") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if ":" in line and not line.startswith("#")]
    values = [line for line in lines if line.partition("#")[0].strip()[-1] != ":" and not line.startswith("method:")]
    assert not [line for line in values if "#" not in line]


def stages_that_stop_early() -> list[tuple[str, str]]:
    """Names of recipes and stages that warm up and stop early."""
    found = []
    for name in recipe_names():
        recipe = load_recipe(name)
        for stage in METHODS[recipe.method].stages.names:
            if {"warmup_steps", "early_stopping_patience"} <= recipe.stage_arguments(stage).keys():
                found.append((name, stage))
    return found


@pytest.mark.parametrize(("name", "stage"), stages_that_stop_early())
def test_no_warm_up_is_longer_than_the_patience(name: str, stage: str) -> None:
    values = as_known(load_recipe(name).stage_arguments(stage))
    assert values["warmup_steps"] < 1, "a share of all steps: how many an epoch has depends on the data"
    assert values["warmup_steps"] * values["num_train_epochs"] <= values["early_stopping_patience"]


def test_the_warm_ups_of_all_methods_are_judged() -> None:
    assert {name.partition("/")[0] for name, _ in stages_that_stop_early()} == {"late_fusion", "pglh", "tcmr", "text"}


def test_each_benchmark_has_its_baselines() -> None:
    names = {row: {name.partition("/")[2] for name in METHODS[row].recipe_names()} for row in METHODS}
    for row in ("ridge", "late_fusion", "text"):
        assert names[row] >= {"sample", *(name for name in DATASETS if any(name in known for known in names.values()))}
        for dataset in names[row] - {"sample"}:
            # The same words for all that is compared.
            ours, text = (load_recipe(f"{method}/{dataset}") for method in (row, "text"))
            assert (ours.text_model, ours.model["text_max_length"]) == (text.text_model, text.model["text_max_length"])
            assert ours.missing == text.missing


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].config_class.ABLATIONS])
def test_every_ablation_can_be_chosen(method: str) -> None:
    config_class = METHODS[method].config_class
    for ablation, fields in some(config_class.ABLATIONS.items()):
        recipe = load_recipe(f"{method}/sample", ablation=ablation)
        assert recipe.ablation == ablation and fields.items() <= recipe.model.items()
        assert (recipe.label, load_recipe(f"{method}/sample").label) == (f"{method} ({ablation})", method)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("tcmrr/mosi",), {}, ("method", "'tcmr'")),
        (("tcmr/mosii",), {}, ("recipe", "'tcmr/mosi'")),
        (("missing.yaml",), {}, ("no recipe file", "tcmr/mosi")),
        (("tcmr/mosi",), {"ablation": "wo_tec"}, ("ablation", "'wo_tce'")),
        (("tcmr/mosi",), {"assignments": ["model.num_token=4"]}, ("configuration field", "'num_tokens'")),
        (("tcmr/mosi",), {"assignments": ["stages.main.learning_rat=1"]}, ("training argument", "'learning_rate'")),
        (("tcmr/mosi",), {"assignments": ["mising.selection_repeats=1"]}, ("recipe key", "'missing'")),
        (("tcmr/mosi",), {"assignments": ["feature_norm=standart"]}, ("feature_norm", "'standard'")),
        (("tcmr/mosi",), {"assignments": ["model.num_tokens"]}, ("KEY=VALUE",)),
    ],
)
def test_wrong_names_get_the_nearest_right_one(
    arguments: tuple[str], options: dict[str, object], words: tuple[str, ...]
) -> None:
    with pytest.raises(MsaError) as error:
        load_recipe(*arguments, **options)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_assignments_override(tmp_path: Path) -> None:
    recipe = load_recipe(
        "tcmr/mosi", assignments=["model.num_tokens=4", "stages.main.num_train_epochs=3", "text_model=here"]
    )
    assert recipe.model["num_tokens"] == 4
    assert recipe.stage_arguments("main")["num_train_epochs"] == 3
    assert recipe.stage_arguments("main")["weight_decay"] == 1e-4, "what all stages share is kept"
    assert recipe.text_model == "here"


def test_a_training_rate_takes_the_place_of_both_protocols() -> None:
    recipe = load_recipe("tcmr/sample", assignments=["missing.selection_repeats=2"], train_rate=0.3)
    expected = {"name": "modality", "rate": 0.3}
    assert recipe.missing.train == recipe.missing.validation == expected
    assert recipe.missing.selection_repeats == 2 and recipe.to_dict()["train_rate"] == 0.3
    assert repr(load_recipe("tcmr/sample", train_rate=0).train_rate) == "0.0", "as a run that was given 0.0"
    plain = load_recipe("tcmr/sample")
    # Settings of runs that were begun before there were training rates stay what they were.
    assert plain.missing.train["name"] == "frame" and "train_rate" not in plain.to_dict()


def test_what_a_training_rate_can_be() -> None:
    assert train_rates("mixed") == (None,)
    assert train_rates("match") == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert train_rates("0.3") == (0.3,)
    with pytest.raises(MsaError, match="--train-rate is 'matched'; give mixed, match, or one of the rates"):
        train_rates("matched")
    for rate, words in ((0.8, "nearest is 0.7"), (0.25, "use 0.0, 0.1, ... 0.7"), (float("nan"), "from 0 to 1")):
        with pytest.raises(MsaError, match=words):
            load_recipe("tcmr/sample", train_rate=rate)
    with pytest.raises(MsaError, match="--set missing.train.rate=0.1 and a --train-rate both say"):
        load_recipe("tcmr/sample", assignments=["missing.train.rate=0.1"], train_rate=0.3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1: x\n", "The recipe has the key 1"),
        ("method: text\nmodel: {2: x}\n", "'model' has the key 2"),
        ("method: text\nmissing: {train: {name: frame, 0.5: 1}, validation: {name: complete}}\n", "has the key 0.5"),
        ("method: text\nmissing: {train: {name: complete}, validation: {name: complete}}\nstages: {1: {}}\n", "key 1"),
        (
            "method: text\nmissing: {train: {name: complete}, validation: {name: complete}}\nstages: {main: {on: 1}}\n",
            "True",
        ),
    ],
)
def test_keys_that_are_no_text_are_one_sentence(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(MsaError, match="which YAML does not read as text; keys are names, or in quotes") as error:
        load_recipe(str(tmp_path / "own.yaml"))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["seed", "output_dir"])
def test_what_the_run_decides_is_no_argument_of_a_stage(name: str) -> None:
    with pytest.raises(MsaError, match=f"Unknown training argument of stage 'all' '{name}'"):
        load_recipe("text/sample", assignments=[f"stages.all.{name}=5"])
