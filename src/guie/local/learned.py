"""Learned local features through kornia (extra `local`), by weights that may be used for anything.

DISK (Tyszkiewicz et al., NeurIPS 2020; Apache-2.0) and ALIKED (Zhao et al., IEEE TIM 2023; BSD-3) with
LightGlue (Lindenberger et al., ICCV 2023; Apache-2.0), and LoFTR (Sun et al., CVPR 2021; Apache-2.0).
SuperPoint and SuperGlue are left out: their weights may not be used commercially.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from guie.errors import UserError
from guie.local.features import Keypoints, shrunk
from guie.local.matchers import Features, check_positive
from guie.local.verify import match

if TYPE_CHECKING:
    from torch import Tensor

Places = tuple[np.ndarray, np.ndarray]
Name = Literal["disk", "aliked", "loftr"]
Pairing = Literal["lightglue", "nearest"]

RANDOM_SEED = 0  # of the weights without `pretrained`
LEAST_PX = 32  # smaller pictures are filled up with black: all strides of the networks fit in
_GREY = (0.299, 0.587, 0.114)


class Network(Protocol):
    """What `Learned` asks of a network."""

    def describe(self, picture: Tensor) -> Features:
        """Return the features of (1,3,H,W) float32 RGB in 0..1, as arrays."""

    def correspond(self, first: Features, second: Features) -> Places:
        """Return the same places in both pictures, (M,2) and (M,2) float32 pixels."""


class Learned:
    """Places that correspond by a network: `disk` or `aliked` keypoints, or `loftr` without keypoints.

    Keypoints, the `max_keypoints` strongest, are paired by LightGlue, or as mutually nearest descriptors,
    nearer than `ratio` times the second nearest. Pictures have a long side of `max_px` at most. kornia
    downloads the weights when they are first needed, below TORCH_HOME; without `pretrained` they are
    random. `device`: auto, cpu, cuda.
    """

    def __init__(
        self,
        network: Name = "disk",
        pairing: Pairing = "lightglue",
        max_px: int = 800,
        max_keypoints: int = 1000,
        ratio: float = 0.95,
        pretrained: bool = True,
        device: str = "auto",
    ):
        numbers = {"max_px": max_px, "max_keypoints": max_keypoints, "ratio": ratio}
        check_positive(**{f"matcher.{name}": value for name, value in numbers.items()})
        self.network, self.pairing, self.ratio = network, pairing, ratio
        self.max_px, self.max_keypoints = max_px, max_keypoints
        self.pretrained, self.device = pretrained, device
        self._made: Network | None = None
        self._making = Lock()

    def describing(self) -> dict[str, Any]:
        """Return network, sizes, whether it is trained, and kornia's version."""
        sizes = {"max_px": self.max_px, "max_keypoints": self.max_keypoints}
        version = {"kornia": kornia().__version__, "pretrained": self.pretrained}
        return {"features": self.network, **sizes, **version}

    def matching(self) -> dict[str, Any]:
        """Return how keypoints are paired."""
        return {"pairing": self.pairing, "ratio": self.ratio} if self.network != "loftr" else {}

    def describe(self, image: np.ndarray) -> Features:
        """Return what the network keeps of (H,W,3) uint8."""
        import torch

        small = shrunk(image, self.max_px)
        missing = [max(0, LEAST_PX - side) for side in small.shape[:2]]
        filled = np.pad(small, ((0, missing[0]), (0, missing[1]), (0, 0)))
        return self._network().describe(torch.from_numpy(filled).permute(2, 0, 1)[None].float() / 255)

    def correspond(self, first: Features, second: Features) -> Places:
        """Return the places that the network finds in both."""
        return self._network().correspond(first, second)

    def _network(self) -> Network:
        with self._making:
            if self._made is None:
                self._made = NETWORKS[self.network](self)
        return self._made


def kornia() -> Any:
    """Return kornia; UserError with the cure where it is not installed."""
    try:
        import kornia
        import kornia.feature
    except ImportError as error:
        raise UserError("matcher: Learned needs kornia: pip install 'guie[local]'") from error
    return kornia


class WithKeypoints:
    """A detector with descriptors, and LightGlue or none."""

    def __init__(self, detect: Callable[[Tensor], Any], glue: Any, ratio: float, device: Any):
        self._detect, self._glue, self._ratio, self._device = detect, glue, ratio, device

    def describe(self, picture: Tensor) -> Features:
        """Return `xy` (N,2) float32, `descriptors` (N,D) float16 and the picture's `size` (2,), W and H."""
        import torch

        with torch.inference_mode():
            found = self._detect(picture.to(self._device))
        return {
            "xy": found.keypoints.float().cpu().numpy(),
            "descriptors": found.descriptors.half().cpu().numpy(),
            "size": np.array(picture.shape[:1:-1], np.float32),
        }

    def correspond(self, first: Features, second: Features) -> Places:
        """Return the places of paired keypoints."""
        a, b = (Keypoints(one["xy"], one["descriptors"].astype(np.float32)) for one in (first, second))
        pairs = self._glued(first, second) if self._glue is not None else match(a, b, self._ratio)
        return a.xy[pairs[:, 0]], b.xy[pairs[:, 1]]

    def _glued(self, first: Features, second: Features) -> np.ndarray:
        """Return pairs (M,2) by LightGlue."""
        import torch

        if not (len(first["xy"]) and len(second["xy"])):
            return np.empty((0, 2), np.int64)
        names = {"keypoints": "xy", "descriptors": "descriptors", "image_size": "size"}

        def tensors(one: Features) -> dict[str, Tensor]:
            return {
                to: torch.from_numpy(one[name])[None].float().to(self._device) for to, name in names.items()
            }

        with torch.inference_mode():
            found = self._glue({"image0": tensors(first), "image1": tensors(second)})
        return found["matches"][0].cpu().numpy()


class WithoutKeypoints:
    """LoFTR: what is kept of a picture is the picture, grey."""

    def __init__(self, network: Any, device: Any):
        self._network, self._device = network, device

    def describe(self, picture: Tensor) -> Features:
        """Return `grey` (H,W) uint8."""
        grey = (picture[0] * picture.new_tensor(_GREY)[:, None, None]).sum(dim=0)
        return {"grey": (grey * 255).round().byte().numpy()}

    def correspond(self, first: Features, second: Features) -> Places:
        """Return the places of LoFTR's matches."""
        import torch

        def tensor(one: Features) -> Tensor:
            return torch.from_numpy(one["grey"])[None, None].float().to(self._device) / 255

        with torch.inference_mode():
            found = self._network({"image0": tensor(first), "image1": tensor(second)})
        return found["keypoints0"].float().cpu().numpy(), found["keypoints1"].float().cpu().numpy()


def _disk(wanted: Learned) -> Network:
    feature, device = kornia().feature, _device(wanted)
    made = _seeded(feature.DISK) if not wanted.pretrained else feature.DISK.from_pretrained("depth")
    network = made.to(device).eval()

    def detect(picture: Tensor) -> Any:
        return network(picture, n=wanted.max_keypoints, pad_if_not_divisible=True)[0]

    return WithKeypoints(detect, _glue(wanted, device), wanted.ratio, device)


def _aliked(wanted: Learned) -> Network:
    feature, device = kornia().feature, _device(wanted)
    settings = {"max_num_keypoints": wanted.max_keypoints}
    if wanted.pretrained:
        made = feature.ALIKED.from_pretrained(**settings)
    else:  # random scores may all lie below the usual threshold
        made = _seeded(lambda: feature.ALIKED(detection_threshold=0.0, **settings))
    network = made.to(device).eval()
    return WithKeypoints(lambda picture: network(picture)[0], _glue(wanted, device), wanted.ratio, device)


def _loftr(wanted: Learned) -> Network:
    feature, device = kornia().feature, _device(wanted)
    made = _seeded(lambda: feature.LoFTR("outdoor" if wanted.pretrained else None))
    return WithoutKeypoints(made.to(device).eval(), device)


def _glue(wanted: Learned, device: Any) -> Any:
    """Return LightGlue for the detector's descriptors; None where the nearest are paired."""
    if wanted.pairing == "nearest":
        return None
    made = kornia().feature.LightGlue
    if wanted.pretrained:
        return made(wanted.network).to(device).eval()
    settings = {name: value for name, value in made.features[wanted.network].items() if name != "weights"}
    return _seeded(lambda: made(None, **settings)).to(device).eval()


def _seeded(make: Callable[[], Any]) -> Any:
    """Return what `make` does, its random weights always the same, the caller's generator as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return make()


def _device(wanted: Learned) -> Any:
    import torch

    if wanted.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted.device)


NETWORKS: dict[str, Callable[[Learned], Network]] = {"disk": _disk, "aliked": _aliked, "loftr": _loftr}
