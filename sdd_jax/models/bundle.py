"""A Stable Diffusion as pure functions, built from configs alone; `models.load` reads configs and weights from files.

    bundle, params = load("portraits")
    context, _ = bundle.embed_text(params, bundle.tokenize(["a smiling lion"]))
    eps_hat = bundle.denoise(params["unet"], z, t, context)

`params` has the keys `unet`, `vae`, `text_encoder` (and `text_encoder_2`), named after diffusers' state dicts. The
networks follow their `config.json`: SD 1.x, 2.x, SDXL and what is shaped like them; a config field that asks for what
is not implemented is an error that names it.

Text: SD 1.x and 2.x condition on the text encoder's last states after its final norm. SDXL (two encoders) conditions on
both encoders' states before their last layer, concatenated, and adds the second's projected state (`pooled`).
Latents: `encode` gives `scaling_factor` times a posterior draw or mean; `decode` divides by it again.
Schedule: `alphas_cumprod` f32[T] from `scheduler_config.json`, whatever sampler the file names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.models import hub
from sdd_jax.models.text import CLIPTextEncoder, TextConfig
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.models.vae import AutoencoderKL, VAEConfig, latents_of
from sdd_jax.types import ModelBundle, Params

Configs = Mapping[str, Mapping[str, Any]]
Tokenize = Callable[[Sequence[str]], np.ndarray]

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULERS = (
    "DDIM DDPM PNDM EulerDiscrete EulerAncestralDiscrete HeunDiscrete LMSDiscrete KDPM2Discrete KDPM2AncestralDiscrete"
    " DPMSolverMultistep DPMSolverSinglestep DEISMultistep UniPCMultistep LCM TCD"
).split()


def make_bundle(
    configs: Configs,
    tokenize: Tokenize,
    tokenize_2: Tokenize | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    source: str = "configs",
    content_hash: str = "",
) -> ModelBundle:
    """Builds a bundle from config dicts, without files or weights.

    Args:
      configs: `unet`, `vae`, `text_encoder` (`text_encoder_2`) and `scheduler`, each the content of its JSON file.
      tokenize, tokenize_2: a `Tokenizer` for each text encoder.
      dtype, remat: as for `load.load`.
      source, content_hash: what identifies the weights that will be used with it.

    Raises:
      ValueError: naming a config field that is not supported.
    """
    unet, vae, texts = _modules(configs, dtype, remat)
    scale = vae.config.scaling_factor
    sample_size = configs["unet"].get("sample_size") or vae.config.sample_size // vae.config.downsampling
    if not isinstance(sample_size, int):
        raise ValueError(f"unet/config.json: sample_size = {sample_size!r} is not supported; only square latents are")
    if len(texts) == 2 and tokenize_2 is None:
        raise ValueError("this model has two text encoders and was given one tokenizer; give it tokenize_2")

    def denoise(
        params: Params,
        z: jax.Array,
        t: jax.Array,
        context: jax.Array,
        *,
        timestep_cond: jax.Array | None = None,
        added_cond: Mapping[str, jax.Array] | None = None,
        residuals: Any = None,
        attention_edit: Any = None,
    ) -> jax.Array:
        out = unet.apply({"params": params}, z, t, context, timestep_cond, added_cond, residuals, attention_edit)
        return jnp.asarray(out, jnp.float32)

    def moments(params: Params, image: jax.Array) -> jax.Array:
        return jnp.asarray(vae.apply({"params": params}, image, method="encode"), jnp.float32)

    def encode(params: Params, image: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        return latents_of(moments(params, image), scale, rng)

    def decode(params: Params, latents: jax.Array) -> jax.Array:
        return jnp.asarray(vae.apply({"params": params}, latents / scale, method="decode"), jnp.float32)

    def embed_text(
        params: Mapping[str, Any], ids: jax.Array, ids_2: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        first = texts[0].apply({"params": params["text_encoder"]}, jnp.asarray(ids))
        if len(texts) == 1:
            return first.last.astype(jnp.float32), None
        if ids_2 is None:
            raise ValueError(
                "this model has two text encoders: give embed_text the second tokenizer's ids (input_ids_2)"
            )
        second = texts[1].apply({"params": params["text_encoder_2"]}, jnp.asarray(ids_2))
        context = jnp.concatenate([first.penultimate, second.penultimate], -1)
        return context.astype(jnp.float32), second.projected.astype(jnp.float32)

    return ModelBundle(
        denoise=denoise,
        moments=moments,
        encode=encode,
        decode=decode,
        embed_text=embed_text,
        tokenize=tokenize,
        tokenize_2=tokenize_2,
        prediction=read_prediction(configs["scheduler"]),
        alphas_cumprod=read_schedule(configs["scheduler"]),
        latent_scale=scale,
        downsampling=vae.config.downsampling,
        latent_channels=vae.config.latent_channels,
        sample_size=sample_size,
        configs=configs,
        source=source,
        content_hash=content_hash,
    )


def init_params(configs: Configs, rng: jax.Array) -> Params:
    """Returns random float32 parameters for every part that `configs` describes.

    Kernels are uniform in +-1/sqrt(fan_in), embeddings normal with std .02, norms the identity. Drawn on the host, so
    that they are the same on every backend and nothing is compiled.
    """
    generator = np.random.default_rng(np.asarray(jax.random.key_data(rng)).ravel())

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "kernel":
            value = generator.uniform(-1, 1, leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        elif path[-1].key == "embedding":
            value = 0.02 * generator.standard_normal(leaf.shape)
        else:
            value = np.full(leaf.shape, float(path[-1].key == "scale"))
        return jnp.asarray(value.astype(np.float32))

    return jax.tree_util.tree_map_with_path(draw, expected_shapes(configs))


def expected_shapes(configs: Configs) -> dict[str, Any]:
    """Returns the tree of `jax.ShapeDtypeStruct` that each part's weights must have; computes nothing."""
    return {part: jax.eval_shape(init, jax.random.key(0)) for part, init in _inits(configs).items()}


def part_shapes(configs: Configs, part: str) -> Params:
    """The same of one part, "unet" for instance."""
    return jax.eval_shape(_inits(configs)[part], jax.random.key(0))


def read_prediction(config: Mapping[str, Any]) -> str:
    """Returns "eps", "x0" or "v" of a scheduler_config.json (epsilon where it says nothing)."""
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(f"scheduler: prediction_type = {prediction!r} is not supported; use one of {[*PREDICTIONS]}")
    return PREDICTIONS[prediction]


def read_schedule(config: Mapping[str, Any]) -> np.ndarray:
    """Returns alphas_cumprod f32[T] of a scheduler_config.json.

    A zero-terminal-SNR table (`rescale_betas_zero_snr`, Lin et al. 2023, arXiv:2305.08891) ends at 2^-24 rather than
    0, so that alpha stays positive.

    Raises:
      ValueError: naming the field: another family of schedulers, another beta schedule, or a field missing.
    """
    name = config.get("_class_name", "DDIMScheduler")
    if name.removesuffix("Scheduler") not in SCHEDULERS:
        raise ValueError(f"scheduler: _class_name = {name!r} is not supported; only variance-preserving schedulers are")
    steps, trained = config.get("num_train_timesteps", 1000), config.get("trained_betas")
    kinds = {"scaled_linear": Schedule.scaled_linear, "linear": Schedule.linear}
    kind = config.get("beta_schedule")
    if trained is not None:
        schedule = Schedule.from_betas(np.asarray(trained, np.float64))
    elif kind == "squaredcos_cap_v2":
        schedule = Schedule.squaredcos(steps)
    elif kind in kinds:
        missing = [field for field in ("beta_start", "beta_end") if field not in config]
        if missing:
            raise ValueError(f"scheduler: {missing[0]} is missing from scheduler_config.json; SD's are .00085 and .012")
        schedule = kinds[kind](config["beta_start"], config["beta_end"], steps)
    else:
        raise ValueError(f"scheduler: beta_schedule = {kind!r} is not supported; use {[*kinds, 'squaredcos_cap_v2']}")
    table = np.asarray(schedule.alphas_cumprod, np.float64)
    if config.get("rescale_betas_zero_snr"):
        alpha = np.sqrt(table)
        table = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
        table[-1] = 2.0**-24
    return table.astype(np.float32)


def _modules(configs: Configs, dtype: DTypeLike, remat: str) -> tuple[Any, AutoencoderKL, list[Any]]:
    missing = [part for part in ("unet", "vae", "text_encoder", "scheduler") if part not in configs]
    if missing:
        raise ValueError(
            f"a model needs configs for unet, vae, text_encoder and scheduler; missing: {', '.join(missing)}"
        )
    texts = [
        CLIPTextEncoder(TextConfig.from_json(configs[part], f"{part}/config.json"), dtype)
        for part in hub.NETWORKS
        if part in configs and part.startswith("text_encoder")
    ]
    if len(texts) == 2 and texts[1].config.projection_dim is None:
        raise ValueError(
            "text_encoder_2/config.json: architectures must be ['CLIPTextModelWithProjection'], as in SDXL"
        )
    unet = make_unet(configs["unet"], dtype=dtype, remat=remat)
    return unet, AutoencoderKL(VAEConfig.from_json(configs["vae"]), dtype), texts


def _inits(configs: Configs) -> dict[str, Callable[[jax.Array], Params]]:
    """Returns each part's `rng -> params`, at the smallest inputs it takes."""
    unet, vae, texts = _modules(configs, jnp.float32, "none")
    side = vae.config.downsampling
    image, ids = jnp.zeros((1, side, side, vae.config.in_channels)), jnp.zeros((1, 1), jnp.int32)
    inits: dict[str, Callable[[jax.Array], Params]] = {
        "unet": functools.partial(init_unet, unet),
        "vae": lambda rng: vae.init(rng, image)["params"],
    }
    for name, text in zip(("text_encoder", "text_encoder_2"), texts, strict=False):
        inits[name] = functools.partial(lambda text, rng: text.init(rng, ids)["params"], text)
    return inits
