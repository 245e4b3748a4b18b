"""The executor of OMG-Agent: latent diffusion that generates a missing modality from plan and evidence.

One `ModalityExecutor` per modality that may be missing: a variational autoencoder of the feature sequence, a denoiser of its
latents that reads the plan (deep layers) and the evidence (shallow layers), and the two heads by which the consistency
losses read what was generated. The paper (sections 3.5, 3.6, eqs. 10 to 16) gives the equations; it leaves open the
autoencoder, the denoiser's shape, the feature side of g and phi, and those are ours and say so.

Shapes: features are `(batch, length, dim)`, latents, noise and evidence `(batch, latents, latent_dim)` with one latent for
two positions, plans `(batch, tokens, plan_width)`, observations
`(batch, observation_width)`. Masks are `(batch, length)` or
`(batch, latents)`, 1 or True = a real position; what stands at others has no influence, and results are zeros there. Latents
are scaled: on the training split they have a standard deviation of one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_omg import OmgConfig
from .modeling_msa import masked_mean
from .msa_encoders import sinusoidal_positions
from .msa_packages import optional_package

# Name in configurations -> class in diffusers; none of them scales what the denoiser reads, or the noise to begin with.
SCHEDULERS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpm_solver++": "DPMSolverMultistepScheduler"}


def _blank(values: Tensor, mask: Tensor) -> Tensor:
    """Zero the positions that are not real, whatever they hold."""
    return values.masked_fill(~mask.bool().unsqueeze(-1), 0.0)


def feature_statistics(values: Tensor, mask: Tensor) -> Tensor:
    """Phi of eq. 14: mean and standard deviation of each feature over time.

    The paper names a shallow image network as an example, which feature sequences have no use for; statistics are ours.

    Returns:
        `torch.FloatTensor` of shape `(batch, 2 * dim)`: means, then population standard deviations.
    """
    values = _blank(values, mask)
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean.unsqueeze(1)) ** 2, mask)
    # The root of zero has no finite gradient; a constant feature gets the deviation 1e-6.
    return torch.cat([mean, variance.clamp(min=1e-12).sqrt()], dim=-1)


class LatentVae(nn.Module):
    """Variational autoencoder of one modality's feature sequence; two positions become one latent.

    The paper only says "pre-trained VAE" (section 3.5); convolutions, widths and the KL weight are ours. A sequence of odd
    length gets one empty position. Positions that are not real count as zeros in every layer, so the result does not depend
    on how far a batch is padded.

    Args:
        dim: Width of the features.
        config: Widths of a latent and of the convolutions between.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, dim: int, config: OmgConfig) -> None:
        super().__init__()
        hidden, latent_dim = config.vae_hidden, config.latent_dim
        self.encoder_in = nn.Conv1d(dim, hidden, kernel_size=3, padding=1)
        self.encoder_down = nn.Conv1d(hidden, hidden, kernel_size=4, stride=2, padding=1)
        self.encoder_out = nn.Conv1d(hidden, 2 * latent_dim, kernel_size=3, padding=1)
        self.decoder_in = nn.Conv1d(latent_dim, hidden, kernel_size=3, padding=1)
        self.decoder_up = nn.ConvTranspose1d(hidden, hidden, kernel_size=4, stride=2, padding=1)
        self.decoder_out = nn.Conv1d(hidden, dim, kernel_size=3, padding=1)
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(()))

    def reset_parameters(self) -> None:
        """Set center and scale of the latents to zero and one; the convolutions start as torch starts them."""
        nn.init.zeros_(self.latent_mean)
        nn.init.ones_(self.latent_std)

    @staticmethod
    def latent_mask(mask: Tensor) -> Tensor:
        """Which latents are real, of a mask over features: those that stand for at least one real position."""
        even = F.pad(mask.bool(), (0, mask.shape[1] % 2))
        real: Tensor = even.unflatten(1, (-1, 2)).any(dim=-1)
        return real

    def encode(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the unscaled latents, of features."""
        odd, coarse = values.shape[1] % 2, self.latent_mask(mask)
        mask, values = F.pad(mask.bool(), (0, odd)), F.pad(values, (0, 0, 0, odd))
        hidden = _blank(values, mask).transpose(1, 2)
        hidden = F.gelu(self.encoder_in(hidden)) * mask.unsqueeze(1)
        hidden = F.gelu(self.encoder_down(hidden)) * coarse.unsqueeze(1)
        mean, log_variance = _blank(self.encoder_out(hidden).transpose(1, 2), coarse).chunk(2, dim=-1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def latents(self, values: Tensor, mask: Tensor) -> Tensor:
        """The scaled latents of features, on which diffusion and the knowledge base work."""
        mean, _ = self.encode(values, mask)
        return _blank((mean - self.latent_mean) / self.latent_std, self.latent_mask(mask))

    def decode(self, latents: Tensor, mask: Tensor) -> Tensor:
        """Features of scaled latents, at the real positions of a mask over features."""
        length, coarse = mask.shape[1], self.latent_mask(mask)
        mask = F.pad(mask.bool(), (0, length % 2))
        hidden = _blank(latents * self.latent_std + self.latent_mean, coarse).transpose(1, 2)
        hidden = F.gelu(self.decoder_in(hidden)) * coarse.unsqueeze(1)
        hidden = F.gelu(self.decoder_up(hidden)) * mask.unsqueeze(1)
        return _blank(self.decoder_out(hidden).transpose(1, 2), mask)[:, :length]

    def forward(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features, draw (in training; the mean otherwise), decode, and compare.

        Returns:
            Scalars: the squared error of the reconstruction, mean over the values of real positions; and the divergence of
            the latents from N(0, 1), mean over the values of real latents.
        """
        mean, log_variance = self.encode(values, mask)
        drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        error = (self.decode((drawn - self.latent_mean) / self.latent_std, mask) - _blank(values, mask)) ** 2
        reconstruction = error.sum() / (mask.sum() * values.shape[-1]).clamp(min=1)
        # A latent that is not real has mean and log-variance 0, hence no divergence.
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance)
        return reconstruction, divergence.sum() / (self.latent_mask(mask).sum() * mean.shape[-1]).clamp(min=1)


class ZeroAdapter(nn.Module):
    """ZA of eq. 13: two linear layers with SiLU between, of which the second starts as zero.

    A fresh adapter adds nothing to the hidden states of width `dim`, whatever it reads; its second layer learns first.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_dim, dim)
        self.out = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the weight and the bias of the second layer."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, injected: Tensor) -> Tensor:
        """What is added to the hidden states."""
        output: Tensor = self.out(F.silu(self.down(injected)))
        return output


class PlanAttention(nn.Module):
    """CA of eq. 12: attention from the hidden states to the plan.

    A pooled plan is a single key, whose attention weight is always 1: every position then gets the same update.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def forward(self, hidden: Tensor, plan: Tensor) -> Tensor:
        """What is added to `hidden` `(batch, latents, dim)`, of the projected `plan` `(batch, tokens, dim)`."""
        output: Tensor = self.attention(self.norm(hidden), plan, plan, need_weights=False)[0]
        return output


class Denoiser(nn.Module):
    """The denoiser of eq. 10 for one modality: a pre-norm Transformer over the noisy latents.

    Time step and observation are added to every token. Plan and evidence enter before the layers that the configuration's
    `injection` names, so that a layer reads what was injected for it. Depth, widths, the split into halves and the route of
    the observation are ours; which half gets what is the paper's (eqs. 12, 13 and its ablation).

    Args:
        config: Widths, number of layers, of which the first half are the shallow ones, and `injection`.
    """

    def __init__(self, config: OmgConfig) -> None:
        super().__init__()
        dim, latent_dim, heads = config.denoiser_dim, config.latent_dim, config.denoiser_heads
        self.dim = dim
        self.injection = config.injection
        self.project_in = nn.Linear(latent_dim, dim)
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.project_observed = nn.Linear(config.observation_width, dim)
        self.project_plan = None if config.injection == "single_stream" else nn.Linear(config.plan_width, dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                *(dim, heads, config.denoiser_feedforward_dim),
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.denoiser_layers)
        )
        layers = range(config.denoiser_layers)
        shallow, deep = layers[: len(layers) // 2], layers[len(layers) // 2 :]
        for_evidence, for_plan = {
            "hierarchical": (shallow, deep),
            "reversed": (deep, shallow),
            "concat": (layers, range(0)),
            "single_stream": (shallow, range(0)),
        }[config.injection]
        adapter_in = dim + latent_dim if config.injection == "concat" else latent_dim
        self.adapters = nn.ModuleDict({str(layer): ZeroAdapter(adapter_in, dim) for layer in for_evidence})
        self.plan_attention = nn.ModuleDict({str(layer): PlanAttention(dim, heads) for layer in for_plan})
        self.norm = nn.LayerNorm(dim)
        self.project_out = nn.Linear(dim, latent_dim)

    def forward(
        self, noisy: Tensor, timesteps: Tensor, observed: Tensor, plan: Tensor, evidence: Tensor, mask: Tensor
    ) -> Tensor:
        """Predict from noisy latents what the configuration's `prediction_type` names.

        Args:
            noisy: z_t.
            timesteps: t of each sample `(batch,)`.
            observed: u_X, the observation.
            plan: c_S.
            evidence: E; zeros where nothing was retrieved.
            mask: Over latents.
        """
        noisy, evidence = _blank(noisy, mask), _blank(evidence, mask)
        places = torch.arange(noisy.shape[1], device=noisy.device)
        context = self.time(self._positions(timesteps).to(noisy.dtype)) + self.project_observed(observed)
        hidden = self.project_in(noisy) + self._positions(places).to(noisy.dtype) + context.unsqueeze(1)
        plan_tokens = None if self.project_plan is None else self.project_plan(plan)
        injected = evidence
        if self.injection == "concat" and plan_tokens is not None:
            pooled = plan_tokens.mean(dim=1, keepdim=True).expand(-1, evidence.shape[1], -1)
            injected = torch.cat([pooled, evidence], dim=-1)
        # A row without any real latent attends to all: its output is blanked, and a softmax over nothing is NaN.
        ignore = ~mask.bool() & mask.bool().any(dim=1, keepdim=True)
        for name, layer in self.layers.named_children():
            if name in self.adapters:
                hidden = hidden + self.adapters[name](injected)
            if name in self.plan_attention:
                hidden = hidden + self.plan_attention[name](hidden, plan_tokens)
            hidden = layer(hidden, src_key_padding_mask=ignore)
        return _blank(self.project_out(self.norm(hidden)), mask)

    def _positions(self, places: Tensor) -> Tensor:
        """Cosines, then sines; `(places, dim)`."""
        sines_and_cosines = sinusoidal_positions(places, self.dim)
        return torch.cat([sines_and_cosines[:, 1::2], sines_and_cosines[:, ::2]], dim=-1)


class FeatureSemantics(nn.Module):
    """G: what a feature sequence means, in the space of plans; the feature side of g in eq. 14.

    The paper writes g, its text encoder, which cannot read features. This network is trained to match g of the plans of
    complete samples and frozen afterwards.
    """

    def __init__(self, dim: int, plan_width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, plan_width))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """The meaning of features `(batch, plan_width)`."""
        output: Tensor = self.network(masked_mean(_blank(values, mask), mask))
        return output


class EvidenceAlignment(nn.Module):
    """A of eq. 14: the feature statistics that the evidence lets expect."""

    def __init__(self, latent_dim: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(latent_dim, 2 * dim)

    def forward(self, evidence: Tensor, mask: Tensor) -> Tensor:
        """The statistics `(batch, 2 * dim)`."""
        output: Tensor = self.project(masked_mean(_blank(evidence, mask), mask))
        return output


def build_scheduler(name: str = "ddpm", num_train_timesteps: int = 1000, prediction_type: str = "v_prediction") -> Any:
    """Build one of `SCHEDULERS` over the linear noise schedule of the original diffusion models, made for latents.

    Samples are not clipped (the library's default, right for pictures only), the variance is the posterior's of eq. 11, and
    the time steps of a shortened chain begin at its very end.

    Raises:
        ImportError: If diffusers is not installed.
    """
    diffusers = optional_package("diffusers", "hf-msa[omg]", "Generating")
    ddpm = diffusers.DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        variance_type="fixed_small",
        prediction_type=prediction_type,
        timestep_spacing="trailing",
    )
    return ddpm if name == "ddpm" else getattr(diffusers, SCHEDULERS[name]).from_config(ddpm.config)


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """Draw standard normal noise, each sample from a generator of its own.

    The generators are the CPU's on every machine, so a sample's noise depends on its seed alone.

    Returns:
        `torch.FloatTensor` of shape `(len(seeds), *shape)` and the generators, for what is drawn later on.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators]), generators


class ModalityExecutor(nn.Module):
    """The executor for one modality, whose features have width `dim`."""

    def __init__(self, dim: int, config: OmgConfig) -> None:
        super().__init__()
        self.vae = LatentVae(dim, config)
        self.denoiser = Denoiser(config)
        self.semantics = FeatureSemantics(dim, config.plan_width)
        self.alignment = EvidenceAlignment(config.latent_dim, dim)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        schedule: Any,
        observed: Tensor,
        plan: Tensor,
        evidence: Tensor,
        mask: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """One training step: add noise, predict, estimate the clean latents in one step, decode and compare.

        Args:
            latents: z_0, as `LatentVae.latents` gives it.
            timesteps: t of each sample `(batch,)`.
            noise: What is added.
            schedule: The DDPM scheduler of `build_scheduler`; others know the time steps of inference only.
            observed, plan, evidence: See `Denoiser.forward`.
            mask: Over features.

        Returns:
            Losses of each sample `(batch,)`, not weighted: `"noise"`, the squared error of the prediction (eq. 15);
            `"plan"`, 1 - cosine of what the features mean and the plan; `"evidence"`, the mean absolute difference of
            statistics from what the evidence lets expect (eq. 14). And z_t; and z_0|t (eq. 16).
        """
        coarse = LatentVae.latent_mask(mask)
        noisy = _blank(schedule.add_noise(latents, noise, timesteps), coarse)
        predicted = self.denoiser(noisy, timesteps, observed, plan, evidence, coarse).to(noisy)
        if schedule.config.prediction_type == "v_prediction":
            target = schedule.get_velocity(latents, noise, timesteps)
            # sqrt(alpha_bar) z_t - sqrt(1 - alpha_bar) v: the sum that makes v of noise and latents gives these back.
            estimate = schedule.get_velocity(predicted, noisy, timesteps)
        else:
            target = noise
            alpha_bar = schedule.alphas_cumprod.to(noisy)[timesteps].view(-1, 1, 1)
            estimate = (noisy - (1.0 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
        values = self.vae.decode(estimate, mask)
        losses = {
            "noise": masked_mean((predicted - target) ** 2, coarse).mean(dim=-1),
            "plan": 1.0 - F.cosine_similarity(self.semantics(values, mask), plan.mean(dim=1), dim=-1),
            "evidence": (feature_statistics(values, mask) - self.alignment(evidence, coarse)).abs().mean(dim=-1),
        }
        return losses, noisy, estimate

    @torch.no_grad()
    def generate(
        self,
        seeds: Sequence[int],
        scheduler: Any,
        num_steps: int,
        observed: Tensor,
        plan: Tensor,
        evidence: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Walk from noise to clean latents (eq. 11 with the DDPM scheduler), and decode them; reproducibly for each sample.

        Args:
            seeds: One per sample; a sample's result does not depend on its neighbours.
            scheduler: Of `build_scheduler`; its time steps are set.
            num_steps: Number of steps.
            observed, plan, evidence: See `Denoiser.forward`.
            mask: Over features: what to generate.

        Returns:
            Features; z_0*; and the mean squared change of z in each step, `(batch, steps)`.
        """
        scheduler.set_timesteps(num_steps)
        coarse = LatentVae.latent_mask(mask)
        noise, generators = draw_noise(seeds, evidence.shape[1:])
        latents = _blank(noise.to(self.denoiser.project_in.weight), coarse)
        costs = []
        # With some numbers of steps diffusers rounds to one time step too many, which is below 0.
        for step in scheduler.timesteps[:num_steps]:
            timesteps = torch.full((len(seeds),), int(step), device=mask.device)
            predicted = self.denoiser(latents, timesteps, observed, plan, evidence, coarse)
            following = _blank(scheduler.step(predicted, step, latents, generator=generators).prev_sample, coarse)
            costs.append(masked_mean((following - latents) ** 2, coarse).mean(dim=-1))
            latents = following
        return self.vae.decode(latents, mask), latents, torch.stack(costs, dim=1)
