"""The degradation's numbers, written out: second-order Real-ESRGAN (Wang et al. 2021) and StableSR's lighter one."""

import dataclasses
import math

from sdd_jax.data.degrade_kernels import KERNEL_KINDS
from sdd_jax.data.degrade_spec import REAL_ESRGAN, STABLE_SR

PI = math.pi
BOTH_STAGES = {
    "kernel_size": (7, 21),
    "kind_probabilities": (0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
    "rotation": (-PI, PI),
    "generalized_beta": (0.5, 4.0),
    "plateau_beta": (1.0, 2.0),
    "sinc_probability": 0.1,
    "sinc_cutoff": (PI / 3, PI),
    "wide_kernel_size": 13,
    "wide_sinc_cutoff": (PI / 5, PI),
    "gaussian_probability": 0.5,
    "gray_probability": 0.4,
    "jpeg_quality": (30.0, 95.0),
}


def test_real_esrgans_table():
    kinds = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
    assert KERNEL_KINDS == kinds
    assert dataclasses.asdict(REAL_ESRGAN) == {
        "first": {
            **BOTH_STAGES,
            "blur_probability": 1.0,
            "sigma": (0.2, 3.0),
            "resize_probabilities": (0.2, 0.7, 0.1),
            "resize_scale": (0.15, 1.5),
            "gaussian_sigma": (1.0, 30.0),
            "poisson_scale": (0.05, 3.0),
        },
        "second": {
            **BOTH_STAGES,
            "blur_probability": 0.8,
            "sigma": (0.2, 1.5),
            "resize_probabilities": (0.3, 0.4, 0.3),
            "resize_scale": (0.3, 1.2),
            "gaussian_sigma": (1.0, 25.0),
            "poisson_scale": (0.05, 2.5),
        },
        "factor": 4,
        "final_sinc_probability": 0.8,
        "final_kernel_size": (7, 21),
        "final_sinc_cutoff": (PI / 3, PI),
        "sinc_first_probability": 0.5,
        "sharpen_weight": 0.5,
        "sharpen_window": 51,
        "sharpen_threshold": 10.0,
    }


def test_stable_sr_is_lighter_where_it_says():
    stages = STABLE_SR.first, STABLE_SR.second
    assert [stage.sigma for stage in stages] == [(0.2, 1.5), (0.2, 1.0)]
    assert [stage.gaussian_sigma for stage in stages] == [(1.0, 15.0), (1.0, 12.0)]
    assert [stage.jpeg_quality for stage in stages] == [(60.0, 95.0), (60.0, 100.0)]
    assert STABLE_SR.second.blur_probability == 0.5
