"""PyTorch counterparts of IR-SE50, e4e and the style mappers under the published names, written for the tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Gate(nn.Module):
    def __init__(self, c, reduction):
        super().__init__()
        self.fc1 = nn.Conv2d(c, c // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(c // reduction, c, 1, bias=False)

    def forward(self, x):
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Residual(nn.Module):
    def __init__(self, i, o, stride, reduction):
        super().__init__()
        first = nn.Conv2d(i, o, 3, padding=1, bias=False)
        second = nn.Conv2d(o, o, 3, stride, 1, bias=False)
        layers = [nn.BatchNorm2d(i), first, nn.PReLU(o), second, nn.BatchNorm2d(o), Gate(o, reduction)]
        self.res_layer = nn.Sequential(*layers)
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if i == o
            else nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        )

    def forward(self, x):
        return self.res_layer(x) + self.shortcut_layer(x)


class Body(nn.Module):
    def __init__(self, units, widths, reduction):
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        channels = [widths[0], *widths]
        body, self.ends = [], []
        for stage, count in enumerate(units):
            i, o = channels[stage : stage + 2]
            body += [Residual(o if k else i, o, 1 if k else 2, reduction) for k in range(count)]
            self.ends.append(len(body) - 1)
        self.body = nn.Sequential(*body)

    def maps(self, x):
        x, found = self.input_layer(x), []
        for index, unit in enumerate(self.body):
            x = unit(x)
            if index in self.ends:
                found.append(x)
        return found


class Recogniser(Body):
    def __init__(self, units=(3, 4, 14, 3), widths=(64, 128, 256, 512), reduction=16, side=112, features=512):
        super().__init__(units, widths, reduction)
        pixels = (side // 2 ** len(units)) ** 2
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(widths[-1] * pixels, features),
            nn.BatchNorm1d(features),
        )

    def forward(self, x):
        return F.normalize(self.output_layer(self.maps(x)[-1]))


class ScaledLinear(nn.Module):
    """A linear layer whose weight is stored divided by lr_mul / sqrt(fan in), its bias by lr_mul."""

    def __init__(self, i, o, lr_mul=1.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(o, i)), nn.Parameter(torch.zeros(o))
        self.lr_mul = lr_mul

    def forward(self, x):
        return x @ self.weight.T * (self.lr_mul / self.weight.shape[1] ** 0.5) + self.bias * self.lr_mul


class Style(nn.Module):
    def __init__(self, i, o, halvings):
        super().__init__()
        layers = []
        for k in range(halvings):
            layers += [nn.Conv2d(o if k else i, o, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = ScaledLinear(o, o)

    def forward(self, x):
        return self.linear(self.convs(x).flatten(1))


class Editor(Body):
    """e4e; `align_corners` is what the published one does."""

    def __init__(self, count=18, d=512, side=256, units=(3, 4, 14, 3), widths=(64, 128, 256, 512), reduction=16):
        super().__init__(units, widths, reduction)
        halvings = [(side // (16 if i < 3 else 8 if i < 7 else 4)).bit_length() - 1 for i in range(count)]
        self.styles = nn.ModuleList(Style(widths[3], d, n) for n in halvings)
        self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
        self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    def forward(self, x, align_corners=True):
        _, c1, c2, c3 = self.maps(x)

        def grow(a, b):
            return F.interpolate(a, b.shape[2:], mode="bilinear", align_corners=align_corners) + b

        p2 = grow(c3, self.latlayer1(c2))
        p1 = grow(p2, self.latlayer2(c1))
        first = self.styles[0](c3)
        rest = [style((c3, p2, p1)[(i > 2) + (i > 6)]) for i, style in enumerate(self.styles)]
        return torch.stack([first, *(first + offset for offset in rest[1:])], 1)


class Mapping(nn.Module):
    """Norm over axis 1, four scaled linear layers, each with its activation."""

    def __init__(self, width):
        super().__init__()
        self.mapping = nn.Sequential(nn.Identity(), *(ScaledLinear(width, width, 0.01) for _ in range(4)))

    def forward(self, x):
        x = x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()
        for layer in list(self.mapping)[1:]:
            x = F.leaky_relu(layer(x), 0.2) * 2**0.5
        return x


class Levels(nn.Module):
    def __init__(self, width, names):
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, Mapping(width))

    def forward(self, x):
        parts, spans = [], {"course": x[:, :4], "medium": x[:, 4:8], "fine": x[:, 8:]}
        for name, part in ((f"{level}_mapping", span) for level, span in spans.items()):
            parts.append(getattr(self, name)(part) if name in self.names else torch.zeros_like(part))
        return torch.cat(parts, 1)


def randomised(module, seed=0):
    """Every tensor random: activations of order one, batch statistics and slopes far from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 4:
                value.copy_(noise * (1.0 / value[0].numel()) ** 0.5)
            elif "mapping" in name and value.ndim == 2:
                value.copy_(noise * 100)
            elif name.endswith("output_layer.3.weight"):
                value.copy_(noise * value.shape[1] ** -0.5)
            elif value.ndim == 2:
                value.copy_(noise)
            elif name.endswith(("running_var", "weight")):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point():
                value.copy_((20.0 if "mapping" in name else 0.3) * noise)
    return module.eval()
