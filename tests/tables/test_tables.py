"""Every table of the registry: its rows can be run, its configs resolve, its claims can be decided and left open."""

import importlib
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


def test_every_config_resolves_and_fits_its_limits(table, tmp_path, monkeypatch):
    """A plan of the whole table resolves every config; a training is planned in 15 minutes, a table in 4 hours."""
    monkeypatch.chdir(ROOT)
    cache = Cache(tmp_path)
    text = plan(table, table.rows, cache)
    hours, minutes = text.splitlines()[-1].split("about ")[1].split(" h")[0].split(":")
    assert int(hours) * 60 + int(minutes) <= 240, text
    trainings = [row.training for row in table.rows if row.training]
    while trainings:
        training = trainings.pop()
        assert training.minutes <= 15, training
        trainings += training.needs.values()
        for key in training.needs:
            assert cache.config(training, 0)[key.split(".")[0]].workdir.startswith(str(tmp_path))


def test_nothing_measured_decides_nothing(table):
    for claim in table.claims:
        verdict = judge(claim, {})
        assert verdict.holds is None and verdict.evidence.startswith("not run: "), claim.text
        assert claim.check.rows, claim.text


def test_seeds_and_options_are_json(table):
    import json

    for row in table.rows:
        assert json.loads(json.dumps(dict(row.options))) is not None
        assert all(isinstance(seed, int | np.integer) for seed in (*row.seeds, *row.sampling_seeds))
