"""The trainer's optimizer: which parameters learn at which rate and decay, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hf_msa.cli import training_flags
from hf_msa.data.sample_corpus import write_sample_corpus
from hf_msa.errors import MsaError
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis
from hf_msa.training.recipes import load_recipe
from hf_msa.training.stages import prepare_run, training_arguments
from hf_msa.training.trainer import MsaTrainer

Build = Callable[..., MsaTrainer]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_corpus(tmp_path_factory.mktemp("corpus") / "tiny", preset="tiny", seed=7, version=1)


@pytest.fixture
def trainer(corpus: Path, tmp_path: Path) -> Build:
    """Makes a trainer of TCMR from training arguments; `lacks` is a modality that the model does without."""

    def build(lacks: str | None = None, **flags: Any) -> MsaTrainer:
        absent = [f"model.{lacks}_dim=null"] if lacks else []
        recipe = load_recipe("tcmr/sample", assignments=absent)
        context = prepare_run(recipe, str(corpus), tmp_path, 1, {"use_cpu": True, **flags})
        return MsaTrainer(
            context.new_model(TcmrForSentimentAnalysis),
            context.arguments("main", True),
            context.rows["train"],
            context.rows["validation"],
            context.collator("train"),
            context.collator("validation"),
        )

    return build


def settings(trainer: MsaTrainer) -> dict[str, tuple[float, float]]:
    """Rate and decay of every parameter by name."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.build_optimizer(list(trainer.model.named_parameters())).param_groups
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_components_have_rates_and_decays_of_their_own(trainer: Build) -> None:
    found = settings(
        trainer(
            learning_rate=0.1,
            weight_decay=0.01,
            text_learning_rate=0.2,
            component_learning_rates={"confnet": 0.3},
            component_weight_decays={"text_encoder": 0.02, "confnet": 0.0},
        )
    )
    expected = {"text_encoder": (0.2, 0.02), "confnet": (0.3, 0.0)}
    assert {name.partition(".")[0] for name in found} > set(expected)
    for name, (rate, decay) in found.items():
        wanted = expected.get(name.partition(".")[0], (0.1, 0.01))
        assert rate == wanted[0], name
        assert decay in (0.0, wanted[1]), name
        if "bias" in name or "norm" in name.lower():
            assert decay == 0.0, name
        elif name.endswith("weight"):
            assert decay == wanted[1], name


def test_without_components_the_groups_are_those_of_text_encoder_and_rest(trainer: Build) -> None:
    made = trainer(learning_rate=0.1, weight_decay=0.01, text_learning_rate=0.2)
    decayed = set(made.get_decay_parameter_names(made.model))
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in made.model.named_parameters():
        groups.setdefault((name.startswith("text_encoder."), name in decayed), []).append(parameter)
    found = made.build_optimizer(list(made.model.named_parameters())).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in found] == [
        (0.2 if is_text else 0.1, 0.01 if has_decay else 0.0) for is_text, has_decay in groups
    ]
    for group, expected in zip(found, groups.values(), strict=True):
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in expected]


def test_an_unknown_component_gets_the_nearest_known_one(trainer: Build) -> None:
    made = trainer(component_learning_rates={"confnets": 1e-3})
    with pytest.raises(MsaError, match="Unknown component of TcmrForSentimentAnalysis 'confnets'.*'confnet'"):
        settings(made)


def test_a_component_of_a_modality_that_is_not_there_is_passed_over(trainer: Build) -> None:
    given = {"component_weight_decays": {"vision_encoder": 0.5}}
    assert 0.5 not in {decay for _, decay in settings(trainer("vision", **given)).values()}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"text_learning_rate": 1e-3, "component_learning_rates": {"text_encoder": 1e-4}}, "given twice"),
        ({"component_learning_rates": {"fusion": "fast"}}, "component_learning_rates is .*'fast'"),
        ({"component_weight_decays": {"fusion": -1.0}}, "component_weight_decays is .*at least 0"),
        ({"component_weight_decays": {"fusion": True}}, "component_weight_decays is"),
        ({"component_learning_rates": 0.1}, "component_learning_rates is 0.1"),
        ({"component_learning_rates": "0.1"}, "component_learning_rates is '0.1'"),
        ({"component_learning_rates": "{fusion: 1}"}, "cannot be used"),
    ],
)
def test_components_that_cannot_be_are_refused(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(MsaError, match=words) as error:
        training_arguments(tmp_path, values)
    assert "\n" not in str(error.value)


def test_components_come_from_the_command_line_as_json_and_from_yaml_without_a_dot(tmp_path: Path) -> None:
    flags = training_flags(["--component_learning_rates", '{"audio_encoder": 1e-3, "fusion": 2}'])
    arguments = training_arguments(tmp_path, flags)
    assert arguments.component_learning_rates == {"audio_encoder": 0.001, "fusion": 2.0}
    recipe = load_recipe("text/sample", assignments=["stages.main.component_learning_rates={regressor: 1e-3}"])
    arguments = training_arguments(tmp_path, recipe.stage_arguments("main"))
    assert arguments.component_learning_rates == {"regressor": 0.001}
