"""Full-reference image metrics in JAX, one value per sample: PSNR, SSIM, masked PSNR, and retrieval among candidates.

Images are [n, H, W, C] in [-1, 1], so the data range is L = 2.

    PSNR = 10 log10(L^2 / mean (a - b)^2)
    SSIM = (2 mu_a mu_b + C1)(2 s_ab + C2) / ((mu_a^2 + mu_b^2 + C1)(s_a^2 + s_b^2 + C2))
    C1 = (.01 L)^2, C2 = (.03 L)^2

SSIM is that of Wang et al. 2004: local moments under an 11 x 11 Gaussian of sigma 1.5 (population, not sample,
covariance), the map averaged over the windows that lie inside the image, then over channels. It equals scikit-image's
`structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2, channel_axis=-1)`.
Everything is float32 at the highest matmul precision: variances are differences of nearly equal numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np

DATA_RANGE = 2.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def _checked(a: jax.Array, b: jax.Array) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"image metrics compare two [n, H, W, C] batches of one shape; got {a.shape} and {b.shape}")


def _decibels(mse: jax.Array) -> jax.Array:
    return 10.0 * jnp.log10(DATA_RANGE**2 / mse)


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB, f32[n], of two [n, H, W, C] batches in [-1, 1]; inf for equal images."""
    _checked(a, b)
    return _decibels(jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)), axis=(1, 2, 3)))


def masked_psnr(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    """PSNR in dB, f32[n], over the pixels that `mask` [n, H, W, 1] in [0, 1] weighs; nan where the mask is empty."""
    _checked(a, b)
    if mask.shape != (*a.shape[:3], 1):
        raise ValueError(f"masked_psnr needs a mask of shape {(*a.shape[:3], 1)}; got {mask.shape}")
    mask = mask.astype(jnp.float32)
    squared = jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)), axis=3, keepdims=True)
    return _decibels(jnp.sum(mask * squared, axis=(1, 2, 3)) / jnp.sum(mask, axis=(1, 2, 3)))


def _window_matrix(size: int) -> np.ndarray:
    """f32[size - 10, size]: the 1-D Gaussian window at every position where it fits."""
    if size < SSIM_WINDOW:
        raise ValueError(f"ssim needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} px; got a side of {size}")
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    matrix = np.zeros((size - SSIM_WINDOW + 1, size), np.float32)
    for row in range(len(matrix)):
        matrix[row, row : row + SSIM_WINDOW] = window / window.sum()
    return matrix


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity, f32[n] in [-1, 1], of two [n, H, W, C] batches in [-1, 1]; both sides at least 11 px."""
    _checked(a, b)
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    rows, columns = _window_matrix(a.shape[1]), _window_matrix(a.shape[2])
    moments = jnp.stack([a, b, a * a, b * b, a * b])
    highest = jax.lax.Precision.HIGHEST
    moments = jnp.einsum("ih,mnhwc->mniwc", rows, moments, precision=highest)
    moments = jnp.einsum("jw,mniwc->mnijc", columns, moments, precision=highest)
    mean_a, mean_b, square_a, square_b, product = moments
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a**2 + square_b - mean_b**2
    return jnp.mean(luminance * (2 * covariance + c2) / (variances + c2), axis=(1, 2, 3))


def _squared_distances(outputs: jax.Array, truths: jax.Array) -> jax.Array:
    if outputs.ndim != 2 or truths.ndim != 3 or truths.shape[::2] != outputs.shape:
        raise ValueError(f"retrieval compares [n, d] with [n, m, d]; got {outputs.shape} and {truths.shape}")
    return jnp.sum(jnp.square(truths.astype(jnp.float32) - outputs.astype(jnp.float32)[:, None, :]), axis=-1)


def nearest_match(outputs: jax.Array, truths: jax.Array) -> jax.Array:
    """Index i32[n] of each output's nearest candidate (l2): outputs [n, d], candidates `truths` [n, m, d]."""
    return jnp.argmin(_squared_distances(outputs, truths), axis=1).astype(jnp.int32)


def retrieval_accuracy(outputs: jax.Array, truths: jax.Array, correct: jax.Array | None = None) -> jax.Array:
    """Share f32[] of outputs that lie strictly nearer (l2) to their right candidate than to every other.

    outputs [n, d]; truths [n, m, d], the candidates of each output; correct i32[n], the right indices (0 if None).
    A tie is a miss, so collapsed features score 0 and not 1. Features or flattened images serve alike.
    """
    distances = _squared_distances(outputs, truths)
    index = jnp.zeros(distances.shape[0], jnp.int32) if correct is None else correct
    right = jax.nn.one_hot(index, distances.shape[1], dtype=bool)
    to_right = jnp.min(jnp.where(right, distances, jnp.inf), axis=1)
    to_others = jnp.min(jnp.where(right, jnp.inf, distances), axis=1)
    return jnp.mean(to_right < to_others)
