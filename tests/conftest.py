"""Every test runs on the CPU with strict rank promotion: `[b]` against `[b, 1, 1, 1]` is an error, not a broadcast."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
