"""Backbones: pictures in, feature maps, tokens or one vector out; each states its preprocessing.

timm and open_clip are imported when a backbone is built (8 CPU seconds). B batch, C channels, T tokens.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from guie.errors import UserError
from guie.models.attention import attend
from guie.models.checkpointing import checkpoint_blocks
from guie.models.trim import Trim
from guie.models.weights import build_with_weights, check_complete, checked_file, is_file_name
from guie.types import Crop, Preprocess

Kind = Literal["map", "tokens", "vector"]

_TIMM_CROPS: dict[str, Crop] = {"center": "center", "squash": "stretch", "border": "pad"}
_CLIP_CROPS: dict[str, Crop] = {"shortest": "center", "squash": "stretch", "longest": "pad"}


class Timm(nn.Module):
    """Any timm model without its classifier.

    `pretrained`: true for the hub's weights of `name`, a local .safetensors/.pth/.pt file, or false.
    `stages`: maps after these stages (timm's `out_indices`), each pooled, concatenated; null: the last map.
    `crop`: null for the model's own evaluation rule; `background` shows through transparent pictures
    (128 where white drawings would vanish on white). `trim` cuts away plain margins (`Trim`).
    `options` are further arguments of `timm.create_model`
    (`output_stride: 16`, `drop_rate: 0.1`). `attention` puts `SpatialAttention` behind a ResNet's layers 1
    to 3. `checkpointing` computes the blocks' activations again in the backward pass instead of keeping them.

    `forward` takes normalised pictures (B, 3, H, W) and returns, by `kind`, a map (B, C, H, W), tokens
    (B, T, C) with `prefix_tokens` (CLS, registers) first, or the vector (B, C) of the model's own attention
    pooling (SigLIP); a list of maps with `stages`. `out_dim` is C, summed over stages.
    """

    def __init__(  # noqa: PLR0913  (the keys of configs/backbone)
        self,
        name: str = "resnet50",
        pretrained: bool | str | None = True,
        image_px: int | None = None,
        stages: list[int] | None = None,
        drop_path: float = 0.0,
        crop: Literal["stretch", "center", "pad"] | None = None,
        background: tuple[int, int, int] = (255, 255, 255),
        trim: bool = False,
        options: dict[str, Any] | None = None,
        attention: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.trim = Trim() if trim else nn.Identity()
        arguments = _timm_arguments(name, pretrained, image_px, drop_path)
        arguments |= {"features_only": True, "out_indices": tuple(stages)} if stages else _NO_CLASSIFIER
        self.model: Any = _timm_model(name, pretrained, {**arguments, **(options or {})})
        if attention:
            attend(self.model, name)
        if checkpointing:
            checkpoint_blocks(self.model, name)
        self.stages = list(stages or [])
        self.options = sorted((options or {}).items())  # they change what is computed, not the weights
        self.out_dim = sum(self.model.feature_info.channels()) if stages else self.model.num_features
        pools_itself = getattr(self.model, "attn_pool", None) is not None
        self.prefix_tokens = int(getattr(self.model, "num_prefix_tokens", 0))
        is_tokens = hasattr(self.model, "num_prefix_tokens") and not stages
        self.kind: Kind = "vector" if pools_itself and not stages else "tokens" if is_tokens else "map"
        self._channels_last = "NHWC" in str(getattr(self.model, "output_fmt", ""))
        spec = _timm_preprocess(self.model, image_px, crop)
        self.preprocess = replace(spec, background=(background[0], background[1], background[2]))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return map, tokens or vector (see the class)."""
        x = self.trim(x)
        if self.stages:
            maps = self.model(x)
            return [m.permute(0, 3, 1, 2) for m in maps] if self._channels_last else list(maps)
        found = self.model.forward_features(x)
        if self.kind == "vector":
            return self.model.forward_head(found, pre_logits=True)
        return found.permute(0, 3, 1, 2) if self._channels_last else found


_NO_CLASSIFIER = {"num_classes": 0}


def _timm_arguments(
    name: str, pretrained: bool | str | None, image_px: int | None, drop_path: float
) -> dict[str, Any]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")[:3]
        raise UserError(
            f"backbone.name: timm has no model '{name}'; accepted: timm.list_models(){_near(near)}"
        )
    arguments: dict[str, Any] = {"pretrained": bool(pretrained)}
    if isinstance(pretrained, str):
        arguments["pretrained_cfg_overlay"] = {"file": checked_file(pretrained)}
    config = timm.get_pretrained_cfg(name)
    if image_px and getattr(config, "fixed_input_size", False):
        arguments["img_size"] = image_px
    return arguments | ({"drop_path_rate": drop_path} if drop_path else {})


def _timm_model(name: str, pretrained: bool | str | None, arguments: dict[str, Any]) -> Any:
    import timm

    def build() -> nn.Module:
        if isinstance(pretrained, str):
            _check_timm_file(name, checked_file(pretrained), arguments.get("img_size"))
        try:
            return timm.create_model(name, **arguments)
        except (TypeError, AssertionError) as error:
            raise UserError(f"backbone: '{name}' does not take {arguments}: {error}") from error

    return build_with_weights(build, name, pretrained)


def _check_timm_file(name: str, path: str, image_px: int | None) -> None:
    """Refuse a file that lacks tensors: timm itself loads whatever fits once the classifier is left out."""
    import timm

    with torch.device("meta"):
        sized: dict[str, Any] = {"img_size": image_px} if image_px else {}
        model = timm.create_model(name, num_classes=0, **sized)
    state = timm.models.load_state_dict(path)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    check_complete(model.state_dict(), convert(state, model) if convert else state, name, path)


def _timm_preprocess(model: nn.Module, image_px: int | None, crop: Crop | None) -> Preprocess:
    import timm.data

    data = timm.data.resolve_data_config({}, pretrained_cfg=_pretrained_config(model))
    height, width = data["input_size"][1:]
    own = crop or _TIMM_CROPS[data["crop_mode"]]
    return Preprocess(
        size_px=(image_px or height, image_px or width),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
        crop=own,
        crop_fraction=float(data["crop_pct"]) if own == "center" else 1.0,
    )


def _pretrained_config(model: nn.Module) -> dict[str, Any]:
    inner = model if hasattr(model, "pretrained_cfg") else getattr(model, "model", model)
    return getattr(inner, "pretrained_cfg", None) or {}


class OpenClip(nn.Module):
    """The visual tower of an open_clip model.

    `pretrained`: a tag of open_clip's list ("laion2b_s32b_b79k"), a local file, or null for random weights.
    `with_projection` false gives the tower's width instead of the joint image-text space. `output` "vector"
    is the tower's own pooling, (B, C); "tokens" gives (B, 1 + T, C), the class token first. `checkpointing`
    as in `Timm`.
    """

    def __init__(
        self,
        name: str = "ViT-B-32",
        pretrained: str | None = None,
        image_px: int | None = None,
        with_projection: bool = True,
        output: Literal["vector", "tokens"] = "vector",
        crop: Literal["stretch", "center", "pad"] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = _clip_tower(name, pretrained, image_px)
        if checkpointing:
            checkpoint_blocks(self.model, name)
        if output == "tokens" and not hasattr(self.model, "output_tokens"):
            raise UserError(f"backbone.output: 'tokens' received; '{name}' gives no tokens; accepted: vector")
        if output not in ("vector", "tokens"):
            raise UserError(f"backbone.output: {output!r} received; accepted: vector, tokens")
        self.kind: Kind = output
        self.prefix_tokens = 1 if output == "tokens" else 0
        self.stages: list[int] = []
        if output == "tokens":
            self.model.output_tokens = True
        self.out_dim = _tower_width(self.model, projected=with_projection and output == "vector")
        self.preprocess = _clip_preprocess(self.model, image_px, crop)

    def forward(self, x: Tensor) -> Tensor:
        """Return the vector (B, C) or tokens (B, 1 + T, C) of normalised pictures (B, 3, H, W)."""
        if self.kind == "vector":
            return self.model(x)
        pooled, tokens = self.model(x)
        return torch.cat([pooled[:, None], tokens], dim=1)


def _clip_tower(name: str, pretrained: str | None, image_px: int | None) -> Any:
    import open_clip

    if ":" not in name and name not in open_clip.list_models():
        near = [known for known in open_clip.list_models() if known.startswith(name[:5])][:3]
        raise UserError(
            f"backbone.name: open_clip has no '{name}'; accepted: open_clip.list_models(){_near(near)}"
        )
    if pretrained and is_file_name(pretrained):
        pretrained = checked_file(pretrained)
    elif pretrained and ":" not in name and pretrained not in open_clip.list_pretrained_tags_by_model(name):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(
            f"backbone.pretrained: '{pretrained}' received; accepted for '{name}': {tags}, a local file"
        )
    elif pretrained:
        _check_activation(name, pretrained)

    def build() -> nn.Module:
        with _expected_random_weights(not pretrained):
            tower = open_clip.create_model(
                name, pretrained=pretrained or None, force_image_size=image_px, pretrained_text=False
            ).visual
        if image_px and hasattr(getattr(tower, "trunk", None), "set_input_size"):
            tower.trunk.set_input_size((image_px, image_px))  # open_clip leaves a timm model at its own size
        return tower

    return build_with_weights(build, name, pretrained)


def _check_activation(name: str, tag: str) -> None:
    """Refuse weights trained with QuickGELU in a tower with GELU: open_clip only warns."""
    import open_clip

    trained = (open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False)
    built = (open_clip.get_model_config(name) or {}).get("quick_gelu", False)
    if trained != built:
        better = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
        raise UserError(
            f"backbone.name: '{name}' received, but '{tag}' has another activation; accepted: {better}"
        )


@contextmanager
def _expected_random_weights(expected: bool) -> Iterator[None]:
    """Keep open_clip's warning about random weights from who asked for them."""

    def other(record: logging.LogRecord) -> bool:
        return not (expected and "No pretrained weights loaded" in record.getMessage())

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _tower_width(tower: Any, *, projected: bool) -> int:
    """Return the width of the tower's vector, dropping its projection where it is not wanted."""
    trunk = getattr(tower, "trunk", None)
    if trunk is not None:  # a timm model inside open_clip, projected behind it or by its own classifier
        if not projected:
            tower.head = nn.Identity()
            trunk.reset_classifier(0)
        linear = [m for m in (trunk.get_classifier(), *tower.head.modules()) if isinstance(m, nn.Linear)]
        return linear[-1].out_features if linear else int(trunk.num_features)
    projection = getattr(tower, "proj", None)
    if projection is None:
        return int(tower.output_dim)
    if projected:
        return int(projection.shape[1])
    tower.proj = None
    return int(projection.shape[0])


def _clip_preprocess(tower: nn.Module, image_px: int | None, crop: Crop | None) -> Preprocess:
    from open_clip.transform import PreprocessCfg

    data = PreprocessCfg(**(getattr(tower, "preprocess_cfg", None) or {}))
    size = data.size if isinstance(data.size, tuple | list) else (data.size, data.size)
    return replace(
        Preprocess(),
        size_px=(image_px, image_px) if image_px else (int(size[0]), int(size[1])),
        mean=tuple(data.mean),
        std=tuple(data.std),
        interpolation="bilinear" if data.interpolation == "bilinear" else "bicubic",
        crop=crop or _CLIP_CROPS[data.resize_mode],
    )


def _near(names: list[str]) -> str:
    return f", for example {', '.join(names)}" if names else ""


assert set(get_args(Crop)) == set(_TIMM_CROPS.values()) == set(_CLIP_CROPS.values())
