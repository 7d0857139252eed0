"""Conditional fine-tuning: plain denoising with an image condition, what the paper distils or compares with.

    z_t = alpha_t x + sigma_t eps,   L = E_{t, eps} |target - f(z_t, t, c, text)|^2

The target is eps, v or x0 as the teacher's `prediction` says. With a frozen UNet this is ControlNet's training, with
`train_unet` LDM-SR's and InstructPix2Pix'; sampled in 50 or more steps it is what few-step models are measured against,
in 4 steps (with DDIM or DPM-Solver++) their undistilled baseline. It is CM's first stage and GD's last.

t is uniform over the trailing grid of `grid_steps` times, by default all of them: a student that knows N times only
(GD's) is fine-tuned on those. A share `caption_dropout` of the prompts is replaced by the empty one, in SDXL's pooled
state too.

`weighting` is of the errors: `plain` is L above; `truncated_snr` is GD's own (`objectives.progressive`),

    L = E_{t, eps} max(alpha_t^2 / sigma_t^2, 1) |x - x_hat(z_t, t, c, text)|^2

Over a student's few times the first of them decides what all later ones can do, and there eps says next to nothing of
x0: |eps - eps_hat|^2 = SNR |x - x_hat|^2, at t = 999 of Stable Diffusion 1/214. Fine-tuned by it a student would lose
the x0 that it was distilled to.

`hint_weight` adds CCD's regression of a ControlNet's embedding (`network.hint_error`), so that the two are
compared on equal terms; 0 is ControlNet's own training.

Cost per sample: 3F and 3 adapter forwards in full training; with the adapter alone the backward pass stops at the
encoder's end, 2F or less and the same adapter forwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.distances import l2
from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Level, add_noise, truncated_snr
from sdd_jax.diffusion.timegrid import trailing_grid
from sdd_jax.models.adapters import ControlNetAdapter
from sdd_jax.objectives.inputs import drop_captions, latents_of, text_of
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase

WEIGHTINGS: dict[str, Callable[[jax.Array, jax.Array, Level], jax.Array]] = {
    "plain": lambda own, x0, at: own,
    "truncated_snr": lambda own, x0, at: truncated_snr(at) * x0,
}
"""What is minimised, f32[b], of the squared errors of the network's own prediction and of x0 f32[b] at a level."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionalDiffusion(ConditionalNetwork):
    """Plain denoising. Fields beside the network's:

    grid_steps: the number of trained times. caption_dropout: share of prompts that are emptied.
    hint_weight: of `hint_error`. weighting: "plain" or "truncated_snr".
    """

    grid_steps: int = 1000
    caption_dropout: float = 0.0
    weighting: str = "plain"
    hint_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting={self.weighting!r} is not known; use {', '.join(WEIGHTINGS)}")
        if self.hint_weight and not isinstance(self.adapter, ControlNetAdapter | None):
            raise ValueError(f"hint_weight={self.hint_weight} trains a ControlNet's embedding: with another adapter, 0")

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the weighted mean squared error, and that of x0_hat as it is."""
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
        missed = l2(x, predictor(self.model.prediction).x0(out, z_t, at))
        loss = jnp.mean(WEIGHTINGS[self.weighting](l2(target, out), missed, at))
        metrics = {"reconstruction": jnp.mean(missed)}
        if self.hint_weight:
            metrics["hint"] = jnp.mean(self.hint_error(params, frozen, hint, x))
            loss += self.hint_weight * metrics["hint"]
        return loss, metrics

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of everything trained."""
        return (Phase(self.loss),)
