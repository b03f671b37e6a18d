import sys

import pytest

from guie.build import build, refuse_foreign, signature
from guie.errors import UserError

MODULE = """
raise RuntimeError("imported")

class Thing:
    def __init__(self, size: int, scale: float = 30.0, name: str | None = None, *, num_classes: int): ...

def make(path: str, shape: tuple[int, int] = (2, 3), *, data_root: str): ...
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "fruit.py").write_text(
        "class Apple:\n"
        "    def __init__(self, colour: str, weight: float = 1.5, core=None, *, num_seeds):\n"
        "        self.all = (colour, weight, core, num_seeds)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GUIE_PLUGINS", "fruit")
    signature.cache_clear()
    yield "fruit.Apple"
    sys.modules.pop("fruit", None)
    signature.cache_clear()


@pytest.fixture
def unimportable(tmp_path, monkeypatch):
    import guie

    (tmp_path / "unimportable.py").write_text(MODULE)
    monkeypatch.setattr(guie, "__path__", [*guie.__path__, str(tmp_path)])
    signature.cache_clear()
    yield "guie.unimportable"
    signature.cache_clear()


def test_a_signature_is_read_without_importing_the_module(unimportable):
    size, scale, name, num_classes = signature(f"{unimportable}.Thing")
    assert (size.name, size.annotation, size.default, size.fact) == ("size", "int", "???", False)
    assert (scale.default, name.default) == (30.0, None)
    assert num_classes.fact


def test_a_function_is_a_target_too(unimportable):
    assert [(p.name, p.fact) for p in signature(f"{unimportable}.make")] == [
        ("path", False),
        ("shape", False),
        ("data_root", True),
    ]


def test_build_gives_each_target_the_values_of_config_and_only_the_facts_it_asks_for(plugin):
    apple = build({"_target_": plugin, "colour": "red"}, num_seeds=7, num_classes=3)
    assert apple.all == ("red", 1.5, None, 7)


def test_nested_targets_are_built_with_the_same_facts(plugin):
    node = {"_target_": plugin, "colour": "red", "core": {"a": {"_target_": plugin, "colour": "green"}}}
    assert build(node, num_seeds=2).all[2]["a"].all == ("green", 1.5, None, 2)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "fruit.Apple", "colur": "red"}, r"head\.colur: unknown key; did you mean 'colour'\?"),
        ({"_target_": "fruit.Apple"}, r"head\.colour: a value is required"),
        (
            {"_target_": "fruit.Apple", "colour": "red", "num_seeds": 3},
            r"head\.num_seeds: a fact of",
        ),
        ({"_target_": "fruit.Pear"}, r"'fruit\.Pear' cannot be loaded"),
        ({"_target_": "os.system", "command": "true"}, r"lives in 'os'; accepted: guie\.data, "),
        ({"_target_": "guie.launch.run_ranks", "words": ["true"]}, r"lives in 'guie\.launch'"),
        ({"_target_": "guie.durable.write_durably"}, r"lives in 'guie\.durable'; accepted: "),
        ({"_target_": "guie.data.draws.np.save"}, r"there is no module 'guie\.data\.draws\.np'"),
        ({"_target_": "guie.data.draws.Nothing"}, r"defines no class or function 'Nothing'"),
        ({"_target_": "guie.data.nowhere.Thing"}, r"there is no module 'guie\.data\.nowhere'"),
    ],
)
def test_a_wrong_node_is_refused_in_one_line(plugin, node, message):
    with pytest.raises(UserError, match=message) as caught:
        build(node, where="head", num_seeds=1)
    assert "\n" not in str(caught.value)


def test_an_object_that_guie_merely_imports_is_not_trusted(monkeypatch):
    import guie.data.draws

    monkeypatch.setattr(guie.data.draws, "borrowed", print, raising=False)
    from guie.build import resolve

    with pytest.raises(UserError, match="lives in 'builtins'"):
        resolve("guie.data.draws.borrowed")


def test_a_checkpoints_config_names_parts_of_models_alone(plugin):
    node = {"_target_": "guie.models.ensemble.Ensemble", "members": {"a": {"_target_": "fruit.Apple"}}}
    refuse_foreign(node, "guie.models", "x")
    node["members"]["b"] = {"_target_": "guie.heads.pml.Pml"}
    with pytest.raises(UserError, match=r"x\.members\.b: _target_ 'guie\.heads\.pml\.Pml'; accepted: guie"):
        refuse_foreign(node, "guie.models", "x")
