"""Every editing method on a model whose eps is known: data N(m(prompt), .5^2), an autoencoder that is the identity."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.diffusion.timegrid import BOUNDARIES
from sdd_jax.diffusion.transport import gaussian_eps
from sdd_jax.jobs.editing.injection import MasaCtrlInversion, PlugAndPlayInversion
from sdd_jax.jobs.editing.methods import METHODS, EditRequest, edit, frozen_of, side_unit
from sdd_jax.jobs.editing.options import PromptControlled, blend_size
from sdd_jax.models.hub import PORTRAITS
from sdd_jax.models.tokenizer import load_tokenizer
from sdd_jax.types import ModelBundle

SD = Schedule.scaled_linear()
SOURCE, TARGET = "a black cat", "a white cat"
MEANS = {"": 0.0, SOURCE: 0.5, TARGET: -0.5}
TOKENIZER = load_tokenizer(PORTRAITS / "tokenizer")
UNET = {
    "block_out_channels": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}
FAST = {"steps": 5, "guidance": 1.0}


class Network:
    """The exact eps, which counts the rows it is asked for."""

    rows = 0

    def __call__(self, params, z, t, context, *, added_cond=None, attention_edit=None, timestep_cond=None):
        def count(b):
            Network.rows += int(b)

        jax.debug.callback(count, jnp.asarray(z.shape[0]))
        mean = context[:, 0, 0][:, None, None, None]
        return gaussian_eps(z, SD.at(t), mean, 0.5)


def embed_text(params, ids, ids_2=None):
    """The prompt's mean as its context, told by the prompt's third token; all prompts are three words or none."""
    third = {int(TOKENIZER([text])[0, 2]): mean for text, mean in MEANS.items()}
    mean = sum(jnp.where(ids[:, 2] == token, value, 0.0) for token, value in third.items())
    return jnp.broadcast_to(mean[:, None, None], (*ids.shape, 1)), None


def make_model(**unet):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    fields |= {
        "denoise": Network(),
        "encode": lambda vae, image, rng=None: image,
        "decode": lambda vae, z: z,
        "embed_text": embed_text,
        "tokenize": TOKENIZER,
        "prediction": "eps",
        "alphas_cumprod": np.asarray(SD.alphas_cumprod),
        "downsampling": 1,
        "sample_size": 8,
        "configs": {"unet": {**UNET, **unet}},
        "source": "gaussian",
    }
    return ModelBundle(**fields)


MODEL = make_model()
FROZEN = frozen_of(MODEL, {"unet": {}, "vae": {}, "text_encoder": {}})
IMAGE = 0.5 + 0.1 * np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def request(model=MODEL, target=TARGET, image=IMAGE, **options):
    count = len(image)
    return EditRequest(
        model=model, frozen=FROZEN, image=image, source=(SOURCE,) * count, target=(target,) * count, options=options
    )


SHORT = {
    "sdedit": {**FAST, "strength": 0.8},
    "edit-friendly": {**FAST, "skip": 0.4, "source_guidance": 1.0},
    "infedit": FAST,
    "ddib": {**FAST, "rounds": 2},
    "renoise": {**FAST, "rounds": 3, "average_from": 1},
    "p2p": FAST,
    "npi": FAST,
    "nti": {**FAST, "guidance": 1.25, "inner_steps": 2},
    "masactrl": FAST,
    "pnp": FAST,
}
STOPS = {"forward": {}, "reverse": {}, "boundaries": BOUNDARIES["4_tau0.8"]}


@pytest.mark.parametrize(("method", "evaluations"), [("icd", 12), ("icd-switch", 8)])
def test_invertible_editing_in_four_jumps(method, evaluations):
    """A run of iCD, of which both models are the exact eps."""
    model = make_model(time_cond_proj_dim=512)
    whole = dataclasses.replace(request(model=model, guidance=1.0), frozen={**FROZEN, **STOPS})
    jax.effects_barrier()
    Network.rows = 0
    result = edit(method, whole)
    jax.effects_barrier()
    assert result.evaluations == evaluations == Network.rows / len(IMAGE)
    assert result.image.mean() < 0.1 < whole.image.mean(), "the picture moves towards the target's mean"
    back = edit(method, dataclasses.replace(whole, target=whole.source)).image
    assert abs(back.mean() - IMAGE.mean()) < 0.15
    other = edit(method, dataclasses.replace(whole, seed=1)).image
    assert 0 < np.abs(other - result.image).max(), "the first noise is drawn"
    with pytest.raises(ValueError, match="name it as --workdir"):
        edit(method, request())


def test_two_text_encoders_switch_prompts():
    model = dataclasses.replace(make_model(time_cond_proj_dim=512), tokenize_2=TOKENIZER)
    whole = dataclasses.replace(request(model=model, cross=0.5), frozen={**FROZEN, **STOPS})
    with pytest.raises(ValueError, match="--option.cross is not a field of SwitchedEdit; fields: guidance, tau"):
        edit("icd", whole)


TEACHERS = [name for name, where in METHODS.items() if where.startswith("sdd_jax.jobs.editing.")]


def test_every_teacher_method_is_tried_here():
    assert set(SHORT) == set(TEACHERS)


@functools.cache
def edited(method):
    jax.effects_barrier()
    Network.rows = 0
    result = edit(method, request(**SHORT[method]))
    jax.effects_barrier()
    return result, Network.rows / len(IMAGE)


@pytest.mark.parametrize("method", TEACHERS)
def test_an_edit_moves_the_mean_and_keeps_the_rest(method):
    image = edited(method)[0].image
    assert image.shape == IMAGE.shape and np.isfinite(image).all()
    assert -0.85 < image.mean() < -0.15, "the picture takes the target's mean"
    if method not in ("sdedit", "infedit"):
        correlation = np.corrcoef((image - image.mean()).ravel(), (IMAGE - IMAGE.mean()).ravel())[0, 1]
        assert correlation > 0.9, "and keeps its texture, which the source's noise holds"


@pytest.mark.parametrize("method", TEACHERS)
def test_evaluations_are_those_that_were_made(method):
    result, rows = edited(method)
    backward = 0
    if method == "nti":  # a round is a forward that is seen and a backward that is not
        backward = (result.evaluations - 5 * 7) / 2
        assert 0 < backward <= 2 * 5
    assert result.evaluations == rows + backward


@pytest.mark.parametrize("method", ["ddib", "renoise", "p2p", "npi", "masactrl", "pnp", "edit-friendly", "infedit"])
def test_the_source_prompt_returns_the_source(method):
    options = {**SHORT[method], "steps": 20}
    back = edit(method, request(target=SOURCE, image=IMAGE[:1], **options)).image
    assert np.abs(back - IMAGE[:1]).mean() < 0.06


def test_seeds_and_the_number_of_images():
    one = edit("sdedit", request(image=IMAGE[:1], **SHORT["sdedit"])).image
    np.testing.assert_allclose(one[0], edited("sdedit")[0].image[0], atol=1e-5)
    other = edit("sdedit", dataclasses.replace(request(**SHORT["sdedit"]), seed=1)).image
    assert np.abs(other - edited("sdedit")[0].image).max() > 0.01


def test_a_sweep_over_guidance_compiles_once():
    from sdd_jax.jobs.editing.noise import _sdedit

    edited("sdedit")
    before = _sdedit._cache_size()
    images = [edit("sdedit", request(**{**SHORT["sdedit"], "guidance": w})).image for w in (1.5, 2.0)]
    assert _sdedit._cache_size() == before and np.abs(images[0] - images[1]).max() > 0.01


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("p2p", {"strength": 0.5}, "--option.strength is not a field of PromptToPromptInversion; fields: guidance"),
        ("p2p", {"steps": "many"}, "--option.steps = 'many': expected int"),
        ("p2p", {"cross": 1.5}, "shares of controlled steps lie in"),
        ("p2p", {"emphasis": "hat"}, "emphasis='hat': give words and factors"),
        ("p2p", {"emphasis": "dog:2"}, "the emphasised words ['dog'] are in no target prompt"),
        ("p2p", {"blend_source": "cat"}, "a blend needs words of both prompts"),
        ("p2p", {"blend_source": "dog", "blend_target": "cat"}, "the word 'dog' is not in the prompt"),
        ("infedit", {"blend_source": "cat", "blend_target": "cat"}, "infedit has no blend"),
        ("sdedit", {"strength": 0.0}, "strength=0.0 leaves no step"),
        ("sdedit", {"tau": 0.5, "start": 0.6}, "guidance acts from start=0.6 to tau=0.5"),
        ("sdedit", {"tau": 0.5, "ramp_to": 0.4}, "a guidance ramp falls from tau=0.5 to ramp_to=0.4"),
        ("edit-friendly", {"skip": 1.0}, "skip=1.0 is a share"),
        ("ddib", {"rounds": 0}, "rounds=0: an inversion step"),
        ("renoise", {"average_from": 9}, "average_from=9 is no round of 9"),
        ("nti", {"tau": 0.5}, "null-text optimises for one scale"),
        ("masactrl", {"layers": "up_("}, "layers='up_(' is not a regular expression"),
        ("pnp", {"features": 2.0}, "features=2.0 is a share: give 0 .. 1"),
        ("p3p", {}, "--method=p3p is no editing method; use"),
    ],
)
def test_a_wrong_option_is_one_line(method, options, message):
    with pytest.raises(ValueError) as error:
        edit(method, request(**options))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["npi", "nti"])
def test_methods_of_the_unconditional_pass_need_one(method):
    with pytest.raises(ValueError, match="changes the unconditional pass, which gaussian does not have"):
        edit(method, request(model=make_model(time_cond_proj_dim=512)))


def test_a_model_that_reads_its_guidance_takes_one_pass():
    reads = make_model(time_cond_proj_dim=512)
    Network.rows = 0
    result = edit("ddib", request(model=reads, **FAST))
    jax.effects_barrier()
    assert result.evaluations == 2 * 5 == Network.rows / 2


def test_requests_that_do_not_fit():
    with pytest.raises(ValueError, match="give one of each for every image"):
        dataclasses.replace(request(), source=("a",))
    assert side_unit(MODEL) == 2
    with pytest.raises(ValueError, match="an image of 7x8 does not fit gaussian: use multiples of 2"):
        request(image=IMAGE[:, :, :7])


LEVELS = {"block_out_channels": [8] * 4, "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}
LEVELS["down_block_types"] = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]


def test_published_places_on_four_levels_and_the_same_part_on_two():
    four, two = request(model=make_model(**LEVELS)), request()
    assert MasaCtrlInversion().control(four).layers == "up_blocks_(2|3)/"
    assert MasaCtrlInversion().control(four).start_step == 4
    assert MasaCtrlInversion().control(two).layers == "up_blocks_(1)/"
    control = PlugAndPlayInversion().control(four)
    assert (control.attention_steps, control.feature_steps) == (25, 40)
    assert control.feature_layers == "up_blocks_1/resnets_1"
    assert control.attention_layers == "up_blocks_(1/attentions_[1-9]|[2-9]/)"
    assert PlugAndPlayInversion().control(two).feature_layers == "up_blocks_0/resnets_1"


def test_sizes_that_controls_read():
    assert blend_size(make_model(**LEVELS), 64) == 16
    assert blend_size(make_model(**LEVELS), 96) == 24
    assert blend_size(MODEL, 16) == 8
    control, blend = PromptControlled(blend_source="cat", blend_target="cat").controls(request(), 50)
    assert control.self_tokens == 8 * 8 // 4 and (control.cross_steps, control.self_steps) == (20, 40)
    assert blend is not None and blend.size == 4 and blend.start_step == 10
    assert blend.words.sum() == 4 * (np.asarray(blend.words[0]).sum())
    wide = request(image=np.repeat(IMAGE, 2, 2))
    with pytest.raises(ValueError, match="a blend reads square maps"):
        PromptControlled(blend_source="cat", blend_target="cat").controls(wide, 50)
