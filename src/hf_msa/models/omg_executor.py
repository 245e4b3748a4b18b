"""The executor of OMG-Agent: latent diffusion that generates a missing modality from plan and evidence.

One `ModalityExecutor` per modality that may be missing: a variational autoencoder of the feature sequence, a denoiser of its
latents that is told the plan (deep layers) and the evidence (shallow layers), and the two heads by which the consistency
losses read what was generated. The paper (sections 3.5, 3.6, eqs. 10 to 16) gives the equations; it leaves open the
autoencoder, the denoiser's shape, the feature side of g and phi, and those are ours and say so.

Noise schedules and samplers are those of diffusers, passed in as objects; only `build_scheduler` needs the library to be
installed. Masks: 1 or True = a real position. Noise predictions, latents and evidence are in the scaled latent space, where
latents of the training split have a standard deviation of one.
"""

import copy
import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Injection = Literal["hierarchical", "reversed", "concat", "single_stream"]
AuxWeight = Literal["alpha_bar", "none"]

INJECTIONS = ("hierarchical", "reversed", "concat", "single_stream")
AUX_WEIGHTS = ("alpha_bar", "none")
# Ends of the linear noise schedule: those of the original diffusion models, and the defaults of diffusers.
BETA_START, BETA_END = 1e-4, 0.02
# Name in configurations -> class in diffusers.
SCHEDULERS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpm_solver++": "DPMSolverMultistepScheduler"}


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the real positions; zeros where a row has none.

    Args:
        values (`torch.FloatTensor` of shape `(batch, length, dim)`): What to average.
        mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 or True = a real position; all if not given.

    Returns:
        `torch.FloatTensor` of shape `(batch, dim)`.
    """
    if mask is None:
        return values.mean(dim=1)
    weights = mask.to(values.dtype).unsqueeze(-1)
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def _blank(values: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the positions that are not real, whatever they hold."""
    return values if mask is None else values.masked_fill(~mask.bool().unsqueeze(-1), 0.0)


def feature_statistics(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Phi of eq. 14: mean and standard deviation of each feature over time.

    The paper names a shallow image network as an example, which feature sequences have no use for; statistics are ours.

    Args:
        values (`torch.FloatTensor` of shape `(batch, length, dim)`): A feature sequence.
        mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 or True = a real position.

    Returns:
        `torch.FloatTensor` of shape `(batch, 2 * dim)`: means, then population standard deviations.
    """
    values = _blank(values, mask)
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean.unsqueeze(1)) ** 2, mask)
    # The root of zero has no finite gradient; a constant feature gets the deviation 1e-6.
    return torch.cat([mean, variance.clamp(min=1e-12).sqrt()], dim=-1)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, exp(log_variance)) from N(0, 1), element by element."""
    return 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance)


@dataclass
class LatentVaeOutput:
    """What `LatentVae` returns.

    Args:
        loss: Scalar: reconstruction + KL weight x divergence.
        reconstruction: Scalar: squared error, mean over the values of real positions.
        kl: Scalar: divergence, mean over the latent values of real positions.
        values: Decoded features, `(batch, length, dim)`.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    values: Tensor


class LatentVae(nn.Module):
    """Variational autoencoder of one modality's feature sequence; two positions become one latent.

    The paper only says "pre-trained VAE" (section 3.5); convolutions, widths and the KL weight are ours. A sequence of odd
    length gets one empty position. Positions that are not real count as zeros in every layer, so the result does not depend
    on how far a batch is padded.

    Args:
        dim: Width of the features.
        latent_dim: Width of a latent.
        hidden: Width of the convolutions between.
        kl_weight: Weight of the divergence in the loss.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, dim: int, latent_dim: int = 32, hidden: int = 128, kl_weight: float = 1e-4) -> None:
        super().__init__()
        self.dim = dim
        self.latent_dim = latent_dim
        self.kl_weight = kl_weight
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
    def latent_length(length: int) -> int:
        """Count the latents of a sequence of `length` positions."""
        return (length + 1) // 2

    @staticmethod
    def latent_mask(mask: Tensor) -> Tensor:
        """Say which latents are real: those that stand for at least one real position.

        Args:
            mask (`torch.Tensor` of shape `(batch, length)`): 1 or True = a real position.

        Returns:
            `torch.BoolTensor` of shape `(batch, latents)`.
        """
        even = F.pad(mask.bool(), (0, mask.shape[1] % 2))
        real: Tensor = even.unflatten(1, (-1, 2)).any(dim=-1)
        return real

    def encode(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the distribution of the unscaled latents.

        Args:
            values (`torch.FloatTensor` of shape `(batch, length, dim)`): Features.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 or True = a real position.

        Returns:
            Mean and log-variance, each a `torch.FloatTensor` of shape `(batch, latents, latent_dim)`; zeros where a latent
            is not real.

        Raises:
            ValueError: If the features have another width than the autoencoder.
        """
        if values.shape[-1] != self.dim:
            raise ValueError(
                f"The features have width {values.shape[-1]} but this autoencoder was made for {self.dim}: "
                "use the features that it was trained on."
            )
        odd = values.shape[1] % 2
        if mask is None:
            mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        mask, values = F.pad(mask.bool(), (0, odd)), F.pad(values, (0, 0, 0, odd))
        coarse = self.latent_mask(mask)
        hidden = _blank(values, mask).transpose(1, 2)
        hidden = F.gelu(self.encoder_in(hidden)) * mask.unsqueeze(1)
        hidden = F.gelu(self.encoder_down(hidden)) * coarse.unsqueeze(1)
        mean, log_variance = _blank(self.encoder_out(hidden).transpose(1, 2), coarse).chunk(2, dim=-1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def latents(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the scaled latents that diffusion and the knowledge base work on; zeros where a latent is not real.

        Args:
            values (`torch.FloatTensor` of shape `(batch, length, dim)`): Features.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 or True = a real position.

        Returns:
            `torch.FloatTensor` of shape `(batch, latents, latent_dim)`.
        """
        mean, _ = self.encode(values, mask)
        if mask is not None:
            return _blank(self._scaled(mean), self.latent_mask(mask))
        return self._scaled(mean)

    def _scaled(self, latents: Tensor) -> Tensor:
        return (latents - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """Turn scaled latents into features.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, latents, latent_dim)`): Scaled latents.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 or True = a position to generate; it also gives
                the length. Without it all `2 * latents` positions are generated.

        Returns:
            `torch.FloatTensor` of shape `(batch, length, dim)`; zeros where the mask is 0.

        Raises:
            ValueError: If the mask belongs to another number of latents.
        """
        if mask is None:
            mask = torch.ones(latents.shape[0], 2 * latents.shape[1], dtype=torch.bool, device=latents.device)
        length = mask.shape[1]
        if self.latent_length(length) != latents.shape[1]:
            raise ValueError(
                f"A mask over {length} positions was given for {latents.shape[1]} latents: "
                f"it must have {2 * latents.shape[1] - 1} or {2 * latents.shape[1]}."
            )
        mask = F.pad(mask.bool(), (0, length % 2))
        coarse = self.latent_mask(mask)
        hidden = _blank(latents * self.latent_std + self.latent_mean, coarse).transpose(1, 2)
        hidden = F.gelu(self.decoder_in(hidden)) * coarse.unsqueeze(1)
        hidden = F.gelu(self.decoder_up(hidden)) * mask.unsqueeze(1)
        return _blank(self.decoder_out(hidden).transpose(1, 2), mask)[:, :length]

    def forward(self, values: Tensor, mask: Tensor | None = None) -> LatentVaeOutput:
        """Encode, draw (in training; the mean otherwise), decode, and compare.

        Args:
            values (`torch.FloatTensor` of shape `(batch, length, dim)`): Complete features.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 or True = a real position.
        """
        if mask is None:
            mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        mean, log_variance = self.encode(values, mask)
        drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        decoded = self.decode(self._scaled(drawn), mask)
        error = (decoded - _blank(values, mask)) ** 2
        coarse = self.latent_mask(mask)
        reconstruction = error.sum() / (mask.sum() * self.dim).clamp(min=1)
        # A latent that is not real has mean and log-variance 0, hence no divergence.
        kl = gaussian_kl(mean, log_variance).sum() / (coarse.sum() * self.latent_dim).clamp(min=1)
        return LatentVaeOutput(reconstruction + self.kl_weight * kl, reconstruction, kl, decoded)

    @torch.no_grad()
    def fit_scale(self, means: Tensor, mask: Tensor | None = None) -> None:
        """Set center and scale: each channel's mean, and one standard deviation around them, over the real latents.

        One deviation for all channels, so that channels the autoencoder does not use stay small. Without the center most of
        what diffusion has to generate would be the same for every sample.

        Args:
            means (`torch.FloatTensor` of shape `(samples, latents, latent_dim)`): Unscaled means, as `encode` gives them.
            mask (`torch.Tensor` of shape `(samples, latents)`, *optional*): 1 or True = a real latent.

        Raises:
            ValueError: If the real latents do not vary.
        """
        real = means if mask is None else means[mask.bool()]
        real = real.flatten(end_dim=-2)
        center = real.mean(dim=0) if len(real) else self.latent_mean
        scale = (real - center).square().mean().sqrt() if len(real) else real.new_zeros(())
        if not scale > 0:
            raise ValueError(
                "The latents of the training split do not vary: train the autoencoder before fitting its scale."
            )
        self.latent_mean.copy_(center)
        self.latent_std.copy_(scale)


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sines and cosines of geometrically falling frequencies.

    Args:
        positions (`torch.Tensor` of any shape): Time steps or places in a sequence.
        dim: Width of the result, even.

    Returns:
        `torch.FloatTensor` of shape `(*positions.shape, dim)`: cosines, then sines.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10000.0) / half))
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ZeroAdapter(nn.Module):
    """ZA of eq. 13: two linear layers with SiLU between, of which the second starts as zero.

    A fresh adapter adds nothing, whatever it reads; its second layer learns first.

    Args:
        in_dim: Width of what is injected.
        dim: Width of the hidden states.
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
        """Compute what is added to the hidden states.

        Args:
            injected (`torch.FloatTensor` of shape `(batch, latents, in_dim)`): Evidence, position by position.

        Returns:
            `torch.FloatTensor` of shape `(batch, latents, dim)`.
        """
        output: Tensor = self.out(F.silu(self.down(injected)))
        return output


class PlanAttention(nn.Module):
    """CA of eq. 12: attention from the hidden states to the plan.

    A pooled plan is a single key, whose attention weight is always 1: every position then gets the same update.

    Args:
        dim: Width of hidden states and plan tokens.
        num_heads: Number of heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def forward(self, hidden: Tensor, plan: Tensor) -> Tensor:
        """Compute what is added to the hidden states.

        Args:
            hidden (`torch.FloatTensor` of shape `(batch, latents, dim)`): Hidden states.
            plan (`torch.FloatTensor` of shape `(batch, plan_tokens, dim)`): Projected plan.

        Returns:
            `torch.FloatTensor` of shape `(batch, latents, dim)`.
        """
        output: Tensor = self.attention(self.norm(hidden), plan, plan, need_weights=False)[0]
        return output


class Denoiser(nn.Module):
    """epsilon_theta of eq. 10 for one modality: a pre-norm Transformer over the noisy latents.

    Time step and observation are added to every token. Plan and evidence enter before the layers that `injection` names, so
    that a layer reads what was injected for it. Depth, widths, the split into halves and the route of the observation are
    ours; which half gets what is the paper's (eqs. 12, 13 and its ablation).

    The prediction is sqrt(1 - alpha_bar) * z_t + sqrt(alpha_bar) * what the layers give (ours). Late in the chain z_t is
    nearly all noise, and eq. 16 divides any error by the root of alpha_bar, next to nothing there: layers that had to copy
    z_t would have to do it to four digits. This way an error of theirs is one of the same size in the estimate of z_0.

    Args:
        latent_dim: Width of a latent, and of the evidence.
        condition_dim: Width of plan and observation embeddings.
        dim: Width of the hidden states.
        num_layers: Number of layers, even; the first half are the shallow ones.
        num_heads: Number of attention heads.
        feedforward_dim: Width inside the feed-forward.
        injection: `"hierarchical"`: evidence into shallow layers, plan into deep ones. `"reversed"`: the other way round.
            `"concat"`: both, concatenated, into every layer. `"single_stream"`: evidence into shallow layers, no plan.
        num_train_timesteps: Length of the chain, over the noise schedule of `build_scheduler`.

    Raises:
        ValueError: If `injection` is none of these, `num_layers` or `dim` is odd, or `dim` no multiple of `num_heads`.
    """

    def __init__(
        self,
        latent_dim: int,
        condition_dim: int,
        dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        injection: Injection = "hierarchical",
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        if injection not in INJECTIONS:
            raise ValueError(f"injection is {injection!r}; it must be one of {', '.join(INJECTIONS)}.")
        if num_layers % 2 or dim % 2 or dim % num_heads:
            raise ValueError(
                f"num_layers={num_layers}, dim={dim} and num_heads={num_heads} were given: num_layers and dim must be even, "
                "and dim a multiple of num_heads."
            )
        self.dim = dim
        self.injection = injection
        self.num_train_timesteps = num_train_timesteps
        self.project_in = nn.Linear(latent_dim, dim)
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.project_observed = nn.Linear(condition_dim, dim)
        self.project_plan = None if injection == "single_stream" else nn.Linear(condition_dim, dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, num_heads, feedforward_dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        shallow, deep = range(num_layers // 2), range(num_layers // 2, num_layers)
        for_evidence, for_plan = {
            "hierarchical": (shallow, deep),
            "reversed": (deep, shallow),
            "concat": (range(num_layers), range(0)),
            "single_stream": (shallow, range(0)),
        }[injection]
        adapter_in = dim + latent_dim if injection == "concat" else latent_dim
        self.adapters = nn.ModuleDict({str(layer): ZeroAdapter(adapter_in, dim) for layer in for_evidence})
        self.plan_attention = nn.ModuleDict({str(layer): PlanAttention(dim, num_heads) for layer in for_plan})
        self.norm = nn.LayerNorm(dim)
        self.project_out = nn.Linear(dim, latent_dim)

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        observed: Tensor,
        plan: Tensor,
        evidence: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise in `noisy`.

        Args:
            noisy (`torch.FloatTensor` of shape `(batch, latents, latent_dim)`): z_t.
            timesteps (`torch.LongTensor` of shape `(batch,)`): t of each sample.
            observed (`torch.FloatTensor` of shape `(batch, condition_dim)`): u_X, the observation.
            plan (`torch.FloatTensor` of shape `(batch, condition_dim)` or `(batch, plan_tokens, condition_dim)`): c_S.
            evidence (`torch.FloatTensor` of the shape of `noisy`): E; zeros where nothing was retrieved.
            mask (`torch.Tensor` of shape `(batch, latents)`, *optional*): 1 or True = a real latent.

        Returns:
            `torch.FloatTensor` of the shape of `noisy`; zeros where a latent is not real.

        Raises:
            ValueError: If the evidence has another shape than the latents.
        """
        if evidence.shape != noisy.shape:
            raise ValueError(
                f"The evidence has shape {tuple(evidence.shape)} and the latents {tuple(noisy.shape)}: they must be equal, "
                "so build the knowledge base from sequences of the same length."
            )
        noisy, evidence = _blank(noisy, mask), _blank(evidence, mask)
        places = torch.arange(noisy.shape[1], device=noisy.device)
        context = self.time(sinusoids(timesteps, self.dim).to(noisy.dtype)) + self.project_observed(observed)
        hidden = self.project_in(noisy) + sinusoids(places, self.dim).to(noisy.dtype) + context.unsqueeze(1)
        plan_tokens = None
        if self.project_plan is not None:
            plan_tokens = self.project_plan(plan if plan.dim() == 3 else plan.unsqueeze(1))
        injected = evidence
        if self.injection == "concat" and plan_tokens is not None:
            pooled = plan_tokens.mean(dim=1, keepdim=True).expand(-1, evidence.shape[1], -1)
            injected = torch.cat([pooled, evidence], dim=-1)
        ignore = None
        if mask is not None:
            # A row without any real latent attends to all: its output is blanked, and a softmax over nothing is NaN.
            ignore = ~mask.bool() & mask.bool().any(dim=1, keepdim=True)
        for index, layer in enumerate(self.layers):
            name = str(index)
            if name in self.adapters:
                hidden = hidden + self.adapters[name](injected)
            if name in self.plan_attention:
                hidden = hidden + self.plan_attention[name](hidden, plan_tokens)
            hidden = layer(hidden, src_key_padding_mask=ignore)
        alpha_bar = linear_alpha_bars(self.num_train_timesteps).to(noisy)[timesteps].view(-1, 1, 1)
        predicted = (1.0 - alpha_bar).sqrt() * noisy + alpha_bar.sqrt() * self.project_out(self.norm(hidden))
        return _blank(predicted, mask)


@functools.cache
def linear_alpha_bars(num_train_timesteps: int) -> Tensor:
    """Cumulative products of alphas of the linear noise schedule, as diffusers computes them; `(num_train_timesteps,)`."""
    return (1.0 - torch.linspace(BETA_START, BETA_END, num_train_timesteps, dtype=torch.float32)).cumprod(dim=0)


def tweedie(noisy: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """One-step estimate of the clean latents, eq. 16.

    The schedulers' own step takes one time step for the whole batch, hence this for training.

    Args:
        noisy (`torch.FloatTensor` of shape `(batch, ...)`): z_t.
        noise (`torch.FloatTensor` of the shape of `noisy`): Predicted noise.
        alpha_bar (`torch.FloatTensor` of shape `(batch,)`): Cumulative product of alphas at each sample's time step.

    Returns:
        `torch.FloatTensor` of the shape of `noisy`: z_0|t.
    """
    alpha_bar = alpha_bar.view(-1, *[1] * (noisy.dim() - 1))
    return (noisy - (1.0 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


def auxiliary_weights(alpha_bar: Tensor, aux_weight: AuxWeight = "alpha_bar") -> Tensor:
    """Weights of the losses that read the one-step estimate.

    Late in the chain the estimate is noise divided by next to nothing, so by default each sample counts by its alpha_bar;
    the paper has no weight, which is `"none"`.

    Args:
        alpha_bar (`torch.FloatTensor` of shape `(batch,)`): Cumulative product of alphas at each sample's time step.
        aux_weight: `"alpha_bar"` or `"none"`.

    Returns:
        `torch.FloatTensor` of shape `(batch,)`, to be multiplied with per-sample losses before their mean.

    Raises:
        ValueError: If `aux_weight` is neither.
    """
    if aux_weight not in AUX_WEIGHTS:
        raise ValueError(f"aux_weight is {aux_weight!r}; it must be one of {', '.join(AUX_WEIGHTS)}.")
    return alpha_bar if aux_weight == "alpha_bar" else torch.ones_like(alpha_bar)


def noise_loss(predicted: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
    """First term of eq. 15 per sample: squared error of the predicted noise, mean over the values of real latents.

    Args:
        predicted (`torch.FloatTensor` of shape `(batch, latents, latent_dim)`): Predicted noise.
        noise (`torch.FloatTensor` of the same shape): The noise that was added.
        mask (`torch.Tensor` of shape `(batch, latents)`, *optional*): 1 or True = a real latent.

    Returns:
        `torch.FloatTensor` of shape `(batch,)`.
    """
    return masked_mean((predicted - noise) ** 2, mask).mean(dim=-1)


def plan_loss(semantics: Tensor, plan: Tensor) -> Tensor:
    """L_plan of eq. 14 per sample: 1 - cosine of the generated features' meaning and the plan.

    Args:
        semantics (`torch.FloatTensor` of shape `(batch, condition_dim)`): What `FeatureSemantics` reads in the features.
        plan (`torch.FloatTensor` of shape `(batch, condition_dim)` or `(batch, plan_tokens, condition_dim)`): c_S; several
            tokens are averaged.

    Returns:
        `torch.FloatTensor` of shape `(batch,)`, between 0 and 2.
    """
    pooled = plan.mean(dim=1) if plan.dim() == 3 else plan
    return 1.0 - F.cosine_similarity(semantics, pooled, dim=-1)


def evidence_loss(statistics: Tensor, expected: Tensor) -> Tensor:
    """L_evi of eq. 14 per sample: mean absolute difference.

    Args:
        statistics (`torch.FloatTensor` of shape `(batch, 2 * dim)`): `feature_statistics` of the generated features.
        expected (`torch.FloatTensor` of the same shape): What `EvidenceAlignment` expects of the evidence.

    Returns:
        `torch.FloatTensor` of shape `(batch,)`.
    """
    return (statistics - expected).abs().mean(dim=-1)


class FeatureSemantics(nn.Module):
    """G: what a feature sequence means, in the space of plans; the feature side of g in eq. 14.

    The paper writes g, its text encoder, which cannot read features. This network is trained to match g of the transcripts
    and frozen afterwards.

    Args:
        dim: Width of the features.
        condition_dim: Width of plan embeddings.
        hidden: Width between.
    """

    def __init__(self, dim: int, condition_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, condition_dim))

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read `values`, shape `(batch, length, dim)`; a mask of 1 or True = real. Returns `(batch, condition_dim)`."""
        output: Tensor = self.network(masked_mean(_blank(values, mask), mask))
        return output


class EvidenceAlignment(nn.Module):
    """A of eq. 14: the feature statistics that the evidence lets expect.

    Args:
        latent_dim: Width of the evidence.
        dim: Width of the features.
    """

    def __init__(self, latent_dim: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(latent_dim, 2 * dim)

    def forward(self, evidence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read `evidence`, shape `(batch, latents, latent_dim)`; a mask of 1 or True = real. Returns `(batch, 2 * dim)`."""
        output: Tensor = self.project(masked_mean(_blank(evidence, mask), mask))
        return output


def build_scheduler(name: str = "ddpm", num_train_timesteps: int = 1000) -> Any:
    """Build a diffusers scheduler over the linear noise schedule, made for latents.

    Samples are not clipped (the library's default, right for pictures only), the variance is the posterior's of eq. 11, and
    the time steps of a shortened chain begin at its very end.

    Args:
        name: `"ddpm"`, `"ddim"` or `"dpm_solver++"`.
        num_train_timesteps: Length of the full chain.

    Returns:
        A scheduler of diffusers.

    Raises:
        ValueError: If the name is unknown.
        ImportError: If diffusers is not installed.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"The scheduler is {name!r}; it must be one of {', '.join(SCHEDULERS)}.")
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError(
            "Generating needs the package 'diffusers', which is not installed: pip install 'hf-msa[omg]'."
        ) from error
    ddpm = diffusers.DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="linear",
        clip_sample=False,
        variance_type="fixed_small",
        prediction_type="epsilon",
        timestep_spacing="trailing",
    )
    return ddpm if name == "ddpm" else getattr(diffusers, SCHEDULERS[name]).from_config(ddpm.config)


def check_scheduler(scheduler: Any) -> None:
    """Refuse schedulers that bend latents or read predictions as something else than noise.

    Args:
        scheduler: A scheduler of diffusers.

    Raises:
        ValueError: If it clips or thresholds samples, or its prediction type is not `"epsilon"`.
    """
    config = scheduler.config
    wrong = [name for name in ("clip_sample", "thresholding") if config.get(name, False)]
    if config.get("prediction_type") != "epsilon":
        wrong.append(f"prediction_type={config.get('prediction_type')!r}")
    if wrong:
        raise ValueError(
            f"The scheduler {type(scheduler).__name__} has {', '.join(wrong)}: it must neither clip nor threshold latents "
            "and must predict 'epsilon', so make it with build_scheduler or from_config of such a one."
        )


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """Draw standard normal noise, each sample from a generator of its own.

    The generators are the CPU's on every machine, so a sample's noise depends on its seed alone.

    Args:
        seeds: One seed per sample.
        shape: Shape of one sample's noise.

    Returns:
        `torch.FloatTensor` of shape `(len(seeds), *shape)` and the generators, for what is drawn later on.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators]), generators


@dataclass
class SampledLatents:
    """What `sample_latents` returns.

    Args:
        latents: z_0*, `(batch, latents, latent_dim)`.
        step_costs: Mean squared change of z in each step, `(batch, steps)`; their mean is the diagnostic C_path.
    """

    latents: Tensor
    step_costs: Tensor


@torch.no_grad()
def sample_latents(
    denoise: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    seeds: Sequence[int],
    shape: Sequence[int],
    num_steps: int = 50,
    mask: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> SampledLatents:
    """Walk from noise to clean latents (eq. 11 with the DDPM scheduler), reproducibly for each sample.

    Args:
        denoise: Predicts the noise from z_t, `(batch, latents, latent_dim)`, and the time steps, `(batch,)`.
        scheduler: A scheduler of diffusers; it is copied, so its own state stays as it is.
        seeds: One seed per sample; a sample's result does not depend on its neighbours.
        shape: `(latents, latent_dim)`.
        num_steps: Number of steps.
        mask (`torch.Tensor` of shape `(batch, latents)`, *optional*): 1 or True = a real latent; others become zeros.
        device: Where to compute.

    Raises:
        ValueError: If the scheduler is not made for latents, see `check_scheduler`.
    """
    check_scheduler(scheduler)
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps)
    noise, generators = draw_noise(seeds, shape)
    latents = _blank((noise * scheduler.init_noise_sigma).to(device), mask)
    costs = []
    for step in scheduler.timesteps:
        timesteps = torch.full((len(seeds),), int(step), device=device)
        predicted = denoise(scheduler.scale_model_input(latents, step), timesteps)
        following = _blank(scheduler.step(predicted, step, latents, generator=generators).prev_sample, mask)
        costs.append(masked_mean((following - latents) ** 2, mask).mean(dim=-1))
        latents = following
    return SampledLatents(latents, torch.stack(costs, dim=1))


@dataclass
class ExecutorOutput:
    """What a training step of `ModalityExecutor` returns; losses are per sample, for the caller to weigh and average.

    Args:
        noise_loss: First term of eq. 15, `(batch,)`.
        plan_loss: L_plan, `(batch,)`, not weighted.
        evidence_loss: L_evi, `(batch,)`, not weighted.
        alpha_bar: Cumulative product of alphas at each sample's time step, `(batch,)`.
        noisy: z_t, `(batch, latents, latent_dim)`.
        estimate: z_0|t, `(batch, latents, latent_dim)`; differentiable, for the task loss.
        values: Decoded estimate, `(batch, length, dim)`.
    """

    noise_loss: Tensor
    plan_loss: Tensor
    evidence_loss: Tensor
    alpha_bar: Tensor
    noisy: Tensor
    estimate: Tensor
    values: Tensor

    def loss(self, plan_weight: float, evidence_weight: float, aux_weight: AuxWeight = "alpha_bar") -> Tensor:
        """L_rec of eq. 15: mean over samples, the consistency losses weighted as `auxiliary_weights` says."""
        weights = auxiliary_weights(self.alpha_bar, aux_weight)
        consistency = plan_weight * self.plan_loss + evidence_weight * self.evidence_loss
        return (self.noise_loss + weights * consistency).mean()


@dataclass
class GeneratedModality:
    """What `ModalityExecutor.generate` returns.

    Args:
        values: Generated features, `(batch, length, dim)`.
        latents: z_0*, `(batch, latents, latent_dim)`.
        step_costs: Mean squared change of z in each step, `(batch, steps)`.
    """

    values: Tensor
    latents: Tensor
    step_costs: Tensor


class ModalityExecutor(nn.Module):
    """The executor for one modality: autoencoder, denoiser and the two heads of the consistency losses.

    The autoencoder and `semantics` are trained beforehand; `freeze_pretrained` fixes them, gradients still pass through.

    Args:
        dim: Width of the modality's features.
        condition_dim: Width of plan and observation embeddings.
        vae: The modality's autoencoder.
        denoiser: The modality's denoiser, over latents of the autoencoder.
    """

    def __init__(self, dim: int, condition_dim: int, vae: LatentVae, denoiser: Denoiser) -> None:
        super().__init__()
        self.vae = vae
        self.denoiser = denoiser
        self.semantics = FeatureSemantics(dim, condition_dim)
        self.alignment = EvidenceAlignment(vae.latent_dim, dim)

    def freeze_pretrained(self) -> None:
        """Take the autoencoder and `semantics` out of training."""
        self.vae.requires_grad_(False)
        self.semantics.requires_grad_(False)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        scheduler: Any,
        observed: Tensor,
        plan: Tensor,
        evidence: Tensor,
        mask: Tensor | None = None,
    ) -> ExecutorOutput:
        """One training step: add noise, predict it, estimate the clean latents in one step, decode and compare.

        Args:
            latents (`torch.FloatTensor` of shape `(batch, latents, latent_dim)`): z_0, as `LatentVae.latents` gives it.
            timesteps (`torch.LongTensor` of shape `(batch,)`): t of each sample.
            noise (`torch.FloatTensor` of the shape of `latents`): What is added.
            scheduler: A scheduler of diffusers.
            observed (`torch.FloatTensor` of shape `(batch, condition_dim)`): u_X.
            plan (`torch.FloatTensor` of shape `(batch, condition_dim)` or `(batch, plan_tokens, condition_dim)`): c_S.
            evidence (`torch.FloatTensor` of the shape of `latents`): E.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*): Over features, 1 or True = a real position.

        Raises:
            ValueError: If the scheduler is not made for latents, see `check_scheduler`.
        """
        check_scheduler(scheduler)
        coarse = None if mask is None else LatentVae.latent_mask(mask)
        alpha_bar = scheduler.alphas_cumprod.to(latents.device)[timesteps].to(latents.dtype)
        # Not the scheduler's own function: that of multistep solvers knows the time steps of inference only.
        share = alpha_bar.view(-1, 1, 1)
        noisy = _blank(share.sqrt() * latents + (1.0 - share).sqrt() * noise, coarse)
        predicted = self.denoiser(noisy, timesteps, observed, plan, evidence, coarse)
        estimate = tweedie(noisy, predicted, alpha_bar)
        values = self.vae.decode(estimate, mask)
        return ExecutorOutput(
            noise_loss=noise_loss(predicted, noise, coarse),
            plan_loss=plan_loss(self.semantics(values, mask), plan),
            evidence_loss=evidence_loss(feature_statistics(values, mask), self.alignment(evidence, coarse)),
            alpha_bar=alpha_bar,
            noisy=noisy,
            estimate=estimate,
            values=values,
        )

    @torch.no_grad()
    def generate(
        self,
        seeds: Sequence[int],
        scheduler: Any,
        observed: Tensor,
        plan: Tensor,
        evidence: Tensor,
        mask: Tensor | None = None,
        num_steps: int = 50,
    ) -> GeneratedModality:
        """Generate the modality.

        Args:
            seeds: One seed per sample.
            scheduler: A scheduler of diffusers.
            observed (`torch.FloatTensor` of shape `(batch, condition_dim)`): u_X.
            plan (`torch.FloatTensor` of shape `(batch, condition_dim)` or `(batch, plan_tokens, condition_dim)`): c_S.
            evidence (`torch.FloatTensor` of shape `(batch, latents, latent_dim)`): E; it also gives the length.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*): Over features, 1 or True = a position to generate.
            num_steps: Number of steps.

        Raises:
            ValueError: If the scheduler is not made for latents, see `check_scheduler`.
        """
        coarse = None if mask is None else LatentVae.latent_mask(mask)

        def denoise(noisy: Tensor, timesteps: Tensor) -> Tensor:
            predicted: Tensor = self.denoiser(noisy, timesteps, observed, plan, evidence, coarse)
            return predicted

        sampled = sample_latents(
            denoise, scheduler, seeds, evidence.shape[1:], num_steps=num_steps, mask=coarse, device=evidence.device
        )
        return GeneratedModality(self.vae.decode(sampled.latents, mask), sampled.latents, sampled.step_costs)
