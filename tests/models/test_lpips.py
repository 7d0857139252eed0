"""LPIPS against a PyTorch counterpart written here, and what a distance must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.models.lpips import BACKBONES, LPIPS, load_lpips, lpips

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

TOLERANCE = 1e-4
VGG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
TAPS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}


def torchvision_features(name):
    """The `features` of torchvision's VGG16 and AlexNet, up to the last relu that LPIPS reads."""
    if name == "alex":
        return nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(), nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU()),
        )
    layers, width = [], 3
    for entry in VGG:
        layers += [nn.MaxPool2d(2, 2)] if entry == "M" else [nn.Conv2d(width, entry, 3, 1, 1), nn.ReLU()]
        width = width if entry == "M" else entry
    return nn.Sequential(*layers)


def reference_distance(features, weights, taps, a, b):
    """Equation 1, tap by tap."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    a, b, total = (a - shift) / scale, (b - shift) / scale, 0.0
    for i, layer in enumerate(features):
        a, b = layer(a), layer(b)
        if i in taps:
            unit_a, unit_b = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
            total = total + ((unit_a - unit_b) ** 2 * weights[taps.index(i)]).sum(1).mean((1, 2))
    return total


@pytest.fixture(scope="module", params=["alex", "vgg"])
def network(request, tmp_path_factory):
    """Random weights in the published files' form: (name, PyTorch backbone, linear weights, loaded parameters)."""
    name, folder = request.param, tmp_path_factory.mktemp("lpips")
    generator = torch.Generator().manual_seed(0)
    features = torchvision_features(name)
    with torch.no_grad():
        for p in features.parameters():
            std = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
            p.copy_(std * torch.randn(p.shape, generator=generator))
    channels = [features[tap - 1].out_channels for tap in TAPS[name]]
    weights = [torch.rand(1, c, 1, 1, generator=generator) for c in channels]
    state = {f"features.{k}": v for k, v in features.state_dict().items()} | {"classifier.1.weight": torch.zeros(2, 2)}
    torch.save(state, folder / "backbone.pth")
    torch.save({f"lin{i}.model.1.weight": w for i, w in enumerate(weights)}, folder / "linear.pth")
    params = load_lpips(name, folder / "backbone.pth", folder / "linear.pth")
    return name, features, weights, params


def images(seed):
    return np.random.default_rng(seed).uniform(-1, 1, (2, 32, 40, 3)).astype(np.float32)


def test_distance_matches_pytorch(network, record_property):
    name, features, weights, params = network
    a, b = images(0), images(1)
    with torch.no_grad():
        nchw = (torch.tensor(x.transpose(0, 3, 1, 2)) for x in (a, b))
        want = reference_distance(features, weights, TAPS[name], *nchw).numpy()
    got = np.asarray(jax.jit(lpips, static_argnums=3)(params, a, b, name))
    error = float(np.abs(got / want - 1).max())
    record_property("relative error", error)
    print(f"lpips {name}: relative error {error:.2g}")
    assert got.shape == (2,) and error < TOLERANCE


def test_distance_matches_the_lpips_package(network):
    """Its own code on the same weights, where it is installed; it reads torchvision's networks, untrained."""
    package = pytest.importorskip("lpips")
    name, features, weights, params = network
    theirs = package.LPIPS(net=name, pretrained=False, pnet_rand=True, verbose=False)
    own = features.state_dict()
    theirs.net.load_state_dict({key: own[key.partition(".")[2]] for key in theirs.net.state_dict()})
    a, b = images(0), images(1)
    with torch.no_grad():
        for lin, weight in zip(theirs.lins, weights, strict=True):
            lin.model[-1].weight.copy_(weight)
        want = theirs(*(torch.tensor(x.transpose(0, 3, 1, 2)) for x in (a, b))).ravel().numpy()
    got = np.asarray(jax.jit(lpips, static_argnums=3)(params, a, b, name))
    assert want.min() > 0.1 and np.abs(got / want - 1).max() < TOLERANCE


def test_equal_images_have_zero_distance_and_a_finite_gradient():
    """A flat zero image with zero biases gives activations of length zero, where a bare square root has no gradient."""
    module = LPIPS("alex")
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, x)["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    value, gradient = jax.jit(jax.value_and_grad(lambda a: lpips(params, a, x, "alex").sum()))(x)
    assert value == 0 and np.all(np.asarray(gradient) == 0)


def test_wrong_arguments_are_named():
    assert set(BACKBONES) == {"vgg", "alex"}
    with pytest.raises(ValueError, match="squeeze"):
        LPIPS("squeeze")
    with pytest.raises(ValueError, match="one shape"):
        lpips({}, jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 32, 48, 3)))
    with pytest.raises(ValueError, match="too small"):
        image = jnp.zeros((1, 16, 16, 3))
        jax.eval_shape(LPIPS("alex").init, jax.random.key(0), image, image)
