"""The papers' tables and figures by name, for `python -m sdd_jax.reproduce TABLE`; one file a paper."""

from __future__ import annotations

import importlib

from sdd_jax.tables.types import Table

TABLES: dict[str, str] = {
    "ccd-table1": "sdd_jax.tables.ccd:TABLE1",
    "ccd-fig3": "sdd_jax.tables.ccd:FIG3",
    "ccd-fig5": "sdd_jax.tables.ccd:FIG5",
    "ccd-tasks": "sdd_jax.tables.ccd:OTHER_TASKS",
    "icd-stage1": "sdd_jax.tables.icd:STAGE1_TABLE",
    "icd-table1": "sdd_jax.tables.icd:TABLE1",
    "icd-table2": "sdd_jax.tables.icd:TABLE2",
    "icd-table3": "sdd_jax.tables.icd_editing:TABLE3",
    "icd-table4": "sdd_jax.tables.icd:TABLE4",
    "icd-table5": "sdd_jax.tables.icd:TABLE5",
    "icd-fig4": "sdd_jax.tables.icd_figures:FIG4",
    "icd-fig5": "sdd_jax.tables.icd_figures:FIG5",
    "icd-fig9": "sdd_jax.tables.icd_editing:FIG9",
    "icd-fig11": "sdd_jax.tables.icd_figures:FIG11",
    "icd-fig12": "sdd_jax.tables.icd_editing:FIG12",
    "icd-editing": "sdd_jax.tables.icd_editing:METHODS",
    "dds-fig2": "sdd_jax.tables.dds:FIG2",
    "dds-fig5": "sdd_jax.tables.dds:FIG5",
    "dds-fig8": "sdd_jax.tables.dds:FIG8",
    "dds-fig9": "sdd_jax.tables.dds:FIG9",
    "dds-table2": "sdd_jax.tables.dds:TABLE2",
    "dds-ablation": "sdd_jax.tables.dds:ABLATION",
    "sdd-fig1": "sdd_jax.tables.sdd:FIG1",
    "sdd-fig4": "sdd_jax.tables.sdd_fig4:FIG4",
    "sdd-fig7": "sdd_jax.tables.sdd:FIG7",
    "sdd-table1": "sdd_jax.tables.sdd:TABLE1",
    "sdd-table2": "sdd_jax.tables.sdd:TABLE2",
    "sdd-table3": "sdd_jax.tables.sdd:TABLE3",
    "sdd-cost": "sdd_jax.tables.sdd:COST",
}


def find_table(name: str) -> Table:
    """The table of that name; ValueError for any other."""
    if name not in TABLES:
        raise ValueError(f"{name!r} is not a table; use {', '.join(TABLES)}")
    module, variable = TABLES[name].split(":")
    return getattr(importlib.import_module(module), variable)
