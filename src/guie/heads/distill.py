"""Distillation: the student learns what a frozen teacher says of the same pictures.

Shapes: B pictures, E width of the teacher's vector, C of its patch tokens on a grid h x w, D of the student's
embedding, F of its features.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError
from guie.heads.pairs import gathered
from guie.heads.teacher import Precision, Taught, Teacher, on_grid
from guie.types import Batch, Loss, Output


class EmbeddingDistillation(nn.Module):
    """The student's vector follows the teacher's: the hint of FitNets (Romero et al., ICLR 2015), at the end.

    `of`: the student's "z" or "raw" (B, D), or "feature" (B, F). `distance`: "cosine" is 1 - cosine, "l2" the
    squared Euclidean distance, "smooth_l1" torch's with `beta`, mean over elements; for "z" of unit vectors.
    A linear map is learned beside the student where its width is not the teacher's.
    """

    def __init__(
        self,
        teacher: Any,
        of: Literal["z", "raw", "feature"] = "z",
        distance: Literal["cosine", "l2", "smooth_l1"] = "cosine",
        beta: float = 1.0,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        *,
        embed_dim: int,
        feature_dim: int,
    ) -> None:
        super().__init__()
        if of not in ("z", "raw", "feature"):
            raise UserError(f"head.of: {of!r} received; accepted: z, raw, feature")
        if distance not in ("cosine", "l2", "smooth_l1"):
            raise UserError(f"head.distance: {distance!r} received; accepted: cosine, l2, smooth_l1")
        self._beside, self.taught = _beside(teacher, precision)
        self.of, self.distance, self.beta = of, distance, _checked_beta(beta)
        own, theirs = feature_dim if of == "feature" else embed_dim, self._beside[0].vector_dim
        self.project = nn.Identity() if own == theirs else nn.Linear(own, theirs)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean over the batch; logs `loss` and `teacher_cosine`."""
        target = self._beside[0].vectors(batch)
        with torch.autocast(target.device.type, enabled=False):
            student = self.project(_in_dtype_of(self.project, getattr(output, self.of)))
            target = target.to(student.dtype)
            cosines = functional.cosine_similarity(student, target)
            if self.of == "z":
                student, target = functional.normalize(student), functional.normalize(target)
            total = self._distances(student, target, cosines).mean()
        return Loss(total, {"loss": total.detach(), "teacher_cosine": cosines.detach().mean()})

    def _distances(self, student: Tensor, target: Tensor, cosines: Tensor) -> Tensor:
        if self.distance == "cosine":
            return 1 - cosines
        if self.distance == "l2":
            return (student - target).square().sum(1)
        return functional.smooth_l1_loss(student, target, beta=self.beta, reduction="none")


class SimilarityDistillation(nn.Module):
    """Pictures are as similar for the student as for the teacher (Tung and Mori, ICCV 2019, eq. 4).

    The mean squared difference of the cosine matrices (B, B) of the batch of all ranks; the paper divides the
    rows of the products by their lengths instead.
    """

    def __init__(self, teacher: Any, precision: Literal["auto", "fp32", "bf16"] = "auto") -> None:
        super().__init__()
        self._beside, self.taught = _beside(teacher, precision)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the loss on `Output.z`; logs `loss`."""
        target = functional.normalize(self._beside[0].vectors(batch))
        with torch.autocast(target.device.type, enabled=False):
            both = torch.cat([output.z, target.to(output.z.dtype)], 1)
            z, theirs = gathered(both, batch.ids)[0].split([output.z.shape[1], target.shape[1]], 1)
            total = functional.mse_loss(z @ z.t(), theirs @ theirs.t())
        return Loss(total, {"loss": total.detach()})


class FeatureDistillation(nn.Module):
    """The student's patch tokens or map follow the teacher's, whitened (Wei et al. 2022, section 3).

    Whitened: layer-normalised without weights, so that a few large channels are not all that is learned. The
    student's map (B, F, h, w) goes through a depthwise 3 x 3 convolution, bilinear resizing to the teacher's
    grid and a 1 x 1 convolution; SmoothL1 with `beta`, mean over elements.
    """

    def __init__(
        self,
        teacher: Any,
        beta: float = 2.0,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        *,
        feature_dim: int,
    ) -> None:
        super().__init__()
        self._beside, self.taught = _beside(teacher, precision)
        self.beta = _checked_beta(beta)
        self.mix = nn.Conv2d(feature_dim, feature_dim, 3, padding=1, groups=feature_dim)
        self.project = nn.Conv2d(feature_dim, self._beside[0].token_dim, 1)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the loss on `Output.tokens` (B, T, F); logs `loss`. UserError where there are none."""
        target = self._beside[0].patches(batch)
        if output.tokens is None:
            raise UserError("head: the student gives no tokens; accepted: a backbone that gives tokens")
        with torch.autocast(target.device.type, enabled=False):
            tokens = _in_dtype_of(self.mix, output.tokens)
            own = tokens if tokens.ndim == 4 else on_grid(tokens, tuple(batch.images.shape[2:]))
            resized = functional.interpolate(self.mix(own), size=target.shape[2:], mode="bilinear")
            student = self.project(resized).movedim(1, -1)
            whitened = functional.layer_norm(target.to(student.dtype).movedim(1, -1), target.shape[1:2])
            total = functional.smooth_l1_loss(student, whitened, beta=self.beta)
        return Loss(total, {"loss": total.detach()})


def _beside(teacher: Any, precision: Precision) -> tuple[tuple[Teacher], Taught | None]:
    """Return the teacher where torch does not find it (a tuple's members are no submodules); who a run is."""
    return (Teacher(teacher, precision),), Taught(teacher[1]) if isinstance(teacher, tuple) else None


def _in_dtype_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return `x` in the dtype of the module's weights, as it is where there are none."""
    return x.to(next((p.dtype for p in module.parameters()), x.dtype))


def _checked_beta(beta: float) -> float:
    if not beta > 0:
        raise UserError(f"head.beta: {beta} received; accepted: above 0 (1 or 2 is usual)")
    return beta
