"""What one picture's bytes say: size, identity, and a hash that copies of the picture share.

The perceptual hash is pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions",
2010) with an area average in place of its mean filter: grey, 32 x 32, DCT-II, the 8 x 8 coefficients of
frequencies 1..8, one bit each: above their median or not.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from guie.images import decode_region, read_header

GRID = 32
BITS = 64
SHA_BYTES = 32
# Below this root mean square (levels of 255) the coefficients are compression noise: a hash of a plain
# surface would say no more than that it is plain.
_LEAST_STRUCTURE = 2.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Measured(NamedTuple):
    """Size in pixels as shown, sha256 of the encoded bytes, grey (32,32) float32 0..255."""

    width: int
    height: int
    sha256: bytes
    grey: np.ndarray


def measure(data: bytes) -> Measured:
    """Return what the bytes of one picture say; raises BadImage where they are not one whole picture.

    A JPEG is decoded at up to 1/8 of its size: its whole stream is read, which is what shows a cut.
    """
    from PIL import Image

    header = read_header(data)
    whole = (0.0, 0.0, float(header.width), float(header.height))
    pixels = decode_region(data, whole, (GRID, GRID)).image
    small = Image.fromarray(pixels).resize((GRID, GRID), Image.Resampling.BOX)
    grey = np.asarray(small, np.float32) @ _LUMA
    return Measured(header.width, header.height, hashlib.sha256(data).digest(), grey)


def perceptual_hashes(greys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes (N,) uint64 of greys (N,32,32), and (N,) bool: which have structure enough for one.

    The first bit is the lowest frequency's. A hash without structure is 0 and means nothing.
    """
    basis = _cosines()
    low = (basis @ greys @ basis.T).reshape(len(greys), BITS)
    bits = low > np.median(low, axis=1, keepdims=True)
    structured = np.sqrt(np.mean(low * low, axis=1)) >= _LEAST_STRUCTURE
    hashes = np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)
    return np.where(structured, hashes, np.uint64(0)), structured


def _cosines() -> np.ndarray:
    """Return rows 1..8 of the orthonormal DCT-II of 32 samples, (8,32) float32."""
    frequency, sample = np.arange(1, 9)[:, None], np.arange(GRID)[None]
    wave = np.cos(np.pi * frequency * (2 * sample + 1) / (2 * GRID)) * np.sqrt(2 / GRID)
    return wave.astype(np.float32)
