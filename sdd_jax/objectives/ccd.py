"""CCD: conditional diffusion distillation (Mei et al., CVPR 2024, there also CoDi), eq. 11.

From a text-to-image teacher straight to a few-step image-conditional model, in one stage. With the online network's
prediction at (z_t, t, c), z_t = alpha_t x + sigma_t eps:

    z_s  = alpha_s x_hat + sigma_s eps                                  (eq. 12, "PREv": the real noise that built z_t)
    L    = d_eps(sg eps_hat_target(z_s, s, c), eps_hat_online(z_t, t, c)) + d_x(x, x_hat_online(z_t, t, c))   (eq. 11)

t is drawn from a trailing grid of N times, from its second point on, and s is the previous grid point, never CLEAN,
where the target cannot be evaluated. One t is shared by the whole batch (the paper's finding; released codes draw one
per sample). Algorithm 1 prints t for the target's time; eq. 11 and the text say s, and so does this code. The target is
the EMA of the online network, and its output is not differentiated.

Choices, of the paper and its released codes; the first of each is the default:

| field | values |
| --- | --- |
| `predictor` | `prev` (eq. 12); `ddim`: z_s = alpha_s x_hat + sigma_s eps_hat (eq. 6; eq. 8 is the same map) |
| `ode_model` | whose x_hat, eps_hat make z_s: `online`; `target`; `pretrained`, the teacher, which sees no condition |
| `x_space` | `latent` l2; `pixel` l2 of D(x), D(x_hat); `reencoded` l2 of x, E(D(x_hat)); `lpips` of pixels; `none` |
| `eps_distance` | `l2`; `pseudo_huber` |
| `eps_space` | `eps`; `x`: target's and online's x_hat. Under ddim eps_t - eps_s = -(alpha_s / sigma_s) (x_t - x_s) |
| `boundary_scaling` | off; on: c_skip z_t + c_out x_hat for x_hat (`diffusion.distances`), another one below t = 16 |
| `guidance` | (): off; (low, high): CFG-aware, all predictions guided by one w a sample, uniform in the interval |

What is trained: the adapter and the UNet (`train_unet`), or the adapter alone on a frozen UNet (sec. 4.4).

`hint_weight` > 0 adds, for a ControlNet, hint_weight |embed(c) - K x|^2 / |K x|^2, K the teacher's first convolution: a
regression that reaches the embedding alone (`network.hint_error`; not the paper's, 0 as published).

Cost per sample: 4F in full training (the online prediction serves both terms: 3F, the target's 1F), plus 4 adapter
forwards. Adapter only: the backward pass stops at the decoder's weights, 3F or less, plus the same adapter forwards.
`ode_model=target` adds F and an adapter forward, `pretrained` F; both are used without gradient. `guidance` doubles
everything. Decoding spaces add the decoder's forward twice and its input gradient once (`reencoded`: decoder and
encoder forward and input gradient, once each).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.distances import Distance, l2, pseudo_huber
from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Level, add_noise
from sdd_jax.diffusion.timegrid import grid_pairs
from sdd_jax.models.adapters import ControlNetAdapter
from sdd_jax.objectives.inputs import latents_of, text_of
from sdd_jax.objectives.network import ConditionalNetwork, Text, tied_to_data
from sdd_jax.types import Batch, Frozen, Metrics, Params, Phase

Perceptual = Callable[[Params, jax.Array, jax.Array], jax.Array]


class Answer(NamedTuple):
    """A network's prediction as data and noise, f32[b,h,w,c] each."""

    x0: jax.Array
    eps: jax.Array


class Question(NamedTuple):
    """What a network is asked: latents, their time and level, condition, text, guidance (None: off)."""

    z: jax.Array
    t: jax.Array
    at: Level
    hint: Any
    text: Text
    w: jax.Array | None


EPS_DISTANCES: dict[str, Distance] = {"l2": l2, "pseudo_huber": pseudo_huber}
EPS_SPACES: dict[str, Callable[[Answer], jax.Array]] = {"eps": lambda a: a.eps, "x": lambda a: a.x0}
PREDICTORS: dict[str, Callable[[Answer, jax.Array], jax.Array]] = {
    "prev": lambda answer, eps: eps,
    "ddim": lambda answer, eps: answer.eps,
}
"""The noise that z_s is built with, from the ODE model's answer and the noise that built z_t."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CCD(ConditionalNetwork):
    """The method's choices: the table above, and

    Fields:
        grid_steps: N. shared_time: one t a step. eps_weight, x_weight: of eq. 11's two terms.
        hint_weight: of `hint_error`.
        perceptual: (frozen['lpips'], a, b) -> f32[b], for x_space 'lpips'.
    """

    grid_steps: int = 50
    shared_time: bool = True
    eps_weight: float = 1.0
    x_weight: float = 1.0
    hint_weight: float = 0.0
    predictor: str = "prev"
    ode_model: str = "online"
    x_space: str = "latent"
    eps_distance: str = "l2"
    eps_space: str = "eps"
    boundary_scaling: bool = False
    guidance: tuple[float, ...] = ()
    perceptual: Perceptual | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("predictor", PREDICTORS), ("ode_model", ODE_MODELS), ("x_space", X_SPACES),
            ("eps_distance", EPS_DISTANCES), ("eps_space", EPS_SPACES),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; use {', '.join(known)}")
        if self.guidance and (len(self.guidance) != 2 or not 0.0 <= self.guidance[0] <= self.guidance[1]):
            raise ValueError(f"guidance={self.guidance} is no interval: give (low, high), 1 is off, or () for none")
        if self.hint_weight and not isinstance(self.adapter, ControlNetAdapter | None):
            raise ValueError(f"hint_weight={self.hint_weight} trains a ControlNet's embedding: with another adapter, 0")
        if self.x_space == "lpips" and self.perceptual is None:
            raise ValueError("x_space='lpips' needs weights: set config.lpips.backbone and config.lpips.linear")

    @property
    def prediction(self) -> str:
        """What `predict` answers in: x0 where it is tied to the data, else what the teacher does."""
        return "x0" if self.boundary_scaling else self.model.prediction

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
        """As `ConditionalNetwork.predict`, in the space that `prediction` names."""
        out = super().predict(params, frozen, hint, z_t, t, text, w)
        return tied_to_data(out, z_t, t, self.schedule, self.model.prediction) if self.boundary_scaling else out

    def answer(self, params: Params, frozen: Frozen, asked: Question) -> Answer:
        """`predict` as data and noise."""
        out = self.predict(params, frozen, asked.hint, asked.z, asked.t, asked.text, asked.w)
        kind = predictor(self.prediction)
        return Answer(kind.x0(out, asked.z, asked.at), kind.eps(out, asked.z, asked.at))

    def loss(
        self, params: Params, frozen: Frozen, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns eq. 11 averaged over the batch, and its two terms."""
        latents_rng, time_rng, noise_rng, *scale_rng = jax.random.split(rng, 4 if self.guidance else 3)
        time_rng = frozen["step_rng"] if self.shared_time else time_rng
        x = latents_of(self.model, frozen, batch, latents_rng)
        text = text_of(self.model, frozen, batch)
        hint = self.adapter.prepare(frozen, batch.get("condition"))
        t, s = self.draw_times(time_rng, x.shape[0])
        at_t, at_s = self.schedule.at(t), self.schedule.at(s)
        eps = jax.random.normal(noise_rng, x.shape)
        w = self.draw_scales(scale_rng[0], x.shape[0]) if self.guidance else None

        asked = Question(add_noise(x, eps, at_t), t, at_t, hint, text, w)
        online = self.answer(params, frozen, asked)
        ode = ODE_MODELS[self.ode_model](self, frozen, asked, online)
        z_s = jax.lax.stop_gradient(add_noise(ode.x0, PREDICTORS[self.predictor](ode, eps), at_s))
        target = self.answer(frozen["target"], frozen, Question(z_s, s, at_s, hint, text, w))

        compared = EPS_SPACES[self.eps_space]
        distance = EPS_DISTANCES[self.eps_distance]
        consistency = jnp.mean(distance(jax.lax.stop_gradient(compared(target)), compared(online)))
        reconstruction = jnp.mean(X_SPACES[self.x_space](self, frozen, x, online.x0))
        loss = self.eps_weight * consistency + self.x_weight * reconstruction
        metrics = {"consistency": consistency, "reconstruction": reconstruction}
        if self.hint_weight:
            metrics["hint"] = jnp.mean(self.hint_error(params, frozen, hint, x))
            loss += self.hint_weight * metrics["hint"]
        return loss, metrics

    def draw_times(self, rng: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
        """Draws (t, s) i32[b] of neighbouring grid points; when time is shared, one pair for the whole global batch."""
        t, s = grid_pairs(self.grid_steps, len(self.model.alphas_cumprod))
        index = jax.random.randint(rng, () if self.shared_time else (batch_size,), 0, len(t))
        t_drawn, s_drawn = (jnp.broadcast_to(jnp.asarray(times)[index], (batch_size,)) for times in (t, s))
        return t_drawn, s_drawn

    def draw_scales(self, rng: jax.Array, batch_size: int) -> jax.Array:
        """Draws guidance scales f32[b], uniform in the interval."""
        return jax.random.uniform(rng, (batch_size,), minval=self.guidance[0], maxval=self.guidance[1])

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of everything trained."""
        return (Phase(self.loss),)


def _target_answer(method: CCD, frozen: Frozen, asked: Question, online: Answer) -> Answer:
    return method.answer(frozen["target"], frozen, asked)


def _teacher_answer(method: CCD, frozen: Frozen, asked: Question, online: Answer) -> Answer:
    out = method.pretrained(frozen, asked.z, asked.t, asked.text, asked.w)
    kind = predictor(method.model.prediction)
    return Answer(kind.x0(out, asked.z, asked.at), kind.eps(out, asked.z, asked.at))


ODE_MODELS: dict[str, Callable[[CCD, Frozen, Question, Answer], Answer]] = {
    "online": lambda method, frozen, asked, online: online,
    "target": _target_answer,
    "pretrained": _teacher_answer,
}
"""Whose answer at (z_t, t) makes z_s."""


def _pixel(method: CCD, frozen: Frozen, x: jax.Array, x_hat: jax.Array) -> jax.Array:
    return l2(method.model.decode(frozen["vae"], x), method.model.decode(frozen["vae"], x_hat))


def _reencoded(method: CCD, frozen: Frozen, x: jax.Array, x_hat: jax.Array) -> jax.Array:
    return l2(x, method.model.encode(frozen["vae"], method.model.decode(frozen["vae"], x_hat)))


def _lpips(method: CCD, frozen: Frozen, x: jax.Array, x_hat: jax.Array) -> jax.Array:
    assert method.perceptual is not None
    images = (method.model.decode(frozen["vae"], latents) for latents in (x, x_hat))
    return method.perceptual(frozen["lpips"], *images)


X_SPACES: dict[str, Callable[[CCD, Frozen, jax.Array, jax.Array], jax.Array]] = {
    "latent": lambda method, frozen, x, x_hat: l2(x, x_hat),
    "pixel": _pixel,
    "reencoded": _reencoded,
    "lpips": _lpips,
    "none": lambda method, frozen, x, x_hat: jnp.zeros(x.shape[:1]),
}
"""d_x of the data and the online network's estimate, f32[b]."""
