"""What the tests of the report draw upon."""

import io

import numpy as np
from PIL import Image

from guie.types import Embeddings


def made_up(dim=8, noise=0.5, seed=0, domains=("art", "food & drink")):
    r = np.random.default_rng(seed)
    classes = np.repeat(np.arange(20), 6)
    vectors = r.standard_normal((20, dim))[classes] + noise * r.standard_normal((120, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(
        vectors.astype(np.float32),
        files=np.array([f"{i}.png" for i in range(120)]),
        labels=np.array([f"<b>class {c}" for c in classes]),
        domains=np.array(domains)[classes % 2],
        splits=np.full(120, "test"),
        space_id="s",
    )


def png(dataset, file):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), (int(file.split(".")[0]), 90, 90)).save(buffer, "PNG")
    return buffer.getvalue()
