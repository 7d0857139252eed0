"""The second-order Real-ESRGAN x4 degradation: what real-world super-resolution trains on. numpy, host side, per image.

    truth = sharpen(image)
    stage 1   blur -> resize (relative to the image) -> noise -> JPEG
    stage 2   blur -> resize (relative to the image / 4) -> noise
    end       50/50: {resize to image / 4, sinc} -> JPEG,  or JPEG -> {resize to image / 4, sinc};  round to 8 bits

after Wang et al. 2021 (Real-ESRGAN), with every number a field of `DegradeSpec` and all randomness drawn per image from
one `numpy.random.Generator` (upstream shares choices across a batch, only for speed). Kernels and resampling are in
`degrade_kernels`, the numbers, the presets and their scaling to small images in `degrade_spec`.

Ranges: images enter as uint8, or float32 in [-1, 1]; everything inside is float32 in [0, 1]; what leaves is float32 in
[-1, 1]. The low-resolution image lies on the 8-bit grid. Noise fields are in units of 1/255, as in the paper's table.

JPEG is libjpeg's (Pillow), 4:2:0, with quantisation tables scaled by 50/q below q = 50 and (200 - 2q)/100 above, so
that q is continuous as upstream. Upstream's differentiable JPEG pads with zeros, keeps fractional tables and pixels and
replicates chroma; libjpeg pads with the edge and rounds, as real files do.
"""

import io
import math

import numpy as np
from PIL import Image

from sdd_jax.data.degrade_kernels import (
    INTERPOLATIONS,
    KERNEL_KINDS,
    blur_kernel,
    filter_image,
    resize,
    sharpen,
    sinc_kernel,
)
from sdd_jax.data.degrade_spec import DegradeSpec, DegradeStage, Range, jpeg_factor

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# ITU-T T.81, tables K.1 and K.2
_LUMINANCE_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMINANCE_TABLE = np.full((8, 8), 99)
_CHROMINANCE_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    """Compresses and decodes float32 [h, w, 3] in [0, 1] (clamped, rounded to 8 bits); `quality` may be fractional."""
    factor = jpeg_factor(quality)
    tables = [
        np.clip(np.floor(table.ravel() * factor + 0.5), 1, 255).astype(int).tolist()
        for table in (_LUMINANCE_TABLE, _CHROMINANCE_TABLE)
    ]
    buffer = io.BytesIO()
    Image.fromarray(_to_bytes(image)).save(buffer, "JPEG", qtables=tables, subsampling="4:2:0")
    with Image.open(buffer) as decoded:
        return np.asarray(decoded, np.float32) / 255.0


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def gaussian_noise(rng: np.random.Generator, image: np.ndarray, sigma: float, gray: bool) -> np.ndarray:
    """Noise for [h, w, 3]: N(0, sigma^2), `sigma` in the image's units; gray shares one field among the channels."""
    channels = 1 if gray else image.shape[2]
    noise = rng.standard_normal((*image.shape[:2], channels), np.float32) * np.float32(sigma)
    return np.broadcast_to(noise, image.shape)


def poisson_noise(rng: np.random.Generator, image: np.ndarray, gray: bool) -> np.ndarray:
    """Shot noise for [h, w, 3] in [0, 1]: Poisson(vals x) / vals - x on the 8-bit image x (on its luma if gray).

    vals = 2^ceil(log2(number of distinct 8-bit levels)), so the variance at intensity x is x / vals.
    """
    levels = _to_bytes(image)
    if gray:
        levels = np.round(levels @ _LUMA).astype(np.uint8)[:, :, None]
    distinct = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    vals = 2.0 ** math.ceil(math.log2(distinct))
    clean = levels / 255.0
    noise = (rng.poisson(clean * vals) / vals - clean).astype(np.float32)
    return np.broadcast_to(noise, image.shape)


def sample_choice(rng: np.random.Generator, probabilities: tuple[float, ...]) -> int:
    """An index drawn with the given probabilities."""
    return min(int(np.searchsorted(np.cumsum(probabilities), rng.random(), side="right")), len(probabilities) - 1)


def sample_odd(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    """A uniform odd number from low to high inclusive."""
    return int(2 * rng.integers(sizes[0] // 2, sizes[1] // 2 + 1) + 1)


def sample_beta(rng: np.random.Generator, low_high: Range) -> float:
    """Half of the draws below 1, half above: U(low, 1) or U(1, high)."""
    low, high = low_high
    return rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)


def sample_kernel(rng: np.random.Generator, stage: DegradeStage) -> np.ndarray:
    """A blur or sinc kernel [k, k] of a stage."""
    size = sample_odd(rng, stage.kernel_size)
    if rng.random() < stage.sinc_probability:
        cutoff = stage.wide_sinc_cutoff if size >= stage.wide_kernel_size else stage.sinc_cutoff
        return sinc_kernel(size, rng.uniform(*cutoff))
    kind = KERNEL_KINDS[sample_choice(rng, stage.kind_probabilities)]
    sigma_x, sigma_y = rng.uniform(*stage.sigma), rng.uniform(*stage.sigma)
    beta = sample_beta(rng, stage.plateau_beta if kind.startswith("plateau") else stage.generalized_beta)
    return blur_kernel(kind, size, sigma_x, sigma_y, rng.uniform(*stage.rotation), beta)


def sample_scale(rng: np.random.Generator, stage: DegradeStage) -> float:
    """A resize scale: U(1, high), U(low, 1) or 1 with the stage's up, down, keep probabilities."""
    low, high = stage.resize_scale
    direction = sample_choice(rng, stage.resize_probabilities)
    return (rng.uniform(1.0, high), rng.uniform(low, 1.0), 1.0)[direction]


def _resize_randomly(rng: np.random.Generator, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize(image, size, INTERPOLATIONS[int(rng.integers(len(INTERPOLATIONS)))])


def _add_noise(rng: np.random.Generator, image: np.ndarray, stage: DegradeStage) -> np.ndarray:
    gray = rng.random() < stage.gray_probability
    if rng.random() < stage.gaussian_probability:
        noise = gaussian_noise(rng, image, rng.uniform(*stage.gaussian_sigma) / 255.0, gray)
    else:
        noise = poisson_noise(rng, image, gray) * np.float32(rng.uniform(*stage.poisson_scale))
    return np.clip(image + noise, 0.0, 1.0)


def _compress(rng: np.random.Generator, image: np.ndarray, stage: DegradeStage) -> np.ndarray:
    return image if stage.jpeg_quality is None else jpeg(image, rng.uniform(*stage.jpeg_quality))


def _run_stage(
    rng: np.random.Generator, image: np.ndarray, stage: DegradeStage, base: tuple[float, float]
) -> np.ndarray:
    """Blur, resize to `base` times the drawn scale, noise; [h, w, 3] in [0, 1] to the same of another size."""
    if rng.random() < stage.blur_probability:
        image = filter_image(image, sample_kernel(rng, stage))
    scale = sample_scale(rng, stage)
    image = _resize_randomly(rng, image, (max(1, int(base[0] * scale)), max(1, int(base[1] * scale))))
    return _add_noise(rng, image, stage)


def degrade(image: np.ndarray, rng: np.random.Generator, spec: DegradeSpec) -> tuple[np.ndarray, np.ndarray]:
    """One training pair for super-resolution.

    Args:
        image: [H, W, 3], uint8 or float32 in [-1, 1]; H and W divisible by `spec.factor`.
        rng: the only source of randomness; the same state gives the same pair.
        spec: a preset, or `REAL_ESRGAN.scaled(size)`.

    Returns:
        (the sharpened image [H, W, 3], low [H/factor, W/factor, 3] on the 8-bit grid), both float32 in [-1, 1].

    Raises:
        ValueError: another shape or dtype, values outside [-1, 1], or a size that the factor does not divide.
    """
    height, width = _checked(image, spec.factor)
    small = (height // spec.factor, width // spec.factor)
    unit = np.asarray(image, np.float32)
    unit = unit / 255.0 if image.dtype == np.uint8 else (unit + 1.0) / 2.0
    truth = unit
    if spec.sharpen_weight:
        truth = sharpen(unit, spec.sharpen_weight, spec.sharpen_window, spec.sharpen_threshold / 255.0)

    out = _run_stage(rng, truth, spec.first, (height, width))
    out = _compress(rng, out, spec.first)
    out = _run_stage(rng, out, spec.second, (height / spec.factor, width / spec.factor))
    sinc_first = rng.random() < spec.sinc_first_probability
    if not sinc_first:
        out = _compress(rng, out, spec.second)
    out = _resize_randomly(rng, out, small)
    if rng.random() < spec.final_sinc_probability:
        size = sample_odd(rng, spec.final_kernel_size)
        out = filter_image(out, sinc_kernel(size, rng.uniform(*spec.final_sinc_cutoff)))
    if sinc_first:
        out = _compress(rng, out, spec.second)
    return truth * 2.0 - 1.0, _to_bytes(out).astype(np.float32) / 127.5 - 1.0


def _checked(image: np.ndarray, factor: int) -> tuple[int, int]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype not in (np.uint8, np.float32):
        raise ValueError(f"degrade got {image.dtype} {image.shape}; give uint8 or float32 [H, W, 3]")
    if image.dtype == np.float32 and not (np.abs(image).max(initial=0.0) <= 1.0 + 1e-4):
        raise ValueError("degrade got float32 values outside [-1, 1]; divide uint8 by 127.5 and subtract 1")
    height, width = image.shape[:2]
    if height % factor or width % factor or not height or not width:
        raise ValueError(f"degrade got a {height} x {width} image; crop both sides to multiples of {factor}")
    return height, width


def condition(low: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The network's condition: `low` [h, w, 3] upsampled bicubically to `size` (square, or (H, W)), kept in [-1, 1]."""
    target = (size, size) if isinstance(size, int) else size
    return np.clip(resize(low, target, "bicubic"), -1.0, 1.0)
