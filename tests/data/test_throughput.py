"""The command writes every form of a set of pictures and reads it back through the stream."""

import re

import pytest

from sdd_jax.data import throughput


@pytest.mark.usefixtures("array_cache")
def test_every_source_has_its_rows(capsys):
    assert throughput.main(["--samples=8", "--size=16", "--side=48", "--tfds"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^8 JPEGs of 48x32, \d+ KiB, to 16 px$", printed, re.MULTILINE)
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    found = [re.fullmatch(r"\| ([^|]+) \| ([^|]+) \| [\d.]+ samples/s per core \|", row).groups() for row in rows]
    names = ("folder", "tar", "coco", "tfds", "tfds, tfrecord")
    assert found == [(name, crop) for name in names for crop in ("centre crop", "random crop, flip")]
