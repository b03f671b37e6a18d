"""Vectors that are sums over views, against one picture and one look at a time in float64."""

import numpy as np
import pytest
import torch

from guie.datasets.manifest import Manifest
from guie.embed.reading import Reader
from guie.embed.space import space_id
from guie.embed.vectors import embed
from guie.errors import UserError
from guie.images import decode
from guie.models.backbones import Timm
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import Average
from guie.resize import apply
from guie.types import Preprocess
from guie.views import Cut, Padded, Views, Whole


class AnySize(torch.nn.Module):
    """Pictures of any size to the mean of each channel's four quarters, through a linear map; 5-d, 3 kept."""

    embed_dim = 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.preprocess = Preprocess(size_px=(8, 8), crop="center", crop_fraction=0.8)
        self.neck = torch.nn.Linear(12, 5)
        self.sizes = set()

    def features(self, images):
        self.sizes.add(tuple(images.shape[2:]))
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)

    def forward(self, images):
        raw = self.neck(self.features(images))
        z = torch.nn.functional.normalize(raw[:, :3], dim=1)
        return type("Output", (), {"raw": raw, "z": z})


def by_hand(network, data, views):
    image, total = decode(data), np.zeros(3)
    for look in views.looks.values():
        for scale in views.scales:
            shown = look(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
            size = round(8 * scale)
            fraction = 0.8 if isinstance(look, Whole) else 1.0
            seen = apply(shown, Preprocess((size, size), crop="center", crop_fraction=fraction))
            for pixels in (seen, seen[:, :, ::-1].copy()) if views.flip else (seen,):
                out = network(torch.from_numpy(pixels)[None])
                total += (out.z if views.summed == "unit" else out.raw[:, :3])[0].double().numpy()
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("summed", ["unit", "raw"])
@pytest.mark.parametrize("flip", [False, True])
def test_vectors_are_those_of_one_look_at_a_time(manifest, summed, flip):
    network = AnySize()
    looks = {"all": Whole(), "corner": Cut(0.7, "top_right"), "padded": Padded(0.9)}
    views = Views(looks, scales=(0.75, 1.0, 1.5), flip=flip, summed=summed)
    found = embed(network, manifest, Reader(batch_size=4, threads=2, views=views))
    with torch.no_grad():
        expected = [by_hand(network, manifest.read(i), views) for i in range(len(manifest))]
    np.testing.assert_allclose(found.vectors, expected, atol=1e-6)
    assert network.sizes == {(6, 6), (8, 8), (12, 12)}


def test_one_look_at_the_whole_picture_is_plain_evaluation(embedder, manifest):
    plain = embed(embedder, manifest, Reader(batch_size=4, threads=2))
    for summed in ("unit", "raw"):
        seen = embed(embedder, manifest, Reader(batch_size=4, threads=2, views=Views(summed=summed)))
        np.testing.assert_allclose(seen.vectors, plain.vectors, atol=1e-7)


def test_views_make_a_space_of_their_own(embedder):
    spaces = {space_id(embedder, views=views) for views in (None, Views(flip=True), Views(summed="raw"))}
    assert len(spaces) == 3


def test_side_inputs_are_those_of_the_picture_whatever_is_seen_of_it(manifest):
    class Sided(AnySize):
        side_dim = 3

        def forward(self, images, side):
            z = torch.nn.functional.normalize(side, dim=1)
            return type("Output", (), {"raw": side, "z": z})

    found = embed(Sided(), manifest, Reader(batch_size=4, threads=2, views=Views({"part": Cut()}, flip=True)))
    for i, vector in enumerate(found.vectors):
        height, width = 9 + i, 12
        expected = np.array([height / width, height / 224, width / 224])
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-5)


def test_of_a_cropped_picture_all_looks_and_side_inputs_are_those_of_the_crop(manifest):
    class Sided(AnySize):
        side_dim = 3

        def forward(self, images, side):
            raw = torch.cat([side[:, :1], images.float().mean((1, 2, 3))[:, None], side[:, 2:]], dim=1)
            return type("Output", (), {"raw": raw, "z": torch.nn.functional.normalize(raw, dim=1)})

    network = Sided()
    network.preprocess = Preprocess(size_px=(8, 8))
    boxes = ["2,1,5,7"] + [None] * (len(manifest) - 1)
    boxed = Manifest("boxed", manifest.root, manifest.table.append_column("crop", [boxes]))
    for views in (None, Views()):
        found = embed(network, boxed, Reader(batch_size=4, threads=2, views=views)).vectors
        seen = apply(decode(manifest.read(0))[1:8, 2:7].copy(), network.preprocess)
        expected = np.array([7 / 5, seen.mean(), 5 / 224])
        np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), rtol=1e-5)


def test_a_network_of_one_size_refuses_scales_in_one_line_and_takes_parts(manifest):
    backbone = Timm("vit_tiny_patch16_224", pretrained=False, image_px=32)
    network = Embedder(backbone, Average(), Linear(4, in_dim=backbone.out_dim))
    reader = Reader(batch_size=4, threads=2, views=Views(scales=(1.0, 2.0)))
    with pytest.raises(
        UserError, match=r"views\.scales: the network takes no 64 x 64 px .*; accepted: scales"
    ):
        embed(network, manifest, reader)
    assert embed(network, manifest, reader._replace(views=Views({"part": Cut()}))).vectors.shape == (11, 4)
