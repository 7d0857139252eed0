"""What iCD's jobs share, on stand-ins and random models: what tables measure, boundaries, exported pairs."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch

import sdd_jax
from sdd_jax.diffusion.guidance import guidance_embedding
from sdd_jax.diffusion.timegrid import BOUNDARIES, Boundaries, forward_target, reverse_target
from sdd_jax.jobs.editing.methods import TrainedScales, frozen_of
from sdd_jax.jobs.icd import guidance_distill as stage1
from sdd_jax.jobs.icd import job as stage2
from sdd_jax.jobs.icd import measures, subjects
from sdd_jax.jobs.icd import report as icd_report
from sdd_jax.jobs.icd.teacher import MODELS, TeacherConfig, check_scales
from sdd_jax.jobs.protocols.exported import open_exported
from sdd_jax.jobs.protocols.flags import parse
from sdd_jax.jobs.protocols.makers import make_maker
from sdd_jax.jobs.world.directory import read_instruments, world_directory
from sdd_jax.models.card import CARD, model_card, read_record
from sdd_jax.models.hub import tree_hash
from sdd_jax.models.lora import LoraSpec
from sdd_jax.objectives.icd import ICD

pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_noise_is_judged_by_what_is_drawn_from_it(tiny_model, tiny_world, monkeypatch):
    """A model that draws the portraits themselves without guidance, and their negatives with it, from noise of 0."""
    model, images = tiny_model[0], stage1.heldout_images(3)
    subject = subjects.Subject(
        model,
        lambda pictures: jnp.zeros((3, 2, 2, 4)),
        lambda ids, noise, scales: (images if scales[600] == 1 else -images, noise),
        lambda ids, x, noise, scales: (scales[600] - 1) * jnp.ones((3, 2, 2, 4)),
    )
    monkeypatch.setattr(measures, "open_subject", lambda workdir, protocol: subject)
    ways = {"off": {"w": 1.0}, "0.5": {"w": 3.0, "tau": 0.5}, "constant": {"w": 3.0}}
    options = {"samples": 3, "world": str(tiny_world), "decodings": ways}
    found = measures.encoding(None, 0, options)
    assert abs(found["frechet_off"]) < 1e-4 and found["frechet_0.5"] == found["frechet_off"]
    assert found["frechet_constant"] > 1e-3
    assert found["nll"] == pytest.approx(0.918939), "of zeros"
    guided = measures.encoding(None, 0, {**options, "encoding_w": 3.0})
    assert guided["nll"] == pytest.approx(2 + 0.918939), "of twos"
    assert measures.encoding(None, 0, {**options, "encoding_w": 3.0, "encoding_tau": 0.5})["nll"] == found["nll"]


def test_the_teachers_unguided_pass_is_guidance_of_one(tiny_model, tiny_world):
    model, params = tiny_model
    subject = subjects.ddim_subject(model, frozen_of(model, params), steps=2)
    data = subjects.read_heldout(model, 2, 0)
    one = jnp.ones(len(model.alphas_cumprod))
    (plain, z), (guided, _) = (subject.generate(data.ids, data.noise, scales) for scales in (one, one * (1 + 1e-6)))
    np.testing.assert_allclose(plain, guided, atol=1e-4)
    assert np.abs(np.asarray(plain) - np.asarray(subject.generate(data.ids, data.noise, 3 * one)[0])).max() > 1e-3
    np.testing.assert_allclose(jax.jit(model.decode)(params["vae"], z), plain, atol=1e-4)


def test_the_autoencoder_alone_is_the_ceiling(tiny_model, tiny_world):
    """A way there and back that loses nothing is as good, and its latents are those of the portraits."""
    model, params = tiny_model
    teacher, decode = subjects.ddim_subject(model, frozen_of(model, params)), jax.jit(model.decode)
    lossless = teacher._replace(
        encode=lambda ids, images, noise, scales: teacher.latents(images),
        generate=lambda ids, z, scales: (decode(params["vae"], z), z),
    )
    data, instruments = subjects.read_heldout(model, 2, 1), read_instruments(world_directory(str(tiny_world)))
    found, _ = measures.reconstructed(lossless, data, jnp.ones(1000), jnp.ones(1000), instruments)
    best = measures.ceiling(None, 1, {"samples": 2, "model": str(tiny_world), "world": str(tiny_world)})
    assert set(best) == {"psnr", "ssim", "mse", "clip_distance"} and found["latent_mse"] < 1e-8
    assert best == pytest.approx({name: found[name] for name in best}, rel=1e-3, abs=1e-5)
    shifted = lossless._replace(generate=lambda ids, z, scales: (decode(params["vae"], z), z + 0.5))
    found, _ = measures.reconstructed(shifted, data, jnp.ones(1000), jnp.ones(1000), instruments)
    assert found["latent_mse"] == pytest.approx(0.25, rel=1e-3)


def test_scales_act_up_to_tau(tiny_model):
    up, down = subjects.scales_of(subjects.Protocol(w=4.0, tau=0.5), tiny_model[0])
    assert np.all(np.asarray(up) == 1)
    assert np.all(np.asarray(down[:501]) == 4) and np.all(np.asarray(down[501:]) == 1)


def test_blocks_of_portraits_share_none():
    first, second = (stage1.heldout(4, block) for block in (0, 1))
    assert not {one.index for one in first} & {one.index for one in second} and second[0].index == first[-1].index + 1
    assert stage1.heldout(64, 156)[0].index == first[0].index, "156 blocks of 64"
    with pytest.raises(ValueError, match=r"10001 held-out portraits: ask for 1 .. 10000"):
        stage1.heldout(10_001)


@pytest.mark.parametrize(("name", "tau"), [("4_tau0.8", 0.8), ("4_tau0.7", 0.7), ("3_tau0.7", 0.7), ("2", 0.6)])
def test_the_threshold_is_where_jumps_start(tiny_model, name, tau):
    assert icd_report.dynamic_threshold(ICD(model=tiny_model[0], boundaries=BOUNDARIES[name])) == tau


@pytest.mark.parametrize("name", list(BOUNDARIES))
def test_boundaries_by_name_and_by_their_times(name):
    one = BOUNDARIES[name]
    assert stage2.parse_boundaries(name, 50) == one
    assert stage2.parse_boundaries(",".join(map(str, one.reverse)), 50) == one
    assert jax.tree.leaves(one) == [] and isinstance(one, Boundaries)


@pytest.mark.parametrize(
    ("text", "grid_steps", "first"),
    [("249,499,699,999", 100, 9), ("249,499,699,999", 20, 49), ("4_tau0.7", 50, 19), ("4_tau0.7", 100, 9)],
)
def test_boundaries_are_learnt_on_the_grid_that_has_them(tiny_model, text, grid_steps, first):
    """The released tau .7 checkpoints' starts are on grids of 20 and 100 steps, not of 50."""
    objective = ICD(
        model=tiny_model[0], grid_steps=grid_steps, boundaries=stage2.parse_boundaries(text, grid_steps), lora=None
    )
    jumps = objective.boundaries
    assert jumps.forward == (first, *jumps.reverse[:-1]) and set(jumps.reverse) < set(objective.grid.tolist())
    t = jnp.asarray(objective.grid)
    (low, s), (high, up) = (
        target(t[part], jumps.reverse, stride=1000 // grid_steps)
        for target, part in ((reverse_target, slice(None)), (forward_target, slice(-1)))
    )
    assert set(low.tolist()) == {0, *objective.grid[:-1].tolist()} and set(s.tolist()) == {0, *jumps.reverse[:-1]}
    assert high.tolist() == objective.grid[1:].tolist() and set(up.tolist()) == set(jumps.reverse)


def test_a_teacher_that_was_never_unguided_cannot_be_inverted(tiny_model):
    run, trained = TeacherConfig(workdir="runs/1"), TrainedScales((2.0, 6.0), interval=True)
    none = {"forward_weight": 0.0, "forward_preservation": 0.0, "reverse_preservation": 0.0}
    alone = ICD(model=tiny_model[0], scales=(2.0, 3.5), **none)
    check_scales(run, trained, alone)
    check_scales(TeacherConfig(model="m"), None, ICD(model=tiny_model[0]))
    message = "workdir=runs/1: inversion and both preservation losses have w=1: this model was trained at 2 to 6"
    for losses in ({"forward_weight": 1.0}, {"reverse_preservation": 1.0}):
        with pytest.raises(ValueError, match=message):
            check_scales(run, trained, dataclasses.replace(alone, **losses))


@pytest.fixture(scope="module")
def student(tiny_world, tmp_path_factory):
    """The directory of a random teacher that reads its guidance scale."""
    return tiny.make_variant(tiny_world, tmp_path_factory.mktemp("student") / "model", time_cond_proj_dim=512)


@pytest.mark.parametrize("spec", [None, LoraSpec(rank=2, alpha=8.0, targets=("to_q", "conv1"))])
def test_exported_pairs_are_put_together_with_their_teacher(student, tmp_path, spec):
    model, params = sdd_jax.load(student)
    objective, frozen = ICD(model=model, boundaries=BOUNDARIES["2"], lora=spec), {"teacher": {"unet": params["unet"]}}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), frozen)
    trained = tiny.draw(np.random.default_rng(0), shapes)
    stage2._export(objective, trained, tmp_path)
    flags = parse(["--protocol=generation", f"--model={student}", f"--exported={tmp_path}", "--csv=x", "--out=x"])
    with pytest.raises(FileNotFoundError, match="no such card"):
        make_maker(flags)
    config = {"task": "icd", "objective": {"boundaries": "2", "grid_steps": 50, "scales": [1.0, 3.0]}}

    def write_card(config, teacher_hash):
        made_from = {"teacher": "T", "teacher_hash": teacher_hash}
        facts = {"config": config, "fingerprint": made_from, "metrics": None, "measured_by": "", "directory": tmp_path}
        (tmp_path / CARD).write_text(model_card(title="", task="icd", step=1, **facts))
        return read_record(tmp_path)

    found, read = open_exported(flags, write_card(config, model.content_hash))
    assert found.content_hash == model.content_hash and read["boundaries"] == BOUNDARIES["2"]
    assert read["scales"] == TrainedScales((1.0, 3.0))
    for name in MODELS:
        want = stage2.unet_of(objective, trained, frozen, name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), read[name], want)
    maker = make_maker(flags)
    assert maker.settings["steps"] == 2 and model.content_hash in maker.name
    assert maker.settings["guidance"] == 3.0, "the trained scale next to 7.5"
    flags.guidance = 2.0
    with pytest.raises(ValueError, match="--guidance=2: this model was trained at 1, 3"):
        make_maker(flags)
    stage_1 = {**config, "teacher": {"workdir": "runs/stage1"}}
    open_exported(flags, write_card(stage_1, tree_hash(params["unet"])))
    for other, digest in ((config, "0" * 64), (config, tree_hash(params["unet"])), (stage_1, "0" * 64)):
        with pytest.raises(ValueError, match=rf"is not the teacher of .*distilled from T \(hash {digest[:12]}, this"):
            open_exported(flags, write_card(other, digest))
    with pytest.raises(ValueError, match="is of a 'dds' run; this takes icd, mappers of .*: name the run by --workdir"):
        open_exported(flags, write_card({"task": "dds"}, ""))


def test_full_copies_are_exported_as_unets(student, tmp_path):
    """Without adapters, as the embedded default trains them: one forward of each in diffusers."""
    model, shapes = sdd_jax.load(f"shapes:{student}")
    rng = np.random.default_rng(0)
    copies = {name: tiny.draw(rng, shapes["unet"]) for name in MODELS}
    stage2._export(ICD(model=model, lora=None), copies, tmp_path)
    z, context = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 16, 16, 4), (2, 7, 16)))
    t, w = np.asarray([19, 979]), np.array(guidance_embedding(jnp.asarray([1.0, 3.0])))
    run = jax.jit(lambda unet: model.denoise(unet, z, t, context, timestep_cond=w))
    found = {name: np.asarray(run(unet)) for name, unet in copies.items()}
    for name, ours in found.items():
        theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / name / "unet").eval()
        with torch.no_grad():
            inputs = (torch.from_numpy(x) for x in (z.transpose(0, 3, 1, 2).copy(), t, context))
            want = theirs(*inputs, timestep_cond=torch.from_numpy(w)).sample.numpy().transpose(0, 2, 3, 1)
        assert np.linalg.norm(want) > 1e-3 and np.linalg.norm(ours - want) < 1e-3 * np.linalg.norm(want), name
    assert np.abs(found["forward"] - found["reverse"]).max() > 1e-3, "each under its own name"
