"""Curves are compared at equal levels, or not at all; saturation by hand figures."""

import pytest

from sdd_jax.tables import plots
from sdd_jax.tables.claims import judge
from sdd_jax.tables.curves import at_equal, curve, levels_off, read_at
from sdd_jax.tables.types import Claim, Plot, Stat


def measured(spread=0.1, **rows):
    """rows: name -> [(x, success, psnr)]; x None is a point without '@'."""
    return {
        name: {metric if x is None else f"{metric}@{x}": Stat(value, spread, 2) for x, *pair in points
               for metric, value in zip(("success", "psnr"), pair, strict=True)}
        for name, points in rows.items()
    }  # fmt: skip


def decide(found, best, rest, better="higher"):
    return judge(Claim(text="x", check=at_equal("psnr", best, rest, better=better)), found)


def test_curves_are_read_at_the_lower_of_their_highest_levels():
    found = measured(a=[(20, 0.2, 30.0), (10, 0.0, 34.0), (30, 0.8, 20.0)], b=[(0.5, 0.1, 29.0), (0.9, 0.5, 23.0)])
    assert [point.level.mean for point in curve(found, "a", "success", "psnr")] == [0.0, 0.2, 0.8], "in the order of x"
    assert read_at(curve(found, "a", "success", "psnr"), 0.5).value.mean == pytest.approx(25.0)
    verdict = decide(found, "a", "b")
    assert verdict.holds and "a 25 at success 0.5, b 23 at success 0.5" in verdict.evidence
    assert decide(found, "b", "a").holds is False and decide(found, "b", "a", better="lower").holds
    close = measured(a=[(1, 0.5, 23.05)], b=[(1, 0.5, 23.0)])
    assert decide(close, "a", "b").holds is False, "within the seeds' spread"


def test_a_path_that_turns_back_counts_at_its_best():
    """SDS succeeds, then spoils the picture: at .4 it passes 28 dB on its way up and 20 dB on its way down."""
    points = curve(measured(a=[(1, 0.0, 32.0), (2, 0.8, 24.0), (3, 0.0, 16.0)]), "a", "success", "psnr")
    assert read_at(points, 0.4).value.mean == pytest.approx(28.0)
    assert read_at(points, 0.4, sign=-1).value.mean == pytest.approx(20.0)
    assert read_at(points, 0.4).value.spread == 0.1 and read_at(points, 0.9).level.mean == 0.8, "or its nearest point"


def test_points_of_one_level_count_at_their_best():
    """An editor that always succeeds is read where it keeps most, not at its first setting."""
    points = curve(measured(a=[(1, 1.0, 24.0), (2, 1.0, 26.0), (3, 1.0, 25.0)]), "a", "success", "psnr")
    assert read_at(points, 0.9).value.mean == 26.0 and read_at(points, 0.9, sign=-1).value.mean == 24.0


def test_a_row_that_is_one_point_is_read_as_it_is():
    found = measured(a=[(None, 0.5, 26.0)], b=[(1, 0.0, 40.0), (2, 1.0, 10.0)])
    verdict = decide(found, "a", "b")
    assert verdict.holds and "a 26 at success 0.5, b 25 at success 0.5" in verdict.evidence


@pytest.mark.parametrize(("psnr", "holds"), [(26.0, True), (18.0, None)])
def test_what_does_more_and_keeps_more_wins_and_what_does_more_and_keeps_less_says_nothing(psnr, holds):
    """A point at .9 cannot be read at .6, where the curve ends."""
    verdict = decide(measured(a=[(None, 0.9, psnr)], b=[(1, 0.2, 30.0), (2, 0.6, 22.0)]), "a", "b")
    assert verdict.holds is holds and "a " in verdict.evidence


@pytest.mark.parametrize("b", [[(1, 0.05, 30.0)], [(None, 0.0, 60.0)]])
def test_an_editor_that_edits_nothing_is_not_compared(b):
    verdict = decide(measured(a=[(1, 0.5, 23.0)], b=b), "a", "b")
    assert verdict.holds is None and "b reaches success" in verdict.evidence


def test_a_row_without_the_level_decides_nothing():
    found = {**measured(a=[(1, 0.5, 23.0)]), "b": {"psnr": Stat(1.0, 0.0, 1)}}
    assert decide(found, "a", "b").holds is None


@pytest.mark.parametrize(
    ("values", "holds"),
    [((0.2, 0.8, 0.9), True), ((0.2, 0.8, 0.75), True), ((0.2, 0.5, 0.9), False), ((0.8, 0.8, 0.8), False),
     ((0.2, 0.9, 0.25), False)],
)  # fmt: skip
def test_levelling_off(values, holds):
    """The last of them rises and falls again."""
    found = {"a": {f"success@{x}": Stat(value, 0.01, 2) for x, value in zip((1, 5, 15), values, strict=True)}}
    verdict = judge(Claim(text="x", check=levels_off("success", "a", "1", "5", "15")), found)
    assert verdict.holds is holds and f"{values[1]:g} ± 0.01 at 5" in verdict.evidence


def test_a_plot_draws_the_curve_without_the_plain_figure_of_one_of_its_points():
    from_curve = measured(a=[(1, 0.1, 30.0), (2, 0.5, 25.0), (None, 0.5, 25.0)], b=[(None, 0.3, 28.0)])
    plot = Plot(name="trade", metric="success", against="psnr")
    assert [x for x, _ in plots.curve(plot, from_curve["a"])] == [30.0, 25.0]
    assert [x for x, _ in plots.curve(plot, from_curve["b"])] == [28.0], "a single point where there is no other"


def test_a_plot_of_several_metrics_has_a_line_for_each_that_a_row_has(tmp_path):
    rows = measured(a=[(1, 0.1, 30.0), (2, 0.5, 25.0)])
    rows["b"] = {"psnr@1": Stat(9.0, 0.0, 1)}
    plot = Plot(name="both", metric="success", more=("psnr",))
    lines = plots.curves(plot, rows)
    assert {name: [value.mean for _, value in points] for name, points in lines.items()} == {
        "a, success": [0.1, 0.5], "a, psnr": [30.0, 25.0], "b, psnr": [9.0]
    }  # fmt: skip
    assert plots.draw(plot, rows, tmp_path / "both.png") and (tmp_path / "both.png").is_file()
