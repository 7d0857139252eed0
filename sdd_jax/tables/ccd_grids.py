"""`python -m sdd_jax.tables.ccd_grids`: a picture of each other task's CCD run that `reproduce ccd-tasks` trained.

    python -m sdd_jax.reproduce ccd-tasks
    python -m sdd_jax.tables.ccd_grids --out=docs/images

Rows of a grid: the condition, the teacher without it, CCD in 1, 2 and 4 steps, the truth through the autoencoder, the
truth; of edges, those of CCD's 4 steps too. Columns are the first held-out portraits, below what their prompts ask for:
of an edit the attribute and its new value, of text-to-image species, expression and accessory. Tasks that are not
trained yet are named and left out.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from sdd_jax.command import run_command
from sdd_jax.jobs.ccd.grids import SHOWN, show
from sdd_jax.jobs.ccd.heldout import open_heldout
from sdd_jax.jobs.ccd.report import draw
from sdd_jax.tables.ccd_tasks import TRAINED
from sdd_jax.tables.grids import parse_grid_flags
from sdd_jax.train import EngineConfig, use_compile_cache

_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_draw, argv)


def _draw(argv: Sequence[str]) -> None:
    cache, seed, out = parse_grid_flags(
        argv, "ccd_grids", __doc__, seed="of the sampling noise", out="where ccd_TASK.png are written"
    )
    use_compile_cache(EngineConfig.compile_cache)
    trained = {task: training for task, training in TRAINED.items() if cache.is_trained(training, 0)}
    if not trained:
        raise ValueError(f"no task is trained in {cache.root}: run python -m sdd_jax.reproduce ccd-tasks first")
    for task in (task for task in TRAINED if task not in trained):
        _log.info("%s is not trained yet", task)
    for task, training in trained.items():
        heldout = open_heldout(cache.workdir(training, 0), SHOWN)
        path = out / f"ccd_{task}.png"
        show(heldout, draw(heldout, (), seed, SHOWN, ()), path)
        _log.info("wrote %s", path)


if __name__ == "__main__":
    sys.exit(main())
