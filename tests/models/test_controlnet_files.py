"""A ControlNet's directory: PyTorch's gives PyTorch's outputs, an exported one comes back, a wrong one is one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import diffusers
import jax
import pytest
import torch
import torch_parity as parity
from torch_pipelines import assert_same_trees

from sdd_jax.models.load import load_controlnet
from sdd_jax.models.save import save_component

CONFIG = parity.control_config(parity.CONVOLUTIONAL)
WEIGHTS = "diffusion_pytorch_model.safetensors"
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture()
def written(tmp_path: Path) -> tuple[diffusers.ControlNetModel, Path]:
    """A ControlNet of PyTorch diffusers with random weights, and the directory it was saved to."""
    theirs = diffusers.ControlNetModel.from_config(CONFIG)
    parity.randomise(theirs, seed=4)
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, tmp_path / "theirs"


def test_outputs_are_pytorchs_and_an_export_reads_back(written: Any, tmp_path: Path) -> None:
    theirs, directory = written
    controlnet, params = load_controlnet(directory)
    made = parity.inputs(parity.CONVOLUTIONAL, (4, 4), condition_factor=4)
    residuals = jax.jit(lambda p, made: controlnet.apply({"params": p}, **made))(params, made)
    with torch.no_grad():
        down, mid = theirs(
            **parity.torch_arguments(made), controlnet_cond=parity.nchw(made["condition"]), return_dict=False
        )
    for ours, expected in zip([*residuals.down, residuals.mid], [*down, mid], strict=True):
        assert parity.relative_error(ours, expected) <= 1e-4

    exported = save_component(params, CONFIG, tmp_path / "exported", "ControlNetModel")
    again, same = load_controlnet(exported)
    assert_same_trees(same, params)
    assert again == controlnet, "the same network of the same weights: the same outputs"


def spoil(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda d: d.rename(d.parent / "elsewhere"), "theirs is no directory: give a ControlNet's"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / WEIGHTS).unlink(), "theirs has no weights"),
        (lambda d: os.truncate(d / WEIGHTS, 999), f"{WEIGHTS} is damaged or truncated"),
        (lambda d: spoil(d, _class_name="UNet2DConditionModel"), "describes a UNet2DConditionModel, not a ControlNet"),
        (lambda d: spoil(d, class_embed_type="timestep"), "class_embed_type='timestep' is not supported"),
        (lambda d: spoil(d, layers_per_block=2), f"{WEIGHTS} does not fit its config.json: .* missing"),
    ],
)
def test_a_wrong_directory_is_refused_in_one_line(written: Any, spoilt: Any, message: str) -> None:
    spoilt(written[1])
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_controlnet(written[1])
    assert "\n" not in str(error.value)
