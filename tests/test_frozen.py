"""What jobs read of a loaded model: its weights by their roles, and the empty prompt's states of each family."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.jobs.editing.methods import frozen_of
from sdd_jax.jobs.frozen import weights_of, with_null_text
from sdd_jax.types import ModelBundle

PARAMS = {"unet": 1, "vae": 2, "text_encoder": {"scale": jnp.float32(3.0)}, "text_encoder_2": {}}


def embed_text(text, ids, ids_2=None):
    """States that tell the prompt's first token and the encoder's weights; pooled where there are two encoders."""
    state = text["text_encoder"]["scale"] * jnp.asarray(ids)[0, 0]
    return jnp.full((1, 4, 2), state), None if ids_2 is None else jnp.full((1, 5), jnp.asarray(ids_2)[0, 0])


def make_model(two=False, **index):
    def tokenize(prompts):
        return np.asarray([[10 + len(prompt)] * 4 for prompt in prompts])

    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    fields |= {"embed_text": embed_text, "tokenize": tokenize, "configs": {"model_index": index}}
    return ModelBundle(**{**fields, "tokenize_2": tokenize if two else None})


def test_weights_have_roles():
    text = {"text_encoder": PARAMS["text_encoder"], "text_encoder_2": {}}
    assert weights_of(make_model(), PARAMS) == {"teacher": {"unet": 1}, "vae": 2, "text": text}


@pytest.mark.parametrize(
    ("two", "index", "state", "pooled"),
    [
        (False, {}, 30.0, None),
        (False, {"force_zeros_for_empty_prompt": True}, 30.0, None),
        (True, {}, 0.0, 0.0),
        (True, {"force_zeros_for_empty_prompt": True}, 0.0, 0.0),
        (True, {"force_zeros_for_empty_prompt": False}, 30.0, 10.0),
    ],
)
def test_the_empty_prompt_is_what_the_family_reads(two, index, state, pooled):
    """SDXL's pipeline puts zeros in its place unless told otherwise; jitted or not, for training and for editing."""
    model = make_model(two, **index)
    frozen = weights_of(model, PARAMS)
    for found in (
        with_null_text(model, frozen),
        jax.jit(lambda frozen: with_null_text(model, frozen))(frozen),
        frozen_of(model, PARAMS),
    ):
        np.testing.assert_array_equal(found["null_context"], np.full((1, 4, 2), state, np.float32))
        assert ("null_pooled" in found) == two and set(found) >= set(frozen)
        if two:
            np.testing.assert_array_equal(found["null_pooled"], np.full((1, 5), pooled))
