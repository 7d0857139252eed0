"""A training step's twin in PyTorch: which jobs have one, and the draws that make its first loss ours.

The twin gets what the step's loss draws at step 0 (latents, noise, times, dropped captions), computed here with the
keys that `training.step` would hand it, and repeats it: the work of a step does not depend on the values.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.diffusion.distances import pseudo_huber
from sdd_jax.diffusion.guidance import guidance_embedding
from sdd_jax.diffusion.schedule import Level, Schedule, add_noise
from sdd_jax.diffusion.timegrid import reverse_target
from sdd_jax.models.adapters import ControlNetAdapter, NoAdapter
from sdd_jax.objectives.ccd import CCD
from sdd_jax.objectives.diffusion import TARGETS, Diffusion
from sdd_jax.objectives.icd import ICD
from sdd_jax.objectives.inputs import latents_of
from sdd_jax.train import Job, engine_config
from sdd_jax.types import Batch, Frozen, Params

Draws = dict[str, jax.Array]
TwinStep = Callable[[], np.ndarray]
MakeTwin = Callable[[bool], TwinStep]


def check_torch() -> None:
    """Raises ValueError where PyTorch or its diffusers is not installed."""
    for name in ("torch", "diffusers"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--against=torch needs {name}, which is not installed: pip install 'sdd_jax[torch]'")


def check_twin(job: Job, batch: Mapping[str, Any]) -> None:
    """Raises ValueError for a job without a twin.

    There is one for plain diffusion, for CCD as published (ControlNet or no adapter, full training, squared distances)
    and for iCD's reverse model alone in full training; all of eps-predicting teachers with one text encoder, with
    AdamW, without accumulation; CCD with an average, whose predictions it learns from.
    """
    engine, method = engine_config(job.config), job.objective
    known = isinstance(method, CCD) and _is_published(method) and engine.ema is not None
    known = known or (isinstance(method, Diffusion) and method.min_snr_gamma is None)
    known = known or (isinstance(method, ICD) and _is_reverse_alone(method))
    usual = (engine.ema is None or not engine.ema_warmup) and engine.accumulate == 1
    fits = known and usual and "pooled" not in batch and {"moments", "context"} <= set(batch)
    if not fits or engine.optimizer.name != "adamw":
        remedy = "; set config.optimizer.name=adamw" if fits else ""
        raise ValueError(
            f"--against=torch: there is no PyTorch twin of {job.name}; there is one of plain diffusion, of full CCD "
            "training with a ControlNet or no adapter and an average as published, and of full training of iCD's "
            f"reverse model, all with adamw and without accumulation{remedy}"
        )


def training_twin(job: Job, params: Params, batch: Batch, half: bool) -> MakeTwin:
    """Returns compiled -> PyTorch's step of a job on `batch` from `params`, which it copies when it is made.

    half: computes in bfloat16. Raises ValueError as `check_twin`.
    """
    check_twin(job, batch)
    engine, method = engine_config(job.config), job.objective
    assert isinstance(method, (CCD, Diffusion, ICD))
    name, draw = next((name, draw) for kind, (name, draw) in _TWINS.items() if isinstance(method, kind))
    unet = "UNet2DConditionModel", method.model.configs["unet"]
    trained = params["reverse"] if isinstance(method, ICD) else params["unet"]
    networks: dict[str, tuple[str, Mapping[str, Any], Params]] = {"unet": (*unet, trained)}
    frozen: dict[str, tuple[str, Mapping[str, Any], Params]] = {}
    if isinstance(method, CCD) and isinstance(method.adapter, ControlNetAdapter):
        networks["controlnet"] = ("ControlNetModel", method.adapter.config, params["adapter"]["controlnet"])
    if isinstance(method, ICD):
        frozen["teacher"] = (*unet, job.frozen["teacher"]["unet"])
    phase_key = jax.random.fold_in(jax.random.fold_in(jax.random.split(jax.random.key(engine.seed))[1], 0), 0)
    keys = jax.random.fold_in(phase_key, 1), jax.random.fold_in(phase_key, 0)
    readable: Frozen = {name: value for name, value in job.frozen.items() if name != "teacher"}
    draws = {key: np.asarray(x) for key, x in jax.jit(lambda *a: draw(method, *a))(readable, batch, *keys).items()}

    def make(compiled: bool) -> TwinStep:
        from sdd_jax.benchmarks import torch_steps

        return torch_steps.make_training_step(
            networks,
            draws,
            getattr(torch_steps, name),
            frozen=frozen,
            optimizer=engine.optimizer,
            ema_decay=engine.ema,
            half=half,
            compiled=compiled,
        )

    return make


def _is_published(method: CCD) -> bool:
    """Whether every choice of the method that the twin does not read is at its default."""
    free = ("model", "adapter", "grid_steps", "shared_time")
    fields = [field for field in dataclasses.fields(method) if field.name not in free]
    if not isinstance(method.adapter, ControlNetAdapter | NoAdapter) or method.model.prediction != "eps":
        return False
    return all(getattr(method, field.name) == field.default for field in fields)


def _is_reverse_alone(method: ICD) -> bool:
    """Whether L_CD is all there is, of two full networks that predict eps."""
    is_published = method.distance is pseudo_huber and method.model.prediction == "eps"
    return is_published and method.lora is None and set(method.terms) == {"reverse_cd"}


def _draw_ccd(method: CCD, frozen: Frozen, batch: Batch, rng: jax.Array, step_rng: jax.Array) -> Draws:
    latents_rng, time_rng, noise_rng = jax.random.split(rng, 3)
    x = latents_of(method.model, frozen, batch, latents_rng)
    eps = jax.random.normal(noise_rng, x.shape)
    t, s = method.draw_times(step_rng if method.shared_time else time_rng, x.shape[0])
    schedule = Schedule(method.model.alphas_cumprod)
    levels = _levels(t=schedule.at(t), s=schedule.at(s))
    hint = method.adapter.prepare(frozen, batch.get("condition"))
    z_t = add_noise(x, eps, schedule.at(t))
    draws = {"x": x, "eps": eps, "z_t": z_t, "t": t, "s": s, **levels, "context": batch["context"]}
    return draws if hint is None else {**draws, "hint": hint}


def _draw_plain(method: Diffusion, frozen: Frozen, batch: Batch, rng: jax.Array, step_rng: jax.Array) -> Draws:
    latents_rng, time_rng, noise_rng, drop_rng = jax.random.split(rng, 4)
    x = latents_of(method.model, frozen, batch, latents_rng)
    b = x.shape[0]
    dropped = jax.random.bernoulli(drop_rng, method.caption_dropout, (b, 1, 1))
    context = jnp.where(dropped, frozen["null_context"], batch["context"])
    schedule = Schedule(method.model.alphas_cumprod)
    t = jax.random.randint(time_rng, (b,), 0, schedule.num_timesteps)
    level, eps = schedule.at(t), jax.random.normal(noise_rng, x.shape)
    truth = TARGETS[method.model.prediction](x, eps, level)
    return {"z_t": add_noise(x, eps, level), "t": t, "context": context, "truth": truth}


def _draw_icd(method: ICD, frozen: Frozen, batch: Batch, rng: jax.Array, step_rng: jax.Array) -> Draws:
    latents_rng, term_rng = jax.random.split(rng)
    time_rng, noise_rng, scale_rng = jax.random.split(term_rng, 3)
    x = latents_of(method.model, frozen, batch, latents_rng)
    t = jax.random.choice(time_rng, jnp.asarray(method.grid), x.shape[:1])
    w = jax.random.choice(scale_rng, jnp.asarray(method.scales, jnp.float32), x.shape[:1])
    t_solver, s = reverse_target(t, method.boundaries.reverse, int(method.grid[1] - method.grid[0]))
    schedule, times = Schedule(method.model.alphas_cumprod), {"t": t, "t_solver": t_solver, "s": s}
    levels = _levels(**{name: schedule.at_boundary(time) for name, time in times.items()})
    z = add_noise(x, jax.random.normal(noise_rng, x.shape), schedule.at(t))
    embedded = guidance_embedding(w, method.embedding_dim)
    return {"z": z, **times, **levels, "w": embedded, "context": batch["context"]}


def _levels(**levels: Level) -> Draws:
    return {f"{part}_{name}": value for name, level in levels.items() for part, value in level._asdict().items()}


_TWINS: dict[type, tuple[str, Callable[..., Draws]]] = {
    CCD: ("ccd_loss", _draw_ccd),
    Diffusion: ("plain_loss", _draw_plain),
    ICD: ("icd_loss", _draw_icd),
}
"""By objective: the loss in `torch_steps`, and what it draws."""
