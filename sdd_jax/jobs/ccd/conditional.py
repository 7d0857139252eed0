"""What the jobs of conditional networks share: adapters, the sampler, preview grids, export, the job itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from sdd_jax.data.conditions import composite
from sdd_jax.diffusion.schedule import add_noise
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.images import write_grid
from sdd_jax.jobs.ccd.data import ConditionalData, ConditionConfig, conditional_stream, heldout_rows
from sdd_jax.jobs.frozen import with_null_text
from sdd_jax.models.adapters import Adapter, ControlNetAdapter, MuMixing, NoAdapter, T2IAdapter
from sdd_jax.models.save import save_component
from sdd_jax.models.t2i_adapter import t2i_config
from sdd_jax.models.unet import make_unet
from sdd_jax.objectives.ccd import CCD
from sdd_jax.objectives.conditional import ConditionalDiffusion
from sdd_jax.objectives.consistency import ConsistencyDistillation
from sdd_jax.objectives.inputs import text_of
from sdd_jax.objectives.network import ConditionalNetwork
from sdd_jax.objectives.progressive import ProgressiveDistillation
from sdd_jax.sampling.generate import initial_noise, sample, sample_consistency
from sdd_jax.sampling.solvers import SOLVERS, solver_named
from sdd_jax.train import Job, Previews
from sdd_jax.types import Batch, Frozen, ModelBundle, Params

PREVIEW = 8
PREVIEW_STEPS = (1, 2, 4)
KINDS = ("controlnet", "mu", "t2i", "none")
STARTS = ("noise", "condition")
CONSISTENCY = "consistency"
SAMPLERS = (*SOLVERS, CONSISTENCY)
TEXT_KEYS = ("input_ids", "input_ids_2")

Array = jax.Array | np.ndarray
Sampler = Callable[..., jax.Array]
Method = CCD | ConditionalDiffusion | ConsistencyDistillation | ProgressiveDistillation


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Config of the adapter.

    kind: "controlnet"; "mu" (CCD eq. 10); "t2i" (T2I-Adapter); "none" (of the condition none, and only there).
    embedding_channels: of the ControlNet's condition embedding, one stride 2 a step.
    """

    kind: str = "controlnet"
    embedding_channels: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is not an adapter; use {', '.join(KINDS)}")


def check_adapter(adapter: AdapterConfig, condition: ConditionConfig) -> None:
    """Raises ValueError where there is a condition and no adapter, or an adapter and nothing for it to read."""
    if (adapter.kind == "none") != (condition.task == "none"):
        raise ValueError(
            f"config.adapter.kind={adapter.kind!r} with config.condition.task={condition.task!r}: "
            "'none' goes with 'none', every other condition needs an adapter"
        )


def make_adapter(
    config: AdapterConfig,
    bundle: ModelBundle,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    channels: int = 3,
) -> Adapter:
    """Builds the adapter for a teacher's UNet and a condition of `channels`; `dtype`, `remat` as for `load`."""
    if config.kind == "none":
        return NoAdapter()
    if config.kind == "mu":
        return MuMixing(model=bundle, module=make_unet(bundle.configs["unet"], dtype=dtype, remat=remat))
    if config.kind == "t2i":
        return T2IAdapter(config=t2i_config(bundle.configs["unet"], bundle.downsampling, channels), dtype=dtype)
    return ControlNetAdapter(config=controlnet_config(config, bundle, channels), dtype=dtype, remat=remat)


def controlnet_config(config: AdapterConfig, bundle: ModelBundle, channels: int = 3) -> dict[str, Any]:
    """The `config.json` of a ControlNet whose encoder is the teacher's.

    Raises:
        ValueError: the embedding's strides do not bring an image to the size of the teacher's latents.
    """
    factor = 2 ** (len(config.embedding_channels) - 1)
    if factor != bundle.downsampling:
        raise ValueError(
            f"config.adapter.embedding_channels={config.embedding_channels} scales by {factor}, the latents of "
            f"{bundle.source} by {bundle.downsampling}: give one channel count per halving, plus one"
        )
    unet = {k: v for k, v in bundle.configs["unet"].items() if not k.startswith("_")}
    decoder_only = ("up_block_types", "out_channels", "sample_size", "center_input_sample", "time_cond_proj_dim")
    encoder = {name: value for name, value in unet.items() if name not in decoder_only}
    return {
        **encoder,
        "conditioning_channels": channels,
        "conditioning_embedding_out_channels": config.embedding_channels,
    }


def default_solver(objective: ConditionalNetwork) -> str:
    """How a model of this method is sampled: consistency models with fresh noise, all others with DDIM."""
    return CONSISTENCY if isinstance(objective, ConsistencyDistillation) else "ddim"


def default_guidance(objective: ConditionalNetwork) -> float:
    """The guidance scale that a model is sampled with: the middle of the interval it was trained on, or 1 (off)."""
    return float(np.mean(objective.guidance)) if isinstance(objective, CCD) and objective.guidance else 1.0


def default_steps(objective: ConditionalNetwork) -> int:
    """The steps that a model is sampled in: a GD student's own, 50 of a fine-tuned one, else 4; never over its grid."""
    if isinstance(objective, ProgressiveDistillation):
        return objective.grid_steps
    return min(50 if isinstance(objective, ConditionalDiffusion) else 4, objective.grid_steps)


def default_start(condition: ConditionConfig) -> str:
    """Where sampling starts: at a degraded picture, which is a picture of the answer, else at noise."""
    return "condition" if condition.task == "superres" else "noise"


def make_sampler(objective: ConditionalNetwork, solver: str = "", start: str = "noise") -> Sampler:
    """Returns sampler(params, frozen, condition, ids, rng, steps, guidance=None, size=None) -> images f32[b,H,W,3].

    condition: f32[b,H,W,c], or what the adapter's `prepare` reads; None for none. ids: i32[b,n], or a batch that has
    `input_ids` (and SDXL's `input_ids_2`). guidance: a scale, None for the model's own; 1 costs one forward a step, any
    other two. size: image side where there is no condition. solver: a name of `SAMPLERS`, "" for the method's own.
    start: "noise"; or "condition", z = alpha E(c) + sigma eps at the first time. Stable Diffusion's noisiest latents
    still show (at SNR .005) what is lightest and largest in a picture, and a network trained on those looks for it.

    Deterministic but for "consistency", over the trailing grid, compiled once per number of steps and shape. Where the
    condition has a mask (inpainting, 4 channels) the known pixels are put back, exactly.

    Raises:
        ValueError: an unknown solver or start; when called, more steps than the grid has.
    """
    model, schedule = objective.model, objective.schedule
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}: choose one of {', '.join(STARTS)}")
    name = solver or default_solver(objective)
    if name not in SAMPLERS:
        raise ValueError(f"unknown solver {name!r}: choose one of {', '.join(SAMPLERS)}")

    @functools.partial(jax.jit, static_argnames="side")
    def run(
        params: Params,
        frozen: Frozen,
        condition: Any,
        ids: Batch,
        rng: jax.Array,
        times: jax.Array,
        w: jax.Array | None,
        side: tuple[int, int],
    ) -> jax.Array:
        frozen = frozen if w is None else with_null_text(model, frozen)
        text = text_of(model, frozen, ids)
        hint = objective.adapter.prepare(frozen, condition)
        noise = initial_noise(rng, (ids["input_ids"].shape[0], *side, model.latent_channels))
        z = noise
        if start == "condition":
            (picture,) = jax.tree.leaves(condition)
            shown = model.encode(frozen["vae"], picture[..., :3])
            z = add_noise(shown, noise, schedule.at(jnp.broadcast_to(times[0], noise.shape[:1])))

        def denoise(z: jax.Array, t: jax.Array) -> jax.Array:
            return objective.predict(params, frozen, hint, z, t, text, w)

        if name == CONSISTENCY:
            fresh = jax.random.fold_in(rng, noise.shape[0])
            z = sample_consistency(denoise, z, times, schedule, objective.prediction, fresh)
        else:
            z = sample(denoise, z, times, schedule, objective.prediction, solver_named(name))
        return model.decode(frozen["vae"], z)

    def sampler(
        params: Params,
        frozen: Frozen,
        condition: Any,
        ids: Array | Mapping[str, Array],
        rng: jax.Array,
        steps: int,
        guidance: float | None = None,
        size: int | None = None,
    ) -> jax.Array:
        times = sampling_times(steps, objective.grid_steps, schedule.num_timesteps)
        pictures = [leaf.shape[1:3] for leaf in jax.tree.leaves(condition)]
        whole = pictures[0] if pictures else (size or model.sample_size * model.downsampling,) * 2
        rows = ids if isinstance(ids, Mapping) else {"input_ids": ids}
        w = default_guidance(objective) if guidance is None else guidance
        images = run(
            params,
            frozen,
            jax.tree.map(jnp.asarray, condition),
            {name: jnp.asarray(rows[name]) for name in TEXT_KEYS if name in rows},
            rng,
            jnp.asarray(times),
            None if w == 1.0 else jnp.float32(w),
            side=(whole[0] // model.downsampling, whole[1] // model.downsampling),
        )
        for leaf in jax.tree.leaves(condition):
            if leaf.shape[-1] == 4:
                images = jnp.asarray(composite(np.asarray(images), np.asarray(leaf)))
        return images

    return sampler


def condition_images(condition: Array) -> np.ndarray:
    """A condition as pictures to look at: its first three channels."""
    return np.asarray(condition)[..., :3]


def make_previews(
    objective: ConditionalNetwork, data: ConditionalData, condition: ConditionConfig, name: str
) -> Previews | None:
    """Grids of held-out portraits: condition, samples in 1, 2, 4 steps, truth; None for images on disk."""
    if data.source != "portraits":
        return None
    batch = heldout_rows(data, objective.model, PREVIEW, condition)
    sampler = make_sampler(objective, start=default_start(condition))
    hint = batch.get("condition")
    steps = [n for n in PREVIEW_STEPS if n <= objective.grid_steps]

    def previews(params: Params, ema: Params | None, frozen: Frozen, step: int, directory: Path) -> None:
        shown = params if ema is None else ema
        rows = {} if hint is None else {LABELS.get(condition.task, "condition"): condition_images(hint)}
        for n in steps:
            drawn = sampler(shown, frozen, hint, batch, jax.random.key(0), n)
            rows[f"{name} {n} step{'s' * (n > 1)}"] = np.asarray(drawn)
        rows["truth"] = batch["image"]
        write_grid(directory / f"{step:08d}.png", list(rows.values()), list(rows))

    return previews


LABELS = {"superres": "bicubic", "edit": "before"}
"""What a grid's row of conditions is called."""


def make_exporter(bundle: ModelBundle, teacher: Params, adapter: Adapter) -> Callable[[Params, Path], None]:
    """Returns (params, directory) -> None, which writes `unet/` and the adapter's `controlnet/` or `t2i_adapter/`."""

    def export(params: Params, directory: Path) -> None:
        if isinstance(adapter, MuMixing):
            raise ValueError("mu-mixing has no published format: train with config.adapter.kind=controlnet to export")
        described = adapter.config.to_json() if isinstance(adapter, T2IAdapter) else {}
        save_component(params.get("unet", teacher), bundle.configs["unet"], directory / "unet", "UNet2DConditionModel")
        if isinstance(adapter, ControlNetAdapter):
            save_component(params["adapter"]["controlnet"], adapter.config, directory / "controlnet", "ControlNetModel")
        if isinstance(adapter, T2IAdapter):
            save_component(params["adapter"]["t2i"], described, directory / "t2i_adapter", "T2IAdapter")

    return export


def conditional_job(
    config: ConfigDict,
    name: str,
    label: str,
    objective: Method,
    frozen: Frozen,
    data: ConditionalData,
    condition: ConditionConfig,
    fingerprint: dict[str, str],
) -> Job:
    """The job of an objective and what it reads. label: what previews call its samples."""
    return Job(
        name=name,
        objective=objective,
        frozen=frozen,
        stream=conditional_stream(config, data, condition, objective.model, frozen["vae"]),
        previews=make_previews(objective, data, condition, label),
        batch_size=config.batch_size,
        config=config,
        fingerprint=fingerprint,
        export=make_exporter(objective.model, frozen["teacher"]["unet"], objective.adapter),
    )
