"""DDS's tables: figure 8 against its closed form, curves compared at equal success, and that every row can run."""

import importlib

import numpy as np
import pytest

from sdd_jax.jobs.dds import study as dds_study
from sdd_jax.jobs.dds.study import GAUSSIAN_STD, gaussian_gradients, gaussian_kappa
from sdd_jax.tables import TABLES, find_table
from sdd_jax.tables.claims import judge
from sdd_jax.tables.dds import FIG5, at_equal, curve, read_at
from sdd_jax.tables.types import Claim, Stat

DDS_TABLES = [name for name in TABLES if name.startswith("dds-")]


@pytest.fixture(scope="module")
def figure():
    return gaussian_gradients(None, 0, {"times": (50, 450, 900), "draws": 60})


@pytest.mark.parametrize("t", [50, 450, 900])
def test_figure_8_on_gaussian_data_is_its_closed_form(figure, t):
    """|g| = kappa, cosine 1 for the aligned pair; other means add to the size and turn the gradient."""
    assert figure[f"aligned@{t}"] == pytest.approx(figure[f"kappa@{t}"], rel=0.03)
    assert figure[f"cosine@{t}"] == pytest.approx(1, abs=1e-5)
    assert figure[f"permuted@{t}"] > figure[f"aligned@{t}"]
    assert figure[f"shuffled@{t}"] == pytest.approx(1, abs=1e-5), "an aligned gradient is -kappa eps for every image"


def test_kappa_by_hand():
    acp = np.asarray(dds_study.Schedule.scaled_linear().alphas_cumprod)[450]
    want = acp * GAUSSIAN_STD**2 / (acp * GAUSSIAN_STD**2 + 1 - acp)
    assert gaussian_kappa(dds_study.Schedule.scaled_linear(), 450) == pytest.approx(want, rel=1e-5)


def measured(**rows):
    """rows: name -> [(x, success, psnr)]."""
    return {
        name: {f"{metric}@{x}": Stat(value, 0.1, 2) for x, *pair in points
               for metric, value in zip(("success", "psnr"), pair, strict=True)}
        for name, points in rows.items()
    }  # fmt: skip


def test_curves_are_compared_at_the_lower_of_their_highest_levels():
    found = measured(a=[(20, 0.2, 30.0), (10, 0.0, 34.0), (30, 0.8, 20.0)], b=[(0.5, 0.1, 29.0), (0.9, 0.5, 23.0)])
    assert [point[0].mean for point in curve(found, "a", "success", "psnr")] == [0.0, 0.2, 0.8]
    assert read_at(curve(found, "a", "success", "psnr"), 0.5).mean == pytest.approx(25.0)
    verdict = at_equal("psnr", "a", "b", better="higher").decide(found)
    assert verdict.holds and "at success 0.5" in verdict.evidence and "a 25, b 23" in verdict.evidence
    assert not at_equal("psnr", "b", "a", better="higher").decide(found).holds
    close = measured(a=[(1, 0.5, 23.05)], b=[(1, 0.5, 23.0)])
    assert not at_equal("psnr", "a", "b", better="higher").decide(close).holds, "within the seeds' spread"


def test_a_row_without_points_decides_nothing():
    check = at_equal("psnr", "a", "b", better="higher")
    found = {**measured(a=[(1, 0.5, 23.0)]), "b": {"psnr": Stat(1.0, 0.0, 1)}}
    assert judge(Claim(text="x", check=check), found).holds is None


@pytest.mark.parametrize("name", DDS_TABLES)
def test_every_row_names_an_evaluation_and_every_claim_its_rows(name):
    table = find_table(name)
    assert table.name == name and table.rows and table.claims
    for row in table.rows:
        if row.evaluation:
            module, function = row.evaluation.split(":")
            assert callable(getattr(importlib.import_module(module), function))


def test_the_zero_shot_table_edits_enough_portraits_in_enough_ways():
    from sdd_jax.data.edit_pairs import EDITS

    assert len(DDS_TABLES) == 6 and len(EDITS) >= 6
    assert all(len(EDITS) * row.options["count"] >= 64 for row in FIG5.rows)
