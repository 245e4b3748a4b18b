"""PGLH: the paper's equations with numbers made by hand, and what must and must not change."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from hf_msa.data.missing import apply_missing
from hf_msa.models.configuration_pglh import PglhConfig
from hf_msa.models.modeling_pglh import (
    Balance,
    PglhForSentimentAnalysis,
    PromptAttention,
    PromptRefiner,
    Reconstructor,
    VisibleEncoder,
    VisibleTokens,
    mean_error,
)
from hf_msa.models.msa_encoders import sinusoidal_positions
from nonempty import some
from tiny import UNK, VOCABULARY, tiny_backbone, tiny_batch, tiny_labels, tiny_pglh_config, tiny_processor, tiny_rows

MODALITIES = ("text", "audio", "vision")
VALUES = {"text": "input_ids", "audio": "audio_values", "vision": "vision_values"}


def build(seed: int = 0, **overrides: Any) -> PglhForSentimentAnalysis:
    torch.manual_seed(seed)
    return PglhForSentimentAnalysis(tiny_pglh_config(**overrides)).eval()


def draw_masks(batch: dict[str, Tensor], rate: float = 0.5, seed: int = 1) -> dict[str, Any]:
    """Dropped positions of every modality; special tokens and padding never are."""
    generator = torch.Generator().manual_seed(seed)
    masks = {"text": batch["input_ids"] > VOCABULARY["[MASK]"]}
    masks |= {name: batch[f"{name}_attention_mask"] == 1 for name in MODALITIES[1:] if f"{name}_values" in batch}
    return {
        name: (real & (torch.rand(real.shape, generator=generator) < rate)).numpy() for name, real in masks.items()
    }


def masked_inputs(config: PglhConfig, count: int = 4, rate: float = 0.5) -> dict[str, Tensor]:
    """A training batch: what is left, what was there, labels."""
    batch = tiny_batch(config, count)
    complete = {f"complete_{key}": batch[key] for key in VALUES.values() if key in batch}
    dropped: dict[str, Tensor] = apply_missing(batch, draw_masks(batch, rate), UNK)
    return {**dropped, **complete, "labels": tiny_labels(config, count)}


def tokens_of(*hidden: list[float]) -> VisibleTokens:
    """One row of tokens, all of them visible, at positions 0, 1, ..."""
    values = torch.tensor([hidden])
    return VisibleTokens(values, torch.ones(1, len(hidden), dtype=torch.bool), torch.arange(len(hidden))[None])


def set_balance(balance: Balance, value: float) -> None:
    nn.init.constant_(
        balance.logit, math.inf if value == 1 else -math.inf if value == 0 else math.log(value / (1 - value))
    )


def make_identity(layer: nn.Linear) -> None:
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)


class TestConfiguration:
    def test_defaults_are_those_of_the_paper_and_the_design(self) -> None:
        config = PglhConfig(audio_dim=5, vision_dim=20)
        assert (config.w_task, config.w_mask, config.w_global) == (1.0, 0.05, 0.05)
        assert (config.hidden_size, config.num_attention_heads, config.num_prompts) == (128, 8, 8)
        assert (config.encoder_feedforward_dim, config.decoder_feedforward_dim, config.dropout) == (512, 256, 0.1)
        assert config.reconstructed == MODALITIES
        assert config.mask_padding
        assert not config.is_oracle

    def test_full_size_layers(self) -> None:
        with torch.device("meta"):
            model = PglhForSentimentAnalysis(PglhConfig(audio_dim=5, vision_dim=20))
        for name, width in (("text", 768), ("audio", 5), ("vision", 20)):
            encoder, reconstructor = model.encoders[name], model.reconstructors[name]
            assert (encoder.projection.in_features, reconstructor.output.out_features) == (width, width)
            for stack, feedforward in ((encoder.transformer, 512), (reconstructor.decoder, 256)):
                (layer,) = stack.layers
                assert layer.norm_first
                assert layer.activation is nn.functional.gelu
                assert (layer.self_attn.num_heads, layer.linear1.out_features) == (8, feedforward)
            assert model.refiners[name].prompts.shape == (8, 128)
            assert (reconstructor.prompt is None) == (name == "text")
        assert model.regressor.in_features == 128

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"hidden_size": 15}, "hidden_size must be even and a multiple of num_attention_heads=2, got 15"),
            ({"hidden_size": 3, "num_attention_heads": 1}, "hidden_size must be even"),
            ({"num_prompts": 0}, "num_prompts must be at least 1, got 0"),
            ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
            ({"w_mask": -0.1}, "w_mask must be at least 0, got -0.1"),
            (
                {"reconstruct_modalities": []},
                r"must name some of text, audio, vision, got \[\]; .*w_mask and w_global",
            ),
            ({"reconstruct_modalities": ["sound"]}, "must name some of text, audio, vision, got"),
            ({"decoder_type": "cnn"}, "decoder_type"),
        ],
    )
    def test_what_does_not_work_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(StrictDataclassError, match=message):
            tiny_pglh_config(**fields)


def test_positions_are_sines_and_cosines_in_turn() -> None:
    expected = [[0, 1, 0, 1], [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]]
    assert torch.allclose(sinusoidal_positions(torch.arange(2), 4), torch.tensor(expected), atol=1e-7)


class TestVisibleEncoder:
    visible = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()

    def encoder(self) -> VisibleEncoder:
        torch.manual_seed(0)
        return VisibleEncoder(3, tiny_pglh_config()).eval()

    def test_it_ends_in_a_norm_as_its_layer_norms_first(self) -> None:
        hidden = self.encoder()(torch.randn(3, 4, 3) * 7, self.visible).hidden
        tokens = hidden[0], hidden[1, :2]
        assert all(torch.allclose(each.mean(-1), torch.zeros(len(each)), atol=1e-5) for each in tokens)
        assert all(torch.allclose(each.var(-1, unbiased=False), torch.ones(len(each)), atol=1e-3) for each in tokens)

    def test_visible_tokens_are_packed_to_the_front_in_order(self) -> None:
        tokens = self.encoder()(torch.randn(3, 4, 3), self.visible)
        assert tokens.mask.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
        assert tokens.index[0].tolist() == [0, 2, 3]
        assert tokens.index[1, :2].tolist() == [1, 3]

    def test_it_is_the_encoding_of_the_visible_subsequence_at_its_places(self) -> None:
        encoder, values = self.encoder(), torch.randn(3, 4, 3)
        tokens = encoder(values, self.visible)
        for row in (0, 1):
            kept = self.visible[row]
            alone = encoder.projection(values[row, kept]) + sinusoidal_positions(torch.arange(4), 16)[kept]
            expected = encoder.transformer(alone[None])[0]
            assert torch.allclose(tokens.hidden[row, : len(expected)], expected, atol=1e-6)

    def test_nothing_visible_is_the_null_token(self) -> None:
        encoder = self.encoder()
        tokens = encoder(torch.randn(3, 4, 3), self.visible)
        assert torch.equal(tokens.hidden[2, 0], encoder.null_token)
        assert tokens.mask[2].tolist() == [True, False, False]

    def test_many_rows_of_different_lengths_are_encoded_as_each_alone(self) -> None:
        """A CPU encodes rows of like length in groups."""
        encoder, values = self.encoder(), torch.randn(20, 9, 3)
        visible = torch.rand(20, 9, generator=torch.Generator().manual_seed(3)) < 0.6
        together = encoder(values, visible)
        for row in range(20):
            alone = encoder(values[row : row + 1], visible[row : row + 1])
            count = max(1, int(visible[row].sum()))
            assert torch.allclose(together.hidden[row, :count], alone.hidden[0, :count], atol=1e-6)

    def test_without_anything_missing_all_valid_positions_are_visible(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        tokens = model.encode(batch)
        assert torch.equal(tokens["text"].mask.sum(1), batch["attention_mask"].sum(1))
        for name in MODALITIES[1:]:
            assert torch.equal(tokens[name].mask.sum(1), batch[f"{name}_attention_mask"].sum(1))

    def test_text_never_loses_all_its_tokens(self) -> None:
        model = build()
        batch = masked_inputs(model.config, rate=1.0)
        tokens = model.encode(batch)
        assert tokens["text"].mask.sum(1).tolist() == [2, 2, 2, 2]
        assert torch.equal(tokens["audio"].hidden[:, 0], model.encoders["audio"].null_token.expand(4, -1))


class TestReconstructor:
    def reconstructor(self, modality: str = "audio", **overrides: Any) -> Reconstructor:
        torch.manual_seed(0)
        config = tiny_pglh_config(**{"hidden_size": 2, "num_attention_heads": 1, **overrides})
        return Reconstructor(modality, 3, config).eval()

    def test_restore_puts_mask_tokens_between_the_tokens(self) -> None:
        part = self.reconstructor()
        hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        restored = part.restore(hidden, torch.tensor([[0, 2]]), torch.tensor([[True, False, True, False]]))
        expected = torch.stack([hidden[0, 0], part.mask_token, hidden[0, 1], part.mask_token])
        assert torch.equal(restored[0], expected + sinusoidal_positions(torch.arange(4), 2))

    def test_restore_of_what_is_all_there_only_adds_positions(self) -> None:
        hidden = torch.randn(2, 3, 2)
        restored = self.reconstructor().restore(hidden, torch.arange(3).expand(2, -1), torch.ones(2, 3).bool())
        assert torch.equal(restored, hidden + sinusoidal_positions(torch.arange(3), 2))

    def test_restore_of_nothing_is_mask_tokens_and_no_null_token(self) -> None:
        part = self.reconstructor()
        restored = part.restore(torch.full((1, 1, 2), 9.0), torch.tensor([[0]]), torch.zeros(1, 3).bool())
        assert torch.equal(restored[0], part.mask_token + sinusoidal_positions(torch.arange(3), 2))

    def test_a_prompt_over_equal_keys_is_the_mean_of_the_values(self) -> None:
        part = self.reconstructor()
        nn.init.zeros_(part.attention.key.weight)
        make_identity(part.attention.value)
        text = tokens_of([1.0, 0.0], [3.0, 4.0])
        found = part.attention(part.prompt[None], text.hidden, text.mask)
        assert torch.allclose(found, torch.tensor([[[2.0, 2.0]]]))

    def test_a_prompt_over_one_token_is_its_value(self) -> None:
        part = self.reconstructor()
        hidden = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
        found = part.attention(part.prompt[None], hidden, torch.tensor([[False, True]]))
        assert torch.allclose(found[0, 0], part.attention.value(hidden[0, 1]))

    def test_attention_is_softmax_over_the_root_of_the_width(self) -> None:
        attention = PromptAttention(2)
        for layer in (attention.query, attention.key, attention.value):
            make_identity(layer)
        # Scores 0 and log(3) * sqrt(2), so weights 1/4 and 3/4.
        tokens = torch.tensor([[[0.0, 8.0], [math.log(3) * math.sqrt(2), 0.0]]])
        found = attention(torch.tensor([[[1.0, 0.0]]]), tokens, torch.ones(1, 2).bool())
        assert torch.allclose(found, torch.tensor([[[0.75 * math.log(3) * math.sqrt(2), 2.0]]]))

    def test_beta_weighs_text_against_the_modality(self) -> None:
        part, own, text = self.reconstructor(), tokens_of([1.0, 0.0], [5.0, 2.0]), tokens_of([4.0, 4.0])
        assert part.balance.value().item() == 0.5
        make_identity(part.attention.value)
        assert torch.allclose(part.guide(own, text), torch.tensor([[[2.5, 2.0], [4.5, 3.0]]]))
        set_balance(part.balance, 0.25)
        assert torch.allclose(part.guide(own, text), torch.tensor([[[1.75, 1.0], [4.75, 2.5]]]))
        set_balance(part.balance, 0)
        assert torch.equal(part.guide(own, text), own.hidden)
        set_balance(part.balance, 1)
        assert torch.equal(part.guide(own, text)[0, 0], part.guide(own, text)[0, 1])

    def test_text_is_guided_by_nothing(self) -> None:
        part, own = self.reconstructor("text"), tokens_of([1.0, 0.0])
        assert part.guide(own, own) is own.hidden

    def test_what_is_rebuilt_is_the_decoder_on_the_restored_sequence(self) -> None:
        part, own, text = self.reconstructor("audio"), tokens_of([1.0, 0.0], [5.0, 2.0]), tokens_of([4.0, 4.0])
        visible = torch.tensor([[True, True, False, False]])
        valid = torch.tensor([[True, True, True, False]])
        restored = part.restore(part.guide(own, text), own.index, visible)[:, :3]
        expected = part.output(part.decoder(restored))
        assert torch.allclose(part(own, text, visible=visible, valid=valid)[:, :3], expected, atol=1e-6)


class TestRefiner:
    def refiner(self) -> PromptRefiner:
        torch.manual_seed(0)
        return PromptRefiner(tiny_pglh_config(hidden_size=2, num_attention_heads=1)).eval()

    own, text = tokens_of([1.0, 0.0], [5.0, 2.0]), tokens_of([4.0, 4.0], [0.0, 1.0], [2.0, 2.0])

    def stages(self, refiner: PromptRefiner, context: Tensor) -> tuple[Tensor, Tensor]:
        """Both stages written out (eq. 11 to 14)."""

        def attend(part: PromptAttention, prompts: Tensor, tokens: Tensor) -> Tensor:
            scores = part.query(prompts) @ part.key(tokens).T / math.sqrt(2)
            return scores.softmax(-1) @ part.value(tokens)

        first = attend(refiner.self_guided, refiner.prompts, self.own.hidden[0])
        return first, attend(refiner.language_guided, first, context)

    def test_audio_and_vision_read_themselves_and_then_themselves_with_text(self) -> None:
        refiner = self.refiner()
        first, second = self.stages(refiner, torch.cat([self.own.hidden[0], self.text.hidden[0]]))
        assert refiner.balance.value().item() == 0.5
        assert torch.allclose(refiner(self.own, self.text)[0], (first + second) / 2, atol=1e-6)
        set_balance(refiner.balance, 0.25)
        assert torch.allclose(refiner(self.own, self.text)[0], 0.75 * first + 0.25 * second, atol=1e-6)

    def test_text_reads_itself_twice(self) -> None:
        refiner = self.refiner()
        first, second = self.stages(refiner, self.own.hidden[0])
        assert torch.allclose(refiner(self.own, None)[0], (first + second) / 2, atol=1e-6)

    def test_alpha_0_leaves_the_first_stage(self) -> None:
        refiner = self.refiner()
        set_balance(refiner.balance, 0)
        first, _ = self.stages(refiner, self.own.hidden[0])
        assert torch.allclose(refiner(self.own, self.text)[0], first, atol=1e-6)

    def test_prompts_over_one_constant_are_that_constant(self) -> None:
        """With the value maps as identity f = c, hence h = c in either kind of pooling."""
        constant = torch.linspace(-1, 1, 16)
        for pooling in ("joint", "separate"):
            model = build(pooling=pooling)
            for refiner in model.refiners.values():
                make_identity(refiner.self_guided.value)
                make_identity(refiner.language_guided.value)
            tokens = {name: tokens_of(*[constant.tolist()] * 3) for name in MODALITIES}
            assert torch.allclose(model.refiners["audio"](tokens["audio"], tokens["text"]), constant, atol=1e-6)
            assert torch.allclose(model.fuse(tokens), constant.expand(1, 3, 16), atol=1e-6)


class TestPrompts:
    @pytest.mark.parametrize(("fields", "expected"), [({}, 1.0), ({"prompt_init_std": 0.02}, 0.02)])
    def test_all_prompts_start_with_the_deviation_of_the_configuration(
        self, fields: dict[str, Any], expected: float
    ) -> None:
        model = build(num_prompts=64, **fields)
        drawn = [refiner.prompts for refiner in model.refiners.values()]
        drawn.append(torch.stack([build(seed, **fields).reconstructors["audio"].prompt for seed in range(64)]))
        for prompts in drawn:
            assert prompts.std().item() == pytest.approx(expected, rel=0.1)
            assert prompts.mean().abs() < 0.15 * expected
        for other in (model.reconstructors["audio"].mask_token, model.encoders["audio"].null_token):
            assert other.abs().max() < 0.1

    def test_the_deviation_must_be_positive(self) -> None:
        with pytest.raises(StrictDataclassError, match="prompt_init_std must be above 0, got 0"):
            tiny_pglh_config(prompt_init_std=0)

    def test_prompts_that_start_apart_attend_apart(self) -> None:
        """How far eq. 11 spreads the prompts of one modality, as a share of their length."""
        tokens = VisibleTokens(torch.randn(8, 6, 16), torch.ones(8, 6).bool(), torch.arange(6).expand(8, -1))
        spreads = {}
        for std in (0.02, 1.0):
            torch.manual_seed(0)
            refiner = PromptRefiner(tiny_pglh_config(num_prompts=8, prompt_init_std=std))
            refined = refiner(tokens, None)
            distances = refined - refined.mean(dim=1, keepdim=True)
            spreads[std] = (distances.square().sum() / refined.square().sum()).sqrt().item()
        assert spreads[0.02] < 0.02 < 0.2 < spreads[1.0]

    def test_every_alpha_and_beta_is_of_the_component_balances(self) -> None:
        model = build()
        found = [name for name, _ in model.named_parameters() if model.component_of(name) == "balances"]
        assert sorted(found) == [
            "reconstructors.audio.balance.logit",
            "reconstructors.vision.balance.logit",
            "refiners.audio.balance.logit",
            "refiners.text.balance.logit",
            "refiners.vision.balance.logit",
        ]
        assert model.component_of("refiners.text.prompts") == "refiners"


class TestFusion:
    def prompts_of_ones(self, **overrides: Any) -> PglhForSentimentAnalysis:
        """Two prompts per modality that always are ones."""

        class Ones(nn.Module):
            def forward(self, own: VisibleTokens, text: VisibleTokens | None) -> Tensor:
                return torch.ones(len(own.hidden), 2, own.hidden.shape[-1])

        model = build(**overrides)
        for name in MODALITIES:
            model.refiners[name] = Ones()
        return model

    def tokens(self) -> dict[str, VisibleTokens]:
        """Two visible tokens of 4 and 7, and one of 100 that does not count."""
        hidden = torch.tensor([4.0, 7.0, 100.0])[None, :, None].expand(1, 3, 16)
        one = VisibleTokens(hidden, torch.tensor([[True, True, False]]), torch.arange(3)[None])
        return dict.fromkeys(MODALITIES, one)

    def test_joint_pooling_counts_prompts_and_tokens_alike(self) -> None:
        pooled = self.prompts_of_ones().fuse(self.tokens())
        assert torch.allclose(pooled, torch.full((1, 3, 16), (1 + 1 + 4 + 7) / 4))

    def test_separate_pooling_is_the_mean_of_two_means(self) -> None:
        pooled = self.prompts_of_ones(pooling="separate").fuse(self.tokens())
        assert torch.allclose(pooled, torch.full((1, 3, 16), (1 + 5.5) / 2))

    def test_without_prompts_it_is_the_mean_of_the_visible_tokens(self) -> None:
        assert torch.allclose(build(ubpf=False).fuse(self.tokens()), torch.full((1, 3, 16), 5.5))

    def test_the_score_is_a_linear_map_of_the_sum(self) -> None:
        model = build()
        out = model(**tiny_batch(model.config))
        assert torch.allclose(out.logits, model.regressor(out.embeddings.sum(1)))


class TestLosses:
    dropped = torch.tensor([[False, True, False, True]])

    def losses(self, errors: Tensor, dropped: Tensor, valid: Tensor | None = None, **overrides: Any) -> list[float]:
        """`[global, mask]` of audio where the reconstruction is off by `errors`."""
        model = build(**{"reconstruct_modalities": ["audio"], "audio_dim": 2, **overrides})
        target = torch.randn(errors.shape)
        model.decode = lambda *_: {"audio": target + errors}
        batch = {
            "input_ids": torch.ones(1, 4, dtype=torch.long),
            "vision_values": torch.zeros(1, 4, 7),
            "audio_values": target,
            "complete_audio_values": target,
            "audio_missing_mask": dropped,
            "audio_attention_mask": torch.ones_like(dropped).long() if valid is None else valid,
        }
        found = model.reconstruction_losses({}, batch)
        return [round(found[name].item(), 5) for name in ("global", "mask")]

    errors = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]])

    def test_masked_and_global_error(self) -> None:
        assert self.losses(self.errors, self.dropped) == [0.625, 1.25]
        assert self.losses(self.errors, self.dropped, mask_loss_reduction="sum") == [0.625, 2.5]

    def test_with_everything_dropped_both_are_one(self) -> None:
        assert self.losses(self.errors, torch.ones(1, 4).bool()) == [0.625, 0.625]

    def test_with_nothing_dropped_the_masked_error_is_0(self) -> None:
        assert self.losses(self.errors, torch.zeros(1, 4).bool()) == [0.625, 0.0]

    def test_padding_does_not_count_even_if_it_is_called_dropped(self) -> None:
        assert self.losses(self.errors, self.dropped, torch.tensor([[1, 1, 1, 0]])) == [0.16667, 0.5]

    def test_positions_of_the_whole_batch_count_alike(self) -> None:
        errors = torch.tensor([[1.0, 4.0], [9.0, 16.0]])
        assert mean_error(errors, torch.tensor([[True, False], [True, True]])) == 26 / 3
        assert mean_error(errors, torch.zeros(2, 2).bool()) == 0

    def test_the_loss_is_the_weighted_sum(self) -> None:
        model = build()
        inputs = masked_inputs(model.config)
        out = model(**inputs)
        assert set(out.losses) == {"task", "global", "mask"}
        expected = out.losses["task"] + 0.05 * out.losses["global"] + 0.05 * out.losses["mask"]
        assert torch.allclose(out.loss, expected)

    def test_modalities_are_summed_up(self) -> None:
        """The same weights with fewer decoders: what is left out is missing from both terms."""
        model = build()
        inputs = masked_inputs(model.config)
        total = model(**inputs).losses
        parts = []
        for name in MODALITIES:
            part = build(reconstruct_modalities=[name])
            part.load_state_dict(model.state_dict(), strict=False)
            parts.append(part(**inputs).losses)
        for term in ("global", "mask"):
            assert torch.allclose(total[term], sum(part[term] for part in parts))

    def test_the_text_target_is_the_text_encoder_on_the_complete_text(self) -> None:
        model = build()
        inputs = masked_inputs(model.config)
        targets = model.reconstruction_targets(inputs)
        assert torch.equal(targets["text"], model.encode_text(inputs["complete_input_ids"], inputs["attention_mask"]))
        assert not targets["text"].requires_grad
        assert torch.equal(targets["audio"], inputs["complete_audio_values"])

    def test_the_text_target_has_no_dropout_in_training_and_leaves_it_on_for_the_input(self) -> None:
        dropping = {**tiny_backbone(), "hidden_dropout_prob": 0.5}
        model = build(text_config=dropping)
        inputs = masked_inputs(model.config)
        expected = model.reconstruction_targets(inputs)["text"]
        assert not model.text_encoder.training
        model.train()
        for _ in range(2):
            assert torch.equal(model.reconstruction_targets(inputs)["text"], expected)
        assert all(module.training for module in model.modules())
        encoded = [model.encode_text(inputs["input_ids"], inputs["attention_mask"]) for _ in range(2)]
        assert not torch.equal(*encoded)

    @pytest.mark.parametrize("frames", [1, 2])
    def test_the_masked_loss_of_a_single_frame_gives_the_prompt_no_gradient(self, frames: int) -> None:
        model = build(w_task=0.0, w_global=0.0)
        config = model.config
        mask = torch.zeros(4, frames).bool()
        mask[::2, 0] = True
        batch = tiny_batch(config)
        for name, width in (("audio", config.audio_dim), ("vision", config.vision_dim)):
            values = torch.randn(4, frames, width)
            batch |= {f"{name}_values": values, f"complete_{name}_values": values, f"{name}_missing_mask": mask}
            batch |= {f"{name}_attention_mask": torch.ones(4, frames).long()}
        model(**batch, labels=tiny_labels(config)).loss.backward()
        for part in (model.reconstructors["audio"], model.reconstructors["vision"]):
            for parameter in (part.prompt, part.attention.value.weight, part.balance.logit):
                assert parameter.grad is not None and bool(parameter.grad.any()) == (frames > 1)
            assert part.mask_token.grad.any()

    @pytest.mark.parametrize("given", [{"reconstruct": False}, {f"complete_{key}": None for key in VALUES.values()}])
    def test_without_targets_or_when_told_so_the_loss_is_that_of_the_score(self, given: dict[str, Any]) -> None:
        model = build()
        out = model(**{**masked_inputs(model.config), **given})
        assert list(out.losses) == ["task"]
        assert torch.equal(out.loss, out.losses["task"])

    def test_reconstruction_has_the_shape_of_its_target(self) -> None:
        model = build()
        inputs = masked_inputs(model.config)
        made, targets = model.reconstruct(inputs), model.reconstruction_targets(inputs)
        assert {name: value.shape for name, value in made.items()} == {
            name: value.shape for name, value in targets.items()
        }
        assert list(made) == list(MODALITIES)


class TestGradients:
    def reached(self, model: PglhForSentimentAnalysis, loss: Tensor) -> set[str]:
        loss.backward()
        return {
            name.split(".")[0]
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }

    def test_the_score_does_not_train_what_is_not_there_at_inference(self) -> None:
        model = build(w_mask=1.0)
        out = model(**masked_inputs(model.config), reconstruct=False)
        assert self.reached(model, out.loss) == {"text_encoder", "encoders", "refiners", "regressor"}

    def test_reconstruction_trains_encoders_and_decoders(self) -> None:
        model = build(w_task=0.0)
        assert self.reached(model, model(**masked_inputs(model.config)).loss) == {
            *("text_encoder", "encoders", "reconstructors")
        }

    @pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
    def test_every_parameter_is_in_the_graph_whatever_is_missing(self, rate: float) -> None:
        """Processes that train together wait for the gradient of every parameter."""
        model = build().train()
        model(**masked_inputs(model.config, rate=rate)).loss.backward()
        for name, parameter in some(model.named_parameters()):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name

    def test_a_step_of_training_changes_every_module(self) -> None:
        model = build().train()
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(**masked_inputs(model.config)).loss.backward()
        optimizer.step()
        same = {name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)}
        # Every row has visible tokens; keys' biases move no softmax.
        assert not {name for name in same if "null_token" not in name and ".key.bias" not in name}


@pytest.mark.parametrize("drop_decoder", [False, True])
@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "with gradients"])
class TestNoInfluence:
    """What is dropped or padded changes nothing at all: the difference is 0, not small."""

    def scores(self, drop_decoder: bool, gradient: bool, inputs: dict[str, Tensor]) -> Tensor:
        """Torch has another implementation of the Transformer for inference without gradients."""
        with torch.set_grad_enabled(gradient):
            out = build(drop_decoder=drop_decoder)(**{key: v for key, v in inputs.items() if key != "labels"})
        return torch.cat([out.logits, out.embeddings.flatten(1)], dim=1).detach()

    @pytest.mark.parametrize("content", [7.0, 1e30, math.nan])
    @pytest.mark.parametrize("modality", ["audio", "vision"])
    def test_dropped_and_padded_frames(
        self, drop_decoder: bool, gradient: bool, modality: str, content: float
    ) -> None:
        inputs = masked_inputs(tiny_pglh_config())
        hidden = inputs[f"{modality}_missing_mask"] | (inputs[f"{modality}_attention_mask"] == 0)
        assert hidden.any() and not hidden.all()
        changed = inputs[f"{modality}_values"].masked_fill(hidden.unsqueeze(-1), content)
        other = {**inputs, f"{modality}_values": changed}
        assert torch.equal(self.scores(drop_decoder, gradient, inputs), self.scores(drop_decoder, gradient, other))

    def test_the_complete_inputs(self, drop_decoder: bool, gradient: bool) -> None:
        inputs = masked_inputs(tiny_pglh_config())
        other = {
            **inputs,
            "complete_input_ids": torch.full_like(inputs["input_ids"], VOCABULARY["bad"]),
            "complete_audio_values": torch.full_like(inputs["audio_values"], 9.0),
            "complete_vision_values": torch.full_like(inputs["vision_values"], 9.0),
        }
        assert torch.equal(self.scores(drop_decoder, gradient, inputs), self.scores(drop_decoder, gradient, other))

    def test_dropped_words_and_padded_ids(self, drop_decoder: bool, gradient: bool) -> None:
        batch = tiny_batch(tiny_pglh_config())
        masks = draw_masks(batch)
        hidden = torch.from_numpy(masks["text"])
        other = {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, VOCABULARY["great"])}
        assert not torch.equal(batch["input_ids"], other["input_ids"])
        first, second = (apply_missing(values, masks, UNK) for values in (batch, other))
        second["input_ids"] = second["input_ids"].masked_fill(batch["attention_mask"] == 0, VOCABULARY["bad"])
        assert not torch.equal(first["input_ids"], second["input_ids"])
        assert torch.equal(self.scores(drop_decoder, gradient, first), self.scores(drop_decoder, gradient, second))

    def test_visible_content_does_matter(self, drop_decoder: bool, gradient: bool) -> None:
        inputs = masked_inputs(tiny_pglh_config())
        expected = self.scores(drop_decoder, gradient, inputs)
        for name in some(MODALITIES[1:]):
            other = {**inputs, f"{name}_values": inputs[f"{name}_values"] + 1}
            assert not torch.allclose(expected, self.scores(drop_decoder, gradient, other), atol=1e-4)


def test_the_output_of_a_dropped_token_is_not_read() -> None:
    """Even where a batch still holds the word: it reaches others through attention in the text encoder alone."""
    model = build()
    inputs = masked_inputs(model.config)
    tokens = model.encode(inputs)["text"]
    kept = inputs["attention_mask"].bool() & ~inputs["text_missing_mask"]
    assert torch.equal(tokens.mask.sum(1), kept.sum(1))
    for row, positions in enumerate(kept):
        count = int(positions.sum())
        assert tokens.index[row, :count].tolist() == positions.nonzero().squeeze(1).tolist()


class TestDropDecoder:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        build(seed=4).save_pretrained(tmp_path / "full")
        return tmp_path / "full"

    def test_it_predicts_the_same_bits_from_a_smaller_checkpoint(
        self, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        inputs = masked_inputs(tiny_pglh_config())
        full = PglhForSentimentAnalysis.from_pretrained(saved)
        capfd.readouterr()
        small = PglhForSentimentAnalysis.from_pretrained(saved, drop_decoder=True)
        assert "reconstructors" not in caplog.text + "".join(capfd.readouterr())
        gone = set(full.state_dict()) - set(small.state_dict())
        assert gone and gone == {name for name in full.state_dict() if name.startswith("reconstructors.")}
        expected = full(**inputs, reconstruct=False)
        found = small(**inputs, reconstruct=False)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.loss, expected.loss)

        small.save_pretrained(tmp_path / "small")
        sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "small", saved)]
        assert sizes[0] < sizes[1]
        again = PglhForSentimentAnalysis.from_pretrained(tmp_path / "small")
        assert again.config.drop_decoder
        assert torch.equal(again(**inputs, reconstruct=False).logits, expected.logits)

    def test_it_cannot_learn_to_reconstruct(self, saved: Path) -> None:
        small = PglhForSentimentAnalysis.from_pretrained(saved, drop_decoder=True)
        inputs = masked_inputs(small.config)
        with pytest.raises(
            ValueError, match="drop_decoder=True and cannot learn from complete inputs.*reconstruct=False"
        ):
            small(**inputs)
        with pytest.raises(ValueError, match="no decoders to reconstruct with"):
            small.reconstruct(inputs)

    def test_without_complete_inputs_the_score_can_be_trained(self, saved: Path) -> None:
        small = PglhForSentimentAnalysis.from_pretrained(saved, drop_decoder=True)
        inputs = {key: value for key, value in masked_inputs(small.config).items() if not key.startswith("complete")}
        assert small(**inputs).loss.requires_grad

    def test_a_reloaded_model_reconstructs_the_same_bits(self, saved: Path) -> None:
        inputs = masked_inputs(tiny_pglh_config())
        expected = build(seed=4).reconstruct(inputs)
        found = PglhForSentimentAnalysis.from_pretrained(saved).reconstruct(inputs)
        assert all(torch.equal(found[name], value) for name, value in expected.items())


class TestInputs:
    def test_order_of_samples_does_not_matter(self) -> None:
        model = build()
        inputs = masked_inputs(model.config)
        order = torch.tensor([2, 0, 3, 1])
        shuffled = model(**{name: value[order] for name, value in inputs.items()})
        expected = model(**inputs)
        assert torch.allclose(shuffled.logits, expected.logits[order], atol=1e-6)
        assert torch.allclose(shuffled.loss, expected.loss)

    @pytest.mark.parametrize("count", [4, 20])
    def test_a_masked_sample_alone_gets_the_score_it_gets_in_a_batch(self, count: int) -> None:
        model = build()
        inputs = masked_inputs(model.config, count)
        expected = model(**inputs).logits
        for index in some(range(count)):
            alone = model(**{name: value[index : index + 1] for name, value in inputs.items()})
            assert torch.allclose(alone.logits[0], expected[index], atol=1e-5)

    def test_without_missing_masks_everything_is_visible(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        bare = {key: value for key, value in batch.items() if not key.endswith("missing_mask")}
        assert len(bare) == len(batch) - 3
        assert torch.equal(model(**batch).logits, model(**bare).logits)

    def test_without_an_attention_mask_all_frames_are_real(self) -> None:
        model = build()
        batch = tiny_batch(model.config)
        batch["audio_attention_mask"] = torch.ones_like(batch["audio_attention_mask"])
        expected = model(**batch).logits
        del batch["audio_attention_mask"]
        assert torch.equal(model(**batch).logits, expected)

    def test_with_mask_padding_off_padding_counts_as_visible(self) -> None:
        model = build(mask_padding=False)
        batch = tiny_batch(model.config)
        tokens = model.encode(batch)
        assert all(part.mask.all() for part in tokens.values())
        assert tokens["audio"].mask.shape == batch["audio_attention_mask"].shape

    def test_a_sample_without_any_modality_but_text_trains(self) -> None:
        """Nothing of it counts in the reconstruction of audio and vision, and nothing becomes NaN."""
        model = build().train()
        rows = tiny_rows(model.config)
        rows[0] = {**rows[0], "audio_present": False, "vision_present": False}
        batch = dict(tiny_processor(model.config).from_rows(rows))
        complete = {f"complete_{key}": batch[key] for key in VALUES.values()}
        for name in ("audio", "vision"):
            there = torch.tensor([0, 1, 1, 1]).unsqueeze(1)
            complete[f"complete_{name}_attention_mask"] = batch[f"{name}_attention_mask"] * there
        out = model(**batch, **complete, labels=tiny_labels(model.config))
        out.loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        changed = complete["complete_audio_values"].clone()
        changed[0] += 5
        again = model(**batch, **{**complete, "complete_audio_values": changed}, labels=tiny_labels(model.config))
        assert torch.equal(again.losses["global"], out.losses["global"])
        with torch.no_grad():
            made = model.eval().reconstruct(batch)
        assert all(torch.isfinite(values).all() for values in made.values())

    @pytest.mark.parametrize("absent", ["audio", "vision"])
    def test_a_modality_that_the_data_lacks_has_no_parts(self, absent: str) -> None:
        model = build(**{f"{absent}_dim": None})
        assert not any(absent in name for name, _ in model.named_parameters())
        out = model(**masked_inputs(model.config))
        assert out.embeddings.shape == (4, 2, 16)
        assert set(out.losses) == {"task", "global", "mask"}

    def test_lower_precision_stays_close(self) -> None:
        model = build()
        inputs = masked_inputs(model.config)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(**inputs)
        assert torch.allclose(low.logits.float(), model(**inputs).logits, atol=0.1)
        assert torch.isfinite(low.loss)

    def test_a_model_in_lower_precision_predicts(self) -> None:
        model = build()
        inputs = masked_inputs(model.config)
        expected = model(**inputs).logits
        half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
        out = model.bfloat16()(**half)
        assert out.logits.dtype == torch.bfloat16
        assert torch.allclose(out.logits.float(), expected, atol=0.1)


def test_fresh_balances_are_logged_as_one_half() -> None:
    values = build().logged_values()
    assert values == dict.fromkeys(("alpha_text", "alpha_audio", "alpha_vision", "beta_audio", "beta_vision"), 0.5)
    assert build(ubpf=False, language_prompt=False).logged_values() == {}


def test_learned_tokens_missing_from_a_file_are_drawn_anew(tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(
        tmp_path,
        state_dict={
            name: value
            for name, value in model.state_dict().items()
            if not name.endswith(("null_token", "prompts", "logit"))
        },
    )
    loaded = PglhForSentimentAnalysis.from_pretrained(tmp_path)
    assert 0 < loaded.encoders["audio"].null_token.std() < 0.1
    assert 0.5 < loaded.refiners["audio"].prompts.std() < 2
    assert set(loaded.logged_values().values()) == {0.5}
