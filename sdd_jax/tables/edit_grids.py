"""`python -m sdd_jax.tables.edit_grids`: pictures that rows of SDD's and DDS's tables left, for the docs.

    python -m sdd_jax.reproduce sdd-table1
    python -m sdd_jax.reproduce dds-table2
    python -m sdd_jax.tables.edit_grids --out=docs/images

sdd_EDIT.png and sdd_stylegan_EDIT.png: portraits before and after a manipulator's pass, and the exact answers.
dds_cats.png and dds_attributes.png: a translator's sources, outputs and exact answers of every task. Nothing is drawn
again; rows that are not trained or not measured yet are named and left out.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence

from sdd_jax.command import run_command
from sdd_jax.tables.dds_rows import ATTRIBUTES, TRANSLATOR
from sdd_jax.tables.grids import parse_grid_flags
from sdd_jax.tables.sdd_rows import EDITS, STYLE, manipulator_training
from sdd_jax.tables.types import Training

MANIPULATED, TRANSLATED = "evaluation/before_after.png", "evaluation/grid.png"
GRIDS: dict[str, tuple[Training, str]] = {
    **{f"sdd_{name}": (manipulator_training(edit), MANIPULATED) for edit, name in EDITS.items()},
    **{f"sdd_stylegan_{name}": (manipulator_training(edit, config=STYLE), MANIPULATED) for edit, name in EDITS.items()},
    "dds_cats": (TRANSLATOR, TRANSLATED),
    "dds_attributes": (ATTRIBUTES, TRANSLATED),
}
_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_copy, argv)


def _copy(argv: Sequence[str]) -> None:
    cache, seed, out = parse_grid_flags(
        argv, "edit_grids", __doc__, seed="of the training", out="where the pictures are written"
    )
    found = {
        name: picture
        for name, (training, where) in GRIDS.items()
        if cache.is_trained(training, seed) and (picture := cache.workdir(training, seed) / where).is_file()
    }
    if not found:
        raise ValueError(
            f"no edit is measured in {cache.root}: run python -m sdd_jax.reproduce sdd-table1 or dds-table2 first"
        )
    for name in (name for name in GRIDS if name not in found):
        _log.info("%s is not measured yet", name)
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in found.items():
        shutil.copyfile(picture, out / f"{name}.png")
        _log.info("wrote %s", out / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
