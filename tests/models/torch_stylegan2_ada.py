"""The generator of NVIDIA's StyleGAN2-ADA in PyTorch under its state dict's names, written for the tests.

Where it differs from `torch_stylegan2`, which has rosinality's names: kernels are raw numbers, unscaled where they are
demodulated; a `torgb` scales its styles by 1 / sqrt(fan_in) instead. A layer that doubles the size filters first and
then convolves; its kernel is read backwards, a true convolution, where all others correlate. Filters sum to one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def random_state(size, style_dim, mapping_layers, channels, seed=0):
    """A generator's state dict with every tensor random but the filters. channels: of a size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, mean=0.0, std=1.0):
        return mean + std * torch.randn(shape, generator=generator)

    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    resample_filter = torch.outer(taps, taps)

    def modulated_layer(name, fan_in, out, k):
        return {
            f"{name}.weight": normal(out, fan_in, k, k),
            f"{name}.bias": normal(out, std=0.3),
            f"{name}.affine.weight": normal(fan_in, style_dim),
            f"{name}.affine.bias": normal(fan_in, mean=1.0, std=0.2),
        }

    state = {"mapping.w_avg": normal(style_dim), "synthesis.b4.const": normal(channels(4), 4, 4)}
    for i in range(mapping_layers):
        state[f"mapping.fc{i}.weight"] = normal(style_dim, style_dim, std=100.0)
        state[f"mapping.fc{i}.bias"] = normal(style_dim, std=30.0)
    for resolution in (2**k for k in range(2, size.bit_length())):
        block, width = f"synthesis.b{resolution}", channels(resolution)
        state[f"{block}.resample_filter"] = resample_filter.clone()
        before = {"conv1": width} if resolution == 4 else {"conv0": channels(resolution // 2), "conv1": width}
        for layer, fan_in in before.items():
            state |= modulated_layer(f"{block}.{layer}", fan_in, width, 3) | {
                f"{block}.{layer}.resample_filter": resample_filter.clone(),
                f"{block}.{layer}.noise_const": normal(resolution, resolution),
                f"{block}.{layer}.noise_strength": normal(std=0.3),
            }
        state |= modulated_layer(f"{block}.torgb", width, 3, 1)
    return state


def linear(state, name, x, lr_mul=1.0):
    weight = state[f"{name}.weight"]
    return F.linear(x, weight * (lr_mul / math.sqrt(weight.shape[1])), state[f"{name}.bias"] * lr_mul)


def activate(x):
    return F.leaky_relu(x, 0.2) * 2**0.5


def mapping(state, z):
    x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    for i in range(sum(name.startswith("mapping.fc") for name in state) // 2):
        x = activate(linear(state, f"mapping.fc{i}", x, 0.01))
    return x


def spread(x, resample_filter):
    """Each pixel becomes 4 times the filter, two pixels apart: [b,c,h,w] -> [b,c,2h+2,2w+2]."""
    kernel = 4 * resample_filter.expand(x.shape[1], 1, 4, 4)
    return F.conv_transpose2d(x, kernel, stride=2, groups=x.shape[1])


def modulated(x, weight, styles, *, demodulate=True, resample_filter=None, fused=True):
    """fused: one kernel a sample, all in one grouped convolution; else inputs and outputs are scaled."""
    b, o = len(x), len(weight)
    kernels = weight[None] * styles[:, None, :, None, None]
    gain = (kernels.square().sum((2, 3, 4)) + 1e-8).rsqrt() if demodulate else x.new_ones(b, o)

    def convolve(x, kernel, groups=1):
        if resample_filter is None:
            return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=groups)
        return F.conv2d(spread(x, resample_filter), kernel.flip(2, 3), groups=groups)

    if not fused:
        return convolve(x * styles[:, :, None, None], weight) * gain[:, :, None, None]
    y = convolve(x.flatten(0, 1)[None], (kernels * gain[:, :, None, None, None]).flatten(0, 1), b)
    return y.unflatten(1, (b, o))[0]


def synthesis(state, ws, fused=True):
    """ws [b,n,d] -> image [b,3,H,W], with the constant noises."""

    def layer(name, x, w, up):
        resample_filter = state[f"{name}.resample_filter"] if up else None
        styles = linear(state, f"{name}.affine", w)
        y = modulated(x, state[f"{name}.weight"], styles, resample_filter=resample_filter, fused=fused)
        y = y + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
        return activate(y + state[f"{name}.bias"][:, None, None])

    def torgb(name, x, w):
        weight = state[f"{name}.weight"]
        styles = linear(state, f"{name}.affine", w) / math.sqrt(weight[0].numel())
        return modulated(x, weight, styles, demodulate=False, fused=fused) + state[f"{name}.bias"][:, None, None]

    x, image = state["synthesis.b4.const"].expand(len(ws), -1, -1, -1), None
    for j in range(ws.shape[1] // 2):
        block = f"synthesis.b{4 * 2**j}"
        if j:
            x = layer(f"{block}.conv0", x, ws[:, 2 * j - 1], up=True)
        x = layer(f"{block}.conv1", x, ws[:, 2 * j], up=False)
        rgb = torgb(f"{block}.torgb", x, ws[:, 2 * j + 1])
        image = rgb if image is None else rgb + spread(image, state[f"{block}.resample_filter"])[:, :, 1:-1, 1:-1]
    return image
