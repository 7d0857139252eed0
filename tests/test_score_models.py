"""Editing by scores on every kind of model: eps and v prediction, one text encoder and two, at a size of the user's."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from test_editing_dds import FROZEN, IMAGE, SD, SHORT, denoise, make_model

from sdd_jax import edit as command
from sdd_jax.diffusion.parameterization import converter
from sdd_jax.jobs.dds.options import Descent
from sdd_jax.jobs.editing.methods import EditRequest, edit, frozen_of, guided_unet, texts
from sdd_jax.models.load import load
from sdd_jax.sampling.score_editing import OPTIMIZERS

pytestmark = pytest.mark.usefixtures("compile_quickly")


def v_prediction(params, z, t, context, *, added_cond=None):
    return converter("eps", "v")(denoise(params, z, t, context), z, SD.at(t))


@pytest.mark.parametrize("method", ["sds", "dds", "pds"])
def test_a_v_model_edits_as_the_eps_model_of_the_same_data(method):
    count = len(IMAGE)
    asked = {"frozen": FROZEN, "image": IMAGE, "source": ("a cat",) * count, "target": ("a dog",) * count,
             "options": SHORT}  # fmt: skip
    eps, v = (
        edit(method, EditRequest(model=model, **asked)).image
        for model in (make_model(), make_model(denoise=v_prediction, prediction="v"))
    )
    np.testing.assert_allclose(v, eps, atol=1e-4)
    assert np.abs(v - IMAGE).max() > 0.02


def letters(prompts):
    """Ids of a vocabulary of 99, another first one for every length of a prompt."""
    return np.asarray([[len(prompt) % 90, *[0] * 11] for prompt in prompts], np.int32)


@pytest.fixture(scope="module")
def xl(tiny_xl):
    """A tiny SDXL that reads prompts, with random parameters."""
    model, shapes = load(f"shapes:{tiny_xl}")
    params = tiny.draw(np.random.default_rng(0), shapes)
    return dataclasses.replace(model, tokenize=letters, tokenize_2=letters), params


@pytest.fixture(scope="module")
def models(tiny_model, xl):
    """The tiny Stable Diffusion, the same read as v, a tiny SDXL: what `open_model` returns of each."""
    named = {"sd": tiny_model, "v": (dataclasses.replace(tiny_model[0], prediction="v"), tiny_model[1]), "xl": xl}
    return {name: (model, frozen_of(model, params)) for name, (model, params) in named.items()}


@pytest.mark.parametrize(
    ("name", "method"), [("sd", "pds"), ("v", "cds"), ("xl", "sds"), ("xl", "dds"), ("xl", "cds"), ("xl", "pds")]
)
def test_every_method_edits_a_wide_picture_and_shows_the_way(models, name, method, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    monkeypatch.setattr(command, "open_model", lambda flags: models[name])
    arguments = [f"--method={method}", f"--image={tmp_path / 'in.png'}", "--source=a cat", "--target=an old dog"]
    arguments += ["--size=64x32", f"--out={tmp_path / 'out.png'}", f"--frames={tmp_path / 'way.png'}", "--beside"]
    assert command.main([*arguments, "--option=iterations=2", "--option=step=1", "--option=guidance=3"]) == 0
    with Image.open(tmp_path / "way.png") as way, Image.open(tmp_path / "out.png") as out:
        assert way.size == out.size == (2 * 66 - 2, 32), "two iterations are two frames"
        way, out = np.asarray(way, int), np.asarray(out, int)
    np.testing.assert_array_equal(way[:, 66:], out[:, 66:])
    assert np.abs(way[:, :64] - way[:, 66:]).max() > 0, "the second iteration moved the picture"


def test_sdxl_is_told_the_size_of_the_picture(xl):
    """Conditional and unconditional pass alike; the empty prompt's pooled states are its own."""
    (model, params), seen = xl, []

    def record(params, z, t, context, *, added_cond):
        seen.append(added_cond)
        return z

    frozen = frozen_of(model, params)
    request = EditRequest(
        model=dataclasses.replace(model, denoise=record), frozen=frozen, image=np.zeros((1, 32, 64, 3), np.float32),
        source=("a cat",), target=("a dog of mine",),
    )  # fmt: skip
    context, added = texts(request, request.target)
    guided_unet(request.model, frozen)(np.zeros((1, 8, 16, 4)), np.zeros(1, np.int32), context, 3.0, added_cond=added)
    np.testing.assert_array_equal(seen[0]["time_ids"], [[32, 64, 0, 0, 32, 64]] * 2)
    np.testing.assert_array_equal(seen[0]["text_embeds"], np.concatenate([added["text_embeds"], frozen["null_pooled"]]))
    assert np.abs(seen[0]["text_embeds"][1] - seen[0]["text_embeds"][0]).max() > 1e-3


def test_the_notebooks_defaults():
    """200 iterations of gradient descent without momentum, t in 50..948, w(t) = 1; no picture of the way is decoded."""
    found = Descent()
    assert (found.iterations, found.optimizer, found.t_min, found.t_max) == (200, "sgd", 50, 948)
    assert (found.alpha_power, found.sigma_power, found.clip, found.frames) == (0, 0, None, 0)
    optimizer = OPTIMIZERS[found.optimizer](found.step)
    state = optimizer.init(IMAGE)
    assert not jax.tree.leaves(state), "nothing is carried from one iteration to the next"
    np.testing.assert_allclose(optimizer.update(IMAGE, state)[0], -0.048828125 * IMAGE, rtol=1e-6)
