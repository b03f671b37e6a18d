"""Things to draw: six domains, each a function from a random generator to one picture with an alpha channel.

A thing is told by its geometry. Colours come from five palettes that all domains and things share.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np

SIDE = 112  # of the canvas, in pixels: the thing fills most of it
_MARGIN = 10
PALETTES = np.array(
    [
        [(214, 66, 58), (246, 220, 120), (52, 76, 130), (250, 246, 238), (34, 34, 40)],
        [(70, 130, 90), (238, 226, 190), (190, 86, 50), (250, 250, 250), (40, 46, 44)],
        [(60, 130, 190), (245, 160, 60), (240, 240, 232), (120, 60, 120), (28, 30, 48)],
        [(200, 120, 150), (110, 180, 180), (250, 236, 200), (90, 60, 90), (40, 30, 36)],
        [(150, 110, 70), (226, 200, 150), (110, 140, 70), (244, 240, 230), (50, 40, 34)],
    ],
    dtype=np.float64,
)


class Canvas:
    """An RGB picture and its coverage, both (SIDE, SIDE, .) uint8; draws with antialiased cv2 calls."""

    def __init__(self, rng: np.random.Generator):
        self.rgb = np.zeros((SIDE, SIDE, 3), np.uint8)
        self.alpha = np.zeros((SIDE, SIDE), np.uint8)
        shades = PALETTES[rng.integers(len(PALETTES))][rng.permutation(5)]
        shades = np.clip(shades + rng.normal(0, 28, shades.shape), 0, 255)
        self.colours = [tuple(int(v) for v in shade) for shade in shades]

    def polygon(self, points: np.ndarray, colour: int, *, solid: bool = True) -> None:
        """Fill a polygon (V,2) in pixels; `solid` parts cover the background, others only paint."""
        corners = [np.round(np.asarray(points) * 8).astype(np.int32)]
        cv2.fillPoly(self.rgb, corners, self.colours[colour], cv2.LINE_AA, 3)
        if solid:
            cv2.fillPoly(self.alpha, corners, 255, cv2.LINE_AA, 3)

    def within(self, mask: np.ndarray, paint: Callable[[Canvas], None]) -> None:
        """Paint, but keep the paint only where `mask` (SIDE, SIDE) is set."""
        before = self.rgb.copy()
        paint(self)
        self.rgb = np.where(mask[..., None] > 127, self.rgb, before)


def regular(
    sides: int, centre: tuple[float, float], radius: float, turn: float, inner: float = 1.0
) -> np.ndarray:
    """Return the corners of a regular polygon, or of a star when `inner` is below 1."""
    corners = sides if inner == 1.0 else 2 * sides
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    radii = np.where(np.arange(corners) % 2 == 0, radius, radius * inner)
    return np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)


def box(x: float, y: float, width: float, height: float) -> np.ndarray:
    """Return the four corners of a rectangle whose upper left corner is (x, y)."""
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def blob(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> np.ndarray:
    """Return a smooth random outline (32,2): three harmonics around a circle."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radii = np.full(32, radius)
    for harmonic in (2, 3, 5):
        radii += radius * rng.uniform(0, 0.5 / harmonic) * np.cos(harmonic * angles + rng.uniform(0, 6.3))
    return np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)


def emblem(canvas: Canvas, rng: np.random.Generator, centre: tuple[float, float], radius: float) -> None:
    """Paint one of many marks: star, polygon, ring, cross, crescent, with a second mark inside."""
    kind = rng.integers(5)
    turn = rng.uniform(0, 2 * np.pi)
    colour, other = int(rng.integers(1, 3)), int(rng.integers(3, 5))
    if kind == 0:
        points = regular(int(rng.integers(4, 9)), centre, radius, turn, rng.uniform(0.35, 0.65))
        canvas.polygon(points, colour, solid=False)
    elif kind == 1:
        canvas.polygon(regular(int(rng.integers(3, 7)), centre, radius, turn), colour, solid=False)
    elif kind == 2:
        canvas.polygon(regular(24, centre, radius, 0), colour, solid=False)
        canvas.polygon(regular(24, centre, radius * rng.uniform(0.4, 0.8), 0), other, solid=False)
    elif kind == 3:
        for quarter in (0.0, np.pi / 2):
            canvas.polygon(_bar(centre, radius, radius * 0.3, turn + quarter), colour, solid=False)
    else:
        canvas.polygon(regular(24, centre, radius, 0), colour, solid=False)
        shifted = (centre[0] + radius * 0.5 * np.cos(turn), centre[1] + radius * 0.5 * np.sin(turn))
        canvas.polygon(regular(24, shifted, radius * 0.7, 0), 0, solid=False)
    if rng.random() < 0.5:
        inside = regular(int(rng.integers(3, 6)), centre, radius * 0.4, turn + 1, rng.choice([1.0, 0.5]))
        canvas.polygon(inside, other, solid=False)


def _bar(centre: tuple[float, float], length: float, width: float, angle: float) -> np.ndarray:
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    return np.array([np.asarray(centre) + a * length * along + b * width * across for a, b in corners])


def _writing(
    canvas: Canvas, rng: np.random.Generator, x: float, y: float, width: float, height: float
) -> None:
    """Paint one word: letters of one of cv2's fonts, fitted to a rectangle."""
    word = "".join(rng.choice(list("ABCEFHKLMNOPRSTUXYZ"), int(rng.integers(2, 6))))
    face = int(rng.integers(0, 5))
    (wide, _), _ = cv2.getTextSize(word, face, 1.0, 2)
    size = min(width / wide, height / 22)
    at = (int(x), int(y + height))
    cv2.putText(canvas.rgb, word, at, face, size, canvas.colours[int(rng.integers(3, 5))], 2, cv2.LINE_AA)


def package(rng: np.random.Generator) -> Canvas:
    """Draw a box, can or bottle with bands, an emblem and writing."""
    canvas = Canvas(rng)
    wide, high = rng.uniform(46, 90), rng.uniform(60, 92)
    x, y = (SIDE - wide) / 2, (SIDE - high) / 2
    outline = box(x, y, wide, high)
    neck = rng.uniform(0.1, 0.35)
    if rng.random() < 0.5:  # a bottle or a bag: the upper end is narrower
        cut = rng.uniform(0.15, 0.35)
        outline = np.array([
            (x + wide * cut, y), (x + wide * (1 - cut), y), (x + wide, y + high * neck),
            (x + wide, y + high), (x, y + high), (x, y + high * neck),
        ])  # fmt: skip
    canvas.polygon(outline, 0)

    def label(c: Canvas) -> None:
        for _ in range(int(rng.integers(1, 4))):
            at = (x + wide * rng.uniform(0.1, 0.9), y + high * rng.uniform(0.1, 0.9))
            angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
            c.polygon(_bar(at, 90, rng.uniform(3, 11), angle), int(rng.integers(1, 5)), solid=False)
        at = (x + wide * rng.uniform(0.3, 0.7), y + high * rng.uniform(0.25, 0.75))
        emblem(c, rng, at, rng.uniform(12, 24))
        _writing(c, rng, x + 5, y + high * rng.uniform(0.15, 0.75), wide - 10, rng.uniform(10, 18))

    canvas.within(canvas.alpha, label)
    return canvas


def food(rng: np.random.Generator) -> Canvas:
    """Draw a plate, round or square, with heaps, slices, rings and noodles on it."""
    canvas = Canvas(rng)
    middle = (SIDE / 2, SIDE / 2)
    sides = int(rng.choice([32, 32, 4, 6, 8]))
    canvas.polygon(regular(sides, middle, 48, np.pi / 4), 0)
    canvas.polygon(regular(sides, middle, rng.uniform(34, 44), np.pi / 4), 1)
    for _ in range(int(rng.integers(3, 6))):
        at = (SIDE / 2 + rng.uniform(-22, 22), SIDE / 2 + rng.uniform(-22, 22))
        radius, colour = rng.uniform(8, 19), int(rng.integers(2, 5))
        kind = rng.integers(4)
        if kind == 0:
            canvas.polygon(blob(rng, at, radius), colour)
        elif kind == 1:
            canvas.polygon(regular(24, at, radius, 0), colour)
            canvas.polygon(regular(24, at, radius * 0.5, 0), 1)
        elif kind == 2:
            canvas.polygon(regular(int(rng.integers(3, 5)), at, radius, rng.uniform(0, 6)), colour)
        else:
            turn = rng.uniform(0, np.pi)
            for shift in np.linspace(-radius, radius, int(rng.integers(3, 6))):
                place = (at[0] - shift * np.sin(turn), at[1] + shift * np.cos(turn))
                canvas.polygon(_bar(place, radius, 1.6, turn), colour)
    return canvas


def logo(rng: np.random.Generator) -> Canvas:
    """Draw a mark with rotational symmetry, on a shield or free, sometimes with a letter."""
    canvas = Canvas(rng)
    middle = (SIDE / 2, SIDE / 2)
    if rng.random() < 0.6:
        canvas.polygon(regular(int(rng.choice([3, 4, 5, 6, 24])), middle, 47, rng.uniform(0, 6.3)), 0)
    for ring in range(int(rng.integers(1, 3))):
        order, kind = int(rng.integers(2, 8)), rng.integers(4)
        distance, size = rng.uniform(10, 30), rng.uniform(7, 15)
        lean, start = rng.uniform(-1.5, 1.5), rng.uniform(0, 6.3)
        for step in range(order):
            angle = start + step * 2 * np.pi / order
            at = (middle[0] + distance * np.cos(angle), middle[1] + distance * np.sin(angle))
            if kind == 0:
                part = _bar(at, size, size * 0.35, angle + lean)
            elif kind == 1:
                part = regular(16, at, size * 0.8, 0)
            else:
                part = regular(3 + int(kind), at, size, angle + lean, 1.0 if kind == 2 else 0.5)
            canvas.polygon(part, 1 + ring)
    if rng.random() < 0.5:
        letter, face = str(rng.choice(list("ABDEGKMQRSWXZ258"))), int(rng.choice([0, 2, 3, 4]))
        size = rng.uniform(1.3, 2.2)
        place = (int(SIDE / 2 - 11 * size), int(SIDE / 2 + 11 * size))
        cv2.putText(canvas.rgb, letter, place, face, size, canvas.colours[3], 5, cv2.LINE_AA)
        cv2.putText(canvas.alpha, letter, place, face, size, 255, 5, cv2.LINE_AA)
    return canvas


_CUTS = {
    "shirt": [(30, 12), (44, 18), (68, 18), (82, 12), (104, 34), (92, 48), (82, 40), (82, 98), (30, 98),
              (30, 40), (20, 48), (8, 34)],
    "dress": [(40, 10), (50, 18), (62, 18), (72, 10), (74, 46), (98, 100), (14, 100), (38, 46)],
    "trousers": [(30, 10), (82, 10), (92, 102), (66, 102), (56, 44), (46, 102), (20, 102)],
    "bag": [(36, 30), (40, 10), (72, 10), (76, 30), (98, 30), (104, 100), (8, 100), (14, 30)],
}  # fmt: skip


def clothes(rng: np.random.Generator) -> Canvas:
    """Draw a garment whose cloth carries stripes, checks, dots or zigzag, and sometimes an emblem."""
    canvas = Canvas(rng)
    outline = np.array(_CUTS[str(rng.choice(list(_CUTS)))], dtype=float)
    outline[:, 0] = SIDE / 2 + (outline[:, 0] - SIDE / 2) * rng.uniform(0.7, 1.0)
    canvas.polygon(outline + rng.uniform(-3, 3, outline.shape), 0)
    canvas.within(canvas.alpha, lambda c: _cloth(c, rng))
    return canvas


def _cloth(canvas: Canvas, rng: np.random.Generator) -> None:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    turn, period = rng.uniform(0, np.pi), rng.uniform(11, 26)
    u = (x * np.cos(turn) + y * np.sin(turn)) / period
    v = (-x * np.sin(turn) + y * np.cos(turn)) / (period * rng.uniform(0.7, 1.4))
    duty = rng.uniform(0.25, 0.6)
    kind = rng.integers(5)
    if kind == 0:
        on = u % 1 < duty
    elif kind == 1:
        on = (u % 1 < duty) ^ (v % 1 < duty)
    elif kind == 2:
        on = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < (0.5 * duty + 0.1) ** 2
    elif kind == 3:
        on = (u + 0.5 * np.abs(v % 1 * 2 - 1)) % 1 < duty
    else:
        on = (u % 1 < 0.2) | (v % 1 < 0.2)
    canvas.rgb[on] = canvas.colours[1]
    if rng.random() < 0.6:
        emblem(canvas, rng, (SIDE / 2 + rng.uniform(-10, 10), rng.uniform(40, 75)), rng.uniform(10, 20))


def building(rng: np.random.Generator) -> Canvas:
    """Draw a facade: two to four towers with roofs and rows of windows."""
    canvas = Canvas(rng)
    towers = int(rng.integers(2, 5))
    edges = np.concatenate([[0], np.sort(rng.uniform(0.15, 0.85, towers - 1)), [1]])
    edges = _MARGIN + (SIDE - 2 * _MARGIN) * (0.5 * edges + 0.5 * np.linspace(0, 1, towers + 1))
    ground = SIDE - _MARGIN
    for left, right in pairwise(edges):
        wide, top = right - left, rng.uniform(24, 62)
        canvas.polygon(box(left, top, wide, ground - top), int(rng.integers(0, 2)))
        _roof(canvas, rng, left, top, wide)
        _windows(canvas, rng, box(left, top, wide, ground - top))
    return canvas


def _roof(canvas: Canvas, rng: np.random.Generator, left: float, top: float, wide: float) -> None:
    kind, middle = rng.integers(4), left + wide / 2
    if kind == 0:
        canvas.polygon(
            np.array([(left - 2, top), (left + wide + 2, top), (middle, top - rng.uniform(8, 20))]), 2
        )
    elif kind == 1:
        canvas.polygon(regular(24, (middle, top), wide / 2, 0), 2)
    elif kind == 2:
        for step in range(3):
            canvas.polygon(box(left + wide * step * 0.36, top - 8, wide * 0.25, 9), 2)
    else:
        canvas.polygon(box(middle - 2, top - 18, 4, 18), 2)


def _windows(canvas: Canvas, rng: np.random.Generator, wall: np.ndarray) -> None:
    (left, top), (right, bottom) = wall[0], wall[2]
    rows, columns, kind = int(rng.integers(1, 5)), int(rng.integers(1, 4)), rng.integers(3)
    tall, wide = (bottom - top) / rows, (right - left) / columns
    for row in range(rows):
        for column in range(columns):
            at = (left + (column + 0.5) * wide, top + (row + 0.5) * tall)
            if kind == 0:
                shape = box(at[0] - wide * 0.28, at[1] - tall * 0.3, wide * 0.56, tall * 0.6)
            elif kind == 1:
                shape = regular(16, at, min(wide, tall) * 0.34, 0)
            else:
                shape = regular(3, at, min(wide, tall) * 0.45, -np.pi / 2)
            canvas.polygon(shape, 3, solid=False)


def figure(rng: np.random.Generator) -> Canvas:
    """Draw a toy figure: head, ears or horns, eyes, body with a mark, arms and legs."""
    canvas = Canvas(rng)
    middle, neck = SIDE / 2, rng.uniform(40, 52)
    hips = neck + rng.uniform(24, 34)
    for side in (-1, 1):
        reach, lift = rng.uniform(16, 26), rng.uniform(-1.0, 1.1)
        shoulder = (middle + side * (12 + reach * 0.5), neck + 8 + reach * 0.5 * lift)
        canvas.polygon(_bar(shoulder, reach * 0.7, rng.uniform(2.5, 5), np.arctan2(lift, side)), 1)
        foot = (middle + side * rng.uniform(7, 15), hips + 11)
        canvas.polygon(_bar(foot, 13, rng.uniform(3, 6), np.pi / 2), 2)
    width = rng.uniform(13, 22)
    body = blob(rng, (middle, (neck + hips) / 2), width) if rng.random() < 0.4 else regular(
        int(rng.integers(3, 9)), (middle, (neck + hips) / 2), width + 3, -np.pi / 2
    )  # fmt: skip
    canvas.polygon(body, 0)
    emblem(canvas, rng, (middle, (neck + hips) / 2), rng.uniform(6, 10))
    _head(canvas, rng, (middle, neck - rng.uniform(14, 18)))
    return canvas


def _head(canvas: Canvas, rng: np.random.Generator, at: tuple[float, float]) -> None:
    size, kind = rng.uniform(13, 20), rng.integers(4)
    for side in (-1, 1):
        ear = (at[0] + side * size * rng.uniform(0.6, 0.95), at[1] - size * 0.7)
        if kind == 0:
            canvas.polygon(regular(16, ear, size * 0.45, 0), 2)
        elif kind == 1:
            canvas.polygon(regular(3, ear, size * 0.6, -np.pi / 2), 2)
        elif kind == 2:
            canvas.polygon(_bar((ear[0], ear[1] - 4), size * 0.6, size * 0.18, np.pi / 2 + side * 0.4), 2)
    canvas.polygon(regular(int(rng.choice([24, 24, 4, 5, 6])), at, size, np.pi / 4), 3)
    gap, open_eye = rng.uniform(0.25, 0.5) * size, rng.uniform(1.8, 4.0)
    for side in (-1, 1):
        canvas.polygon(regular(12, (at[0] + side * gap, at[1] - 2), open_eye, 0), 4)
    canvas.polygon(box(at[0] - size * 0.4, at[1] + size * 0.35, size * 0.8, rng.uniform(1.5, 4)), 4)


DOMAINS: dict[str, Callable[[np.random.Generator], Canvas]] = {
    "building": building,
    "clothes": clothes,
    "figure": figure,
    "food": food,
    "logo": logo,
    "package": package,
}
