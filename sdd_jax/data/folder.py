"""A folder of images with same-name `.txt` captions, as a random-access source of square uint8 records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdd_jax.data.records import Record

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 50_000_000


class ImageFolder:
    """Every image below a folder, in the order of their paths: {"image": uint8[size,size,3], "caption": str, "path"}.

    An image is scaled so that its shorter side is `size` and cropped at its centre. Its caption is the text of the file
    of the same name with the suffix `.txt`, empty where there is none.
    """

    def __init__(self, directory: str | Path, size: int) -> None:
        self.size = size
        root = Path(directory)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a directory: set config.data.path to a folder of images")
        self.paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not self.paths:
            raise FileNotFoundError(
                f"{root} holds no images ({', '.join(SUFFIXES)}): set config.data.path to a folder of some"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Record:
        path = self.paths[position]
        caption = read_caption(path.with_suffix(".txt"))
        return {"image": read_image(path, self.size), "caption": caption, "path": str(path), "position": position}


def read_caption(path: Path) -> str:
    """Reads a caption, empty where there is no such file; ValueError for one that is not UTF-8 text."""
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}): convert or remove it") from None


def read_image(path: str | Path, size: int) -> np.ndarray:
    """Reads one image, upright, as uint8 [size, size, 3]: shorter side scaled to `size` (bicubic), centre cropped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, damaged, or of more than 50 million pixels (refused before decoding).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{path}: {image.width}x{image.height} pixels are more than {MAX_PIXELS}; scale it down"
                )
            upright = ImageOps.exif_transpose(image)
            scale = size / min(upright.size)
            shape = (max(size, round(upright.width * scale)), max(size, round(upright.height * scale)))
            pixels = upright.convert("RGB").resize(shape, Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable image ({error}): replace or remove it") from None
    left, top = (pixels.width - size) // 2, (pixels.height - size) // 2
    return np.asarray(pixels.crop((left, top, left + size, top + size)))
