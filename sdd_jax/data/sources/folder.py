"""A directory of images with their captions, and with their partners in a second directory, as raw records."""

from __future__ import annotations

import logging
from pathlib import Path

from sdd_jax.data.decode import SUFFIXES, image_files, is_file
from sdd_jax.data.sources.captions import LISTINGS, read_caption, read_listing
from sdd_jax.data.sources.raw import RawRecord, inside

PARTNERS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")

_log = logging.getLogger("sdd_jax")


class FolderSource:
    """Every image below a directory, in the order of their paths, or those that its listing names, in its order.

    Args:
        partners: a second directory that has a file of the same relative name for each of them, of any of the suffixes
            `PARTNERS`, the first of these where there are several; "" for none.

    Raises:
        FileNotFoundError: no such directory, no images, or a listed file or a partner that is not there.
        ValueError: two listings, a damaged one, or one that names files outside the directory.
    """

    def __init__(self, directory: str | Path, caption_key: str = "", partners: str | Path = "") -> None:
        root = Path(directory)
        self.title = str(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a directory: set config.data.path to a folder of images")
        listings = [root / name for name in LISTINGS if (root / name).is_file()]
        if len(listings) > 1:
            raise ValueError(f"{root} holds both {' and '.join(LISTINGS)}: which one counts? remove the other")
        self._captions: list[tuple[str, ...]] | None = None
        if listings:
            rows = read_listing(listings[0], caption_key)
            self._paths = [inside(root, name, str(listings[0])) for name, _ in rows]
            self._captions = [captions for _, captions in rows]
            self._compare(root, listings[0])
        else:
            self._paths = image_files(root)
        if not self._paths:
            raise FileNotFoundError(
                f"{root} holds no images ({', '.join(SUFFIXES)}): set config.data.path to a folder of some"
            )
        self._partners = _partners_of(self._paths, root, Path(partners)) if partners else None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> RawRecord:
        path = self._paths[index]
        partner = None if self._partners is None else self._partners[index]
        if self._captions is not None:
            return RawRecord(str(path), path, self._captions[index], partner)
        caption = read_caption(path.with_suffix(".txt"))
        return RawRecord(str(path), path, (caption,) if caption else (), partner)

    def _compare(self, root: Path, listing: Path) -> None:
        there = set(image_files(root))
        missing = [path for path in self._paths if path not in there and not is_file(path)]
        if missing:
            raise FileNotFoundError(
                f"{missing[0]}: no such image, one of {len(missing)} that {listing} lists and that are missing"
            )
        if unlisted := len(there - set(self._paths)):
            _log.info("%s: %d images are not in %s and are left out", root, unlisted, listing.name)


def _partners_of(images: list[Path], root: Path, directory: Path) -> list[Path]:
    """The partner of each image; FileNotFoundError where one is missing."""
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: set config.condition.path to the conditions")
    files = [path for path in directory.rglob("*") if path.suffix.lower() in PARTNERS and path.is_file()]
    files.sort(key=lambda path: (-PARTNERS.index(path.suffix.lower()), path))
    found = {path.relative_to(directory).with_suffix(""): path for path in files}
    stems = [path.relative_to(root).with_suffix("") for path in images]
    missing = [(path, stem) for path, stem in zip(images, stems, strict=True) if stem not in found]
    if missing:
        path, stem = missing[0]
        raise FileNotFoundError(
            f"{directory / stem}{PARTNERS[0]}: no such file (nor {', '.join(PARTNERS[1:])}), the condition of {path}, "
            f"one of {len(missing)} that are missing"
        )
    return [found[stem] for stem in stems]
