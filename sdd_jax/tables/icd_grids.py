"""`python -m sdd_jax.tables.icd_grids`: pictures of the editing methods that `reproduce icd-editing` compares.

    python -m sdd_jax.reproduce icd-editing
    python -m sdd_jax.tables.icd_grids --out=docs/images

Rows of the grid: the source, the exact answer, each method with the table's settings, iCD with the runs of training
seed 0 that the table trained; columns are one held-out portrait of each edit. What is not trained yet is named and left
out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sdd_jax.command import Parser, run_command
from sdd_jax.data.cache import cache_dir
from sdd_jax.data.edit_pairs import EDITS, edit_pairs
from sdd_jax.images import write_grid
from sdd_jax.jobs.editing.report import FRAMES
from sdd_jax.jobs.icd.edit_measures import answers
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.icd_editing import METHODS
from sdd_jax.train import EngineConfig, use_compile_cache

_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_draw, argv)


def _draw(argv: Sequence[str]) -> None:
    parser = Parser(
        prog="python -m sdd_jax.tables.icd_grids",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cache", type=Path, help="trained rows, as reproduce's")
    parser.add_argument("--seed", type=int, default=0, help="of what a method draws")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="where icd_editing.png is written")
    flags = parser.parse_args(argv)
    use_compile_cache(EngineConfig.compile_cache)
    cache = Cache(flags.cache or cache_dir() / "rows")
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
        shown[row.name] = answers(workdir, flags.seed, row.options, pairs)
        _log.info("%s: %d edits", row.name, len(pairs.edits))
    path = flags.out / "icd_editing.png"
    write_grid(path, list(shown.values()), list(shown), [edit.split("=")[1] for edit in pairs.edits])
    _log.info("wrote %s", path)


if __name__ == "__main__":
    sys.exit(main())
