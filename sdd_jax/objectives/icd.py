"""iCD: invertible consistency distillation (Starodubcev et al. 2024), stage 2.

A reverse model (noise -> image in m jumps) and a forward model (image -> noise in m jumps) are distilled from one
teacher that reads its guidance scale w (stage 1), and made each other's inverse. A jump of either model is

    f(z, t, s) = alpha_s x0_hat(z, t) + sigma_s eps_hat(z, t)          one `move`; f(z, t, t) = z; s = 0 means CLEAN

and the network never sees s. With boundaries and (t', s) as in `timegrid` (eq. 2, 3 there), d pseudo-Huber, sg
stop-gradient and z_t = alpha_t x0 + sigma_t eps:

    L_CD  = E d(f_rev(z_t, t, s | w), sg f_rev(z_t', t', s | w))      z_t' the teacher's DDIM step t -> t' < t, with w
    L_fCD = E d(f_fwd(z_t, t, s | 1), sg f_fwd(z_t', t', s | 1))      z_t' the teacher's DDIM step t -> t' > t, w = 1
    L_f   = E d(f_fwd(sg f_rev(z_high, high, low), low, high), z_high)                       updates f_fwd alone
    L_r   = E d(f_rev(sg f_fwd(z_low, low, high), high, low), z_low)                         updates f_rev alone
    L     = L_CD + L_fCD + lambda_f L_f + lambda_r L_r                                                  (eq. 5)

The target network is the student itself, no EMA; where t' = s the target is z_t'. w is drawn per sample from the scales
of stage 1 and costs one pass, being embedded. (low, high) are the forward jumps: (19, 259), ... (779, 999); both models
run at w = 1 there.

Departures. The released code takes alphas_cumprod[0] in place of 1 at t' = 0, where f(z, t, t) = z then fails; here t'
= 0 is CLEAN. The paper sums (eq. 5); the released loop takes four optimiser steps an iteration instead. `alternating`
does so, too, but not as released: each term is a `Phase` with its own optimiser state, so that under Adam lambda does
not act at all, where the two losses of a model there share one state, through whose moments it acts.

Trained: two adapters on the frozen teacher, or two full copies of it. `params` holds 'reverse' and 'forward'; a model
none of whose two losses has a weight is not trained, and where a preservation loss needs it, it is read from `frozen`.

Cost per sample in full training: L_CD 5F, L_fCD 5F (student 3F, teacher F, target F), L_f 4F, L_r 4F (student 3F, the
other model F). With adapters each student costs 2F and the adapter's own: 4F + 4F + 3F + 3F.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.distances import Distance, pseudo_huber
from sdd_jax.diffusion.guidance import guidance_embedding
from sdd_jax.diffusion.schedule import Schedule, add_noise
from sdd_jax.diffusion.timegrid import BOUNDARIES, Boundaries, forward_target, reverse_target, solver_grid
from sdd_jax.diffusion.transport import move
from sdd_jax.models import lora
from sdd_jax.models.lora import LoraSpec
from sdd_jax.objectives.inputs import latents_of, text_of
from sdd_jax.types import Batch, Frozen, Metrics, ModelBundle, Params, Phase

Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Targets = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
Term = Callable[[Params, Frozen, Batch, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ICD:
    """The method's choices.

    Fields:
        model: the bundle of the guidance-distilled teacher, whose parameters are `frozen['teacher']['unet']`.
        boundaries: where jumps start; the published ones are `timegrid.BOUNDARIES`.
        scales: the values of w that the reverse model learns.
        lora: the adapters' rank, strength and targets; None trains two full copies of the teacher.
        reverse_weight, forward_weight: of L_CD and L_fCD; 0 leaves the term out of the program.
        forward_preservation, reverse_preservation: lambda_f and lambda_r; likewise.
        alternating: one optimiser update per term in place of one for their sum.
        grid_steps: points of the solver grid. distance: d.
    """

    model: ModelBundle
    boundaries: Boundaries = BOUNDARIES["4_tau0.8"]
    scales: tuple[float, ...] = (1.0, 8.0, 12.0, 16.0, 20.0)
    lora: LoraSpec | None = LoraSpec(rank=64, alpha=8)
    reverse_weight: float = 1.0
    forward_weight: float = 1.0
    forward_preservation: float = 1.5
    reverse_preservation: float = 1.5
    alternating: bool = False
    grid_steps: int = 50
    distance: Distance = pseudo_huber
    embedding_dim: int = 512

    def __post_init__(self) -> None:
        reverse, forward = self.boundaries.reverse, self.boundaries.forward
        last = self.model.alphas_cumprod.shape[0] - 1
        if self.grid_steps < 2 or (last + 1) % self.grid_steps:
            raise ValueError(f"grid_steps={self.grid_steps} does not divide {last + 1} timesteps into equal steps")
        grid = self.grid.tolist()
        stray = sorted({*reverse, *forward} - set(grid))
        if stray:
            raise ValueError(
                f"boundaries {stray} are not on the solver grid {grid[0]}, {grid[1]}, ..., {grid[-1]}: choose times of "
                f"it, or another grid_steps than {self.grid_steps}"
            )
        if list(reverse) != sorted(set(reverse)) or reverse[-1] != last:
            raise ValueError(f"reverse boundaries {reverse} must ascend and end at {last}")
        if forward[1:] != reverse[:-1] or forward[0] != grid[0]:
            raise ValueError(f"forward boundaries {forward} must be {(grid[0], *reverse[:-1])}, the reverse model's")
        if not self.terms:
            raise ValueError("every loss weight is 0: nothing would be trained")

    @property
    def grid(self) -> np.ndarray:
        """The solver grid, int32[grid_steps], ascending."""
        return solver_grid(self.grid_steps, self.model.alphas_cumprod.shape[0])

    @property
    def terms(self) -> dict[str, tuple[str, float, Term]]:
        """The terms of eq. 5 that have a weight: name -> (the model that it updates, weight, loss)."""
        every: dict[str, tuple[str, float, Term]] = {
            "reverse_cd": ("reverse", self.reverse_weight, self.reverse_consistency),
            "forward_cd": ("forward", self.forward_weight, self.forward_consistency),
            "forward_preservation": ("forward", self.forward_preservation, self.preserve_forward),
            "reverse_preservation": ("reverse", self.reverse_preservation, self.preserve_reverse),
        }
        return {name: term for name, term in every.items() if term[1]}

    @property
    def trained(self) -> tuple[str, ...]:
        """The models that a term updates, of 'forward' and 'reverse'."""
        return tuple(sorted({model for model, _, _ in self.terms.values()}))

    def init(self, rng: jax.Array, frozen: Frozen) -> Params:
        """Returns an adapter, or a float32 copy of the teacher, for each trained model."""
        teacher = frozen["teacher"]["unet"]
        if self.lora is None:
            return {name: jax.tree.map(lambda x: x.astype(jnp.float32), teacher) for name in self.trained}
        keys = jax.random.split(rng, len(self.trained))
        return {name: lora.init(key, teacher, self.lora) for name, key in zip(self.trained, keys, strict=True)}

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns eq. 5 averaged over the batch, and its terms."""
        return self._weighted_sum(params, frozen, batch, rng, self.terms)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of everything; alternating, one per term, of the model that it trains."""
        if not self.alternating:
            return (Phase(self.loss),)
        return tuple(self._phase(name) for name in self.terms)

    def _phase(self, name: str) -> Phase:
        term = self.terms[name]

        def loss(
            params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
        ) -> tuple[jax.Array, Metrics]:
            return self._weighted_sum(params, frozen, batch, rng, {name: term})

        return Phase(loss, lambda params: {model: model == term[0] for model in params})

    def _weighted_sum(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, terms: dict[str, tuple[str, float, Term]]
    ) -> tuple[jax.Array, Metrics]:
        """Evaluates `terms` on the same latents and text states, each with its own times and noise."""
        latents_rng, *keys = jax.random.split(rng, 1 + len(terms))
        context, added_cond = text_of(self.model, frozen, batch)
        inputs = {"latents": latents_of(self.model, frozen, batch, latents_rng), "context": context}
        inputs |= added_cond or {}
        metrics = {name: terms[name][2](params, frozen, inputs, key) for name, key in zip(terms, keys, strict=True)}
        return jnp.sum(jnp.stack([terms[name][1] * value for name, value in metrics.items()])), metrics

    def network(self, params: Params, frozen: Frozen, inputs: Batch, name: str) -> Network:
        """The 'teacher', 'reverse' or 'forward' model as a function (z, t int[b], w f32[b]) -> prediction [b,h,w,c].

        inputs: `context` f32[b,n,d] and, for SDXL, the added conditions.
        """
        added_cond = {key: inputs[key] for key in ("text_embeds", "time_ids") if key in inputs} or None
        teacher = frozen["teacher"]["unet"]
        if name == "teacher":
            apply = functools.partial(self.model.denoise, teacher)
        else:
            weights = params[name] if name in params else frozen[name]
            if self.lora is None:
                apply = functools.partial(self.model.denoise, weights)
            else:
                apply = functools.partial(lora.adapt(self.model.denoise, self.lora), teacher, weights)

        def evaluate(z: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
            embedded = guidance_embedding(w, self.embedding_dim)
            return apply(z, t, inputs["context"], added_cond=added_cond, timestep_cond=embedded)

        return evaluate

    def jump(self, network: Network, z: jax.Array, t: jax.Array, s: jax.Array, w: jax.Array) -> jax.Array:
        """f(z, t, s): z f32[b,h,w,c], t and s int[b] (0 is CLEAN, for both), w f32[b] -> f32[b,h,w,c]."""
        schedule = Schedule(self.model.alphas_cumprod)
        at_t, at_s = schedule.at_boundary(t), schedule.at_boundary(s)
        moved = move(network(z, t, w), z, at_t, at_s, self.model.prediction)
        return jnp.where((t == s)[:, None, None, None], z, moved)

    def reverse_consistency(self, params: Params, frozen: Frozen, inputs: Batch, rng: jax.Array) -> jax.Array:
        """L_CD, a scalar. inputs: as for `network`, and `latents` f32[b,h,w,c], clean and scaled."""
        time_rng, noise_rng, scale_rng = jax.random.split(rng, 3)
        b = inputs["latents"].shape[0]
        t = jax.random.choice(time_rng, jnp.asarray(self.grid), (b,))
        w = jax.random.choice(scale_rng, jnp.asarray(self.scales, jnp.float32), (b,))
        targets = functools.partial(reverse_target, reverse=self.boundaries.reverse, stride=self._stride)
        return self._consistency("reverse", params, frozen, inputs, noise_rng, t, w, targets)

    def forward_consistency(self, params: Params, frozen: Frozen, inputs: Batch, rng: jax.Array) -> jax.Array:
        """L_fCD, a scalar; inputs as for `reverse_consistency`."""
        time_rng, noise_rng = jax.random.split(rng)
        b = inputs["latents"].shape[0]
        t = jax.random.choice(time_rng, jnp.asarray(self.grid[:-1]), (b,))
        targets = functools.partial(forward_target, reverse=self.boundaries.reverse, stride=self._stride)
        return self._consistency("forward", params, frozen, inputs, noise_rng, t, jnp.ones((b,)), targets)

    def preserve_forward(self, params: Params, frozen: Frozen, inputs: Batch, rng: jax.Array) -> jax.Array:
        """L_f, a scalar: the forward model undoes the frozen reverse model; inputs as for `reverse_consistency`."""
        low, high, noise = self._draw_pairs(inputs, rng)
        return self._preservation("reverse", "forward", params, frozen, inputs, noise, high, low)

    def preserve_reverse(self, params: Params, frozen: Frozen, inputs: Batch, rng: jax.Array) -> jax.Array:
        """L_r, a scalar: the reverse model undoes the frozen forward model; inputs as for `reverse_consistency`."""
        low, high, noise = self._draw_pairs(inputs, rng)
        return self._preservation("forward", "reverse", params, frozen, inputs, noise, low, high)

    @property
    def _stride(self) -> int:
        return int(self.grid[1] - self.grid[0])

    def _consistency(
        self,
        name: str,
        params: Params,
        frozen: Frozen,
        inputs: Batch,
        noise_rng: jax.Array,
        t: jax.Array,
        w: jax.Array,
        targets: Targets,
    ) -> jax.Array:
        teacher, student = (self.network(params, frozen, inputs, one) for one in ("teacher", name))
        x0, schedule = inputs["latents"], Schedule(self.model.alphas_cumprod)
        z_t = add_noise(x0, jax.random.normal(noise_rng, x0.shape), schedule.at(t))
        t_solver, s = targets(t)
        z_solver = jax.lax.stop_gradient(self.jump(teacher, z_t, t, t_solver, w))
        target = jax.lax.stop_gradient(self.jump(student, z_solver, t_solver, s, w))
        return jnp.mean(self.distance(self.jump(student, z_t, t, s, w), target))

    def _draw_pairs(self, inputs: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draws (low, high) int32[b] of the forward jumps, and noise as the latents."""
        pair_rng, noise_rng = jax.random.split(rng)
        shape = inputs["latents"].shape
        pairs = jax.random.choice(pair_rng, jnp.asarray(self.boundaries.forward_jumps), shape[:1])
        return pairs[:, 0], pairs[:, 1], jax.random.normal(noise_rng, shape)

    def _preservation(
        self,
        fixed: str,
        student: str,
        params: Params,
        frozen: Frozen,
        inputs: Batch,
        noise: jax.Array,
        start: jax.Array,
        turn: jax.Array,
    ) -> jax.Array:
        """There (start -> turn) with the `fixed` model, back with the `student`."""
        there, back = (self.network(params, frozen, inputs, name) for name in (fixed, student))
        unguided = jnp.ones(start.shape)
        z = add_noise(inputs["latents"], noise, Schedule(self.model.alphas_cumprod).at(start))
        carried = jax.lax.stop_gradient(self.jump(there, z, start, turn, unguided))
        return jnp.mean(self.distance(self.jump(back, carried, turn, start, unguided), z))
