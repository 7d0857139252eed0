"""Real images in and out of a model's noise, and edits on the way: one interface for iCD and for DDIM.

A `Route` is how latents travel between an image and noise, without saying through which network:

| route | down, noise -> image | up, image -> noise |
| --- | --- | --- |
| `BoundaryRoute` (iCD) | 999 -> 779 -> 519 -> 259 -> CLEAN, reverse model | noised to 19 -> 259 -> .. -> 999, forward |
| `DDIMRoute` | n DDIM steps of the teacher | n x rounds DDIM inversion steps of the teacher |

A network enters as `denoise(z [b,h,w,c], t int[b]) -> prediction`, made of a UNet that takes a guidance scale, by one
pass (`embedded_guidance`) or two (`guidance.guided`), which have the same signature; of a prompt; and of a `Guidance`,
w as a function of t: `constant_guidance`, or `dynamic_guidance`: iCD's step, a ramp or an interval.

    encode        route.encode(prompted(forward_unet, source, constant_guidance(1.0)), x0, noise)      w = 1: encoding
    reconstruct   route.decode(prompted(reverse_unet, source, dynamic), z)                             guided is worst
    generate      route.decode(prompted(reverse_unet, prompt, dynamic), noise)
    edit          `edit_image`: both branches from the same z, stacked [sources, targets], the source's at w = 1 and the
                  target's at w(t); attention control ties them (`attention_control`)
    edit, SDXL    route.decode(prompt_switched(...), z): source prompt and w = 1 above tau, then the target's and w

Cost: n F for n stops, 2n F for pairs; guidance by two passes doubles what is guided. Sources: Starodubcev et al. 2024
(iCD), Song et al. 2021 (DDIM), Hertz et al. 2022 (prompt-to-prompt).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.guidance import guidance_embedding, interval_guidance, ramp_guidance, step_guidance
from sdd_jax.diffusion.schedule import Level, Schedule
from sdd_jax.diffusion.timegrid import Boundaries
from sdd_jax.diffusion.transport import move
from sdd_jax.models.attention import AttentionEdit
from sdd_jax.sampling.attention_control import LocalBlend
from sdd_jax.sampling.generate import Denoise, at_all, steps_down
from sdd_jax.sampling.invert import encode, invert

Guidance = Callable[[jax.Array], jax.Array]
GuidedUNet = Callable[..., jax.Array]


class Stops(NamedTuple):
    """What a sampler scans over: from t int32[n] at levels at_t to levels at_s, f32[n,1,1,1,1] each."""

    t: jax.Array
    at_t: Level
    at_s: Level


class Route(Protocol):
    """How latents travel between an image and noise."""

    @property
    def kind(self) -> str:
        """What the networks predict: 'eps', 'v' or 'x0'."""
        ...

    @property
    def stops(self) -> Stops:
        """The way down, from noise to the image."""
        ...

    def encode(self, denoise: Denoise, x0: jax.Array, noise: jax.Array) -> jax.Array:
        """Latents x0 [b,h,w,c] -> f32[b,h,w,c] at T - 1; noise: standard normal as x0, where the route needs any."""
        ...

    def decode(self, denoise: Denoise, z: jax.Array) -> jax.Array:
        """Noise z [b,h,w,c] at T - 1 -> clean latents f32[b,h,w,c]."""
        ...


@dataclasses.dataclass(frozen=True)
class BoundaryRoute:
    """iCD's jumps. Encode with the forward model, decode with the reverse model."""

    boundaries: Boundaries
    schedule: Schedule
    kind: str

    @property
    def stops(self) -> Stops:
        """The reverse model's jumps, the last one to CLEAN."""
        t, s = jnp.asarray(self.boundaries.reverse_jumps).T
        return Stops(t, self.schedule.at(t[:, None]), self.schedule.at_boundary(s[:, None]))

    def encode(self, denoise: Denoise, x0: jax.Array, noise: jax.Array) -> jax.Array:
        """See `Route`; noise enters at the first forward boundary."""
        return encode(denoise, x0, noise, self.boundaries, self.schedule, self.kind)

    def decode(self, denoise: Denoise, z: jax.Array) -> jax.Array:
        """See `Route`."""
        return decode(self, denoise, z)


@dataclasses.dataclass(frozen=True)
class DDIMRoute:
    """DDIM and its inversion along descending `times` int32[n]; `rounds`: see `invert.invert`."""

    times: np.ndarray
    schedule: Schedule
    kind: str
    rounds: int = 1

    @property
    def stops(self) -> Stops:
        """The DDIM steps, the last one to CLEAN."""
        return Stops(*steps_down(self.times, self.schedule))

    def encode(self, denoise: Denoise, x0: jax.Array, noise: jax.Array) -> jax.Array:
        """See `Route`; deterministic, `noise` is not read."""
        return invert(denoise, x0, self.times, self.schedule, self.kind, self.rounds)

    def decode(self, denoise: Denoise, z: jax.Array) -> jax.Array:
        """See `Route`."""
        return decode(self, denoise, z)


def decode(route: Route, denoise: Denoise, z: jax.Array) -> jax.Array:
    """Carries z [b,h,w,c] down a route: n evaluations, one scan -> f32[b,h,w,c]."""

    def step(z: jax.Array, now: Stops) -> tuple[jax.Array, None]:
        return move(denoise(z, at_all(now.t, z)), z, now.at_t, now.at_s, route.kind), None

    return jax.lax.scan(step, z.astype(jnp.float32), route.stops)[0]


def embedded_guidance(denoise: Callable[..., jax.Array], dim: int = 512) -> GuidedUNet:
    """Guides in one pass a UNet that reads its scale as `timestep_cond` f32[b,dim] (iCD's models).

    Returns guided(z [b,h,w,c], t int[b], context [b,n,d], w scalar or [b], **conditions), as `guidance.guided` does.
    """

    def guided_unet(
        z: jax.Array, t: jax.Array, context: jax.Array, w: jax.Array | float, **conditions: Any
    ) -> jax.Array:
        scales = jnp.broadcast_to(jnp.asarray(w, jnp.float32), t.shape)
        return denoise(z, t, context, timestep_cond=guidance_embedding(scales, dim), **conditions)

    return guided_unet


def constant_guidance(w: jax.Array | float) -> Guidance:
    """w, a scalar, at every t; 1 is off."""
    return lambda t: jnp.full(t.shape, w, jnp.float32)


def dynamic_guidance(
    w: jax.Array | float, tau: float = 1.0, ramp_to: float | None = None, start: float = 0.0
) -> Guidance:
    """w where start <= t/T <= tau, else 1; with `ramp_to`, w up to tau and falling linearly to 1 there (CADS).

    Raises:
        ValueError: unless 0 <= start <= tau <= 1 and tau < ramp_to; a ramp that also has a start.
    """
    if not 0 <= start <= tau <= 1:
        raise ValueError(f"guidance acts from start={start} to tau={tau}: give 0 <= start <= tau <= 1")
    if ramp_to is None:
        return functools.partial(interval_guidance, w=w, low=start, high=tau)
    if start or not tau < ramp_to:
        raise ValueError(f"a guidance ramp falls from tau={tau} to ramp_to={ramp_to}: give tau < ramp_to and no start")
    return functools.partial(ramp_guidance, w=w, tau1=tau, tau2=ramp_to)


def prompted(unet: GuidedUNet, context: jax.Array, guidance: Guidance, **conditions: Any) -> Denoise:
    """A guided UNet under context [b,n,d], as the `denoise` of routes and samplers."""
    return lambda z, t: unet(z, t, context, guidance(t), **conditions)


def prompt_switched(
    unet: GuidedUNet,
    source: jax.Array,
    target: jax.Array,
    w: jax.Array | float,
    tau: float,
    T: int = 1000,
    **conditions: Any,
) -> Denoise:
    """iCD's edit for SDXL: context `source` [b,n,d] and w = 1 where t > tau T, then `target` [b,n,d] and w.

    conditions: `added_cond` holds the target's pooled state, throughout.
    """

    def denoise(z: jax.Array, t: jax.Array) -> jax.Array:
        keeps_source = step_guidance(t, 0.0, tau, T) == 1.0
        context = jnp.where(keeps_source[:, None, None], source, target)
        return unet(z, t, context, step_guidance(t, w, tau, T), **conditions)

    return denoise


class PairDenoise(Protocol):
    """A network on pairs [sources, targets]: z [2b,h,w,c], t int[2b], step int32[] (0 first) -> prediction."""

    def __call__(
        self, z: jax.Array, t: jax.Array, step: jax.Array, attention_edit: AttentionEdit | None
    ) -> jax.Array: ...


def prompted_pairs(
    unet: GuidedUNet,
    contexts: jax.Array,
    guidance: Guidance,
    source_guidance: Guidance = constant_guidance(1.0),  # noqa: B008 (a constant)
    **conditions: Any,
) -> PairDenoise:
    """A guided UNet under contexts [2b,n,d], sources first; `guidance` is the target branch's. conditions: for 2b."""

    def denoise(z: jax.Array, t: jax.Array, step: jax.Array, attention_edit: AttentionEdit | None) -> jax.Array:
        sources, targets = jnp.split(t, 2)
        w = jnp.concatenate([source_guidance(sources), guidance(targets)])
        return unet(z, t, contexts, w, attention_edit=attention_edit, **conditions)

    return denoise


class Control(Protocol):
    """Attention control of pairs: what to change inside the UNet at a step int32[] of the way down."""

    def at(self, step: jax.Array) -> AttentionEdit:
        """The edit of that step; `step` may be traced."""
        ...


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=())
@dataclasses.dataclass(frozen=True)
class NoControl:
    """Both branches on their own."""

    def at(self, step: jax.Array) -> AttentionEdit:
        """The neutral edit."""
        return AttentionEdit()


def decode_pairs(
    route: Route, denoise: PairDenoise, z: jax.Array, control: Control, blend: LocalBlend | None = None
) -> jax.Array:
    """Carries pairs z [2b,h,w,c] down a route under attention control -> f32[2b,h,w,c].

    blend: keeps the target as the source outside of the words' region, after every step.
    """
    stops = route.stops

    def step(
        carry: tuple[jax.Array, jax.Array], now: tuple[Stops, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        z, maps = carry
        stop, index = now
        edit = control.at(index)
        if blend is not None:
            edit, tape = blend.record(edit)
        pred = denoise(z, at_all(stop.t, z), index, edit)
        z = move(pred, z, stop.at_t, stop.at_s, route.kind)
        if blend is not None:
            maps = maps + blend.word_map(tape)
            z = blend(z, maps, index)
        return (z, maps), None

    maps = jnp.zeros((z.shape[0], blend.size, blend.size) if blend is not None else ())
    indices = jnp.arange(stops.t.shape[0])
    (z, _), _ = jax.lax.scan(step, (z.astype(jnp.float32), maps), (stops, indices))
    return z


def edit_image(
    route: Route,
    encoder: Denoise,
    denoise: PairDenoise,
    x0: jax.Array,
    noise: jax.Array,
    control: Control,
    blend: LocalBlend | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Encodes x0 [b,h,w,c] and decodes it twice, as it was and edited: (reconstruction, edit), f32[b,h,w,c] each.

    encoder: the network on the way up (the forward model, or the teacher), under the source prompt and w = 1.
    """
    z = route.encode(encoder, x0, noise)
    source, target = jnp.split(decode_pairs(route, denoise, jnp.concatenate([z, z]), control, blend), 2)
    return source, target
