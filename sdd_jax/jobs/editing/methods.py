"""Editing methods behind one function: images, what they show and what they should show -> edited images.

    bundle, params = sdd_jax.load("portraits")
    request = EditRequest(model=bundle, frozen=frozen_of(bundle, params), image=x, source=(...,), target=(...,))
    result = edit("p2p", request)

`METHODS` names each method's function, imported when it is asked for, `WITH_FRAMES` those that show the way, in as many
pictures as their option `frames` says; what a method takes in `options` is a frozen dataclass of its own, read by
`config.validate`. What several methods share is here: the guided network of a teacher, text states,
and the way between images and latents, each one program per model and shape, however often it is called.

A network is guided in two passes, or in one where its UNet reads the guidance scale (`time_cond_proj_dim`); every
method takes either. Evaluations are counted in F, forwards of the UNet for one image.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.guidance import guided
from sdd_jax.jobs.frozen import weights_of, with_null_text
from sdd_jax.objectives.inputs import added_conditions, null_conditions
from sdd_jax.sampling.baselines import unguided_source_pairs
from sdd_jax.sampling.editing import Guidance, GuidedUNet, PairDenoise, embedded_guidance, prompted_pairs
from sdd_jax.sampling.generate import Denoise
from sdd_jax.types import Frozen, ModelBundle, Params

METHODS: dict[str, str] = {
    "icd": "sdd_jax.jobs.icd.editing:icd",
    "icd-switch": "sdd_jax.jobs.icd.editing:icd_switch",
    "sdedit": "sdd_jax.jobs.editing.noise:sdedit",
    "edit-friendly": "sdd_jax.jobs.editing.noise:edit_friendly",
    "infedit": "sdd_jax.jobs.editing.noise:infedit",
    "ddib": "sdd_jax.jobs.editing.inversion:ddib",
    "renoise": "sdd_jax.jobs.editing.inversion:renoise",
    "p2p": "sdd_jax.jobs.editing.inversion:p2p",
    "npi": "sdd_jax.jobs.editing.inversion:npi",
    "nti": "sdd_jax.jobs.editing.inversion:nti",
    "masactrl": "sdd_jax.jobs.editing.injection:masactrl",
    "pnp": "sdd_jax.jobs.editing.injection:pnp",
    "sds": "sdd_jax.jobs.dds.editing:sds",
    "dds": "sdd_jax.jobs.dds.editing:dds",
    "cds": "sdd_jax.jobs.dds.editing:cds",
    "pds": "sdd_jax.jobs.dds.editing:pds",
    "translate": "sdd_jax.jobs.dds.editing:translate",
    "manipulate": "sdd_jax.jobs.sdd.editing:manipulate",
}
WITH_FRAMES = ("sds", "dds", "cds", "pds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditRequest:
    """What to edit.

    model: the bundle whose UNet is `frozen['teacher']['unet']`.
    frozen: `frozen_of(model, params)`; a distilled run adds what its own method reads (`jobs.icd.job`), and as `scales`
        the guidance scales that it was trained at.
    image: f32[b,H,W,3] in [-1, 1], sides multiples of `side_unit(model)`. source, target: b prompts each.
    seed: of what a method draws. options: the method's own, by name.
    kept: what a method may keep here for the caller's next request of the same images and source prompts; None: nothing
        is kept.
    """

    model: ModelBundle
    frozen: Frozen
    image: np.ndarray
    source: tuple[str, ...]
    target: tuple[str, ...]
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kept: dict[Any, Any] | None = None

    def __post_init__(self) -> None:
        count = len(self.image)
        if self.image.ndim != 4 or not count or len(self.source) != count or len(self.target) != count:
            raise ValueError(
                f"images {self.image.shape} with {len(self.source)} source and {len(self.target)} target prompts: give "
                "one of each for every image"
            )
        unit = side_unit(self.model)
        if any(side % unit for side in self.image.shape[1:3]):
            height, width = self.image.shape[1:3]
            raise ValueError(f"an image of {width}x{height} does not fit {self.model.source}: use multiples of {unit}")


class EditResult(NamedTuple):
    """image f32[b,H,W,3]; evaluations: F per image, as counted; frames: of the way, f32[n,b,H,W,3], or None."""

    image: np.ndarray
    evaluations: float
    frames: np.ndarray | None = None


def edit(method: str, request: EditRequest) -> EditResult:
    """Edits with the method of that name.

    Raises:
        ValueError: an unknown one, options that it does not take, or pictures that are not finite.
    """
    result: EditResult = method_of(method)(request)
    if not np.isfinite(result.image).all():
        raise ValueError(f"--method={method} diverged, its pictures are not finite: lower its step or guidance")
    return result


def method_of(name: str) -> Any:
    """The `jobs.editing.options.Method` of that name; ValueError for an unknown one."""
    if name not in METHODS:
        raise ValueError(f"--method={name} is no editing method; use {', '.join(METHODS)}")
    module, function = METHODS[name].split(":")
    return getattr(importlib.import_module(module), function)


def frozen_of(model: ModelBundle, params: Params) -> Frozen:
    """What editing reads of a loaded model: `teacher`, `vae`, `text`, `null_context` (and `null_pooled`)."""
    return with_null_text(model, weights_of(model, params))


class Static:
    """A model as a static argument of a jitted function: equal when it is the same object."""

    def __init__(self, model: ModelBundle) -> None:
        self.model = model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.model is other.model

    def __hash__(self) -> int:
        return id(self.model)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TrainedScales:
    """The guidance scales that a model which reads its own was trained at; interval: all between the two.

    Static inside of a jitted function's arguments.
    """

    scales: tuple[float, ...]
    interval: bool = False

    def check(self, flag: str, w: float) -> None:
        """ValueError, one line, for a scale that the model was not trained at; flag: what asked for it."""
        low, high = min(self.scales), max(self.scales)
        if not (low <= w <= high if self.interval else w in self.scales):
            known = f"{low:g} to {high:g}" if self.interval else ", ".join(f"{one:g}" for one in self.scales)
            raise ValueError(f"{flag}={w:g}: this model was trained at {known}")

    def nearest(self, w: float) -> float:
        """The trained scale that is nearest to w."""
        if self.interval:
            return min(max(w, min(self.scales)), max(self.scales))
        return min(self.scales, key=lambda one: abs(one - w))


class Texts(NamedTuple):
    """context f32[b,n,d]; added_cond: SDXL's added conditions, or None."""

    context: jax.Array
    added_cond: dict[str, jax.Array] | None


def texts(request: EditRequest, prompts: tuple[str, ...]) -> Texts:
    """The UNet's text states of b prompts, for SDXL with the size of the request's images."""
    context, pooled = _embed(Static(request.model), request.frozen["text"], *_ids(request.model, prompts))
    height, width = request.image.shape[1:3]
    return Texts(context, added_conditions(request.model, pooled, (height, width)))


def stacked(first: Texts, second: Texts) -> Texts:
    """The text states of pairs, [first b, second b]."""
    context, added_cond = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), tuple(first), tuple(second))
    return Texts(context, added_cond)


def encode(request: EditRequest) -> jax.Array:
    """The request's images as scaled latents f32[b,h,w,c], the posterior mean."""
    return _encode(Static(request.model), request.frozen["vae"], request.image)


def decode(request: EditRequest, latents: jax.Array) -> np.ndarray:
    """Latents [b,h,w,c] as images f32[b,H,W,3] in [-1, 1]."""
    return np.asarray(_decode(Static(request.model), request.frozen["vae"], latents))


def reads_guidance(model: ModelBundle) -> bool:
    """Whether the model's UNet takes the guidance scale as an input, and is guided in one pass."""
    return model.configs["unet"].get("time_cond_proj_dim") is not None


def guided_unet(model: ModelBundle, frozen: Frozen, unet: Params | None = None) -> GuidedUNet:
    """The guided network (z, t, context, w, **conditions) -> prediction of `unet`, by default the teacher's."""
    denoise = functools.partial(model.denoise, frozen["teacher"]["unet"] if unet is None else unet)
    if reads_guidance(model):
        return embedded_guidance(denoise, model.configs["unet"]["time_cond_proj_dim"])

    def network(
        z: jax.Array, t: jax.Array, context: jax.Array, w: jax.Array | float, *, added_cond: Any = None, **rest: Any
    ) -> jax.Array:
        two_passes = guided(denoise, frozen["null_context"], null_conditions(frozen, added_cond))
        return two_passes(z, t, context, w, added_cond=added_cond, **rest)

    return network


def plain_unet(model: ModelBundle, frozen: Frozen, unet: Params | None = None) -> GuidedUNet:
    """The network (z, t, context, **conditions) without guidance, w = 1, in one pass."""
    denoise = functools.partial(model.denoise, frozen["teacher"]["unet"] if unet is None else unet)
    if not reads_guidance(model):
        return denoise
    network = embedded_guidance(denoise, model.configs["unet"]["time_cond_proj_dim"])
    return lambda z, t, context, **conditions: network(z, t, context, 1.0, **conditions)


def unguided(model: ModelBundle, frozen: Frozen, prompt: Texts) -> Denoise:
    """`plain_unet` under prompts, as the `denoise` of samplers: inversion's way up."""
    network = plain_unet(model, frozen)
    return lambda z, t: network(z, t, prompt.context, added_cond=prompt.added_cond)


def controlled_pairs(model: ModelBundle, frozen: Frozen, both: Texts, guidance: Guidance) -> PairDenoise:
    """Pairs under prompt-to-prompt: the sources unguided in 1F, the targets at `guidance` in as many as it `passes`."""
    if reads_guidance(model):
        return prompted_pairs(guided_unet(model, frozen), both.context, guidance, added_cond=both.added_cond)
    targets = jax.tree.map(lambda a: a[len(a) // 2 :], both.added_cond)
    return unguided_source_pairs(
        plain_unet(model, frozen), both.context, frozen["null_context"], guidance, null_conditions(frozen, targets),
        added_cond=both.added_cond,
    )  # fmt: skip


def passes(model: ModelBundle) -> int:
    """Forwards of the UNet that one guided prediction takes: 1 or 2."""
    return 1 if reads_guidance(model) else 2


def side_unit(model: ModelBundle) -> int:
    """What the sides of an image must be multiples of: one latent of the UNet's lowest level, in pixels."""
    return model.downsampling * 2 ** (len(model.configs["unet"]["block_out_channels"]) - 1)


def usual_guidance(model: ModelBundle, published: float = 7.5) -> float:
    """A method's published scale, at most 3 for the embedded world (latents below 32), the middle of its scales."""
    return min(published, 3.0) if model.sample_size < 32 else published


def scale_of(request: EditRequest, given: float | None, usual: float, flag: str = "guidance") -> float:
    """The guidance scale of a request: the one given as `--option FLAG`, else the usual one; as `trained_scale`."""
    return trained_scale(request.frozen, given, usual, f"--option {flag}")


def trained_scale(frozen: Frozen, given: float | None, usual: float, flag: str) -> float:
    """The guidance scale given as `flag`, else the usual one.

    A model that was trained at some scales takes the nearest of them for the usual one; ValueError for a given one that
    is none of them.
    """
    trained = frozen.get("scales", TrainedScales((-math.inf, math.inf), interval=True))
    if given is None:
        return trained.nearest(usual)
    trained.check(flag, given)
    return given


def _ids(model: ModelBundle, prompts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    return model.tokenize(prompts), None if model.tokenize_2 is None else model.tokenize_2(prompts)


@functools.partial(jax.jit, static_argnums=0)
def _embed(static: Static, text: Params, ids: jax.Array, ids_2: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    return static.model.embed_text(text, ids, ids_2)


@functools.partial(jax.jit, static_argnums=0)
def _encode(static: Static, vae: Params, image: jax.Array) -> jax.Array:
    return static.model.encode(vae, image)


@functools.partial(jax.jit, static_argnums=0)
def _decode(static: Static, vae: Params, latents: jax.Array) -> jax.Array:
    return jnp.clip(static.model.decode(vae, latents), -1.0, 1.0)
