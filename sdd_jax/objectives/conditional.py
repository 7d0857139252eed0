"""Conditional fine-tuning: plain denoising with an image condition, what the paper distils or compares with.

    z_t = alpha_t x + sigma_t eps,   L = E_{t, eps} |target - f(z_t, t, c, text)|^2

The target is eps, v or x0 as the teacher's `prediction` says. With a frozen UNet this is ControlNet's training, with
`train_unet` LDM-SR's and InstructPix2Pix'; sampled in 50 or more steps it is what few-step models are measured against,
in 4 steps (with DDIM or DPM-Solver++) their undistilled baseline. It is CM's first stage and GD's last.

t is uniform over the trailing grid of `grid_steps` times, by default all of them: a student that knows N times only
(GD's) is fine-tuned on those. A share `caption_dropout` of the prompts is replaced by the empty one, in SDXL's pooled
state too. `hint_weight` adds CCD's regression of a ControlNet's embedding (`network.hint_error`), so that the two are
compared on equal terms; 0 is ControlNet's own training.

Cost per sample: 3F and 3 adapter forwards in full training; with the adapter alone the backward pass stops at the
encoder's end, 2F or less and the same adapter forwards.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.distances import l2
from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import add_noise
from sdd_jax.diffusion.timegrid import trailing_grid
from sdd_jax.models.adapters import ControlNetAdapter
from sdd_jax.objectives.inputs import drop_captions, latents_of, text_of
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionalDiffusion(ConditionalNetwork):
    """Fields: `grid_steps`, the number of trained times; `caption_dropout`; `hint_weight`; and the network's."""

    grid_steps: int = 1000
    caption_dropout: float = 0.0
    hint_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hint_weight and not isinstance(self.adapter, ControlNetAdapter | None):
            raise ValueError(f"hint_weight={self.hint_weight} trains a ControlNet's embedding: with another adapter, 0")

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the mean squared error of the network's own prediction, and that of its x0_hat."""
        latents_rng, time_rng, noise_rng, drop_rng = jax.random.split(rng, 4)
        x = latents_of(self.model, frozen, batch, latents_rng)
        text = text_of(self.model, frozen, batch)
        if self.caption_dropout:
            text = drop_captions(self.model, frozen, text, self.caption_dropout, drop_rng)
        grid = jnp.asarray(trailing_grid(self.grid_steps, self.schedule.num_timesteps))
        t = grid[jax.random.randint(time_rng, x.shape[:1], 0, self.grid_steps)]
        at = self.schedule.at(t)
        eps = jax.random.normal(noise_rng, x.shape)
        z_t = add_noise(x, eps, at)
        hint = self.adapter.prepare(frozen, batch.get("condition"))
        out = self.predict(params, frozen, hint, z_t, t, text)
        # the exact x0 in the network's own space: eps, v or x0
        target = getattr(predictor("x0"), self.model.prediction)(x, z_t, at)
        loss = jnp.mean(l2(target, out))
        x_hat = predictor(self.model.prediction).x0(out, z_t, at)
        metrics = {"reconstruction": jnp.mean(l2(x, x_hat))}
        if self.hint_weight:
            metrics["hint"] = jnp.mean(self.hint_error(params, frozen, hint, x))
            loss += self.hint_weight * metrics["hint"]
        return loss, metrics

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of everything trained."""
        return (Phase(self.loss),)
