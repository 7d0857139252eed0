"""A portrait's head and face: where the turned ellipsoid is, and the muzzle, features, hair and accessories upon it.

`Head` is equation (1) of `sdd_jax.data.portraits` with the individual's size, yaw and colours; every function paints
one part on a canvas. Expressions differ grossly and redundantly: in the mouth, the brows and the eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdd_jax.data.portraits_draw import SIZE, Canvas, Colour, colour, ellipse, mix, polygon, ring, stroke

if TYPE_CHECKING:
    from sdd_jax.data.portraits import Attributes, Nuisance

WHITE, INK, PINK = colour(252, 252, 250), colour(26, 18, 22), colour(232, 140, 140)
FUR = {
    "black": colour(44, 41, 46),
    "brown": colour(132, 80, 42),
    "blond": colour(236, 198, 96),
    "red": colour(212, 78, 28),
    "white": colour(246, 244, 240),
    "grey": colour(140, 144, 152),
}
MANE = {
    "black": colour(18, 16, 20),
    "brown": colour(76, 42, 18),
    "blond": colour(190, 130, 40),
    "red": colour(146, 38, 12),
    "white": colour(226, 208, 172),
    "grey": colour(88, 92, 102),
}
YAW = {"front": 0.0, "left": -0.42, "right": 0.42}
# species: head size, width, height, muzzle (half-width, half-height, lift), eyes' distance from the middle
BUILD: dict[str, tuple[float, float, float, tuple[float, float, float], float]] = {
    "human": (1.0, 0.92, 1.06, (0.0, 0.0, 0.05), 0.38),
    "cat": (0.96, 1.08, 0.98, (0.46, 0.36, 0.12), 0.44),
    "dog": (0.98, 0.90, 1.08, (0.52, 0.46, 0.38), 0.40),
    "lion": (0.88, 0.96, 1.08, (0.54, 0.40, 0.22), 0.40),
    "bear": (1.0, 1.08, 0.98, (0.58, 0.45, 0.26), 0.42),
    "squirrel": (0.90, 1.02, 1.02, (0.44, 0.38, 0.14), 0.46),
}


@dataclass(frozen=True)
class Head:
    """The turned ellipsoid: centre and half-axes in pixels, yaw as sine and cosine, and its owner's colours."""

    x: float
    y: float
    rx: float
    ry: float
    sin: float
    cos: float
    lift: float
    eye_u: float
    eye_v: float
    fur: Colour
    outline: Colour
    light_marks: bool

    def solid(self, u: float, v: float, z: float) -> tuple[float, float]:
        """Pixel of a point at (u, v, z) in units of the half-axes."""
        return self.x + self.rx * (u * self.cos + z * self.sin), self.y + self.ry * v

    def at(self, u: float | np.ndarray, v: float | np.ndarray, lift: float = 0.0) -> np.ndarray:
        """Pixels f32[n, 2] of points (u, v) on the front, raised by lift."""
        u, v = np.broadcast_arrays(np.asarray(u, np.float32), np.asarray(v, np.float32))
        z = np.sqrt(np.maximum(1 - u * u - v * v, 0.04)) + np.float32(lift)
        x = self.x + self.rx * (u * self.cos + z * self.sin)
        return np.stack([x, self.y + self.ry * v], axis=-1).astype(np.float32)

    def foreshortening(self, u: float, v: float) -> float:
        """How much a width at (u, v) shrinks or grows by the turn: dx/du."""
        return max(0.55, self.cos - self.sin * u / float(np.sqrt(max(1 - u * u - v * v, 0.2))))


def head_of(a: Attributes, n: Nuisance) -> Head:
    size, width, height, muzzle, eye_u = BUILD[a.species]
    radius = 18.0 * n.scale * size
    yaw = YAW[a.pose] + n.turn
    fur = FUR[a.hair] * np.float32(n.shade)
    dark = a.hair == "black"
    return Head(
        x=SIZE / 2 + n.x,
        y=37.0 + n.y,
        rx=radius * width * n.aspect,
        ry=radius * height / n.aspect**0.5,
        sin=float(np.sin(yaw)),
        cos=float(np.cos(yaw)),
        lift=muzzle[2],
        eye_u=eye_u * n.eye_spacing,
        eye_v=-0.12 + n.eye_height,
        fur=fur,
        outline=mix(fur, WHITE, 0.38) if dark else fur * np.float32(0.42),
        light_marks=dark and a.species != "human",
    )


def muzzle(canvas: Canvas, a: Attributes, head: Head) -> None:
    width, height, lift = BUILD[a.species][3]
    if a.species == "human":
        return
    pale = mix(head.fur, WHITE, 0.8 if a.hair == "black" else 0.62)
    x, y = head.solid(0, 0.46, 0.8 + lift)
    shape = ellipse(x, y, head.rx * width, head.ry * height)
    edge = mix(pale, head.fur, 0.5) * np.float32(0.84)
    canvas.paint(shape, pale, outline=edge, width=0.8, depth=(0.66, 0.06 + 0.4 * lift), part="hair")


def nose(canvas: Canvas, a: Attributes, head: Head, skin: Colour) -> None:
    lift = head.lift + 0.14
    depth = (0.74 + 0.4 * lift, 0.05)
    if a.species == "human":
        points = head.at(np.array([0.0, -0.13, 0.13]), np.array([-0.02, 0.24, 0.24]), 0.16)
        canvas.paint(polygon(points), skin * np.float32(0.74), depth=(0.78, 0.06))
        return
    x, y = head.solid(0, 0.18, 0.98 + lift)
    if a.species in ("dog", "bear"):
        a_, b_ = (0.22, 0.155) if a.species == "dog" else (0.20, 0.14)
        canvas.paint(ellipse(x, y, head.rx * a_, head.ry * b_), INK, lit=False, depth=depth)
        canvas.paint(ellipse(x - 1.2, y - 0.9, 0.9, 0.7), colour(200, 200, 205), lit=False)
        return
    w, h = {"cat": (2.8, 2.4), "lion": (4.0, 3.0), "squirrel": (2.3, 2.0)}[a.species]
    points = np.array([[x - w, y - h / 2], [x + w, y - h / 2], [x, y + h]])
    shade = colour(120, 52, 48) if a.species == "lion" else colour(224, 104, 112)
    canvas.paint(polygon(points), shade, outline=INK, width=0.6, lit=False, depth=depth)


def mouth(canvas: Canvas, a: Attributes, head: Head) -> None:
    s = np.linspace(-1, 1, 9)
    bow = 1 - s * s
    lift, v = head.lift, 0.56
    tongue = colour(196, 44, 58)
    if a.expression == "neutral":
        canvas.paint(stroke(head.at(0.28 * s[::4], v, lift), 2.3), INK, lit=False, part="mouth")
    elif a.expression == "smiling":
        upper, lower = head.at(0.42 * s, v - 0.12 + 0.06 * bow, lift), head.at(0.42 * s, v - 0.12 + 0.42 * bow, lift)
        outline = np.concatenate([upper, lower[-2:0:-1]])
        canvas.paint(polygon(outline), tongue, outline=INK, width=1.2, lit=False, part="mouth")
        middle = head.at(0.38 * s, v - 0.11 + 0.26 * bow, lift)
        canvas.paint(polygon(np.concatenate([upper, middle[-2:0:-1]])), WHITE, lit=False, part="mouth")
    elif a.expression == "angry":
        arch = head.at(0.34 * s[::2], v + 0.14 - 0.22 * bow[::2], lift)
        canvas.paint(stroke(arch, 2.6), INK, lit=False, part="mouth")
    else:
        x, y = head.at(0.0, v + 0.04, lift)
        w = head.foreshortening(0, v)
        shape = ellipse(x, y, 0.21 * head.rx * w, 0.25 * head.ry)
        canvas.paint(shape, colour(120, 22, 34), outline=INK, width=1.2, lit=False, part="mouth")
    if a.species == "squirrel":
        top = {"neutral": 0.06, "smiling": -0.04, "angry": -0.02, "surprised": -0.20}[a.expression] + v
        teeth = head.at(np.array([-0.13, 0.13, 0.12, -0.12]), np.array([top, top, top + 0.2, top + 0.2]), lift)
        canvas.paint(polygon(teeth), WHITE, outline=INK, width=0.8, lit=False, part="mouth")


def whiskers(canvas: Canvas, head: Head) -> None:
    line = colour(236, 236, 240) if head.light_marks else colour(70, 60, 60)
    for s in (-1, 1):
        for v0, v1 in ((0.38, 0.26), (0.52, 0.56)):
            x0, y0 = head.solid(s * 0.40, v0, 0.75)
            x1, y1 = head.solid(s * 1.22, v1, 0.15)
            canvas.paint(stroke(np.array([[x0, y0], [x1, y1]]), 1.1), line, lit=False)


def eyes(canvas: Canvas, a: Attributes, head: Head) -> None:
    tall = {"neutral": 1.0, "smiling": 1.0, "angry": 0.8, "surprised": 1.3}[a.expression]
    wide = 1.15 if a.expression == "surprised" else 1.0
    pupil = 1.5 if a.expression == "surprised" else 1.9
    for side in (-1, 1):
        x, y = head.at(side * head.eye_u, head.eye_v)
        near = head.foreshortening(side * head.eye_u, head.eye_v)
        size = 0.175 * (head.rx + head.ry) / 2 * (1 + 0.3 * (near - 1))
        white = ellipse(x, y, size * wide * near, size * tall * 1.12)
        canvas.paint(white, WHITE, outline=INK, width=0.8, lit=False, part="eyes")
        gaze = x + 1.6 * head.sin
        canvas.paint(ellipse(gaze, y, pupil * min(1.0, near), pupil), INK, lit=False, part="eyes")


def brows(canvas: Canvas, a: Attributes, head: Head) -> None:
    """Inner ends of angry brows are low, near the nose (a V); surprised brows are high and arched."""
    ink = colour(246, 240, 228) if head.light_marks else INK
    s = np.linspace(0, 1, 5)  # from the inner end, by the nose, to the outer end
    u = head.eye_u - 0.24 + 0.5 * s
    v = np.full(5, head.eye_v - 0.36)
    if a.expression == "angry":
        u = head.eye_u - 0.28 + 0.52 * s
        v = head.eye_v - 0.15 - 0.40 * s
    elif a.expression == "surprised":
        v = head.eye_v - 0.47 - 0.12 * np.sin(np.pi * s)
    for side in (-1, 1):
        canvas.paint(stroke(head.at(side * u, v), 2.4), ink, lit=False)


def cap(canvas: Canvas, n: Nuisance, head: Head) -> None:
    """A human's cap of hair: silhouette outside, and inside a hairline that turns with the face."""
    angle = np.linspace(np.pi * 0.94, np.pi * 2.06, 15)
    outer = np.array([[head.x + head.rx * 1.1 * np.cos(t), head.y + head.ry * 1.12 * np.sin(t)] for t in angle])
    u = np.array([0.99, 0.9, 0.82, 0.6, 0.3, 0.0, -0.3, -0.6, -0.82, -0.9, -0.99])
    drop = 0.3 * n.length
    v = np.array([0.12 + drop, 0.0 + drop, -0.4, -0.66, -0.74, -0.72, -0.74, -0.66, -0.4, 0.0 + drop, 0.12 + drop])
    inner = head.at(u, v)
    limit = head.x + head.rx * 1.04 * np.array([-1, 1])
    inner[:, 0] = np.clip(inner[:, 0], *limit)
    canvas.paint(polygon(np.concatenate([outer, inner])), head.fur, outline=head.outline, depth=(0.5, 0.2), part="hair")


def hat(canvas: Canvas, a: Attributes, head: Head) -> None:
    purple, band = colour(128, 36, 190), colour(255, 214, 40)
    v = -0.78 if a.species == "human" else -0.74
    w = 17.5 / head.rx
    lean = 0.22
    crown = [(-0.54, v), (-0.46, v - 0.56), (0.46, v - 0.56), (0.54, v)]
    shape = polygon(np.array([head.solid(x * w, y, lean * 0.6) for x, y in crown]))
    dark = purple * np.float32(0.4)
    canvas.paint(shape, purple, outline=dark, depth=(0.55, 0.18), part="accessory")
    strip = [(-0.525, v - 0.09), (-0.497, v - 0.29), (0.497, v - 0.29), (0.525, v - 0.09)]
    canvas.paint(polygon(np.array([head.solid(x * w, y, lean * 0.6) for x, y in strip])), band, part="accessory")
    x, y = head.solid(0, v, lean)
    canvas.paint(ellipse(x, y, 17.0, 2.6), purple, outline=dark, depth=(0.62, 0.14), part="accessory")


def glasses(canvas: Canvas, head: Head) -> None:
    frame = colour(110, 190, 255) if head.light_marks else colour(24, 70, 214)
    rims = []
    for side in (-1, 1):
        x, y = head.at(side * head.eye_u, head.eye_v, 0.06)
        near = head.foreshortening(side * head.eye_u, head.eye_v)
        rx, ry = 5.6 * (0.75 + 0.25 * near) * min(near, 1.1), 5.8
        canvas.paint(ring(ellipse(x, y, rx, ry), 2.2), frame, lit=False, depth=(0.84, 0.02), part="accessory")
        rims.append((x, y, rx))
    (xl, yl, rl), (xr, yr, rr) = rims
    bridge = np.array([[xl + rl, yl - 0.8], [xr - rr, yr - 0.8]])
    canvas.paint(stroke(bridge, 2.0), frame, lit=False, depth=(0.84, 0.02), part="accessory")
    for end, (x, y) in ((-1, (xl - rl, yl)), (1, (xr + rr, yr))):
        temple = head.x + end * head.rx * 0.97
        if (temple - x) * end > 1.5:
            canvas.paint(stroke(np.array([[x, y - 1], [temple, y - 2]]), 2.0), frame, lit=False, part="accessory")
