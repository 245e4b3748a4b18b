"""The executor of OMG-Agent against numbers made by hand, and what its masks, adapters and samplers promise."""

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_msa.models.omg_executor import (
    INJECTIONS,
    SCHEDULERS,
    Denoiser,
    EvidenceAlignment,
    ExecutorOutput,
    FeatureSemantics,
    LatentVae,
    ModalityExecutor,
    ZeroAdapter,
    auxiliary_weights,
    build_scheduler,
    check_scheduler,
    draw_noise,
    evidence_loss,
    feature_statistics,
    gaussian_kl,
    masked_mean,
    noise_loss,
    plan_loss,
    sample_latents,
    sinusoids,
    tweedie,
)

pytest.importorskip("diffusers")

# diffusers 0.42 hands tensors to numpy 2 in a way that numpy is going to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LATENT, CONDITION, WIDTH = 4, 6, 16
SAMPLERS = ("ddpm", "ddim", "dpm_solver++")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter, also those that start as zero, values that do not cancel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def tiny_denoiser(injection: Any = "hierarchical", seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(LATENT, CONDITION, dim=WIDTH, num_heads=2, feedforward_dim=32, injection=injection)


def inputs(batch: int = 2, latents: int = 5, seed: int = 1) -> dict[str, Tensor]:
    return {
        "noisy": normal(batch, latents, LATENT, seed=seed),
        "timesteps": torch.arange(batch) * 100 + 7,
        "observed": normal(batch, CONDITION, seed=seed + 1),
        "plan": normal(batch, CONDITION, seed=seed + 2),
        "evidence": normal(batch, latents, LATENT, seed=seed + 3),
    }


class TestLatentVae:
    def test_fifty_positions_become_twenty_five_latents_and_fifty_again(self) -> None:
        vae = LatentVae(74, hidden=8)
        latents = vae.latents(normal(2, 50, 74))
        assert latents.shape == (2, 25, 32)
        assert vae.decode(latents).shape == (2, 50, 74)

    @pytest.mark.parametrize("length", [1, 2, 7])
    def test_any_length_comes_back(self, length: int) -> None:
        vae = LatentVae(5, LATENT, hidden=8)
        out = vae(normal(2, length, 5))
        assert out.values.shape == (2, length, 5)
        assert vae.latents(normal(2, length, 5)).shape[1] == LatentVae.latent_length(length) == math.ceil(length / 2)

    def test_a_latent_is_real_if_one_of_its_two_positions_is(self) -> None:
        mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
        assert LatentVae.latent_mask(mask).tolist() == [[True, True, False], [False, False, True]]

    def test_divergence_by_hand(self) -> None:
        # (4 + 1 - 1 - 0) / 2 = 2; variance e: (e - 1 - 1) / 2.
        assert gaussian_kl(torch.tensor(2.0), torch.tensor(0.0)).item() == pytest.approx(2.0)
        assert gaussian_kl(torch.tensor(0.0), torch.tensor(1.0)).item() == pytest.approx((math.e - 2) / 2)
        assert gaussian_kl(torch.tensor(0.0), torch.tensor(0.0)).item() == 0.0

    def test_losses_by_hand(self) -> None:
        # All weights zero: decoded is the bias .5, mean and log-variance are the biases 2 and 0.
        vae = LatentVae(1, 1, hidden=2, kl_weight=0.1).eval()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.zero_()
            vae.encoder_out.bias[0] = 2.0
            vae.decoder_out.bias[0] = 0.5
        out = vae(torch.tensor([[[1.5], [2.5], [9.0], [9.0]]]), torch.tensor([[1, 1, 0, 0]]))
        assert out.reconstruction.item() == pytest.approx((1.0 + 4.0) / 2)
        assert out.kl.item() == pytest.approx(2.0)
        assert out.loss.item() == pytest.approx(2.5 + 0.1 * 2.0)
        assert out.values.flatten().tolist() == [0.5, 0.5, 0.0, 0.0]

    @pytest.mark.parametrize("length", [7, 8])
    def test_padding_and_what_it_holds_change_nothing(self, length: int) -> None:
        vae = LatentVae(5, LATENT, hidden=8).eval()
        alone = normal(1, length, 5)
        padded = torch.cat([alone, torch.full((1, 6, 5), torch.nan)], dim=1)
        mask = torch.tensor([[1] * length + [0] * 6])
        short, long = vae(alone), vae(padded, mask)
        torch.testing.assert_close(long.values[:, :length], short.values)
        torch.testing.assert_close(vae.latents(padded, mask)[:, :4], vae.latents(alone))
        assert not long.values[:, length:].any() and not vae.latents(padded, mask)[:, 4:].any()
        torch.testing.assert_close(long.loss, short.loss)

    def test_a_modality_that_is_absent_costs_nothing(self) -> None:
        out = LatentVae(5, LATENT, hidden=8)(normal(2, 6, 5), torch.zeros(2, 6))
        assert out.loss.item() == 0.0

    def test_training_draws_and_evaluating_does_not(self) -> None:
        vae, values = LatentVae(5, LATENT, hidden=8), normal(2, 6, 5)
        assert not torch.equal(vae(values).values, vae(values).values)
        vae.eval()
        assert torch.equal(vae(values).values, vae(values).values)

    def test_the_scale_makes_latents_of_unit_deviation_and_leaves_decoding_alone(self) -> None:
        vae = LatentVae(5, LATENT, hidden=8).eval()
        values = normal(20, 6, 5)
        before = vae(values).values
        vae.fit_scale(vae.encode(values)[0])
        assert vae.latents(values).std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(vae(values).values, before)

    def test_the_scale_by_hand_leaves_out_what_is_not_real_and_is_saved(self) -> None:
        vae = LatentVae(5, 1)
        vae.fit_scale(torch.tensor([[[1.0], [5.0], [99.0]]]), torch.tensor([[1, 1, 0]]))
        assert vae.latent_mean.tolist() == pytest.approx([3.0])
        assert vae.latent_std.item() == pytest.approx(2.0)
        assert {"latent_mean", "latent_std"} <= set(vae.state_dict())
        with pytest.raises(ValueError, match="do not vary"):
            vae.fit_scale(torch.ones(1, 3, 1))

    def test_each_channel_has_its_own_center_and_all_have_one_deviation(self) -> None:
        vae = LatentVae(5, 2)
        vae.fit_scale(torch.tensor([[[1.0, 10.0], [3.0, 10.0]]]))
        assert vae.latent_mean.tolist() == pytest.approx([2.0, 10.0])
        assert vae.latent_std.item() == pytest.approx(0.5**0.5)

    def test_latents_that_are_not_real_are_zeros_whatever_the_center(self) -> None:
        vae = LatentVae(5, LATENT, hidden=8).eval()
        vae.fit_scale(vae.encode(normal(20, 6, 5))[0])
        mask = torch.tensor([[1, 1, 0, 0]])
        assert not vae.latents(normal(1, 4, 5), mask)[0, 1].any()

    def test_learns_to_reconstruct(self) -> None:
        torch.manual_seed(0)
        vae = LatentVae(3, LATENT, hidden=16)
        slopes = normal(16, 1, 3)
        values = slopes * torch.linspace(-1, 1, 8).view(1, 8, 1)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
        losses = []
        for _ in range(60):
            loss = vae(values).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0]

    def test_wrong_shapes_are_refused(self) -> None:
        vae = LatentVae(5, LATENT, hidden=8)
        with pytest.raises(ValueError, match="width 6 but this autoencoder was made for 5"):
            vae.encode(normal(1, 4, 6))
        with pytest.raises(ValueError, match="must have 5 or 6"):
            vae.decode(normal(1, 3, LATENT), torch.ones(1, 4))


class TestDenoiser:
    @pytest.mark.parametrize(("step", "alpha_bar"), [(0, 0.9999), (499, 0.0785872), (999, 4.0358e-5)])
    def test_the_noisy_latents_pass_beside_the_layers_which_count_by_what_is_left_of_the_signal(
        self, step: int, alpha_bar: float
    ) -> None:
        denoiser, batch = tiny_denoiser(), inputs()
        nn.init.zeros_(denoiser.project_out.weight)
        nn.init.constant_(denoiser.project_out.bias, 3.0)
        predicted = denoiser(**{**batch, "timesteps": torch.tensor([step, step])})
        expected = math.sqrt(1 - alpha_bar) * batch["noisy"] + 3.0 * math.sqrt(alpha_bar)
        torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-4)

    def test_an_error_of_the_layers_is_no_larger_in_the_estimate_even_at_the_end_of_the_chain(self) -> None:
        denoiser, batch = tiny_denoiser(), inputs()
        batch["timesteps"] = torch.tensor([999, 999])
        alpha_bar = build_scheduler().alphas_cumprod[batch["timesteps"]]
        nn.init.zeros_(denoiser.project_out.weight)
        estimates = []
        for bias in (0.0, 1.0):
            nn.init.constant_(denoiser.project_out.bias, bias)
            estimates.append(tweedie(batch["noisy"], denoiser(**batch), alpha_bar))
        # In an estimate of z_0 from the predicted noise itself it would be 1 / sqrt(alpha_bar) = 157 times as large.
        torch.testing.assert_close(estimates[0] - estimates[1], torch.ones_like(estimates[0]), rtol=1e-2, atol=1e-2)

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
        out = denoiser(**filled, mask=mask)
        alone = denoiser(**{key: value[:1, :3] if value.dim() == 3 else value[:1] for key, value in batch.items()})
        torch.testing.assert_close(out[:1, :3], alone, rtol=1e-4, atol=1e-5)
        assert not out[0, 3:].any() and not out[1].any()

    def test_knows_the_places_of_latents(self) -> None:
        batch = inputs() | {"noisy": torch.ones(2, 5, LATENT), "evidence": torch.ones(2, 5, LATENT)}
        assert tiny_denoiser()(**batch).std(dim=1).min() > 1e-3

    def test_wrong_arguments_are_refused(self) -> None:
        with pytest.raises(ValueError, match="one of hierarchical"):
            tiny_denoiser("both")
        with pytest.raises(ValueError, match="must be even"):
            Denoiser(LATENT, CONDITION, dim=16, num_layers=5, num_heads=2)
        with pytest.raises(ValueError, match="sequences of the same length"):
            tiny_denoiser()(**inputs() | {"evidence": normal(2, 4, LATENT)})

    def test_an_adapter_that_is_reset_is_zero_again(self) -> None:
        adapter = ZeroAdapter(LATENT, WIDTH)
        randomise(adapter)
        adapter.reset_parameters()
        assert not adapter(normal(1, 2, LATENT)).any()

    def test_sinusoids_by_hand(self) -> None:
        # Width 4: frequencies 1 and 1/100.
        expected = [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)]
        assert sinusoids(torch.tensor(2), 4).tolist() == pytest.approx(expected)


class TestTweedie:
    def test_by_hand(self) -> None:
        alpha_bar, clean, noise = torch.tensor([0.25]), torch.tensor([[2.0]]), torch.tensor([[-1.0]])
        noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
        assert noisy.item() == pytest.approx(0.133975, abs=1e-6)
        assert tweedie(noisy, noise, alpha_bar).item() == pytest.approx(2.0, abs=1e-6)

    def test_the_true_noise_gives_back_the_latents_at_every_time_step_of_a_batch(self) -> None:
        scheduler = build_scheduler()
        timesteps = torch.arange(1000)
        clean, noise = normal(1000, 3, 2), normal(1000, 3, 2, seed=1)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        error = (tweedie(noisy, noise, scheduler.alphas_cumprod[timesteps]) - clean).abs().amax(dim=(1, 2))
        assert error[:500].max() < 2e-6
        assert error.max() < 5e-5  # the last steps divide float32's rounding by .0064


class TestLosses:
    def test_masked_mean_by_hand(self) -> None:
        values = torch.tensor([[[1.0], [3.0], [50.0]], [[7.0], [7.0], [7.0]]])
        mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
        assert masked_mean(values, mask).tolist() == [[2.0], [0.0]]
        assert masked_mean(values[1:]).tolist() == [[7.0]]

    def test_statistics_by_hand(self) -> None:
        values = torch.tensor([[[1.0, 4.0], [3.0, 4.0], [50.0, torch.nan]]])
        found = feature_statistics(values, torch.tensor([[1, 1, 0]]))
        assert found[0].tolist() == pytest.approx([2.0, 4.0, 1.0, 0.0], abs=1e-5)

    def test_statistics_of_a_constant_have_a_finite_gradient(self) -> None:
        values = torch.ones(1, 4, 2, requires_grad=True)
        feature_statistics(values).sum().backward()
        assert values.grad is not None and values.grad.isfinite().all()

    def test_plan_loss_by_hand(self) -> None:
        read = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
        plan = torch.tensor([[5.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [1.0, 0.0]])
        assert plan_loss(read, plan).tolist() == pytest.approx([0.0, 1.0, 2.0, 1 - math.sqrt(0.5)], abs=1e-6)

    def test_plan_tokens_are_averaged(self) -> None:
        tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        assert plan_loss(torch.tensor([[3.0, 3.0]]), tokens).item() == pytest.approx(0.0, abs=1e-6)

    def test_evidence_loss_by_hand(self) -> None:
        assert evidence_loss(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])).tolist() == [2.0]

    def test_noise_loss_by_hand(self) -> None:
        predicted = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
        assert noise_loss(predicted, torch.zeros(1, 2, 2), torch.tensor([[1, 0]])).tolist() == [5.0]

    def test_auxiliary_losses_count_by_alpha_bar(self) -> None:
        alpha_bar = torch.tensor([0.5, 0.1])
        assert auxiliary_weights(alpha_bar).tolist() == pytest.approx([0.5, 0.1])
        assert auxiliary_weights(alpha_bar, "none").tolist() == [1.0, 1.0]
        with pytest.raises(ValueError, match="one of alpha_bar, none"):
            auxiliary_weights(alpha_bar, "linear")  # type: ignore[arg-type]

    def test_total_by_hand(self) -> None:
        nothing = torch.zeros(2, 1, 1)
        out = ExecutorOutput(
            noise_loss=torch.tensor([1.0, 3.0]),
            plan_loss=torch.tensor([2.0, 1.0]),
            evidence_loss=torch.tensor([4.0, 0.0]),
            alpha_bar=torch.tensor([0.5, 0.1]),
            noisy=nothing,
            estimate=nothing,
            values=nothing,
        )
        # .5 (.1 * 2 + .2 * 4) = .5 and .1 (.1 * 1) = .01, mean with 1 and 3.
        assert out.loss(0.1, 0.2).item() == pytest.approx((1.5 + 3.01) / 2)
        assert out.loss(0.1, 0.2, "none").item() == pytest.approx((2.0 + 3.1) / 2)
        assert out.loss(0.0, 0.0).item() == pytest.approx(2.0)

    def test_heads_leave_padding_out(self) -> None:
        values = torch.cat([normal(1, 3, 5), torch.full((1, 2, 5), torch.nan)], dim=1)
        mask = torch.tensor([[1, 1, 1, 0, 0]])
        for head, width in ((FeatureSemantics(5, CONDITION), CONDITION), (EvidenceAlignment(5, 7), 14)):
            out = head(values, mask)
            assert out.shape == (1, width)
            torch.testing.assert_close(out, head(values[:, :3]))


class TestSchedulers:
    def test_alpha_bars(self) -> None:
        alpha_bar = build_scheduler().alphas_cumprod
        found = [alpha_bar[step].item() for step in (0, 1, 499, 999)]
        assert found == pytest.approx([0.9999, 0.9997801, 0.0785872, 4.0358e-5], rel=1e-4)

    def test_a_step_is_equation_11(self) -> None:
        scheduler = build_scheduler()
        noisy, noise = torch.full((1, 1), 0.7), torch.full((1, 1), -0.3)
        out = scheduler.step(noise, 500, noisy, generator=torch.Generator().manual_seed(3))
        xi = torch.randn(1, 1, generator=torch.Generator().manual_seed(3))
        assert out.pred_original_sample.item() == pytest.approx(3.5425656, rel=1e-5)
        assert (out.prev_sample - 0.1002564 * xi).item() == pytest.approx(0.7067064, abs=1e-6)
        alpha = scheduler.alphas[500]
        mean = (noisy - (1 - alpha) / (1 - scheduler.alphas_cumprod[500]).sqrt() * noise) / alpha.sqrt()
        assert mean.item() == pytest.approx(0.7067064, abs=1e-6)

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_made_for_latents(self, name: str) -> None:
        scheduler = build_scheduler(name)
        check_scheduler(scheduler)
        scheduler.set_timesteps(50)
        assert scheduler.timesteps[0] == 999 and scheduler.timesteps[-1] == 19

    def test_the_librarys_defaults_are_refused(self) -> None:
        diffusers = importlib.import_module("diffusers")
        with pytest.raises(ValueError, match="clip_sample"):
            check_scheduler(diffusers.DDPMScheduler())
        with pytest.raises(ValueError, match="prediction_type='sample'"):
            check_scheduler(diffusers.DDPMScheduler(clip_sample=False, prediction_type="sample"))
        with pytest.raises(ValueError, match="thresholding"):
            check_scheduler(diffusers.DDPMScheduler(clip_sample=False, thresholding=True))

    def test_unknown_names_and_a_missing_library_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match=r"one of ddpm, ddim, dpm_solver\+\+"):
            build_scheduler("euler")

        def absent(name: str) -> Any:
            raise ImportError(name)

        monkeypatch.setattr(importlib, "import_module", absent)
        with pytest.raises(ImportError, match=r"hf-msa\[omg\]"):
            build_scheduler()


class TestSampling:
    @pytest.mark.parametrize("name", SAMPLERS)
    @pytest.mark.parametrize("steps", [8, 50])
    def test_perfect_predictions_lead_to_the_data(self, name: str, steps: int) -> None:
        # All data are one point, far outside [-1, 1]: clipping would be seen.
        scheduler = build_scheduler(name)
        target = torch.tensor([3.0, -5.0])

        def denoise(noisy: Tensor, timesteps: Tensor) -> Tensor:
            alpha_bar = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1)
            return (noisy - alpha_bar.sqrt() * target) / (1 - alpha_bar).sqrt()

        out = sample_latents(denoise, scheduler, [1, 2], (3, 2), num_steps=steps)
        torch.testing.assert_close(out.latents, target.expand(2, 3, 2), rtol=1e-3, atol=1e-3)
        assert out.step_costs.shape == (2, steps) and (out.step_costs > 0).all()

    def test_step_costs_by_hand(self) -> None:
        # One DDIM step from t = 999 to the data, here the origin: the change is the noise itself.
        scheduler = build_scheduler("ddim")

        def denoise(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return noisy / (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1)

        mask = torch.tensor([[1, 0]])
        out = sample_latents(denoise, scheduler, [4], (2, 3), num_steps=1, mask=mask)
        start, _ = draw_noise([4], (2, 3))
        assert out.step_costs.item() == pytest.approx(start[0, 0].square().mean().item(), rel=1e-4)

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(self, name: str) -> None:
        scheduler = build_scheduler(name)

        def denoise(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return 0.1 * noisy

        together = sample_latents(denoise, scheduler, [5, 6, 7], (3, 2), num_steps=4).latents
        alone = sample_latents(denoise, scheduler, [6], (3, 2), num_steps=4).latents
        torch.testing.assert_close(together[1:2], alone)
        assert not torch.allclose(together[0], together[1])
        again = sample_latents(denoise, scheduler, [5, 6, 7], (3, 2), num_steps=4).latents
        assert torch.equal(together, again)

    def test_the_given_scheduler_stays_as_it_is(self) -> None:
        scheduler = build_scheduler()
        before = scheduler.timesteps.clone()
        sample_latents(lambda noisy, timesteps: noisy, scheduler, [0], (2, 2), num_steps=3)
        assert torch.equal(scheduler.timesteps, before)


class TestModalityExecutor:
    def executor(self, dim: int = 5) -> ModalityExecutor:
        torch.manual_seed(0)
        executor = ModalityExecutor(dim, CONDITION, LatentVae(dim, LATENT, hidden=8), tiny_denoiser())
        executor.freeze_pretrained()
        return executor

    def step(self, executor: ModalityExecutor, mask: Tensor | None = None, scheduler: str = "ddpm") -> ExecutorOutput:
        batch = inputs()
        clean = batch.pop("noisy")
        out: ExecutorOutput = executor(
            clean, noise=normal(2, 5, LATENT, seed=8), scheduler=build_scheduler(scheduler), mask=mask, **batch
        )
        return out

    @pytest.mark.parametrize("scheduler", list(SCHEDULERS))
    def test_shapes_and_the_time_step_of_each_sample_whatever_the_sampler(self, scheduler: str) -> None:
        out = self.step(self.executor(), scheduler=scheduler)
        assert out.values.shape == (2, 10, 5) and out.estimate.shape == (2, 5, LATENT)
        assert out.noise_loss.shape == out.plan_loss.shape == out.evidence_loss.shape == (2,)
        torch.testing.assert_close(out.alpha_bar, build_scheduler().alphas_cumprod[torch.tensor([7, 107])])
        expected = out.alpha_bar.sqrt().view(2, 1, 1) * inputs()["noisy"]
        noise = (out.noisy - expected) / (1 - out.alpha_bar).sqrt().view(2, 1, 1)
        torch.testing.assert_close(noise, normal(2, 5, LATENT, seed=8), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("term", ["plan_loss", "evidence_loss", "estimate"])
    def test_gradients_pass_through_the_frozen_parts_and_leave_them_alone(self, term: str) -> None:
        executor = self.executor()
        getattr(self.step(executor), term).square().sum().backward()
        assert executor.denoiser.project_in.weight.grad.abs().max() > 0
        assert all(parameter.grad is None for parameter in executor.vae.parameters())
        assert all(parameter.grad is None for parameter in executor.semantics.parameters())
        assert (executor.alignment.project.weight.grad is not None) == (term == "evidence_loss")

    def test_losses_leave_padding_out(self) -> None:
        executor = self.executor().eval()
        batch = inputs(batch=1)
        clean, noise = batch.pop("noisy"), normal(1, 5, LATENT, seed=8)
        mask = torch.tensor([[1] * 6 + [0] * 4])
        padded = executor(clean, noise=noise, scheduler=build_scheduler(), mask=mask, **batch)
        batch["evidence"] = batch["evidence"][:, :3]
        short = executor(clean[:, :3], noise=noise[:, :3], scheduler=build_scheduler(), **batch)
        for name in ("noise_loss", "plan_loss", "evidence_loss"):
            torch.testing.assert_close(getattr(padded, name), getattr(short, name), rtol=1e-4, atol=1e-5)

    def test_without_its_weight_a_consistency_loss_has_no_gradient(self) -> None:
        executor = self.executor()
        self.step(executor).loss(plan_weight=0.1, evidence_weight=0.0).backward()
        assert not executor.alignment.project.weight.grad.any()

    def test_generates_the_positions_that_are_asked_for(self) -> None:
        executor = self.executor().eval()
        batch = inputs()
        conditions = {name: batch[name] for name in ("observed", "plan", "evidence")}
        mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
        scheduler = build_scheduler("dpm_solver++")
        out = executor.generate([1, 2], scheduler, mask=mask, num_steps=3, **conditions)
        assert out.values.shape == (2, 9, 5) and out.latents.shape == (2, 5, LATENT) and out.step_costs.shape == (2, 3)
        assert (
            out.values[0].abs().sum(dim=-1).min() > 0 and not out.values[1, 4:].any() and not out.latents[1, 2:].any()
        )
        single = {name: value[:1] for name, value in conditions.items()}
        alone = executor.generate([1], scheduler, mask=mask[:1], num_steps=3, **single)
        torch.testing.assert_close(alone.values, out.values[:1], rtol=1e-4, atol=1e-5)

    def test_a_scheduler_that_clips_is_refused_in_training_too(self) -> None:
        clipping = importlib.import_module("diffusers").DDPMScheduler()
        batch = inputs()
        with pytest.raises(ValueError, match="clip"):
            self.executor()(batch.pop("noisy"), noise=normal(2, 5, LATENT), scheduler=clipping, **batch)
