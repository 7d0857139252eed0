"""What each metric's network is fed: the same pixels as its reference implementation, computed with Pillow and NumPy.

| metric | resize | crop | range |
| --- | --- | --- | --- |
| FID (pytorch-fid) | bilinear to 299x299 on floats, no antialiasing, half-pixel centres | none | [-1, 1] |
| LPIPS (lpips) | none | none | [-1, 1] |
| CLIP (transformers) | shorter side 224, Pillow bicubic | centre 224, offset rounded down | CLIP's mean, std |
| DINOv2 (transformers) | shorter side 256, Pillow bicubic | centre 224, offset rounded down | ImageNet's mean, std |
| ImageReward (package) | shorter side 224, Pillow bicubic | centre 224, offset rounded to even | CLIP's mean, std |

The longer side is int(size * longer / shorter). Pillow's resampling antialiases and rounds to uint8; PyTorch's bilinear
`interpolate`, which FID is defined with, does neither. An image is a Pillow image, uint8 [H,W,3], or float [H,W,3] in
[-1, 1], which is rounded to uint8 first: metrics are those of the PNG that one would have saved. Files are read as the
references read them: EXIF's orientation is not applied.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from sdd_jax.data.decode import SUFFIXES, image_files, read_picture
from sdd_jax.images import to_uint8

AnyImage = Image.Image | np.ndarray
Prepare = Callable[[AnyImage], np.ndarray]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_SIZE = 299


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeCropNormalise:
    """image -> f32[crop,crop,3]: shorter side to `resize` (bicubic), centre crop, (x / 255 - mean) / std.

    `round_offset` turns half the surplus into the crop's first pixel: `math.floor` as transformers, `round` as
    torchvision.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    round_offset: Callable[[float], int] = math.floor

    def __call__(self, image: AnyImage) -> np.ndarray:
        picture = as_picture(image)
        shorter = min(picture.size)
        width, height = (int(self.resize * side / shorter) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (self.round_offset((side - self.crop) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + self.crop, top + self.crop))
        pixels = np.asarray(picture, np.float32) / 255
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def to_size(self, size: int) -> ResizeCropNormalise:
        """The same for a network of another input size, its resize scaled alike."""
        return dataclasses.replace(self, resize=round(self.resize * size / self.crop), crop=size)


def inception_input(image: AnyImage) -> np.ndarray:
    """image -> f32[299,299,3] in [-1, 1], as pytorch-fid resizes."""
    pixels = np.asarray(as_picture(image), np.float32) / 255
    for axis in (0, 1):
        first, second, weight = _bilinear_taps(INCEPTION_SIZE, pixels.shape[axis])
        weight = np.expand_dims(weight, (1, 2) if axis == 0 else (0, 2))
        pixels = np.take(pixels, first, axis) * (1 - weight) + np.take(pixels, second, axis) * weight
    return 2 * pixels - 1


def unit_range(image: AnyImage) -> np.ndarray:
    """image -> f32[H,W,3] in [-1, 1], as LPIPS takes it."""
    return np.asarray(as_picture(image), np.float32) / 127.5 - 1


CLIP = ResizeCropNormalise(resize=224, crop=224, mean=CLIP_MEAN, std=CLIP_STD)
DINOV2 = ResizeCropNormalise(resize=256, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)
IMAGE_REWARD = dataclasses.replace(CLIP, round_offset=round)


def as_picture(image: AnyImage) -> Image.Image:
    """An RGB Pillow image of any of the three kinds; ValueError for an array of another shape or type."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.ndim != 3 or image.shape[2] != 3 or not (image.dtype == np.uint8 or image.dtype.kind == "f"):
        raise ValueError(f"an image is uint8 or float [H, W, 3]; got {image.dtype} {list(image.shape)}")
    return Image.fromarray(to_uint8(image))


def image_paths(directory: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder and of those below it, sorted; FileNotFoundError if there are none."""
    paths = image_files(Path(directory))
    if not paths:
        raise FileNotFoundError(f"{directory} holds no images ({', '.join(SUFFIXES)}); give a folder of some")
    return paths


def prepared(images: Iterable[AnyImage | str | Path], prepare: Prepare, workers: int = 4) -> Iterator[np.ndarray]:
    """`prepare` of every image (paths are read), in order, a few ahead of the reader in `workers` threads."""

    def one(image: AnyImage | str | Path) -> np.ndarray:
        return prepare(read_picture(image) if isinstance(image, str | Path) else image)

    ahead: collections.deque[Future[np.ndarray]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for image in images:
            ahead.append(pool.submit(one, image))
            if len(ahead) > 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _bilinear_taps(target: int, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second source index and the second's weight of each target pixel."""
    position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    first = position.astype(int)
    return first, np.minimum(first + 1, source - 1), (position - first).astype(np.float32)
