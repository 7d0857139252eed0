"""Towers: shapes, files, and what a damaged file says."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.command import is_ours
from sdd_jax.models.towers import (
    TowerConfig,
    apply_tower,
    embed_caption,
    embed_image,
    init_tower,
    load_tower,
    save_tower,
    split_logits,
    unit,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
TOWER = TowerConfig(widths=(4, 8), strides=(2, 1), outputs=5, groups=2, image_size=8)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: init_tower(key, TOWER))(jax.random.key(0))


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (3, 8, 8, 3), minval=-1)


@pytest.fixture
def saved(tmp_path, params):
    save_tower(tmp_path / "classifier", TOWER, params, {"attributes": {"pose": ["left", "right"]}})
    return tmp_path / "classifier"


def test_outputs_and_maps(params, image):
    outputs, maps = apply_tower(TOWER, params, image)
    assert outputs.shape == (3, 5) and [m.shape for m in maps] == [(3, 4, 4, 4), (3, 4, 4, 8)]
    shifted = apply_tower(TOWER, params, jnp.roll(image, 2, axis=1))[0]
    assert float(jnp.abs(outputs - shifted).max()) > 1e-3, "positions are kept"


def test_logits_are_cut_by_attribute():
    parts = split_logits(jnp.arange(12.0).reshape(2, 6), (1, 3, 2))
    assert [part.tolist() for part in parts] == [
        [[0.0], [6.0]], [[1.0, 2.0, 3.0], [7.0, 8.0, 9.0]], [[4.0, 5.0], [10.0, 11.0]],
    ]  # fmt: skip


def test_embeddings_have_unit_length(params, image):
    np.testing.assert_allclose(jnp.linalg.norm(embed_image(TOWER, {"image": params}, image), axis=-1), 1, rtol=1e-5)
    kernel = jnp.asarray([[0.0, 2.0], [3.0, 0.0]])
    found = embed_caption({"text_projection": {"kernel": kernel}}, jnp.asarray([[1.0, 0.0], [0.0, 5.0]]))
    np.testing.assert_allclose(found, [[0, 1], [1, 0]], atol=1e-6)
    assert unit(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.float32
    assert bool(jnp.isfinite(unit(jnp.zeros((1, 3)))).all())


def test_a_saved_tower_comes_back_in_half_precision(saved, params):
    config, loaded, facts = load_tower(saved)
    assert config == TOWER and facts == {"attributes": {"pose": ["left", "right"]}}
    assert jax.tree.structure(loaded) == jax.tree.structure(params)

    def check(found, want):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.asarray(want, np.float16).astype(np.float32))

    jax.tree.map(check, loaded, params)
    assert (saved / "model.safetensors").stat().st_size < 2 * sum(x.size for x in jax.tree.leaves(params)) + 2000


def test_a_clips_parts_come_back(tmp_path, params):
    clip = {
        "image": params,
        "text_projection": {"kernel": jnp.arange(6.0).reshape(2, 3)},
        "logit_scale": jnp.asarray(2.5, jnp.float32),
    }
    save_tower(tmp_path, TOWER, clip)
    loaded = load_tower(tmp_path)[1]
    assert jax.tree.structure(loaded) == jax.tree.structure(clip)
    np.testing.assert_array_equal(loaded["text_projection"]["kernel"], clip["text_projection"]["kernel"])
    assert loaded["logit_scale"].shape == () and loaded["logit_scale"] == 2.5


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: os.truncate(d / "model.safetensors", 300), ValueError, "model.safetensors is damaged"),
        (lambda d: os.truncate(d / "model.safetensors", 0), ValueError, "model.safetensors is damaged"),
        (lambda d: os.truncate(d / "config.json", 20), ValueError, "config.json is not valid JSON"),
        (lambda d: (d / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors is missing"),
        (lambda d: (d / "config.json").unlink(), FileNotFoundError, "config.json is missing"),
        (lambda d: edit(d / "config.json", strides=[2]), ValueError, "2 widths, 1 strides"),
        (lambda d: edit(d / "config.json", outputs=6), ValueError, "does not fit its config.json: .*head"),
    ],
)
def test_a_damaged_tower_is_one_line(saved, spoil, error, message):
    spoil(saved)
    with pytest.raises(error, match=message) as caught:
        load_tower(saved)
    assert "\n" not in str(caught.value) and is_ours(caught.value)


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
