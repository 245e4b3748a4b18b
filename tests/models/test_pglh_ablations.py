"""Every row of PGLH's ablation tables builds, trains, and changes what it is said to change."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_msa.data.missing import apply_missing
from hf_msa.models.configuration_pglh import PglhConfig
from hf_msa.models.modeling_pglh import PglhForSentimentAnalysis
from nonempty import some
from tiny import UNK, VOCABULARY, tiny_batch, tiny_labels, tiny_pglh_config

ROWS = list(PglhConfig.ABLATIONS)


def build(row: str | None = None, **overrides: Any) -> PglhForSentimentAnalysis:
    torch.manual_seed(0)
    fields = PglhConfig.ABLATIONS[row] if row else {}
    return PglhForSentimentAnalysis(tiny_pglh_config(**fields, **overrides)).eval()


def with_weights_of(model: PglhForSentimentAnalysis, row: str) -> PglhForSentimentAnalysis:
    """The row's model with the weights of another as far as it has them, so that only the row makes a difference."""
    other = build(row)
    other.load_state_dict(model.state_dict(), strict=False)
    return other


def inputs() -> dict[str, Tensor]:
    """A batch of which every second position is dropped, what was there, and labels."""
    config = tiny_pglh_config()
    batch = tiny_batch(config)
    complete = {f"complete_{key}": batch[key] for key in ("input_ids", "audio_values", "vision_values")}
    masks = {name: batch[f"{name}_attention_mask"].numpy() == 1 for name in ("audio", "vision")}
    masks["text"] = (batch["input_ids"] > VOCABULARY["[MASK]"]).numpy()
    for mask in masks.values():
        mask[:, ::2] = False
    return {**apply_missing(batch, masks, UNK), **complete, "labels": tiny_labels(config)}


def parameter_names(model: PglhForSentimentAnalysis) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def gone(row: str) -> set[str]:
    """Parts of the full model that the row does not build, as `<module>.<part>` without modality."""
    added = parameter_names(build(row)) - parameter_names(build())
    assert not added, added
    names = parameter_names(build()) - parameter_names(build(row))
    return {f"{name.split('.')[0]}.{name.split('.')[2]}" for name in names}


def maps_every_token_by_itself() -> None:
    assert gone("wo_decoder") == {"reconstructors.decoder"}
    model = build("wo_decoder")
    batch = inputs()
    tokens = model.encode(batch)
    for name, (_, visible) in model.masks(batch).items():
        part = model.reconstructors[name]
        restored = part.restore(part.guide(tokens[name], tokens["text"]), tokens[name].index, visible)
        assert torch.equal(model.reconstruct(batch)[name], part.output(restored))
    assert set(model(**batch).losses) == {"task", "global", "mask"}


def rebuilds_audio_and_vision_from_themselves() -> None:
    assert gone("wo_prompt") == {"reconstructors.prompt", "reconstructors.attention", "reconstructors.balance"}
    full = build()
    plain = with_weights_of(full, "wo_prompt").reconstruct(inputs())
    for part in full.reconstructors.values():
        if part.balance is not None:
            nn.init.constant_(part.balance.logit, -torch.inf)
    for name, values in full.reconstruct(inputs()).items():
        assert torch.equal(values, plain[name]), name


def averages_visible_tokens() -> None:
    assert gone("wo_ubpf") == {f"refiners.{part}" for part in ("prompts", "self_guided", "language_guided", "balance")}
    model = build("wo_ubpf")
    tokens = model.encode(inputs())
    for row in range(4):
        expected = [part.hidden[row, part.mask[row]].mean(0) for part in tokens.values()]
        assert torch.allclose(model.fuse(tokens)[row], torch.stack(expected), atol=1e-6)


def weighs_the_losses(row: str, w_mask: float, w_global: float) -> None:
    out = with_weights_of(build(), row)(**inputs())
    full = build()(**inputs())
    assert out.losses == full.losses
    expected = out.losses["task"] + w_mask * out.losses["mask"] + w_global * out.losses["global"]
    assert torch.allclose(out.loss, expected)


def has_nothing_to_reconstruct_with() -> None:
    model = with_weights_of(build(), "wo_reconstruction_losses")
    assert not any(name.startswith("reconstructors") for name in parameter_names(model))
    out = model(**inputs())
    assert list(out.losses) == ["task"]
    assert torch.equal(out.logits, build()(**inputs()).logits)


def lets_hidden_words_reach_visible_ones() -> None:
    model = build("text_mask_feature")
    assert model.config.is_oracle
    assert model.config.oracle_inputs == ("complete_input_ids", "complete_attention_mask")
    batch = inputs()
    dropped = batch["text_missing_mask"]
    words = {**batch, "complete_input_ids": batch["complete_input_ids"].masked_fill(dropped, VOCABULARY["bad"])}
    assert not torch.equal(batch["complete_input_ids"], words["complete_input_ids"])
    assert not torch.allclose(model(**batch).logits, model(**words).logits, atol=1e-5)
    assert torch.equal(build()(**batch).logits, build()(**words).logits), "masking at the input hides the words"
    assert torch.equal(model.encode(batch)["text"].mask, build().encode(batch)["text"].mask)
    # The incomplete ids are read only where there are no complete ones.
    del words["complete_input_ids"]
    assert torch.equal(model(**words).logits, build()(**batch).logits)


def leaves_text_alone() -> None:
    model = with_weights_of(build(), "reconstruct_audio_vision")
    assert set(model.reconstructors) == {"audio", "vision"}
    part, full = model(**inputs()).losses, build()(**inputs()).losses
    assert part["task"] == full["task"]
    assert part["global"] < full["global"]
    assert part["mask"] < full["mask"]


def sums_over_features() -> None:
    """With one modality the literal form is its width times the other."""
    batch = inputs()
    losses = [build(row, reconstruct_modalities=["vision"])(**batch).losses for row in (None, "mask_loss_sum")]
    assert torch.allclose(losses[1]["mask"], 7 * losses[0]["mask"])
    assert losses[1]["global"] == losses[0]["global"]


def averages_prompts_apart() -> None:
    model = with_weights_of(build(), "pool_separate")
    tokens = model.encode(inputs())
    prompts = model.refiners["audio"](tokens["audio"], tokens["text"]).mean(1)
    own = build("wo_ubpf").fuse(tokens)[:, 1]
    assert torch.allclose(model.fuse(tokens)[:, 1], (prompts + own) / 2, atol=1e-6)
    assert not torch.allclose(model.fuse(tokens), build().fuse(tokens), atol=1e-5)


EFFECTS: dict[str, Callable[[], None]] = {
    "wo_decoder": maps_every_token_by_itself,
    "wo_prompt": rebuilds_audio_and_vision_from_themselves,
    "wo_ubpf": averages_visible_tokens,
    "wo_global_loss": partial(weighs_the_losses, "wo_global_loss", 0.05, 0.0),
    "wo_mask_loss": partial(weighs_the_losses, "wo_mask_loss", 0.0, 0.05),
    "wo_reconstruction_losses": has_nothing_to_reconstruct_with,
    "weights_0.025_0.025": partial(weighs_the_losses, "weights_0.025_0.025", 0.025, 0.025),
    "weights_0.025_0.05": partial(weighs_the_losses, "weights_0.025_0.05", 0.025, 0.05),
    "weights_0.05_0.05": partial(weighs_the_losses, "weights_0.05_0.05", 0.05, 0.05),
    "weights_0.05_0.1": partial(weighs_the_losses, "weights_0.05_0.1", 0.05, 0.1),
    "weights_0.1_0.1": partial(weighs_the_losses, "weights_0.1_0.1", 0.1, 0.1),
    "text_mask_feature": lets_hidden_words_reach_visible_ones,
    "reconstruct_audio_vision": leaves_text_alone,
    "mask_loss_sum": sums_over_features,
    "pool_separate": averages_prompts_apart,
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_changes_what_it_says(row: str) -> None:
    EFFECTS[row]()


def test_the_papers_rows_are_all_there() -> None:
    assert set(EFFECTS) == set(ROWS)


def test_one_pair_of_weights_is_the_default_and_every_other_row_differs_from_it() -> None:
    """Table 8 is complete only with the default among its pairs."""
    default = tiny_pglh_config()
    names = {field.name for field in dataclasses.fields(PglhConfig)}
    same = set()
    for row, fields in PglhConfig.ABLATIONS.items():
        assert set(fields) <= names
        changed = tiny_pglh_config(**fields)
        assert {name: getattr(changed, name) for name in fields} == fields
        if all(getattr(default, name) == value for name, value in fields.items()):
            same.add(row)
    assert same == {"weights_0.05_0.05"}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains_every_parameter_it_builds(row: str) -> None:
    model = build(row).train()
    model(**inputs()).loss.backward()
    for name, parameter in some(model.named_parameters()):
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
