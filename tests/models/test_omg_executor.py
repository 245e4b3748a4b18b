"""The executor of OMG-Agent against numbers made by hand, and what its masks, adapters and samplers promise."""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_msa.models.configuration_omg import OmgConfig
from hf_msa.models.omg_executor import (
    SCHEDULERS,
    Denoiser,
    EvidenceAlignment,
    FeatureSemantics,
    LatentVae,
    ModalityExecutor,
    ZeroAdapter,
    build_scheduler,
    draw_noise,
    feature_statistics,
)
from tiny import tiny_omg_config

pytest.importorskip("diffusers")

# diffusers 0.42 hands tensors to numpy 2 in a way that numpy is going to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LATENT, CONDITION, WIDTH = 4, 6, 16
SAMPLERS = tuple(SCHEDULERS)
INJECTIONS = ("hierarchical", "reversed", "concat", "single_stream")


def small(**overrides: Any) -> OmgConfig:
    sizes = {"latent_dim": LATENT, "condition_dim": CONDITION, "vae_hidden": 8, "denoiser_dim": WIDTH}
    sizes |= {"denoiser_layers": 6, "denoiser_heads": 2, "denoiser_feedforward_dim": 32}
    return tiny_omg_config(**{**sizes, **overrides})


def all_real(values: Tensor) -> Tensor:
    """A mask over `values` `(batch, length, width)` in which every position is real."""
    return torch.ones(values.shape[:2], dtype=torch.bool)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter, also those that start as zero, values that do not cancel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def tiny_denoiser(injection: str = "hierarchical", seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(small(injection=injection))


def inputs(batch: int = 2, latents: int = 5, seed: int = 1) -> dict[str, Tensor]:
    return {
        "noisy": normal(batch, latents, LATENT, seed=seed),
        "timesteps": torch.arange(batch) * 100 + 7,
        "observed": normal(batch, CONDITION, seed=seed + 1),
        "plan": normal(batch, 1, CONDITION, seed=seed + 2),
        "evidence": normal(batch, latents, LATENT, seed=seed + 3),
        "mask": torch.ones(batch, latents, dtype=torch.bool),
    }


class TestLatentVae:
    def vae(self, dim: int = 5, **overrides: Any) -> LatentVae:
        torch.manual_seed(0)
        return LatentVae(dim, small(**overrides))

    def test_fifty_positions_become_twenty_five_latents_and_fifty_again(self) -> None:
        vae, values = self.vae(74, latent_dim=32), normal(2, 50, 74)
        latents = vae.latents(values, all_real(values))
        assert latents.shape == (2, 25, 32)
        assert vae.decode(latents, all_real(values)).shape == (2, 50, 74)

    @pytest.mark.parametrize("length", [1, 2, 7])
    def test_any_length_comes_back(self, length: int) -> None:
        vae, values = self.vae(), normal(2, length, 5)
        latents = vae.latents(values, all_real(values))
        assert latents.shape[1] == math.ceil(length / 2)
        assert vae.decode(latents, all_real(values)).shape == (2, length, 5)

    def test_a_latent_is_real_if_one_of_its_two_positions_is(self) -> None:
        mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
        assert LatentVae.latent_mask(mask).tolist() == [[True, True, False], [False, False, True]]

    @pytest.mark.parametrize(
        ("mean", "log_variance", "divergence"),
        # (4 + 1 - 1 - 0) / 2 = 2; variance e: (e - 1 - 1) / 2.
        [(2.0, 0.0, 2.0), (0.0, 1.0, (math.e - 2) / 2), (0.0, 0.0, 0.0)],
    )
    def test_losses_by_hand(self, mean: float, log_variance: float, divergence: float) -> None:
        # All weights zero: decoded is the bias .5, mean and log-variance are biases.
        vae = self.vae(1, latent_dim=1, vae_hidden=2).eval()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.zero_()
            vae.encoder_out.bias.copy_(torch.tensor([mean, log_variance]))
            vae.decoder_out.bias[0] = 0.5
        reconstruction, kl = vae(torch.tensor([[[1.5], [2.5], [9.0], [9.0]]]), torch.tensor([[1, 1, 0, 0]]))
        assert reconstruction.item() == pytest.approx((1.0 + 4.0) / 2)
        assert kl.item() == pytest.approx(divergence)
        decoded = vae.decode(torch.ones(1, 2, 1), torch.tensor([[1, 1, 0, 0]]))
        assert decoded.flatten().tolist() == [0.5, 0.5, 0.0, 0.0]

    @pytest.mark.parametrize("length", [7, 8])
    def test_padding_and_what_it_holds_change_nothing(self, length: int) -> None:
        vae = self.vae().eval()
        alone = normal(1, length, 5)
        padded = torch.cat([alone, torch.full((1, 6, 5), torch.nan)], dim=1)
        real, mask = all_real(alone), torch.tensor([[1] * length + [0] * 6])
        latents = vae.latents(padded, mask)
        torch.testing.assert_close(latents[:, :4], vae.latents(alone, real))
        values = vae.decode(latents, mask)
        torch.testing.assert_close(values[:, :length], vae.decode(latents[:, :4], real))
        assert not values[:, length:].any() and not latents[:, 4:].any()
        torch.testing.assert_close(vae(padded, mask), vae(alone, real))

    def test_a_modality_that_is_absent_costs_nothing(self) -> None:
        assert [loss.item() for loss in self.vae()(normal(2, 6, 5), torch.zeros(2, 6))] == [0.0, 0.0]

    def test_training_draws_and_evaluating_does_not(self) -> None:
        vae, values = self.vae(), normal(2, 6, 5)
        mask = all_real(values)
        assert vae(values, mask)[0] != vae(values, mask)[0]
        vae.eval()
        assert vae(values, mask)[0] == vae(values, mask)[0]

    def test_the_scale_leaves_decoding_alone_and_is_saved(self) -> None:
        vae, values = self.vae().eval(), normal(2, 6, 5)
        mask = all_real(values)
        before = vae(values, mask)
        plain = vae.latents(values, mask)
        vae.latent_mean.copy_(torch.arange(4.0))
        vae.latent_std.fill_(2.0)
        torch.testing.assert_close(vae.latents(values, mask), (plain - torch.arange(4.0)) / 2)
        torch.testing.assert_close(vae(values, mask), before)
        assert {"latent_mean", "latent_std"} <= set(vae.state_dict())
        vae.reset_parameters()
        assert torch.equal(vae.latents(values, mask), plain)

    def test_latents_that_are_not_real_are_zeros_whatever_the_center(self) -> None:
        vae = self.vae().eval()
        vae.latent_mean.fill_(3.0)
        assert not vae.latents(normal(1, 4, 5), torch.tensor([[1, 1, 0, 0]]))[0, 1].any()

    def test_learns_to_reconstruct(self) -> None:
        vae = self.vae(3, vae_hidden=16)
        slopes = normal(16, 1, 3)
        values = slopes * torch.linspace(-1, 1, 8).view(1, 8, 1)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
        losses = []
        for _ in range(60):
            reconstruction, kl = vae(values, all_real(values))
            loss = reconstruction + 1e-4 * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0]


class TestDenoiser:
    @pytest.mark.parametrize("injection", INJECTIONS)
    def test_a_fresh_one_ignores_the_evidence(self, injection: str) -> None:
        denoiser, batch = tiny_denoiser(injection), inputs()
        other = batch | {"evidence": normal(2, 5, LATENT, seed=9) * 10}
        assert torch.equal(denoiser(**batch), denoiser(**other))

    @pytest.mark.parametrize("injection", INJECTIONS)
    def test_a_trained_one_reads_every_position_of_it(self, injection: str) -> None:
        denoiser, batch = tiny_denoiser(injection), inputs()
        randomise(denoiser)
        evidence = batch["evidence"].requires_grad_()
        denoiser(**batch).square().sum().backward()
        assert evidence.grad is not None and (evidence.grad.abs().sum(dim=-1) > 0).all()

    def test_only_the_second_layer_of_a_fresh_adapter_gets_a_gradient(self) -> None:
        denoiser = tiny_denoiser()
        denoiser(**inputs()).square().sum().backward()
        assert list(denoiser.adapters) == ["0", "1", "2"]
        for adapter in denoiser.adapters.values():
            assert adapter.out.weight.grad.abs().max() > 0 and adapter.out.bias.grad.abs().max() > 0
            assert not adapter.down.weight.grad.any() and not adapter.down.bias.grad.any()

    @pytest.mark.parametrize(
        ("injection", "adapters", "attention"),
        [
            ("hierarchical", "012", "345"),
            ("reversed", "345", "012"),
            ("concat", "012345", ""),
            ("single_stream", "012", ""),
        ],
    )
    def test_what_enters_where(self, injection: str, adapters: str, attention: str) -> None:
        denoiser = tiny_denoiser(injection)
        assert "".join(denoiser.adapters) == adapters
        assert "".join(denoiser.plan_attention) == attention

    @pytest.mark.parametrize("injection", INJECTIONS)
    def test_only_a_single_stream_has_no_gradient_to_the_plan(self, injection: str) -> None:
        denoiser, batch = tiny_denoiser(injection), inputs()
        randomise(denoiser)
        plan = batch["plan"].requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser(**batch).square().sum(), plan, allow_unused=True)
        reads = gradient is not None and bool(gradient.abs().max() > 0)
        assert reads == (injection != "single_stream")

    def test_all_parameters_learn(self) -> None:
        for injection in INJECTIONS:
            denoiser = tiny_denoiser(injection)
            randomise(denoiser)
            denoiser(**inputs()).square().sum().backward()
            assert [name for name, parameter in denoiser.named_parameters() if parameter.grad is None] == []

    def test_a_pooled_plan_moves_every_position_alike_and_three_tokens_do_not(self) -> None:
        attention = tiny_denoiser().plan_attention["3"]
        randomise(attention)
        hidden = normal(1, 5, WIDTH)
        pooled = attention(hidden, normal(1, 1, WIDTH, seed=4))
        torch.testing.assert_close(pooled, pooled[:, :1].expand(-1, 5, -1))
        assert attention(hidden, normal(1, 3, WIDTH, seed=4)).std(dim=1).max() > 1e-3

    @pytest.mark.parametrize("injection", INJECTIONS)
    def test_takes_several_plan_tokens(self, injection: str) -> None:
        denoiser = tiny_denoiser(injection)
        assert denoiser(**inputs() | {"plan": normal(2, 3, CONDITION)}).shape == (2, 5, LATENT)

    @pytest.mark.parametrize("name", ["timesteps", "observed", "noisy"])
    def test_reads_time_observation_and_latents(self, name: str) -> None:
        denoiser, batch = tiny_denoiser(), inputs()
        assert not torch.allclose(denoiser(**batch), denoiser(**batch | {name: batch[name] + 50}))

    @pytest.mark.parametrize("injection", INJECTIONS)
    def test_padding_and_neighbours_change_nothing(self, injection: str) -> None:
        denoiser, batch = tiny_denoiser(injection).eval(), inputs()
        randomise(denoiser)
        mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
        filled = {
            key: value.masked_fill(~mask.bool().unsqueeze(-1), torch.nan) if value.shape[1:] == (5, LATENT) else value
            for key, value in batch.items()
        }
        out = denoiser(**filled | {"mask": mask})
        alone = denoiser(
            **{key: value[:1, :3] if value.shape[1:2] == (5,) else value[:1] for key, value in batch.items()}
        )
        torch.testing.assert_close(out[:1, :3], alone, rtol=1e-4, atol=1e-5)
        assert not out[0, 3:].any() and not out[1].any()

    def test_knows_the_places_of_latents(self) -> None:
        batch = inputs() | {"noisy": torch.ones(2, 5, LATENT), "evidence": torch.ones(2, 5, LATENT)}
        assert tiny_denoiser()(**batch).std(dim=1).min() > 1e-3

    def test_an_adapter_that_is_reset_is_zero_again(self) -> None:
        adapter = ZeroAdapter(LATENT, WIDTH)
        randomise(adapter)
        adapter.reset_parameters()
        assert not adapter(normal(1, 2, LATENT)).any()

    def test_positions_by_hand(self) -> None:
        # Width 4: frequencies 1 and 1/100.
        expected = [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)]
        denoiser = Denoiser(small(denoiser_dim=4))
        assert denoiser._positions(torch.tensor([2]))[0].tolist() == pytest.approx(expected)


class TestLosses:
    def test_statistics_by_hand(self) -> None:
        values = torch.tensor([[[1.0, 4.0], [3.0, 4.0], [50.0, torch.nan]]])
        found = feature_statistics(values, torch.tensor([[1, 1, 0]]))
        assert found[0].tolist() == pytest.approx([2.0, 4.0, 1.0, 0.0], abs=1e-5)

    def test_statistics_of_a_constant_have_a_finite_gradient(self) -> None:
        values = torch.ones(1, 4, 2, requires_grad=True)
        feature_statistics(values, all_real(values)).sum().backward()
        assert values.grad is not None and values.grad.isfinite().all()

    def test_by_hand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        executor = ModalityExecutor(1, small(latent_dim=2, condition_dim=2))
        read = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 3.0]])
        plan = torch.tensor([[[5.0, 0.0]] * 2, [[0.0, 3.0]] * 2, [[-2.0, 0.0]] * 2, [[1.0, 0.0], [0.0, 1.0]]])
        predicted = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]).expand(4, -1, -1)
        decoded = torch.tensor([[[1.0], [3.0], [50.0], [torch.nan]]]).expand(4, -1, -1)
        for owner, made in (
            (executor.denoiser, predicted),
            (executor.semantics, read),
            (executor.alignment, torch.tensor([[0.0, 3.0]]).expand(4, -1)),
        ):
            monkeypatch.setattr(owner, "forward", lambda *_, made=made: made)
        monkeypatch.setattr(executor.vae, "decode", lambda *_: decoded)
        nothing, mask = torch.zeros(4, 2, 2), torch.tensor([[1, 1, 0, 0]] * 4)
        losses, _, _ = executor(
            nothing, torch.zeros(4).long(), nothing, build_scheduler(prediction_type="epsilon"), torch.zeros(4, 2),
            plan, nothing, mask,
        )  # fmt: skip
        # The second latent is not real; several tokens of a plan are averaged.
        assert losses["noise"].tolist() == [(1 + 9) / 2] * 4
        assert losses["plan"].tolist() == pytest.approx([0.0, 1.0, 2.0, 0.0], abs=1e-6)
        # Mean 2 and deviation 1 beside 0 and 3.
        assert losses["evidence"].tolist() == pytest.approx([2.0] * 4, abs=1e-5)

    def test_heads_leave_padding_out(self) -> None:
        values = torch.cat([normal(1, 3, 5), torch.full((1, 2, 5), torch.nan)], dim=1)
        mask = torch.tensor([[1, 1, 1, 0, 0]])
        for head, width in ((FeatureSemantics(5, CONDITION), CONDITION), (EvidenceAlignment(5, 7), 14)):
            out = head(values, mask)
            assert out.shape == (1, width)
            torch.testing.assert_close(out, head(values[:, :3], mask[:, :3]))


class TestSchedulers:
    def test_alpha_bars(self) -> None:
        alpha_bar = build_scheduler().alphas_cumprod
        found = [alpha_bar[step].item() for step in (0, 1, 499, 999)]
        assert found == pytest.approx([0.9999, 0.9997801, 0.0785872, 4.0358e-5], rel=1e-4)

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_a_step_is_equation_11(self, prediction_type: str) -> None:
        scheduler = build_scheduler(prediction_type=prediction_type)
        noisy, noise = torch.full((1, 1), 0.7), torch.full((1, 1), -0.3)
        bar = scheduler.alphas_cumprod[500]
        # The velocity is (noise - sqrt(1 - alpha_bar) noisy) / sqrt(alpha_bar).
        predicted = noise if prediction_type == "epsilon" else (noise - (1 - bar).sqrt() * noisy) / bar.sqrt()
        out = scheduler.step(predicted, 500, noisy, generator=torch.Generator().manual_seed(3))
        xi = torch.randn(1, 1, generator=torch.Generator().manual_seed(3))
        assert out.pred_original_sample.item() == pytest.approx(3.5425656, rel=1e-5)
        assert (out.prev_sample - 0.1002564 * xi).item() == pytest.approx(0.7067064, abs=1e-6)
        alpha = scheduler.alphas[500]
        mean = (noisy - (1 - alpha) / (1 - bar).sqrt() * noise) / alpha.sqrt()
        assert mean.item() == pytest.approx(0.7067064, abs=1e-6)

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_made_for_latents(self, name: str) -> None:
        scheduler = build_scheduler(name, prediction_type="epsilon")
        scheduler.set_timesteps(50)
        assert scheduler.timesteps[0] == 999 and scheduler.timesteps[-1] == 19
        assert not any(scheduler.config.get(key) for key in ("clip_sample", "thresholding"))
        assert scheduler.config.prediction_type == "epsilon"
        noise = torch.randn(2, 3)
        assert scheduler.init_noise_sigma == 1 and scheduler.scale_model_input(noise, scheduler.timesteps[0]) is noise
        assert build_scheduler(name).config.prediction_type == "v_prediction"

    def test_a_missing_library_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(ImportError, match=r"needs the package 'diffusers'.*: pip install 'hf-msa\[omg\]'"):
            build_scheduler()


class TestSampling:
    def sample(
        self, predict: Callable[[Tensor, Tensor], Tensor], scheduler: Any, steps: int, seeds: list[int], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Latents and costs by a denoiser that predicts like this, over a mask of latents."""
        executor = ModalityExecutor(5, small(latent_dim=2))
        executor.denoiser.forward = lambda noisy, timesteps, *_: predict(noisy, timesteps)  # type: ignore[method-assign]
        count, positions = len(seeds), mask.repeat_interleave(2, dim=1)
        nothing = torch.zeros(count, mask.shape[1], 2)
        conditions = (torch.zeros(count, CONDITION), torch.zeros(count, 1, CONDITION), nothing)
        _, latents, costs = executor.generate(seeds, scheduler, steps, *conditions, positions)
        return latents, costs

    @pytest.mark.parametrize("name", SAMPLERS)
    # 61 is a number of which diffusers makes one step too many.
    @pytest.mark.parametrize("steps", [8, 50, 61])
    def test_perfect_predictions_lead_to_the_data(self, name: str, steps: int) -> None:
        # All data are one point, far outside [-1, 1]: clipping would be seen.
        scheduler = build_scheduler(name, prediction_type="epsilon")
        target = torch.tensor([3.0, -5.0])

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            alpha_bar = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1)
            return (noisy - alpha_bar.sqrt() * target) / (1 - alpha_bar).sqrt()

        latents, costs = self.sample(predict, scheduler, steps, [1, 2], torch.ones(2, 3))
        # The solver ends its longer list of steps at the noise of time step 0.
        exact = name != "dpm_solver++" or steps != 61
        torch.testing.assert_close(latents, target.expand(2, 3, 2), rtol=1e-3, atol=1e-3 if exact else 0.05)
        assert costs.shape == (2, steps) and (costs > 0).all()

    def test_step_costs_by_hand(self) -> None:
        # One DDIM step from t = 999 to the data, here the origin: the change is the noise itself.
        scheduler = build_scheduler("ddim", prediction_type="epsilon")

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return noisy / (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1)

        _, costs = self.sample(predict, scheduler, 1, [4], torch.tensor([[1, 0]]))
        start, _ = draw_noise([4], (2, 2))
        assert costs.item() == pytest.approx(start[0, 0].square().mean().item(), rel=1e-4)

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(self, name: str) -> None:
        scheduler = build_scheduler(name)

        def sample(seeds: list[int]) -> Tensor:
            return self.sample(lambda noisy, _: 0.1 * noisy, scheduler, 4, seeds, torch.ones(len(seeds), 3))[0]

        together, alone = sample([5, 6, 7]), sample([6])
        torch.testing.assert_close(together[1:2], alone)
        assert not torch.allclose(together[0], together[1])
        assert torch.equal(together, sample([5, 6, 7])), "a scheduler remembers nothing of what it did before"


class TestModalityExecutor:
    def executor(self, dim: int = 5) -> ModalityExecutor:
        torch.manual_seed(0)
        executor = ModalityExecutor(dim, small())
        executor.vae.requires_grad_(False)
        executor.semantics.requires_grad_(False)
        return executor

    def step(self, executor: ModalityExecutor, **options: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        batch = {**inputs(), "mask": torch.ones(2, 10)}
        out: tuple[dict[str, Tensor], Tensor, Tensor] = executor(
            batch.pop("noisy"), noise=normal(2, 5, LATENT, seed=8), schedule=build_scheduler(**options), **batch
        )
        return out

    def test_each_sample_has_its_own_time_step(self) -> None:
        losses, noisy, estimate = self.step(self.executor())
        assert estimate.shape == (2, 5, LATENT)
        assert {name: loss.shape for name, loss in losses.items()} == dict.fromkeys(
            ("noise", "plan", "evidence"), (2,)
        )
        bars = build_scheduler().alphas_cumprod[torch.tensor([7, 107])].view(2, 1, 1)
        noise = (noisy - bars.sqrt() * inputs()["noisy"]) / (1 - bars).sqrt()
        torch.testing.assert_close(noise, normal(2, 5, LATENT, seed=8), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_the_true_prediction_gives_back_the_latents_at_no_cost(
        self, prediction_type: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        executor, count = self.executor(), 1000
        timesteps, clean, noise = torch.arange(count), normal(count, 3, LATENT), normal(count, 3, LATENT, seed=1)
        bars = build_scheduler().alphas_cumprod.view(-1, 1, 1)
        true = noise if prediction_type == "epsilon" else bars.sqrt() * noise - (1 - bars).sqrt() * clean
        monkeypatch.setattr(executor.denoiser, "forward", lambda *_: true)
        conditions = {"observed": torch.zeros(count, CONDITION), "plan": torch.zeros(count, 1, CONDITION)}
        losses, _, estimate = executor(
            clean, timesteps, noise, build_scheduler(prediction_type=prediction_type), **conditions,
            evidence=torch.zeros_like(clean), mask=torch.ones(count, 6),
        )  # fmt: skip
        error = (estimate - clean).abs().amax(dim=(1, 2))
        # Of the noise, the last steps divide float32's rounding by .0064.
        assert error[:500].max() < 2e-6 and error.max() < (5e-5 if prediction_type == "epsilon" else 2e-6)
        assert losses["noise"].max() < 1e-10

    @pytest.mark.parametrize(("prediction_type", "factor"), [("epsilon", 157.4), ("v_prediction", 1.0)])
    def test_an_error_is_no_larger_in_the_estimate_even_at_the_end_of_the_chain(
        self, prediction_type: str, factor: float
    ) -> None:
        executor, batch = self.executor(), inputs()
        batch |= {"timesteps": torch.tensor([999, 999]), "mask": torch.ones(2, 10)}
        clean, estimates, noise_losses = batch.pop("noisy"), [], []
        nn.init.zeros_(executor.denoiser.project_out.weight)
        for bias in (0.0, 1.0):
            nn.init.constant_(executor.denoiser.project_out.bias, bias)
            schedule = build_scheduler(prediction_type=prediction_type)
            losses, _, estimate = executor(clean, noise=normal(2, 5, LATENT), schedule=schedule, **batch)
            estimates.append(estimate)
            noise_losses.append(losses["noise"])
        torch.testing.assert_close(
            estimates[0] - estimates[1], torch.full_like(estimates[0], factor), rtol=1e-3, atol=0
        )
        # With nothing predicted what is lost is the target itself, here nearly the noise or the latents.
        target = normal(2, 5, LATENT) if prediction_type == "epsilon" else clean
        torch.testing.assert_close(noise_losses[0], target.square().mean(dim=(1, 2)), rtol=0.05, atol=0)

    @pytest.mark.parametrize("term", ["plan", "evidence", "estimate"])
    def test_gradients_pass_through_the_frozen_parts_and_leave_them_alone(self, term: str) -> None:
        executor = self.executor()
        losses, _, estimate = self.step(executor)
        {**losses, "estimate": estimate}[term].square().sum().backward()
        assert executor.denoiser.project_in.weight.grad.abs().max() > 0
        assert all(parameter.grad is None for parameter in executor.vae.parameters())
        assert all(parameter.grad is None for parameter in executor.semantics.parameters())
        assert (executor.alignment.project.weight.grad is not None) == (term == "evidence")

    def test_losses_leave_padding_out(self) -> None:
        executor = self.executor().eval()
        batch = inputs(batch=1)
        clean, noise = batch.pop("noisy"), normal(1, 5, LATENT, seed=8)
        batch["mask"] = torch.tensor([[1] * 6 + [0] * 4])
        padded, _, _ = executor(clean, noise=noise, schedule=build_scheduler(), **batch)
        batch |= {"evidence": batch["evidence"][:, :3], "mask": torch.ones(1, 6)}
        short, _, _ = executor(clean[:, :3], noise=noise[:, :3], schedule=build_scheduler(), **batch)
        torch.testing.assert_close(padded, short, rtol=1e-4, atol=1e-5)

    def test_generates_the_positions_that_are_asked_for(self) -> None:
        executor = self.executor().eval()
        batch = inputs()
        conditions = {name: batch[name] for name in ("observed", "plan", "evidence")}
        mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
        scheduler = build_scheduler("dpm_solver++")
        values, latents, costs = executor.generate([1, 2], scheduler, 3, mask=mask, **conditions)
        assert values.shape == (2, 9, 5) and latents.shape == (2, 5, LATENT) and costs.shape == (2, 3)
        assert values[0].abs().sum(dim=-1).min() > 0 and not values[1, 4:].any() and not latents[1, 2:].any()
        single = {name: value[:1] for name, value in conditions.items()}
        alone, _, _ = executor.generate([1], scheduler, 3, mask=mask[:1], **single)
        torch.testing.assert_close(alone, values[:1], rtol=1e-4, atol=1e-5)
