"""Frechet distance between feature distributions (FID's formula) with streaming statistics. float64 numpy.

    d^2 = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr (S_a S_b)^(1/2)                       (Heusel et al. 2017, eq. 6)

With S = U diag(l) U^T, the last trace is the sum of the singular values of diag(l_a)^(1/2) U_a^T U_b diag(l_b)^(1/2):
two symmetric eigendecompositions and one singular value decomposition, exact for singular covariances, where the usual
matrix square root of the product turns complex or fails.

Which features: those of this project's image tower give a distance to compare methods within the embedded world;
"FID" in the papers' sense needs InceptionV3's 2048 features (`load_stats` reads pytorch-fid's statistics).

Small samples: the estimate is biased upwards, by an amount that falls about as 1/n and depends on the distribution, so
distances are comparable only at one n for all; with n <= d the covariance is singular and the distance mostly bias.
"""

import dataclasses
import os
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class FeatureStats:
    """Mean `mu` [d] and covariance `sigma` [d, d] (divisor n - 1) of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray

    def __post_init__(self) -> None:
        d = self.mu.shape[0] if self.mu.ndim == 1 else -1
        if self.sigma.shape != (d, d):
            raise ValueError(f"feature statistics are mu [d] and sigma [d, d]; got {self.mu.shape}, {self.sigma.shape}")


@dataclasses.dataclass(frozen=True)
class FeatureMoments:
    """Count, mean [d] and scatter [d, d] = sum (x - mean)(x - mean)^T: what can be merged (Chan et al. 1979)."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dimension: int) -> "FeatureMoments":
        """No samples yet, of features with `dimension` entries."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, features: np.ndarray) -> "FeatureMoments":
        """The moments of a batch [n, d]; ValueError for another rank, an empty batch or non-finite features."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or not len(features):
            raise ValueError(f"feature statistics take non-empty [n, d] features; got shape {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("feature statistics got nan or inf features; check the images or the feature network")
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merge(self, other: "FeatureMoments") -> "FeatureMoments":
        """The moments of both sets together: batches, or the parts that several processes saw."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"cannot merge features of {self.mean.shape[0]} and {other.mean.shape[0]} dimensions")
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / count)
        return FeatureMoments(count, mean, scatter)

    def update(self, features: np.ndarray) -> "FeatureMoments":
        """These moments with one more batch [n, d]."""
        return self.merge(FeatureMoments.of(features))

    def stats(self) -> FeatureStats:
        """Mean and covariance; ValueError for fewer than two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples; got {self.count}")
        return FeatureStats(self.mean, self.scatter / (self.count - 1))


def feature_stats(batches: Iterable[np.ndarray]) -> FeatureStats:
    """The statistics of a stream of feature batches [n, d]; ValueError if it is empty."""
    moments = None
    for batch in batches:
        moments = FeatureMoments.of(batch) if moments is None else moments.update(batch)
    if moments is None:
        raise ValueError("feature statistics got no batches; check the split or the folder of images")
    return moments.stats()


def _square_root_factor(sigma: np.ndarray) -> np.ndarray:
    """U diag(l)^(1/2) [d, rank] with sigma = U diag(l) U^T; eigenvalues that are rounding noise are left out."""
    eigenvalues, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    kept = eigenvalues > max(eigenvalues[-1], 0.0) * len(eigenvalues) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(eigenvalues[kept])


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """The squared Frechet distance (the number called FID) between Gaussians with these statistics; >= 0.

    Raises ValueError if the feature dimensions differ.
    """
    if a.mu.shape != b.mu.shape:
        sizes = f"{a.mu.shape[0]} and {b.mu.shape[0]}"
        raise ValueError(f"cannot compare features of {sizes} dimensions; use one feature network for both")
    overlap = _square_root_factor(a.sigma).T @ _square_root_factor(b.sigma)
    trace_root = np.linalg.svd(overlap, compute_uv=False).sum() if overlap.size else 0.0
    distance = np.square(a.mu - b.mu).sum() + np.trace(a.sigma) + np.trace(b.sigma) - 2 * trace_root
    return float(max(distance, 0.0))


def save_stats(path: str | os.PathLike[str], stats: FeatureStats) -> None:
    """Writes an .npz with `mu` and `sigma`, as pytorch-fid does; `path` should end in .npz."""
    np.savez_compressed(path, mu=stats.mu, sigma=stats.sigma)


def load_stats(path: str | os.PathLike[str]) -> FeatureStats:
    """Reads `save_stats`'s or pytorch-fid's .npz. FileNotFoundError, or ValueError if it holds something else."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"no feature statistics at {path}; write them with `save_stats` or pytorch-fid")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("mu", "sigma") if name in arrays}
            names = ", ".join(arrays)
    except Exception as error:  # zip files and NumPy raise half a dozen types on damaged or pickled arrays
        raise ValueError(f"{path} is no readable .npz of feature statistics ({' '.join(str(error).split())})") from None
    if len(found) != 2:
        raise ValueError(f"{path} holds {names}; feature statistics need `mu` and `sigma`")
    return FeatureStats(found["mu"].astype(np.float64), found["sigma"].astype(np.float64))


def cosine_distance(features_a: np.ndarray, features_b: np.ndarray) -> np.ndarray:
    """CLIP-image distance 1 - cos of paired features [n, d], float64 [n] in [0, 2]; nan for a zero vector."""
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"cosine_distance compares two [n, d] arrays of one shape; got {a.shape} and {b.shape}")
    with np.errstate(invalid="ignore"):
        return 1.0 - np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
