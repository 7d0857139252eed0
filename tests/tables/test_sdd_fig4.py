"""Fig. 4 of SDD: what its claims decide by hand figures."""

import numpy as np
import pytest

from sdd_jax.jobs.sdd.hqs import rank_correlation
from sdd_jax.objectives.hqs import HQSOptions
from sdd_jax.tables.claims import judge
from sdd_jax.tables.plots import curve
from sdd_jax.tables.sdd_fig4 import FIG4, PRIMARY, SINGLE, scores_name, significant
from sdd_jax.tables.sdd_rows import PROMPTS
from sdd_jax.tables.types import Stat


def stat(value, runs=2):
    return Stat(value, 0.0, runs)


def single(values, scores, name="HQS, white hair", metric="success"):
    """Figures of white hair's seven timesteps, each measured once, as they are planned."""
    names = SINGLE["white hair"]
    measured = {row: {metric: stat(s, 1)} for row, s in zip(names.values(), values, strict=True)}
    measured[name] = {f"hqs@{t}": stat(s, 1) for t, s in zip(names, scores, strict=True)}
    measured[name] |= {f"N@{t}": stat(s**2, 1) for t, s in zip(names, scores, strict=True)}
    measured[name] |= {f"H@{t}": stat(t % 400, 1) for t in names}
    return measured


def test_what_chance_reaches_once_in_twenty():
    """The published one-sided 5% values of Spearman's correlation."""
    found = [significant(n) for n in range(4, 10)]
    assert found == pytest.approx([1.0, 0.9, 0.829, 0.714, 0.643, 0.600], abs=5e-4)
    with pytest.raises(ValueError, match="3 pairs: chance orders them alike"):
        significant(3)


@pytest.mark.parametrize(
    ("successes", "rho", "holds"),
    [
        (np.linspace(0, 1, 7), 1, True),
        (np.linspace(1, 0, 7), -1, False),
        ([0.0, 0.1, 0.4, 0.3, 0.6, 0.5, 0.2], 4 / 7, False),
        ([0.2, 0.1, 0.0, 0.3, 0.6, 0.5, 0.4], 5 / 7, True),
        ([0.5] * 7, None, None),
    ],
)
def test_the_central_claim_is_a_rank_correlation(successes, rho, holds):
    verdict = judge(FIG4.claims[0], single(successes, np.arange(7) / 7))
    assert verdict.holds is holds
    if holds is not None:
        assert f"rank correlation {rho:.3f} over 7 timesteps, asked 0.714" in verdict.evidence
    assert judge(FIG4.claims[0], single(np.linspace(0, 1, 7), np.ones(7))).holds is None
    nearer = single(np.linspace(0.1, 0.7, 7), np.arange(7), metric="clip_directional")
    assert judge(FIG4.claims[1], nearer).holds and judge(FIG4.claims[0], nearer).holds is None


def test_the_central_claim_says_what_else_ranks_as_well_and_what_ties():
    """Success follows t to the letter, and so does the score; its square N turns back in the middle."""
    scores = np.array([-3.0, -2, -1, 0, 1, 2, 3])
    evidence = judge(FIG4.claims[0], single(np.linspace(0, 1, 7), scores)).evidence
    h = -rank_correlation([t % 400 for t in SINGLE["white hair"]], np.arange(7))
    assert "asked 0.714 (with N alone 0.000, with -H alone" in evidence and "tie" not in evidence
    assert f"with -H alone {h:.3f}, with t, and so with sigma_t^2, 1.000): t=100: success 0 at HQS -3.00" in evidence
    tied = judge(FIG4.claims[0], single([0.0, 0.0, 0.0, 0.2, 0.4, 1.0, 1.0], scores))
    assert tied.holds and "; 5 of 7 tie in success, the asked is without ties)" in tied.evidence


def test_single_timesteps_are_drawn_against_their_score():
    plots = [plot for plot in FIG4.plots if plot.against == "mean_hqs"]
    assert {plot.rows for plot in plots} == {tuple(names.values()) for names in SINGLE.values()} and len(plots) == 6
    along = {"success": stat(0.5, 1), "success@0.5": stat(0.2, 1)}
    measured = {row: {**along, "mean_hqs": stat(i / 7, 1)} for i, row in enumerate(plots[0].rows)}
    assert curve(plots[0], measured[plots[0].rows[2]]) == [(2 / 7, stat(0.5, 1))]


def test_the_central_claim_is_asked_of_every_prompt_and_reading():
    eq_8 = "HQS, white hair, eq. 8, w = 7.5"
    claims = [claim for claim in FIG4.claims if claim.check.rows[:2] == (eq_8, "white hair, t = 100")]
    verdict = judge(claims[0], single(np.linspace(0, 1, 7), np.arange(7), eq_8))
    assert verdict.holds and judge(FIG4.claims[0], single(np.ones(7), np.ones(7), eq_8)).holds is None
    rows = {row.name: row for row in FIG4.rows}
    assert HQSOptions(**rows[eq_8].options["search"]) == HQSOptions(guidance=7.5)
    for prompt in PROMPTS:
        assert HQSOptions(**rows[f"HQS, {prompt}"].options["search"]) == HQSOptions(), "search's defaults"
    ranked = [claim.check.rows for claim in FIG4.claims if len(claim.check.rows) > 1]
    for edit, names in SINGLE.items():
        for scores in (f"HQS, {edit}", f"HQS, {edit}, as trainings search"):
            primary = scores.endswith(PRIMARY)
            assert ranked.count((scores, *names.values())) == 3 + primary, "success, CLIP's direction, what is kept"


def test_what_is_kept_is_compared_at_equal_success():
    """Of seven timesteps, each trained as strongly as its place: at success .1, all reach it, the first keep most."""
    claim = next(one for one in FIG4.claims if one.text.startswith("white hair: at equal success, the higher"))
    scores = np.linspace(1, -1, 7)

    def along(strongest, falls):
        points = {f"success@{share}": stat(share * strongest, 1) for share in (0.0, 1.0)}
        return points | {f"psnr_outside@{share}": stat(40 - falls * share * strongest, 1) for share in (0.0, 1.0)}

    measured = single(np.zeros(7), scores)
    for place, row in enumerate(SINGLE["white hair"].values()):
        measured[row] |= along(0.1 * (place + 1), 10.0 * (place + 1))
    verdict = judge(claim, measured)
    assert verdict.holds and "rank correlation 1.000 over 7 timesteps, asked 0.714 (with N alone" in verdict.evidence
    assert "with t, and so with sigma_t^2, -1.000)" in verdict.evidence
    assert "psnr_outside at success 0.1: t=100: 39 at HQS 1.00, t=250: 38 at HQS 0.67" in verdict.evidence
    assert judge(claim, {**measured, "HQS, white hair": single(np.zeros(7), -scores)["HQS, white hair"]}).holds is False
    measured["white hair, t = 100"] |= along(0.05, 10.0)
    assert judge(claim, measured).holds is None, "which never succeeds"


def test_a_score_leads_its_parts_or_does_not():
    claim = next(one for one in FIG4.claims if one.text.startswith("white hair: success follows the score more"))
    name = scores_name("white hair", PRIMARY)
    successes = [0.0, 0.1, 0.3, 0.9, 0.8, 0.5, 0.2]
    verdict = judge(claim, single(successes, successes, name))
    assert not verdict.holds and "with N alone 1.000" in verdict.evidence, "N ranks as the score does"
    scores = [-0.9, -0.5, 0.1, 0.4, 0.3, 0.2, -0.6]
    assert judge(claim, single(successes, scores, name)).holds, "its square does not"
