"""Guidance distillation: eq. 2 by hand, the student's start, what is trained and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.guidance import guidance_embedding
from sdd_jax.diffusion.schedule import Schedule
from sdd_jax.models.lora import ATTENTION_TARGETS, LoraSpec
from sdd_jax.models.unet import init_unet, make_unet
from sdd_jax.objectives.guidance_distill import GuidanceDistillation, student_configs
from sdd_jax.training.flops import count_flops
from sdd_jax.types import ModelBundle

ACP = np.asarray(Schedule.scaled_linear().alphas_cumprod)
SHAPE = (6, 2, 2, 2)
UNET = dict(
    sample_size=8,
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    attention_head_dim=2,
    cross_attention_dim=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)


def bundle(denoise, prediction="eps", configs=None):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(ModelBundle))
    fields |= {"denoise": denoise, "prediction": prediction, "alphas_cumprod": ACP, "configs": configs}
    return ModelBundle(**{**fields, "encode": lambda vae, image, rng=None: image})


def linear(params, z, t, context, *, added_cond=None, timestep_cond=None):
    """a z + b t / 1000 + mean(context) [+ c mean(embedding)]."""
    out = params["a"] * z + params["b"] * t[:, None, None, None] / 1000 + context.mean((1, 2))[:, None, None, None]
    return out if timestep_cond is None else out + params["c"] * timestep_cond.mean(1)[:, None, None, None]


class Recorder:
    def __init__(self, denoise):
        self.denoise, self.calls = denoise, []

    def __call__(self, params, z, t, context, **rest):
        out = self.denoise(params, z, t, context, **rest)
        self.calls.append((np.asarray(z), np.asarray(t), rest.get("timestep_cond"), np.asarray(out)))
        return out


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=SHAPE), jnp.float32),
        "context": jnp.asarray(rng.normal(size=(SHAPE[0], 3, 5)), jnp.float32),
    }


FROZEN = {"teacher": {"unet": {"a": 0.3, "b": 2.0}}, "vae": {}, "text": {}, "null_context": jnp.full((1, 3, 5), -0.4)}
PARAMS = {"unet": {"a": jnp.asarray(0.2), "b": jnp.asarray(1.0), "c": jnp.asarray(0.7)}}


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_is_equation_2_with_the_teacher_in_one_forward(batch, prediction):
    teacher, student = Recorder(linear), Recorder(linear)
    method = GuidanceDistillation(
        model=bundle(teacher, prediction), student=bundle(student, prediction), scales=(1.0, 4.0)
    )
    loss, metrics = method.loss(PARAMS, FROZEN, batch, jax.random.key(1), jnp.asarray(0))
    ((z2, t2, _, pred),), ((z, t, embedded, out),) = teacher.calls, student.calls
    np.testing.assert_array_equal(z2, np.concatenate([z, z]))
    np.testing.assert_array_equal(t2, np.concatenate([t, t]))
    w = np.where(np.asarray(embedded)[:, :256].any(1), 4.0, 1.0)  # w = 1 embeds as sines of 0
    assert set(w) == {1.0, 4.0}
    np.testing.assert_array_equal(embedded, guidance_embedding(jnp.asarray(w, jnp.float32)))
    cond, uncond = np.split(pred.astype(np.float64), 2)
    context = np.asarray(batch["context"]).mean((1, 2))[:, None, None, None]
    np.testing.assert_allclose(cond - uncond, np.broadcast_to(context + 0.4, SHAPE), atol=1e-5)
    target = uncond + w[:, None, None, None] * (cond - uncond)
    np.testing.assert_allclose(loss, np.mean((out - target) ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["relative_rmse"], np.sqrt(loss / np.mean(target**2)), rtol=1e-5)
    x0 = np.asarray(batch["image"])
    at = Schedule(ACP).at(t)
    noise = (z - at.alpha * x0) / at.sigma
    assert 0.5 < np.std(noise) < 1.5 and len(set(t.tolist())) == SHAPE[0]


def test_a_student_that_guides_has_no_loss(batch):
    def exact(params, z, t, context, *, added_cond=None, timestep_cond=None):
        w = jnp.where(timestep_cond[:, :256].any(1), 4.0, 1.0)[:, None, None, None]
        cond, null = (linear(FROZEN["teacher"]["unet"], z, t, c) for c in (context, jnp.full_like(context, -0.4)))
        return null + w * (cond - null)

    method = GuidanceDistillation(model=bundle(linear), student=bundle(exact), scales=(1.0, 4.0))
    loss, metrics = method.loss({"unet": {}}, FROZEN, batch, jax.random.key(1), jnp.asarray(0))
    assert loss < 1e-10 and metrics["relative_rmse"] < 1e-5
    wrong = dataclasses.replace(method, scales=(4.5,))
    assert wrong.loss({"unet": {}}, FROZEN, batch, jax.random.key(1), jnp.asarray(0))[1]["relative_rmse"] > 1e-3


def test_scales_of_a_list_and_of_an_interval():
    method = GuidanceDistillation(model=bundle(linear), student=bundle(linear), scales=(1.0, 2.0, 6.0))
    drawn = np.asarray(method.draw_scales(jax.random.key(0), 6000))
    assert set(drawn) == {1.0, 2.0, 6.0} and all(1800 < (drawn == w).sum() < 2200 for w in (1, 2, 6))
    between = dataclasses.replace(method, scales=(1.0, 6.0), interval=True)
    drawn = np.asarray(between.draw_scales(jax.random.key(0), 6000))
    assert 1 <= drawn.min() < 1.01 and 5.99 < drawn.max() <= 6 and abs(drawn.mean() - 3.5) < 0.1


def test_sdxls_null_prompt_has_its_own_pooled_state(batch):
    def pooled(params, z, t, context, *, added_cond, timestep_cond=None):
        assert added_cond["time_ids"].shape == (z.shape[0], 6)
        return jnp.zeros_like(z) + added_cond["text_embeds"][:, :1, None, None]

    teacher = dataclasses.replace(bundle(pooled), sample_size=4, downsampling=8)
    method = GuidanceDistillation(model=teacher, student=teacher, scales=(3.0,))
    rich = {**batch, "pooled": jnp.full((SHAPE[0], 2), 2.0)}
    frozen = {**FROZEN, "null_pooled": jnp.full((1, 2), 0.5)}
    loss, _ = method.loss({"unet": {}}, frozen, rich, jax.random.key(1), jnp.asarray(0))
    np.testing.assert_allclose(loss, (0.5 + 3 * 1.5 - 2.0) ** 2, rtol=1e-6)


@pytest.fixture(scope="module")
def real():
    """(teacher's bundle, student's bundle, frozen, batch): a UNet of width 16."""
    teacher, student = make_unet(UNET), make_unet(student_configs({"unet": UNET})["unet"])

    def of(unet):
        def denoise(params, z, t, context, *, added_cond=None, timestep_cond=None):
            return unet.apply({"params": params}, z, t, context, timestep_cond)

        return bundle(denoise)

    shapes = jax.eval_shape(lambda key: init_unet(teacher, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)
    frozen = {**FROZEN, "teacher": {"unet": weights}, "null_context": jnp.zeros((1, 3, 8))}
    image, context = rng.normal(size=(2, 8, 8, 4)), rng.normal(size=(2, 3, 8))
    batch = {"image": jnp.asarray(image, jnp.float32), "context": jnp.asarray(context, jnp.float32)}
    return of(teacher), of(student), frozen, batch


SPEC = LoraSpec(rank=2, alpha=1, targets=ATTENTION_TARGETS)


def test_the_student_starts_as_the_teachers_conditional_prediction_for_every_w(real):
    teacher, student, frozen, batch = real
    method = GuidanceDistillation(model=teacher, student=student)
    adapted = dataclasses.replace(method, lora=SPEC)
    z, t, text = batch["image"], jnp.array([19, 700]), (batch["context"], None)

    @jax.jit
    def both(frozen, w, nudge):
        full, low = (one.init(jax.random.key(0), frozen) for one in (method, adapted))
        full["unet"]["time_embedding"]["cond_proj"]["kernel"] += nudge
        low["cond_proj"]["kernel"] += nudge
        expected = teacher.denoise(frozen["teacher"]["unet"], z, t, batch["context"])
        merged = student.denoise(
            adapted.student_unet(low, frozen), z, t, batch["context"], timestep_cond=guidance_embedding(w)
        )
        outs = (method.predict(full, frozen, z, t, text, w), adapted.predict(low, frozen, z, t, text, w), merged)
        return expected, outs

    expected, outs = both(frozen, jnp.array([1.0, 8.0]), 0.0)
    for out in outs:
        np.testing.assert_allclose(out, expected, atol=1e-5)
    _, (full, low, merged) = both(frozen, jnp.array([1.0, 8.0]), 0.01)
    np.testing.assert_allclose(low, full, atol=1e-5)
    np.testing.assert_allclose(merged, full, atol=1e-5)
    assert np.abs(full - expected).max() > 1e-3


def test_what_is_trained(real):
    teacher, student, frozen, _ = real
    method = GuidanceDistillation(model=teacher, student=student)
    full = jax.eval_shape(lambda: method.init(jax.random.key(0), frozen))
    assert full["unet"]["time_embedding"]["cond_proj"]["kernel"].shape == (512, 16)
    expected = jax.eval_shape(lambda: init_unet(make_unet(student_configs({"unet": UNET})["unet"]), jax.random.key(0)))
    assert jax.tree.structure(full["unet"]) == jax.tree.structure(expected)
    low = jax.eval_shape(lambda: dataclasses.replace(method, lora=SPEC).init(jax.random.key(0), frozen))
    assert set(low) == {"lora", "cond_proj"} and set(low["cond_proj"]) == {"kernel"}


def test_five_forwards_and_four_with_adapters(real):
    teacher, student, frozen, batch = real
    args = (frozen["teacher"]["unet"], batch["image"], jnp.zeros((2,), jnp.int32), batch["context"])
    forward = count_flops(teacher.denoise, *args).total

    def cost(method):
        params = jax.eval_shape(lambda: method.init(jax.random.key(0), frozen))

        def step(params, frozen, batch):
            return jax.value_and_grad(
                lambda p: method.loss(p, frozen, batch, jax.random.key(0), jnp.zeros((), jnp.int32))[0]
            )(params)

        return count_flops(step, params, frozen, batch).total / forward

    full = GuidanceDistillation(model=teacher, student=student)
    assert 4.8 < cost(full) < 5.02  # the input gradients of the first layers are not there
    rank_one = LoraSpec(rank=1, alpha=1, targets=ATTENTION_TARGETS)
    assert 3.7 < cost(dataclasses.replace(full, lora=rank_one)) < 4.2


def test_errors_name_what_is_wrong():
    model = bundle(linear)
    with pytest.raises(ValueError, match="none below 0"):
        GuidanceDistillation(model=model, student=model, scales=(-1.0,))
    with pytest.raises(ValueError, match="is no interval"):
        GuidanceDistillation(model=model, student=model, scales=(1.0, 2.0, 3.0), interval=True)
    with pytest.raises(ValueError, match="time_cond_proj_dim"):
        student_configs(student_configs({"unet": UNET}))
