"""InceptionV3 against a PyTorch counterpart written here: every block at a small size, the whole network once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models import inception
from sdd_jax.models.state_dicts import to_params

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

TOLERANCE = 1e-4


class Unit(nn.Module):
    def __init__(self, i, o, **conv):
        super().__init__()
        self.conv = nn.Conv2d(i, o, bias=False, **conv)
        self.bn = nn.BatchNorm2d(o, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Named units: `units` maps a name to (inputs, outputs, kernel, stride, padding)."""

    def __init__(self, **units):
        super().__init__()
        for name, (i, o, kernel, stride, padding) in units.items():
            self.add_module(name, Unit(i, o, kernel_size=kernel, stride=stride, padding=padding))

    def run(self, x, *names):
        for name in names:
            x = getattr(self, name)(x)
        return x


def mean3(x):
    """Average over the pixels inside the image: the sum of a window over the sum of a window of ones."""
    window = torch.ones(x.shape[1], 1, 3, 3)
    total = F.conv2d(x, window, padding=1, groups=x.shape[1])
    return total / F.conv2d(torch.ones_like(x), window, padding=1, groups=x.shape[1])


class A(Branches):
    def __init__(self, i, pooled):
        super().__init__(
            branch1x1=(i, 64, 1, 1, 0),
            branch5x5_1=(i, 48, 1, 1, 0),
            branch5x5_2=(48, 64, 5, 1, 2),
            branch3x3dbl_1=(i, 64, 1, 1, 0),
            branch3x3dbl_2=(64, 96, 3, 1, 1),
            branch3x3dbl_3=(96, 96, 3, 1, 1),
            branch_pool=(i, pooled, 1, 1, 0),
        )

    def forward(self, x):
        return torch.cat(
            [
                self.run(x, "branch1x1"),
                self.run(x, "branch5x5_1", "branch5x5_2"),
                self.run(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
                self.run(mean3(x), "branch_pool"),
            ],
            1,
        )


class B(Branches):
    def __init__(self, i):
        super().__init__(
            branch3x3=(i, 384, 3, 2, 0),
            branch3x3dbl_1=(i, 64, 1, 1, 0),
            branch3x3dbl_2=(64, 96, 3, 1, 1),
            branch3x3dbl_3=(96, 96, 3, 2, 0),
        )

    def forward(self, x):
        double = self.run(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.run(x, "branch3x3"), double, F.max_pool2d(x, 3, 2)], 1)


class C(Branches):
    def __init__(self, i, c):
        row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        super().__init__(
            branch1x1=(i, 192, 1, 1, 0),
            branch7x7_1=(i, c, 1, 1, 0),
            branch7x7_2=(c, c, *row),
            branch7x7_3=(c, 192, *column),
            branch7x7dbl_1=(i, c, 1, 1, 0),
            branch7x7dbl_2=(c, c, *column),
            branch7x7dbl_3=(c, c, *row),
            branch7x7dbl_4=(c, c, *column),
            branch7x7dbl_5=(c, 192, *row),
            branch_pool=(i, 192, 1, 1, 0),
        )

    def forward(self, x):
        return torch.cat(
            [
                self.run(x, "branch1x1"),
                self.run(x, *(f"branch7x7_{i}" for i in (1, 2, 3))),
                self.run(x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
                self.run(mean3(x), "branch_pool"),
            ],
            1,
        )


class D(Branches):
    def __init__(self, i):
        super().__init__(
            branch3x3_1=(i, 192, 1, 1, 0),
            branch3x3_2=(192, 320, 3, 2, 0),
            branch7x7x3_1=(i, 192, 1, 1, 0),
            branch7x7x3_2=(192, 192, (1, 7), 1, (0, 3)),
            branch7x7x3_3=(192, 192, (7, 1), 1, (3, 0)),
            branch7x7x3_4=(192, 192, 3, 2, 0),
        )

    def forward(self, x):
        factored = self.run(x, *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)))
        return torch.cat([self.run(x, "branch3x3_1", "branch3x3_2"), factored, F.max_pool2d(x, 3, 2)], 1)


class E(Branches):
    def __init__(self, i, pool):
        row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        super().__init__(
            branch1x1=(i, 320, 1, 1, 0),
            branch3x3_1=(i, 384, 1, 1, 0),
            branch3x3_2a=(384, 384, *row),
            branch3x3_2b=(384, 384, *column),
            branch3x3dbl_1=(i, 448, 1, 1, 0),
            branch3x3dbl_2=(448, 384, 3, 1, 1),
            branch3x3dbl_3a=(384, 384, *row),
            branch3x3dbl_3b=(384, 384, *column),
            branch_pool=(i, 192, 1, 1, 0),
        )
        self.pool = pool

    def forward(self, x):
        single, double = self.run(x, "branch3x3_1"), self.run(x, "branch3x3dbl_1", "branch3x3dbl_2")
        parts = [self.run(x, "branch1x1")]
        parts += [self.run(single, f"branch3x3_2{side}") for side in "ab"]
        parts += [self.run(double, f"branch3x3dbl_3{side}") for side in "ab"]
        return torch.cat([*parts, self.run(self.pool(x), "branch_pool")], 1)


def max3(x):
    return F.max_pool2d(x, 3, 1, 1)


class Network(Branches):
    """The published file's modules, its unused classifier included."""

    def __init__(self):
        super().__init__(
            Conv2d_1a_3x3=(3, 32, 3, 2, 0),
            Conv2d_2a_3x3=(32, 32, 3, 1, 0),
            Conv2d_2b_3x3=(32, 64, 3, 1, 1),
            Conv2d_3b_1x1=(64, 80, 1, 1, 0),
            Conv2d_4a_3x3=(80, 192, 3, 1, 0),
        )
        blocks = dict(Mixed_5b=A(192, 32), Mixed_5c=A(256, 64), Mixed_5d=A(288, 64), Mixed_6a=B(288))
        blocks |= dict(Mixed_6b=C(768, 128), Mixed_6c=C(768, 160), Mixed_6d=C(768, 160), Mixed_6e=C(768, 192))
        blocks |= dict(Mixed_7a=D(768), Mixed_7b=E(1280, mean3), Mixed_7c=E(2048, max3))
        for name, block in blocks.items():
            self.add_module(name, block)
        self.blocks = list(blocks)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        x = F.max_pool2d(self.run(x, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"), 3, 2)
        x = F.max_pool2d(self.run(x, "Conv2d_3b_1x1", "Conv2d_4a_3x3"), 3, 2)
        return self.run(x, *self.blocks).mean((2, 3))


def randomised(module):
    """Weights that keep activations of order one, and batch statistics far from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.ndim == 4:
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
            elif name.endswith(("bn.weight", "running_var")):
                value.copy_(0.7 + 0.6 * torch.rand(value.shape, generator=generator))
            elif name.endswith(("bias", "running_mean")):
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return module.eval()


def relative_error(ours, theirs):
    theirs = theirs.numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def test_features_match_pytorch(tmp_path, record_property):
    theirs = randomised(Network())
    path = tmp_path / "pt_inception.pth"
    torch.save(theirs.state_dict(), path)
    params = inception.load_inception(path)
    assert "fc" not in params
    image = np.random.default_rng(0).uniform(-1, 1, (1, 139, 139, 3)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.tensor(image.transpose(0, 3, 1, 2)))
    got = jax.jit(inception.inception_features)(params, jnp.asarray(image))
    error = relative_error(got, want)
    record_property("relative error", error)
    print(f"inception: relative error {error:.2g}")
    assert got.shape == (1, inception.FEATURES) and error < TOLERANCE


@pytest.mark.parametrize("pool", [mean3, max3])
def test_the_last_blocks_pool_as_the_2015_graph_does(pool):
    """At 3x3 most pixels lie at the border, where dividing by 9, or averaging in place of the maximum, would show."""
    theirs = randomised(E(24, pool))
    ours = inception.BlockE(pool is max3)
    x = np.random.default_rng(1).standard_normal((1, 3, 3, 24)).astype(np.float32)
    state = {k: v.numpy() for k, v in theirs.state_dict().items() if v.ndim}
    params = to_params(state, ours, x, source="block")
    with torch.no_grad():
        want = theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
    assert relative_error(ours.apply({"params": params}, x), want) < TOLERANCE
    wrong = inception.BlockE(pool is not max3).apply({"params": params}, x)
    assert relative_error(wrong, want) > 100 * TOLERANCE


def test_small_images_and_wrong_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 75x75"):
        jax.eval_shape(inception.InceptionV3().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    path = tmp_path / "other.pth"
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, path)
    with pytest.raises(ValueError, match="other.pth.*missing"):
        inception.load_inception(path)
