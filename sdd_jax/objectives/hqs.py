"""HQS: which timesteps of a diffusion model say something about a prompt (SDD, Wang et al., ICCV 2023, sec. 4.2).

For images y, with z = E(y), z_t = alpha_t z + sigma_t eps and guidance w, every timestep is scored by its gradient,

    d_t  = grad |eps - eps_hat^w(z_t, t, prompt)|^2           with respect to y, or to z                    (8)
    p    = softmax(d_t / temperature)                          over all n elements of an image              (9)
    H_t  = - sum p ln p             N_t = sum |d_t|                                                         (10, 11)
    HQS  = mean over y of N_bar - H_bar,     a bar: min-max over t, for each image                          (12)

so a good timestep has a large gradient in few places. This file makes the deficits ln n - H and the magnitudes N of
(10, 11) of a batch; bars, means over images and the choice of timesteps are `selection`'s.

The entropy of a small gradient is ln n less almost nothing: at n = 2^20 and |d| of 1e-3 the difference is 5e-7, below
one float32 step of ln n = 13.86. What is computed is that difference, the entropy deficit, as a mean of terms that are
never negative,

    ln n - H = mean psi(y),   y = ln(n p),   psi(y) = y e^y - e^y + 1 = y^2/2 + y^3/3 + y^4/8 + ...         (a)

An error in the normaliser moves (a) only in proportion to (a) itself. float32 agrees with float64 to 2e-6 relative
on 2^20 elements from |d| = 1e-4 to 10. H is ln n less the deficit, in float64, and min-max takes the deficit.

| option | paper | released code |
| --- | --- | --- |
| `jacobian` | (8) as it stands | skipped: eps_hat - eps, as in SDS |
| `pixels` | the gradient of the image y | the same, through the encoder |
| `absolute` | signed, all elements | |d|, mean over channels |
| `guidance` | not said | 100 |
| `weighted` | no | no; training multiplies d_t by w(t) = sigma_t^2 (`sdd`, eq. 5), and so does this |
| score | (12) | H alone or N alone |

`standardize` divides an image's d_t by its standard deviation before (9), which makes H blind to scale; `draws` is the
number of noises per image, over which H and N are averaged before the bars. A noise is shared by all timesteps and
depends on (seed, index of the image, draw) alone, whatever the batches and devices.

Cost per image, timestep and draw: 1F (2F guided) without the Jacobian, 2F (4F) with it, plus for pixels one pass back
through the encoder; its way forward is shared by all timesteps. Memory: one timestep of one batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.schedule import Level, Schedule, add_noise
from sdd_jax.diffusion.score import eps_denoiser
from sdd_jax.objectives.inputs import added_conditions, text_of
from sdd_jax.types import Batch, Frozen, ModelBundle

THUMBNAIL = 64
READING = ("jacobian", "pixels", "absolute", "weighted", "standardize", "temperature", "guidance")
"""The options that say what the score is; the others say on how much it is taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HQSOptions:
    """What is scored, and on how much.

    jacobian, pixels, absolute, weighted, standardize, temperature, guidance, draws: see the module's table.
    first, last, stride: the grid of timesteps, `last` among them if the stride reaches it. images: how many. seed: of
    the noise and of which images; different seeds take different images while there are enough.
    """

    jacobian: bool = True
    pixels: bool = True
    absolute: bool = False
    weighted: bool = False
    standardize: bool = False
    temperature: float = 1.0
    guidance: float = 100.0
    first: int = 100
    last: int = 900
    stride: int = 50
    images: int = 64
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last or self.stride < 1:
            raise ValueError(
                f"timesteps {self.first}..{self.last} in strides of {self.stride}: give 0 <= first <= last, stride >= 1"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive")
        for name, least in (("images", 2), ("draws", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    def times(self, num_timesteps: int = 1000) -> np.ndarray:
        """The grid, int32[m], ascending; ValueError where the schedule has fewer timesteps."""
        if self.last >= num_timesteps:
            raise ValueError(f"last={self.last} is beyond the model's {num_timesteps} timesteps")
        return np.arange(self.first, self.last + 1, self.stride, dtype=np.int32)

    @property
    def evaluations(self) -> int:
        """F for one image at one timestep."""
        return self.draws * (2 if self.jacobian else 1) * (1 if self.guidance == 1.0 else 2)


class Reading(NamedTuple):
    """Of a batch at m timesteps, means over draws: deficit f32[m,b] in nats, magnitude N f32[m,b].

    maps: the first image's mean |d| over channels, f32[m,s,s] with s at most `THUMBNAIL` or so.
    """

    deficit: jax.Array
    magnitude: jax.Array
    maps: jax.Array


def measure(
    model: ModelBundle, options: HQSOptions, frozen: Frozen, batch: Batch, rng: jax.Array, times: jax.Array
) -> Reading:
    """Reads the gradients of a batch at `times` int32[m].

    frozen: `teacher`, `vae`, `text`, `null_context` (SDXL: `null_pooled`). batch: `image` f32[b,H,W,3], `input_ids`
    i32[b,n] of the prompt, and `index` int32[b], which numbers the images.
    """
    context, added_cond = text_of(model, frozen, batch)
    eps_hat = eps_denoiser(
        functools.partial(model.denoise, frozen["teacher"]["unet"]),
        model.prediction,
        frozen["null_context"],
        added_conditions(model, frozen.get("null_pooled")),
    )
    w = None if options.guidance == 1.0 else options.guidance
    z, pull = jax.vjp(lambda image: model.encode(frozen["vae"], image), batch["image"])
    gradient = energy_gradient if options.jacobian else residual
    schedule = Schedule(model.alphas_cumprod)

    def at(_: None, now: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array, jax.Array]]:
        t, draw = now
        eps = _noise(jax.random.fold_in(rng, draw), batch["index"], z.shape[1:])
        t = jnp.broadcast_to(t, z.shape[:1])
        d = gradient(
            lambda z_t: eps_hat(z_t, t, schedule.at(t), context, w, added_cond=added_cond), z, eps, schedule.at(t)
        )
        d = schedule.at(t).sigma ** 2 * d if options.weighted else d
        d = pull(d)[0] if options.pixels else d
        deficit = entropy_deficit(softmax_input(d, options))
        return None, (deficit, jnp.sum(jnp.abs(d), axis=(1, 2, 3)), _thumbnail(d[0]))

    pairs = jnp.repeat(times, options.draws), jnp.tile(jnp.arange(options.draws), times.shape[0])
    _, read = jax.lax.scan(at, None, pairs)
    return Reading(*(x.reshape(times.shape[0], options.draws, *x.shape[1:]).mean(1) for x in read))


def energy_gradient(eps_hat: Callable[[jax.Array], jax.Array], z: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    """grad_z |eps - eps_hat(z_t)|^2, summed over elements: f32[b,h,w,c] (8)."""
    return jax.grad(lambda z: jnp.sum((eps_hat(add_noise(z, eps, level)) - eps) ** 2))(z)


def residual(eps_hat: Callable[[jax.Array], jax.Array], z: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    """eps_hat(z_t) - eps, f32[b,h,w,c]: (8) over 2 alpha_t without the network's Jacobian, as in SDS."""
    return eps_hat(add_noise(z, eps, level)) - eps


def softmax_input(d: jax.Array, options: HQSOptions) -> jax.Array:
    """What (9) takes the softmax of: gradients [b,h,w,c] -> f32[b,n]."""
    d = d.astype(jnp.float32)
    if options.absolute:
        d = jnp.mean(jnp.abs(d), axis=-1)
    d = d.reshape(d.shape[0], -1)
    if options.standardize:
        std = jnp.std(d, axis=1, keepdims=True)
        d = jnp.where(std > 0, d / jnp.where(std > 0, std, 1.0), 0.0)
    return d / options.temperature


def elements(shape: tuple[int, ...], options: HQSOptions) -> int:
    """n of (9), for gradients of shape [...,h,w,c]."""
    return math.prod(shape[-3:-1]) * (1 if options.absolute else shape[-1])


def entropy_deficit(x: jax.Array) -> jax.Array:
    """ln n - H(softmax(x)) >= 0, f32[b] in nats, of x [b,n] (a); exact to float32 also where H is ln n to float32."""
    x = x.astype(jnp.float32)
    small = x - jnp.mean(x, axis=1, keepdims=True)
    near = small - jnp.log1p(jnp.mean(jnp.expm1(jnp.minimum(small, 1.0)), axis=1, keepdims=True))
    below = x - jnp.max(x, axis=1, keepdims=True)
    far = below - jnp.log(jnp.mean(jnp.exp(below), axis=1, keepdims=True))
    is_small = jnp.max(small, axis=1, keepdims=True) < 1.0
    return jnp.mean(_psi(jnp.where(is_small, near, far)), axis=1)


def _psi(y: jax.Array) -> jax.Array:
    """y e^y - e^y + 1; a series, to 1e-7 relative, where that cancels."""
    series = y * y * (1 / 2 + y * (1 / 3 + y * (1 / 8 + y * (1 / 30 + y * (1 / 144 + y / 840)))))
    return jnp.where(jnp.abs(y) < 0.25, series, y * jnp.exp(y) - jnp.expm1(y))


def _noise(rng: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(rng, i), shape))(index)


def _thumbnail(d: jax.Array) -> jax.Array:
    picture = jnp.mean(jnp.abs(d), axis=-1)
    side = max(1, picture.shape[0] // THUMBNAIL)
    height, width = (size // side for size in picture.shape)
    blocks = picture[: height * side, : width * side].reshape(height, side, width, side)
    return blocks.mean((1, 3))
