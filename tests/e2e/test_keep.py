"""A prefix of a trained embedding, chosen when it is exported or evaluated."""

import numpy as np
import pytest
import torch
from commands import loaded, metrics, run

from guie import assembly, embeddings
from guie.embed.space import space_id
from guie.errors import UserError
from guie.export.verify import describe


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def evaluated(tiny_run):
    words = [f"ckpt={tiny_run.folder}", f"data_root={tiny_run.data}", "threads=1", "floors=false"]
    assert run("eval", *words, "keep=16") == 0
    return tiny_run.folder / "eval" / "toy-keep16"


def test_a_prefix_is_evaluated_as_the_first_numbers_at_unit_length(tiny_run, evaluated):
    whole = embeddings.load(tiny_run.folder / "embeddings" / "toy")
    prefix = embeddings.load(evaluated / "embeddings" / "toy")
    assert prefix.vectors.shape == (len(whole.files), 16)
    np.testing.assert_allclose(prefix.vectors, unit(whole.vectors[:, :16]), atol=1e-6)
    assert prefix.space_id != whole.space_id
    assert metrics(evaluated)["space_id"] == prefix.space_id


def test_a_checkpoint_stays_as_it_was_saved(tiny_run):
    folder = sorted((tiny_run.folder / "checkpoints").glob("step_*"))[-1]
    before = sorted(path.name for path in folder.iterdir())
    words = [f"ckpt={folder}", f"data_root={tiny_run.data}", "threads=1", "floors=false", "thresholds=true"]
    assert run("eval", *words) == 0
    assert sorted(path.name for path in folder.iterdir()) == before
    results = tiny_run.folder / "eval" / f"{folder.name}-toy"
    assert (results / "thresholds.json").exists() and not (tiny_run.folder / "thresholds.json").exists()


def test_an_exported_prefix_is_of_its_own_space(tiny_run, tmp_path):
    assert run("export", f"ckpt={tiny_run.folder}", f"pt={tmp_path / 'prefix.pt'}", "keep=16") == 0
    facts = describe(tmp_path / "prefix.pt")
    made, meta = assembly.trained_embedder(tiny_run.folder)
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = made(pictures).z.detach().numpy()
    given = loaded(tmp_path / "prefix.pt")(pictures).detach().numpy()
    np.testing.assert_allclose(given, unit(whole[:, :16]), atol=1e-6)
    made.cut_to(16)
    assert facts["embed_dim"] == 16
    assert facts["space_id"] == space_id(made) != meta["space_id"]


def test_what_was_kept_may_be_widened_again_and_all_numbers_are_no_prefix(tiny_run):
    made, _ = assembly.trained_embedder(tiny_run.folder)
    spaces = [space_id(made)]
    for width in (16, 32, 64):
        made.cut_to(width)
        spaces.append(space_id(made))
    assert len(set(spaces)) == 3 and spaces[0] == spaces[-1]


@pytest.mark.parametrize("keep", [0, 65])
@pytest.mark.parametrize("command", ["eval", "export"])
def test_a_width_that_is_not_there_is_named(tiny_run, tmp_path, command, keep):
    where = [f"pt={tmp_path / 'm.pt'}"] if command == "export" else [f"data_root={tiny_run.data}"]
    with pytest.raises(UserError, match=rf"^keep: {keep} received; accepted: 1 to 64$"):
        run(command, f"ckpt={tiny_run.folder}", f"keep={keep}", *where)


def test_what_has_no_prefixes_is_named(tiny_run):
    with pytest.raises(UserError, match=r"^keep: given with saved embeddings; accepted: one of the two$"):
        run("eval", f"embeddings={tiny_run.folder / 'embeddings'}", "keep=8")
    words = ["ckpt=none", "backbone=resnet50", "backbone.name=resnet10t", "backbone.pretrained=null"]
    with pytest.raises(UserError, match=r"^keep: 8 received; .* a neck Identity has no prefixes"):
        run("eval", *words, "keep=8")
