"""What holds in every run of the same seeds holds however much seeds differ, and the mean alone decides nothing."""

import pytest

from sdd_jax.tables.claims import close, judge, order
from sdd_jax.tables.paired import aligned, at_shared_seeds, closes_in_every_seed, in_every_seed, leads_in_every_seed
from sdd_jax.tables.types import Claim, Row, Table, Training, stat


def trained(*values, metric="m"):
    """Two trainings, two sampling seeds each."""
    return {metric: stat(dict(zip(((0, 0), (0, 1), (1, 0), (1, 1)), values, strict=True)))}


def untrained(*values, metric="m"):
    return {metric: stat({(None, seed): value for seed, value in enumerate(values)})}


ROWS = {
    "good": trained(11.0, 21.0, 13.0, 23.0),
    "bad": trained(10.0, 20.0, 12.0, 22.0),
    "lucky": trained(9.0, 40.0, 13.0, 23.0),
    "teacher": untrained(12.0, 22.0),
    "floor": untrained(1.0, 2.0),
}


def decide(check, rows=ROWS):
    return judge(Claim(text="", check=check), rows)


def test_runs_are_paired_by_their_seeds():
    assert aligned(ROWS["good"]["m"], ROWS["bad"]["m"])[1] == (21.0, 20.0)
    assert aligned(ROWS["good"]["m"], ROWS["teacher"]["m"]) == [(11.0, 12.0), (21.0, 22.0), (13.0, 12.0), (23.0, 22.0)]
    assert aligned(ROWS["teacher"]["m"], ROWS["floor"]["m"]) == [(12.0, 1.0), (22.0, 2.0)]
    half = stat({(0, 0): 3.0, (0, 1): 4.0})
    assert aligned(half, ROWS["good"]["m"]) == [(3.0, 11.0), (4.0, 21.0)], "what both have measured so far"
    assert aligned(half, stat({(1, 0): 3.0})) == []


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (in_every_seed("m", "good", "bad", better="higher"), True),
        (in_every_seed("m", "bad", "good", better="lower"), True),
        (in_every_seed("m", "good", "bad", better="lower"), False),
        (in_every_seed("m", "lucky", "bad", better="higher"), False),  # its mean leads, by one run
        (in_every_seed("m", ("good", "teacher"), "floor", better="higher"), True),
        (in_every_seed("m", "good", "teacher", "floor", better="higher"), False),
        (in_every_seed("m", "good", "good", better="higher"), False),  # a tie beats nothing
        (leads_in_every_seed("m", ("good", "floor"), ("bad", "floor"), better="higher"), True),
        (leads_in_every_seed("m", ("lucky", "floor"), ("bad", "floor"), better="higher"), False),
        (leads_in_every_seed("m", ("good", "bad"), ("bad", "good"), better="lower"), False),
        (closes_in_every_seed("m", "bad", "floor", "good", share=0.9, better="higher"), True),
        (closes_in_every_seed("m", "bad", "floor", "good", share=0.95, better="higher"), False),
        (closes_in_every_seed("m", "floor", "floor", "good", share=0.1, better="higher"), False),  # does nothing
        (closes_in_every_seed("m", "bad", "floor", "floor", share=0.1, better="higher"), False),  # no gap
    ],
)
def test_checks(check, holds):
    verdict = decide(check)
    assert verdict.holds is holds and "\n" not in verdict.evidence and " of " in verdict.evidence


def test_the_spread_of_seeds_would_have_hidden_it():
    verdict = decide(in_every_seed("m", "good", "bad", better="higher"))
    assert verdict.holds and "good 17 ± 1.4 beats bad 16 ± 1.4 in 4 of 4 runs" in verdict.evidence
    assert decide(order("m", "good", "bad", better="higher")).holds is False


def test_curves_are_read_at_other_points():
    row = {**trained(1.0, 2.0, 3.0, 4.0, metric="m@9"), **trained(2.0, 3.0, 4.0, 5.0, metric="m@0")}
    assert decide(in_every_seed("m@9", "a", "a", against="m@0", better="lower"), {"a": row}).holds


def test_one_run_decides_nothing():
    alone = {name: {"m": stat({(0, 0): value})} for name, value in (("a", 2.0), ("b", 1.0))}
    assert decide(in_every_seed("m", "a", "b", better="higher"), alone) == (None, "1 runs of the same seeds, asked 2")
    assert decide(in_every_seed("m", "a", "b", better="higher"), {"a": alone["a"]}).holds is None
    with pytest.raises(ValueError, match="two groups"):
        in_every_seed("m", "a", better="higher")


TRAINING = Training(config="x.py")
PLAN = (
    Row(name="good", training=TRAINING, seeds=(0, 1), evaluation="m:f"),
    Row(name="lucky", training=TRAINING, seeds=(0, 1), evaluation="m:f"),
    Row(name="once", training=TRAINING, evaluation="m:f"),
    Row(name="teacher", evaluation="m:f"),
)
HALF, LATER = {"m": stat({(0, 0): 1.0})}, {"m": stat({(1, 0): 1.0})}
FIRST = {"good": {"m": stat({(0, 0): 11.0, (0, 1): 21.0})}, "once": {"m": stat({(0, 0): 10.0, (0, 1): 20.0})}}


@pytest.mark.parametrize(
    ("check", "rows", "holds", "evidence"),
    [
        (in_every_seed("m", "good", "once", better="higher"), FIRST, True, "in 2 of 2 runs; of training seed 0"),
        (close("m", "good", "once", margin=1.0), {**ROWS, **FIRST, "good": ROWS["good"]}, True, "good 16 ± 7.1"),
        (close("m", "once", "teacher", margin=2.0), {**ROWS, **FIRST}, True, "the only one of once"),
        (in_every_seed("m", "good", "lucky", better="higher"), {**ROWS, **FIRST}, None, "good has one seed so far"),
        (in_every_seed("m", "good", "lucky", better="higher"), ROWS, False, "in 1 of 4 runs"),
        (in_every_seed("m", "good", "once", better="higher"), ROWS | {"once": HALF}, None, "once has one seed"),
        (in_every_seed("m", "good", "once", better="higher"), FIRST | {"good": LATER}, None, "good has one seed"),
    ],
)  # fmt: skip
def test_claims_are_read_at_the_seeds_that_rows_share(check, rows, holds, evidence):
    """Of rows trained twice a claim waits for both, unless it compares them with one that is trained once."""
    claim = Claim(text="", check=check)
    (found,) = at_shared_seeds(Table(name="t", title="", paper="", rows=PLAN, claims=(claim,))).claims
    verdict = judge(found, rows)
    assert verdict.holds is holds and evidence in verdict.evidence
    assert (" the only one of once" in verdict.evidence) is (holds is not None and "once" in check.rows)
