"""`python -m sdd_jax.tables.icd_grids`: pictures of the editing methods that `reproduce icd-editing` compares.

    python -m sdd_jax.reproduce icd-editing
    python -m sdd_jax.tables.icd_grids --out=docs/images

Rows of the grid: the source, the exact answer, each method with the table's settings, iCD with the runs of training
seed 0 that the table trained; columns are one held-out portrait of each edit. What is not trained yet is named and left
out.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from sdd_jax.command import run_command
from sdd_jax.data.edit_pairs import EDITS, edit_pairs
from sdd_jax.images import write_grid
from sdd_jax.jobs.editing.report import FRAMES
from sdd_jax.jobs.icd.edit_measures import answers
from sdd_jax.tables.grids import parse_grid_flags
from sdd_jax.tables.icd_editing import METHODS
from sdd_jax.train import EngineConfig, use_compile_cache

_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_draw, argv)


def _draw(argv: Sequence[str]) -> None:
    cache, seed, out = parse_grid_flags(
        argv, "icd_grids", __doc__, seed="of what a method draws", out="where icd_editing.png is written"
    )
    use_compile_cache(EngineConfig.compile_cache)
    rows = [row for row in METHODS.rows if row.options["method"] not in FRAMES]
    missing = [row.name for row in rows if row.training and not cache.is_trained(row.training, 0)]
    if len(missing) == sum(row.training is not None for row in rows):
        raise ValueError(f"no iCD run is trained in {cache.root}: run python -m sdd_jax.reproduce icd-editing first")
    pairs = edit_pairs(EDITS, 1)
    shown = {"source": pairs.image, "answer": pairs.counterfactual}
    for row in rows:
        if row.name in missing:
            _log.info("%s is not trained yet", row.name)
            continue
        workdir = None if row.training is None else cache.workdir(row.training, 0)
        shown[row.name] = answers(workdir, seed, row.options, pairs)
        _log.info("%s: %d edits", row.name, len(pairs.edits))
    path = out / "icd_editing.png"
    write_grid(path, list(shown.values()), list(shown), [edit.split("=")[1] for edit in pairs.edits])
    _log.info("wrote %s", path)


if __name__ == "__main__":
    sys.exit(main())
