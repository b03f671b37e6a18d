"""Inputs and both sides of the bars on margin heads (4, 5, 6); imported, not run."""

from collections.abc import Callable

import timing  # noqa: F401  (sets one thread before torch is loaded)
import torch
from pytorch_metric_learning import losses
from torch import Tensor

from guie.heads.margin import ArcFace, SubCenterArcFace
from guie.types import Batch, Output

SCALE, MARGIN = 30.0, 0.5
Side = Callable[[], tuple[Tensor, Tensor]]


def sides(classes: int, width: int, batch: int, subcentres: int = 1) -> tuple[Side, Side, Side]:
    """Return our step, PML's step and the three matrix products on the same weights and vectors.

    A step runs forward and backward from fresh gradients and returns those of the embeddings (B, D) and of
    the weights (K, C, D).
    """
    torch.manual_seed(0)
    embeddings = torch.randn(batch, width)
    labels = torch.randint(classes, (batch,))
    head, ours = our_step(embeddings, labels, classes, subcentres)
    peer = peer_step(embeddings, labels, head.weight.detach().view(subcentres, classes, width))
    rows = head.weight.detach().view(-1, width)

    def products() -> tuple[Tensor, Tensor]:
        cosines = embeddings @ rows.t()
        return cosines @ rows, cosines.t() @ embeddings

    return ours, peer, products


def our_step(
    embeddings: Tensor, labels: Tensor, classes: int, subcentres: int
) -> tuple[torch.nn.Module, Side]:
    facts = {"num_classes": classes, "embed_dim": embeddings.shape[1]}
    head = (
        SubCenterArcFace(subcentres, SCALE, MARGIN, **facts)
        if subcentres > 1
        else ArcFace(SCALE, MARGIN, **facts)
    )
    raw = embeddings.clone().requires_grad_()
    batch = Batch(labels, labels, labels, labels)

    def step() -> tuple[Tensor, Tensor]:
        raw.grad = head.weight.grad = None
        head(Output(raw, None, raw, raw), batch).total.backward()
        return raw.grad, head.weight.grad.view(subcentres, classes, -1)

    return head, step


def peer_step(embeddings: Tensor, labels: Tensor, weight: Tensor) -> Side:
    subcentres, classes, width = weight.shape
    facts = {"num_classes": classes, "embedding_size": width}
    degrees = MARGIN * 180 / torch.pi
    if subcentres > 1:
        loss = losses.SubCenterArcFaceLoss(margin=degrees, scale=SCALE, sub_centers=subcentres, **facts)
    else:
        loss = losses.ArcFaceLoss(margin=degrees, scale=SCALE, **facts)
    loss.W.data = weight.transpose(0, 1).reshape(-1, width).t().contiguous()
    raw = embeddings.clone().requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        raw.grad = loss.W.grad = None
        loss(raw, labels).backward()
        return raw.grad, loss.W.grad.t().view(classes, subcentres, width).transpose(0, 1)

    return step


def check_equal(ours: Side, peer: Side, tolerance: float = 1e-3) -> None:
    """Fail unless both gradients agree to `tolerance` of the largest entry."""
    for mine, theirs in zip(ours(), peer(), strict=True):
        difference = float((mine - theirs).abs().max() / theirs.abs().max())
        assert difference < tolerance, f"gradients differ by {difference}"
