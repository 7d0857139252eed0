"""What edits read beside the prompts: attention controls, iCD's two models, its threshold, SDXL's pooled states."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_edit_methods import FROZEN, IMAGE, SD, SOURCE, STOPS, TARGET, TOKENIZER, embed_text, make_model, request

import sdd_jax
from sdd_jax.diffusion.transport import gaussian_eps
from sdd_jax.jobs.editing.methods import EditRequest, edit, frozen_of

EXTREMES = {
    "p2p": ({"cross": 0.0, "self_": 0.0}, {"cross": 1.0, "self_": 1.0}),
    "npi": ({"cross": 0.0, "self_": 0.0}, {"cross": 1.0, "self_": 1.0}),
    "nti": ({"cross": 0.0, "self_": 0.0, "inner_steps": 1}, {"cross": 1.0, "self_": 1.0, "inner_steps": 1}),
    "infedit": ({"cross": 0.0, "self_": 0.0}, {"cross": 1.0, "self_": 1.0}),
    "masactrl": ({"begin": 1.0, "layers": "up_blocks_0/"}, {"begin": 0.0, "layers": "up_blocks_0/"}),
    "pnp": ({"attention": 0.0, "features": 0.0}, {"attention": 1.0, "features": 1.0}),
}


@pytest.fixture(scope="module")
def tiny(tiny_world):
    model, params = sdd_jax.load(str(tiny_world))
    side = model.sample_size * model.downsampling
    image = np.random.default_rng(0).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
    prompts = {"source": ("a photo of a cat",), "target": ("a photo of a dog",)}
    return EditRequest(model=model, frozen=frozen_of(model, params), image=image, **prompts)


@pytest.mark.parametrize("method", EXTREMES)
def test_the_control_reaches_the_networks_attention(tiny, method):
    none, most = (
        edit(method, dataclasses.replace(tiny, options={"steps": 2, "guidance": 3.0, **options})).image
        for options in EXTREMES[method]
    )
    assert np.abs(none - most).max() > 1e-3


@pytest.mark.parametrize(
    ("method", "option"),
    [("masactrl", "layers=up_blocks_7"), ("pnp", "attention_layers=resnets"), ("pnp", "feature_layers=up_blocks_9")],
)
def test_layers_that_the_model_lacks_are_refused(tiny, method, option):
    name, _, pattern = option.partition("=")
    with pytest.raises(ValueError, match=rf"{name}='{pattern}' names no (attn1|resnets) of .*: give --option {name}="):
        edit(method, dataclasses.replace(tiny, options={name: pattern}))


class Reading:
    """The exact eps of data around a mean that its weights and its guidance scale shift; keeps the pooled states."""

    def __init__(self):
        self.pooled = []

    def __call__(self, params, z, t, context, *, added_cond=None, attention_edit=None, timestep_cond=None):
        if added_cond is not None:
            jax.debug.callback(lambda pooled: self.pooled.append(np.asarray(pooled)), added_cond["text_embeds"])
        mean = context[:, 0, 0] + params["shift"] + params["reads"] * timestep_cond[:, 0]
        return gaussian_eps(z, SD.at(t), mean[:, None, None, None], 0.5)


def run_of(forward=0.0, reverse=0.0, reads=0.0, model=None, **options):
    """A request to a run of iCD whose models shift the mean that far."""
    model = dataclasses.replace(make_model(time_cond_proj_dim=512), denoise=Reading()) if model is None else model
    weights = {
        name: {"shift": jnp.float32(shift), "reads": jnp.float32(reads)}
        for name, shift in (("forward", forward), ("reverse", reverse))
    }
    return dataclasses.replace(request(model=model, **options), frozen={**FROZEN, **STOPS, **weights})


@pytest.mark.parametrize("method", ["icd", "icd-switch"])
def test_the_forward_model_goes_up_and_the_reverse_one_comes_down(method):
    """What goes up around a higher mean is lower noise, what comes down around it a higher picture."""
    neither, up, down = (
        edit(method, run_of(**shifts, guidance=1.0)).image.mean() for shifts in ({}, {"forward": 0.4}, {"reverse": 0.4})
    )
    assert up < neither - 0.1 and down > neither + 0.1


def test_guidance_acts_up_to_tau():
    off, never, always = (
        edit("icd", run_of(reads=0.3, guidance=w, tau=tau)).image for w, tau in ((1.0, 0.8), (3.0, 0.0), (3.0, 1.0))
    )
    np.testing.assert_allclose(never, off, atol=1e-5)
    assert np.abs(always - off).max() > 0.05


def test_the_prompt_switch_keeps_pooled_states_of_the_source_up_and_of_the_target_down():
    """SDXL: the pooled state of the way down is the target's from the first jump on."""
    reading = Reading()

    def embed(params, ids, ids_2=None):
        context, _ = embed_text(params, ids, ids_2)
        return context, jnp.broadcast_to(context[:, 0], (len(ids), 1))

    changes = {"denoise": reading, "tokenize_2": TOKENIZER, "embed_text": embed}
    model = dataclasses.replace(make_model(time_cond_proj_dim=512), **changes)
    edit("icd", run_of(model=model, guidance=2.0))
    jax.effects_barrier()
    assert [set(rows.ravel().tolist()) for rows in reading.pooled] == [{0.5}] * 4 + [{-0.5}] * 4, (SOURCE, TARGET)
    assert IMAGE.shape[0] == len(reading.pooled[0])
