"""Checks decide claims from figures worked out by hand; null where something was not measured."""

import math

import pytest

from sdd_jax.tables.claims import (
    beyond,
    close,
    closes,
    every,
    gap,
    judge,
    monotone,
    nearer,
    not_worse,
    order,
    reaches,
    settled,
)
from sdd_jax.tables.types import Claim, Row, Stat, Table, Training, stat


def rows(**figures):
    return {name: {"m": Stat(mean, spread, 2)} for name, (mean, spread) in figures.items()}


FIGURES = rows(a=(1.0, 0.1), b=(2.0, 0.1), c=(3.0, 0.1), d=(1.1, 0.1))


def decide(check, measured=FIGURES):
    return judge(Claim(text="", check=check), measured)


def test_spread_is_between_trainings():
    """Two trainings with means 2 and 4: their standard deviation is sqrt(2), whatever the sampling seeds do."""
    found = stat({(0, 0): 1.0, (0, 1): 3.0, (1, 0): 4.0, (1, 1): 4.0})
    assert found[:3] == pytest.approx((3.0, math.sqrt(2), 4)) and dict(found.values)[1, 0] == 4.0
    assert stat({(None, 0): 1.0, (None, 1): 3.0})[:3] == pytest.approx((2.0, math.sqrt(2), 2))
    assert stat({(0, 0): 5.0}) == (5.0, 0.0, 1, (((0, 0), 5.0),)) and str(stat({(0, 0): 5.0})) == "5"
    assert stat({(0, 0): 1.0, (1, 0): 2.0, (1, 1): 4.0}).mean == 2.0, "trainings count alike"


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (order("m", "a", "b", "c", better="lower"), True),
        (order("m", "a", "b", "c", better="higher"), False),
        (order("m", "a", ("b", "c"), better="lower"), True),
        (order("m", ("a", "d"), ("b", "c"), better="lower"), True),
        (order("m", "a", "c", "b", better="lower"), False),
        (order("m", "a", "d", better="lower"), False),  # .1 apart, the spread is .14
        (close("m", "a", "d", margin=0.2), True),
        (close("m", "a", "b", margin=0.2), False),
        (close("m", "b", "c", margin=0.34, relative=True), True),  # 1 of 3
        (close("m", "b", "c", margin=0.33, relative=True), False),
        (nearer("m", "b", "c", to=1.9), True),
        (nearer("m", "c", "a", to=2.2), True),  # .8 and 1.2 off
        (nearer("m", "b", "d", to=1.5), False),  # .5 and .4 off
        (nearer("m", "d", "b", to=1.6), False),  # .5 and .4 off, the other way round
        (nearer("m", "d", "b", to=1.5), False),  # .4 and .5 off, the spread is .14
        (beyond("m", "c", 3.0, better="higher"), True),
        (beyond("m", "c", 2.9, better="lower"), False),
        (not_worse("m", "d", "a", better="lower"), True),  # within the spread
        (not_worse("m", "a", "b", better="lower"), True),
        (not_worse("m", "b", "a", better="lower"), False),
        (reaches("m", "b", "c", share=0.6), True),
        (reaches("m", "b", "c", share=0.7), False),
        (closes("m", "b", "c", "a", share=0.5), True),
        (closes("m", "b", "c", "a", share=0.6), False),
        (closes("m", "b", "a", "c", share=0.6, at_most=True), True),
        (closes("m", "d", "c", "a", share=0.6, at_most=True), False),
        (closes("m", "b", "a", "d", share=-9.0), False),  # no gap
        (gap("m", ("a", "c"), ("a", "b"), better="lower"), True),
        (gap("m", ("a", "b"), ("b", "c"), better="lower"), False),
        (every(close("m", "a", "d", margin=1), order("m", "a", "b", better="lower")), True),
        (every(close("m", "a", "d", margin=1), order("m", "b", "a", better="lower")), False),
    ],
)
def test_checks(check, holds):
    verdict = decide(check)
    assert verdict.holds is holds
    assert verdict.evidence.count("m") and "\n" not in verdict.evidence


def test_the_evidence_carries_the_figures():
    verdict = decide(order("m", "a", "b", better="lower"))
    assert verdict.evidence == "m (lower is better): a 1 ± 0.1 beats b 2 ± 0.1"
    assert "closes 50% of the gap, asked: >= 50%" in decide(closes("m", "b", "c", "a", share=0.5)).evidence
    assert "does not beat d 1.1 ± 0.1, within the seeds' spread 0.14" in decide(order("m", "a", "d", better="lower"))[1]


def test_curves():
    curve = {"a": {f"m@{x}": Stat(y, 0.0, 1) for x, y in ((1, 5.0), (2, 4.0), (4, 3.0))}}
    assert decide(monotone(("m@1", "m@2", "m@4"), "a", better="lower"), curve).holds
    assert not decide(monotone(("m@1", "m@4", "m@2"), "a", better="lower"), curve).holds
    assert decide(order("m@4", "a", "a", better="lower", against="m@1"), curve).holds


def test_null_where_something_is_missing():
    assert decide(order("m", "a", "e", better="lower")) == (None, "not run: e")
    assert decide(order("lpips", "a", "b", better="lower")) == (None, "a did not measure lpips")


@pytest.mark.parametrize(
    ("planned", "runs", "waits"),
    [
        ({"seeds": (0, 1), "sampling_seeds": (0,)}, 1, True),
        ({"seeds": (0, 1), "sampling_seeds": (0,)}, 2, False),
        ({"seeds": (0, 1), "sampling_seeds": (0, 1)}, 2, True),  # one training, sampled twice
        ({"seeds": (0, 1), "sampling_seeds": (0, 1)}, 4, False),
        ({"seeds": (0,), "sampling_seeds": (0,)}, 1, False),  # planned so: deterministic, or ranked along an axis
        ({"seeds": (0,), "sampling_seeds": (0, 1)}, 1, True),
    ],
)
def test_a_lead_of_one_seed_settles_nothing(planned, runs, waits):
    rows = (Row(name="a", evaluation="m:f", training=Training(config="x.py"), **planned),
            Row(name="b", evaluation="m:f", sampling_seeds=(0,)))  # fmt: skip
    claim = Claim(text="", check=order("m", "a", "b", better="higher"))
    (found,) = settled(Table(name="t", title="", paper="", rows=rows, claims=(claim,))).claims
    measured = {"a": {"m": Stat(2.0, 0.0, runs)}, "b": {"m": Stat(1.0, 0.0, 1)}}
    verdict = judge(found, measured)
    assert verdict.holds is (None if waits else True) and ("one seed so far" in verdict.evidence) is waits


def test_a_check_that_makes_no_sense():
    with pytest.raises(ValueError, match="better='up' must be 'higher' or 'lower'"):
        order("m", "a", "b", better="up")
    with pytest.raises(ValueError, match="two groups"):
        order("m", "a", better="lower")


def test_a_table_names_its_rows_once_and_uses_only_those():
    row = Row(name="a", evaluation="module:function")
    with pytest.raises(ValueError, match="two rows 'a'"):
        Table(name="t", title="", paper="", rows=(row, row))
    with pytest.raises(ValueError, match="needs the row 'b', which is not there"):
        claim = Claim(text="x", check=order("m", "a", "b", better="lower"))
        Table(name="t", title="", paper="", rows=(row,), claims=(claim,))
    with pytest.raises(ValueError, match="either an evaluation or a reason"):
        Row(name="a")
    with pytest.raises(ValueError, match="either an evaluation or a reason"):
        Row(name="a", evaluation="m:f", not_run="external")
