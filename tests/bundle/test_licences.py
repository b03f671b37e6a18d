"""The table of licences says what a named source states, and where to look for what none states."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml
from small import TIMM, run_folder

from guie.bundle import licences, lineage
from guie.bundle.licences import of_data, of_software, of_weights, stated, table

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "dataset"
CLIP = "guie.models.backbones.OpenClip"


def weights(target, name, pretrained):
    return of_weights({"_target_": target, "name": name, "pretrained": pretrained})


def targets():
    """Return the functions that the data sets of the configs name, by their last name."""
    found = set()
    for path in CONFIGS.glob("*.yaml"):
        nodes = [yaml.safe_load(path.read_text())]
        while nodes:
            node = nodes.pop()
            if isinstance(node, dict):
                nodes += node.values()
                found |= {node["_target_"]} if "_target_" in node else set()
    return {target.rpartition(".")[2] for target in found if ".rules." not in target}


def test_every_known_data_set_has_a_row_and_no_row_is_of_another():
    assert set(licences._known_data()) == targets()


def test_every_row_of_data_names_where_to_look():
    assert all(row["source"] for row in licences._known_data().values())


def test_a_recipe_has_the_licence_of_the_set_that_it_takes_rows_from():
    row = of_data("met_recipe", {"_target_": "guie.datasets.omnibenchmark.omnibenchmark"})
    assert (row.name, row.licence) == ("met_recipe", "CC BY-NC-ND 4.0")


def test_what_nobody_states_is_not_claimed():
    row = of_data("mine", {"_target_": "guie.datasets.folder.folder"})
    assert row.licence == "not stated; look at whoever gave you the pictures"
    assert not row.stated
    assert "not stated" in of_data("other", {"_target_": "elsewhere.sets.birds"}).licence


@pytest.mark.parametrize("nothing", [None, "", "unknown", "other"])
def test_a_source_that_says_unknown_states_nothing(nothing):
    assert not stated("weights", "x", nothing, "there").stated


def test_timm_says_what_its_weights_stand_under():
    timm = pytest.importorskip("timm")
    row = weights(TIMM, "resnet50.tv_in1k", True)
    assert row.licence == timm.get_pretrained_cfg("resnet50.tv_in1k").license == "bsd-3-clause"
    assert "timm" in row.source


def test_a_name_without_a_tag_has_the_row_of_the_weights_that_timm_takes():
    assert weights(TIMM, "resnet50", True).name.startswith("resnet50.")


def test_openai_states_none_for_its_weights_whoever_hands_them_on():
    for row in (
        weights(CLIP, "ViT-B-32", "openai"),
        weights(TIMM, "vit_base_patch32_clip_224.openai", True),
    ):
        assert "openai/CLIP" in row.licence
        assert not row.stated


def test_open_clips_own_weights_are_mit_and_those_of_others_as_their_hub_says():
    assert weights(CLIP, "ViT-B-32", "laion2b_s34b_b79k").licence == "MIT"
    assert weights(CLIP, "ViT-B-16", "metaclip_400m").licence == "cc-by-nc-4.0"
    assert weights(CLIP, "ViT-H-14-378-quickgelu", "dfn5b").licence.startswith(
        "not stated; look at huggingface.co/apple"
    )


def test_weights_of_a_file_are_unknown_and_random_ones_need_none(tmp_path):
    assert "whoever gave you the file" in weights(TIMM, "resnet50", str(tmp_path / "x.safetensors")).licence
    assert weights(TIMM, "resnet50", False) is None
    assert weights(CLIP, "ViT-B-32", None) is None


def test_packages_state_their_own_licence_and_missing_ones_are_left_out():
    rows = {
        row.name.split()[0].lower(): row.licence
        for row in of_software("runs it", ["numpy", "simplejpeg", "no-such-package"])
    }
    assert set(rows) == {"numpy", "simplejpeg"}
    assert rows["numpy"].startswith("BSD-3-Clause")


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT"}, "MIT"),
        ({"License": "Apache-2.0"}, "Apache-2.0"),
        (
            {"License": "Copyright\nall the text", "Classifier": "License :: OSI Approved :: BSD License"},
            "BSD License",
        ),
        ({}, None),
    ],
)
def test_a_package_says_it_in_one_of_three_places(fields, licence):
    from email.message import Message

    message = Message()
    for key, value in fields.items():
        message[key] = value
    assert licences._of_package(message) == licence


def test_the_table_goes_from_weights_to_software_and_repeats_nothing():
    rows = [
        stated("runs it", "s", "MIT", "x"),
        stated("weights", "w", None, "y"),
        stated("runs it", "s", "MIT", "x"),
    ]
    assert [row["of"] for row in table(rows)] == ["weights", "runs it"]


def toy(name="toy"):
    return {name: {"_target_": "guie.datasets.toy.toy"}}


def test_a_run_lists_its_data_with_counts_and_the_weights_it_began_with(tmp_path):
    found = lineage.lineage([run_folder(tmp_path / "a", toy())])
    assert [(line.run, line.dataset, line.images, line.classes) for line in found.data] == [
        ("a", "toy", 1234, 2)
    ]
    assert [row.name for row in found.weights] == ["resnet50 from resnet50.safetensors"]


def test_earlier_runs_and_teachers_are_followed_and_those_that_are_gone_are_named(tmp_path):
    first = run_folder(tmp_path / "first", toy("older"), ckpt=str(tmp_path / "lost"))
    teacher = run_folder(tmp_path / "large", toy("taught"))
    head = {"inner": {"teacher": {"_target_": lineage.TRAINED_EMBEDDER, "path": str(teacher)}}}
    last = run_folder(tmp_path / "last", toy(), ckpt=str(first), head=head)
    found = lineage.lineage([last])
    assert [line.dataset for line in found.data] == ["toy", "older", "taught"]
    assert found.gone == ["lost"]


def test_a_folder_of_another_machine_names_runs_that_are_not_those_of_this_one(tmp_path, monkeypatch):
    run_folder(tmp_path / "runs" / "first", toy("something else"))
    monkeypatch.chdir(tmp_path)
    place = run_folder(tmp_path / "hub", toy(), ckpt="runs/first", told={"library_name": "guie"})
    found = lineage.lineage([place])
    assert [line.dataset for line in found.data] == ["toy"]
    assert found.gone == ["first"]


def test_a_run_that_began_from_itself_is_followed_once(tmp_path):
    place = run_folder(tmp_path / "a", toy(), ckpt=str(tmp_path / "a"))
    assert len(lineage.lineage([place, place]).data) == 1


def test_the_file_of_data_licences_is_one_line_for_each_set():
    text = Path(licences.__file__).with_name("data_licences.json").read_text()
    assert len(text.splitlines()) == len(json.loads(text)) + 2


def test_a_package_without_metadata_is_not_an_error(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(licences, "metadata", missing)
    assert of_software("runs it", ["numpy"]) == []
