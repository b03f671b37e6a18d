"""A drawn thing seen again: viewpoint, light, background, occlusion and JPEG quality of one picture."""

from __future__ import annotations

import cv2
import numpy as np

from guie.datasets.toy_things import PALETTES, SIDE, Canvas, blob, regular

_SIZES = (64, 72, 80, 96)
_LUMA = np.array([0.299, 0.587, 0.114])


def photograph(thing: Canvas, rng: np.random.Generator) -> bytes:
    """Return one JPEG of the thing, its side 64 to 96 pixels."""
    side = int(rng.choice(_SIZES))
    where = _viewpoint(rng, side)
    front = cv2.warpPerspective(thing.rgb, where, (side, side), flags=cv2.INTER_AREA)
    alpha = cv2.warpPerspective(thing.alpha, where, (side, side), flags=cv2.INTER_AREA)
    share = alpha[..., None].astype(np.float32) / 255
    lit = _recolour(front.astype(np.float32), rng)
    picture = _background(rng, side) * (1 - share) + lit * share
    picture = np.clip(_light(picture, rng), 0, 255).astype(np.uint8)
    _occlude(picture, rng)
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (3, 3), rng.uniform(0.4, 1.1))
    return _jpeg(picture, int(rng.integers(35, 92)))


def _viewpoint(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return the homography (3,3) from canvas to picture: turn, scale, shift, then pull the corners."""
    corners = np.array([(0, 0), (SIDE, 0), (SIDE, SIDE), (0, SIDE)], np.float32)
    turn = np.deg2rad(rng.normal(0, 15))
    scale = side / SIDE * rng.uniform(0.78, 1.12)
    rotate = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    rotate[0] *= rng.uniform(0.85, 1.0)  # seen from the side, a thing is narrower
    seen = (corners - SIDE / 2) @ rotate.T + side / 2
    seen += rng.uniform(-0.085, 0.085, 2) * side
    seen += rng.uniform(-0.05, 0.05, (4, 2)) * side
    return cv2.getPerspectiveTransform(corners, seen.astype(np.float32))


def _recolour(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn the hue and change the saturation: colour alone must not tell which thing it is."""
    grey = picture @ _LUMA.astype(np.float32)
    turn = rng.normal(0, 0.1)
    axis = np.ones(3) / np.sqrt(3)
    cross = np.cross(np.eye(3), axis)
    rotation = np.cos(turn) * np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * np.outer(axis, axis)
    hued = picture @ rotation.T.astype(np.float32)
    saturation = np.float32(rng.uniform(0.7, 1.15))
    return grey[..., None] + saturation * (hued - grey[..., None])


def _light(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, colour temperature, and let the light fall from one side."""
    side = picture.shape[0]
    slope = rng.uniform(-0.2, 0.2, 2).astype(np.float32)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    fall = 1 + slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    warmth = rng.normal(0, 0.06)
    gain = rng.uniform(0.78, 1.12) * np.array([1 + warmth, 1.0, 1 - warmth], np.float32)
    contrast, noise = np.float32(rng.uniform(0.75, 1.1)), np.float32(rng.uniform(0, 6))
    grain = rng.standard_normal(picture.shape, dtype=np.float32) * noise
    return ((picture - 128) * contrast + 128) * fall[..., None] * gain + grain


def _colour(rng: np.random.Generator) -> np.ndarray:
    shade = PALETTES[rng.integers(len(PALETTES)), rng.integers(5)] + rng.normal(0, 30, 3)
    return np.clip(0.5 * shade + 64, 0, 255)  # paler than the things


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a ramp between two colours with up to ten shapes on it (side, side, 3) float32."""
    ramp = np.linspace(0, 1, side, dtype=np.float32)
    ramp = ramp[:, None] if rng.random() < 0.5 else ramp[None, :]
    first, second = _colour(rng).astype(np.float32), _colour(rng).astype(np.float32)
    ground = np.ascontiguousarray(
        np.broadcast_to((first + (second - first) * ramp[..., None]), (side, side, 3))
    )
    for _ in range(int(rng.integers(0, 5))):
        shape = _clutter(rng, side, rng.uniform(0.04, 0.15) * side)
        cv2.fillPoly(ground, [shape], tuple(_colour(rng)), cv2.LINE_8, 3)
    return ground


def _clutter(rng: np.random.Generator, side: int, radius: float) -> np.ndarray:
    at = (rng.uniform(0, side), rng.uniform(0, side))
    if rng.random() < 0.4:
        outline = blob(rng, at, radius)
    else:
        outline = regular(int(rng.integers(3, 7)), at, radius, rng.uniform(0, 6.3), rng.choice([1.0, 0.5]))
    return np.round(outline * 8).astype(np.int32)


def _occlude(picture: np.ndarray, rng: np.random.Generator) -> None:
    side = picture.shape[0]
    for _ in range(int(rng.choice(3, p=[0.6, 0.33, 0.07]))):
        shape = _clutter(rng, side, rng.uniform(0.07, 0.16) * side)
        cv2.fillPoly(picture, [shape], tuple(_colour(rng)), cv2.LINE_AA, 3)


def _jpeg(picture: np.ndarray, quality: int) -> bytes:
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()
