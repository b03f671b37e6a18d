"""What guie-eval hands to steps that look at pictures, and to its report."""

import numpy as np
import pytest
from PIL import Image

from guie import assembly, embeddings, evaluating, results
from guie.config.schema import Eval
from guie.datasets.evaluated import cropped
from guie.datasets.manifest import from_columns
from guie.errors import UserError
from guie.images import decode
from guie.types import Embeddings
from guie.views import Views


def test_steps_that_look_at_pictures_see_of_a_query_what_was_embedded_and_distractors_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    columns = {"file": ["a.png"], "label": ["x"], "split": ["query"], "box": ["10,5,20,30"]}
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = from_columns("x", tmp_path, columns)
    sets = {"x": cropped(whole, ["query"])}
    read, shown = evaluating._pictures(sets, {"more": whole}), results._picture_reader(sets)
    for name in ("x", "x+more"):
        np.testing.assert_array_equal(decode(read(name, "a.png")), pixels[5:35, 10:30])
        assert shown(name, "a.png") == read(name, "a.png") and shown(name, "b.png") is None
    np.testing.assert_array_equal(decode(read("x+more", "distractors/more/a.png")), pixels)


def test_a_data_set_may_have_a_folder_of_the_name_of_distractors(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    columns = {"file": ["distractors/near/a.png"], "label": ["x"], "split": ["index"]}
    (tmp_path / "distractors" / "near").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "distractors" / "near" / "a.png")
    rows = from_columns("x", tmp_path, columns)
    for more in ({}, {"more": rows}):
        read = evaluating._pictures({"x": rows}, more)
        for name in ("x", "x+more")[: 1 + len(more)]:
            np.testing.assert_array_equal(decode(read(name, "distractors/near/a.png")), pixels)


def test_a_data_set_in_which_nobody_asks_is_named(tmp_path):
    rows = from_columns("x", tmp_path, {"file": ["a.png"], "label": ["x"], "split": ["train"]})
    with pytest.raises(UserError, match=r"^dataset x: no rows of split index, query, test; accepted: a data"):
        assembly.evaluation_rows({"x": rows})


def test_each_space_has_a_folder_of_its_own_whose_name_a_disk_takes():
    many = dict.fromkeys(f"data_set_{i}" for i in range(40))
    cases = [
        ({"a": 0, "b": 0}, None, None),
        ({"a": 0, "b": 0}, 8, None),
        ({"a": 0, "b": 0}, None, Views(flip=True)),
        ({"a": 0, "b": 0}, None, Views(scales=(1.0, 2.0))),
        (many, 8, Views()),
        (dict(list(many.items())[:-1]), 8, Views()),
    ]
    names = [evaluating._name(sets, {"keep": keep}, views) for sets, keep, views in cases]
    assert names[:2] == ["a+b", "a+b-keep8"]
    assert len(set(names)) == len(names) and max(map(len, names)) < 200


def test_saved_embeddings_of_two_spaces_are_refused(tmp_path):
    rows = {name: np.array(["x", "y"], dtype=object) for name in embeddings.COLUMNS}
    for space in ("one", "two"):
        rows["splits"] = np.array(["test"] * 2, dtype=object)
        embeddings.save(Embeddings(np.eye(2, dtype=np.float32), space_id=space, **rows), tmp_path / space)
    with pytest.raises(UserError, match="two: embedding space two, 2-d; accepted: one, 2-d as one has"):
        evaluating.of_saved(vars(Eval(embeddings=str(tmp_path))))
