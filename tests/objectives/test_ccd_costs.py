"""What a step of CCD's variants and baselines costs, in forwards F of the UNet, counted on traced programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.jobs.ccd.conditional import AdapterConfig, make_adapter
from sdd_jax.models.adapters import NoAdapter
from sdd_jax.models.bundle import expected_shapes, make_bundle
from sdd_jax.models.lpips import LPIPS, lpips
from sdd_jax.objectives.ccd import CCD
from sdd_jax.objectives.conditional import ConditionalDiffusion
from sdd_jax.objectives.consistency import ConsistencyDistillation
from sdd_jax.objectives.progressive import ProgressiveDistillation
from sdd_jax.training.flops import count_flops

B, SIZE, TOKENS, WIDTH = 2, 16, 8, 32
CONFIGS = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [64, 128],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 16,
        "sample_size": SIZE,
    },
    "vae": {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3},
    "text_encoder": {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2},
    "scheduler": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}  # fmt: skip


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@functools.cache
def model():
    return make_bundle(CONFIGS, lambda texts: np.zeros((len(texts), TOKENS), np.int32))


@functools.cache
def weights():
    return expected_shapes(CONFIGS)


@functools.cache
def adapter_of(kind):
    return make_adapter(AdapterConfig(kind=kind, embedding_channels=(16, 32, 64)), model())


Z, T, CONTEXT = f32(B, SIZE, SIZE, 4), jax.ShapeDtypeStruct((B,), jnp.int32), f32(B, TOKENS, WIDTH)


@functools.cache
def forward():
    """F of the batch."""
    return count_flops(model().denoise, weights()["unet"], Z, T, CONTEXT).total


@functools.cache
def spoken(kind):
    """One adapter forward, in F."""
    adapter = adapter_of(kind)
    params = jax.eval_shape(adapter.init, jax.random.key(0), weights()["unet"])
    hint = f32(B, SIZE, SIZE, 4) if kind == "mu" else f32(B, 4 * SIZE, 4 * SIZE, 3)
    return count_flops(adapter.residuals, params, hint, Z, T, CONTEXT).total / forward()


def embedded():
    """One forward of the ControlNet's embedding of the condition, in F."""
    adapter = adapter_of("controlnet")
    params = jax.eval_shape(adapter.init, jax.random.key(0), weights()["unet"])
    return count_flops(adapter.embed, params, f32(B, 4 * SIZE, 4 * SIZE, 3)).total / forward()


def cost(method, **others):
    """The forward and backward pass of a batch with precomputed latents and text, in F; `others` are frozen too."""
    frozen = {
        **others,
        "teacher": {"unet": weights()["unet"]},
        "vae": weights()["vae"],
        "null_context": f32(1, TOKENS, WIDTH),
    }
    if isinstance(method, ConsistencyDistillation):
        adapter = jax.eval_shape(method.adapter.init, jax.random.key(0), weights()["unet"])
        frozen["teacher"] = {**frozen["teacher"], "adapter": adapter}
    params = jax.eval_shape(method.init, jax.random.key(0), frozen)
    frozen["target"] = params
    batch = {"moments": f32(B, SIZE, SIZE, 8), "context": CONTEXT, "condition": f32(B, 4 * SIZE, 4 * SIZE, 3)}

    def step(params, frozen, batch):
        readable = {**frozen, "step_rng": jax.random.key(1)}
        return jax.value_and_grad(
            lambda p: method.loss(p, readable, batch, jax.random.key(0), jnp.zeros((), jnp.int32))[0]
        )(params)

    return count_flops(step, params, frozen, batch).total / forward()


def ccd(kind="t2i", **options):
    return CCD(model=model(), adapter=adapter_of(kind), **options)


@pytest.mark.parametrize(
    ("options", "unets", "adapters"),
    [
        ({}, 4, 4),
        ({"predictor": "ddim", "eps_space": "x", "boundary_scaling": True, "x_space": "none"}, 4, 4),
        ({"ode_model": "target"}, 5, 5),
        ({"ode_model": "pretrained"}, 5, 4),
        ({"guidance": (1.0, 5.0)}, 8, 8),
    ],
    ids=["default", "free", "target", "pretrained", "guided"],
)
def test_variants_of_ccd(options, unets, adapters):
    assert cost(ccd(**options)) == pytest.approx(unets + adapters * spoken("t2i"), rel=0.03)


def test_an_adapter_alone_costs_no_weight_gradients_of_the_unet():
    """A T2I-Adapter enters the encoder, so that input gradients run through most of it: 3F; of its own, 4 forwards."""
    full, alone = cost(ccd()), cost(ccd(train_unet=False))
    assert alone < 3.0 + 4 * spoken("t2i") < full
    assert spoken("t2i") < 0.5


@pytest.mark.parametrize(
    ("method", "kind", "train_unet", "unets", "adapters"),
    [
        (CCD, "controlnet", True, 4.0, 4),
        (CCD, "controlnet", False, 2.7, 4),
        (CCD, "mu", True, 4.0, 4),
        (CCD, "mu", False, 2.7, 4),
        (ConditionalDiffusion, "controlnet", True, 3.0, 3),
        (ConditionalDiffusion, "controlnet", False, 1.7, 3),
        (ConditionalDiffusion, "mu", False, 1.7, 3),
    ],
)
def test_what_is_trained_and_regressed(method, kind, train_unet, unets, adapters):
    """Behind the encoder an adapter alone needs the decoder's input gradients, .7F; regressing a ControlNet's embedding
    takes one more forward and backward pass of it."""
    hint_weight = float(kind == "controlnet")
    made = method(model=model(), adapter=adapter_of(kind), train_unet=train_unet, hint_weight=hint_weight)
    expected = unets + adapters * spoken(kind) + 3 * hint_weight * embedded()
    assert cost(made) == pytest.approx(expected, rel=0.015)


def test_decoding_and_looking_cost_two_forwards_and_one_input_gradient():
    decoder = count_flops(model().decode, weights()["vae"], Z).total / forward()
    encoder = count_flops(model().moments, weights()["vae"], f32(B, 4 * SIZE, 4 * SIZE, 3)).total / forward()
    plain = cost(ccd())
    assert cost(ccd(x_space="pixel")) - plain == pytest.approx(3 * decoder, rel=0.1)
    assert cost(ccd(x_space="reencoded")) - plain == pytest.approx(2 * decoder + 2 * encoder, rel=0.1)
    network = jax.eval_shape(functools.partial(LPIPS("vgg").init, jax.random.key(0)), *2 * (f32(1, 64, 64, 3),))[
        "params"
    ]
    image = f32(B, 4 * SIZE, 4 * SIZE, 3)
    seen = count_flops(functools.partial(lpips, name="vgg"), network, image, image).total / 2 / forward()
    perceptual = ccd(x_space="lpips", perceptual=functools.partial(lpips, name="vgg"))
    assert cost(perceptual, lpips=network) - plain == pytest.approx(3 * decoder + 3 * seen, rel=0.1)


def test_baselines():
    t2i = {"model": model(), "adapter": adapter_of("t2i")}
    assert cost(ConditionalDiffusion(**t2i)) == pytest.approx(3 + 3 * spoken("t2i"), rel=0.03)
    assert cost(ConditionalDiffusion(**t2i, train_unet=False)) < 2 + 3 * spoken("t2i")
    for kind in ("t2i", "controlnet"):
        cm = ConsistencyDistillation(model=model(), adapter=adapter_of(kind))
        assert cost(cm) == pytest.approx(5 + 5 * spoken(kind), rel=0.03)
    plain = {"model": model(), "adapter": NoAdapter(), "substeps": 2}
    assert cost(ProgressiveDistillation(**plain)) == pytest.approx(5, rel=0.03)
    assert cost(ProgressiveDistillation(**plain, guidance_scale=3.0)) == pytest.approx(7, rel=0.03)
