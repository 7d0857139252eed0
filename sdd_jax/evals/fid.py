"""FID (Heusel et al. 2017, arXiv:1706.08500) of folders and streams of images, with InceptionV3's 2048 features.

    FID = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

in float64 over features computed in float32. Features follow pytorch-fid: the 2015 graph's weights, images bilinearly
resized to 299x299 by `preprocess.inception_input`; statistics files are pytorch-fid's `.npz` (`mu`, `sigma`), read
and written. Memory is one batch and one 2048x2048 scatter matrix, whatever the number of images. FID falls with that
number, so it is reported with it (FID-5K, FID-10K).

    network = inception_network("pt_inception-2015-12-05-6726825d.pth")
    fid("outputs/", "coco_5k.npz", network)

Several processes: each calls `feature_moments` on all images, computes its own share, and gets the moments of all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from sdd_jax.evals.frechet import FeatureMoments, FeatureStats, frechet_distance, load_stats
from sdd_jax.evals.preprocess import AnyImage, Prepare, image_paths, inception_input, prepared
from sdd_jax.evals.streaming import ShardedApply
from sdd_jax.models.inception import inception_features, load_inception

Images = str | os.PathLike[str] | Iterable[AnyImage | str | Path]


def inception_network(
    path: str | os.PathLike[str], *, batch: int = 32, devices: Sequence[jax.Device] | None = None
) -> ShardedApply:
    """InceptionV3 with the weights of file `path`, as a stream of images f32[299,299,3] -> f32[b,2048]."""
    return ShardedApply(inception_features, load_inception(path), batch=batch, devices=devices)


def feature_moments(images: Images, network: ShardedApply, prepare: Prepare = inception_input) -> FeatureMoments:
    """Streams a folder, or images and paths, through a feature network; the moments of all of them, over all processes.

    Args:
      images: a folder, or an iterable of images (uint8 or [-1, 1] floats [H,W,3], Pillow) and paths, of any sizes;
        every process passes the same.
      network: rows `prepare(image)` -> features f[b,d].

    Raises:
      FileNotFoundError, ValueError: no images, an unreadable one, or nan features.
    """
    if isinstance(images, str | os.PathLike):
        images = image_paths(images)
    here, count = jax.process_index(), jax.process_count()
    own = (image for i, image in enumerate(images) if i % count == here)
    moments: FeatureMoments | None = None
    for features in network(prepared(own, prepare)):
        moments = FeatureMoments.of(features) if moments is None else moments.update(features)
    if moments is None:
        raise ValueError(f"process {here} of {count} got no images; a distance needs at least 2 for each")
    return moments if count == 1 else _over_processes(moments)


def fid(a: Images, b: Images, network: ShardedApply, prepare: Prepare = inception_input) -> float:
    """FID between two sets, each a folder, an iterable of images, or a statistics file `.npz`."""
    return frechet_distance(statistics(a, network, prepare), statistics(b, network, prepare))


def statistics(images: Images, network: ShardedApply, prepare: Prepare = inception_input) -> FeatureStats:
    """The feature statistics of a set, read where it is an `.npz` file; keep them with `frechet.save_stats`."""
    if isinstance(images, str | os.PathLike) and Path(images).suffix == ".npz":
        return load_stats(images)
    return feature_moments(images, network, prepare).stats()


def _over_processes(moments: FeatureMoments) -> FeatureMoments:
    """Merges the processes' moments; float64 travels as pairs of uint32, since JAX would round it to float32."""
    from jax.experimental import multihost_utils

    def gather(values: np.ndarray) -> np.ndarray:
        words = np.ascontiguousarray(values).view(np.uint32)
        return np.ascontiguousarray(multihost_utils.process_allgather(words)).view(np.float64)

    counts = gather(np.array([moments.count], np.float64))[:, 0]
    means, scatters = gather(moments.mean), gather(moments.scatter)
    merged = FeatureMoments.empty(len(moments.mean))
    for count, mean, scatter in zip(counts, means, scatters, strict=True):
        merged = merged.merge(FeatureMoments(int(count), mean, scatter))
    return merged
