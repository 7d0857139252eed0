"""CM: consistency distillation of a fine-tuned conditional model (Song et al., 2023; in latents, Luo et al., 2023).

The paper's two-stage baseline: fine-tune the teacher on the condition first (`objectives.conditional`), then distil
that model phi. With f = c_skip z + c_out x0_hat (`diffusion.distances`), t on a trailing grid of N times and s the time
below it,

    z_s = DDIM step of phi(z_t, t, c) from t to s
    L   = d(sg f_target(z_s, s, c), f_online(z_t, t, c))

Below the grid's lowest time s is CLEAN, where f is the identity and the target is z_s itself: the anchor that keeps f
from collapsing to a constant (LCM gets the same from its s = 0). t is drawn per sample. The target is the EMA of the
online network, both start from phi, and phi is `frozen['teacher']`: its UNet and its adapter.

A model so trained is sampled by predicting x0 and adding fresh noise (`sampling.generate.sample_consistency`).

Cost per sample: 5F (online 3F, target F, phi F) and 5 adapter forwards in full training.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.distances import Distance, l2, pseudo_huber
from sdd_jax.diffusion.schedule import CLEAN, Level, add_noise
from sdd_jax.diffusion.timegrid import trailing_grid
from sdd_jax.diffusion.transport import move
from sdd_jax.objectives.inputs import latents_of, text_of
from sdd_jax.objectives.network import ConditionalNetwork, Text, tied_to_data
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase

DISTANCES: dict[str, Distance] = {"l2": l2, "pseudo_huber": pseudo_huber}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(ConditionalNetwork):
    """Fields: `grid_steps` N, the `distance`, and the network's."""

    grid_steps: int = 50
    distance: str = "pseudo_huber"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in DISTANCES:
            raise ValueError(f"distance={self.distance!r} is not known; use {', '.join(DISTANCES)}")

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns phi: its adapter and, in full training, its UNet."""
        trained = ("adapter", "unet") if self.train_unet else ("adapter",)
        return jax.tree.map(lambda x: x.astype(jnp.float32), {name: frozen["teacher"][name] for name in trained})

    @property
    def prediction(self) -> str:
        """`predict` answers with f."""
        return "x0"

    def predict(
        self,
        params: Params,
        frozen: Frozen,
        hint: Any,
        z_t: jax.Array,
        t: jax.Array,
        text: Text,
        w: jax.Array | None = None,
    ) -> jax.Array:
        """f at (z_t, t); arguments as for `ConditionalNetwork.predict`."""
        out = super().predict(params, frozen, hint, z_t, t, text, w)
        return tied_to_data(out, z_t, t, self.schedule, self.model.prediction)

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the consistency loss, and the online network's squared error against the data."""
        latents_rng, time_rng, noise_rng = jax.random.split(rng, 3)
        x = latents_of(self.model, frozen, batch, latents_rng)
        text = text_of(self.model, frozen, batch)
        hint = self.adapter.prepare(frozen, batch.get("condition"))
        t, s, is_last = self.draw_times(time_rng, x.shape[0])
        at_t, at_s = self.schedule.at(t), self.schedule.at(s)
        last = is_last[:, None, None, None]
        at_s = Level(jnp.where(last, CLEAN.alpha, at_s.alpha), jnp.where(last, CLEAN.sigma, at_s.sigma))
        z_t = add_noise(x, jax.random.normal(noise_rng, x.shape), at_t)

        step_of = super().predict(frozen["teacher"], frozen, hint, z_t, t, text)
        z_s = jax.lax.stop_gradient(move(step_of, z_t, at_t, at_s, self.model.prediction))
        target = jnp.where(last, z_s, self.predict(frozen["target"], frozen, hint, z_s, s, text))
        online = self.predict(params, frozen, hint, z_t, t, text)
        loss = jnp.mean(DISTANCES[self.distance](jax.lax.stop_gradient(target), online))
        return loss, {"reconstruction": jnp.mean(l2(x, online))}

    def draw_times(self, rng: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draws t i32[b], the grid time s below it (the lowest time itself where there is none), and where that is."""
        grid = trailing_grid(self.grid_steps, len(self.model.alphas_cumprod))[::-1]
        below = np.concatenate([grid[:1], grid[:-1]])
        index = jax.random.randint(rng, (batch_size,), 0, len(grid))
        return jnp.asarray(grid)[index], jnp.asarray(below)[index], index == 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of everything trained."""
        return (Phase(self.loss),)
