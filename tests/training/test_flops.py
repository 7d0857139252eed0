"""Operations counted against products done by hand, and the cost of training steps against their methods' claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdd_jax.jobs.ccd.conditional import AdapterConfig, make_adapter
from sdd_jax.models.bundle import expected_shapes, make_bundle
from sdd_jax.models.unet import make_unet
from sdd_jax.objectives.ccd import CCD
from sdd_jax.training.flops import count_flops
from sdd_jax.training.state import create_state
from sdd_jax.training.step import make_train_step

B, SIZE, TOKENS = 2, 16, 8
CONFIGS = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [64, 128],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "norm_num_groups": 16,
        "sample_size": SIZE,
    },
    "vae": {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3},
    "text_encoder": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "scheduler": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}  # fmt: skip


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


A, W = f32(6, 5), f32(5, 7)


def test_products_and_their_gradients():
    assert count_flops(jnp.matmul, A, W).total == 2 * 6 * 5 * 7
    assert count_flops(jnp.matmul, f32(3, 6, 5), f32(3, 5, 7)).total == 3 * 2 * 6 * 5 * 7

    def loss(a, w):
        return jnp.sin(a @ w).sum()

    both, one = (count_flops(jax.grad(loss, argnums=names), A, W).total for names in ((0, 1), (1,)))
    assert both == 3 * 420, "forward, two gradients"
    assert one == 2 * 420, "the gradient of a frozen input is not there"


def test_what_nobody_reads_costs_nothing():
    def wasteful(a, w):
        unused = a @ w
        return jax.jit(lambda: ((a @ w).sum(), unused))()[0]

    assert count_flops(wasteful, A, W).total == 420
    assert count_flops(jax.grad(lambda a, w: (a @ w).sum()), A, W).total == 420, "the value itself is not asked for"


def test_loops_and_branches():
    def step(carry, _):
        return carry @ jnp.ones((5, 5)), None

    def branch(a, w):
        return jax.lax.cond(a[0, 0] > 0, lambda: (a @ w) @ jnp.ones((7, 7)), lambda: a @ w)

    assert count_flops(lambda a: jax.lax.scan(step, a, length=9)[0], A).total == 9 * 2 * 6 * 5 * 5
    assert count_flops(lambda a: jax.lax.fori_loop(0, 9, lambda i, c: step(c, i)[0], a), A).total == 9 * 300
    assert count_flops(branch, A, W).total == 420 + 2 * 6 * 7 * 7
    recomputed = count_flops(jax.grad(lambda w, a: jax.checkpoint(lambda w: jnp.sin(a @ w).sum())(w)), W, A).total
    assert recomputed == 2 * 420, "recomputed forward and the gradient; the first forward is dead"
    with pytest.raises(ValueError, match="unknown length"):
        count_flops(lambda a, n: jax.lax.fori_loop(0, n, lambda i, c: step(c, i)[0], a), A, jnp.int32(3))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_forward_and_gradients_cost_the_same(stride):
    x, kernel = f32(2, 8, 8, 3), f32(3, 3, 3, 5)

    def conv(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        padding = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dimensions)

    forward = count_flops(conv, x, kernel)
    pixels = (8 // stride) ** 2
    assert forward.conv == forward.total == 2 * 2 * pixels * 9 * 3 * 5
    for which in (0, 1):
        gradient = count_flops(jax.grad(lambda x, k: jnp.sum(conv(x, k)), argnums=which), x, kernel)
        assert gradient.conv == forward.conv


@functools.cache
def network(remat="none"):
    bundle = make_bundle(CONFIGS, lambda texts: np.zeros((len(texts), TOKENS), np.int32), remat=remat)
    shapes = expected_shapes(CONFIGS)
    return bundle, {"teacher": {"unet": shapes["unet"]}}


def inputs():
    return f32(B, SIZE, SIZE, 4), jax.ShapeDtypeStruct((B,), jnp.int32), f32(B, TOKENS, 32)


@functools.cache
def parts():
    """The costs of a batch's forwards: the UNet's F, its encoder's, and the adapter's."""
    bundle, frozen = network()
    adapter = make_adapter(AdapterConfig(embedding_channels=(16, 32, 64)), bundle)
    unet = frozen["teacher"]["unet"]
    params = jax.eval_shape(adapter.init, jax.random.key(0), unet)
    z, t, context = inputs()
    residuals = functools.partial(count_flops, adapter.residuals)
    adapter_cost = residuals(params, f32(B, 4 * SIZE, 4 * SIZE, 3), z, t, context).total
    module = make_unet(CONFIGS["unet"])
    encoder = count_flops(lambda p: module.apply({"params": p}, *map(jnp.zeros_like, inputs()), method="encode"), unet)
    return count_flops(bundle.denoise, unet, z, t, context).total, encoder.total, adapter_cost


@functools.cache
def step_cost(train_unet, accumulate=1, remat="none"):
    bundle, frozen = network(remat)
    adapter = make_adapter(AdapterConfig(embedding_channels=(16, 32, 64)), bundle, remat=remat)
    method = CCD(model=bundle, adapter=adapter, train_unet=train_unet)
    optimizer = optax.adamw(1e-4)
    init = functools.partial(create_state, objective=method, optimizer=optimizer, with_ema=True)
    state = jax.eval_shape(lambda key, frozen: init(key, frozen=frozen), jax.random.key(0), frozen)
    step = make_train_step(method, optimizer, schedule=lambda n: 1e-4, ema_decay=0.99, accumulate=accumulate)
    z, _, context = inputs()
    batch = {
        "moments": f32(*z.shape[:-1], 8), "context": context, "condition": f32(B, 4 * SIZE, 4 * SIZE, 3)
    }  # fmt: skip
    return count_flops(jax.jit(step, donate_argnums=0), state, frozen, batch, jax.random.key(0)).total


def test_ccd_costs_four_forwards_in_full_training():
    forward, _, adapter = parts()
    assert step_cost(train_unet=True) == pytest.approx(4 * forward + 4 * adapter, rel=0.05)


def test_ccd_costs_no_more_than_three_forwards_on_a_frozen_unet():
    """Online and target forward, and of the backward pass the activations' gradients down to the adapter's entry."""
    forward, encoder, adapter = parts()
    cost = step_cost(train_unet=False)
    assert cost == pytest.approx(2 * forward + (forward - encoder) + 4 * adapter, rel=0.05)
    assert cost < 3 * forward + 4 * adapter


def test_remat_dots_repeats_no_product():
    assert step_cost(train_unet=True, remat="dots") == step_cost(train_unet=True)


def test_remat_block_repeats_the_online_blocks_up_to_their_last_products():
    """Not the target's: what is not differentiated recomputes nothing. A block's own output is not needed again, so of
    a residual block conv1 and the time's projection are repeated, of a transformer all but its projection out."""
    time = 4 * 64

    def resnet(n, inputs, outputs):
        return 18 * n * inputs * outputs + 2 * time * outputs

    def transformer(n, width):
        attention = 4 * n**2 * width + 4 * n * TOKENS * width
        return (2 + 36) * n * width**2 + 4 * TOKENS * 32 * width + attention

    encoder = resnet(256, 64, 64) + resnet(64, 64, 128) + 2 * resnet(64, 128, 128) + 2 * transformer(64, 128)
    decoder = resnet(64, 256, 128) + resnet(64, 192, 128) + 2 * transformer(64, 128)
    decoder += resnet(256, 192, 64) + resnet(256, 128, 64)
    extra = step_cost(train_unet=True, remat="block") - step_cost(train_unet=True)
    assert extra == B * (2 * encoder + decoder), "the adapter's encoder is the UNet's"


def test_accumulation_costs_nothing():
    assert step_cost(train_unet=False, accumulate=2) == pytest.approx(step_cost(train_unet=False), rel=1e-3)
