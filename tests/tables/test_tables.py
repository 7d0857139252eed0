"""Every table of the registry: its rows can be run, its configs resolve, its claims can be decided and left open."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from sdd_jax.tables import TABLES, find_table
from sdd_jax.tables.cache import Cache
from sdd_jax.tables.claims import judge
from sdd_jax.tables.run import plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=TABLES)
def table(request):
    return find_table(request.param)


def test_a_table_is_registered_by_its_name(request, table):
    assert find_table(table.name) is table
    assert table.title and table.paper and table.rows


def test_evaluations_are_functions(table):
    for name in {row.evaluation for row in table.rows if row.evaluation}:
        module, function = name.split(":")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_every_config_resolves(table, tmp_path, monkeypatch):
    """The plan of a whole table resolves all of its configs; what a training needs is put where its config says."""
    monkeypatch.chdir(ROOT)
    cache = Cache(tmp_path)
    assert "evaluations to do" in plan(table, table.rows, cache)
    trainings = [row.training for row in table.rows if row.training]
    while trainings:
        training = trainings.pop()
        trainings += training.needs.values()
        for key, needed in training.needs.items():
            value = cache.config(training, 0)
            for part in key.split("."):
                value = value[part]
            assert value == str(cache.workdir(needed, 0))


def test_nothing_measured_decides_nothing(table):
    for claim in table.claims:
        verdict = judge(claim, {})
        assert verdict.holds is None and verdict.evidence.startswith("not run: "), claim.text
        assert claim.check.rows, claim.text


def test_seeds_and_options_are_json(table):
    for row in table.rows:
        assert json.loads(json.dumps(dict(row.options))) is not None
        assert all(isinstance(seed, int | np.integer) for seed in (*row.seeds, *row.sampling_seeds))
