"""The embedded world measured against its targets, on held-out portraits: figures, and a grid to look at."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.records import PortraitSource, nuisance_targets, to_float
from sdd_jax.diffusion.guidance import guided
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import sampling_times
from sdd_jax.evals.instruments import autoencoded, in_batches
from sdd_jax.evals.teacher import (
    Generation,
    best_scale,
    clip_targets,
    generation_figures,
    instrument_targets,
    report,
)
from sdd_jax.images import write_grid
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.load import load
from sdd_jax.models.text import CLIPTextEncoder, TextConfig
from sdd_jax.models.towers import embed_caption
from sdd_jax.sampling.generate import initial_noise, sample
from sdd_jax.types import ModelBundle, Params

STEPS = 50
BATCH = 32
SHOWN = 12
_log = logging.getLogger("sdd_jax")


def report_world(name: str, samples: int, guidance_scales: Sequence[float], seed: int, out: Path) -> str:
    """Measures a world; writes `OUT/world.json` and `OUT/samples.png` and returns the report as a table."""
    world = world_directory(name)
    bundle, params = load(world)
    instruments = read_instruments(world)
    chosen = [portraits.portrait(i) for i in portraits.split_indices("heldout")[:samples]]
    labels = np.stack([portraits.labels(p.attributes) for p in chosen])
    source = PortraitSource("heldout", samples, cached=False)
    images = np.stack([to_float(source[i]["image"]) for i in range(samples)])
    attributes = tuple(portraits.VOCABULARY)

    recon = autoencoded(bundle, params["vae"], images, BATCH)
    rows = instrument_targets(instruments, attributes, images, recon, labels)
    _log.info("instruments and autoencoder measured on %d portraits", samples)

    embed = caption_embedder(bundle, params, instruments.clip[1])
    captions = embed([portraits.caption(p.attributes) for p in chosen])
    edited = {
        attribute: (
            np.stack(
                [
                    embed([portraits.caption(portraits.counterfactual(p, attribute, v).attributes) for p in chosen])
                    for v in values
                ],
                axis=1,
            ),
            labels[:, i],
        )
        for i, (attribute, values) in enumerate(portraits.VOCABULARY.items())
    }
    rows += clip_targets(instruments.read(images).embedding, captions, edited)
    _log.info("CLIP measured")

    draw = _generator(bundle, params, [portraits.caption(p.attributes) for p in chosen], seed)
    nuisance = np.stack([nuisance_targets(p.index) for p in chosen])
    drawn = {w: draw(w) for w in guidance_scales}
    found = generation_figures(instruments, drawn.__getitem__, guidance_scales, labels, images, nuisance)
    best = best_scale(found)
    rows += found[best].targets(best)
    write_grid(
        out / "samples.png",
        [x[:SHOWN] for x in (images, recon, *drawn.values())],
        ["held out", "autoencoder", *(f"w = {w:g}" for w in drawn)],
    )
    figures = {"model": bundle.source, "content_hash": bundle.content_hash, "samples": samples, "seed": seed}
    figures |= {"figures": {row.name: row.value for row in rows}, "best_guidance": best}
    figures["text_to_image"] = {
        f"{w:g}": {"accuracy": x.accuracy.tolist(), "diversity": x.diversity.tolist()} for w, x in found.items()
    }
    (out / "world.json").write_text(json.dumps(figures, indent=2) + "\n")
    return "\n\n".join([report(rows), _generation_table(found)])


def _generation_table(found: Mapping[float, Generation]) -> str:
    columns = [*portraits.VOCABULARY, "mean", "diversity"]
    lines = [f"| text-to-image | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for w, figures in found.items():
        values = [*figures.accuracy, figures.accuracy.mean()]
        spread = f"{figures.diversity.min():.2f} .. {figures.diversity.max():.2f}"
        lines.append(f"| w = {w:g} | {' | '.join(f'{v:.3f}' for v in values)} | {spread} |")
    return "\n".join(lines)


def caption_embedder(bundle: ModelBundle, params: Params, clip: Params) -> Callable[[Sequence[str]], np.ndarray]:
    """Returns captions -> their embeddings f32[n,e] by a world's CLIP."""
    text = CLIPTextEncoder(TextConfig.from_json(bundle.configs["text_encoder"]))

    @jax.jit
    def embed_ids(ids: jax.Array) -> tuple[jax.Array]:
        states: Any = text.apply({"params": params["text_encoder"]}, ids)
        return (embed_caption(clip, states.pooled),)

    def embed(captions: Sequence[str]) -> np.ndarray:
        return np.concatenate([x for (x,) in in_batches(embed_ids, bundle.tokenize(captions), 64)])

    return embed


def _generator(
    bundle: ModelBundle, params: Params, captions: Sequence[str], seed: int
) -> Callable[[float], np.ndarray]:
    schedule, times = Schedule(bundle.alphas_cumprod), sampling_times(STEPS)
    size, ids = bundle.sample_size, bundle.tokenize(captions)
    null_context = bundle.embed_text(params, jnp.asarray(bundle.tokenize([""])))[0]

    @jax.jit
    def run(params: Params, ids: jax.Array, noise: jax.Array, w: jax.Array) -> jax.Array:
        context, _ = bundle.embed_text(params, ids)
        network = guided(functools.partial(bundle.denoise, params["unet"]), null_context)
        z = sample(lambda z, t: network(z, t, context, w), noise, times, schedule, bundle.prediction)
        return bundle.decode(params["vae"], z)

    def draw(w: float) -> np.ndarray:
        noise = np.asarray(initial_noise(jax.random.key(seed), (len(ids), size, size, bundle.latent_channels)))
        parts = []
        for start in range(0, len(ids), BATCH):
            part = slice(start, start + BATCH)
            parts.append(np.asarray(run(params, jnp.asarray(ids[part]), noise[part], jnp.float32(w))))
            _log.info("w = %g: %d of %d samples", w, min(start + BATCH, len(ids)), len(ids))
        return np.concatenate(parts)

    return draw
