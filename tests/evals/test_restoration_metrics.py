"""Restoration metrics: perfect for the original itself, and each one worse for what spoils it."""

import numpy as np
import pytest

from sdd_jax.evals.instruments import Readings
from sdd_jax.evals.restoration import COLUMNS, restoration_metrics, table


class Probe:
    """Instruments of arithmetic: the label is the sign of the mean, the embedding the mean colour and its spread."""

    def read(self, images):
        mean, std = images.mean((1, 2)), images.std((1, 2, 3))
        embedding = np.concatenate([mean, std[:, None]], 1)
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        return Readings((mean > 0).astype(np.int32), embedding, mean)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    base = rng.uniform(-0.5, 0.5, (6, 1, 1, 3))
    originals = (base + rng.uniform(-0.4, 0.4, (6, 16, 16, 3))).astype(np.float32)
    rivals = (base[:, None] + rng.uniform(-0.4, 0.4, (6, 7, 16, 16, 3))).astype(np.float32)
    return originals, Probe().read(originals).labels, rivals


def measure(outputs, world):
    originals, labels, rivals = world
    return restoration_metrics(Probe(), outputs.astype(np.float32), originals, labels, rivals)


def test_the_original_is_perfect(world):
    found = measure(world[0], world)
    assert set(found) == set(COLUMNS) and all(isinstance(value, float) for value in found.values())
    assert found["psnr"] == np.inf and found["ssim"] == pytest.approx(1, abs=1e-5)
    assert found["clip_distance"] == pytest.approx(0, abs=1e-6) and found["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["attributes"] == 1 and found["identity"] == 1


def test_another_individual_is_recognised_as_such(world):
    originals, labels, rivals = world
    assert measure(rivals[:, 3], world)["identity"] == 0
    half = np.where(np.arange(6)[:, None, None, None] < 3, originals, rivals[:, 0])
    assert measure(half, world)["identity"] == 0.5


def test_noise_costs_what_it_should(world):
    originals, labels, _ = world
    noisy = originals + np.random.default_rng(1).choice([-0.1, 0.1], originals.shape)
    inside = np.abs(noisy) <= 1
    assert inside.all()
    found = measure(noisy, world)
    assert found["psnr"] == pytest.approx(10 * np.log10(4 / 0.01), abs=1e-3)
    assert 0.3 < found["ssim"] < 0.99 and found["identity"] == 1
    wrong = measure(-originals, world)
    assert wrong["attributes"] == 0 and wrong["clip_distance"] > 0.5


def test_outputs_beyond_the_range_are_clipped(world):
    bright = measure(np.full_like(world[0], 7.0), world)
    assert bright == measure(np.ones_like(world[0]), world)


def test_the_frechet_distance_sees_a_shift_that_pairs_do_not(world):
    originals = world[0]
    shuffled = measure(originals[[1, 2, 3, 4, 5, 0]], world)
    assert shuffled["frechet"] == pytest.approx(0, abs=1e-6) and shuffled["clip_distance"] > 0.05


def test_the_table_has_a_row_a_method(world):
    rows = {"bicubic": dict.fromkeys(COLUMNS, 0.123456), "CCD": dict.fromkeys(COLUMNS, 2.0)}
    lines = table(rows).splitlines()
    assert lines[0] == f"| | {' | '.join(COLUMNS)} |" and lines[1] == "| --- |" + " --- |" * len(COLUMNS)
    assert lines[2].startswith("| bicubic | 0.1235 |") and lines[3].startswith("| CCD | 2 |") and len(lines) == 4
