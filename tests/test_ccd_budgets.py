"""CCD's baselines are trained on equal terms: whatever is no choice of the method is the same in their configs."""

from pathlib import Path

import pytest

from sdd_jax.config import defaults_of, flatten, load_config, to_plain
from sdd_jax.train import EngineConfig

CONFIGS = Path(__file__).parents[1] / "configs"


def flat(spec):
    return flatten(to_plain(load_config(f"{CONFIGS}/{spec}", [], defaults_of(EngineConfig))))


def compared(a, b):
    """The keys that both have and that differ, but for the method's own."""
    return {key for key in a.keys() & b.keys() if a[key] != b[key]} - {"task", "data.degradation"}


@pytest.mark.parametrize(
    ("spec", "beside", "differs"),
    [
        ("finetune.py", "ccd_sr.py", {"objective.grid_steps"}),
        ("finetune.py:adapter", "ccd_sr.py:adapter", {"objective.grid_steps"}),
        ("finetune.py:depth,adapter", "ccd_depth.py:adapter", {"objective.grid_steps"}),
        ("finetune.py:edit", "ccd_edit.py", {"objective.grid_steps"}),
        ("finetune.py:sd15,canny", "ccd_canny.py:sd15", {"objective.grid_steps"}),
        ("finetune.py:gd", "finetune.py", {"objective.grid_steps"}),
        ("cm.py", "ccd_sr.py", set()),
        ("gd.py", "ccd_sr.py", {"steps", "objective.grid_steps"}),
        ("gd.py:halve", "gd.py", {"objective.grid_steps", "objective.guidance_scale"}),
    ],
)
def test_a_baseline_differs_from_ccd_in_its_method_alone(spec, beside, differs):
    """The same optimiser and schedule, average, batch, data, start, regression of the embedding, number of steps."""
    own, other = flat(spec), flat(beside)
    assert compared(own, other) == differs


def test_the_last_stage_of_gd_is_weighed_as_its_rounds_are():
    """And no other: a key that all had would be a choice in every fine-tuning."""
    assert flat("finetune.py:gd")["objective.weighting"] == "truncated_snr"
    assert "objective.weighting" not in flat("finetune.py") | flat("finetune.py:depth,adapter")


def test_the_rounds_of_gd_are_one_run_of_ccd():
    steps = [flat(spec)["steps"] for spec in ("gd.py", "gd.py:halve", "ccd_sr.py", "finetune.py", "cm.py")]
    assert steps[0] + steps[1] == steps[2] == steps[3] == steps[4]


@pytest.mark.parametrize("name", ["depth", "edit", "inpaint", "canny"])
def test_debug_stays_small_and_stable_diffusion_long(name):
    for spec, steps in ((f"finetune.py:{name},debug", 4), (f"ccd_{name}.py:debug", 4), (f"finetune.py:{name}", 640)):
        assert flat(spec)["steps"] == steps
    assert flat(f"finetune.py:{name},sd15")["steps"] == flat(f"ccd_{name}.py:sd15")["steps"] == 100_000
    for spec, steps in (("cm.py:sd15", 20_000), ("gd.py:sd21", 20_000), ("cm.py:sd15,debug", 4), ("gd.py:debug", 4)):
        assert flat(spec)["steps"] == steps
