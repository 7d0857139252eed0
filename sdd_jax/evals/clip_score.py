"""CLIP scores: how well images fit texts, and how well an edit goes the way its texts say.

With i the image and t the text embedding (`models.clip_vision`), all differences and cosines in float64,

    CLIP-T = cos(i, t)                                           Hessel et al. 2021, arXiv:2104.08718, before scaling
    CLIP-I = cos(i_edited, i_source)
    CLIP-D = cos(i_edited - i_source, t_target - t_source)       of unit i and t: Gal et al. 2021, arXiv:2108.00946

Papers print CLIP-T as the cosine (.32), times 100 (32), or times 2.5 (CLIPScore's w); this is the cosine. One per
sample; `CLIPScorer` embeds streams of images and texts over all devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from sdd_jax.evals.preprocess import CLIP as PREPROCESS
from sdd_jax.evals.preprocess import AnyImage, prepared
from sdd_jax.evals.streaming import ShardedApply
from sdd_jax.models.clip_vision import CLIP, embed_image, embed_text, load_clip
from sdd_jax.models.tokenizer import Tokenizer, load_tokenizer


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine, float64 [n], of paired embeddings [n, e]; nan where one is zero. ValueError for other shapes."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"scores compare two [n, e] arrays of one shape; got {a.shape} and {b.shape}")
    return np.sum(unit(a) * unit(b), axis=1)


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings [n, e] scaled to length 1, float64; nan for a zero vector."""
    embeddings = np.asarray(embeddings, np.float64)
    with np.errstate(invalid="ignore"):
        return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


def directional_similarity(
    source_images: np.ndarray, edited_images: np.ndarray, source_texts: np.ndarray, target_texts: np.ndarray
) -> np.ndarray:
    """CLIP-D, float64 [n], of embeddings [n, e]; nan where image or text did not change."""
    return cosine(unit(edited_images) - unit(source_images), unit(target_texts) - unit(source_texts))


class CLIPScorer:
    """A CLIP with its tokenizer as two streams, images and texts to embeddings, over the devices of this process.

    Args:
      clip: the networks, from `load_clip`.
      tokenize: list of str -> ids i32[n, length], CLIP's own.
      batch: images or texts per step.
    """

    def __init__(
        self, clip: CLIP, tokenize: Tokenizer, *, batch: int = 32, devices: Sequence[jax.Device] | None = None
    ):
        self._tokenize = tokenize
        self._size = clip.vision.image_size
        self._images = ShardedApply(
            lambda params, pixels: embed_image(clip.vision, params, pixels),
            clip.params["vision"],
            batch=batch,
            devices=devices,
        )
        self._texts = ShardedApply(
            lambda params, ids: embed_text(clip.text, params, ids), clip.params["text"], batch=batch, devices=devices
        )

    @classmethod
    def load(cls, directory: str | Path, *, batch: int = 32, devices: Sequence[jax.Device] | None = None) -> CLIPScorer:
        """From a directory of transformers' CLIP with its tokenizer; errors as `load_clip` and `load_tokenizer`."""
        return cls(load_clip(directory), load_tokenizer(directory), batch=batch, devices=devices)

    def embed_images(self, images: Iterable[AnyImage | str | Path]) -> np.ndarray:
        """Embeddings f32[n,e] of images or paths of any sizes."""
        return self._images.all(prepared(images, PREPROCESS.to_size(self._size)))

    def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
        """Embeddings f32[n,e] of texts, cut to CLIP's 77 tokens with a warning."""

        def ids() -> Iterator[np.ndarray]:
            for text in texts:
                yield self._tokenize([text])[0]

        return self._texts.all(ids())

    def score(self, images: Iterable[AnyImage | str | Path], texts: Sequence[str]) -> np.ndarray:
        """CLIP-T, float64 [n], of paired images and texts."""
        return cosine(self.embed_images(images), self.embed_texts(texts))
