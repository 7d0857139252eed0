"""A folder of images, in one line: `ImageFolder(directory, size)`. `data.sources` has every kind and every option."""

from __future__ import annotations

from pathlib import Path

from sdd_jax.data.decode import read_image
from sdd_jax.data.sources.folder import FolderSource
from sdd_jax.data.sources.images import ImageData, ImageSource

__all__ = ["ImageFolder", "read_image"]


class ImageFolder(ImageSource):
    """Every image below a directory as records of `size`, centre cropped; see `data.sources`."""

    def __init__(self, directory: str | Path, size: int) -> None:
        super().__init__(FolderSource(directory), ImageData(source="folder", path=str(directory), size=size))
