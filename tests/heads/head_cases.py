"""Small batches, and the distances of a loss written as loops."""

import json

import numpy as np
import torch

from guie.types import Batch, Output


def output_of(raw, tokens=None):
    return Output(raw, tokens, raw, torch.nn.functional.normalize(raw, dim=1))


def batch_of(labels, ids=None, images=None):
    ids = torch.arange(len(labels)) if ids is None else ids
    return Batch(labels if images is None else images, labels, torch.zeros_like(labels), ids)


def random_case(pictures=12, classes=4, width=6, seed=3):
    """Return raw vectors (B, D) float64 that ask for a gradient, and labels (B,)."""
    random = torch.Generator().manual_seed(seed)
    raw = torch.randn(pictures, width, generator=random, dtype=torch.float64).requires_grad_()
    return raw, torch.arange(pictures) % classes


def distance(a, b):
    return torch.sqrt(((a - b) ** 2).sum())


def mean(values):
    """Return the mean, 0 of nothing."""
    return sum(values) / len(values) if values else torch.zeros((), dtype=torch.float64)


def equal_with_gradients(loss, expected, *inputs):
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    ours = torch.autograd.grad(loss, inputs, retain_graph=True)
    theirs = torch.autograd.grad(expected, inputs, retain_graph=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def reference_case(shared):
    """Return vectors, labels and proxies of the shared reference, and its losses by name."""
    folder = shared / "reference" / "synthetic"
    inputs = np.load(folder / "loss_inputs.npz")
    values = json.loads((folder / "reference_outputs.json").read_text())["pml_losses"]
    return {key: torch.from_numpy(inputs[key]) for key in inputs}, values
