"""How TCMR's final stage starts, and its recipes beside those of the text baseline."""

import pytest
import torch

from hf_msa.errors import MsaError
from hf_msa.methods import METHODS
from hf_msa.models.configuration_tcmr import TcmrConfig
from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis, TcmrTextRegressor
from hf_msa.training.recipes import load_recipe
from hf_msa.training.tcmr import start_model
from nonempty import some
from tiny import tiny_batch, tiny_tcmr_config

RECIPES = [f"tcmr/{dataset}" for dataset in ("mosi", "mosei", "sims", "sample")]


def started(**overrides: object) -> tuple[TcmrForSentimentAnalysis, TcmrTextRegressor, torch.Tensor]:
    config = tiny_tcmr_config(**overrides)
    torch.manual_seed(1)
    regressor = TcmrTextRegressor(config).eval()
    torch.nn.init.normal_(regressor.encoder.transformer.tokens)
    with torch.no_grad():
        targets = regressor(**tiny_batch(config)).features.half()
    torch.manual_seed(2)
    model = TcmrForSentimentAnalysis(config).eval()
    start_model(model, regressor, targets)
    return model, regressor, targets.float()


def test_text_encoder_and_generators_start_from_the_regressor() -> None:
    model, regressor, _ = started()
    learned = regressor.encoder.state_dict()
    assert all(torch.equal(value, learned[name]) for name, value in some(model.encoders["text"].state_dict().items()))
    for generator in some(model.proxy_generator.generators.values()):
        assert torch.equal(generator.tokens, learned["transformer.tokens"])
        assert torch.equal(generator.positions[:8], learned["transformer.positions"][:8])
        assert not torch.equal(generator.positions[8:], learned["transformer.positions"][8:16])


def test_the_targets_are_measured() -> None:
    model, _, targets = started()
    assert torch.allclose(model.text_mean, targets.mean(0), atol=1e-6)
    assert model.text_variance.item() == pytest.approx(targets.var(0, correction=0).mean().item(), rel=1e-5)


def test_with_the_regressor_s_text_encoder_nothing_is_left_to_rebuild() -> None:
    """What is complete and fully trusted is the target already, from the first step on."""
    model, regressor, targets = started()
    model.text_encoder.load_state_dict(regressor.text_encoder.state_dict())
    out = model(**tiny_batch(model.config), confidence=torch.ones(4), text_targets=targets)
    assert out.losses["reconstruct_text"].item() < 1e-4


def test_literally_everything_is_drawn_anew() -> None:
    model, regressor, _ = started(**TcmrConfig.ABLATIONS["literal"])
    own = model.encoders["text"].transformer.positions
    assert not torch.equal(own, regressor.encoder.transformer.positions)
    assert not hasattr(model, "text_mean") and not hasattr(model, "text_variance")


def test_a_joint_generator_and_none_start_too() -> None:
    model, regressor, _ = started(proxy="lnln")
    joint = model.proxy_generator.generators["joint"]
    assert torch.equal(joint.positions[:8], regressor.encoder.transformer.positions[:8])
    assert started(proxy="none")[0].proxy_generator is None


def test_a_regressor_that_tells_no_texts_apart_is_one_sentence() -> None:
    model, regressor, targets = started()
    with pytest.raises(MsaError, match="same features, so there is nothing to rebuild"):
        start_model(model, regressor, torch.zeros_like(targets))


@pytest.mark.parametrize("name", RECIPES)
def test_features_are_standardised_and_clipping_is_said(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.feature_norm == "standard"
    assert all(recipe.stage_arguments(stage)["max_grad_norm"] == 1.0 for stage in METHODS["tcmr"].stages.names)


@pytest.mark.parametrize("dataset", ["mosei", "mosi", "sample", "sims"])
def test_the_text_baseline_is_trained_as_tcmr_is(dataset: str) -> None:
    ours, baseline = (load_recipe(f"{method}/{dataset}") for method in ("tcmr", "text"))
    assert ours.stage_arguments("main") == baseline.stage_arguments("main")
    assert ours.missing == baseline.missing and ours.text_model == baseline.text_model
