"""The one reader of image files: bytes or paths that nobody vouches for -> RGB pictures, or one line of error.

Four things keep a hostile or damaged file harmless:

1. only the decoders of PNG, JPEG, WebP and BMP may look at it, whatever its suffix says (Pillow's others include one
   that starts Ghostscript);
2. the header's width x height is checked against `MAX_PIXELS` before a pixel is decoded;
3. whatever a decoder raises becomes one ValueError that names the file;
4. the first frame of an animation is read, the rest is not.

A training picture is `upright` (turned as its EXIF says); the metrics' reference implementations do not turn theirs.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
PLANES = (*FORMATS, "TIFF")
MAX_PIXELS = 50_000_000

T = TypeVar("T")


def image_files(root: Path) -> list[Path]:
    """The image files of a directory and of those below it, by suffix, sorted; none of what is no directory."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; no where the system refuses the name, as one too long (`Path.is_file` raises)."""
    return os.path.isfile(path)


def read_picture(data: str | Path | bytes, name: str = "", *, upright: bool = False, at_least: int = 0) -> Image.Image:
    """Reads one image, a file or its encoded bytes, as RGB; grey of 16 bits is scaled to 8, 65535 to 255.

    Args:
        name: what messages call it; the path by default.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 as long as no side falls below; 0: at its own size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, damaged, or of more than 50 million pixels (refused before decoding).
    """

    def decode(image: Image.Image) -> Image.Image:
        if at_least:
            image.draft(None, (at_least, at_least))
        turned = ImageOps.exif_transpose(image) if upright else image
        if turned.mode.startswith("I"):  # which `convert` would clip at 255
            turned = Image.fromarray(np.rint(np.asarray(turned, np.float32) / 257).astype(np.uint8))
        return turned.convert("RGB")

    return _opened(data, name, decode)


def picture_size(data: str | Path | bytes, name: str = "") -> tuple[int, int]:
    """Width and height of an upright image, from its header alone; errors as `read_picture`."""

    def measure(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        return (height, width) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (width, height)

    return _opened(data, name, measure)


def read_plane(data: str | Path | bytes, name: str = "") -> np.ndarray:
    """Reads one plane of numbers of any depth, such as a depth map, as f32 [H,W]; of colours their grey.

    TIFF, which holds 32-bit planes, may be read too. Errors as `read_picture`.
    """

    def decode(image: Image.Image) -> np.ndarray:
        grey = image.convert("L") if image.mode in ("RGB", "RGBA", "P", "LA", "CMYK", "YCbCr") else image
        return np.array(grey, np.float32)

    return _opened(data, name, decode, PLANES)


def _opened(
    data: str | Path | bytes, name: str, use: Callable[[Image.Image], T], formats: tuple[str, ...] = FORMATS
) -> T:
    name = name or ("the image" if isinstance(data, bytes) else str(data))
    if not isinstance(data, bytes) and not is_file(data):
        raise FileNotFoundError(f"{name}: no such image")
    size = ""
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats) as image:
            if image.width * image.height <= MAX_PIXELS:
                return use(image)
            size = f"{image.width}x{image.height}"
    except Exception as error:  # decoders raise a dozen unrelated types on damaged input
        raise ValueError(f"{name} is not a readable image ({error}): replace or remove it") from None
    raise ValueError(f"{name}: {size} pixels are more than {MAX_PIXELS}; scale it down")


def shorter_side(picture: Image.Image, size: int) -> Image.Image:
    """Scales a picture (bicubic) so that its shorter side is `size`."""
    scale = size / min(picture.size)
    shape = (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))
    return picture.resize(shape, Image.Resampling.BICUBIC)


def square(image: np.ndarray, size: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Crops [H, W, ...] to [size, size, ...]: in the middle, or with `rng` anywhere, each place as likely."""
    spare = image.shape[0] - size, image.shape[1] - size
    y, x = (n // 2 if rng is None else int(rng.integers(n + 1)) for n in spare)
    return image[y : y + size, x : x + size]


def read_image(data: str | Path | bytes, size: int, name: str = "") -> np.ndarray:
    """Reads one image, upright, as uint8 [size, size, 3]: shorter side scaled to `size`, centre cropped.

    Raises:
        FileNotFoundError, ValueError: as `read_picture`.
    """
    return square(np.asarray(read_scaled(data, size, name)), size)


def read_scaled(data: str | Path | bytes, size: int, name: str = "") -> Image.Image:
    """Reads one image, upright, its shorter side scaled to `size`; a JPEG of four times that is decoded smaller.

    Decoding at 1/2 to 1/8 leaves at least twice `size`, from which bicubic scaling gives the same picture to within
    about one grey level, in a fraction of the time. Errors as `read_picture`.
    """
    return shorter_side(read_picture(data, name, upright=True, at_least=2 * size), size)
