"""YAMLs of the model groups as nodes, and the smallest relative of each backbone."""

import json
import re
from pathlib import Path

import open_clip
import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PX = 32
TINY_TOWERS = {
    "ViT": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "SigLIP": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"},
    "EVA02": {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": ""},
    "convnext": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "mlp"},
}


def node(path):
    """Return the `_target_` node of a YAML, the nodes of its defaults list filled in."""
    found = yaml.safe_load(path.read_text())
    for entry in found.pop("defaults"):
        if isinstance(entry, dict):
            ((group, name),) = entry.items()
            group, _, place = group.lstrip("/").partition("@")
            put(found, place.split("."), node(path.parents[1] / group / f"{name}.yaml"))
    return found


def put(found, place, nested):
    """Lay `nested` below what is there already."""
    for name in place[:-1]:
        found = found.setdefault(name, {})
    found[place[-1]] = nested | found.get(place[-1], {})


def paths(group):
    return sorted((CONFIGS / group).glob("*.yaml"))


def register_tiny_towers(folder):
    """Make a miniature of each CLIP family known to open_clip, by its own mechanism."""
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    for family, tower in TINY_TOWERS.items():
        size = 28 if family == "EVA02" else PX
        for quick_gelu in (False, True):
            config = {
                "embed_dim": 192 if family == "SigLIP" else 16,
                "quick_gelu": quick_gelu,
                "text_cfg": text,
            }
            config["vision_cfg"] = {"image_size": size, **tower}
            suffix = "-quickgelu" if quick_gelu else ""
            (folder / f"tiny-{family}{suffix}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def smallest(found):
    """Return the node with each backbone in it the least of its family and options, without weights."""
    found = {key: smallest(value) if isinstance(value, dict) else value for key, value in found.items()}
    target = found.get("_target_", "")
    if target.endswith("OpenClip"):
        tiny = _tiny_tower(found["name"])
        return found | {"name": tiny, "pretrained": None, "image_px": 28 if "EVA02" in tiny else PX}
    if target.endswith("Timm"):
        return {**found, "pretrained": False, "image_px": PX, "crop": "stretch", **_tiny_timm(found["name"])}
    return found


def _tiny_tower(name):
    family = next((key for key in ("SigLIP", "EVA02", "convnext") if key in name), "ViT")
    return f"tiny-{family}{'-quickgelu' if name.endswith('-quickgelu') else ''}"


def _tiny_timm(name):
    base = name.split(".")[0]
    if "efficientnet" in base:
        return {"name": "tf_efficientnetv2_b0" if "v2" in base else "tf_efficientnet_b0"}
    if base.startswith("convnext"):
        return {"name": base, "options": {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}}
    if base.startswith("vit"):
        px = 28 if "patch14" in base else PX
        return {"name": base, "image_px": px, "options": {"depth": 1, "embed_dim": 96, "num_heads": 3}}
    return {"name": re.sub(r"^resnet\d+$", "resnet50", base), "options": {"layers": [1, 1, 1, 1]}}
