"""One batch of random numbers, and the losses of its pictures by a plain loop over classes in float64."""

from __future__ import annotations

import torch

from guie.types import Batch, Output

PICTURES, WIDTH, CLASSES = 9, 6, 5


def random_case(seed=3, dtype=torch.float64, pictures=PICTURES, width=WIDTH, classes=CLASSES):
    """Return raw (B, D) with gradient and labels (B,)."""
    random = torch.Generator().manual_seed(seed)
    raw = torch.randn(pictures, width, generator=random, dtype=dtype).requires_grad_()
    return raw, torch.randint(0, classes, (pictures,), generator=random)


def output_of(raw, feature=None):
    return Output(raw if feature is None else feature, None, raw, torch.nn.functional.normalize(raw, dim=1))


def batch_of(labels, domains=None):
    domains = torch.zeros_like(labels) if domains is None else domains
    return Batch(labels, labels, domains, torch.arange(len(labels)))


def cross_entropy(logits, target, smoothing=0.0):
    """Return the loss of one picture's logits, a list of C scalars."""
    total = torch.stack([torch.exp(logit) for logit in logits]).sum()
    shares = [logit - torch.log(total) for logit in logits]
    return -(1 - smoothing) * shares[target] - smoothing * sum(shares) / len(shares)


def loop_losses(raw, weight, labels, target_logit, scale, smoothing=0.0):
    """Return losses (B,) where `target_logit(cosine, label)` replaces the target's cosine; weight (C, D)."""
    losses = []
    for x, label in zip(raw, labels.tolist(), strict=True):
        cosines = [x @ w / (x.norm() * w.norm()) for w in weight]
        cosines[label] = target_logit(cosines[label], label)
        losses.append(cross_entropy([scale * cosine for cosine in cosines], label, smoothing))
    return torch.stack(losses)


def same_gradients(ours, theirs, *inputs):
    """Assert that both losses and their gradients agree to float64's digits."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
