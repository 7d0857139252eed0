"""Instruments read what their towers say, in any batch size."""

import jax
import numpy as np
import pytest

from sdd_jax.evals.instruments import in_batches
from sdd_jax.jobs.world.directory import SIZES, read_instruments, read_tower
from sdd_jax.models.towers import apply_tower, embed_image

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def instruments(tiny_world):
    return read_instruments(tiny_world)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1.5, 1.5, (5, 64, 64, 3)).astype(np.float32)


def test_readings_are_the_towers_of_clipped_images(instruments, images):
    read = instruments.read(images)
    inside = np.clip(images, -1, 1)
    classifier, regressor, clip = (
        jax.jit(lambda params, x, tower=tower: apply_tower(tower[0], params, x)[0])(tower[1], inside)
        for tower in (
            instruments.classifier,
            instruments.regressor,
            (instruments.clip[0], instruments.clip[1]["image"]),
        )
    )
    starts = np.concatenate([[0], np.cumsum(SIZES)])
    labels = np.stack([classifier[:, a:b].argmax(-1) for a, b in zip(starts[:-1], starts[1:], strict=True)], -1)
    np.testing.assert_array_equal(read.labels, labels)
    assert read.labels.shape == (5, len(SIZES)) and np.all(read.labels < np.asarray(SIZES))
    np.testing.assert_allclose(read.nuisance, regressor, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read.embedding, clip / np.linalg.norm(clip, axis=-1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(read.embedding, embed_image(*instruments.clip, inside), atol=1e-5)


def test_the_batch_size_changes_nothing(instruments, images):
    whole, parts = instruments.read(images), instruments.read(images, batch=2)
    for a, b in zip(whole, parts, strict=True):
        assert len(b) == 5
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_batches_are_equal_and_the_padding_is_cut():
    seen = []

    def function(rows):
        seen.append(len(rows))
        return rows + 1, rows.sum(1)

    rows = np.arange(14.0).reshape(7, 2)
    parts = in_batches(function, rows, 3)
    assert seen == [3, 3, 3] and [len(part[0]) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), rows + 1)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), rows.sum(1))
    in_batches(function, rows[:2], 3)
    assert seen[-1] == 2, "a single small batch is not padded"


def test_a_missing_tower_names_the_job_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="pretrain_portraits.py:regressor and export") as error:
        read_tower(tmp_path, "regressor")
    assert "\n" not in str(error.value)
