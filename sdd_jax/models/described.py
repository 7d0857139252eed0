"""Models without weight files: what ahead-of-time compilation, counting and benchmarks load in their place.

| name | parameters |
| --- | --- |
| `shapes:NAME` | `jax.ShapeDtypeStruct`s: nothing is allocated |
| `random:NAME` | random, the same in every process; the schedule and the sizes are the model's own |

NAME is a published model's hub id (`models.published`), a directory of config files, or "portraits"; `NAME+w` is the
same with a UNet that reads the guidance scale, as guidance distillation makes it. Where NAME has no tokenizer at hand,
texts become zeros of the right length. The functions of a `shapes:` bundle answer shapes with
shapes, so that a job which embeds the empty prompt while it is built can be built of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdd_jax.models import hub
from sdd_jax.models.bundle import Tokenize, expected_shapes, init_params, make_bundle
from sdd_jax.models.published import PUBLISHED
from sdd_jax.models.tokenizer import load_tokenizer
from sdd_jax.types import ModelBundle, Params

KINDS = ("shapes", "random")
READS_GUIDANCE, GUIDANCE_EMBEDDING = "+w", 512
_CLIP_LENGTH = 77


def described(name: str) -> tuple[str, str] | None:
    """Splits `shapes:NAME` and `random:NAME` into kind and NAME; None for every other name."""
    kind, colon, rest = name.partition(":")
    return (kind, rest) if colon and kind in KINDS else None


def load_described(
    name: str, dtype: DTypeLike = jnp.float32, *, param_dtype: DTypeLike | None = None, remat: str = "none"
) -> tuple[ModelBundle, Params]:
    """Does for `shapes:NAME` and `random:NAME` what `load.load` does for weights.

    Raises:
        FileNotFoundError: NAME is neither published nor a directory.
        ValueError: naming a config field that is not supported.
    """
    kind, model = described(name) or ("", name)
    base = model.removesuffix(READS_GUIDANCE)
    configs = read_configs(base)
    if base != model:
        configs["unet"] = {**configs["unet"], "time_cond_proj_dim": GUIDANCE_EMBEDDING}
    tokenizers = [tokenizer_of(base, configs, part) for part in hub.NETWORKS[2:] if part in configs]
    bundle = make_bundle(configs, *tokenizers, dtype=dtype, remat=remat, source=name, content_hash=name)
    stored = param_dtype or dtype
    if kind == "random":
        return bundle, jax.tree.map(lambda x: x.astype(stored), init_params(configs, jax.random.key(0)))
    bundle = dataclasses.replace(
        bundle,
        denoise=on_shapes(bundle.denoise),
        moments=on_shapes(bundle.moments),
        encode=on_shapes(bundle.encode),
        decode=on_shapes(bundle.decode),
        embed_text=on_shapes(bundle.embed_text),
    )
    return bundle, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, stored), expected_shapes(configs))


def read_configs(name: str) -> dict[str, Mapping[str, Any]]:
    """Returns the configs of a published model by its hub id, or of a directory in diffusers format.

    Raises:
        FileNotFoundError: neither; the message lists the published ones.
    """
    if name in PUBLISHED:
        return {**PUBLISHED[name]}
    root = hub.PORTRAITS if name == "portraits" else Path(name)
    if not root.is_dir():
        raise FileNotFoundError(f"{name} is no directory and not a published model that is known: {[*PUBLISHED]}")
    configs = {part: hub.read_json(root / part / "config.json") for part in hub.NETWORKS if (root / part).is_dir()}
    return {**configs, "scheduler": hub.read_json(root / "scheduler" / "scheduler_config.json")}


def tokenizer_of(name: str, configs: Mapping[str, Mapping[str, Any]], part: str) -> Tokenize:
    """The tokenizer beside a directory's text encoder `part`; for other models, zeros of the encoder's length."""
    directory = (hub.PORTRAITS if name == "portraits" else Path(name)) / part.replace("text_encoder", "tokenizer")
    if directory.is_dir():
        return load_tokenizer(directory)
    length = configs[part].get("max_position_embeddings", _CLIP_LENGTH)

    def zeros(texts: Sequence[str]) -> np.ndarray:
        return np.zeros((len(texts), length), np.int32)

    return zeros


def on_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; where an argument holds a `jax.ShapeDtypeStruct`, the shapes of its result."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args, kwargs))
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            return jax.eval_shape(function, *args, **kwargs)
        return function(*args, **kwargs)

    return call
