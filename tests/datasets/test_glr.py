"""Google Landmarks, on miniatures in the layouts of v1, v2, the competition of 2021 and GUIE's shards."""

import shutil

import pytest
import tfrecord

from guie.config.compose import composed
from guie.datasets.glr import gldv1, gldv2, gldv2_recognition, gldv2_retrieval, glr2021
from guie.errors import UserError

# As distributed: urls hold commas in quotes; landmark 9 is not in the cleaned list.
TRAIN = """id,url,landmark_id
6e158a47eb2ca3f6,https://upload.wikimedia.org/a.jpg,142820
202cd79556f30760,"http://upload.wikimedia.org/Hall,_B.jpg",104169
3ad87684c99c06e1,http://upload.wikimedia.org/c.jpg,142820
e7f70e9c61e66af3,http://upload.wikimedia.org/d.jpg,9
"""
CLEAN = "landmark_id,images\n142820,6e158a47eb2ca3f6\n104169,202cd79556f30760 4a1b2c3d4e5f6071\n"
INDEX = "id,landmark_id\naaa1111111111111,5\nbbb2222222222222,5\nccc3333333333333,7\n"
RETRIEVAL = """id,images,Usage
e324e0f3e6d9e504,None,Ignored
d9e17c5f3e0c47b3,aaa1111111111111 bbb2222222222222,Private
1a748a755ed67512,bbb2222222222222,Public
"""
RECOGNITION = """id,landmarks,Usage
e324e0f3e6d9e504,,Private
d9e17c5f3e0c47b3,77 104169,Private
1a748a755ed67512,142820,Public
0000000000000000,,Ignored
"""


@pytest.fixture
def raw(tmp_path):
    for name, text in (
        ("train.csv", TRAIN),
        ("train_clean.csv", CLEAN),
        ("index_image_to_landmark.csv", INDEX),
        ("retrieval_solution_v2.1.csv", RETRIEVAL),
        ("recognition_solution_v2.1.csv", RECOGNITION),
    ):
        (tmp_path / name).write_text(text)
    return tmp_path


def rows(manifest):
    labels = [manifest.label_names[label] for label in manifest.labels]
    return list(zip(manifest.files.tolist(), labels, manifest.splits.tolist(), strict=True))


def test_the_subsets_of_v2(raw):
    found = {subset: gldv2(str(raw), subset, data_root="x") for subset in ("v2", "v2c", "v2x")}
    assert rows(found["v2"]) == [
        ("train/6/e/1/6e158a47eb2ca3f6.jpg", "142820", "train"),
        ("train/2/0/2/202cd79556f30760.jpg", "104169", "train"),
        ("train/3/a/d/3ad87684c99c06e1.jpg", "142820", "train"),
        ("train/e/7/f/e7f70e9c61e66af3.jpg", "9", "train"),
    ]
    assert rows(found["v2c"]) == [
        ("train/6/e/1/6e158a47eb2ca3f6.jpg", "142820", "train"),
        ("train/2/0/2/202cd79556f30760.jpg", "104169", "train"),
        ("train/4/a/1/4a1b2c3d4e5f6071.jpg", "104169", "train"),
    ]
    assert rows(found["v2x"]) == rows(found["v2"])[:3]
    assert found["v2"].domain_names == ["landmark"]


def test_the_list_of_2021_has_no_urls(tmp_path):
    (tmp_path / "train.csv").write_text("id,landmark_id\n17660ef415d37059,1\n92b6290d571448f6,1\n")
    found = glr2021(str(tmp_path), data_root="x")
    assert rows(found)[0] == ("train/1/7/6/17660ef415d37059.jpg", "1", "train") and len(found) == 2


def test_lists_that_lie_with_the_pictures_are_found(raw):
    for folder, names in (
        ("train", ("train.csv", "train_clean.csv")),
        ("metadata", ("index_image_to_landmark.csv",)),
    ):
        (raw / folder).mkdir()
        for name in names:
            (raw / name).rename(raw / folder / name)
    assert len(gldv2(str(raw), "v2x", data_root="x")) == 3
    assert len(gldv2_retrieval(str(raw), data_root="x")) == 5


@pytest.mark.parametrize("place", ["train/3ad87684c99c06e1.jpg", "images/train/3ad87684c99c06e1.jpg"])
def test_pictures_in_one_folder_are_found(raw, place):
    (raw / place).parent.mkdir(parents=True)
    (raw / place).write_bytes(b"x")
    found = gldv2(str(raw), "v2", data_root="x")
    assert found.files[2] == place and found.read(2) == b"x"


def test_shards_are_listed_record_by_record(tmp_path):
    writer = tfrecord.TFRecordWriter(str(tmp_path / "guie-glr2021-train-00-2.tfrec"))
    for label in (10691, 17690):
        writer.write({"image/encoded": (b"x", "byte"), "image/class/label": (label, "int")})
    writer.close()
    found = glr2021(str(tmp_path), data_root="x")
    assert found.label_names == ["10691", "17690"] and found.place(1)[1] == "1"
    assert found.domain_names == ["landmark"] and set(found.splits) == {"train"}
    with pytest.raises(UserError, match=r"dataset subset: 'v2c' for the shards in .*; accepted: v2"):
        glr2021(str(tmp_path), "v2c", data_root="x")


def test_shards_that_tensorflow_wrote_are_listed(shared, tmp_path):
    shutil.copy(shared / "formats" / "tfrecords" / "guie-glr2021-train-00-20.tfrec", tmp_path)
    found = glr2021(str(tmp_path), data_root="x")
    assert len(found) == 20 and found.label_names == ["10691", "10692"]
    assert found.read(19).startswith(b"\xff\xd8")


def test_v1_leaves_out_pictures_without_landmark(tmp_path):
    (tmp_path / "train.csv").write_text(
        '"id","url","landmark_id"\n"cacf8152e2d2ae60","http://static.panoramio.com/1.jpg","4676"\n'
        '"0a58358a2afd3e4e","http://lh6.ggpht.com/2.jpg","None"\n'
    )
    found = gldv1(str(tmp_path), data_root="x")
    assert rows(found) == [("train/c/a/c/cacf8152e2d2ae60.jpg", "4676", "train")]


def test_retrieval_has_queries_index_and_pairs(raw):
    found = gldv2_retrieval(str(raw), data_root="x")
    assert rows(found) == [
        ("test/d/9/e/d9e17c5f3e0c47b3.jpg", "5", "query"),
        ("test/1/a/7/1a748a755ed67512.jpg", "5", "query"),
        ("index/a/a/a/aaa1111111111111.jpg", "5", "index"),
        ("index/b/b/b/bbb2222222222222.jpg", "5", "index"),
        ("index/c/c/c/ccc3333333333333.jpg", "7", "index"),
    ]
    assert [tuple(pair.values()) for pair in found.truth.to_pylist()] == [
        ("test/d/9/e/d9e17c5f3e0c47b3.jpg", "index/a/a/a/aaa1111111111111.jpg", "ok", "private"),
        ("test/d/9/e/d9e17c5f3e0c47b3.jpg", "index/b/b/b/bbb2222222222222.jpg", "ok", "private"),
        ("test/1/a/7/1a748a755ed67512.jpg", "index/b/b/b/bbb2222222222222.jpg", "ok", "public"),
    ]


def test_retrieval_without_landmarks_of_the_index(raw):
    (raw / "index_image_to_landmark.csv").unlink()
    (raw / "index.csv").write_text("id\nccc3333333333333\nbbb2222222222222\naaa1111111111111\n")
    labels = [label for _, label, _ in rows(gldv2_retrieval(str(raw), data_root="x"))]
    query = "d9e17c5f3e0c47b3"
    assert labels == [query, query, "distractor", query, query]


def test_recognition_asks_the_training_set(raw):
    found = gldv2_recognition(str(raw), data_root="x")
    assert rows(found)[:4] == [
        ("test/e/3/2/e324e0f3e6d9e504.jpg", "distractor", "query"),
        ("test/d/9/e/d9e17c5f3e0c47b3.jpg", "104169", "query"),
        ("test/1/a/7/1a748a755ed67512.jpg", "142820", "query"),
        ("train/6/e/1/6e158a47eb2ca3f6.jpg", "142820", "index"),
    ]
    assert len(found) == 6
    assert found.table["landmarks"].to_pylist()[:3] == ["", "77 104169", "142820"]
    assert found.table["usage"].to_pylist()[:4] == ["private", "private", "public", ""]


@pytest.mark.parametrize(
    ("dataset", "name", "text", "message"),
    [
        (
            glr2021,
            "train.csv",
            TRAIN + "abcd,http://x\n",
            r"train\.csv: line 6: 2 values; accepted: 3",
        ),
        (glr2021, "train.csv", "id,url\n", r"train\.csv: no column 'landmark_id' \(found id, url\)"),
        (glr2021, "train.csv", "", r"train\.csv: 0 bytes"),
        (glr2021, "train.csv", "id,landmark_id\n", r"0 rows"),
        (glr2021, "train.csv", "id,landmark_id\nab,1\n", r"train\.csv: line 2 has id 'ab'; accepted: as in"),
        (glr2021, "train.csv", "id,landmark_id\nabcdef,\n", r"empty labels at .*train/a/b/c/abcdef\.jpg"),
        (glr2021, "train.csv", TRAIN + TRAIN.split("\n", 1)[1], r"4 pictures listed twice"),
        (
            glr2021,
            "train.csv",
            b"id,landmark_id\nabcdef,1\n\xe9bc,2\n",
            r"train\.csv: line 3, byte 0 is",
        ),
        (
            glr2021,
            "train.csv",
            "id,landmark_id\n".encode("utf-16"),
            r"train\.csv: line 1, byte 0 is",
        ),
        (
            gldv2,
            "train_clean.csv",
            "landmark_id,images\n1,a/b\n",
            r"train_clean\.csv: line 2 has images 'a",
        ),
        (
            gldv2_retrieval,
            "retrieval_solution_v2.1.csv",
            RETRIEVAL + "eeee,aaa1111111111111,Pubic\n",
            r"retrieval_solution_v2\.1\.csv: line 5: Usage 'Pubic'; accepted: Public, Private, Ignored",
        ),
        (
            gldv2_retrieval,
            "retrieval_solution_v2.1.csv",
            RETRIEVAL + "eeee,zzz1111111111111,Public\n",
            r"query eeee lists zzz1111111111111, which the index lacks",
        ),
        (
            gldv2_retrieval,
            "retrieval_solution_v2.1.csv",
            "id,images,Usage\neee,,Public\n",
            r"query eee",
        ),
    ],
)
def test_mistakes_name_the_file_and_the_line(raw, dataset, name, text, message):
    (raw / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        dataset(str(raw), data_root="x")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train_clean\.csv: missing; accepted: the complete download"):
        gldv2(str(tmp_path), data_root="x")


@pytest.mark.parametrize("name", ["glr2021", "gldv2", "gldv1", "gldv2_retrieval", "gldv2_recognition"])
def test_the_yamls_compose(name):
    assert composed("train", [f"dataset={name}"])["dataset"][name]["_target_"] == f"guie.datasets.glr.{name}"
