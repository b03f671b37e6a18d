"""Several looks at one picture whose vectors are summed: the same in evaluation and in an exported file.

A view is what is looked at (a module on whole pictures that TorchScript compiles), the `Preprocess` that
brings this to the network, and whether the network sees it mirrored. Who embeds and who exports each execute
`Preprocess` in their own way, with equal numbers. With a gate each picture gets views of its own: by its
shape, and by the class that a linear classifier sees in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError
from guie.types import Preprocess

_PLACES = {
    "middle": (0.5, 0.5),
    "top_left": (0.0, 0.0),
    "top_right": (0.0, 1.0),
    "bottom_left": (1.0, 0.0),
    "bottom_right": (1.0, 1.0),
}
_SHOWN = 20  # names in an error


class Whole(nn.Module):
    """The picture as it is: (B,3,H,W)."""

    def forward(self, images: Tensor) -> Tensor:
        """Return `images`."""
        return images


class Cut(nn.Module):
    """A part of the picture: (B,3,H,W) to `share` of its height and width, rounded down.

    `place` is middle or a corner. With `square` the part is a square, its side `share` of the shorter one.
    """

    def __init__(
        self,
        share: float = 0.9,
        place: Literal["middle", "top_left", "top_right", "bottom_left", "bottom_right"] = "middle",
        square: bool = False,
    ) -> None:
        super().__init__()
        if place not in _PLACES:
            raise UserError(f"views.looks: place '{place}'; accepted: {', '.join(_PLACES)}")
        self.share, self.square = _checked_share(share), square
        self.down, self.right = _PLACES[place]

    def extra_repr(self) -> str:
        """Return what tells this part from others."""
        return f"share={self.share}, down={self.down}, right={self.right}, square={self.square}"

    def forward(self, images: Tensor) -> Tensor:
        """Return the part, one pixel at least."""
        height, width = images.size(2), images.size(3)
        rows, columns = int(self.share * height), int(self.share * width)
        if self.square:
            rows = columns = int(self.share * min(height, width))
        rows, columns = max(rows, 1), max(columns, 1)
        top = int(round((height - rows) * self.down))  # noqa: RUF046 - TorchScript's round gives a float
        left = int(round((width - columns) * self.right))  # noqa: RUF046
        return images[:, :, top : top + rows, left : left + columns]


class Padded(nn.Module):
    """The picture in the middle of a square of `level`, of which the middle `share` is seen: (B,3,S,S).

    An odd rest goes below and to the right. A picture whose longer side is above `most_px` is reduced to that
    first, for a strip's square would take all memory.
    """

    def __init__(self, share: float = 1.0, level: int = 0, most_px: int = 8192) -> None:
        super().__init__()
        self.share, self.level, self.most_px = _checked_share(share), level, most_px

    def extra_repr(self) -> str:
        """Return what tells this square from others."""
        return f"share={self.share}, level={self.level}, most_px={self.most_px}"

    def forward(self, images: Tensor) -> Tensor:
        """Return the seen part of the square."""
        images = self.bounded(images)
        height, width = images.size(2), images.size(3)
        side = max(height, width)
        above, before = (side - height) // 2, (side - width) // 2
        around = [before, side - width - before, above, side - height - above]
        square = functional.pad(images, around, value=float(self.level))
        seen = max(int(self.share * side), 1)
        first = int(round((side - seen) / 2.0))  # noqa: RUF046
        return square[:, :, first : first + seen, first : first + seen]

    def bounded(self, images: Tensor) -> Tensor:
        """Return the picture with no side above `most_px`."""
        height, width = images.size(2), images.size(3)
        side = max(height, width)
        if side <= self.most_px:
            return images
        size = [max(height * self.most_px // side, 1), max(width * self.most_px // side, 1)]
        smaller = functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return smaller.round().to(images.dtype)


@dataclass(frozen=True)
class View:
    """`look` (B,3,H,W) to (B,3,h,w), brought to the network by `preprocess`, and there `mirrored` or not."""

    look: nn.Module
    preprocess: Preprocess
    mirrored: bool = False


class Classifier(NamedTuple):
    """What a run of head=classifier_tta learned: `names` of the C classes, `weight` (C,F) and `bias` (C,).

    `key` tells these weights from others, `features` the features that they read (`embed.space`).
    """

    names: Sequence[str]
    weight: Tensor
    bias: Tensor
    key: str
    features: str


class Choice(nn.Module):
    """Features (B,F) to the views of their pictures, (B,V) bool: those of the class that scores highest."""

    def __init__(self, classifier: Classifier, table: Sequence[Sequence[bool]]) -> None:
        super().__init__()
        self.table: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("table", torch.tensor(table))
        self.register_buffer("weight", classifier.weight.detach())
        self.register_buffer("bias", classifier.bias.detach())

    def forward(self, feature: Tensor) -> Tensor:
        """Return the rows of `table` (C,V) that the features choose; computed in the dtype of the weights."""
        logits = functional.linear(feature.to(self.weight.dtype), self.weight, self.bias)
        return self.table[logits.argmax(1)]


class Gating(NamedTuple):
    """A gate over V views by number: the classifier reads `first`, `choice` says what is summed.

    Pictures as high as wide get the views `square` unasked; None: they are asked as all others. `asked` are
    the views that others are asked by or may get. `features` names what the classifier reads, `key` all of
    the gate.
    """

    first: int
    square: tuple[int, ...] | None
    asked: tuple[int, ...]
    choice: Choice
    features: str
    key: str

    def is_square(self, height: int, width: int) -> bool:
        """Return whether a picture is one of those that get `square`."""
        return self.square is not None and height == width

    def possible(self, *, square: bool) -> tuple[int, ...]:
        """Return the views that pictures of this shape may get, or are asked by."""
        return (self.square or ()) if square else self.asked


@dataclass(frozen=True)
class Group:
    """Pictures of these `classes` get these `looks`, both by name."""

    classes: list[str]
    looks: list[str]


class Gate:
    """Which looks a picture gets by the class that a classifier sees in it (system A's classifier-TTA).

    The classifier, `ckpt_cls`, is a run of head=classifier_tta on the same frozen backbone. It reads the
    feature of the look `by`, at the first scale and not mirrored; this look is summed only where it is named.
    Pictures of a class in one of `groups` (by name, null: left out) get the looks of this group, all others
    `otherwise`; those as high as wide get `square` unasked, where that is given.
    """

    def __init__(
        self,
        otherwise: list[str],
        groups: dict[str, Any] | None = None,
        by: str = "whole",
        square: list[str] | None = None,
        *,
        classifier: Classifier | None,
    ) -> None:
        if classifier is None:
            raise UserError(
                "ckpt_cls: not given; accepted: a run of head=classifier_tta, for these views ask it"
            )
        self.otherwise, self.by, self.square, self.classifier = otherwise, by, square, classifier
        self.groups = {name: group for name, group in (groups or {}).items() if group is not None}

    def told(self) -> dict[str, Any]:
        """Return the gate as plain values, for people."""
        groups = {name: asdict(group) for name, group in self.groups.items()}
        return {"by": self.by, "square": self.square, "groups": groups, "otherwise": self.otherwise}

    def over(self, looks: Sequence[str]) -> Gating:
        """Return the gate over views, given the look of each; UserError for a look or class that is none."""
        first = min(_views(looks, self.by, "by"))
        square = None if self.square is None else tuple(sorted(_views(looks, self.square, "square")))
        seen = self._views_of_classes(looks)
        asked = tuple(sorted({first}.union(*seen)))
        table = [[view in chosen for view in range(len(looks))] for chosen in seen]
        told = f"{self.classifier.key} {first} {square} {table}"
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        return Gating(first, square, asked, Choice(self.classifier, table), self.classifier.features, key)

    def _views_of_classes(self, looks: Sequence[str]) -> list[set[int]]:
        """Return the views of each class, in the classifier's order."""
        classes = self.classifier.names
        found = dict.fromkeys(classes, _views(looks, self.otherwise, "otherwise"))
        placed: dict[str, str] = {}
        for name, group in self.groups.items():
            views = _views(looks, group.looks, f"groups.{name}.looks")
            for label in _known(classes, group.classes, f"groups.{name}.classes"):
                if label in placed:
                    where = f"views.gate.groups.{name}.classes"
                    raise UserError(
                        f"{where}: '{label}' is in {placed[label]}, too; accepted: one group each"
                    )
                found[label], placed[label] = views, name
        return list(found.values())


def _views(looks: Sequence[str], wanted: Sequence[str], where: str) -> set[int]:
    """Return the numbers of the views whose look is wanted."""
    names = _known(looks, wanted, where)
    return {number for number, look in enumerate(looks) if look in names}


def _known(names: Sequence[str], wanted: Sequence[str], where: str) -> list[str]:
    """Return `wanted`, one name or several, as they are among `names`; UserError where they are not."""
    found = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    for name in found or ["nothing"]:
        if name not in names:
            known = list(dict.fromkeys(names))
            rest = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
            raise UserError(f"views.gate.{where}: '{name}'; accepted: {', '.join(known[:_SHOWN])}{rest}")
    return found


class Views:
    """Each of `looks` at each of `scales`, with `flip` mirrored as well. Config group `views`.

    `looks` by name, all of the picture where none is named; one that is null is left out. A part of a picture
    is seen without the margin that `crop_fraction` cuts. `scales` multiply the height and width of the
    network's input, which come in multiples of `multiple_px` and are `min_px` at least. `crop` is how a look
    is brought to that size, null as the network states. `summed`: the unit vectors, or the raw ones of the
    neck; the sum is brought to unit length. With a `gate` each picture gets some of the views, by what a
    classifier sees in it.
    """

    def __init__(  # noqa: PLR0913  (the keys of configs/views)
        self,
        looks: dict[str, Any] | None = None,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        summed: Literal["unit", "raw"] = "unit",
        multiple_px: int = 1,
        min_px: int = 1,
        gate: Any = None,
        crop: Literal["stretch", "center", "pad"] | None = None,
    ) -> None:
        if summed not in ("unit", "raw"):
            raise UserError(f"views.summed: '{summed}'; accepted: unit, raw")
        if not scales or min(scales) <= 0:
            raise UserError(f"views.scales: {list(scales)}; accepted: one or more, each above 0")
        for name, value in (("multiple_px", multiple_px), ("min_px", min_px)):
            if value < 1:
                raise UserError(f"views.{name}: {value}; accepted: 1 or more")
        named = {name: look for name, look in (looks or {}).items() if look is not None}
        self.looks = named or {"whole": Whole()}
        self.scales, self.flip, self.summed = tuple(map(float, scales)), flip, summed
        self.multiple_px, self.min_px, self.crop = multiple_px, min_px, crop
        self.gate: Gate | None = gate
        self.gating: Gating | None = gate.over(self._look_of_each()) if gate else None

    @property
    def key(self) -> str:
        """Return what tells these views from others: vectors under another key live in another space."""
        looks = [repr(look) for look in self.looks.values()]
        told = f"{looks} {self.scales} {self.flip} {self.summed} {self.multiple_px} {self.min_px}"
        further = (self.crop, self.gating.key if self.gating else None)
        return " ".join([told, *(setting for setting in further if setting)])

    def told(self) -> dict[str, Any]:
        """Return what is seen as plain values, for people."""
        looks = {name: repr(look) for name, look in self.looks.items()}
        told = {"looks": looks, "scales": list(self.scales), "flip": self.flip, "summed": self.summed}
        told |= {"crop": self.crop} if self.crop else {}
        return told | ({"gate": self.gate.told()} if self.gate else {})

    def of(self, preprocess: Preprocess) -> list[View]:
        """Return the views of a network that states `preprocess`; a mirrored one follows its plain one."""
        return [
            View(look, self._scaled(look, preprocess, scale), mirrored)
            for look in self.looks.values()
            for scale in self.scales
            for mirrored in ((False, True) if self.flip else (False,))
        ]

    def _look_of_each(self) -> list[str]:
        """Return the name of the look of each view, in the order of `of`."""
        return [look for look in self.looks for _ in range(len(self.scales) * (2 if self.flip else 1))]

    def _scaled(self, look: nn.Module, preprocess: Preprocess, scale: float) -> Preprocess:
        height, width = (self._side(side * scale) for side in preprocess.size_px)
        fraction = preprocess.crop_fraction if isinstance(look, Whole) else 1.0
        crop = self.crop or preprocess.crop
        return replace(preprocess, size_px=(height, width), crop=crop, crop_fraction=fraction)

    def _side(self, side: float) -> int:
        return max(self.min_px, self.multiple_px, round(side / self.multiple_px) * self.multiple_px)


def combined(vectors: Iterable[Tensor]) -> Tensor:
    """Return the sum of the views' (B,D), each row of unit length."""
    return functional.normalize(torch.stack(list(vectors)).sum(0), dim=1)


def _checked_share(share: float) -> float:
    if not 0 < share <= 1:
        raise UserError(f"views.looks: share {share}; accepted: above 0, up to 1")
    return float(share)
