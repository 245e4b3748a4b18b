"""Every row of CMC's ablations builds, trains, and changes what it is said to change."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_msa.models.configuration_cmc import CmcConfig
from hf_msa.models.modeling_cmc import CmcForSentimentAnalysis, CmcUnimodalModels
from nonempty import some
from tiny import tiny_batch, tiny_cmc_config, tiny_labels

ROWS = list(CmcConfig.ABLATIONS)
PSEUDO = torch.tensor([[0, 1, 2], [2, 2, 2], [0, 0, 1], [1, 2, 0]])


def build(row: str | None = None, **overrides: Any) -> CmcForSentimentAnalysis:
    torch.manual_seed(0)
    fields = CmcConfig.ABLATIONS[row] if row else {}
    return CmcForSentimentAnalysis(tiny_cmc_config(**fields, **overrides)).eval()


def inputs() -> dict[str, Tensor]:
    config = tiny_cmc_config()
    return {**tiny_batch(config), "labels": tiny_labels(config), "pseudo_labels": PSEUDO}


def parameter_names(model: CmcForSentimentAnalysis) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def leaves_the_model_alone(row: str) -> None:
    """What the row changes is in the training stages."""
    assert torch.equal(build(row)(**inputs()).loss, build()(**inputs()).loss)


def leaves_the_vectors_as_they_are() -> None:
    model = build("wo_pfm")
    assert parameter_names(model) == parameter_names(build())
    out = model(**inputs())
    for index, name in enumerate(model.config.modalities):
        assert torch.allclose(out.unimodal_logits[:, index], model.experts[name](out.embeddings[:, index]), atol=1e-6)


def mixes_by_learned_attention() -> None:
    model = build("pfm_attention")
    assert parameter_names(model) - parameter_names(build()) == {
        "fusion.attention.in_proj_weight",
        "fusion.attention.in_proj_bias",
        "fusion.attention.out_proj.weight",
        "fusion.attention.out_proj.bias",
    }
    rows = torch.randn(2, 3, 16)
    attention = model.fusion.attention
    query, key, value = (rows @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
    mixed = (query @ key.transpose(1, 2) / 16**0.5).softmax(dim=-1) @ value
    assert torch.allclose(model.fuse(rows), attention.out_proj(mixed), atol=1e-5)


def maps_all_vectors_to_all() -> None:
    model = build("pfm_concat")
    assert parameter_names(model) - parameter_names(build()) == {"fusion.linear.weight", "fusion.linear.bias"}
    rows = torch.randn(2, 3, 16)
    expected = model.fusion.linear(torch.cat([rows[:, 0], rows[:, 1], rows[:, 2]], dim=-1))
    assert torch.equal(model.fuse(rows), torch.stack(expected.chunk(3, dim=-1), dim=1))


def weighs_all_evenly() -> None:
    model = build("wo_mcr")
    assert parameter_names(build()) - parameter_names(model) == {"router.weight", "router.bias"}
    out = model(**inputs())
    assert torch.allclose(out.router_weights, torch.full((4, 3), 1 / 3))
    assert torch.allclose(out.class_logits, out.unimodal_logits.mean(dim=1), atol=1e-6)


def routes_by_all_vectors_side_by_side() -> None:
    model = build("router_rows")
    added = parameter_names(model) - parameter_names(build())
    assert added == {f"router.{part}.{kind}" for part in ("hidden", "output") for kind in ("weight", "bias")}
    assert model.router.hidden.weight.shape == (16, 48)
    rows = torch.randn(2, 3, 16)
    hidden = torch.cat([rows[:, 0], rows[:, 1], rows[:, 2]], dim=-1) @ model.router.hidden.weight.T
    hidden = (hidden + model.router.hidden.bias).clamp(min=0)
    expected = (hidden @ model.router.output.weight.T + model.router.output.bias).softmax(dim=-1)
    assert torch.allclose(model.route(rows), expected, atol=1e-6)


def weighs_all_samples_alike() -> None:
    model = build("mcr_static")
    assert parameter_names(model) - parameter_names(build()) == {"router.logits"}
    assert torch.allclose(model(**inputs()).router_weights, torch.full((4, 3), 1 / 3))
    with torch.no_grad():
        model.router.logits.copy_(torch.tensor([0.5, 0.25, 0.25]).log())
    assert torch.allclose(model(**inputs()).router_weights, torch.tensor([[0.5, 0.25, 0.25]] * 4))


def is_the_mean_of_separate_classifiers() -> None:
    model = build("mean_fusion")
    out = model(**inputs())
    logits = [model.experts[name](out.embeddings[:, i]) for i, name in enumerate(model.config.modalities)]
    assert torch.allclose(out.class_logits, torch.stack(logits).mean(dim=0), atol=1e-6)


def has_no_contrastive_loss() -> None:
    assert "supcon" not in build("wo_supcon")(**inputs()).losses


def weighs_the_contrastive_loss(weight: float) -> None:
    full, less = build()(**inputs()), build(f"supcon_weight_{weight}")(**inputs())
    assert less.losses["supcon"] == full.losses["supcon"]
    gone = (1 - weight) * full.losses["supcon"].item()
    assert less.loss.item() == pytest.approx(full.loss.item() - gone, rel=1e-5)


def keeps_experts(k: int) -> None:
    weights, every = build(f"top_k_{k}")(**inputs()).router_weights, build()(**inputs()).router_weights
    assert ((weights > 0).sum(dim=1) == k).all()
    assert torch.allclose(weights.sum(dim=1), torch.ones(4))
    assert torch.equal(weights.argmax(dim=1), every.argmax(dim=1))


def widens(width: int) -> None:
    config = tiny_cmc_config(**CmcConfig.ABLATIONS[f"embed_dim_{width}"])
    assert config.feedforward_dim == 4 * config.embed_dim == 4 * width


EFFECTS: dict[str, Callable[[], None]] = {
    "wo_plgm": lambda: leaves_the_model_alone("wo_plgm"),
    "wo_pfm": leaves_the_vectors_as_they_are,
    "pfm_attention": mixes_by_learned_attention,
    "pfm_concat": maps_all_vectors_to_all,
    "wo_mcr": weighs_all_evenly,
    "router_rows": routes_by_all_vectors_side_by_side,
    "mcr_static": weighs_all_samples_alike,
    "mean_fusion": is_the_mean_of_separate_classifiers,
    "wo_pretrain": lambda: leaves_the_model_alone("wo_pretrain"),
    "wo_supcon": has_no_contrastive_loss,
    "gt": lambda: leaves_the_model_alone("gt"),
    "top_k_1": lambda: keeps_experts(1),
    "top_k_2": lambda: keeps_experts(2),
    "supcon_weight_0.1": lambda: weighs_the_contrastive_loss(0.1),
    "supcon_weight_0.5": lambda: weighs_the_contrastive_loss(0.5),
    "embed_dim_128": lambda: widens(128),
    "embed_dim_256": lambda: widens(256),
    "embed_dim_512": lambda: widens(512),
    "m0_av_0.8": lambda: leaves_the_model_alone("m0_av_0.8"),
    "quirks": lambda: leaves_the_model_alone("quirks"),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_changes_what_it_says(row: str) -> None:
    EFFECTS[row]()


def test_every_row_is_tested() -> None:
    assert set(EFFECTS) == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_fields_that_exist_and_changes_their_default(row: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(CmcConfig)}
    plain = CmcConfig(audio_dim=5, vision_dim=7)
    for name, value in some(CmcConfig.ABLATIONS[row].items()):
        assert name in fields
        assert getattr(plain, name) != value
        assert getattr(tiny_cmc_config(**CmcConfig.ABLATIONS[row]), name) == value


@pytest.mark.parametrize("overrides", [{}, {"vision_dim": None}])
@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains_every_parameter_it_builds(row: str, overrides: dict[str, Any]) -> None:
    config = tiny_cmc_config(**CmcConfig.ABLATIONS[row], **overrides)
    batch, classes = tiny_batch(config), PSEUDO[:, : len(config.modalities)]
    for model, labels in (
        (CmcForSentimentAnalysis(config), {"labels": tiny_labels(config), "pseudo_labels": classes}),
        (CmcForSentimentAnalysis(config), {"labels": tiny_labels(config)}),
        (CmcUnimodalModels(config), {"pseudo_labels": classes}),
    ):
        model.train()
        model(**batch, **labels).loss.backward()
        for name, parameter in some(model.named_parameters()):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_the_other_contrastive_loss_is_another_one() -> None:
    usual = build()(**inputs()).losses["supcon"]
    other = build(supcon_variant="khosla")(**inputs()).losses["supcon"]
    assert other > usual
