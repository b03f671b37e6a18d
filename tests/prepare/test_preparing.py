"""From raw files to a prepared folder: what it holds, and what a person can get wrong."""

import csv
import hashlib
import io
import json
import re
import tarfile

import numpy as np
import pytest
from miniature import HEADER, SOP, faulty_sop, picture, state_of, write_sop
from pyarrow import parquet

from guie import assembly
from guie.config.compose import composed
from guie.data.augment import CropFlip, PerView, Plain
from guie.data.warp import Warp
from guie.datasets.known import opened
from guie.datasets.published import PUBLISHED, Stated
from guie.datasets.sop import sop
from guie.errors import UserError
from guie.prepare import shards
from guie.prepare.sheet import looks
from guie.records.tfrecord import TFRecordFile
from guie.types import Preprocess


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def out(raw, prepared):
    return prepared(*SOP, f"raw={raw}")


def test_the_manifest_holds_the_good_pictures_with_size_and_hash(out, raw):
    listed = sop(str(raw), data_root="")
    table = parquet.read_table(out / "manifest.parquet").to_pydict()
    bad = "chair_final/000000000008_2.JPG"
    assert table["file"] == [file for file in listed.files.tolist() if file != bad]
    assert table["label"].count("2") == 3 and set(table["domain"]) == {"packaged"}
    assert table["sha256"] == [
        hashlib.sha256((raw / file).read_bytes()).hexdigest() for file in table["file"]
    ]
    assert (table["width"][0], table["height"][0]) == (64, 48) and table["phash"].count(None) == 0
    assert table["super_label"] == ["chair"] * 19


def test_the_summary_counts(out, capsys):
    found = json.loads((out / "summary.json").read_text())
    assert (found["images"], found["classes"], found["bad_images"]) == (19, 6, 1)
    assert found["per_class"] == {"min": 2, "median": 3.0, "max": 4}
    assert found["splits"]["train"] == {
        "images": 11,
        "classes": 3,
        "per_class": {"min": 3, "median": 4.0, "max": 4},
    }
    assert found["domains"]["packaged"]["images"] == 19
    assert found["identical_copies"] == 2
    # the copy in test has another label as well
    assert found["under_two_labels"] == {"groups": 2, "images": 4}
    assert found["leakage"] == {"evaluated": 8, "identical": 1, "near": 1, "near_bits": 4}
    assert found["small_classes"] == {"below": 2, "classes": 0, "images": 0, "examples": []}


def test_it_prints_what_it_found(raw, prepared, capsys):
    out = prepared(*SOP, f"raw={raw}", "min_images=4")
    said = capsys.readouterr().out
    assert "sop: 19 images, 6 classes, 1 domain" in said
    assert re.search(r"unusable +1 image \(bad_images\.csv\)", said)
    assert re.search(r"leakage +2 of 8 evaluated images are in training: 1 identical, 1 near", said)
    assert re.search(r"small classes +4 of 6 have fewer than 4 images \(11319, 11320, 11321, 2\)", said)
    assert f"guie-train dataset=sop dataset.sop.root={out}" in said


def test_it_says_where_the_makers_counts_differ(raw, prepared, capsys, monkeypatch):
    out = prepared(*SOP, f"raw={raw}")
    said = capsys.readouterr().out
    assert "makers' counts    train: 11 of 59,551 images; train: 3 of 11,318 classes; test: 8 of" in said
    assert json.loads((out / "summary.json").read_text())["stated"]["test"]["classes"] == 11_316
    monkeypatch.setitem(PUBLISHED, "sop", {"train": Stated(11, 3), "test": Stated(8)})
    prepared(*SOP, f"raw={raw}", out="again")
    assert "makers' counts    all images and classes are there" in capsys.readouterr().out


def test_bad_pictures_conflicts_and_leaks_are_listed(out):
    (bad,) = rows_of(out / "bad_images.csv")
    assert bad["file"] == "chair_final/000000000008_2.JPG" and "truncated" in bad["reason"]
    conflicts = [(row["group"], row["label"], row["split"]) for row in rows_of(out / "label_conflicts.csv")]
    assert conflicts == [
        ("0", "1", "train"),
        ("0", "2", "train"),
        ("1", "1", "train"),
        ("1", "11319", "test"),
    ]
    identical, near = rows_of(out / "leakage.csv")
    assert (identical["kind"], identical["train_file"]) == ("identical", "chair_final/000000000003_0.JPG")
    assert (near["kind"], near["train_file"]) == ("near", "chair_final/000000000010_1.JPG")
    assert int(near["distance"]) <= 4 and near["file"] == "chair_final/000000000017_2.JPG"


def test_the_raw_files_are_as_they_were(raw, prepared):
    before = state_of(raw)
    prepared(*SOP, f"raw={raw}", "workers=2")
    assert state_of(raw) == before


def test_training_opens_what_was_prepared(out, tmp_path):
    cfg = composed("train", ["dataset=sop", f"dataset.sop.root={out}", f"data_root={tmp_path / 'data'}"])
    rows = assembly.training_rows(assembly.manifests(cfg["dataset"], cfg["data_root"]))
    assert len(rows) == 11 and rows.read(0) == picture(0)


def test_the_page_shows_pictures_and_needs_no_other_file(out):
    page = (out / "preview.html").read_text()
    fetch = (
        r"""(?:src|href|action|srcset)\s*=\s*["']?\s*(?!data:|\#)[^"'>\s]|@import|url\((?!["']?data:|\#)"""
    )
    assert not re.findall(fetch, page)
    assert page.count("data:image/jpeg;base64,") == 19 + 2 * 2 and "<svg" in page
    assert "identical" in page and "chair_final/000000000017_2.JPG" in page


def test_without_a_preview(raw, prepared):
    assert not (prepared(*SOP, f"raw={raw}", "preview=false") / "preview.html").exists()


def test_an_augmentation_to_look_at_is_drawn_beside_the_preview(raw, prepared, capsys):
    out = prepared(*SOP, f"raw={raw}", "preview=isc21_v83")
    page = (out / "augment.html").read_text()
    num_train = 11
    assert page.count("data:image/jpeg;base64,") == num_train * (1 + 8)
    assert "guie.data.augment.PerView" in page and (out / "preview.html").exists()
    assert f"augmentation {out / 'augment.html'}" in capsys.readouterr().out


def test_of_a_prepared_folder_only_the_augmentation_is_drawn(raw, out, prepared, read, capsys):
    before = {name: state for name, state in state_of(out).items() if name not in (".", "augment.html")}
    for name, said in (("warp", "guie.data.warp.Warp"), ("guie25", "RandAugment")):
        page = prepared(*SOP, f"raw={raw}", f"preview={name}") / "augment.html"
        assert said in page.read_text()
    drawn = page.read_text()
    prepared(*SOP, f"raw={raw}", "preview=guie25", "seed=1")
    assert page.read_text() != drawn and not read
    assert before.items() <= state_of(out).items()


def test_the_looks_are_those_of_the_batch_and_repeat(raw, out):
    rows = opened(out, "sop").split("train")
    spec = Preprocess(size_px=(32, 32))
    soft, hard = CropFlip(preprocess=spec), Plain(preprocess=spec)
    both = PerView({"soft": soft, "hard": hard})
    seen = looks(both, rows, 3, np.arange(8, 16), spec, seed=5)
    assert seen.shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(seen, looks(both, rows, 3, np.arange(8, 16), spec, seed=5))
    whole = hard(rows.read(3), np.empty(0)).transpose(1, 2, 0)
    assert all((look == whole).all() for look in seen[1::2])
    assert not any((look == whole).all() for look in seen[::2])
    warped = looks(Warp(preprocess=spec, num_steps=1), rows, 3, np.arange(4), spec, seed=5)
    assert warped.shape == (4, 32, 32, 3) and warped.dtype == np.uint8 and warped.std() > 0


def test_processes_make_the_same_folder_as_one(raw, prepared, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 3)
    one, two = prepared(*SOP, f"raw={raw}", out="one"), prepared(*SOP, f"raw={raw}", "workers=2", out="two")
    for name in ("manifest.parquet", "summary.json", "bad_images.csv", "leakage.csv", "preview.html"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert sorted(path.name for path in one.parent.iterdir()) == ["one", "raw", "two"]


# --- records and lists: `raw` goes to the parameter that names the place ------------------------------


def test_records_stay_in_their_shards(shared, prepared, tmp_path):
    place = shared / "formats" / "tfrecords"
    out = prepared("dataset=tfrecord", f"raw={place}/guie-*.tfrec")
    table = parquet.read_table(out / "manifest.parquet").to_pydict()
    file, entry = table["file"][-1], table["entry"][-1]
    data = TFRecordFile(place / file)[int(entry)]["image/encoded"][0]
    assert hashlib.sha256(data).hexdigest() == table["sha256"][-1]
    assert len(table["file"]) == 60 and not list(out.glob("**/*.png"))
    cfg = composed(
        "train", ["dataset=csv", f"dataset.csv.path={out}/manifest.parquet", f"dataset.csv.root={place}"]
    )
    again = assembly.manifests(cfg["dataset"], str(tmp_path / "data"))["csv"]
    assert again.read(59) == data and set(again.splits) == {"train", "test"}


def test_pictures_stay_in_their_archives(prepared, tmp_path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a-000.tar", "w") as archive:
        for number in range(4):
            for end, data in (("jpg", picture(number)), ("cls", str(number // 2).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{end}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    out = prepared("dataset=tar", f"raw={tmp_path}/shards/*.tar")
    table = parquet.read_table(out / "manifest.parquet").to_pydict()
    assert table["file"] == ["a-000.tar"] * 4 and table["entry"][3] == "0003.jpg"
    assert table["sha256"][3] == hashlib.sha256(picture(3)).hexdigest()


def test_a_folder_per_class(prepared, tmp_path, capsys):
    for number in range(6):
        path = tmp_path / "mine" / f"c{number // 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    out = prepared("dataset=folder", f"raw={tmp_path / 'mine'}")
    assert json.loads((out / "prepared.json").read_text())["root"] == str(tmp_path / "mine")
    assert f"dataset.csv.path={out / 'manifest.parquet'} dataset.csv.root={tmp_path / 'mine'}" in (
        capsys.readouterr().out
    )


def test_a_list_whose_pictures_are_below_the_data_root(prepared, tmp_path):
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    (tmp_path / "data" / "pictures" / "a.jpg").write_bytes(picture(0))
    (tmp_path / "list.csv").write_text("file,label\na.jpg,x\n")
    out = prepared("dataset=csv", f"raw={tmp_path / 'list.csv'}", "dataset.csv.root=pictures")
    assert json.loads((out / "summary.json").read_text())["images"] == 1
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["pictures"]


def test_without_raw_the_place_is_the_data_sets_own(prepared):
    out = prepared("dataset=toy", "dataset.toy.instances=2", "dataset.toy.views=2")
    assert json.loads((out / "summary.json").read_text())["images"] == 24


PAIRS = """
from guie.datasets.known import Listing, known

def pairs(root: str = "x", rules=None, *, data_root: str):
    return known("pairs", root, data_root, listed, rules)

def listed(place):
    files = ["q.jpg", "a.jpg", "broken.jpg"]
    columns = {"file": files, "label": ["distractor"] * 3, "split": ["query", "index", "index"]}
    truth = {
        "query": ["q.jpg", "q.jpg"], "item": files[1:], "relation": ["ok"] * 2, "usage": ["public"] * 2
    }
    return Listing(columns, truth)
"""


def test_pairs_are_kept_without_those_of_bad_pictures(tmp_path, monkeypatch):
    from guie.build import resolve, signature
    from guie.preparing import prepare

    (tmp_path / "pairing.py").write_text(PAIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GUIE_PLUGINS", "pairing")
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, data in (("q.jpg", picture(0)), ("a.jpg", picture(1)), ("broken.jpg", b"GIF")):
        (raw / name).write_bytes(data)
    cfg = composed("prepare", [f"raw={raw}", f"out={tmp_path / 'out'}", "max_bad_share=0.5", "workers=1"])
    cfg["dataset"] = {"pairs": {"_target_": "pairing.pairs", "root": "x"}}
    out = prepare(cfg, "root", lambda *_: None)
    opened = resolve("pairing.pairs")(str(out), data_root="")
    assert opened.truth.to_pylist() == [
        {"query": "q.jpg", "item": "a.jpg", "relation": "ok", "usage": "public"}
    ]
    assert json.loads((out / "summary.json").read_text())["distractors"] == 2
    signature.cache_clear()


# --- mistakes ---------------------------------------------------------------------------------------------


def test_too_many_bad_pictures_stop_the_job_and_what_was_read_is_kept(raw, prepared, read, tmp_path):
    with pytest.raises(
        UserError, match=r"^bad_images: 1 of \d+ pictures read .*000000000008_2.*at most 1\.0%"
    ):
        prepared("dataset=sop", f"raw={raw}")
    (bad,) = rows_of(tmp_path / ".out.preparing" / "bad_images.csv")
    assert bad["file"] == "chair_final/000000000008_2.JPG"
    assert not (tmp_path / "out").exists()
    before = len(read)
    prepared(*SOP, f"raw={raw}")
    assert len(read) == 20 and before == 9


def test_an_incomplete_download_is_refused_before_anything_is_read(raw, prepared, read, tmp_path):
    for path in sorted((raw / "chair_final").iterdir())[:8]:
        path.unlink()
    with pytest.raises(
        UserError, match=r"^raw: 8 of 20 pictures are not there \(the first is .*000001_1\.JPG\)"
    ):
        prepared(*SOP, f"raw={raw}")
    assert read == [] and not (tmp_path / ".out.preparing").exists()


def half_shard(shared, tmp_path):
    whole = shared / "formats" / "tfrecords" / "guie-products10k-train-00-24.tfrec"
    (tmp_path / "half.tfrec").write_bytes(whole.read_bytes()[:-1000])
    return tmp_path / "half.tfrec"


def test_a_half_downloaded_shard_is_named(shared, prepared, tmp_path):
    half = half_shard(shared, tmp_path)
    with pytest.raises(
        UserError, match=r"half\.tfrec: record 23 at byte \d+: length \d+ does not fit the file"
    ):
        prepared("dataset=tfrecord", f"raw={half}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.tfrec"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dataset=sop", "raw={raw}/chair_final"],
            r"Ebay_train\.txt: missing; accepted: the complete download",
        ),
        (["dataset=sop", "raw={tmp}/none"], r"dataset\.sop\.root: no folder .*none"),
        (["dataset=sop", "raw={raw}", "out={raw}/new"], r"^out: .* lies among the raw files of .*only read"),
        (["dataset=sop", "raw={raw}", "out={raw}"], r"^out: .* lies among the raw files"),
        (["dataset=tfrecord", "raw={raw}/*/*.tfrec", "out={raw}/new"], r"^out: .* lies among the raw files"),
        (["dataset=sop", "raw={raw}", "out=null"], r"^out: a value is required"),
        (["dataset=folder"], r"^raw: a value is required: where the raw files of folder are \(root\)"),
        (["dataset=toy", "raw={raw}"], r"^raw: .*, but toy needs none"),
        (["dataset=[]"], r"^dataset: nothing chosen; accepted: one name"),
        (["dataset=[sop,toy]", "raw={raw}"], r"^dataset: sop, toy; accepted: one name"),
        (["dataset=sop", "raw={raw}", "workers=0"], r"^workers: 0; accepted: 1 or more"),
        (["dataset=sop", "raw={raw}", "near_bits=9"], r"^near_bits: 9; accepted: 0 to 8"),
        (["dataset=sop", "raw={raw}", "max_bad_share=2"], r"^max_bad_share: 2\.0; accepted: 0 to 1"),
        (["dataset=sop", "raw={raw}", "min_images=0"], r"^min_images: 0; accepted: 1 or more"),
        (["dataset=sop", "raw={raw}", "out={tmp}/file"], r"^out: .*file is a file; accepted"),
        (["dataset=sop", "raw={raw}", "out={tmp}/full"], r"^out: .*full is not a prepared folder .*thesis"),
        (["dataset=sop", "raw={raw}", "out={tmp}/file/x"], r"^out: cannot write .*file/x"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, raw, prepared, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    before = state_of(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        prepared(*(argument.format(raw=raw, tmp=tmp_path) for argument in arguments))
    assert "\n" not in str(caught.value)
    after = state_of(tmp_path)
    assert {name: value for name, value in after.items() if name != "."} == {
        name: value for name, value in before.items() if name != "."
    }


def test_a_finished_folder_is_replaced_only_when_asked(out, raw, prepared):
    with pytest.raises(UserError, match=r"^out: .*out holds a prepared data set; accepted: .*overwrite=true"):
        prepared(*SOP, f"raw={raw}")
    (out / "mark").write_text("")
    prepared(*SOP, f"raw={raw}", "overwrite=true")
    assert (out / "manifest.parquet").exists() and not (out / "mark").exists()
    assert not (out.parent / ".out.preparing").exists()


def test_a_prepared_folder_is_no_raw_folder(out, prepared):
    with pytest.raises(
        UserError, match=r"^raw: .*out is a prepared folder \(prepared\.json\); accepted: the raw"
    ):
        prepared(*SOP, f"raw={out}", out="other")


def test_two_jobs_for_one_folder(raw, prepared, tmp_path):
    from guie.prepare.destination import opened

    with (
        opened(tmp_path / "out", overwrite=False),
        pytest.raises(UserError, match=r"^out: another process prepares .*out now"),
    ):
        prepared(*SOP, f"raw={raw}")


def test_a_list_that_names_a_picture_outside_is_refused(raw, prepared, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(picture(0))
    (raw / "Ebay_train.txt").write_text(HEADER + "1 1 4 ../secret.jpg\n")
    with pytest.raises(UserError, match=r"dataset sop: paths that leave the root"):
        prepared(*SOP, f"raw={raw}")


def test_only_bad_pictures_make_no_data_set(prepared, tmp_path):
    raw = write_sop(tmp_path / "bad", [("1", b"x")], [("11319", b"y")])
    with pytest.raises(UserError, match=r"dataset sop: none of 2 pictures can be used"):
        prepared("dataset=sop", "max_bad_share=1", f"raw={raw}")
    assert not (tmp_path / "out").exists()


def test_the_comparison_of_raw_files_can_fail(raw):
    before = state_of(raw)
    faulty_sop(raw)
    assert state_of(raw) != before
