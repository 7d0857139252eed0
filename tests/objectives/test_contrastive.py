"""The contrastive loss against numpy, and the negatives that must not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models.towers import TowerConfig, embed_image
from sdd_jax.objectives.contrastive import Contrastive

pytestmark = pytest.mark.usefixtures("compile_quickly")
WIDTH, EMBEDDING, VOCABULARY = 6, 5, 11
METHOD = Contrastive(
    tower=TowerConfig(widths=(4,), strides=(4,), outputs=EMBEDDING, groups=2, image_size=8),
    init_text=lambda rng: {"table": jax.random.normal(rng, (VOCABULARY, WIDTH))},
    embed_text=lambda params, ids: params["table"][ids].mean(1),
    text_width=WIDTH,
)
STEP = jax.jit(jax.value_and_grad(lambda p, b: METHOD.loss(p, {}, b, jax.random.key(0), jnp.asarray(0)), has_aux=True))


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: METHOD.init(key, {}))(jax.random.key(0))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    ids = np.stack([np.full(3, i) for i in range(4)])  # four different captions
    negatives = rng.integers(0, VOCABULARY, (4, 2, 3))
    return {
        "image": jnp.asarray(rng.uniform(-1, 1, (4, 8, 8, 3)), jnp.float32),
        "input_ids": jnp.asarray(ids),
        "negative_ids": jnp.asarray(negatives),
    }


def by_hand(params, batch, masked_pairs=(), masked_negatives=()):
    """The loss in float64 numpy; masked entries are left out of the sums."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    images = np.asarray(embed_image(METHOD.tower, params, batch["image"]), np.float64)
    table, projection = (
        np.asarray(p, np.float64) for p in (params["text_encoder"]["table"], params["text_projection"]["kernel"])
    )
    text = lambda ids: unit(table[np.asarray(ids)].mean(-2) @ projection)  # noqa: E731
    scale = np.exp(float(params["logit_scale"]))
    within = scale * images @ text(batch["input_ids"]).T
    against = scale * np.einsum("bd,bkd->bk", images, text(batch["negative_ids"]))
    keep, keep_negative = np.ones_like(within), np.ones_like(against)
    for i, j in masked_pairs:
        keep[i, j] = 0
    for i, k in masked_negatives:
        keep_negative[i, k] = 0
    rows = np.log((np.exp(within) * keep).sum(1) + (np.exp(against) * keep_negative).sum(1)) - np.diag(within)
    columns = np.log((np.exp(within) * keep).sum(0)) - np.diag(within)
    return 0.5 * (rows.mean() + columns.mean()), within, against


def loss_of(params, batch):
    (loss, metrics), grads = STEP(params, batch)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    return loss, metrics


def test_the_loss_and_its_metrics(params, batch):
    loss, metrics = loss_of(params, batch)
    want, within, against = by_hand(params, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["retrieval"], np.mean(within.argmax(1) == np.arange(4)))
    np.testing.assert_allclose(metrics["negatives"], np.mean(np.diag(within) > against.max(1)))


def test_captions_equal_to_the_positive_are_not_negatives(params, batch):
    batch["input_ids"] = batch["input_ids"].at[2].set(batch["input_ids"][0])
    batch["negative_ids"] = batch["negative_ids"].at[1, 0].set(batch["input_ids"][1])
    loss, _ = loss_of(params, batch)
    want, _, _ = by_hand(params, batch, [(0, 2), (2, 0)], [(1, 0)])
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    assert abs(float(loss) - by_hand(params, batch)[0]) > 1e-3


def test_the_temperature_is_capped(params, batch):
    hot = {**params, "logit_scale": jnp.asarray(50.0, jnp.float32)}
    capped = {**params, "logit_scale": jnp.asarray(METHOD.max_logit_scale, jnp.float32)}
    assert loss_of(hot, batch)[0] == loss_of(capped, batch)[0]


def test_initial_parameters_are_plain_float32(params):
    leaves = jax.tree.leaves(params)
    assert all(leaf.dtype == jnp.float32 and not leaf.weak_type for leaf in leaves), "a weak type recompiles the step"
    assert set(params) == {"text_encoder", "image", "text_projection", "logit_scale"}


def test_embeddings_have_unit_length(params, batch):
    captions = METHOD.embed_captions(params, batch["input_ids"])
    np.testing.assert_allclose(jnp.linalg.norm(captions, axis=-1), 1.0, rtol=1e-5)
