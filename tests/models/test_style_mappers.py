"""Style mappers against a PyTorch counterpart: every kind, the norm's axis, checkpoints, and what is refused."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models import style_mappers
from sdd_jax.models.style_mappers import (
    MapperConfig,
    apply_mapper,
    init_mapper,
    load_mapper,
    mapper_params,
    save_mapper,
)

torch = pytest.importorskip("torch")
from torch_parity import relative_error  # noqa: E402
from torch_style import Levels, Mapping, randomised  # noqa: E402

pytestmark = pytest.mark.usefixtures("compile_quickly")
TOLERANCE = 1e-4
WIDTH, COUNT = 6, 11
SPELT = {"coarse": "course_mapping", "medium": "medium_mapping", "fine": "fine_mapping"}
STYLES = (6, 6, 6, 5, 5, 5, 4, 4)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def state_of(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("levels", [("coarse", "medium", "fine"), ("medium", "fine"), ("coarse",)])
def test_level_mappers_match_pytorch(levels, tmp_path):
    theirs = randomised(Levels(WIDTH, [SPELT[level] for level in levels]))
    assert len(theirs.state_dict()) == 8 * len(levels)
    assert ("coarse" in levels) == ("course_mapping.mapping.1.weight" in theirs.state_dict())
    codes = draw(2, COUNT, WIDTH)
    with torch.no_grad():
        want = theirs(torch.from_numpy(codes))
    decoder = {"decoder.input.input": torch.zeros(2)}
    nested = {f"mapper.{k}": v for k, v in theirs.state_dict().items()} | decoder
    torch.save({"state_dict": nested, "opts": {"no_coarse_mapper": "coarse" not in levels}}, tmp_path / "styleclip.pt")
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.005}]}
    torch.save({"mapper": theirs.state_dict(), "optimizer": optimizer}, tmp_path / "mapper_004000.pt")
    config = MapperConfig(levels=levels)
    for name in ("styleclip.pt", "mapper_004000.pt"):
        params = load_mapper(tmp_path / name, config, jnp.zeros((1, COUNT, WIDTH)))
        assert set(params) == set(levels)
        got = jax.jit(lambda p: apply_mapper(config, p, codes))(params)
        assert relative_error(got, want) < TOLERANCE
    for level, span in style_mappers.LEVELS.items():
        assert bool(np.any(got[:, span])) == (level in levels)


def test_the_norm_is_over_codes_not_channels():
    theirs = randomised(Levels(WIDTH, [*SPELT.values()]))
    config, codes = MapperConfig(), draw(2, COUNT, WIDTH)
    params = mapper_params(state_of(theirs), config, jnp.zeros((1, COUNT, WIDTH)), source="file")
    with torch.no_grad():
        want = theirs(torch.from_numpy(codes))
    got = apply_mapper(config, params, jnp.asarray(codes))
    assert relative_error(got, want) < TOLERANCE
    scaled = codes * np.linspace(1, 3, WIDTH, dtype=np.float32)
    np.testing.assert_allclose(apply_mapper(config, params, jnp.asarray(scaled)), got, rtol=1e-3, atol=1e-4)
    longer = codes * np.linspace(1, 3, COUNT, dtype=np.float32)[:, None]
    assert np.abs(np.asarray(apply_mapper(config, params, jnp.asarray(longer)) - got)).max() > 0.05


def test_one_mapper_by_hand():
    """Weights 100 / .01-scaled ones: E(x) = sum(x) / sqrt(c) + bias / 100, then sqrt(2) leaky_relu."""
    c, x = 4, np.asarray([[1.0, -2.0, 3.0, 0.5]], np.float32)
    layers = {f"mapping.{i}.weight": np.full((c, c), 100, np.float32) for i in (1, 2, 3, 4)}
    layers |= {f"mapping.{i}.bias": np.full(c, -50.0 * i, np.float32) for i in (1, 2, 3, 4)}
    tensors = {f"mapper_0.{name}": value for name, value in layers.items()}
    config = MapperConfig(kind="styles")
    params = mapper_params(tensors, config, [jnp.zeros((1, c))], source="file")
    y = x / np.sqrt(np.mean(x**2) + 1e-8)
    for i in (1, 2, 3, 4):
        y = np.full((1, c), y.sum() / 2 - 0.5 * i)
        y = np.sqrt(2) * np.where(y > 0, y, 0.2 * y)
    np.testing.assert_allclose(apply_mapper(config, params, [jnp.asarray(x)])[0], y, rtol=1e-5)


@pytest.mark.parametrize(("kind", "skipped"), [("styles", ()), ("styles_without_rgb", (1, 4, 7))])
def test_style_space_mappers(kind, skipped):
    config, styles = MapperConfig(kind=kind), [draw(2, c, seed=c) for c in STYLES]
    theirs = {i: randomised(Mapping(c), seed=i) for i, c in enumerate(STYLES) if i not in skipped}
    tensors = {f"mapper_{i}.{name}": value for i, module in theirs.items() for name, value in state_of(module).items()}
    params = mapper_params(tensors, config, [jnp.zeros((1, c)) for c in STYLES], source="file")
    got = apply_mapper(config, params, [jnp.asarray(style) for style in styles])
    for i, style in enumerate(styles):
        if i in skipped:
            assert got[i].shape == style.shape and not np.any(got[i])
            continue
        with torch.no_grad():
            assert relative_error(got[i], theirs[i](torch.from_numpy(style))) < TOLERANCE


def test_at_1024_px_styles_have_26_layers_of_which_9_make_rgb():
    widths = [512] * 15 + [256] * 3 + [128] * 3 + [64] * 3 + [32] * 2
    shapes = [jax.ShapeDtypeStruct((1, c), jnp.float32) for c in widths]
    for kind, count in (("styles", 26), ("styles_without_rgb", 17)):
        init = jax.eval_shape(
            lambda key, kind=kind: style_mappers.init_mapper(key, MapperConfig(kind=kind), shapes), jax.random.key(0)
        )
        assert len(init) == count and len(jax.tree.leaves(init)) == 8 * count


@pytest.mark.parametrize(
    ("kind", "code"), [("levels", jnp.ones((2, COUNT, WIDTH))), ("styles", [jnp.ones((2, c)) for c in STYLES])]
)
def test_a_mapper_that_starts_at_zero_changes_nothing_and_learns(kind, code):
    config = MapperConfig(kind=kind)
    params = init_mapper(jax.random.key(0), config, code, zero=True)
    assert not any(map(np.any, jax.tree.leaves(apply_mapper(config, params, code))))
    sums = jax.grad(lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(apply_mapper(config, p, code))))(params)
    assert all(np.any(leaf) for mapper in sums.values() for leaf in jax.tree.leaves(mapper["mapping_4"]))
    fresh = init_mapper(jax.random.key(0), config, code)
    assert all(np.any(x) for x in jax.tree.leaves(apply_mapper(config, fresh, code)))


def test_single_and_round_trips(tmp_path):
    theirs = randomised(Mapping(WIDTH))
    config, codes = MapperConfig(kind="single"), draw(2, COUNT, WIDTH)
    tensors = {f"mapping.{name}": value for name, value in state_of(theirs).items()}
    params = mapper_params(tensors, config, jnp.asarray(codes), source="file")
    with torch.no_grad():
        assert relative_error(apply_mapper(config, params, jnp.asarray(codes)), theirs(torch.from_numpy(codes))) < 1e-4
    for kept, code in (
        (config, jnp.asarray(codes)),
        (MapperConfig(levels=("medium",)), jnp.asarray(codes)),
        (MapperConfig(kind="styles_without_rgb"), [jnp.zeros((1, c)) for c in STYLES]),
    ):
        shapes = jax.eval_shape(lambda k, c=kept, x=code: style_mappers.init_mapper(k, c, x), jax.random.key(0))
        params = jax.tree.map(lambda x: draw(*x.shape), shapes)
        save_mapper(kept, params, tmp_path / "mapper.safetensors")
        read = load_mapper(tmp_path / "mapper.safetensors", kept, code)
        jax.tree.map(np.testing.assert_array_equal, read, params)


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_wrong_files_are_one_line(tmp_path):
    code = jnp.zeros((1, COUNT, WIDTH))
    state = randomised(Levels(WIDTH, ["medium_mapping"])).state_dict()
    torch.save({"mapper": state, "optimizer": Malicious(tmp_path / "made")}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="code.pt.*refused"):
        load_mapper(tmp_path / "code.pt", MapperConfig(), code)
    assert not (tmp_path / "made").exists()
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "none.pt")
    torch.save({"mapper": state}, tmp_path / "medium.pt")
    for name, config, message in (
        ("none.pt", MapperConfig(), "none.pt holds no mapper"),
        ("medium.pt", MapperConfig(), "medium.pt.*16 missing: coarse.mapping_1.bias"),
        ("medium.pt", MapperConfig(levels=("fine",)), "8 missing: fine.*8 unexpected: medium"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load_mapper(tmp_path / name, config, code)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"8 of the wrong shape: medium"):
        load_mapper(tmp_path / "medium.pt", MapperConfig(levels=("medium",)), jnp.zeros((1, COUNT, WIDTH + 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "best"}, "kind='best' is not a mapper"),
        ({"levels": ("course",)}, "name some of coarse, medium, fine"),
        ({"levels": ()}, "name some of coarse"),
        ({"kind": "single", "levels": ("fine",)}, "has no effect with kind='single'"),
    ],
)
def test_impossible_choices(settings, message):
    with pytest.raises(ValueError, match=message):
        MapperConfig(**settings)
