"""Classifiers of timm and torchvision by their names, untrained or from a file; never downloaded.

What a network expects of its pictures is what the library's own weights of it were trained with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.data.constants import DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from oialr_training.errors import ConfigError, nearest
from oialr_training.sections import NetworkModel

UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")

# torchvision's networks of one size of pictures, by how their names begin: its argument.
SIZE_ARGUMENTS = {"vit_": "image_size", "maxvit_": "input_size"}
# Without these, they answer with several tensors while they train.
SINGLE_OUTPUT = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


@dataclass(frozen=True, kw_only=True)
class PictureFormat:
    """What a network expects of its pictures."""

    channels: int
    size: tuple[int, int]
    """Height and width in pixels."""
    fixed_size: bool
    """Does it have to be told of another size when it is built?"""
    mean: tuple[float, ...]
    """Of each channel, where 1 is the brightest."""
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    """Which part of a picture's shorter side it is measured on."""
    crop_mode: str
    classifiers: tuple[str, ...]
    """Names of the last layers, whose outputs are the classes; empty: the last one that fits."""


def picture_format(name: str) -> PictureFormat:
    """What the network `library/name` expects.

    Raises:
        ConfigError: when there is no such network; the nearest name is told.
    """
    library, _, short = name.partition("/")
    known = _names(library)
    if library == "timm":
        if not timm.is_model(short):
            raise _unknown(name, known)
        try:
            found = get_pretrained_cfg(short)
        except RuntimeError:  # the tag behind the dot
            raise _unknown(name, {**known, **_tags(short)}) from None
        return _of_timm(vars(found) if found else {})
    if short not in known:
        raise _unknown(name, known)
    weights = torchvision.models.get_model_weights(short).DEFAULT.transforms()
    size, resized = weights.crop_size[0], weights.resize_size[0]
    return PictureFormat(
        channels=3,
        size=(size, size),
        fixed_size=_size_argument(short) is not None,
        mean=tuple(weights.mean),
        std=tuple(weights.std),
        interpolation=weights.interpolation.value,
        crop_pct=size / resized,
        crop_mode="center",
        classifiers=(),
    )


def _of_timm(found: Mapping[str, Any]) -> PictureFormat:
    channels, height, width = found.get("input_size", (3, 224, 224))
    classifiers = found.get("classifier") or ()
    return PictureFormat(
        channels=channels,
        size=(height, width),
        fixed_size=found.get("fixed_input_size", False),
        mean=tuple(found.get("mean", IMAGENET_DEFAULT_MEAN)),
        std=tuple(found.get("std", IMAGENET_DEFAULT_STD)),
        interpolation=found.get("interpolation", "bicubic"),
        crop_pct=found.get("crop_pct", DEFAULT_CROP_PCT),
        crop_mode=found.get("crop_mode", "center"),
        classifiers=(classifiers,) if isinstance(classifiers, str) else tuple(classifiers),
    )


def _names(library: str) -> dict[str, None]:
    """Short names of all its classifiers."""
    if library == "timm":
        return dict.fromkeys(timm.list_models())
    return dict.fromkeys(torchvision.models.list_models(module=torchvision.models))


def _tags(short: str) -> dict[str, None]:
    """The names of one network of timm with the tags of its weights."""
    return dict.fromkeys(timm.list_models(f"{short.partition('.')[0]}.*", pretrained=True))


def _unknown(name: str, known: Mapping[str, None]) -> ConfigError:
    library, _, short = name.partition("/")
    hint = nearest(short, known).replace("did you mean `", f"did you mean `{library}/")
    return ConfigError(f"unknown network {name!r:.80} for `model.name`{hint}")


def build(
    config: NetworkModel, *, num_classes: int, channels: int, size: tuple[int, int]
) -> nn.Module:
    """(batch, channels, height, width) → (batch, num_classes) logits, for pictures of `size`.

    Raises:
        ConfigError: when it does not know one of `model.args`, or cannot be built with them; when
            `model.pretrained` is no checkpoint of it.
    """
    wanted = picture_format(config.name)
    library, _, short = config.name.partition("/")
    args: dict[str, Any] = {"num_classes": num_classes}
    if library == "timm":
        create, args = timm.create_model, args | {"in_chans": channels}
        if wanted.fixed_size and not config.args.get("dynamic_img_size"):
            args["img_size"] = size
    else:
        create, args = torchvision.models.get_model, args | SINGLE_OUTPUT.get(short, {})
        if channels != 3:
            raise ConfigError(
                f"torchvision's networks see 3 channels: `data.in_chans` is 3 for {config.name}, "
                f"got {channels}"
            )
        if argument := _size_argument(short):
            args[argument] = size if argument == "input_size" else _square(config.name, size)
    try:
        model: nn.Module = create(short, **{**args, **config.args})
    except Exception as error:  # whatever a constructor raises for the arguments given
        raise _not_built(config, create, args, error) from None
    if config.pretrained is not None:
        _load(model, Path(config.pretrained), wanted, num_classes)
    return model


def _size_argument(short: str) -> str | None:
    """How one of torchvision's is told the size of its pictures; None: it takes any."""
    return next((a for start, a in SIZE_ARGUMENTS.items() if short.startswith(start)), None)


def _square(name: str, size: tuple[int, int]) -> int:
    if size[0] != size[1]:
        raise ConfigError(f"{name} sees squares only: `data.img_size` is one number, got {size}")
    return size[0]


def _not_built(
    config: NetworkModel,
    create: Callable[..., nn.Module],
    args: Mapping[str, Any],
    error: Exception,
) -> ConfigError:
    unknown = UNKNOWN_ARGUMENT.search(str(error))
    if unknown and unknown[1] in config.args:
        with torch.device("meta"):
            network = type(create(config.name.partition("/")[2], **args))
        known = [name for name in signature(network).parameters if name not in ("self", "kwargs")]
        return ConfigError(
            f"unknown argument `model.args.{unknown[1]}` of {config.name}"
            f"{nearest(unknown[1], known)}"
        )
    given = ", ".join(f"{k}={v!r:.40}" for k, v in {**args, **config.args}.items())
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
    return ConfigError(f"`model`: {config.name} cannot be built with {given}: {reason}")


def _load(model: nn.Module, path: Path, wanted: PictureFormat, num_classes: int) -> None:
    """Take the weights of a checkpoint, but for those of a last layer of other classes."""
    weights = _read(path)
    expected = model.state_dict()
    layers = wanted.classifiers or _last_layer(model, num_classes)
    head = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    for name in head & weights.keys() & expected.keys():
        if weights[name].shape != expected[name].shape:
            weights[name] = expected[name]
    mistake = _first_mismatch(weights, expected)
    if mistake:
        raise ConfigError(f"`model.pretrained` is of another network: {mistake} ({path})")
    model.load_state_dict(weights)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        # timm's, which knows what training scripts put around the weights; runs nothing.
        found = load_state_dict(str(path), use_ema=True, weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"`model.pretrained`: there is no file {path}") from None
    except Exception as error:  # whatever is raised for what the file holds
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"`model.pretrained`: {path} is no checkpoint: {reason:.200}") from None
    if not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ConfigError(f"`model.pretrained`: {path} holds no weights by their names")
    return dict(found)


def _last_layer(model: nn.Module, num_classes: int) -> tuple[str, ...]:
    fitting = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == num_classes
    ]
    return tuple(fitting[-1:])


def _first_mismatch(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What differs first, by name; empty where nothing does."""
    for name in [*expected, *found]:
        if name not in found:
            return f"it has no `{name}`"
        if name not in expected:
            return f"its `{name}` is unknown"
        ours, theirs = tuple(expected[name].shape), tuple(found[name].shape)
        if ours != theirs:
            return f"its `{name}` is {theirs}, expected {ours}"
    return ""
