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


OF_CCDS_LOSS = {
    **dict.fromkeys(
        (f"objective.{key}" for key in (
            "boundary_scaling", "eps_distance", "eps_space", "eps_weight", "guidance", "ode_model", "predictor",
            "shared_time", "x_space", "x_weight",
        )),
        "a choice of eq. 11",
    ),
    **dict.fromkeys(("lpips.backbone", "lpips.linear", "lpips.network"), "the weights of one of eq. 11's distances"),
    "init": "only CCD is trained from a random UNet, as an ablation",
}  # fmt: skip
MISSING = {
    "finetune": OF_CCDS_LOSS,
    "cm": {
        **OF_CCDS_LOSS,
        **dict.fromkeys(("model", "revision", "dtype"), "the fine-tuned run's"),
        **dict.fromkeys(("adapter.kind", "adapter.embedding_channels", "condition.task"), "the fine-tuned run's"),
        "objective.hint_weight": "it starts from an embedding that the fine-tuning before it regressed",
    },
    "gd": {
        **OF_CCDS_LOSS,
        **dict.fromkeys(("adapter.kind", "adapter.embedding_channels", "condition.task"), "distilled without one"),
        "objective.hint_weight": "it has no embedding; the fine-tuning after it has",
        "objective.train_unet": "there is nothing else to train",
    },
}
"""By task, the keys of CCD's config that a baseline's lacks, and why."""
ADDED = {
    "finetune": {
        "teacher.workdir": "a GD student, or none",
        "condition.path": "every condition's, of one file",
        "condition.thresholds": "every condition's, of one file",
        "objective.caption_dropout": "of edits, InstructPix2Pix' own",
        "objective.weighting": "of GD's last stage",
    },
    "cm": {"teacher.workdir": "the fine-tuned run", "objective.distance": "its loss"},
    "gd": {
        "teacher.workdir": "the round before",
        "objective.guidance_scale": "the teacher's",
        "objective.substeps": "the teacher's",
    },
}
"""The keys that CCD's config lacks."""
COMPARED = [
    ("finetune.py", "ccd_sr.py", {"objective.grid_steps"}),
    ("finetune.py:adapter", "ccd_sr.py:adapter", {"objective.grid_steps"}),
    ("finetune.py:depth,adapter", "ccd_depth.py:adapter", {"objective.grid_steps"}),
    ("finetune.py:edit", "ccd_edit.py", {"objective.grid_steps"}),
    ("finetune.py:sd15,canny", "ccd_canny.py:sd15", {"objective.grid_steps"}),
    ("finetune.py:gd", "finetune.py", {"objective.grid_steps"}),
    ("cm.py", "ccd_sr.py", set()),
    ("gd.py", "ccd_sr.py", {"steps", "objective.grid_steps"}),
    ("gd.py:halve", "gd.py", {"objective.grid_steps", "objective.guidance_scale"}),
]


@pytest.mark.parametrize(("spec", "beside", "differs"), COMPARED)
def test_a_baseline_differs_from_ccd_in_its_method_alone(spec, beside, differs):
    """The same optimiser and schedule, average, batch, data, start, number of steps; of the embedding's regression the
    same or none, for a reason."""
    own, other = flat(spec), flat(beside)
    assert compared(own, other) == differs
    assert not other.keys() - own.keys() - MISSING[own["task"]].keys(), "missing without a reason"
    assert not own.keys() - other.keys() - ADDED[own["task"]].keys(), "added without a reason"


@pytest.mark.parametrize("task", ["finetune", "cm", "gd"])
def test_every_reason_is_of_a_key_that_one_side_lacks(task):
    pairs = [(flat(spec), flat(beside)) for spec, beside, _ in COMPARED if spec.startswith(task)]
    assert set().union(*(other.keys() - own.keys() for own, other in pairs)) == MISSING[task].keys()
    assert set().union(*(own.keys() - other.keys() for own, other in pairs)) == ADDED[task].keys()


def test_captions_are_dropped_of_edits_alone():
    dropped = {name: flat(f"finetune.py:{name}")["objective.caption_dropout"] for name in ("embedded", "depth", "edit")}
    assert dropped == {"embedded": 0.0, "depth": 0.0, "edit": 0.05}


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
