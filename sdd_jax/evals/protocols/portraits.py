"""Held-out portraits in the published layouts, so that every protocol runs with no data at hand.

DIR/generation.csv     file_name, caption
DIR/inversion.csv      file_name, caption
DIR/editing.csv        file_name, old_caption, edited_caption, blended_words: one attribute changed, in turn
DIR/images/            the portraits, captions beside
DIR/degraded/          as `configs/ccd_sr.py` sees them, captions beside
DIR/counterfactuals/   what each edit should give, exactly, instructions beside
DIR/depth/             the portraits' depth maps
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from sdd_jax.data import portraits
from sdd_jax.data.conditions import depth_of
from sdd_jax.data.degrade import condition, degrade
from sdd_jax.data.degrade_spec import preset
from sdd_jax.evals.protocols.split import is_first, wait_for_all
from sdd_jax.images import write_png


def write_benchmark(directory: Path, count: int) -> Path:
    """Writes the first `count` held-out portraits as benchmarks; what is there already is left as it is.

    Of several processes the first one writes; all return when it is done.

    Raises:
        ValueError: more than there are.
    """
    available = len(portraits.split_indices("heldout"))
    if not 0 < count <= available:
        raise ValueError(f"--samples={count}: the benchmark takes 1 to {available} held-out portraits")
    if is_first():
        _write(directory, count)
    wait_for_all("benchmark")
    return directory


def _write(directory: Path, count: int) -> None:
    spec = preset("portraits", portraits.SIZE)
    captions, edits = [["file_name", "caption"]], [["file_name", "old_caption", "edited_caption", "blended_words"]]
    for number, index in enumerate(portraits.split_indices("heldout")[:count]):
        name, portrait = f"{number:06d}.png", portraits.portrait(index)
        attribute, changed = _changed(portrait, number)
        old, new = portraits.caption(portrait.attributes), portraits.caption(changed.attributes)
        captions.append([name, old])
        edits.append([name, old, new, str(_difference(old, new))])
        if (directory / "depth" / name).is_file():
            continue
        image = portraits.image(index)
        write_png(directory / "images" / name, image)
        write_png(directory / "counterfactuals" / name, portraits.image(changed))
        _, low = degrade(image, np.random.default_rng([7, number]), spec)
        write_png(directory / "degraded" / name, condition(low, portraits.SIZE))
        value, previous = (getattr(one.attributes, attribute) for one in (changed, portrait))
        words = portraits.instruction(attribute, value, portrait.attributes.species, previous=previous)
        for folder, text in (("images", old), ("degraded", old), ("counterfactuals", words)):
            (directory / folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")
        write_png(directory / "depth" / name, np.repeat(depth_of(index)[..., None], 3, -1))
    directory.mkdir(parents=True, exist_ok=True)
    for file, table in (("generation", captions), ("inversion", captions), ("editing", edits)):
        with (directory / f"{file}.csv").open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows(table)


def _changed(portrait: portraits.Portrait, number: int) -> tuple[str, portraits.Portrait]:
    """An attribute, and the portrait with it changed; the attribute and its value are taken in turn."""
    names = list(portraits.VOCABULARY)
    name = names[number % len(names)]
    others = [value for value in portraits.VOCABULARY[name] if value != getattr(portrait.attributes, name)]
    return name, portraits.counterfactual(portrait, name, others[number // len(names) % len(others)])


def _difference(old: str, new: str) -> tuple[str, str]:
    """The first words in which two captions differ."""
    pairs = zip(old.split(), new.split(), strict=False)
    return next(((a.strip(",."), b.strip(",.")) for a, b in pairs if a != b), ("", ""))
