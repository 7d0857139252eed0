"""Job of the world's CLIP: tokenizer, text encoder and image tower, trained contrastively on captioned portraits."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdd_jax.config import validate
from sdd_jax.data import portraits
from sdd_jax.data.records import contrasted
from sdd_jax.jobs.streams.portraits import PortraitData, portrait_stream
from sdd_jax.jobs.world.directory import tower_config
from sdd_jax.models.save import save_component
from sdd_jax.models.text import CLIPTextEncoder, TextConfig
from sdd_jax.models.tokenizer import Tokenizer, train_tokenizer
from sdd_jax.models.towers import save_tower
from sdd_jax.objectives.contrastive import Contrastive
from sdd_jax.train import Job
from sdd_jax.types import Params


def clip(config: ConfigDict) -> Job:
    """Trains the CLIP; the vocabulary is learned from the captions' grammar when the job is built (a second)."""
    data = validate(config.data, PortraitData, "config.data")
    if data.negatives < 1:
        raise ValueError("config.data.negatives=0: the contrastive loss reads counterfactual captions; give at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = train_tokenizer(portraits.caption_corpus(), out_dir=scratch, **config.tokenizer)
        text_config = text_encoder_config(config.text_encoder, tokenizer)
        text = CLIPTextEncoder(TextConfig.from_json(text_config, "config.text_encoder"))
    tower = tower_config(config)

    def init_text(rng: jax.Array) -> Params:
        return text.init(rng, jnp.zeros((1, tokenizer.max_length), jnp.int32))["params"]

    def embed_text(params: Params, ids: jax.Array) -> jax.Array:
        states: Any = text.apply({"params": params}, ids)
        return states.pooled

    settings = {
        **config.objective,
        "tower": tower,
        "init_text": init_text,
        "embed_text": embed_text,
        "text_width": text_config["hidden_size"],
    }

    def export(params: Params, directory: Path) -> None:
        save_component(params["text_encoder"], text_config, directory / "text_encoder", "CLIPTextModel", np.float16)
        train_tokenizer(portraits.caption_corpus(), out_dir=directory / "tokenizer", **config.tokenizer)
        save_tower(directory / "clip", tower, {k: v for k, v in params.items() if k != "text_encoder"})

    return Job(
        name="CLIP on captioned portraits",
        objective=validate(settings, Contrastive, "config.objective"),
        frozen={},
        stream=portrait_stream(config, contrasted(tokenizer, data.negatives)),
        previews=None,
        batch_size=config.batch_size,
        config=config,
        fingerprint={},
        export=export,
    )


def text_encoder_config(section: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the `config.json` of a text encoder: the config's section, with what the tokenizer fixes."""
    return {
        **section,
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": tokenizer.max_length,
        "bos_token_id": tokenizer.eos_token_id - 1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
