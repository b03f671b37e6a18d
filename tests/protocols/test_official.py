"""Which protocol a data set gets: by its name, from the command line or without one."""

import pytest

from guie.build import signature
from guie.config.compose import composed, directory
from guie.config.official import node, official, placed
from guie.errors import UserError
from guie.protocols.chosen import chosen, over
from guie.protocols.copies import Copies
from guie.protocols.graded import Revisited, Stated
from guie.protocols.part import settings, splits_of
from guie.protocols.recognition import KNN, Recognition
from guie.protocols.retrieval import Retrieval
from guie.protocols.self_in import SelfIn
from guie.protocols.several import Several

FOLDERS = [directory()]
FILES = sorted(path.stem for path in (directory() / "protocol").glob("*.yaml"))
SETS = {path.stem for path in (directory() / "dataset").glob("*.yaml")}
OWN_DATA = ["folder", "csv", "tfrecord", "tar", "toy", "guie130k"]


@pytest.mark.parametrize("name", [name for name in FILES if name in SETS])
def test_a_data_set_gets_the_same_protocol_with_and_without_hydra(name):
    needed = [f"dataset.{name}.root=x"] if name == "folder" else []
    from_hydra = composed("eval", [f"dataset={name}", *needed])["protocol"]
    assert list(from_hydra) == [name]
    with_hydra, without = chosen(from_hydra, [name])[name], chosen({}, [name])[name]
    assert settings(with_hydra) == settings(without)


@pytest.mark.parametrize("name", OWN_DATA)
def test_own_data_is_retrieved_by_label(name):
    assert official(name, FOLDERS) == "retrieval"
    assert isinstance(chosen({}, [name])[name], Retrieval)


def test_official_protocols_are_those_of_the_literature():
    kinds = {
        "roxford5k": Revisited,
        "rparis6k": Revisited,
        "gldv2_retrieval": Stated,
        "gldv2_recognition": Recognition,
        "met": Recognition,
        "gpr1200": SelfIn,
        "disc21": Copies,
        "disc21_subset": Copies,
        "food101": Several,
    }
    found = chosen({}, kinds)
    assert {name: type(one) for name, one in found.items()} == kinds
    assert found["disc21"].track == "descriptor" and found["disc21"].max_pairs == 500_000
    ks = {"sop": [1, 10, 100, 1000], "cub": [1, 2, 4, 8], "inshop": [1, 10, 20, 30, 40, 50]}
    assert {name: chosen({}, [name])[name].recall_ks for name in ks} == ks
    assert splits_of(found["food101"]) == (["query", "test"], ["index", "test", "train"])
    assert splits_of(found["met"]) == (["query", "val"], ["index", "train"])
    uned = chosen({}, ["uned_test"])["uned_test"]
    assert uned.match_domain and uned.metric == "mMP@5"


@pytest.mark.parametrize("name", FILES)
def test_a_protocol_names_only_parameters_that_it_has(name):
    written = {key for key in node(name) if key != "_target_"}
    assert written <= {parameter.name for parameter in signature(node(name)["_target_"])}


def placed_words(*words):
    return placed("eval", words, FOLDERS)


def test_the_command_line_says_each_data_sets_protocol():
    assert placed_words("dataset=sop") == ["+protocol@protocol.sop=sop", "dataset=sop"]
    assert placed_words("dataset=[sop, toy]")[:2] == [
        "+protocol@protocol.sop=sop",
        "+protocol@protocol.toy=retrieval",
    ]
    assert placed_words("dataset=sop", "protocol=cub")[0] == "+protocol@protocol.sop=cub"
    assert placed_words("dataset=[sop,cub]", "protocol.recall_ks=[1]")[2:4] == [
        "protocol.sop.recall_ks=[1]",
        "protocol.cub.recall_ks=[1]",
    ]
    assert "protocol.cub.map_k=5" in placed_words("dataset=[sop,cub]", "protocol.cub.map_k=5")
    assert placed_words("protocol=guie") == ["+protocol@protocol.all=guie"]
    assert placed("train", ["eval_on=sop"], FOLDERS)[0] == "+protocol@protocol.sop=sop"


def test_what_names_no_protocol_is_left_alone_and_nothing_is_placed_twice():
    for words in (["ckpt=runs/x"], ["dataset=sop,cub", "--multirun"], []):
        assert placed_words(*words) == words
    once = placed_words("dataset=sop")
    assert placed_words(*once) == once
    assert placed("export", ["dataset=sop"], FOLDERS) == ["dataset=sop"]


def test_a_value_of_no_protocol_is_refused():
    with pytest.raises(
        UserError, match=r"protocol\.recall_ks: of no protocol; accepted with dataset=NAME or"
    ):
        placed_words("protocol.recall_ks=[1]")


def test_an_own_preset_folder_gives_its_data_sets_their_protocol(tmp_path):
    (tmp_path / "protocol").mkdir()
    (tmp_path / "protocol" / "mine.yaml").write_text("defaults: [sop, _self_]\n")
    assert official("mine", [*FOLDERS, tmp_path]) == "mine"


def test_overrides_reach_the_protocol():
    cfg = composed("eval", ["dataset=sop", "protocol.recall_ks=[1]"])
    assert chosen(cfg["protocol"], ["sop"])["sop"].recall_ks == [1]
    cfg = composed("eval", ["dataset=food101", "protocol.parts.knn.ks=[7]"])
    several = chosen(cfg["protocol"], ["food101"])["food101"]
    assert isinstance(several.parts["knn"], KNN) and several.parts["knn"].ks == [7]
    cfg = composed("eval", ["protocol=cub"])
    assert chosen(cfg["protocol"], ["anything"])["anything"].recall_ks == [1, 2, 4, 8]


def test_mistakes_are_named_with_the_data_set():
    with pytest.raises(UserError, match=r"protocol\.sop\.nope: unknown key"):
        composed("eval", ["dataset=sop", "protocol.nope=1"])
    with pytest.raises(UserError, match="protocol: there is no 'nope'; accepted: cars196"):
        composed("eval", ["dataset=sop", "protocol=nope"])
    with pytest.raises(UserError, match="split: 'query'; accepted: train, val, test, or null"):
        over({}, "query", {})
