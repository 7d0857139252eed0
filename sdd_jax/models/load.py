"""Models in diffusers format from their files: `load` for a whole one, `load_controlnet`, `read_component` for a part.

    bundle, params = load("portraits")                    the embedded teacher; a directory; a hub id 'owner/name'
    bundle, shapes = load("shapes:owner/name")            without weight files (`models.described`)
    controlnet, params = load_controlnet("exported/controlnet")

`params` of a model has the keys `unet`, `vae`, `text_encoder` (and `text_encoder_2`), named after diffusers' state
dicts; what is done with them is `models.bundle`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sdd_jax.models import convert, hub
from sdd_jax.models.bundle import Configs, make_bundle, part_shapes
from sdd_jax.models.controlnet import ControlNetModel, init_controlnet, make_controlnet
from sdd_jax.models.described import described, load_described
from sdd_jax.models.tokenizer import load_tokenizer
from sdd_jax.types import ModelBundle, Params

log = logging.getLogger(__name__)


def load(
    name: str | Path,
    revision: str | None = None,
    dtype: DTypeLike = jnp.float32,
    *,
    param_dtype: DTypeLike | None = None,
    remat: str = "none",
    on_host: bool = False,
) -> tuple[ModelBundle, Params]:
    """Loads a model in diffusers format.

    Args:
      name: "portraits", a directory, a hub id, or a model without weights (`models.described`).
      revision: of a hub id.
      dtype: compute dtype, float32 or bfloat16.
      param_dtype: the dtype parameters are stored in; `dtype` unless given (float32 for training in bfloat16).
      remat: what the UNet's backward pass recomputes: "none", "dots" or "block".
      on_host: leave parameters as NumPy arrays, for a caller that shards them itself.

    Raises:
      FileNotFoundError, ValueError: one line, naming the file (and config field) that is missing, damaged, a pickle,
        not supported, or does not fit its config.
    """
    if described(str(name)):
        return load_described(str(name), dtype, param_dtype=param_dtype, remat=remat)
    root, source = hub.resolve(name, revision)
    index = hub.read_json(root / "model_index.json")
    texts = _text_encoders(index)
    configs: dict[str, Mapping[str, Any]] = {"model_index": index}
    for part in ("unet", "vae", *texts):
        if not isinstance(index.get(part), list) or None in index[part]:
            raise ValueError(f"{root}/model_index.json has no {part!r}: {index.get('_class_name')} is not supported")
        configs[part] = hub.read_json(root / part / "config.json")
    configs["scheduler"] = hub.read_json(root / "scheduler" / "scheduler_config.json")
    tokenizers = [load_tokenizer(root / part.replace("text_encoder", "tokenizer")) for part in texts]
    parts = [part for part in hub.NETWORKS if part in configs]
    hashed = hub.content_hash([file for part in parts for file in hub.weight_files(root / part)], root)
    bundle = make_bundle(configs, *tokenizers, dtype=dtype, remat=remat, source=source, content_hash=hashed)
    params = {part: read_component(root, configs, part, param_dtype or dtype, on_host) for part in parts}
    log.info("model %s: %s, predicts %s, weights %s", source, index.get("_class_name"), bundle.prediction, hashed[:12])
    return bundle, params


def read_component(
    root: Path, configs: Configs, part: str, dtype: DTypeLike = jnp.float32, on_host: bool = False
) -> Params:
    """Loads one part ("vae", "text_encoder", ...) of a model directory, checked against `configs`, as `load` does."""
    expected = part_shapes(configs, part)
    found, source = hub.read_weights(root / part)
    if "text_model" in expected and "text_model" not in found:
        # transformers 5 writes CLIPTextModel without the prefix that published files have
        found = {"text_model": found}
    params = convert.match(found, expected, source)
    place = np.ascontiguousarray if on_host else jnp.asarray
    return jax.tree.map(lambda x: place(x.astype(jnp.dtype(dtype))), params)


def load_controlnet(directory: str | Path, dtype: DTypeLike = jnp.float32) -> tuple[ControlNetModel, Params]:
    """Loads a ControlNet that diffusers or `sdd_jax.export` wrote.

    `controlnet.apply({"params": params}, z, t, context, condition)` gives the `residuals` of a bundle's `denoise`; the
    condition is in [0, 1].

    Raises:
      FileNotFoundError, ValueError: as `load`, and for a directory of another network.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no directory: give a ControlNet's, with its config.json and weights")
    config = hub.read_json(root / "config.json")
    if config.get("_class_name", "ControlNetModel") != "ControlNetModel":
        raise ValueError(f"{root}/config.json describes a {config['_class_name']}, not a ControlNetModel")
    controlnet = make_controlnet(config, dtype=dtype)
    found, source = hub.read_weights(root)
    params = convert.match(found, jax.eval_shape(lambda: init_controlnet(controlnet, jax.random.key(0))), source)
    return controlnet, jax.tree.map(lambda x: jnp.asarray(x, jnp.dtype(dtype)), params)


def _text_encoders(index: Mapping[str, Any]) -> list[str]:
    second = index.get("text_encoder_2")
    return ["text_encoder", "text_encoder_2"] if second and None not in second else ["text_encoder"]
