import jax
import jax.numpy as jnp
import pytest

from sdd_jax.models.features import with_outputs


def read(tiny_model, layers, b=2):
    """Shapes of what the layers said, and of the prediction."""
    bundle, params = tiny_model
    denoise, tape = with_outputs(bundle.denoise, layers)

    def run(z, t, context):
        denoise(params["unet"], z, t, context)
        prediction = denoise(params["unet"], z, t, context)  # the second call replaces the first one's
        return prediction, tuple(tape)

    return jax.eval_shape(run, jnp.zeros((b, 8, 8, 4)), jnp.zeros(b, jnp.int32), jnp.zeros((b, 3, 16)))


@pytest.mark.parametrize(
    ("layers", "shapes"),
    [
        (r"up_blocks_.*/attn1", [(2, 16, 16)] * 2),
        (r"mid_block/.*attn1", [(2, 16, 16)]),
        (r"conv_out", [(2, 8, 8, 4)]),
        (r"nothing", []),
    ],
)
def test_the_layers_that_match_are_recorded_once(tiny_model, layers, shapes):
    prediction, outputs = read(tiny_model, layers)
    assert [x.shape for x in outputs] == shapes and prediction.shape == (2, 8, 8, 4)


def test_the_last_convolution_is_the_prediction(tiny_model):
    bundle, params = tiny_model
    denoise, tape = with_outputs(bundle.denoise, "conv_out")
    z, t, context = jnp.ones((1, 2, 2, 4)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 1, 16))
    jaxpr = jax.make_jaxpr(lambda p: (denoise(p, z, t, context), *tape))(params["unet"])
    assert jaxpr.jaxpr.outvars[0] is jaxpr.jaxpr.outvars[1]
