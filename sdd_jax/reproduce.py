"""`python -m sdd_jax.reproduce TABLE`: a paper's table or figure, trained, measured and written to `results/`.

    python -m sdd_jax.reproduce --list                                 the tables
    python -m sdd_jax.reproduce ccd-table1 --dry-run                   what is cached and what is to do, with times
    python -m sdd_jax.reproduce ccd-table1 --rows=ccd-4-steps,cm-*     some of its rows
    python -m sdd_jax.reproduce ccd-table1 --missing                   what results/ lacks: figures made elsewhere stay

A row that is trained or measured is kept (`--cache`) and never made twice. The command can be stopped and killed: the
same command goes on where it was, inside a training too.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sdd_jax.command import Parser, run_command
from sdd_jax.data.cache import cache_dir
from sdd_jax.tables import TABLES, find_table
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.children import Stopped
from sdd_jax.tables.report import measured_before
from sdd_jax.tables.run import plan, run_table

_log = logging.getLogger("sdd_jax")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_reproduce, argv)


def _reproduce(argv: Sequence[str]) -> None:
    parser = Parser(
        prog="python -m sdd_jax.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", help="one of --list")
    parser.add_argument("--list", action="store_true", help="print the tables")
    parser.add_argument("--rows", default="", help="rows by their short names, as --dry-run shows them, * allowed")
    parser.add_argument("--dry-run", action="store_true", help="print the plan only")
    parser.add_argument(
        "--missing", action="store_true", help="leave out what the results file has already, on whatever machine made"
    )
    parser.add_argument("--cache", type=Path, help="trained rows; default: rows/ beside the cached arrays")
    parser.add_argument("--out", type=Path, default=Path("results"), help="where results are written")
    flags = parser.parse_args(argv)
    if flags.list:
        for name in TABLES:
            table = find_table(name)
            print(f"{name:12}  {table.title} ({table.paper}): {len(table.rows)} rows")
        return
    if flags.table is None:
        raise ValueError(f"name a table: {', '.join(TABLES)}")
    table = find_table(flags.table)
    rows = table.select([pattern for pattern in flags.rows.split(",") if pattern])
    cache = Cache(flags.cache or cache_dir() / "rows")
    have = measured_before(table, cache, flags.out) if flags.missing else frozenset()
    print(plan(table, rows, cache, have), flush=True)
    if flags.dry_run:
        return
    try:
        run_table(table, rows, cache, flags.out, have)
    except Stopped:
        _log.info("stopping as asked; the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
