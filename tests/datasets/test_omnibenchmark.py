import pytest

from guie.config.compose import composed
from guie.datasets.omnibenchmark import listed, omnibenchmark
from guie.errors import UserError

RECORDS = {
    "aircraft/train": "images/5949637931_81393fbdcd_c.jpg 225\nimages/2383649024_c5b13008d0_c.jpg 225\n",
    "food/train": "images/5949637931_81393fbdcd_c.jpg 225\nimages/9130921942_909c6c6570_c.jpg 1000\n",
    "food/val": "images/2644244606_09c80dc9d1_c.jpg 225\n",
}


def write(root, records, name="records.txt"):
    for part, text in records.items():
        (root / part / "images").mkdir(parents=True)
        (root / part / name).write_text(text)
    return root


def rows(manifest):
    labels = [manifest.label_names[label] for label in manifest.labels]
    return list(zip(manifest.files.tolist(), labels, manifest.splits.tolist(), strict=True))


EXPECTED = [
    ("aircraft/train/images/5949637931_81393fbdcd_c.jpg", "aircraft/225", "train"),
    ("aircraft/train/images/2383649024_c5b13008d0_c.jpg", "aircraft/225", "train"),
    ("food/train/images/5949637931_81393fbdcd_c.jpg", "food/225", "train"),
    ("food/train/images/9130921942_909c6c6570_c.jpg", "food/1000", "train"),
    ("food/val/images/2644244606_09c80dc9d1_c.jpg", "food/225", "val"),
]


def test_the_folders_of_the_download_tool_are_read(tmp_path):
    found = omnibenchmark(str(write(tmp_path, RECORDS)), data_root="x")
    assert rows(found) == EXPECTED
    assert found.domain_names == ["food", "object"]
    assert found.table["super_label"].to_pylist() == ["aircraft"] * 2 + ["food"] * 3


def test_the_folders_of_the_description_are_read(tmp_path):
    write(tmp_path, {part.replace("/", "."): text for part, text in RECORDS.items()}, "record.txt")
    found = omnibenchmark(str(tmp_path), data_root="x")
    dotted = [(file.replace("/", ".", 1), label, split) for file, label, split in EXPECTED]
    assert rows(found) == dotted


def test_realms_can_be_chosen(tmp_path):
    assert rows(omnibenchmark(str(write(tmp_path, RECORDS)), ["food"], data_root="x")) == EXPECTED[2:]


def test_hidden_labels_are_left_out(tmp_path):
    hidden = {"food/test": "images/a.jpg 0\nimages/b.jpg 0\n"}
    listing = listed(write(tmp_path, {**RECORDS, **hidden}))
    assert len(listing.columns["file"]) == 5 and "labels are hidden, 2 pictures left out" in listing.notes[0]


def test_published_labels_of_the_test_set_are_kept(tmp_path):
    published = {"food/test": "images/a.jpg 3\nimages/b.jpg 4\n"}
    assert rows(omnibenchmark(str(write(tmp_path, published)), data_root="x"))[1] == (
        "food/test/images/b.jpg",
        "food/4",
        "test",
    )


def test_a_picture_listed_again_keeps_its_first_label(tmp_path):
    listing = listed(write(tmp_path, {"car/train": "images/a.jpg 1\nimages/b.jpg 1\nimages/a.jpg 2\n"}))
    assert listing.columns["label"] == ["car/1", "car/1"] and listing.columns["domain"] == ["cars"] * 2
    assert "1 pictures listed again" in listing.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "images/a.jpg 1\nimages/b.jpg\n",
            r"train/records\.txt: line 2: 'images/b.jpg'; accepted",
        ),
        ("images/a.jpg x\n", r"train/records\.txt: line 1: 'images/a.jpg x'"),
        ("", r"train/records\.txt: 0 bytes"),
    ],
)
def test_mistakes_name_the_file_and_the_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        omnibenchmark(str(write(tmp_path, {"bird/train": text})), data_root="x")


def test_another_folder_and_another_realm_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no realm \(found none\); accepted: REALM/train/records\.txt"):
        omnibenchmark(str(tmp_path), data_root="x")
    with pytest.raises(UserError, match=r"realm 'fod' \(found aircraft, food\)"):
        omnibenchmark(str(write(tmp_path, RECORDS)), ["fod"], data_root="x")


def test_the_yaml_composes():
    cfg = composed("train", ["dataset=omnibenchmark", "dataset.omnibenchmark.realms=[food]"])
    node = cfg["dataset"]["omnibenchmark"]
    assert node["_target_"] == "guie.datasets.omnibenchmark.omnibenchmark" and node["realms"] == ["food"]
