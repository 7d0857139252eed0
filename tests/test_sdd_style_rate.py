"""The learning rate of the world's mapper, on arrays of its codes' shape without a generator."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdd_jax.config import defaults_of, load_config
from sdd_jax.models.style_mappers import MapperConfig, apply_mapper, init_mapper
from sdd_jax.models.stylegan2 import StyleGAN2Config
from sdd_jax.train import EngineConfig, engine_config
from sdd_jax.training.optim import make_optimizer

CONFIGS = Path(__file__).parents[1] / "configs"
DEVIATION = 0.7
"""Of an entry of the codes, assumed."""


def test_a_constant_gradient_moves_codes_by_their_own_deviation():
    """From no change at all, within config.steps: w' - w along the gradient, which is 1 or -1 in every entry."""
    config = load_config(f"{CONFIGS / 'sdd_stylegan.py'}", (), defaults_of(EngineConfig))
    generator = StyleGAN2Config(**load_config(f"{CONFIGS / 'pretrain_style.py'}").generator)
    shape, mapper, engine = (generator.num_ws, generator.style_dim), MapperConfig(), engine_config(config)
    wanted = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (1, *shape)), jnp.float32)

    def change(params, rng):
        codes = DEVIATION * jax.random.normal(rng, (config.batch_size, *shape))
        return config.manipulator.delta_scale * apply_mapper(mapper, params, codes)

    def along(params, rng):
        return jnp.mean(change(params, rng) * wanted)

    @jax.jit
    def trained(params):
        optimizer, _ = make_optimizer(engine.optimizer, engine.steps)

        def step(state, rng):
            params, moments = state
            gradient = jax.grad(lambda p: -along(p, rng))(params)
            updates, moments = optimizer.update(gradient, moments, params)
            return (optax.apply_updates(params, updates), moments), None

        rngs = jax.random.split(jax.random.key(1), engine.steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), rngs)[0][0]

    shapes = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = init_mapper(jax.random.key(0), mapper, shapes, zero=config.manipulator.zero_start)
    assert not np.any(change(params, jax.random.key(2)))
    moved = float(along(trained(params), jax.random.key(2)))
    assert DEVIATION / 2 < moved < 2 * DEVIATION
