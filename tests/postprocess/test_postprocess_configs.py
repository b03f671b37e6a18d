"""Each step has a YAML that builds it and states nothing that the signature says already."""

import pytest
import yaml

from guie.build import build, signature
from guie.config.compose import composed, directory
from guie.errors import UserError
from guie.postprocess.step import Step

FILES = sorted((directory() / "postprocess").glob("*.yaml"))


def nodes():
    for path in FILES:
        written = yaml.safe_load(path.read_text())
        node = written.get(path.stem, {})
        if node.get("_target_", "").startswith("guie.postprocess."):
            yield pytest.param(path.stem, [key for key in written if key != "defaults"], node, id=path.stem)


def test_there_is_a_preset_for_every_rule():
    rules = {node.values[2]["_target_"].rpartition(".")[2] for node in nodes()}
    assert rules == {
        *("NegativeSubtraction", "ScoreNormalisation", "AlphaQE", "DBA", "PCA", "Discriminant", "Linear"),
        *("Prefix", "KReciprocal", "Diffusion", "EGT", "SuperGlobal"),
    }


@pytest.mark.parametrize("file, names, node", [*nodes()])
def test_a_preset_builds_a_step_under_its_own_name(file, names, node):
    assert names == [file]
    if "path" in {p.name for p in signature(node["_target_"]) if p.default == "???"}:
        pytest.skip("needs a file of the person's own")
    assert isinstance(build(node, where=file), Step)


@pytest.mark.parametrize("file, names, node", [*nodes()])
def test_a_preset_holds_differences_only(file, names, node):
    defaults = {p.name: p.default for p in signature(node["_target_"])}
    assert not [key for key, value in node.items() if key != "_target_" and defaults[key] == value]


def test_steps_stand_in_the_order_of_the_command_line_with_their_settings():
    cfg = composed("eval", ["postprocess=[pca_whitening,egt,dba]", "postprocess.egt.threshold=0.5"])
    assert list(cfg["postprocess"]) == ["pca_whitening", "egt", "dba"]
    assert cfg["postprocess"]["egt"]["threshold"] == 0.5 and cfg["postprocess"]["pca_whitening"]["whiten"]


def test_a_typo_in_a_step_is_refused():
    with pytest.raises(UserError, match=r"neighbour.*did you mean 'neighbours'"):
        composed("eval", ["postprocess=[dba]", "postprocess.dba.neighbour=3"])
