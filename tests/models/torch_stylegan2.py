"""StyleGAN2's generator in PyTorch, as the paper writes it: one kernel a sample, zero-stuffed resampling.

Works on a state dict with rosinality's names, so that it checks names, layouts and maths at once.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

BLUR = torch.tensor([1.0, 3.0, 3.0, 1.0])


def random_state(size, style_dim, mapping_layers, channels, seed=0):
    """A generator's state dict with every tensor random: strengths, biases and noises too. channels: of a size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, mean=0.0, std=1.0):
        return mean + std * torch.randn(shape, generator=generator)

    kernel = torch.outer(BLUR, BLUR) / 16  # sum 4

    def conv(prefix, fan_in, out, k):
        return {
            f"{prefix}.weight": normal(1, out, fan_in, k, k),
            f"{prefix}.modulation.weight": normal(fan_in, style_dim),
            f"{prefix}.modulation.bias": normal(fan_in, mean=1.0, std=0.2),
        }

    def styled(prefix, fan_in, out, up=False):
        blur = {f"{prefix}.conv.blur.kernel": kernel.clone()} if up else {}
        rest = {f"{prefix}.noise.weight": normal(1, std=0.3), f"{prefix}.activate.bias": normal(out, std=0.3)}
        return {**conv(f"{prefix}.conv", fan_in, out, 3), **blur, **rest}

    def to_rgb(prefix, fan_in, up):
        upsample = {f"{prefix}.upsample.kernel": kernel.clone()} if up else {}
        return {f"{prefix}.bias": normal(1, 3, 1, 1, std=0.3), **upsample, **conv(f"{prefix}.conv", fan_in, 3, 1)}

    state = {"input.input": normal(1, channels(4), 4, 4)}
    for i in range(1, mapping_layers + 1):
        state[f"style.{i}.weight"] = normal(style_dim, style_dim, std=100.0)
        state[f"style.{i}.bias"] = normal(style_dim, std=30.0)
    state |= styled("conv1", channels(4), channels(4)) | to_rgb("to_rgb1", channels(4), up=False)
    for j in range(int(math.log2(size)) - 2):
        before, after = channels(4 * 2**j), channels(8 * 2**j)
        state |= styled(f"convs.{2 * j}", before, after, up=True) | styled(f"convs.{2 * j + 1}", after, after)
        state |= to_rgb(f"to_rgbs.{j}", after, up=True)
    for i in range(2 * int(math.log2(size)) - 3):
        side = 4 * 2 ** ((i + 1) // 2)
        state[f"noises.noise_{i}"] = normal(1, 1, side, side)
    return state


def linear(state, prefix, x, lr_mul=1.0):
    weight = state[f"{prefix}.weight"]
    return x @ (weight * lr_mul / math.sqrt(weight.shape[1])).T + lr_mul * state[f"{prefix}.bias"]


def activate(x):
    return math.sqrt(2) * F.leaky_relu(x, 0.2)


def mapping(state, z):
    x = z / torch.sqrt(torch.mean(z**2, 1, keepdim=True) + 1e-8)
    for i in range(1, 1 + sum(key.startswith("style.") and key.endswith(".weight") for key in state)):
        x = activate(linear(state, f"style.{i}", x, 0.01))
    return x


def resample(x, kernel, up, before, after):
    """Zero-stuffs, pads and convolves every channel by itself."""
    b, c, h, w = x.shape
    stuffed = x.new_zeros(b, c, h * up, w * up)
    stuffed[:, :, ::up, ::up] = x
    padded = F.pad(stuffed, (before, after, before, after))
    return F.conv2d(padded, kernel.flip(0, 1).expand(c, 1, *kernel.shape), groups=c)


def modulated(x, weight, style, demodulate=True, blur=None):
    """Equations 1 and 3, sample by sample; with `blur` the size doubles."""
    out = []
    for image, s in zip(x, style, strict=True):
        kernel = weight * s[None, :, None, None] / math.sqrt(weight[0].numel())
        if demodulate:
            kernel = kernel / torch.sqrt((kernel**2).sum((1, 2, 3), keepdim=True) + 1e-8)
        if blur is None:
            out.append(F.conv2d(image[None], kernel, padding=weight.shape[-1] // 2))
        else:
            doubled = F.conv_transpose2d(image[None], kernel.transpose(0, 1), stride=2)
            out.append(resample(doubled, blur, 1, 1, 1))
    return torch.cat(out)


def synthesis(state, ws, noises=None):
    """ws [b,n,d] -> (image [b,3,H,W], the styles in order)."""
    styles = []

    def styled(prefix, x, w, index):
        style = linear(state, f"{prefix}.conv.modulation", w)
        styles.append(style)
        y = modulated(x, state[f"{prefix}.conv.weight"][0], style, True, state.get(f"{prefix}.conv.blur.kernel"))
        if noises is not None:
            y = y + state[f"{prefix}.noise.weight"] * noises[index]
        return activate(y + state[f"{prefix}.activate.bias"][None, :, None, None])

    def to_rgb(prefix, x, w, image):
        style = linear(state, f"{prefix}.conv.modulation", w)
        styles.append(style)
        rgb = modulated(x, state[f"{prefix}.conv.weight"][0], style, demodulate=False) + state[f"{prefix}.bias"]
        return rgb if image is None else rgb + resample(image, state[f"{prefix}.upsample.kernel"], 2, 2, 1)

    x = styled("conv1", state["input.input"].repeat(len(ws), 1, 1, 1), ws[:, 0], 0)
    image = to_rgb("to_rgb1", x, ws[:, 1], None)
    for j in range(sum(key.endswith("upsample.kernel") for key in state)):
        x = styled(f"convs.{2 * j}", x, ws[:, 2 * j + 1], 2 * j + 1)
        x = styled(f"convs.{2 * j + 1}", x, ws[:, 2 * j + 2], 2 * j + 2)
        image = to_rgb(f"to_rgbs.{j}", x, ws[:, 2 * j + 3], image)
    return image, styles


def buffers(state):
    """The constant noises, in order."""
    return [state[f"noises.noise_{i}"] for i in range(sum(key.startswith("noises.") for key in state))]


def numpy_state(state):
    """The state dict as float32 arrays."""
    return {key: np.asarray(value, np.float32) for key, value in state.items()}
