"""The nouns that cross a border between modules. No torch at import; arrays in shapes B, D, Q, N, K."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]
Crop = Literal["stretch", "center", "pad"]


@dataclass(frozen=True)
class Preprocess:
    """How a decoded RGB picture becomes a network input; stated by the backbone, travels with the weights.

    `stretch` resizes to `size_px` whatever the aspect; `center` resizes the short side to
    `size / crop_fraction` (torchvision's int() rule) and cuts the middle; `pad` fits the long side and
    fills with `background`. Resizing is antialiased on uint8. `mean` and `std` are for values in 0..1.
    """

    size_px: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bicubic"
    crop: Crop = "stretch"
    crop_fraction: float = 1.0
    background: tuple[int, int, int] = (255, 255, 255)

    def digest(self) -> str:
        """Return 16 hex digits that change when any field changes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """One picture of a manifest: where its bytes are and what it shows."""

    file: str
    label: str
    entry: str | None = None
    domain: str = ""
    split: str = ""


@dataclass
class Batch:
    """What a head reads: `images` (B,3,H,W) uint8 or float 0..255; `labels`, `domains`, `ids` (B,) int64."""

    images: Tensor
    labels: Tensor
    domains: Tensor
    ids: Tensor
    side: Tensor | None = None
    mixed: Mixed | None = None


@dataclass
class Mixed:
    """The other rows that are blended into a batch: their `labels`, `domains`, `ids` (B,).

    `share` () float32 is what each picture keeps of its own.
    """

    labels: Tensor
    domains: Tensor
    ids: Tensor
    share: Tensor


@dataclass
class Output:
    """`feature` (B,F) pooled; `tokens` (B,T,F) or None; `raw` (B,D) before L2; `z` (B,D) unit length."""

    feature: Tensor
    tokens: Tensor | None
    raw: Tensor
    z: Tensor


def part_widths(mode: Literal["unified", "tile", "separate"], embed_dim: int, domains: int) -> list[int]:
    """Return the width of each part of `raw` that has classes of its own, as neck and head both cut it.

    "unified": all of D. "tile": D shared out as equally as it goes. "separate": D - domains for each.
    """
    if mode == "unified":
        return [embed_dim]
    if mode == "separate":
        return [embed_dim - domains] * domains
    each, more = divmod(embed_dim, domains)
    return [each + (i < more) for i in range(domains)]


@dataclass
class Loss:
    """`total` is differentiated; `scalars` are logged under their names.

    A scalar of shape (2,) is a sum and its weight: their quotient over steps and ranks is logged.
    """

    total: Tensor
    scalars: dict[str, float | Tensor] = field(default_factory=dict)


@dataclass
class Embeddings:
    """Vectors of one embedding space with what is known of each row.

    `vectors` (N,D) float32; `files`, `labels`, `domains`, `splits` (N,) str; `space_id` names weights,
    preprocessing and post-processing: mixing two spaces is refused. `truth` are the protocol's pairs where
    labels do not decide; `further` are columns (N,) str that a protocol asks for by name (usage, group ...).
    """

    vectors: np.ndarray
    files: np.ndarray
    labels: np.ndarray
    domains: np.ndarray
    splits: np.ndarray
    space_id: str
    truth: Pairs | None = None
    further: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """What a protocol states of pairs: `query` and `item` (P,) files, `relation` (P,) ok, easy, hard or junk,
    `usage` (P,) public, private or ignored: in which part of the result the pair's query counts."""

    query: np.ndarray
    item: np.ndarray
    relation: np.ndarray
    usage: np.ndarray


@dataclass(frozen=True)
class Side:
    """One side of a search, queries or gallery: `vectors` (N,D) float32, `files` (N,) as in `Embeddings`.

    `labels` (N,) are those of the gallery alone: no step of a search may look at those of its queries.
    `picture` gives the bytes of a file to the steps that look at pictures.
    """

    vectors: np.ndarray
    files: np.ndarray | None = None
    labels: np.ndarray | None = None
    picture: Callable[[str], bytes] | None = None


class Index(Protocol):
    """A gallery that can be searched."""

    @property
    def tile(self) -> int | None:
        """How many queries to ask at a time so that memory stays bounded; None: all of them at once."""

    def search(self, queries: Side, k: int, *, self_ids: np.ndarray | None = None) -> Ranking:
        """Return the k best gallery positions of each query, (Q,k), ties to the lower position.

        `self_ids` (Q,) is the gallery position of the query itself, left out of its result; -1: none.
        """


class Search(Protocol):
    """A way to search: makes a gallery searchable."""

    def index(self, gallery: Side) -> Index:
        """Return the index of `gallery`."""


@dataclass(frozen=True)
class Ranking:
    """`ids` (Q,K) int32 gallery positions, best first, -1 where there is none; `scores` (Q,K) float32."""

    ids: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Truth:
    """Who is relevant to whom by label equality.

    `query_labels` (Q,) and `gallery_labels` (N,) int64; `self_ids` (Q,) gallery position of the query
    itself, -1 where it is not in the gallery: it is removed from the ranking and from the counts.
    """

    query_labels: np.ndarray
    gallery_labels: np.ndarray
    self_ids: np.ndarray
