"""A UNet as a one-pass image-to-image translator on latents, one network for M tasks (Hertz et al. 2023, DDS, sec. 4).

    z' = out(UNet(z, tau_k, c_k), z)               z clean scaled latents of an image, k its task                   (1)

The teacher's UNet with its two conditions replaced by learned ones: the text states by a context c_k of a task, which
starts at the states of a phrase that describes it, and the timestep's sinusoid by features tau_k, which start at the
sinusoid of t = T/2. What the UNet's answer r means is a choice that the paper leaves open:

| output | z' | at the start of training |
| --- | --- | --- |
| `residual` | z + r, `conv_out` starts at zero | the identity |
| `denoised` | x0_hat(r, z) at the level of T/2, r in the teacher's own prediction space | z, smoothed |
| `direct` | r | the teacher's prediction, an image of noise |

`residual` needs no training to keep an image; `direct` has to learn to, from the identity regularisation.

Parameters: {'unet', 'task' f32[M,n,d], 'time' f32[M,c]} and, for SDXL, 'pooled' f32[M,e], all trained. Cost: 1F an
image. Latents of any size; in SDD it is the manipulator of latents.

On disk (`save_translator`): a diffusers pipeline whose UNet is the translator's, and `translator/` with a config.json
(the output's name, the tasks' names) and the embeddings as safetensors; `load_translator` reads it again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from sdd_jax.diffusion.parameterization import predictor
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.models import hub
from sdd_jax.models.embeddings import sinusoidal_features
from sdd_jax.models.load import load
from sdd_jax.models.save import replaced_directory, save
from sdd_jax.models.unet_config import parse_config
from sdd_jax.types import ModelBundle, Params

OUTPUTS = ("residual", "denoised", "direct")
EMBEDDINGS = ("task", "time", "pooled")
FOLDER = "translator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translator:
    """The network without its parameters. model: the teacher whose UNet it starts from. output: see the table."""

    model: ModelBundle
    output: str = "residual"

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"output={self.output!r} is not known; use {', '.join(OUTPUTS)}")

    @property
    def start_time(self) -> int:
        """T/2, the timestep whose sinusoid the time features start from."""
        return len(self.model.alphas_cumprod) // 2

    def init(self, unet: Params, context: jax.Array, pooled: jax.Array | None = None) -> Params:
        """Returns what training starts from, in float32.

        unet: the teacher's UNet. context: f32[M,n,d], the text states of the M tasks' phrases; pooled: f32[M,e], theirs
        for SDXL.
        """
        config = parse_config(self.model.configs["unet"])
        unet = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), unet)
        if self.output == "residual":
            unet = {**unet, "conv_out": jax.tree.map(jnp.zeros_like, unet["conv_out"])}
        time = sinusoidal_features(
            jnp.full(context.shape[:1], self.start_time),
            config.channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        params = {"unet": unet, "task": context.astype(jnp.float32), "time": time}
        return params if pooled is None else {**params, "pooled": pooled.astype(jnp.float32)}

    def apply(self, params: Params, z: jax.Array, task: jax.Array) -> jax.Array:
        """Translates clean scaled latents z [b,h,w,c] under task int[b] (each below M) -> f32[b,h,w,c]; 1F."""
        t = jnp.full(task.shape, self.start_time, jnp.int32)
        denoise = with_time_features(self.model.denoise, params["time"][task])
        out = denoise(params["unet"], z, t, params["task"][task], added_cond=self._added_cond(params, z, task))
        if self.output == "residual":
            return z.astype(jnp.float32) + out
        if self.output == "direct":
            return out
        level = Schedule(self.model.alphas_cumprod).at(t)
        return predictor(self.model.prediction).x0(out, z, level)

    def _added_cond(self, params: Params, z: jax.Array, task: jax.Array) -> dict[str, jax.Array] | None:
        """SDXL's added conditions of uncropped images as large as the latents; None for other models."""
        if "pooled" not in params:
            return None
        height, width = (float(size * self.model.downsampling) for size in z.shape[1:3])
        time_ids = jnp.asarray([[height, width, 0.0, 0.0, height, width]])
        return {"text_embeds": params["pooled"][task], "time_ids": jnp.tile(time_ids, (z.shape[0], 1))}


def with_time_features(denoise: Callable[..., jax.Array], features: jax.Array) -> Callable[..., jax.Array]:
    """`denoise` of a Linen UNet whose time embedding reads `features` f32[b,c] in place of the timestep's sinusoid."""

    def replaced(*args: Any, **kwargs: Any) -> jax.Array:
        def feed(call: Callable[..., Any], inputs: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
            if context.module.path == ("time_embedding",) and context.method_name == "__call__":
                inputs = (features, *inputs[1:])
            return call(*inputs, **options)

        with nn.intercept_methods(feed):
            return denoise(*args, **kwargs)

    return replaced


def save_translator(
    translator: Translator, params: Params, others: Params, tasks: Sequence[str], out_dir: str | Path
) -> Path:
    """Writes the translator and the model around it; see the module's text.

    others: the teacher's `vae` and text encoders. tasks: M names. Errors as of `models.save.save`.
    """
    bundle = translator.model
    directory = save(bundle, {**others, "unet": params["unet"]}, out_dir)
    names = [name for name in EMBEDDINGS if name in params]
    embeddings: dict[str, np.ndarray] = {name: np.array(params[name], np.float32) for name in names}
    with replaced_directory(directory / FOLDER) as folder:
        config = {"_class_name": "Translator", "output": translator.output, "tasks": list(tasks)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(embeddings, folder / "model.safetensors")
    return directory


def load_translator(directory: str | Path, **options: Any) -> tuple[Translator, Params, Params, tuple[str, ...]]:
    """Reads what `save_translator` wrote: (translator, its params, the other parts' params, task names).

    options: as for `load.load`.

    Raises:
        FileNotFoundError: no such directory, or one without a translator.
        ValueError: damaged files, or what `load.load` objects to.
    """
    folder = Path(directory) / FOLDER
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{directory} holds no translator ({FOLDER}/config.json): export a trained one to it")
    config = hub.read_json(folder / "config.json")
    missing = [key for key in ("output", "tasks") if key not in config]
    if missing:
        raise ValueError(f"{folder / 'config.json'} has no {missing[0]!r}: export the translator again")
    bundle, parts = load(directory, **options)
    unet = parts.pop("unet")
    embeddings = {name: jnp.asarray(value) for name, value in load_file(folder / "model.safetensors").items()}
    translator = Translator(model=bundle, output=config["output"])
    return translator, {"unet": unet, **embeddings}, parts, tuple(config["tasks"])
