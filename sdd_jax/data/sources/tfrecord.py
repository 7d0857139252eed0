"""TFRecord files at random access, without TensorFlow: the format that TFDS writes unless told otherwise.

A file is a sequence of frames

    u64 length    u32 crc(length)    length bytes    u32 crc(bytes)        little-endian; crc: masked CRC-32C

The frames' headers are walked once (`shards.shard_index`) and checked by their sums, which finds a file that is cut off
or damaged between records. A record's own bytes are not summed, for that would cost more than reading them: what is
damaged inside of one shows when it is parsed or its picture is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdd_jax.data.sources.shards import ShardFiles, shard_index

FORMAT = 1
HEADER, FOOTER = 12, 4
POLYNOMIAL = 0x82F63B78


class TfRecords:
    """The records of files, one after the other, as bytes.

    Raises:
        ValueError: a file that is cut off, damaged between records, or compressed.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._index = shard_index("tfrecord", FORMAT, files, scan, columns=2)
        self._files = ShardFiles(files)
        self._counts = np.bincount(self._index[:, 0], minlength=len(files))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def counts(self) -> tuple[int, ...]:
        """Records of each file."""
        return tuple(int(count) for count in self._counts)

    def __getitem__(self, position: int) -> bytes:
        shard, start, size = (int(value) for value in self._index[position])
        return self._files.read(shard, start, size)


def scan(path: Path) -> list[tuple[int, int]]:
    """Offset and size of every record of a file; ValueError for one that is not whole."""
    found = []
    end = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while start < end:
            file.seek(start)
            header = file.read(HEADER)
            size, stated = struct.unpack("<QI", header) if len(header) == HEADER else (0, -1)
            if stated != masked(crc32c(header[:8])) or start + HEADER + size + FOOTER > end:
                raise ValueError(f"{path} is cut off or damaged after byte {start}: prepare or copy it again")
            found.append((start + HEADER, size))
            start += HEADER + size + FOOTER
    return found


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of a few bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """A sum as TFRecord files store it."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _row(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (POLYNOMIAL if byte & 1 else 0)
    return byte


TABLE = [_row(byte) for byte in range(256)]
