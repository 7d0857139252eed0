"""How well a restorer restores: fidelity to the original, realism, and whether the portrait is still the same one.

| metric | better | what |
| --- | --- | --- |
| psnr, ssim | higher | agreement of pixels with the original |
| clip_distance | lower | 1 - cosine of the CLIP image embeddings of output and original |
| frechet | lower | Frechet distance between the outputs' and the originals' CLIP embeddings, times 100 |
| attributes | higher | share of attributes that the classifier reads off the output as they truly are |
| identity | higher | share of outputs whose nearest picture, among 64 of the same caption, is their own original |

Embeddings are of the world's own CLIP. The Frechet distance of n samples is biased upwards: compare at equal n only.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from sdd_jax.evals.conditional import SHARED, shared_metrics
from sdd_jax.evals.image_metrics import retrieval_accuracy
from sdd_jax.evals.instruments import Instruments

COLUMNS = (*SHARED, "identity")


def restoration_metrics(
    instruments: Instruments, outputs: np.ndarray, originals: np.ndarray, labels: np.ndarray, rivals: np.ndarray
) -> dict[str, float]:
    """The table above for `outputs` f32[n,H,W,3] in [-1, 1] of `originals`, whose attributes are `labels` i32[n,a].

    Args:
        rivals: f32[n,m,H,W,3], other portraits of the same caption as each original.
    """
    metrics, _ = shared_metrics(instruments, outputs, originals, labels)
    candidates = jnp.asarray(np.concatenate([originals[:, None], rivals], axis=1))
    flat = candidates.reshape(*candidates.shape[:2], -1)
    found = jnp.clip(jnp.asarray(outputs), -1.0, 1.0).reshape(len(outputs), -1)
    identity = [float(retrieval_accuracy(found[i : i + 1], flat[i : i + 1])) for i in range(len(outputs))]
    return {**metrics, "identity": float(np.mean(identity))}


def table(rows: Mapping[str, Mapping[str, float]], columns: tuple[str, ...] = COLUMNS) -> str:
    """Formats metrics as a Markdown table, one row a method."""
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name, metrics in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{metrics[c]:.4g}' for c in columns)} |")
    return "\n".join(lines)
