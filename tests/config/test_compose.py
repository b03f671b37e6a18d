import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from guie.config.compose import composed, directory, rewrite
from guie.config.schema import NAMED, annotation, choices, targets
from guie.errors import UserError

GROUP_FILES = sorted((group, name) for group, name, _ in targets([directory()]))
PRESETS = sorted(path.stem for path in (directory() / "exp").glob("*.yaml"))
REQUIRED = {"folder": "root", "csv": "path", "tfrecord": "pattern", "tar": "pattern"}
NEEDED = {f"neck={name}": ["neck.domains=2"] for name in ("domain_tiles", "domain_separate")}
COMMAND_OF = {"cleaning": "clean", "views": "embed", "recognise": "recognise"} | dict.fromkeys(
    ("protocol", "search", "postprocess"), "eval"
)
NEEDED["postprocess=linear"] = ["postprocess.linear.path=x"]
NEEDED["head=distill_run"] = ["head.teacher.path=x"]


@pytest.mark.parametrize(("group", "name"), GROUP_FILES)
def test_every_yaml_composes(group, name):
    choice = [f"{group}=[{name}]"] if group in NAMED else [f"{group}={name}"]
    needed = [f"dataset.{name}.{REQUIRED[name]}=x"] if group == "dataset" and name in REQUIRED else []
    needed += NEEDED.get(f"{group}={name}", [])
    extra = ["out=x"] if COMMAND_OF.get(group) == "embed" else []
    cfg = composed(COMMAND_OF.get(group, "train"), choice + needed + extra)
    node = cfg[group][name] if group in NAMED else cfg[group]["all"] if group == "protocol" else cfg[group]
    assert node["_target_"].startswith("guie.")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_composes_and_says_its_command(name):
    assert composed("train", [f"+exp={name}"])["preset"] == name
    header = (directory() / "exp" / f"{name}.yaml").read_text().split("defaults:")[0]
    assert f"guie-train +exp={name}" in header


@pytest.mark.parametrize("command", ["train", "eval", "export", "prepare", "clean"])
def test_every_command_composes_without_arguments(command):
    assert "seed" in composed(command, ["pt=x"] if command == "export" else [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lrr=1"], r"optim\.lrr: unknown key; did you mean 'lr'\?"),
        (["+optim.foo=1"], r"optim\.foo: unknown key"),
        (["+dataset.toy.foo=1"], r"dataset\.toy\.foo: unknown key"),
        (["+nonsense=1"], r"nonsense: unknown key"),
        (["sed=1"], r"sed: unknown key; did you mean 'seed'\?"),
        (["optim.lr=abc"], r"optim\.lr: .*abc"),
        (["trainer.epochs=1.5"], r"trainer\.epochs: .*1\.5"),
        (["head=arcfase"], r"head: there is no 'arcfase'; accepted: .*arcface"),
        (["dataset=[sopp]"], r"dataset: there is no 'sopp'; accepted: .*toy"),
        (["+exp=nothing"], r"exp: there is no 'nothing'; accepted:"),
        (["head=null"], r"head: null; accepted: .*arcface.*, or leave it out"),
        (["head=arcface", "+head.num_classes=10"], r"head\.num_classes: a fact of the data or the model"),
        (["dataset=[folder]"], r"dataset\.folder\.root: a value is required"),
    ],
)
def test_a_config_mistake_is_one_line_that_names_the_key(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        composed("train", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("submit", ["pt=x"], "kind: a value is required"),
        ("eval", ["search=ivff"], r"search: there is no .ivff.; accepted: exact, hnsw, ivf"),
        ("eval", ["ckpt=none", "backbone=smal"], r"backbone: there is no .smal.; accepted: .*small"),
    ],
)
def test_what_other_commands_lack_is_one_line_too(command, overrides, message):
    with pytest.raises(UserError, match=message):
        composed(command, overrides)


@pytest.mark.parametrize(
    ("argument", "rewritten"),
    [
        ("ckpt=epoch=3.ckpt", "ckpt='epoch=3.ckpt'"),
        ("pt=photo (1).pt", "pt='photo (1).pt'"),
        ("dataset.folder.root=a#b", "dataset.folder.root='a#b'"),
        ("out=it's", r"out='it\'s'"),
        ("head.centres=of (b).npy", "head.centres='of (b).npy'"),
        ("ckpt=null", "ckpt=null"),
        ("ckpt='quoted'", "ckpt='quoted'"),
        ("eval_on=sop", "dataset@eval_on=sop"),
        ("optim.lr=1", "optim.lr=1"),
        ("--config-dir=x", "--config-dir=x"),
        ("+exp=a", "+exp=a"),
    ],
)
def test_paths_survive_the_command_line(argument, rewritten):
    assert rewrite(argument) == rewritten


@pytest.mark.parametrize("command", ["train", "eval"])
def test_several_data_sets_stand_side_by_side(command):
    cfg = composed(command, ["dataset=[toy,folder]", "dataset.folder.root=x", "dataset.toy.views=5"])
    assert list(cfg["dataset"]) == ["toy", "folder"]
    assert cfg["dataset"]["folder"]["root"] == "x" and cfg["dataset"]["toy"]["views"] == 5


def test_a_home_folder_is_expanded():
    assert rewrite("run_dir=~/x") == f"run_dir='{os.path.expanduser('~')}/x'"


def test_strange_paths_reach_the_program_unharmed():
    strange = "runs/a b=c#d (1).ckpt"
    assert composed("export", [f"ckpt={strange}", "pt=x"])["ckpt"] == strange


def test_the_parts_within_a_users_own_yaml_have_their_keys_and_keep_their_order(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text(
        "defaults: [_mine, _self_]\nmine:\n  _target_: guie.datasets.folder.folder\n  root: x\n  rules:\n"
        "    foreign: {_target_: elsewhere.Rule, a: 1}\n"
        "    few: {_target_: guie.datasets.rules.MaxImages, images: 30}\n"
        "    plain: {many: {_target_: guie.datasets.rules.MinImages}}\n"
    )
    words = ["--cfg", "job", f"--config-dir={tmp_path}", "dataset=[mine]"]
    done = console("train", *words, "dataset.mine.rules.plain.many.images=4")
    rules = yaml.safe_load(done.stdout)["dataset"]["mine"]["rules"]
    assert list(rules) == ["foreign", "few", "plain"], done.stderr
    assert (rules["few"]["images"], rules["plain"]["many"]["images"]) == (30, 4)
    wrong = console("train", *words, "dataset.mine.rules.few.image=4")
    assert "dataset.mine.rules.few.image: unknown key; did you mean 'images'?" in wrong.stderr


def test_annotations_become_enforced_types():
    assert annotation("int") is int
    assert annotation("float | None") == float | None
    assert choices("Literal['a', 'b'] | None") == ["a", "b"]
    assert choices("int") is None


def test_a_users_own_folder_of_presets_is_read(tmp_path):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text(
        "defaults: [_mine, _self_]\n_target_: guie.train.optim.sgd\nlr: 0.123\n"
    )
    done = console("train", f"--config-dir={tmp_path}", "optim=mine", "--cfg", "job")
    assert "lr: 0.123" in done.stdout, done.stderr


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'torchvision', 'timm', 'open_clip', 'albumentations', 'faiss'}:
            raise SystemExit(f'{name} was imported')
sys.meta_path.insert(0, Block())
import runpy
sys.argv = ['guie-' + sys.argv[1], *sys.argv[2:]]
runpy.run_module('guie.cli.' + sys.argv[0][5:], run_name='__main__')
"""


def console(command: str, *arguments: str, code: str = BLOCKED) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "GUIE_DEBUG"}
    return subprocess.run(
        [sys.executable, "-c", code, command, *arguments], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("command", ["train", "eval", "export", "prepare", "clean"])
def test_help_answers_without_the_heavy_packages(command):
    done = console(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"guie-{command}" in done.stdout


def test_a_mistake_on_the_console_is_one_line_and_exit_code_2_without_the_heavy_packages():
    done = console("train", "optim.lrr=1")
    assert done.returncode == 2
    assert done.stderr == "guie-train: optim.lrr: unknown key; did you mean 'lr'?\n"


def test_the_block_of_heavy_packages_can_fail():
    done = console("train", "--help", code=BLOCKED.replace("import runpy", "import runpy, torch"))
    assert "torch was imported" in done.stderr


def test_nothing_is_written_by_looking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console("train", "--cfg", "job")
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.parametrize(
    "command, words, accepted",
    [
        ("recognise", ["recognise.similarity=cosin"], "cosine, squared_l2"),
        (
            "eval",
            ["+postprocess=local_disk", "postprocess.local_disk.matcher.network=x"],
            "disk, aliked, loftr",
        ),
        ("recognise", ["recognise=system_e0", "recognise.local.geometry.model=x"], "homography, affine"),
    ],
)
def test_a_choice_is_checked_where_its_type_is_a_name_of_this_or_of_another_module(command, words, accepted):
    with pytest.raises(
        UserError, match=rf"^{words[-1].partition('=')[0]}: '.*' is not known; accepted: {accepted}$"
    ):
        composed(command, words)
