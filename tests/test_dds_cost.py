"""What editing by scores costs: operations of the trace and of the compiled loop, tiny and in the shape of SD 1.5."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.jobs.dds import editing as editing_dds
from sdd_jax.jobs.dds.editing import Program, make_gradient
from sdd_jax.jobs.dds.options import Contrastive, Delta, Descent, Posterior, shared
from sdd_jax.jobs.editing.methods import Static, frozen_of
from sdd_jax.models.load import load
from sdd_jax.sampling.score_editing import draw_iteration
from sdd_jax.training.flops import count_flops, count_jaxpr

pytestmark = pytest.mark.usefixtures("compile_quickly")
SD = Schedule.scaled_linear()


@pytest.fixture(scope="module")
def tiny_frozen(tiny_model):
    return frozen_of(*tiny_model)


def trace_iterations(model, frozen, method, options, b, guided=True, length=3, side=8):
    """The program of `length` iterations on b images of side^2 latents, traced."""
    context = jnp.zeros((b, *frozen["null_context"].shape[1:]))
    inputs = {
        "z": jnp.zeros((b, side, side, 4)),
        "times": jnp.arange(50, 949),
        "w": jnp.float32(3),
        "step": jnp.float32(1),
    }
    inputs |= dict.fromkeys(("source", "target"), {"context": context, "added_cond": None})
    program = Program(method, shared(options), guided, length)
    carry = editing_dds.first_carry(program.options, inputs["z"])
    return editing_dds.iterate.trace(Static(model), program, frozen, inputs, carry, KEY, jnp.int32(0))


def iteration_flops(model, frozen, method, options, b, guided=True, length=3, side=8):
    """Operations an iteration, from the program's trace."""
    traced = trace_iterations(model, frozen, method, options, b, guided, length, side)
    return count_jaxpr(traced.jaxpr.jaxpr).total / length


def forward_flops(model, weights, frozen, side=8):
    """F: one forward of one row."""
    z, t = jnp.zeros((1, side, side, 4)), jnp.zeros(1, jnp.int32)
    return count_flops(model.denoise, weights["unet"], z, t, frozen["null_context"]).total


def compiled_forward(model, weights, frozen, side=8):
    """XLA's cost of one forward of one row."""
    z, t = jax.ShapeDtypeStruct((1, side, side, 4), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.jit(model.denoise).lower(weights["unet"], z, t, frozen["null_context"]).compile().cost_analysis()


def compiled_cost(traced):
    """XLA's cost of a program, a loop's body counted once, and the trip counts of its loops."""
    program = traced.lower().compile()
    return program.cost_analysis(), re.findall(r'"known_trip_count":\{"n":"(\d+)"\}', program.as_text())


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("method", "options", "guided", "forwards"),
    [("sds", Descent(), True, 2), ("dds", Delta(), True, 4), ("dds", Delta(), False, 2), ("pds", Posterior(), True, 4),
     ("dds", Delta(symmetric=True), True, 4)],
)  # fmt: skip
def test_an_iteration_costs_what_it_says(tiny_model, tiny_frozen, method, options, guided, forwards):
    model = tiny_model[0]
    one = forward_flops(*tiny_model, tiny_frozen)
    assert iteration_flops(model, tiny_frozen, method, options, 1, guided) == forwards * one
    if method == "dds" and guided:
        assert iteration_flops(model, tiny_frozen, method, options, 8) == 8 * forwards * one


def test_the_compiled_program_is_one_loop_of_4f(tiny_model, tiny_frozen):
    """XLA's own count, elementwise operations included: of the loop's body, which it counts once, and of a forward."""
    forward = compiled_forward(*tiny_model, tiny_frozen)
    moved = {}
    for b in (1, 8):
        cost, loops = compiled_cost(trace_iterations(tiny_model[0], tiny_frozen, "dds", Delta(), b, length=7))
        assert loops.count("7") == 1 and cost["flops"] / forward["flops"] == pytest.approx(4 * b, rel=0.01)
        moved[b] = cost["bytes accessed"]
    assert moved[8] < 8 * moved[1], "eight in a batch move less than eight alone"


@pytest.mark.slow
def test_an_edit_of_512_pixels_with_sd15_is_one_loop_of_4f():
    """200 iterations on 64 x 64 latents, compiled from shapes, alone and in a batch of 8; nothing is allocated.

    By count a batch of 8 costs 8 single edits; what it saves is bytes moved.
    """
    model, shapes = load("shapes:stable-diffusion-v1-5/stable-diffusion-v1-5")
    frozen = frozen_of(model, shapes)
    one, forward = forward_flops(model, shapes, frozen, side=64), compiled_forward(model, shapes, frozen, side=64)
    moved = {}
    for b in (1, 8):
        traced = trace_iterations(model, frozen, "dds", Delta(), b, length=200, side=64)
        assert count_jaxpr(traced.jaxpr.jaxpr).total == 200 * 4 * b * one
        cost, loops = compiled_cost(traced)
        assert loops.count("200") == 1 and cost["flops"] / forward["flops"] == pytest.approx(4 * b, rel=0.01)
        moved[b] = cost["bytes accessed"]
        print(f"b = {b}: {cost['flops']:.4g} FLOP and {moved[b]:.4g} bytes an iteration; F {forward['flops']:.4g}")
    assert moved[8] < 8 * moved[1], "eight in a batch move less than eight alone"


def test_cds_costs_two_forwards_more_at_most(tiny_model, tiny_frozen):
    one = forward_flops(*tiny_model, tiny_frozen)
    nce = 2 * 2 * 3 * 2 * (16**2 + 4**2) * 16  # layers, products forward and backward, patches of both sizes
    found = iteration_flops(tiny_model[0], tiny_frozen, "cds", Contrastive(), 1)
    assert 4 * one < found <= 6 * one + nce


def test_cds_on_a_real_network(tiny_model, tiny_frozen):
    """The contrastive gradient is there, reaches the latents, and vanishes with its weight."""
    model, _ = tiny_model
    z, context = jax.random.normal(KEY, (1, 8, 8, 4)), jnp.zeros((1, 5, 16))
    inputs = {"z": z, "w": jnp.float32(3.0)}
    inputs |= dict.fromkeys(("source", "target"), {"context": context, "added_cond": None})

    @jax.jit
    def gradient(frozen, edited):
        draw = draw_iteration(KEY, jnp.int32(0), z.shape, jnp.asarray([300]), SD)
        return make_gradient(model, Program("cds", Contrastive(), False, 1), frozen, inputs)(edited, draw)

    found = np.asarray(gradient(tiny_frozen, z + 0.1 * jax.random.normal(jax.random.key(1), z.shape)))
    assert np.isfinite(found).all() and np.abs(found).mean() > 1e-5
