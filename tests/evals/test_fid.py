"""Streaming FID: the same numbers for a folder, a list and a statistics file, whatever the batch and the devices."""

import os
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import linalg

from sdd_jax.evals.fid import feature_moments, fid, statistics
from sdd_jax.evals.frechet import save_stats
from sdd_jax.evals.preprocess import inception_input
from sdd_jax.evals.streaming import ShardedApply

PARAMS = {"kernel": np.random.default_rng(3).standard_normal((12, 5)).astype(np.float32)}


def features(params, image):
    """A stand-in for InceptionV3: a nonlinear function of 2x2 means, f32[b,299,299,3] -> f32[b,5]."""
    cells = image[:, :298, :298].reshape(len(image), 2, 149, 2, 149, 3).mean((2, 4)).reshape(len(image), 12)
    return jnp.tanh(cells @ params["kernel"])


def images(seed, count=11):
    """uint8 images of different sizes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(8, 20, (count, 2))
    return [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in sizes]


@pytest.fixture(scope="module")
def network():
    return ShardedApply(features, PARAMS, batch=4)


def test_fid_is_the_textbook_formula_over_all_features(network):
    """pytorch-fid's formula, with scipy's matrix square root, over features computed in one batch."""
    stats = []
    for seed in (0, 1):
        rows = np.asarray(features(PARAMS, jnp.stack([inception_input(x) for x in images(seed)])), np.float64)
        stats.append((rows.mean(0), np.cov(rows, rowvar=False)))
    (mu_a, a), (mu_b, b) = stats
    want = np.square(mu_a - mu_b).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert fid(images(0), images(1), network) == pytest.approx(want, rel=1e-4)


def test_folder_list_and_statistics_file_agree(network, tmp_path):
    for i, image in enumerate(images(0)):
        folder = tmp_path / "outputs" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    stats = statistics(tmp_path / "outputs", network)
    save_stats(tmp_path / "stats.npz", stats)
    with np.load(tmp_path / "stats.npz") as written:
        assert written["mu"].shape == (5,) and written["sigma"].shape == (5, 5)
    assert fid(tmp_path / "outputs", str(tmp_path / "stats.npz"), network) == pytest.approx(0, abs=1e-9)
    other = fid(images(1), tmp_path / "stats.npz", network)
    assert other > 0.1 * np.trace(stats.sigma)
    assert other == pytest.approx(fid(images(1), iter(images(0)), network), rel=1e-9)


def test_batch_size_changes_nothing(network):
    moments = feature_moments(images(0), network)
    again = feature_moments(images(0), ShardedApply(features, PARAMS, batch=32))
    assert moments.count == again.count == 11
    np.testing.assert_allclose(moments.scatter, again.scatter, rtol=1e-5, atol=1e-7)


def test_empty_and_wrong_input(network, tmp_path):
    with pytest.raises(ValueError, match="got no images"):
        feature_moments([], network)
    with pytest.raises(FileNotFoundError, match="holds no images"):
        fid(tmp_path, images(0), network)
    with pytest.raises(ValueError, match="batches of at least 1"):
        ShardedApply(features, PARAMS, batch=0)


WORKER = """
import sys
sys.path.insert(0, {here!r})
import jax
jax.config.update("jax_num_cpu_devices", 2)
process = int(sys.argv[1])
jax.distributed.initialize("127.0.0.1:{port}", 2, process)
import numpy as np
import test_fid
network = test_fid.ShardedApply(test_fid.features, test_fid.PARAMS, batch=3)
assert network.batch == 4
moments = test_fid.feature_moments(test_fid.images(0), network)
np.savez(f"{out}/{{process}}.npz", count=moments.count, mean=moments.mean, scatter=moments.scatter)
"""


def test_two_processes_of_two_devices_give_the_same_moments(network, tmp_path):
    """Each process takes every second of 11 images, in batches of 3 that become 4 over its devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = WORKER.format(here=os.path.dirname(__file__), port=port, out=tmp_path)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    workers = [subprocess.Popen([sys.executable, "-c", code, str(i)], env=environment) for i in range(2)]
    want = feature_moments(images(0), network)
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    for process in range(2):
        with np.load(tmp_path / f"{process}.npz") as got:
            assert int(got["count"]) == 11
            np.testing.assert_allclose(got["mean"], want.mean, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(got["scatter"], want.scatter, rtol=1e-4, atol=1e-6)
