"""Drawn scenes with many corners, seen once and again, and the sides of a search among them."""

import io

import cv2
import numpy as np
from PIL import Image

from guie.images import BadImage
from guie.types import Side


def scene(seed, size=240):
    """A picture with many corners."""
    r = np.random.default_rng(seed)
    image = np.full((size, size, 3), 127, np.uint8)
    for _ in range(120):
        x, y, w, h = (int(v) for v in r.integers((0, 0, 6, 6), (size, size, 40, 40)))
        cv2.rectangle(image, (x, y), (x + w, y + h), tuple(int(v) for v in r.integers(0, 256, 3)), -1)
    return image


TURN = np.array([[0.8, -0.3, 40.0], [0.3, 0.8, -10.0], [0.0, 0.0, 1.0]])


def seen_again(image, matrix=TURN):
    return cv2.warpPerspective(image, matrix, image.shape[1::-1], borderValue=(127, 127, 127))


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


class Pictures(dict):
    """Bytes by name."""

    def __call__(self, file):
        if file not in self:
            raise BadImage(f"{file}: missing")
        return self[file]


GALLERY = ["x0", "a0", "x1", "b0", "a1", "broken", "b1", "missing", "a2", "b2"]


def sides(pictures):
    vectors = np.random.default_rng(0).standard_normal((len(GALLERY), 4)).astype(np.float32)
    queries = Side(vectors[:3], np.array(["q0", "q1", "q2"], dtype=object), picture=pictures)
    return queries, Side(vectors, np.array(GALLERY, dtype=object), picture=pictures)
