"""Attention against PyTorch's, whatever implementation the dispatcher picks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdd_jax.models import attention


def random_qkv(n: int, m: int, dtype: jnp.dtype = jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, n, 3, 8), (2, m, 3, 8), (2, m, 3, 8)]
    return tuple(3 * jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 5)])
def test_matches_pytorch(n: int, m: int) -> None:
    q, k, v = random_qkv(n, m)
    tensors = [torch.from_numpy(np.array(x)).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors).transpose(1, 2).numpy()
    np.testing.assert_allclose(attention.attend(q, k, v), expected, atol=1e-5)
    np.testing.assert_allclose(attention.explicit_attention(q, k, v, lambda probs: probs), expected, atol=1e-5)


def test_chunks_of_queries_give_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random_qkv(10, 7)

    def run() -> tuple[jax.Array, tuple[jax.Array, ...]]:
        out, pull = jax.vjp(attention.xla_attention, q, k, v)
        return out, pull(jnp.cos(out))

    whole = run()
    monkeypatch.setattr(attention, "LARGE", 1)
    monkeypatch.setattr(attention, "QUERY_CHUNK", 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), run(), whole)


def test_large_attention_needs_less_memory_than_its_scores() -> None:
    shape = jax.ShapeDtypeStruct((1, 4096, 8, 8), jnp.float32)
    loss = jax.jit(jax.grad(lambda q, k, v: attention.attend(q, k, v).sum(), argnums=(0, 1, 2)))
    memory = loss.lower(shape, shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 4096 * 4096 * 8


def test_half_precision_keeps_float32_scores() -> None:
    q, k, v = random_qkv(12, 9, jnp.bfloat16)
    out = attention.attend(q, k, v)
    exact = attention.attend(*(x.astype(jnp.float32) for x in (q, k, v)))
    assert out.dtype == jnp.bfloat16 and attention.attention_scores(q, k).dtype == jnp.float32
    assert float(jnp.linalg.norm(out.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)) < 5e-3


def test_unsupported_fused_kernel_falls_back_with_one_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    q, k, v = random_qkv(12, 9, jnp.bfloat16)
    expected = attention.attend(q, k, v)
    attention.cudnn_supports.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with caplog.at_level("WARNING"):
        for _ in range(2):
            np.testing.assert_array_equal(attention.attend(q, k, v), expected)
    assert [record.name for record in caplog.records] == ["sdd_jax.models.attention"]
    assert "n=12 m=9 heads=3 head_dim=8 bfloat16" in caplog.text
