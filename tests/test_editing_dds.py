"""Editing by scores as a method: closed forms on a model of Gaussian data, cost and files on the tiny UNet."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.transport import gaussian_eps
from sdd_jax.jobs.dds import editing as editing_dds
from sdd_jax.jobs.dds.editing import most_parts
from sdd_jax.jobs.editing.methods import EditRequest, edit, frozen_of
from sdd_jax.jobs.sdd.timesteps import read_timesteps
from sdd_jax.models.hub import PORTRAITS
from sdd_jax.models.tokenizer import load_tokenizer
from sdd_jax.sampling.score_editing import draw_iteration, timesteps
from sdd_jax.types import ModelBundle

pytestmark = pytest.mark.usefixtures("compile_quickly")
SD = Schedule.scaled_linear()
MEANS = {"": 0.0, "a cat": 0.5, "a dog": -0.5}
TOKENIZER = load_tokenizer(PORTRAITS / "tokenizer")
STD = 0.5


def embed_text(params, ids, ids_2=None):
    second = {int(TOKENIZER([text])[0, 2]): mean for text, mean in MEANS.items()}
    mean = sum(jnp.where(ids[:, 2] == token, value, 0.0) for token, value in second.items())
    return jnp.broadcast_to(mean[:, None, None], (*ids.shape, 1)), None


def denoise(params, z, t, context, *, added_cond=None):
    """The exact eps of N(mean(prompt), .25)."""
    return gaussian_eps(z, SD.at(t), context[:, 0, 0][:, None, None, None], STD)


def make_model(**changes):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    fields |= {
        "denoise": denoise,
        "encode": lambda vae, image, rng=None: image,
        "decode": lambda vae, z: z,
        "embed_text": embed_text,
        "tokenize": TOKENIZER,
        "prediction": "eps",
        "alphas_cumprod": np.asarray(SD.alphas_cumprod),
        "downsampling": 1,
        "sample_size": 8,
        "configs": {"unet": {"block_out_channels": [8, 8]}},
        "source": "gaussian",
    }
    return ModelBundle(**{**fields, **changes})


MODEL = make_model()
FROZEN = frozen_of(MODEL, {"unet": {}, "vae": {}, "text_encoder": {}})
IMAGE = 0.5 + 0.1 * np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
SHORT = {"iterations": 4, "frames": 0, "guidance": 2.0, "step": 0.1}


def request(image=IMAGE, target="a dog", seed=0, **options):
    count = len(image)
    return EditRequest(
        model=MODEL, frozen=FROZEN, image=image, source=("a cat",) * count, target=(target,) * count, seed=seed,
        options=options,
    )  # fmt: skip


def drawn(seed, iterations, first=50, last=948, shape=IMAGE.shape):
    times = jnp.asarray(timesteps(first, last))
    return [draw_iteration(jax.random.key(seed), jnp.int32(i), shape, times, SD) for i in range(iterations)]


def test_dds_follows_the_gaussians_closed_form():
    """g = kappa' (alpha (z - zhat) - alpha w (mu_y - mu_yhat)), kappa' = sigma / (alpha^2 tau^2 + sigma^2)."""
    found = edit("dds", request(**SHORT))
    want = IMAGE.astype(np.float64)
    for draw in drawn(0, 4):
        alpha, sigma = (np.asarray(x, np.float64) for x in draw.level)
        kappa = sigma / (alpha**2 * STD**2 + sigma**2)
        want = want - 0.1 * kappa * alpha * ((want - IMAGE) - 2.0 * (MEANS["a dog"] - MEANS["a cat"]))
    np.testing.assert_allclose(found.image, np.clip(want, -1, 1), atol=1e-4)
    assert found.evaluations == 4 * 4 and found.frames is None


@pytest.mark.parametrize("method", ["dds", "pds", "cds"])
def test_equal_prompts_return_the_picture_exactly(method):
    extra = {"contrast": 0.0} if method == "cds" else {}
    np.testing.assert_array_equal(edit(method, request(target="a cat", **SHORT, **extra)).image, IMAGE)


def test_sds_with_the_source_prompt_drifts():
    assert np.abs(edit("sds", request(target="a cat", **SHORT)).image - IMAGE).mean() > 0.02


def test_pds_pulls_back_to_the_source():
    options = {**SHORT, "iterations": 40, "step": 1.0}
    pulled, free = (edit("pds", request(**options, stride=stride)).image for stride in (2, 1))
    assert 0 < np.abs(pulled - IMAGE).mean() < np.abs(free - IMAGE).mean()


@pytest.mark.parametrize(
    ("method", "options", "evaluations"),
    [("sds", {}, 2), ("dds", {}, 4), ("pds", {}, 4), ("sds", {"guidance": 1.0}, 1), ("dds", {"guidance": 1}, 2)],
)
def test_evaluations_and_guidance_of_one_which_is_half_the_cost(method, options, evaluations):
    rows = []

    def counting(params, z, t, context, *, added_cond=None):
        rows.append(z.shape[0])
        return denoise(params, z, t, context)

    counted = dataclasses.replace(request(**{**SHORT, **options}), model=make_model(denoise=counting))
    result = edit(method, counted)
    assert result.evaluations == 4 * evaluations and rows == [2 * evaluations], "one call of the network, traced once"


def test_frames_are_equal_parts_and_end_in_the_result():
    result = edit("dds", request(**{**SHORT, "frames": 3}))
    assert result.frames.shape == (2, *IMAGE.shape), "2 is the most, up to 3, that divides 4"
    np.testing.assert_array_equal(result.frames[-1], result.image)
    np.testing.assert_allclose(result.image, edit("dds", request(**SHORT)).image, atol=1e-6)
    assert [most_parts(*x) for x in ((200, 10), (200, 7), (7, 5), (3, 9))] == [10, 5, 1, 3]


def test_a_batch_is_its_images_and_seeds_differ():
    both, alone = edit("sds", request(**SHORT)).image, edit("sds", request(image=IMAGE[:1], **SHORT)).image
    np.testing.assert_allclose(both[:1], alone, atol=1e-5)
    assert np.abs(edit("sds", request(seed=1, **SHORT)).image - both).max() > 1e-3


def test_sweeps_compile_once():
    edit("dds", request(**SHORT))
    before = editing_dds.iterate._cache_size()
    for change in ({"guidance": 3.0}, {"step": 0.2}, {"iterations": 6}):
        edit("dds", request(**{**SHORT, **change}))
    assert editing_dds.iterate._cache_size() == before


def test_a_mask_keeps_what_is_black(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, 4:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    image = edit("dds", request(**SHORT, mask=str(tmp_path / "mask.png"))).image
    np.testing.assert_array_equal(image[:, :, :4], IMAGE[:, :, :4])
    assert np.abs(image[:, :, 4:] - IMAGE[:, :, 4:]).min() > 1e-3


def test_timesteps_of_a_file(tmp_path):
    path = tmp_path / "hqs.json"
    path.write_text(json.dumps({"selected": [300, 100, 300], "prompt": "a dog"}))
    assert read_timesteps(path) == (100, 300)
    chosen = edit("dds", request(**SHORT, timesteps=str(path))).image
    assert np.abs(chosen - edit("dds", request(**SHORT)).image).max() > 1e-3
    for content, message in (
        ("{", "is not JSON"), ("[1]", "has no list of timesteps"), ('{"selected": []}', "has no list"),
        ('{"selected": [0, 5]}', "selects timesteps 0..5"), ('{"selected": [1000]}', "the model has 1..999"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            read_timesteps(path)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such file; make one"):
        read_timesteps(tmp_path / "none.json")


def test_the_other_options_reach_the_descent():
    plain = edit("dds", request(**SHORT)).image
    for change in ({"optimizer": "adam"}, {"sigma_power": 2}, {"alpha_power": 1}, {"clip": 0.01}, {"symmetric": True}):
        assert np.abs(edit("dds", request(**SHORT, **change)).image - plain).max() > 1e-4, change


def test_a_clipped_gradient_has_the_size_that_was_asked():
    """One step of size 1; the picture is its latents."""
    moved = edit("dds", request(iterations=1, step=1.0, clip=0.01)).image - IMAGE
    np.testing.assert_allclose(np.sqrt(np.mean(moved**2, axis=(1, 2, 3))), 0.01, rtol=1e-3)


def test_a_symmetric_edit_returns_the_target():
    """Its source moves the other way, up; what comes back moves as the plain edit does, down."""
    plain, symmetric = (edit("dds", request(**SHORT, symmetric=on)).image.mean() for on in (False, True))
    assert plain < IMAGE.mean() - 1e-3 and symmetric < IMAGE.mean() - 1e-3


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dds", {"steps": 5}, "--option.steps is not a field of Delta; fields: iterations, step"),
        ("dds", {"iterations": 0}, "give at least one iteration"),
        ("dds", {"optimizer": "lamb"}, "optimizer='lamb' is not known; use sgd, adam"),
        ("cds", {"patches": 0}, "patches=0: compare at least one"),
        ("translate", {"strength": 3.0}, "strength=3.0 of an edit: give 0"),
        ("sds", {"clip": 0.0}, "clip=0.0 would stop every gradient"),
        ("sds", {"t_max": 1000}, "give some of 1..999"),
        ("pds", {"stride": 30}, "stride=30 leaves the lowest timestep 20 no neighbour"),
        ("translate", {"w": 1}, "--option.w is not a field of Translation"),
    ],
)
def test_mistakes_are_one_line(method, options, message):
    with pytest.raises(ValueError, match=message) as error:
        edit(method, request(**options))
    assert "\n" not in str(error.value)
