"""A number for every text that is a function of a seed and the text alone: the dice of all subset rules."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_ROWS = 1 << 18  # at a time: temporaries of a few MiB


def hashed(seed: int, texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return (N,) uint64, uniform; equal texts get equal numbers, null differs from every text.

    The state begins with blake2b of the seed; each eight bytes of the text go through the splitmix64
    finaliser (Steele, Lea and Flood 2014), for all texts at once: 10^7 names take seconds, and no Python
    string is made.
    """
    chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    state = np.uint64(int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "little"))
    made = [
        _of_stretch(state, chunk.slice(start, _ROWS).cast(pa.large_string()))
        for chunk in chunks
        for start in range(0, len(chunk), _ROWS)
    ]
    return np.concatenate(made) if made else np.empty(0, np.uint64)


def mixed(bits: np.ndarray) -> np.ndarray:
    """Return the splitmix64 finaliser of each number."""
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))


def _of_stretch(state: np.uint64, column: pa.Array) -> np.ndarray:
    _, offsets, data = column.buffers()
    edges = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    text = np.zeros(int(edges[-1] - edges[0]) + 8, np.uint8)  # so that the last word may read past the end
    if data is not None:
        text[:-8] = np.frombuffer(data, np.uint8)[edges[0] : edges[-1]]
    words = np.ndarray((len(text) - 7,), "<u8", text.data, strides=(1,))  # the word that begins at each byte
    starts = edges[:-1] - edges[0]
    lengths = pc.fill_null(pc.binary_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    found = mixed(state + _GOLDEN * lengths.astype(np.uint64))
    for place in range(0, int(lengths.max(initial=0)), 8):
        rows = np.flatnonzero(lengths > place)
        spare = 8 * np.maximum(0, 8 - (lengths[rows] - place)).astype(np.uint64)
        word = (words[starts[rows] + place] << spare) >> spare
        found[rows] = mixed((found[rows] ^ word) + _GOLDEN)
    return found
