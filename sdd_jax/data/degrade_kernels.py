"""The linear operators of image degradation: blur kernels, filtering, sharpening and resampling. numpy, host side.

Kernels are [k, k] with k odd, float64, non-negative sum 1 (a sinc kernel has negative lobes, its sum is 1 too). With
offsets x = (column, row) from the centre, Sigma = R diag(sigma_x^2, sigma_y^2) R^T, R the rotation by `rotation`
(radians, from the column axis towards the row axis) and q = x^T Sigma^-1 x (Wang et al. 2021, Real-ESRGAN, sec. 3.1):

    gaussian      exp(-q / 2)
    generalized   exp(-q^beta / 2)           beta < 1 heavier tails, beta > 1 flatter top
    plateau       1 / (1 + q^beta)
    sinc          c J1(c r) / (2 pi r)       r = |x|, centre c^2 / (4 pi): an ideal circular low-pass of cutoff c rad/px

Images are float32 [h, w, channels]. `filter_image` reflects at the borders without repeating the edge pixel.

`resize` follows `torch.nn.functional.interpolate(size=..., align_corners=False, antialias=False)`: bilinear, bicubic
with a = -0.75, and area = adaptive average pooling. Down-scaling by the first two aliases, on purpose: that is part of
what Real-ESRGAN degrades with. Upstream's first resize gives a scale instead of a size, and then reads coordinates
by that scale, which crops up to one low-resolution pixel and so shifts the picture; here the ratio of the
sizes is used everywhere, which keeps the pair aligned (at 64 px that pixel would be 1.5% to 10% of the picture).
"""

import functools
import math
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse
import scipy.special

KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
INTERPOLATIONS = ("area", "bilinear", "bicubic")
_BICUBIC_A = -0.75


def _offsets(size: int) -> tuple[np.ndarray, np.ndarray]:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"kernel size {size} is not a positive odd number; give 1, 3, 5, ...")
    axis = np.arange(size) - size // 2
    return axis[None, :].astype(np.float64), axis[:, None].astype(np.float64)


def quadratic_form(size: int, sigma_x: float, sigma_y: float, rotation: float) -> np.ndarray:
    """q = x^T Sigma^-1 x on the grid of a kernel, float64 [size, size]; sigmas in pixels, rotation in radians."""
    column, row = _offsets(size)
    along = (math.cos(rotation) * column + math.sin(rotation) * row) / sigma_x
    across = (-math.sin(rotation) * column + math.cos(rotation) * row) / sigma_y
    return along**2 + across**2


def blur_kernel(
    kind: str, size: int, sigma_x: float, sigma_y: float, rotation: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """A normalised kernel [size, size] of one of `KERNEL_KINDS`; the `iso` kinds read only `sigma_x` (pixels).

    `beta` is read by the generalized and plateau kinds. Raises ValueError for an unknown kind or an even size.
    """
    if kind not in KERNEL_KINDS:
        raise ValueError(f"unknown blur kind {kind!r}; choose one of {', '.join(KERNEL_KINDS)}")
    if kind.endswith("aniso"):
        q = quadratic_form(size, sigma_x, sigma_y, rotation)
    else:
        q = quadratic_form(size, sigma_x, sigma_x, 0.0)
    if kind.startswith("plateau"):
        kernel = 1.0 / (1.0 + q**beta)
    elif kind.startswith("generalized"):
        kernel = np.exp(-0.5 * q**beta)
    else:
        kernel = np.exp(-0.5 * q)
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """Circular low-pass [size, size] with `cutoff` in (0, pi] radians per pixel; truncation makes it ring."""
    column, row = _offsets(size)
    radius = np.hypot(column, row)
    centre = size // 2
    radius[centre, centre] = 1.0
    kernel = cutoff * scipy.special.j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[centre, centre] = cutoff**2 / (4 * np.pi)
    return kernel / kernel.sum()


def filter_image(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolves every channel of float32 [h, w, c] with an odd [k, k] kernel, reflecting at the borders; same shape."""
    pad = kernel.shape[0] // 2
    height, width = image.shape[:2]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    # circular wrap-around spoils only the first 2 * pad rows and columns, which are cut off
    grid = [scipy.fft.next_fast_len(n, real=True) for n in padded.shape[:2]]
    transfer = scipy.fft.rfft2(kernel.astype(np.float32), grid)[:, :, None]
    spectrum = scipy.fft.rfft2(padded, grid, axes=(0, 1))
    spectrum *= transfer
    result = scipy.fft.irfft2(spectrum, grid, axes=(0, 1), overwrite_x=True)
    return np.ascontiguousarray(result[2 * pad : 2 * pad + height, 2 * pad : 2 * pad + width])


def sharpen(image: np.ndarray, weight: float, window: int, threshold: float) -> np.ndarray:
    """Unsharp masking of [h, w, c] in [0, 1], only where the residual to the blurred image is above the threshold.

    `window` (odd, px) is the Gaussian's width with OpenCV's rule sigma = 0.15 window - 0.35; `threshold` in [0, 1].
    The mask is blurred with the same Gaussian before mixing. Real-ESRGAN: weight 0.5, window 51, threshold 10/255.
    """
    sigma = 0.15 * window - 0.35
    gaussian = blur_kernel("iso", window, sigma, sigma)
    residual = image - filter_image(image, gaussian)
    mask = filter_image((np.abs(residual) > threshold).astype(np.float32), gaussian)
    return image + mask * (np.clip(image + weight * residual, 0.0, 1.0) - image)


@functools.lru_cache(maxsize=1024)
def _resampling_matrix(size_in: int, size_out: int, interpolation: str) -> Any:
    """CSR [size_out, size_in] with rows that sum to 1: one axis of `resize`."""
    out = np.arange(size_out)
    if interpolation == "area":
        start = out * size_in // size_out
        stop = -((out + 1) * -size_in // size_out)
        length = stop - start
        indptr = np.concatenate([[0], np.cumsum(length)])
        columns = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - start, length)
        weights = np.repeat(1.0 / length, length)
        return scipy.sparse.csr_array((weights.astype(np.float32), columns, indptr), shape=(size_out, size_in))
    position = (out + 0.5) * (size_in / size_out) - 0.5
    base = np.floor(position)
    if interpolation == "bilinear":
        taps = np.arange(0, 2)
        distance = np.abs(position[:, None] - (base[:, None] + taps[None]))
        weights = 1.0 - distance
    elif interpolation == "bicubic":
        a = _BICUBIC_A
        taps = np.arange(-1, 3)
        d = np.abs(position[:, None] - (base[:, None] + taps[None]))
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weights = np.where(d <= 1, near, far)
    else:
        raise ValueError(f"unknown interpolation {interpolation!r}; choose one of {', '.join(INTERPOLATIONS)}")
    columns = np.clip(base[:, None].astype(np.int64) + taps[None], 0, size_in - 1)
    rows = np.repeat(out, len(taps))
    # duplicates at the borders are summed: that is edge clamping
    entries = (weights.astype(np.float32).ravel(), (rows, columns.ravel()))
    return scipy.sparse.coo_array(entries, shape=(size_out, size_in)).tocsr()


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """[h, w, c] -> float32 [*size, c] by one of `INTERPOLATIONS`; bicubic overshoots the input's range."""
    height, width, channels = image.shape
    if (height, width) == size:
        return image
    rows = _resampling_matrix(height, size[0], interpolation) @ image.reshape(height, width * channels)
    columns = rows.reshape(size[0], width, channels).transpose(1, 0, 2).reshape(width, size[0] * channels)
    result = _resampling_matrix(width, size[1], interpolation) @ columns
    return np.ascontiguousarray(result.reshape(size[1], size[0], channels).transpose(1, 0, 2))
