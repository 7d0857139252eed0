"""Checkpoints: exact restores, damage found and survived, nothing cast, nothing lost."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_job import Toy, teacher

from sdd_jax.training.checkpoint import MANIFEST, Checkpoints
from sdd_jax.training.state import create_state

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda: create_state(jax.random.key(0), Toy(), optax.adam(0.1), teacher(), with_ema=True))()


def after(state, step):
    return jax.tree.map(lambda leaf: leaf + step, state)


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=HERE), state)


def open_checkpoints(workdir, keep=2, fingerprint="abc"):
    return Checkpoints(workdir, keep=keep, config={"seed": 0}, fingerprint={"teacher": fingerprint})


def write(workdir, state, steps=(5, 10)):
    with open_checkpoints(workdir) as checkpoints:
        for step in steps:
            checkpoints.save(step, after(state, step))


def damage(workdir, step):
    """Flips one bit of the largest file of a checkpoint."""
    victim = max((workdir / "checkpoints" / str(step) / "default").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_restores_the_newest_bitwise_and_keeps_as_many_as_asked(tmp_path, state):
    write(tmp_path, state, (5, 10, 15))
    with open_checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(abstract(state)), after(state, 15))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "15"]


def test_nothing_saved_is_none(tmp_path, state):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(state)) is None


def test_the_manifest_is_there_before_the_checkpoint_has_its_name(tmp_path, state, monkeypatch):
    named = []
    write_manifest = Checkpoints._write_manifest

    def watched(self):
        write_manifest(self)
        named.extend(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())

    monkeypatch.setattr(Checkpoints, "_write_manifest", watched)
    write(tmp_path, state, (5,))
    assert named == []
    manifest = json.loads((tmp_path / "checkpoints" / "5" / MANIFEST).read_text())
    assert manifest["step"] == 5 and manifest["fingerprint"] == {"teacher": "abc"} and manifest["config"] == {"seed": 0}
    assert manifest["arrays"]["params/dense/kernel"] == [[16, 16], "float32"]
    assert any("/d/" in name for name in manifest["files"])


@pytest.mark.parametrize("harm", ["bit", "missing file", "no manifest", "torn manifest"])
def test_damage_falls_back_to_the_step_before_loudly(tmp_path, state, harm, caplog):
    write(tmp_path, state)
    newest = tmp_path / "checkpoints" / "10"
    if harm == "bit":
        damage(tmp_path, 10)
    elif harm == "missing file":
        (newest / "default" / "_METADATA").unlink()
    elif harm == "no manifest":
        (newest / MANIFEST).unlink()
    else:
        (newest / MANIFEST).write_text((newest / MANIFEST).read_text()[:50])
    with caplog.at_level(logging.ERROR, "sdd_jax"), open_checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(abstract(state)), after(state, 5))
        assert "CHECKPOINT 10" in caplog.text and "IS NOT USED" in caplog.text
        checkpoints.save(10, after(state, 10))  # its place is free again
    with open_checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(abstract(state)), after(state, 10))
    assert len(list((tmp_path / "rejected").iterdir())) == 1


def test_reading_leaves_the_files_of_a_running_job_alone(tmp_path, state):
    write(tmp_path, state)
    damage(tmp_path, 10)
    in_flight = tmp_path / "checkpoints" / "15.orbax-checkpoint-tmp"
    in_flight.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with open_checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(abstract(state)), after(state, 5))
    assert sorted(tmp_path.rglob("*")) == before
    write(tmp_path, state, (15,))  # the next job clears it
    assert not in_flight.exists()


def test_no_good_checkpoint_is_an_error_that_loses_nothing(tmp_path, state):
    write(tmp_path, state)
    damage(tmp_path, 5), damage(tmp_path, 10)
    before = sorted(path for path in tmp_path.rglob("*"))
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="no usable checkpoint") as error:
        checkpoints.restore(abstract(state))
    assert "\n" not in str(error.value) and "sha256 differs" in str(error.value)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_restore_never_casts_or_reshapes(tmp_path, state):
    write(tmp_path, state)
    half = state.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params))
    with open_checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"params/dense/bias is float32\[16\] there and bfloat16\[16\] here"):
            checkpoints.restore(abstract(half))
        with pytest.raises(ValueError, match=r"ema/dense/bias is float32\[16\] there and absent here"):
            checkpoints.restore(abstract(state.replace(ema=None)))


def test_other_frozen_weights_are_named(tmp_path, state):
    write(tmp_path, state)
    with open_checkpoints(tmp_path, fingerprint="def") as checkpoints:
        with pytest.raises(ValueError, match="another teacher: abc there and def here"):
            checkpoints.restore(abstract(state))


def test_what_is_saved_is_the_state_at_the_call_though_its_buffers_are_donated(tmp_path, state):
    bump = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    big = state.replace(params={"x": jnp.zeros((1000, 1000))}, ema=None, opt_state=())
    with open_checkpoints(tmp_path, keep=4) as checkpoints:
        for step in range(1, 5):
            big = bump(big)
            checkpoints.save(step, big)
        big = bump(big)
    with open_checkpoints(tmp_path, keep=4) as checkpoints:
        assert_same(checkpoints.restore(abstract(big)).params["x"], np.full((1000, 1000), 4.0))
