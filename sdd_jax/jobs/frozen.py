"""What jobs read of a loaded model and never train: its weights by their roles, and the empty prompt's states."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sdd_jax.types import Frozen, ModelBundle, Params


def weights_of(model: ModelBundle, params: Params) -> Frozen:
    """A loaded model's `teacher`, `vae` and `text`."""
    text = {name: value for name, value in params.items() if name.startswith("text_encoder")}
    return {"teacher": {"unet": params["unet"]}, "vae": params["vae"], "text": text}


def with_null_text(model: ModelBundle, frozen: Frozen) -> Frozen:
    """`frozen` with what guidance and caption dropout read: `null_context` f32[1,n,d], and SDXL's `null_pooled`.

    Without a prompt SDXL reads zeros in place of the empty prompt's states, as its `model_index.json` says.
    """
    second = None if model.tokenize_2 is None else model.tokenize_2([""])
    context, pooled = model.embed_text(frozen["text"], model.tokenize([""]), second)
    if pooled is None:
        return {**frozen, "null_context": context}
    if model.configs.get("model_index", {}).get("force_zeros_for_empty_prompt", True):
        context, pooled = (x if isinstance(x, jax.ShapeDtypeStruct) else jnp.zeros_like(x) for x in (context, pooled))
    return {**frozen, "null_context": context, "null_pooled": pooled}
