"""The flags of the commands that make the docs' pictures from what `reproduce` trained: `*_grids` beside this file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sdd_jax.command import Parser
from sdd_jax.data.cache import cache_dir
from sdd_jax.tables.cache import Cache


def parse_grid_flags(
    argv: Sequence[str], name: str, description: str | None, *, seed: str, out: str
) -> tuple[Cache, int, Path]:
    """Returns the cache of trained rows, --seed and --out; name: the command's module, seed and out: their helps."""
    parser = Parser(
        prog=f"python -m sdd_jax.tables.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cache", type=Path, help="trained rows, as reproduce's")
    parser.add_argument("--seed", type=int, default=0, help=seed)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help=out)
    flags = parser.parse_args(argv)
    return Cache(flags.cache or cache_dir() / "rows"), flags.seed, flags.out
