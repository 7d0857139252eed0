"""The papers' tables and figures by name, for `python -m sdd_jax.reproduce TABLE`; one file a paper."""

from __future__ import annotations

import importlib

from sdd_jax.tables.types import Table

TABLES: dict[str, str] = {}


def find_table(name: str) -> Table:
    """The table of that name; ValueError for any other."""
    if name not in TABLES:
        raise ValueError(f"{name!r} is not a table; use {', '.join(TABLES)}")
    module, variable = TABLES[name].split(":")
    return getattr(importlib.import_module(module), variable)
