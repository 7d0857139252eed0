"""What a portrait is made of, back to front: background, bust, ears, skull, face (`portraits_face`) and weather.

Everything is placed on the turned ellipsoid of equation (1) in `sdd_jax.data.portraits` and painted back to front with
the shapes of `sdd_jax.data.portraits_draw`. Features are drawn large (strokes of 2 px and more at 64 px) and dark on
light: on dark fur the eyes' whites, the pale muzzle and light brows carry the contrast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdd_jax.data import portraits_face as face
from sdd_jax.data.portraits_draw import CENTRES, SIZE, Canvas, Colour, colour, ellipse, mix, polygon, stroke
from sdd_jax.data.portraits_face import MANE, PINK, WHITE, Head, head_of

if TYPE_CHECKING:
    from sdd_jax.data.portraits import Attributes, Nuisance


def _fraction(x: np.ndarray) -> np.ndarray:
    return x - np.floor(x)


def _stars(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Yellow points, each spread bilinearly over 2 x 2 pixels, in place."""
    x0, y0 = np.floor(x).astype(int) % (SIZE - 1), np.floor(y).astype(int) % (SIZE - 1)
    fx, fy = _fraction(x), _fraction(y)
    for dx, wx in ((0, 1 - fx), (1, fx)):
        for dy, wy in ((0, 1 - fy), (1, fy)):
            below = image[:, y0 + dy, x0 + dx]
            weight = np.minimum(1, 1.8 * wx * wy).astype(np.float32)
            image[:, y0 + dy, x0 + dx] = below + weight * (colour(255, 236, 150)[:, 0] - below)


def _background(a: Attributes, n: Nuisance, truth: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Image f32[3, 64, 64] and depth f32[64, 64] of what is behind the bust."""
    across, down = CENTRES[None, :] / SIZE - np.float32(0.5), CENTRES[:, None] / SIZE - np.float32(0.5)
    ramp = down + np.float32(n.gradient) * across
    tint = colour(7, 2, -7) * np.float32(n.hue)
    number = np.arange(24, dtype=np.float64)
    depth: np.ndarray | None = np.zeros((SIZE, SIZE), np.float32) if truth else None
    canvas: Canvas
    if a.background == "sky":
        canvas = Canvas(colour(146, 200, 246) + tint + ramp * colour(64, 36, 8))
        xs, ys = _fraction(n.texture * 5 + number * 0.618) * SIZE, 6 + _fraction(n.texture * 11 + number * 0.755) * 40
        for i in range(4):
            for dx, dy, r in ((-5, 1, 4.0), (0, -1, 5.0), (5, 1, 4.2)):
                canvas.paint(ellipse(xs[i] + dx, ys[i] + dy, r * 1.3, r * 0.8), colour(240, 245, 252), lit=False)
        return canvas.image, depth
    if a.background == "night":
        canvas = Canvas(colour(20, 24, 66) + tint + ramp * colour(26, 16, 50))
        side = 1 if n.side < 0 else -1  # the moon is where no tail is
        canvas.paint(ellipse(32 + 23 * side, 11 + 5 * n.gradient, 5.5, 5.5), colour(250, 240, 190), lit=False)
        xs, ys = _fraction(n.texture * 5 + number * 0.618) * SIZE, _fraction(n.texture * 11 + number * 0.755) * 56
        _stars(canvas.image, xs[:16], ys[:16])
        return canvas.image, depth
    if a.background == "field":
        canvas = Canvas(colour(214, 232, 240) + tint + ramp * colour(20, 10, -10))
        horizon = 27 + 6 * n.gradient
        hill = horizon + 3 * np.sin(CENTRES / 9 + 6.28 * n.texture).astype(np.float32)
        cover = np.clip(CENTRES[:, None] - hill[None, :] + np.float32(0.5), 0, 1)
        stripe = 1 + np.float32(0.07) * np.sin(CENTRES[:, None] * 0.9 + across * 3 + np.float32(12 * n.texture))
        green = (colour(92, 172, 62) + tint + ramp * colour(-30, -50, -20)) * stripe
        canvas.image += cover * (green - canvas.image)
        if depth is not None:
            depth += cover * (np.float32(0.04) + np.clip(down + np.float32(0.1), 0, 1) * np.float32(0.35))
        return canvas.image, depth
    brick = colour(188, 118, 86) + tint + ramp * colour(-22, -18, -14)
    y = CENTRES + np.float32(8 * n.texture)
    row = np.floor(y / 8)
    x = CENTRES[None, :] + (np.float32(7) * (row % 2) + np.float32(14 * n.texture))[:, None]
    joint = np.minimum(np.minimum(y % 8, 8 - y % 8)[:, None], np.minimum(x % 14, 14 - x % 14))
    cover = np.clip(np.float32(1.3) - joint, 0, 1)
    image = brick + cover * (colour(226, 206, 182) - brick)
    if depth is not None:
        depth += np.float32(0.1)
    return image.astype(np.float32), depth


def _light(canvas: Canvas, head: Head, n: Nuisance) -> None:
    """Lambert's shade of the head's ellipsoid, carried on beyond its outline."""
    u, v = (CENTRES[None, :] - np.float32(head.x)) / head.rx, (CENTRES[:, None] - np.float32(head.y)) / head.ry
    rr = u * u + v * v
    norm = 1 / np.sqrt(np.maximum(rr, 1))
    z = np.sqrt(np.maximum(1 - rr, 0))
    along = (np.sin(n.light) * u - np.cos(n.light) * v) * norm * np.float32(0.75) + z * np.float32(0.4)
    canvas.shade = (np.float32(0.88) + np.float32(0.4) * along).astype(np.float32)


def _behind(canvas: Canvas, a: Attributes, n: Nuisance, head: Head, skin: Colour) -> None:
    """Tail, shoulders, back hair, mane, and the ears that the head partly hides."""
    fur, out = head.fur, head.outline
    if a.species == "squirrel":
        side = 1 if n.side >= 0 else -1
        x = head.x + side * head.rx * 1.32
        wide = 8.5 + 2 * n.length
        tail = ellipse(x, head.y - 1, wide, 21, 0.12 * side, tufts=10, ruffle=0.8)
        canvas.paint(tail, fur, outline=out, depth=(0.22, 0.1), part="hair")
        streak = ellipse(x + side, head.y - 3, 0.42 * wide, 14, 0.12 * side)
        canvas.paint(streak, mix(fur, WHITE, 0.4), depth=(0.28, 0.06), part="hair")
    body = ellipse(head.x, SIZE + 5, 19.5 + 2 * n.aspect, 14)
    if a.species == "human":
        back = ellipse(*head.solid(0, 0.02 + 0.22 * n.length, -0.25), head.rx * 1.15, head.ry * (1.08 + 0.2 * n.length))
        canvas.paint(back, fur, outline=out, depth=(0.3, 0.06), part="hair")
        shirt = colour(96, 104, 128) + colour(40, -10, -40) * np.float32(n.hue)
        canvas.paint(body, shirt, outline=shirt * np.float32(0.5), depth=(0.3, 0.15))
        neck = polygon(head.at(np.array([-0.36, 0.36, 0.42, -0.42]), np.array([0.7, 0.7, 1.2, 1.2]), -0.3))
        canvas.paint(neck, skin * np.float32(0.84), depth=(0.36, 0.1))
        for s in (-1, 1):
            ear = ellipse(*head.solid(s * 1.0, 0.02, -0.1), 3.0, 4.4)
            canvas.paint(ear, skin, outline=skin * np.float32(0.5), depth=(0.36, 0.06))
        return
    canvas.paint(body, fur * np.float32(0.96), outline=out, depth=(0.3, 0.15), part="hair")
    if a.species == "lion":
        _mane(canvas, a, n, head)
    for s in (-1, 1):
        if a.species != "dog":
            _ear(canvas, a.species, s, head, fur, out)
        elif s * head.sin > 0.2:
            _flap(canvas, a, s, head)


def _mane(canvas: Canvas, a: Attributes, n: Nuisance, head: Head) -> None:
    mane = MANE[a.hair] * np.float32(n.shade)
    reach = 1.38 + 0.1 * n.length
    shape = ellipse(
        *head.solid(0, 0.02, -0.15), head.rx * 1.04 * reach, head.ry * 0.96 * reach, tufts=17, ruffle=0.075 * head.rx
    )
    out = mix(mane, WHITE, 0.38) if a.hair == "black" else mane * np.float32(0.5)
    canvas.paint(shape, mane, outline=out, depth=(0.33, 0.1), part="hair")


def _ear(canvas: Canvas, species: str, s: int, head: Head, fur: Colour, out: Colour) -> None:
    inner = mix(fur, PINK, 0.75)
    if species == "cat":
        points = np.array([head.solid(s * u, v, -0.2) for u, v in ((0.24, -0.78), (0.90, -1.44), (0.96, -0.3))])
        canvas.paint(polygon(points), fur, outline=out, depth=(0.36, 0.05), part="hair")
        centre = points.mean(axis=0)
        canvas.paint(polygon(centre + 0.5 * (points - centre)), inner, part="hair")
    elif species == "squirrel":
        x, y = head.solid(s * 0.60, -0.98, -0.15)
        tuft = np.array([[x + s * 0.6, y - 4.5], [x + s * 2.2, y - 9.0]])
        canvas.paint(stroke(tuft, 2.2), fur, outline=out, width=0.8, depth=(0.36, 0.02), part="hair")
        canvas.paint(ellipse(x, y, 4.2, 6.6, 0.24 * s), fur, outline=out, depth=(0.36, 0.05), part="hair")
        canvas.paint(ellipse(x, y, 1.9, 3.8, 0.24 * s), inner, part="hair")
    elif species in ("bear", "lion"):
        u, v, r = (0.70, -0.80, 0.36) if species == "bear" else (0.78, -0.86, 0.27)
        x, y = head.solid(s * u, v, -0.15)
        canvas.paint(ellipse(x, y, head.rx * r, head.rx * r), fur, outline=out, depth=(0.36, 0.06), part="hair")
        canvas.paint(ellipse(x, y + 0.6, head.rx * r * 0.55, head.rx * r * 0.55), inner, part="hair")


def _skull(canvas: Canvas, a: Attributes, n: Nuisance, head: Head, skin: Colour) -> None:
    """The head itself, and the dog's ears that hang over it."""
    shape = ellipse(head.x, head.y, head.rx, head.ry, taper=n.taper)
    if a.species == "human":
        canvas.paint(shape, skin, outline=skin * np.float32(0.5), depth=(0.42, 0.33))
        return
    canvas.paint(shape, head.fur, outline=head.outline, depth=(0.42, 0.33), part="hair")
    if a.species == "squirrel":
        for s in (-1, 1):
            x, y = head.at(s * 0.58, 0.36)
            puff = ellipse(x, y, head.rx * 0.34 * head.foreshortening(s * 0.58, 0.36), head.ry * 0.3)
            canvas.paint(puff, mix(head.fur, WHITE, 0.3), depth=(0.62, 0.06), part="hair")
    if a.species == "dog":
        for s in (-1, 1):
            if s * head.sin <= 0.2:
                _flap(canvas, a, s, head)


def _flap(canvas: Canvas, a: Attributes, s: int, head: Head) -> None:
    """A dog's hanging ear; the far one of a turned head is painted before the skull, which hides part of it."""
    fur = mix(head.fur, WHITE, 0.16) if a.hair == "black" else mix(head.fur, MANE[a.hair], 0.8)
    shape = ellipse(*head.solid(s * 1.02, -0.12, -0.12), head.rx * 0.27, head.ry * 0.68, -0.16 * s)
    canvas.paint(shape, fur, outline=head.outline, depth=(0.45, 0.08), part="hair")


def _snow(canvas: Canvas, n: Nuisance) -> None:
    """10 to 16 flakes, one in a cell of a jittered 4 x 4 grid."""
    cell = np.arange(16, dtype=np.float64)
    order = np.argsort(_fraction(n.texture * 7.3 + cell * 0.6180339887))[: 10 + int(n.texture * 97) % 7]
    x = (cell % 4 + 0.15 + 0.7 * _fraction(n.texture * 31.7 + cell * 0.7548776662)) * SIZE / 4
    y = (cell // 4 + 0.15 + 0.7 * _fraction(n.texture * 17.9 + cell * 0.5698402910)) * SIZE / 4
    r = 1.8 + 0.7 * _fraction(n.texture * 3.1 + cell * 0.4142135624)
    for i in order:
        flake = ellipse(x[i], y[i], r[i], r[i])
        canvas.paint(flake, WHITE, outline=colour(120, 132, 152), width=0.9, lit=False, surface=False)


def draw(a: Attributes, n: Nuisance, truth: bool = False) -> Canvas:
    """Paint a portrait back to front; with `truth`, its depth and part masks too."""
    background, depth = _background(a, n, truth)
    canvas = Canvas(background, depth, masks=truth)
    head = head_of(a, n)
    skin = mix(colour(252, 216, 188), colour(186, 126, 88), n.skin)
    _light(canvas, head, n)
    _behind(canvas, a, n, head, skin)
    _skull(canvas, a, n, head, skin)
    face.muzzle(canvas, a, head)
    if a.species == "human":
        face.cap(canvas, n, head)
    if a.species == "cat":
        face.whiskers(canvas, head)
    face.mouth(canvas, a, head)
    face.nose(canvas, a, head, skin)
    face.eyes(canvas, a, head)
    if a.accessory == "hat":
        face.hat(canvas, a, head)
    elif a.accessory == "glasses":
        face.glasses(canvas, head)
    face.brows(canvas, a, head)
    if a.weather == "snowing":
        _snow(canvas, n)
    return canvas
