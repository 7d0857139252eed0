"""Where an edit went, as a CLIP sees it: on the embedded world's CLIP or on a published one.

With i the image and t the text embeddings, before (s) and after (e) an edit,

| score | what | papers |
| --- | --- | --- |
| `clip_score` | cos(i_e, t_e): does the result show what its text says | Hessel et al. 2021; SDD's tables |
| `clip_directional` | cos(i_e - i_s, t_e - t_s): did the image move as the text did | Gal et al. 2021 |
| `clip_image` | cos(i_e, i_s): is it still the same picture | |

Means over images. An image that did not change at all has moved nowhere: its directional score is 0.

`TowerScorer` embeds with the world's towers; `clip_score.CLIPScorer` with CLIP networks of transformers' format. CLIP
guidance trains on the very network that `TowerScorer` reads: its scores there are not evidence, the classifier's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from sdd_jax.evals.clip_score import cosine, directional_similarity
from sdd_jax.evals.instruments import Tower, in_batches
from sdd_jax.models.text import CLIPTextEncoder, TextConfig
from sdd_jax.models.tokenizer import Tokenizer
from sdd_jax.models.towers import embed_caption, embed_image
from sdd_jax.types import Params

COLUMNS = ("clip_score", "clip_directional", "clip_image")


class Scorer(Protocol):
    """A CLIP as two functions, to embeddings f32[n,e]; `clip_score.CLIPScorer` is one."""

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Of images f32[n,H,W,3] in [-1, 1]."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Of texts."""
        ...


class TowerScorer:
    """The embedded world's CLIP.

    Args:
      clip: its tower. text, text_params: the text encoder that it projects. tokenize: list of str -> ids i32[n,k].
      batch: images or texts at a time.
    """

    def __init__(self, clip: Tower, text: TextConfig, text_params: Params, tokenize: Tokenizer, batch: int = 64):
        tower, params = clip
        encoder = CLIPTextEncoder(text)

        @jax.jit
        def images(image: jax.Array) -> tuple[jax.Array]:
            return (embed_image(tower, params, image),)

        @jax.jit
        def texts(ids: jax.Array) -> tuple[jax.Array]:
            states: Any = encoder.apply({"params": text_params}, ids)
            return (embed_caption(params, states.pooled),)

        self._images, self._texts, self._tokenize, self._batch = images, texts, tokenize, batch

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Unit embeddings f32[n,e] of images f32[n,H,W,3], clipped to [-1, 1]."""
        clipped = np.clip(images, -1.0, 1.0).astype(np.float32)
        return np.concatenate([out for (out,) in in_batches(self._images, clipped, self._batch)])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings f32[n,e] of texts."""
        return np.concatenate([out for (out,) in in_batches(self._texts, self._tokenize(list(texts)), self._batch)])


def directional_scores(
    scorer: Scorer, originals: np.ndarray, edits: np.ndarray, source: Sequence[str], target: Sequence[str]
) -> dict[str, float]:
    """The table above for n originals and edits f32[n,H,W,3] and their texts before and after.

    Raises:
        ValueError: different numbers of images or texts.
    """
    if not len(originals) == len(edits) == len(source) == len(target):
        raise ValueError(
            f"an edit has an image and a text before and after: got {len(originals)}, {len(edits)} images and "
            f"{len(source)}, {len(target)} texts"
        )
    before, after = scorer.embed_images(originals), scorer.embed_images(edits)
    said, asked = scorer.embed_texts(source), scorer.embed_texts(target)
    moved = np.nan_to_num(directional_similarity(before, after, said, asked), nan=0.0)
    return {
        "clip_score": float(np.mean(cosine(after, asked))),
        "clip_directional": float(np.mean(moved)),
        "clip_image": float(np.mean(cosine(after, before))),
    }
