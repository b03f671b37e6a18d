"""Side inputs: the numbers of a picture's original size, the same in training, evaluation and export."""

import io

import numpy as np
import pytest
import torch
from commands import loaded, run
from PIL import Image

from guie import assembly, checkpoint, embeddings
from guie.config.compose import composed
from guie.data.sizes import original_sizes
from guie.datasets.manifest import from_columns
from guie.images import decode
from guie.side import side_inputs

SIZES = [(30, 20), (60, 90), (44, 44), (25, 100)]  # width, height
SMALL = [
    "dataset=folder",
    "backbone=small",
    "backbone.image_px=32",
    "neck=bn_linear",
    "side_inputs=true",
    "trainer.batch_size=8",
    "trainer.epochs=2",
    "tracker=none",
    "hw.threads=1",
    "hw.workers=0",
]


def picture(size, seed, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder of four classes, a picture size each, half of each in training and half asked."""
    root = tmp_path_factory.mktemp("pictures")
    for label, size in enumerate(SIZES):
        for number in range(6):
            path = root / ("train" if number < 3 else "test") / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(size, 10 * label + number))
    return root


def places(root):
    return [f"dataset.folder.root={root}", "eval_on=folder", f"eval_on.folder.root={root}"]


def test_the_three_numbers_are_those_of_the_original_picture():
    found = side_inputs(np.array([[448, 224], [30, 60]]))
    np.testing.assert_allclose(found, [[2, 2, 1], [0.5, 30 / 224, 60 / 224]], rtol=1e-6)
    assert found.dtype == np.float32


def test_sizes_come_from_the_columns_and_where_those_say_nothing_from_the_headers(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "a.png").write_bytes(picture((30, 20), 0))
    (tmp_path / "b.png").write_bytes(picture((30, 20), 0, exif=turned.tobytes()))
    (tmp_path / "c.png").write_bytes(b"")
    columns = {"file": ["a.png", "b.png", "c.png"], "label": ["x"] * 3}
    read = original_sizes(from_columns("x", tmp_path, columns))
    assert read.tolist() == [[20, 30], [30, 20], [224, 224]]
    stated = {"width": [7, None, 0], "height": [9, 5, 0]}
    assert original_sizes(from_columns("x", tmp_path, columns | stated)).tolist() == [
        [9, 7],
        [30, 20],
        [224, 224],
    ]


@pytest.mark.parametrize("trainer", ["default", pytest.param("frozen", marks=pytest.mark.slow)])
def test_what_is_trained_with_them_is_evaluated_and_exported_with_them(pictures, tmp_path, trainer):
    folder = tmp_path / "run"
    mixup = ["trainer.mixup_alpha=0.4"] if trainer == "frozen" else []
    named = [*SMALL, *places(pictures), f"trainer={trainer}", *mixup]
    assert run("train", *named, f"data_root={tmp_path / 'data'}", f"run_dir={folder}") == 0
    saved = checkpoint.read(checkpoint.locate(folder, "last")).parts["embedder"]
    made = assembly.embedder(composed("train", named))
    assert made.neck.norm.num_features == made.backbone.out_dim + 3
    assert saved["neck.norm.running_mean"][-3:].abs().min() > 0.01  # they were there in training
    found = embeddings.load(folder / "embeddings" / "folder")
    assert run("export", f"ckpt={folder}", f"pt={tmp_path / 'model.pt'}") == 0
    program = loaded(tmp_path / "model.pt")
    for row in (0, 5, 11):
        image = torch.from_numpy(decode((pictures / found.files[row]).read_bytes()).copy())
        given = program(image.permute(2, 0, 1)[None]).detach().numpy()[0]
        assert np.abs(given - found.vectors[row]).max() < 1e-5


def test_a_refitted_neck_reads_them_too(pictures, tmp_path):
    folder = tmp_path / "run"
    named = [*SMALL, *places(pictures), "trainer.refit_shrinkage=1.0"]
    assert run("train", *named, f"data_root={tmp_path / 'data'}", f"run_dir={folder}") == 0
    refitted = checkpoint.read(checkpoint.locate(folder, "last")).parts["refit"]
    weight = refitted["neck.linear.weight"]
    assert weight.shape[1] == assembly.embedder(composed("train", named)).backbone.out_dim + 3
    assert weight[:, -3:].abs().max() > 0


def test_a_trained_embedder_reads_them(pictures):
    embedder = assembly.embedder(composed("train", [*SMALL, *places(pictures)])).eval()
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    side = torch.tensor([[1.0, 1.0, 1.0], [3.0, 3.0, 1.0]])
    one, other = embedder(images, side).z.detach()
    assert (one - other).abs().max() > 1e-3
