"""Pictures through an embedder into unit vectors; a job that was killed goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guie.data.bad_images import BadImages
from guie.datasets.manifest import Manifest
from guie.embed.features import filled, lock_of
from guie.embed.reading import Job, Progress, Reader, embedding, evaluating, exact
from guie.embed.space import digest, space_id
from guie.embeddings import from_manifest
from guie.types import Embeddings


def embed(
    embedder: Any,
    manifest: Manifest,
    reader: Reader | None = None,
    *,
    bad_images: BadImages | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Return unit vectors (N,D) float32 of the manifest's pictures by the exact preprocessing.

    Bad pictures are left out, by the policy of `bad_images`. With `folder` the work is kept there while it
    lasts, so that a killed job continues. Raises UserError by that policy.
    """
    space = space_id(embedder)
    bad_images = BadImages(manifest) if bad_images is None else bad_images
    job = Job(manifest, exact(manifest, embedder), reader or Reader(), bad_images, progress)
    shape = (len(manifest), embedder.embed_dim)
    forward = embedding(embedder, manifest, job.reader.device)
    with evaluating(embedder, job.reader.device):
        if folder is None:
            vectors = np.empty(shape, np.float32)
            job.fill(vectors, 0, forward)
        else:
            path = folder / f"vectors-{digest(space, manifest.fingerprint())}.npy"
            vectors = np.array(filled(path, shape, np.float32, job, forward))
            path.unlink()
            lock_of(path).unlink(missing_ok=True)  # this folder has one writer, the one that holds its run
    rows = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    return from_manifest(vectors[rows], manifest, rows=rows, space_id=space)
