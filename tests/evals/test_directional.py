"""Directional CLIP scores by hand, and the world's CLIP as a scorer."""

import jax
import numpy as np
import pytest
from tiny import TEXT, TOWER, draw_tower

from sdd_jax.evals.directional import TowerScorer, directional_scores
from sdd_jax.evals.instruments import Tower
from sdd_jax.models.text import CLIPTextEncoder, TextConfig
from sdd_jax.models.towers import TowerConfig

pytestmark = pytest.mark.usefixtures("compile_quickly")
CAT, LION = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]


class Known:
    """Images are embedded as their mean colour, texts as listed."""

    texts = {"a cat": CAT, "a lion": LION}

    def embed_images(self, images):
        return images.mean((1, 2))

    def embed_texts(self, texts):
        return np.asarray([self.texts[text] for text in texts])


def pictures(*colours):
    return np.asarray(colours, np.float32)[:, None, None] * np.ones((1, 2, 2, 1), np.float32)


def test_scores_by_hand():
    before = pictures(CAT, CAT, CAT)
    after = pictures(LION, CAT, [0, 0, 1])
    found = directional_scores(Known(), before, after, ["a cat"] * 3, ["a lion"] * 3)
    assert found["clip_score"] == pytest.approx(1 / 3)
    assert found["clip_directional"] == pytest.approx((1 + 0 + 0.5) / 3), "right, unchanged, and half right"
    assert found["clip_image"] == pytest.approx(1 / 3)


def test_pairs_must_be_complete():
    with pytest.raises(ValueError, match="got 2, 1 images and 2, 2 texts"):
        directional_scores(Known(), pictures(CAT, CAT), pictures(CAT), ["a cat"] * 2, ["a cat"] * 2)


def test_the_worlds_clip_embeds_in_batches():
    rng = np.random.default_rng(0)
    tower = TowerConfig(**TOWER, outputs=8)
    clip: Tower = (
        tower,
        {"image": draw_tower(rng, tower), "text_projection": {"kernel": rng.normal(size=(16, 8)).astype(np.float32)}},
    )
    text = TextConfig(**{k: v for k, v in TEXT.items() if k != "projection_dim"}, vocab_size=9, eos_token_id=8)
    shapes = jax.eval_shape(CLIPTextEncoder(text).init, jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    params = jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(np.float32), shapes)
    ids = {"ab": [1, 2, 8, 8], "b": [2, 8, 8, 8], "c": [3, 1, 5, 8]}
    scorer = TowerScorer(clip, text, params, lambda texts: np.asarray([ids[x] for x in texts], np.int32), batch=2)
    images = rng.uniform(-1.5, 1.5, (3, 64, 64, 3)).astype(np.float32)
    seen, said = scorer.embed_images(images), scorer.embed_texts(["ab", "b", "c"])
    assert seen.shape == said.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, rtol=1e-4)
    np.testing.assert_allclose(seen, scorer.embed_images(np.clip(images, -1, 1)), rtol=1e-5)
    np.testing.assert_allclose(said[1], scorer.embed_texts(["b"])[0], rtol=1e-3, atol=1e-5)
    assert np.abs(said[0] - said[1]).max() > 1e-3
