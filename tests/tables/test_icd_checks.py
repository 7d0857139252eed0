"""Checks of iCD's claims along curves, on figures made up by hand."""

from sdd_jax.tables.claims import judge
from sdd_jax.tables.curves import comparable
from sdd_jax.tables.icd_checks import at_most_share, exponential, rises, undominated
from sdd_jax.tables.types import Claim, stat


def twice(value, apart=0.0):
    """A metric of two runs."""
    return stat({(0, 0): value - apart / 2, (0, 1): value + apart / 2})


def curve(metric, values, apart=0.0):
    return {f"{metric}@{x:g}": twice(value, apart) for x, value in values.items()}


def holds(check, rows):
    return judge(Claim(text="", check=check), rows).holds


def test_checks_along_curves():
    shape = {0: 1.0, 1: 0.5, 2: 1.5}
    assert holds(rises("m", "r"), {"r": curve("m", {0: 1.0, 1: 1.0, 2: 1.5}, 4.0)})
    assert not holds(rises("m", "r"), {"r": curve("m", shape, 4.0)}), "every run falls on the way"
    mixed = {"m@0": stat({(0, 0): 1.0, (0, 1): 3.0}), "m@1": stat({(0, 0): 2.0, (0, 1): 2.5})}
    assert not holds(rises("m", "r"), {"r": mixed}), "one run ends below its start"
    assert holds(rises("m", "r"), {"r": {**mixed, "m@2": stat({(0, 0): 3.0, (0, 1): 4.0})}}), "only one run steps back"
    assert holds(exponential("m", "r"), {"r": curve("m", {0: 1.0, 1: -1.0})}) is None
    cost = {"r": {"one": twice(1.01), "two": twice(2.0)}}
    assert holds(at_most_share("one", "r", of="two", share=0.525), cost)
    assert not holds(at_most_share("one", "r", of="two", share=0.5), cost)


def test_a_trade_off_is_good_where_no_point_is_better_in_both():
    rows = {
        "a": {**curve("mse", {0.7: 1.0, 0.8: 2.0}), **curve("clip_score", {0.7: 0.8, 0.8: 0.9})},
        "b": {**curve("mse", {1.0: 1.9}, 1.0), **curve("clip_score", {1.0: 0.95}, 1.0)},
    }
    rows = {name: {x: value if x.endswith("@1") else twice(value.mean, 1.0) for x, value in row.items()}
            for name, row in rows.items()}  # fmt: skip
    assert holds(undominated(0.8, "a", ()), rows) and holds(undominated(0.7, "a", ("b",)), rows)
    assert not holds(undominated(0.8, "a", ("b",)), rows)
    rows["b"]["clip_score@1"] = stat({(0, 0): 0.3, (0, 1): 1.6})
    assert holds(undominated(0.8, "a", ("b",)), rows), "one run of two is worse in one of the metrics"
    assert holds(undominated(0.9, "a", ("b",)), rows) is None, "not measured there"


def test_curves_are_compared_at_equal_success():
    def row(*pairs):
        xs = (0.2, 0.5, 0.8)
        return {
            **curve("success", dict(zip(xs, (one for one, _ in pairs), strict=True))),
            **curve("preservation", dict(zip(xs, (two for _, two in pairs), strict=True))),
        }

    rows = {
        "a": row((0.8, 0.7), (0.6, 0.8), (0.2, 0.9)),
        "b": row((0.6, 0.83), (0.4, 0.86), (0.2, 0.9)),
        "c": row((0.9, 0.9), (0.8, 0.95), (0.2, 0.99)),
    }
    assert holds(comparable("preservation", "a", ("b",), margin=0.04), rows)
    assert not holds(comparable("preservation", "a", ("b",), margin=0.02), rows)
    assert not holds(comparable("preservation", "a", ("c",), margin=0.2), rows)
    assert not holds(comparable("preservation", "a", ("b", "c"), margin=0.04), rows), "one of two is not most"
    low = {"a": row(*((success / 10, kept) for success, kept in ((0.9, 0.7), (0.6, 0.8), (0.2, 0.9)))), "b": rows["b"]}
    assert holds(comparable("preservation", "a", ("b",), margin=0.04), low) is None, "nothing is edited"
    assert holds(comparable("preservation", "a", ("b", "b", "c"), margin=0.04), rows)


def test_an_editor_that_does_little_is_not_comparable():
    """It keeps as much as those that edit, where they succeed far more often: nothing is compared."""
    idle = {**curve("success", {0.2: 0.15, 0.8: 0.12}), **curve("preservation", {0.2: 0.97, 0.8: 0.99})}
    busy = {**curve("success", {0.2: 0.9, 0.8: 0.6}), **curve("preservation", {0.2: 0.9, 0.8: 0.97})}
    better = {**busy, **curve("preservation", {0.2: 0.98, 0.8: 0.99})}
    rows = {
        "idle": idle,
        "busy": busy,
        "better": better,
        "other": {**idle, **curve("preservation", {0.2: 0.8, 0.8: 0.8})},
    }
    for rival in ("busy", "better"):
        assert holds(comparable("preservation", "idle", (rival,), margin=0.03), rows) is None
    assert holds(comparable("preservation", "idle", ("other", "other", "busy"), margin=0.0), rows), (
        "two of three decide"
    )
    assert holds(comparable("preservation", "other", ("idle", "busy"), margin=0.0), rows) is False
    assert holds(comparable("preservation", "idle", ("other", "busy"), margin=0.0), rows) is None
