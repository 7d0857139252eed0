"""Editing methods that noise the image and need no inversion: SDEdit, edit-friendly DDPM, InfEdit.

| method | F for n steps, g = 2 (1 for a UNet that reads its guidance) | see |
| --- | --- | --- |
| `sdedit` | g strength n | `sampling.baselines` |
| `edit_friendly` | g n up (n at a source scale of 1), g (n - skip) down | `sampling.virtual_inversion` |
| `infedit` | (1 + g) n, source and target | `sampling.virtual_inversion` |
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.jobs.editing.methods import (
    EditRequest,
    EditResult,
    Static,
    Texts,
    controlled_pairs,
    decode,
    encode,
    guided_unet,
    passes,
    scale_of,
    stacked,
    texts,
    unguided,
)
from sdd_jax.jobs.editing.options import PromptControlled, Stepped, program_of, takes
from sdd_jax.sampling.attention_control import PromptToPrompt
from sdd_jax.sampling.baselines import sdedit as follow_sdedit
from sdd_jax.sampling.editing import constant_guidance, prompted
from sdd_jax.sampling.generate import initial_noise
from sdd_jax.sampling.virtual_inversion import edit_friendly_decode, edit_friendly_maps
from sdd_jax.sampling.virtual_inversion import infedit as follow_infedit
from sdd_jax.types import Frozen


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDEdit(Stepped):
    """strength: the share of the steps, from the end, that is noised and made again."""

    strength: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.strength <= 1 or not self.count:
            raise ValueError(f"strength={self.strength} leaves no step of {self.steps}: give more, up to 1")

    @property
    def count(self) -> int:
        """Steps made again."""
        return round(self.strength * self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditFriendly(Stepped):
    """skip: the share of the steps, from the start, that is left as drawn. source_guidance: of the noise maps.

    Published: 100 steps, 36 skipped, w = 15, and 3.5 for the source.
    """

    steps: int = 100
    skip: float = 0.36
    source_guidance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.skip < 1:
            raise ValueError(f"skip={self.skip} is a share of the steps: give 0 up to below 1")

    def source_scale(self, request: EditRequest) -> float:
        """Guidance of the noise maps: the published share of the edit's scale, 3.5 of 15, and 1 at least."""
        share = max(1.0, self.scale(request, 15.0) * 3.5 / 15)
        return scale_of(request, self.source_guidance, share, "source_guidance")

    @property
    def skipped(self) -> int:
        """Steps left as drawn."""
        return int(self.skip * self.steps + 1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfEdit(PromptControlled, Stepped):
    """The published 12 steps, with prompt-to-prompt's controls; the source branch is unguided."""

    steps: int = 12
    self_: float = 0.6


@takes(SDEdit)
def sdedit(request: EditRequest, options: SDEdit) -> EditResult:
    """Noises the image part of the way and denoises it under the target prompt."""
    model = request.model
    w = jnp.float32(options.scale(request))
    z = _sdedit(
        Static(model), program_of(options), request.frozen, encode(request), texts(request, request.target), w,
        jax.random.key(request.seed),
    )  # fmt: skip
    return EditResult(decode(request, z), passes(model) * options.count)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sdedit(
    static: Static, options: SDEdit, frozen: Frozen, x0: jax.Array, target: Texts, w: jax.Array, rng: jax.Array
) -> jax.Array:
    model = static.model
    network = prompted(guided_unet(model, frozen), target.context, options.over_time(w), added_cond=target.added_cond)
    times, noise = sampling_times(options.steps), initial_noise(rng, x0.shape)
    return follow_sdedit(network, x0, noise, times, Schedule(model.alphas_cumprod), model.prediction, options.strength)


@takes(EditFriendly)
def edit_friendly(request: EditRequest, options: EditFriendly) -> EditResult:
    """Extracts the sampler's noise maps under the source prompt and follows them under the target's."""
    model = request.model
    source_w, w = options.source_scale(request), jnp.float32(options.scale(request, 15.0))
    is_off = source_w == 1.0
    z = _edit_friendly(
        Static(model), dataclasses.replace(program_of(options), source_guidance=None), is_off, request.frozen,
        encode(request), texts(request, request.source), texts(request, request.target), jnp.float32(source_w), w,
        jax.random.key(request.seed),
    )  # fmt: skip
    up, down = options.steps * (1 if is_off else passes(model)), (options.steps - options.skipped) * passes(model)
    return EditResult(decode(request, z), up + down)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _edit_friendly(
    static: Static,
    options: EditFriendly,
    is_off: bool,
    frozen: Frozen,
    x0: jax.Array,
    source: Texts,
    target: Texts,
    source_w: jax.Array,
    w: jax.Array,
    rng: jax.Array,
) -> jax.Array:
    model, unet = static.model, guided_unet(static.model, frozen)
    along = (sampling_times(options.steps), Schedule(model.alphas_cumprod), model.prediction)
    up = unguided(model, frozen, source)
    if not is_off:
        up = prompted(unet, source.context, constant_guidance(source_w), added_cond=source.added_cond)
    down = prompted(unet, target.context, options.over_time(w), added_cond=target.added_cond)
    return edit_friendly_decode(down, edit_friendly_maps(up, x0, rng, *along), *along, options.skipped)


@takes(InfEdit)
def infedit(request: EditRequest, options: InfEdit) -> EditResult:
    """Corrects the image, step by step, by the difference of target's and source's predictions."""
    model = request.model
    (control, blend), w = options.controls(request, options.steps), jnp.float32(options.scale(request))
    if blend is not None:
        raise ValueError("--option blend_source: infedit has no blend; leave it out, or use p2p")
    z = _infedit(
        Static(model), program_of(options), request.frozen, encode(request), texts(request, request.source),
        texts(request, request.target), w, control, jax.random.key(request.seed),
    )  # fmt: skip
    return EditResult(decode(request, z), (1 + passes(model)) * options.steps)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _infedit(
    static: Static,
    options: InfEdit,
    frozen: Frozen,
    x0: jax.Array,
    source: Texts,
    target: Texts,
    w: jax.Array,
    control: PromptToPrompt,
    rng: jax.Array,
) -> jax.Array:
    model, both = static.model, stacked(source, target)
    network = controlled_pairs(model, frozen, both, options.over_time(w))
    times = sampling_times(options.steps)
    return follow_infedit(network, x0, rng, times, Schedule(model.alphas_cumprod), model.prediction, control)
