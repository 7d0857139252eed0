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

from sdd_jax.diffusion.schedule import Schedule, add_noise
from sdd_jax.models.adapters import ControlNetAdapter
from sdd_jax.objectives.ccd import CCD
from sdd_jax.objectives.diffusion import TARGETS, Diffusion
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

    There is one for plain diffusion and for CCD as published: ControlNet, full training, squared distances, an
    eps-predicting teacher with one text encoder; both with AdamW and an average, without accumulation.
    """
    engine, method = engine_config(job.config), job.objective
    known = isinstance(method, CCD) and _is_published(method)
    known = known or (isinstance(method, Diffusion) and method.min_snr_gamma is None)
    usual = engine.ema is not None and not engine.ema_warmup and engine.accumulate == 1
    fits = known and usual and "pooled" not in batch and {"moments", "context"} <= set(batch)
    if not fits or engine.optimizer.name != "adamw":
        remedy = "; set config.optimizer.name=adamw" if fits else ""
        raise ValueError(
            f"--against=torch: there is no PyTorch twin of {job.name}; there is one of plain diffusion and of full CCD "
            f"training with a ControlNet as published, with adamw, an average and no accumulation{remedy}"
        )


def training_twin(job: Job, params: Params, batch: Batch, half: bool) -> MakeTwin:
    """Returns compiled -> PyTorch's step of a job on `batch` from `params`, which it copies when it is made.

    half: computes in bfloat16. Raises ValueError as `check_twin`.
    """
    check_twin(job, batch)
    engine, method = engine_config(job.config), job.objective
    networks: dict[str, tuple[str, Mapping[str, Any], Params]] = {}
    draw: Callable[..., Draws] = _draw_plain
    if isinstance(method, CCD):
        assert isinstance(method.adapter, ControlNetAdapter)
        networks["controlnet"] = ("ControlNetModel", method.adapter.config, params["adapter"]["controlnet"])
        draw = _draw_ccd
    assert isinstance(method, (CCD, Diffusion)) and engine.ema is not None
    networks["unet"] = ("UNet2DConditionModel", method.model.configs["unet"], params["unet"])
    phase_key = jax.random.fold_in(jax.random.fold_in(jax.random.split(jax.random.key(engine.seed))[1], 0), 0)
    keys = jax.random.fold_in(phase_key, 1), jax.random.fold_in(phase_key, 0)
    readable: Frozen = {name: value for name, value in job.frozen.items() if name != "teacher"}
    draws = {name: np.asarray(x) for name, x in jax.jit(lambda *a: draw(method, *a))(readable, batch, *keys).items()}
    decay = engine.ema

    def make(compiled: bool) -> TwinStep:
        from sdd_jax.benchmarks import torch_steps

        return torch_steps.make_training_step(
            networks,
            draws,
            torch_steps.ccd_loss if isinstance(method, CCD) else torch_steps.plain_loss,
            optimizer=engine.optimizer,
            ema_decay=decay,
            half=half,
            compiled=compiled,
        )

    return make


def _is_published(method: CCD) -> bool:
    """Whether every choice of the method that the twin does not read is at its default."""
    free = ("model", "adapter", "grid_steps", "shared_time")
    fields = [field for field in dataclasses.fields(method) if field.name not in free]
    if not isinstance(method.adapter, ControlNetAdapter) or method.model.prediction != "eps":
        return False
    return all(getattr(method, field.name) == field.default for field in fields)


def _draw_ccd(method: CCD, frozen: Frozen, batch: Batch, rng: jax.Array, step_rng: jax.Array) -> Draws:
    latents_rng, time_rng, noise_rng = jax.random.split(rng, 3)
    x = latents_of(method.model, frozen, batch, latents_rng)
    eps = jax.random.normal(noise_rng, x.shape)
    t, s = method.draw_times(step_rng if method.shared_time else time_rng, x.shape[0])
    at_t, at_s = (Schedule(method.model.alphas_cumprod).at(time) for time in (t, s))
    levels = {"alpha_t": at_t.alpha, "sigma_t": at_t.sigma, "alpha_s": at_s.alpha, "sigma_s": at_s.sigma}
    hint = method.adapter.prepare(frozen, batch["condition"])
    z_t = add_noise(x, eps, at_t)
    return {"x": x, "eps": eps, "z_t": z_t, "t": t, "s": s, **levels, "context": batch["context"], "hint": hint}


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
