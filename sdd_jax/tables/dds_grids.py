"""`python -m sdd_jax.tables.dds_grids`: a picture of the editors that `reproduce dds-fig5` compares, untrained.

    python -m sdd_jax.tables.dds_grids --out=docs/images

Rows of dds_zero_shot.png: the source, DDS, SDS and SDEdit with the table's settings, at the end of the scores' path
and at the strength of the table's columns, and the exact answer; columns are one held-out portrait of each edit.
`edit_grids` copies the pictures of translators.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sdd_jax.command import Parser, directory, run_command
from sdd_jax.data.edit_pairs import EDITS
from sdd_jax.images import write_grid
from sdd_jax.jobs.dds.report import run_edits
from sdd_jax.jobs.dds.study import PairOptions
from sdd_jax.tables.dds import FIG5
from sdd_jax.tables.dds_rows import SHOWN_STRENGTH
from sdd_jax.train import EngineConfig, use_compile_cache

SHOWN = ("DDS", "SDS", "SDEdit")
_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_draw, argv)


def _draw(argv: Sequence[str]) -> None:
    flags = _parser().parse_args(argv)
    use_compile_cache(EngineConfig.compile_cache)
    asked = PairOptions(edits=EDITS, count=1, world=flags.world)
    (model, frozen), pairs = asked.teacher(), asked.pairs()
    shown = {"source": pairs.image}
    for row in (row for row in FIG5.rows if row.name in SHOWN):
        settings = dict(row.options.get("settings", {}))
        if "vary" in row.options:
            settings[row.options["vary"]] = SHOWN_STRENGTH
        shown[row.name] = run_edits(row.options["method"], model, frozen, pairs, pairs.target, flags.seed, settings)
        _log.info("%s: %d edits", row.name, len(pairs.edits))
    shown["answer"] = pairs.counterfactual
    path = flags.out / "dds_zero_shot.png"
    write_grid(path, list(shown.values()), list(shown), [edit.split("=")[1] for edit in pairs.edits])
    _log.info("wrote %s", path)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m sdd_jax.tables.dds_grids",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--world", default="portraits", help="whose teacher edits")
    parser.add_argument("--seed", type=int, default=0, help="of what a method draws")
    parser.add_argument("--out", type=directory, default=Path("docs/images"), help="where the picture is written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
