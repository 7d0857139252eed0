"""Anti-aliased painting with signed distances, and the edges of an image: numpy only.

A shape is a signed distance d(x, y) in pixels (negative inside), evaluated on the shape's bounding box only. Its
coverage is the box-filtered step

    c(x, y) = clip(1/2 - d, 0, 1)                                                                      (1)

which is what a one-pixel-wide filter sees of a straight edge, so no supersampling is needed. Parts are laid over each
other back to front (painter's algorithm): I <- I + c (colour * shade - I). The same coverage composites the depth map
and the part masks when they are asked for, so all three agree with the picture to the sub-pixel. A part's relief is a
dome over its own distance field: with t = d / min d in [0, 1], depth = base + bump sqrt(1 - (1 - t)^2).

Coordinates: pixels, x to the right and y downwards, (0, 0) the picture's top left corner, so pixel (row i, column j)
has its centre at (j + 1/2, i + 1/2). Colours are float32 in [0, 255] until `Canvas.pixels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SIZE = 64
PARTS = ("hair", "eyes", "mouth", "accessory", "background")
CENTRES = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)

Colour = np.ndarray  # f32[3, 1, 1] in [0, 255]


class Shape(NamedTuple):
    """Signed distance f32[h, w] in pixels on the rows and columns of its bounding box."""

    rows: slice
    cols: slice
    distance: np.ndarray


def colour(red: float, green: float, blue: float) -> Colour:
    """f32[3, 1, 1], which broadcasts over the planes of a picture under way."""
    return np.array([[[red]], [[green]], [[blue]]], np.float32)


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """a + amount (b - a)."""
    return a + np.float32(amount) * (b - a)


def _box(x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
    pad = 2.5
    rows = slice(max(0, int(y0 - pad)), max(0, min(SIZE, int(y1 + pad) + 1)))
    cols = slice(max(0, int(x0 - pad)), max(0, min(SIZE, int(x1 + pad) + 1)))
    return rows, cols


def ellipse(
    x: float,
    y: float,
    a: float,
    b: float,
    angle: float = 0.0,
    taper: float = 0.0,
    tufts: int = 0,
    ruffle: float = 0.0,
) -> Shape:
    """Ellipse of half-axes a, b (pixels) about (x, y), turned by angle (radians), narrowing downwards by taper, its
    outline rippled into `tufts` waves of `ruffle` pixels.

    First-order distance q (q - 1) / |grad|, exact at the boundary's normal direction, q = |(x/a, y/b)|.
    """
    reach_x, reach_y = (max(a, b) + ruffle,) * 2 if angle or ruffle else (a * (1 + abs(taper)), b)
    rows, cols = _box(x - reach_x, y - reach_y, x + reach_x, y + reach_y)
    dx, dy = CENTRES[None, cols] - np.float32(x), CENTRES[rows, None] - np.float32(y)
    if angle:
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dx, dy = c * dx + s * dy, c * dy - s * dx
    if taper:
        dx = dx * (1 + np.float32(taper / b) * dy)
    u, v = dx / np.float32(a), dy / np.float32(b)
    q = np.sqrt(u * u + v * v) + np.float32(1e-6)
    u, v = u / np.float32(a), v / np.float32(b)
    distance = q * (q - 1) / (np.sqrt(u * u + v * v) + np.float32(1e-6))
    if tufts:
        distance = distance - np.float32(ruffle) * np.cos(np.float32(tufts) * np.arctan2(dy / b, dx / a))
    return Shape(rows, cols, distance)


def _to_segments(points: np.ndarray, ends: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Distance of every pixel to the nearest of n segments: points, ends f32[n, 2], dx, dy the pixels minus points."""
    edge = ends - points
    ex, ey = edge[:, 0, None, None], edge[:, 1, None, None]
    along = (dx * ex + dy * ey) / (ex * ex + ey * ey + np.float32(1e-9))
    np.maximum(along, 0, out=along)
    np.minimum(along, 1, out=along)
    rx, ry = dx - along * ex, dy - along * ey
    return np.sqrt((rx * rx + ry * ry).min(axis=0))


def polygon(points: np.ndarray) -> Shape:
    """Filled simple polygon with corners f32[n, 2] in pixels; the exact distance, its sign by the even-odd rule."""
    points = np.asarray(points, np.float32)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    rows, cols = _box(x0, y0, x1, y1)
    ends = np.roll(points, -1, axis=0)
    dx = CENTRES[None, None, cols] - points[:, 0, None, None]
    dy = CENTRES[None, rows, None] - points[:, 1, None, None]
    distance = _to_segments(points, ends, dx, dy)
    rise = (ends - points)[:, 1, None, None]
    slope = (ends - points)[:, 0, None, None] / np.where(np.abs(rise) < 1e-6, np.float32(1e-6), rise)
    crosses = ((dy >= 0) != (dy >= rise)) & (dx < slope * dy)
    inside = np.logical_xor.reduce(crosses, axis=0)
    return Shape(rows, cols, np.where(inside, -distance, distance))


def stroke(points: np.ndarray, width: float) -> Shape:
    """Round-capped polyline through f32[n, 2] points, width in pixels."""
    points = np.asarray(points, np.float32)
    (x0, y0), (x1, y1) = points.min(axis=0) - width / 2, points.max(axis=0) + width / 2
    rows, cols = _box(x0, y0, x1, y1)
    dx = CENTRES[None, None, cols] - points[:-1, 0, None, None]
    dy = CENTRES[None, rows, None] - points[:-1, 1, None, None]
    return Shape(rows, cols, _to_segments(points[:-1], points[1:], dx, dy) - np.float32(width / 2))


def ring(shape: Shape, width: float) -> Shape:
    """The band of the given width centred on a shape's boundary."""
    return shape._replace(distance=np.abs(shape.distance) - np.float32(width / 2))


def _cover(distance: np.ndarray, reach: float) -> np.ndarray:
    """Equation (1) for the shape grown by reach - 1/2 pixels."""
    cover = np.float32(reach) - distance
    np.maximum(cover, 0, out=cover)
    return np.minimum(cover, 1, out=cover)


class Canvas:
    """A picture under way: image f32[3, 64, 64], and depth f32[64, 64] and masks f32[5, 64, 64] where wanted."""

    def __init__(self, background: np.ndarray, depth: np.ndarray | None = None, masks: bool = False) -> None:
        self.image = background
        self.depth = depth
        self.shade = np.ones((SIZE, SIZE), np.float32)
        self.masks: np.ndarray | None = None
        if masks:
            self.masks = np.zeros((len(PARTS), SIZE, SIZE), np.float32)
            self.masks[PARTS.index("background")] = 1

    def paint(
        self,
        shape: Shape,
        fill: Colour,
        *,
        outline: Colour | None = None,
        width: float = 1.0,
        lit: bool = True,
        depth: tuple[float, float] | None = None,
        part: str | None = None,
        surface: bool = True,
    ) -> None:
        """Lay one part over what is there.

        Args:
          fill, outline: colours; the outline is a band of `width` pixels outside the shape.
          lit: multiply the fill by the light's shade.
          depth: (base, bump) of the part's dome, or None where the part lies on the surface below.
          part: the mask it belongs to, or None for no mask.
          surface: False for what floats before the scene (snow), which the masks ignore.
        """
        rows, cols, distance = shape
        if distance.size == 0:
            return
        below = self.image[:, rows, cols]
        cover = _cover(distance, 0.5)
        whole = cover
        if outline is not None:
            whole = _cover(distance, 0.5 + width)
            below += whole * (outline - below)
        target = fill * self.shade[rows, cols] if lit else fill
        below += cover * (target - below)
        if self.depth is not None and depth is not None:
            inside = np.clip(distance / min(float(distance.min()), -1e-3), 0, 1)
            dome = np.float32(depth[0]) + np.float32(depth[1]) * np.sqrt(1 - (1 - inside) ** 2)
            self.depth[rows, cols] += whole * (dome - self.depth[rows, cols])
        if self.masks is not None and surface:
            self.masks[:, rows, cols] *= 1 - whole
            if part is not None:
                self.masks[PARTS.index(part), rows, cols] += whole

    def pixels(self) -> np.ndarray:
        """The picture as uint8 [64, 64, 3]."""
        levels = (np.clip(self.image, 0, 255) + np.float32(0.5)).astype(np.uint8)
        return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _convolve(image: np.ndarray, kernel: Sequence[float], axis: int) -> np.ndarray:
    reach = len(kernel) // 2
    padded = np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in range(2)], mode="edge")
    parts = [np.float32(k) * np.take(padded, range(i, i + image.shape[axis]), axis) for i, k in enumerate(kernel)]
    return np.stack(parts).sum(axis=0)


def edges(image: np.ndarray, low: float = 40.0, high: float = 90.0) -> np.ndarray:
    """Canny's edges: Gaussian (sigma 1), Sobel, non-maximum suppression, hysteresis (Canny 1986).

    Args:
      image: uint8 [h, w, 3] or [h, w].
      low, high: thresholds on Sobel's magnitude, which is 8 times the slope in grey levels a pixel.

    Returns: uint8 [h, w], 255 on edges and 0 elsewhere.
    """
    grey = image.astype(np.float32)
    if grey.ndim == 3:
        grey = grey @ np.array([0.299, 0.587, 0.114], np.float32)
    gauss = np.exp(-0.5 * np.arange(-2, 3, dtype=np.float64) ** 2)
    gauss = gauss / gauss.sum()
    grey = _convolve(_convolve(grey, gauss.tolist(), 0), gauss.tolist(), 1)
    gx = _convolve(_convolve(grey, [1, 2, 1], 0), [-1, 0, 1], 1)
    gy = _convolve(_convolve(grey, [1, 2, 1], 1), [-1, 0, 1], 0)
    magnitude = np.hypot(gx, gy)

    height, width = magnitude.shape
    padded = np.pad(magnitude, 1)
    octant = np.round(np.arctan2(gy, gx) / (np.pi / 4)).astype(int) % 4
    thin = np.zeros(magnitude.shape, bool)
    for o, (dy, dx) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        thin |= (octant == o) & (magnitude > ahead) & (magnitude >= behind)

    weak, strong = thin & (magnitude >= low), thin & (magnitude >= high)
    while True:
        grown = np.pad(strong, 1)
        near = np.zeros_like(strong)
        for dy in range(3):
            for dx in range(3):
                near |= grown[dy : dy + height, dx : dx + width]
        grown_strong = strong | (near & weak)
        if (grown_strong == strong).all():
            return np.where(strong, 255, 0).astype(np.uint8)
        strong = grown_strong
