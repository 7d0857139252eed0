"""The numbers of the Real-ESRGAN degradation (Wang et al. 2021) as data: `DegradeSpec`, its presets, its scaling.

Ranges are uniform. Noise fields are in units of 1/255, lengths in pixels, angles in radians.

Small images. The table's pixel counts are made for 256 px and more. `DegradeSpec.scaled(size)`, r = min(1, size/256),
keeps the *picture's* degradation, as if the image had been degraded at 256 px and shrunk: lengths (kernel half-widths,
sigmas, the sharpening window) times r; noise and JPEG factors times r, because shrinking averages 1/r^2
pixels; the band that a sinc filter removes, pi - cutoff, times r; smallest resize scales divided by r (at most 1), so
as many pixels survive as at 256 px. The factor 4 stays. At 256 px and above it changes nothing.

| preset | for |
| --- | --- |
| `REAL_ESRGAN` | the paper's table, 256 px and more |
| `STABLE_SR` | the lighter settings that StableSR trains with, 512 px |
| `PORTRAITS` | the embedded 64 px world |
"""

import dataclasses
import math
from collections.abc import Callable

from sdd_jax.data.degrade_kernels import KERNEL_KINDS

Range = tuple[float, float]
REFERENCE_SIZE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class DegradeStage:
    """One blur, resize, noise, JPEG pass. Ranges are uniform; `jpeg_quality` None leaves the compression out."""

    blur_probability: float
    kernel_size: tuple[int, int] = (7, 21)
    kind_probabilities: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sigma: Range
    rotation: Range = (-math.pi, math.pi)
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    sinc_probability: float = 0.1
    sinc_cutoff: Range = (math.pi / 3, math.pi)
    wide_kernel_size: int = 13
    wide_sinc_cutoff: Range = (math.pi / 5, math.pi)
    resize_probabilities: tuple[float, float, float]
    resize_scale: Range
    gaussian_probability: float = 0.5
    gaussian_sigma: Range
    poisson_scale: Range
    gray_probability: float = 0.4
    jpeg_quality: Range | None = (30.0, 95.0)

    def __post_init__(self) -> None:
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(f"DegradeStage.kernel_size={self.kernel_size} must be odd numbers, such as (7, 21)")
        for name, count in (("kind_probabilities", len(KERNEL_KINDS)), ("resize_probabilities", 3)):
            values = getattr(self, name)
            if len(values) != count or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
                raise ValueError(f"DegradeStage.{name}={values} must be {count} probabilities that sum to 1")
        low, high = self.resize_scale
        if not 0 < low <= 1 <= high:
            raise ValueError(f"DegradeStage.resize_scale={low, high} must be (down, up) with 0 < down <= 1 <= up")

    def scaled(self, r: float) -> "DegradeStage":
        """This stage for images r <= 1 times as large (see the module's docstring)."""
        quality = self.jpeg_quality and _each(lambda q: jpeg_quality_of(r * jpeg_factor(q)), self.jpeg_quality)
        return dataclasses.replace(
            self,
            kernel_size=_scaled_sizes(self.kernel_size, r),
            sigma=_each(lambda sigma: r * sigma, self.sigma),
            sinc_cutoff=_scaled_cutoff(self.sinc_cutoff, r),
            wide_sinc_cutoff=_scaled_cutoff(self.wide_sinc_cutoff, r),
            resize_scale=(min(1.0, self.resize_scale[0] / r), self.resize_scale[1]),
            gaussian_sigma=_each(lambda sigma: r * sigma, self.gaussian_sigma),
            poisson_scale=_each(lambda scale: r * scale, self.poisson_scale),
            jpeg_quality=quality,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DegradeSpec:
    """The whole degradation; stage 2's `jpeg_quality` is that of the last compression."""

    first: DegradeStage
    second: DegradeStage
    factor: int = 4
    final_sinc_probability: float = 0.8
    final_kernel_size: tuple[int, int] = (7, 21)
    final_sinc_cutoff: Range = (math.pi / 3, math.pi)
    sinc_first_probability: float = 0.5
    sharpen_weight: float = 0.5
    sharpen_window: int = 51
    sharpen_threshold: float = 10.0

    def scaled(self, size: int) -> "DegradeSpec":
        """The same degradation of the picture at `size` px, by the module's rule; itself from 256 px on."""
        r = min(1.0, size / REFERENCE_SIZE)
        if r == 1.0:
            return self
        return dataclasses.replace(
            self,
            first=self.first.scaled(r),
            second=self.second.scaled(r),
            final_kernel_size=_scaled_sizes(self.final_kernel_size, r),
            final_sinc_cutoff=_scaled_cutoff(self.final_sinc_cutoff, r),
            sharpen_window=_scaled_sizes((self.sharpen_window, self.sharpen_window), r)[0],
        )


def _each(function: Callable[[float], float], pair: Range) -> Range:
    low, high = (function(value) for value in pair)
    return low, high


def _scaled_sizes(sizes: tuple[int, int], r: float) -> tuple[int, int]:
    low, high = (max(3, 2 * round(r * (size // 2)) + 1) for size in sizes)
    return low, high


def _scaled_cutoff(cutoff: Range, r: float) -> Range:
    return _each(lambda c: math.pi - r * (math.pi - c), cutoff)


def jpeg_factor(quality: float) -> float:
    """What the standard quantisation tables are multiplied by at `quality` in (0, 100]."""
    return 50.0 / quality if quality < 50 else (200.0 - 2.0 * quality) / 100.0


def jpeg_quality_of(factor: float) -> float:
    """The inverse of `jpeg_factor`."""
    return 50.0 / factor if factor > 1 else 100.0 - 50.0 * factor


REAL_ESRGAN = DegradeSpec(
    first=DegradeStage(
        blur_probability=1.0,
        sigma=(0.2, 3.0),
        resize_probabilities=(0.2, 0.7, 0.1),
        resize_scale=(0.15, 1.5),
        gaussian_sigma=(1.0, 30.0),
        poisson_scale=(0.05, 3.0),
    ),
    second=DegradeStage(
        blur_probability=0.8,
        sigma=(0.2, 1.5),
        resize_probabilities=(0.3, 0.4, 0.3),
        resize_scale=(0.3, 1.2),
        gaussian_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    ),
)

STABLE_SR = dataclasses.replace(
    REAL_ESRGAN,
    first=dataclasses.replace(
        REAL_ESRGAN.first,
        kernel_size=(3, 19),
        sigma=(0.2, 1.5),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_scale=(0.3, 1.5),
        gaussian_sigma=(1.0, 15.0),
        poisson_scale=(0.05, 2.0),
        jpeg_quality=(60.0, 95.0),
    ),
    second=dataclasses.replace(
        REAL_ESRGAN.second,
        blur_probability=0.5,
        kernel_size=(3, 9),
        sigma=(0.2, 1.0),
        generalized_beta=(0.5, 2.0),
        plateau_beta=(1.0, 1.5),
        resize_scale=(0.6, 1.2),
        gaussian_sigma=(1.0, 12.0),
        poisson_scale=(0.05, 1.0),
        jpeg_quality=(60.0, 100.0),
    ),
    final_kernel_size=(3, 19),
)

# 96, not 64: at 64 px of the rule nearly all that is lost is lost to the factor 4. Unsharpened: renders are exact, and
# sharpening flat shapes shifts whole areas, which would move the ground truth out of the world the teacher draws.
PORTRAITS = dataclasses.replace(REAL_ESRGAN.scaled(96), sharpen_weight=0.0)


def preset(name: str, size: int) -> DegradeSpec:
    """The named preset for images of `size` px: "real_esrgan" and "stable_sr" scaled to it, "portraits" as it is.

    Raises ValueError for an unknown name.
    """
    if name == "portraits":
        return PORTRAITS
    specs = {"real_esrgan": REAL_ESRGAN, "stable_sr": STABLE_SR}
    if name not in specs:
        raise ValueError(f"unknown degradation {name!r}; choose one of portraits, {', '.join(specs)}")
    return specs[name].scaled(size)
