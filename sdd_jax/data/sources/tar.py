"""Tar shards in webdataset's layout, read with the standard library: an image and its text under one name.

    00000.tar:   000000001.jpg  000000001.txt  000000002.jpg  000000002.json ...

A sample is what shares a path up to the first dot of its last part. Read are one image (png, jpg, jpeg, webp) and its
captions: of the `txt`, else of the `json` object's caption field; of pairs, a second image too, under a name that the
config gives (`000000001.depth.png`). Members of other kinds are never opened, so no pickle, script or URL in a shard
can do anything.

The shards are indexed once, header by header, and the index (seven integers a sample) is kept in the cache directory
under a hash of the shards' names, sizes and times. After that a sample is two reads at known offsets: any order, any
step, any number of processes.

A shard is refused as a whole if it is compressed (no offsets to read at), is cut off anywhere or damaged between
members (its end-of-archive mark does not follow its last member), or holds links, devices, sparse files, absolute names
or `..`.
"""

from __future__ import annotations

import functools
import logging
import tarfile
from collections import Counter
from pathlib import Path

from sdd_jax.data.decode import SUFFIXES
from sdd_jax.data.sources.captions import CAPTION_KEYS, as_captions
from sdd_jax.data.sources.raw import RawRecord, parse_json
from sdd_jax.data.sources.shards import ShardFiles, shard_index

BLOCK = 512
MAX_BYTES = 2**28
NONE, TEXT, JSON = 0, 1, 2
FORMAT = 2

_log = logging.getLogger("sdd_jax")


class TarSource:
    """The samples of one `.tar`, or of all of a directory in the order of their names.

    Args:
        partner: what the second image of each sample is called after the sample's name, "depth.png"; "" for none.

    Raises:
        FileNotFoundError: no such file, or a directory without shards.
        ValueError: a shard that is refused (see above), a sample with two images or without a partner, no samples.
    """

    def __init__(self, path: str | Path, caption_key: str = "", partner: str = "") -> None:
        self.title = str(path)
        self._caption_keys = (caption_key,) if caption_key else CAPTION_KEYS
        self._shards = _shards(Path(path))
        self._paired = bool(partner)
        # shard; offset and size of the image; offset of the caption, its kind * 2^28 + its size; of the partner
        scan = functools.partial(_scan, partner=f".{partner.lower().lstrip('.')}" if partner else "")
        self._index = shard_index("tar", (FORMAT, partner), self._shards, scan, columns=6)
        self._files = ShardFiles(self._shards)
        if not len(self._index):
            raise ValueError(f"{path} holds no images ({', '.join(SUFFIXES)}) in {len(self._shards)} shards")

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> RawRecord:
        shard, start, size, text, length, *second = (int(value) for value in self._index[index])
        name = f"{self._shards[shard]}: {self._name(shard, start)}"
        kind, length = divmod(length, MAX_BYTES)
        captions: list[str] = []
        if kind != NONE:
            captions = self._parse(kind, self._files.read(shard, text, length), name)
        partner = self._files.read(shard, *second) if self._paired else None
        return RawRecord(name, self._files.read(shard, start, size), tuple(captions), partner)

    def _parse(self, kind: int, data: bytes, name: str) -> list[str]:
        try:
            text = data.decode("utf-8")
            if kind == TEXT:
                return [text.strip()] if text.strip() else []
            fields = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{name}: its caption is not UTF-8 text or JSON ({error})") from None
        found = (
            next((fields[key] for key in self._caption_keys if key in fields), None) if type(fields) is dict else None
        )
        return as_captions(found, name)

    def _name(self, shard: int, start: int) -> str:
        try:
            return tarfile.TarInfo.frombuf(self._files.read(shard, start - BLOCK, BLOCK), "utf-8", "replace").name
        except tarfile.TarError:
            return f"byte {start}"


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    shards = sorted(path.glob("*.tar")) if path.is_dir() else []
    if not shards:
        raise FileNotFoundError(
            f"{path} is neither a .tar file nor a directory of some: set config.data.path to either"
        )
    return shards


def _scan(path: Path, partner: str) -> list[tuple[int, ...]]:
    """The samples of one shard: offset and size of the image, offset and kind-and-size of its caption, as the image of
    the member whose name ends in `partner` (0, 0 without one)."""
    images: dict[str, tuple[int, int]] = {}
    captions: dict[str, tuple[int, int]] = {}
    partners: dict[str, tuple[int, int]] = {}
    ignored: Counter[str] = Counter()
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                _check(member, path)
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if not member.isreg():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key, suffix = f"{folder}/{stem}", f".{suffix.lower()}"
                if suffix == partner:
                    partners[key] = member.offset_data, member.size
                elif suffix in SUFFIXES:
                    if key in images:
                        raise ValueError(f"{path}: two images are called {key.lstrip('/')}; a sample has one")
                    images[key] = member.offset_data, member.size
                elif suffix == ".txt" or (suffix == ".json" and key not in captions):
                    kind = TEXT if suffix == ".txt" else JSON
                    captions[key] = member.offset_data, kind * MAX_BYTES + member.size
                elif suffix != ".json":
                    ignored[suffix] += 1
    except (tarfile.TarError, OverflowError, UnicodeError, EOFError) as error:
        raise ValueError(f"{path} is not an uncompressed tar file, or is cut off ({error})") from None
    with path.open("rb") as file:
        file.seek(end)
        if file.read(2 * BLOCK) != bytes(2 * BLOCK):
            raise ValueError(f"{path} is cut off or damaged after byte {end}: its end-of-archive mark is missing there")
    if ignored:
        shown = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
        _log.warning("%s: members that are neither images nor captions are not read: %s", path, shown)
    if lost := len(captions.keys() - images.keys()):
        _log.warning("%s: %d captions have no image and are left out", path, lost)
    if partner and (alone := [key for key in images if key not in partners]):
        raise ValueError(
            f"{path}: {alone[0].lstrip('/')} has no {partner[1:]}, the condition, one of {len(alone)} such samples: "
            "add it, or set config.condition.path to what the members are called"
        )
    return [(*place, *captions.get(key, (0, NONE)), *partners.get(key, (0, 0))) for key, place in images.items()]


def _check(member: tarfile.TarInfo, path: Path) -> None:
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise ValueError(f"{path} holds {member.name!r}, a link or special file: such shards are refused")
    if member.name.startswith("/") or ".." in Path(member.name).parts:
        raise ValueError(f"{path} holds {member.name!r}, a name that leads outside: such shards are refused")
    if member.size >= MAX_BYTES:
        raise ValueError(f"{path} holds {member.name!r} of {member.size} bytes, more than {MAX_BYTES}: refused")
