"""The cost model by hand, and how times are taken."""

import math
import time

import pytest

from sdd_jax.evals.edit_cost import EditCost, measure_seconds


def test_break_even_by_hand():
    cost = EditCost(train=60.0, manipulator=0.5, editor=10.5)
    assert cost.break_even == 6.0
    assert cost.edited(6) == cost.manipulated(6) == 63.0
    assert cost.manipulated(7) < cost.edited(7) and cost.manipulated(5) > cost.edited(5)


@pytest.mark.parametrize("editor", [0.5, 0.4])
def test_a_manipulator_that_is_no_faster_never_pays(editor):
    assert EditCost(train=60.0, manipulator=0.5, editor=editor).break_even == math.inf


def test_the_first_run_is_not_timed():
    calls = []

    def run():
        calls.append(None)
        time.sleep(0.5 if len(calls) == 1 else 0.01)

    assert 0.009 < measure_seconds(run, repeats=3) < 0.4 and len(calls) == 4
