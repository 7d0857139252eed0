"""What iCD's tables share: the trainings, and the names of the evaluations.

Every training of stage 2 starts from the one of stage 1 of its seed, and all have the same steps and batch, as in the
paper: compared are equal numbers of updates, not equal costs. Trained twice are stage 1, rows C, F and G of table 2 and
what edits: the spread of such a row is between its trainings, on the same pictures. The ablations A, B and E and the
three steps are trained once, with seed 0: claims that read them compare that training's runs (`at_shared_seeds`).

The budget is 15 minutes for a training on two CPU cores. One forward of the UNet for one sample is F; stage 1 (5F)
makes 17 samples a second on one core, 85 F, and two cores are planned as 140 F a second.
"""

from __future__ import annotations

from sdd_jax.tables.types import Training

TWICE, ONCE = (0, 1), (0,)
SCALES = (1, 2, 3, 4, 6)
TAU = 0.7
STEPS = {"stage1": (1400, 16), "stage2": (240, 8)}
F_A_SECOND, COMPILATION = 140.0, 1.5

INVERSION = "sdd_jax.jobs.icd.measures:inversion"
GENERATION = "sdd_jax.jobs.icd.measures:generation"
ENCODING = "sdd_jax.jobs.icd.measures:encoding"
CEILING = "sdd_jax.jobs.icd.measures:ceiling"
SCHEDULES = "sdd_jax.jobs.icd.measures:schedules"
TRAINING = "sdd_jax.jobs.icd.measures:training"
EDITING = "sdd_jax.jobs.icd.edit_measures:editing"
EDITING_CURVE = "sdd_jax.jobs.icd.edit_measures:editing_curve"
DISTILLATION = "sdd_jax.jobs.icd.guidance_distill:measure"

W, EDITING_W = 2.0, 3.0
"""Of guided rows: at 1, the model card's best, H to K would be A to G; of 1.5 and 2, which it measures too, the more
accurate (docs/portraits.md). Of edits: one for all methods, each of which was published with a scale of its own."""
GUIDED = {"w": W}
DYNAMIC = {"w": W, "tau": TAU}
AT_W = f"Guided rows: w = {W:g} in place of the paper's 8"
AT_EDITING_W = f"All methods are guided at w = {EDITING_W:g}"

COST = {"reverse_weight": 5, "forward_weight": 5, "forward_preservation": 4, "reverse_preservation": 4}


def planned(stage: str, cost: int) -> float:
    """Minutes that a stage takes on two cores at `cost` F a sample, compilation included."""
    steps, batch = STEPS[stage]
    return COMPILATION + steps * batch * cost / (60 * F_A_SECOND)


STAGE1 = Training(config="configs/icd.py:stage1", overrides=("preview_every=0",), minutes=planned("stage1", 5))


def stage2(boundaries: str, *weightless: str, keep: int = 2) -> Training:
    """A training of stage 2 with a configuration of boundaries, some of its losses left out; keep: its checkpoints."""
    dropped = tuple(f"objective.{name}=0.0" for name in weightless)
    return Training(
        config="configs/icd.py:stage2",
        overrides=(f"objective.boundaries={boundaries}", *dropped, "preview_every=0", f"keep={keep}"),
        needs={"teacher.workdir": STAGE1},
        minutes=planned("stage2", sum(cost for name, cost in COST.items() if name not in weightless)),
    )


TWO, THREE, FOUR = (
    stage2(jumps, "forward_preservation", "reverse_preservation") for jumps in ("2", "3_tau0.7", "4_tau0.7")
)
ONLY_LF = stage2("4_tau0.7", "forward_weight", "reverse_preservation")
WITH_LF = stage2("4_tau0.7", "reverse_preservation")
WITH_BOTH = stage2("4_tau0.7", keep=7)
THREE_WITH_BOTH, FOR_EDITING = stage2("3_tau0.7"), stage2("4_tau0.8")
