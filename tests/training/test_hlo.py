"""Collectives read from programs: those that XLA compiles for eight devices, and TPU's spellings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdd_jax.training.hlo import Traffic, collectives

_SCRIPT = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from sdd_jax.training.hlo import collectives

mesh = jax.make_mesh((8,), ("d",), (AxisType.Auto,))
split, whole = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=split)

def loop(x):
    def body(total, _):
        return total + jax.lax.with_sharding_constraint((x + total[0, 0]).sum(0), whole)[None], None
    return jax.lax.scan(body, jnp.zeros((1, 32)), length=5)[0]

programs = {
    "sum": jax.jit(lambda x: x.sum(0), out_shardings=whole),
    "gather": jax.jit(lambda x: x * 2, out_shardings=whole),
    "none": jax.jit(lambda x: x * 2, out_shardings=split),
    "loop": jax.jit(loop, out_shardings=whole),
}
print(json.dumps({name: collectives(f.lower(x).compile().as_text()) for name, f in programs.items()}))
"""


@pytest.fixture(scope="module")
def compiled():
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environment = {**os.environ, **flags, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_sum_over_devices_is_one_all_reduce_of_the_result(compiled):
    assert compiled["sum"] == {"all-reduce": [1, 32 * 4]}


def test_a_gather_counts_the_whole_array(compiled):
    assert compiled["gather"] == {"all-gather": [1, 16 * 32 * 4]}


def test_no_collectives(compiled):
    assert compiled["none"] == {}


def test_a_loop_counts_as_often_as_it_runs(compiled):
    (found,) = compiled["loop"].values()
    assert found == [5, 5 * 32 * 4]


_TPU = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[16,8]) -> f32[4,8] {
  %p = f32[16,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[16,8]{1,0:T(8,128)} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[4,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={4,8}
}

%body (s: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %s = (s32[]{:T(128)}, bf16[64]{0:T(128)}) parameter(0)
  %start = (bf16[16]{0:T(128)}, bf16[64]{0:T(128)}) all-gather-start(%x), dimensions={0}
  %done = bf16[64]{0:T(128)} all-gather-done(%start)
  ROOT %t = (s32[]{:T(128)}, bf16[64]{0:T(128)}) tuple(%i, %done)
}

%condition (s: (s32[], bf16[64])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, bf16[64]{0:T(128)}) parameter(0)
  %bound = s32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main.5 (p0: f32[16,8], p1: f32[]) -> f32[4,8] {
  %p0 = f32[16,8]{1,0:T(8,128)} parameter(0)
  %w = (s32[]{:T(128)}, bf16[64]{0:T(128)}) while(%init), condition=%condition, body=%body
  %both = (f32[8]{0:T(128)}, /*index=1*/f32[]{:T(128)}) all-reduce(%g, %h), to_apply=%add
  ROOT %f = f32[4,8]{1,0:T(8,128)} fusion(%p0), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_the_spellings_of_tpu():
    assert collectives(_TPU) == {
        "all-reduce": Traffic(1, 8 * 4 + 4),
        "all-gather": Traffic(7, 7 * 64 * 2),
        "reduce-scatter": Traffic(1, 4 * 8 * 4),
    }


_CHAIN = """HloModule jit_step, is_scheduled=true

%start_of (p: bf16[4]) -> bf16[16] {
  ROOT %all-gather.1 = bf16[16]{0:T(128)} all-gather(%p), channel_id=5, frontend_attributes={chain_id="7"}
}

%beside (p: bf16[4]) -> bf16[16] {
  %all-gather.2 = bf16[16]{0:T(128)} all-gather(%p), channel_id=5, frontend_attributes={chain_id="7"}
  ROOT %product = bf16[16]{0:T(128)} multiply(%q, %q)
}

%done_of (p: bf16[4]) -> bf16[16] {
  ROOT %all-gather.3 = bf16[16]{0:T(128)} all-gather(%p), channel_id=5, frontend_attributes={chain_id="7"}
}

%body (s: (s32[], bf16[4])) -> (s32[], bf16[4]) {
  %s.2 = bf16[16]{0:T(128)} fusion(%x), kind=kCustom, calls=%start_of
  %b.2 = bf16[16]{0:T(128)} fusion(%s.2), kind=kCustom, calls=%beside
  %d.2 = bf16[16]{0:T(128)} fusion(%b.2), kind=kCustom, calls=%done_of
  %other = bf16[8]{0:T(128)} all-gather(%x), channel_id=6
  ROOT %t = (s32[]{:T(128)}, bf16[4]{0:T(128)}) tuple(%i, %x)
}

%condition (s: (s32[], bf16[4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main.5 (p0: bf16[4]) -> bf16[16] {
  %w = (s32[]{:T(128)}, bf16[4]{0:T(128)}) while(%init), condition=%condition, body=%body
  ROOT %last = bf16[16]{0:T(128)} fusion(%p0), kind=kCustom, calls=%start_of
}
"""


def test_a_collective_spread_over_fusions_is_one():
    """Three times in a loop, beside one that is whole, and once outside."""
    assert collectives(_CHAIN) == {"all-gather": Traffic(3 + 3 + 1, 2 * (3 * (16 + 8) + 16))}


def test_known_trip_counts_are_read():
    told = _TPU.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert collectives(told)["all-gather"] == Traffic(3, 3 * 64 * 2)


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        collectives("hello")
