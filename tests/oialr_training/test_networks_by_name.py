"""Networks of timm and torchvision by their names: found, built, loaded, and mistakes told."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from oialr_training.__main__ import Worker
from oialr_training.errors import ConfigError
from oialr_training.models.by_name import build, picture_format
from oialr_training.protocol import Epoch, Event, Failed, Prepare
from oialr_training.sections import NetworkModel
from oialr_training.tasks import validate_training

from .test_pictures import add
from .trained import told, train_here

TINY = {"name": "timm/vit_tiny_patch16_224", "args": {"depth": 1, "embed_dim": 24}}
PICTURES = {
    "task": "image_classification",
    "epochs": 3,
    "batch_size": 5,
    "device": "cpu",
    "num_threads": 1,
    "model": TINY,
    "data": {"img_size": 32, "mixup": 0.4, "cutmix": 1.0, "aa": "rand-m5", "reprob": 0.3},
    "optimizer": {"lr": 1e-3},
    "scheduler": {"min_lr": 1e-4, "warmup_lr": 1e-4, "warmup_epochs": 1},
    "criterion": {"label_smoothing": 0.1},
    "oialr": {"delay_steps": 3, "update_frequency": 2, "cutoff_fraction": 0.3},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ever downloaded."""

    connect = socket.socket.connect

    def refused(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refused)


def built(
    name: str, *, num_classes: int = 3, channels: int = 3, size: int = 32, **model: Any
) -> nn.Module:
    config = NetworkModel(name=name, **model)
    return build(config, num_classes=num_classes, channels=channels, size=(size, size))


def tiny(num_classes: int = 3, **model: Any) -> nn.Module:
    return built(num_classes=num_classes, **TINY, **model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "channels", "size", "args"),
    [
        ("timm/vit_tiny_patch16_224", 1, 48, {"depth": 1}),
        ("timm/vit_tiny_patch16_224", 3, 48, {"depth": 1, "dynamic_img_size": True}),
        ("timm/mobilenetv3_small_050", 1, 40, {"drop_rate": 0.3}),
        ("timm/levit_128s", 3, 64, {}),  # two heads
        ("timm/test_vit.r160_in1k", 3, 96, {}),
        ("torchvision/squeezenet1_1", 3, 40, {"dropout": 0.1}),  # its last layer is a convolution
        pytest.param("torchvision/vit_b_32", 3, 64, {"dropout": 0.1}, marks=pytest.mark.slow),
        pytest.param("torchvision/maxvit_t", 3, 224, {}, marks=pytest.mark.slow),
        pytest.param("torchvision/inception_v3", 3, 96, {}, marks=pytest.mark.slow),
        pytest.param("timm/deit_tiny_distilled_patch16_224", 3, 32, {}, marks=pytest.mark.slow),
        pytest.param("timm/swin_tiny_patch4_window7_224", 3, 96, {}, marks=pytest.mark.slow),
        pytest.param("timm/vgg11", 1, 64, {}, marks=pytest.mark.slow),
    ],
)
def test_a_network_of_either_library_classifies(
    name: str, channels: int, size: int, args: dict[str, Any]
) -> None:
    network = built(name, channels=channels, size=size, args=args)
    assert network.train()(torch.rand(2, channels, size, size)).shape == (2, 3)


def test_a_network_whose_size_is_dynamic_keeps_the_positions_of_its_own_weights() -> None:
    fixed, dynamic = (
        built(TINY["name"], args={"depth": 1, **more}).state_dict()["pos_embed"].shape[1]
        for more in ({}, {"dynamic_img_size": True})
    )
    assert (fixed, dynamic) == (2 * 2 + 1, 14 * 14 + 1)


def test_the_data_are_read_anew_for_another_network() -> None:
    first, same, other = (
        validate_training(PICTURES | {"model": {"name": f"timm/{name}"}}, "test").data_settings
        for name in ("resnet18", "resnet18", "resnet34")
    )
    assert first == same != other


def test_pictures_are_as_the_network_s_own_weights_have_them() -> None:
    vit, tagged = (
        picture_format(f"timm/{name}")
        for name in ("vit_small_patch16_224", "vit_base_patch16_clip_224.openai")
    )
    assert (vit.size, vit.mean, vit.crop_pct, vit.interpolation) == (
        (224, 224), (0.5, 0.5, 0.5), 0.9, "bicubic",
    )  # fmt: skip
    assert tagged.mean != vit.mean
    inception = picture_format("torchvision/inception_v3")
    assert (inception.size, inception.interpolation) == ((299, 299), "bilinear")
    assert inception.crop_pct == 299 / 342


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            {"name": "timm/vit_tny_patch16_224"},
            r"'timm/vit_tny_patch16_224' .*`timm/vit_tiny_patch",
        ),
        ({"name": "timm/resnet18.a3_in1"}, r"did you mean `timm/resnet18.a3_in1k`"),
        ({"name": "torchvision/resnet19"}, r"did you mean `torchvision/resnet18`"),
        ({"name": "torchvision/fasterrcnn_resnet50_fpn"}, r"unknown network 'torchvision/fast"),
        (
            TINY | {"args": {"drop_pth_rate": 0.1}},
            r"unknown argument `model.args.drop_pth_rate` of .* did you mean `drop_path_rate`",
        ),
        (
            {"name": "torchvision/resnet18", "args": {"widht_per_group": 8}},
            r"unknown argument `model.args.widht_per_group` .* `width_per_group`",
        ),
        (TINY | {"args": {"num_heads": 5}}, r"cannot be built with .*num_heads=5: AssertionError"),
    ],
)
def test_a_mistake_in_it_is_one_line(model: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        built(**model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"name": "resnet18"}, "`model.name` .*pattern"),
        ({"name": "timm/hf-hub:someone/else"}, "`model.name` .*pattern"),
        ({"name": "timm/../x"}, "`model.name` .*pattern"),
        (TINY | {"args": {"pretrained": True}}, "`model.args.pretrained` is `model.pretrained`"),
        (TINY | {"args": {"img_size": 32}}, "`model.args.img_size` is `data.img_size`"),
        (TINY | {"args": {"features_only": True}}, "leaves no classifier"),
    ],
)
def test_what_is_no_name_is_told_without_torch(model: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        validate_training(PICTURES | {"model": model}, "file.yaml")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"smoothing": 0.1}, "label smoothing is `criterion.label_smoothing`"),
        ({"img_size": "big"}, r"number of pixels is expected.*got 'big' in `data.img_size`"),
        ({"img_size": [32]}, "number of pixels is expected"),
        ({"reprop": 0.1}, "unknown key `data.reprop`; did you mean `reprob`"),
    ],
)
def test_a_mistake_in_the_data_s_settings(data: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        validate_training(PICTURES | {"data": data}, "file.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "torch", "training script's"])
def test_a_network_begins_with_a_checkpoint(tmp_path: Path, form: str) -> None:
    weights = tiny().state_dict()
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt")
    if form == "safetensors":
        save_file(weights, path)
    elif form == "torch":
        torch.save(weights, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
    found = tiny(pretrained=str(path)).state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    # Other classes: all but the head.
    found = tiny(num_classes=7, pretrained=str(path)).state_dict()
    assert found["head.weight"].shape[0] == 7
    assert all(torch.equal(found[n], weights[n]) for n in weights if not n.startswith("head."))


def test_the_head_of_torchvision_s_is_the_last_layer_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(built("torchvision/squeezenet1_1", num_classes=5).state_dict(), path)
    network = built("torchvision/squeezenet1_1", pretrained=str(path))
    assert network.state_dict()["classifier.1.weight"].shape[0] == 3


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return os.getpid, ()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no file"),
        (b"no checkpoint", "is no checkpoint"),
        ({"a": Evil()}, "is no checkpoint"),
        ({"epoch": 3}, "holds no weights"),
        ({"head.bias": torch.zeros(3)}, "is of another network: it has no `cls_token`"),
    ],
)
def test_what_is_no_checkpoint_of_it_is_one_line(tmp_path: Path, content: Any, told: str) -> None:
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=told) as caught:
        tiny(pretrained=str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_checkpoint_of_another_width_is_told_by_the_first_difference(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"its `cls_token` is \(1, 1, 24\), expected \(1, 1, 48"):
        built(TINY["name"], args={"depth": 1, "embed_dim": 48}, pretrained=str(tmp_path / "a.pt"))


def test_a_resumed_training_comes_to_the_same_digits(tmp_path: Path) -> None:
    add(tmp_path, "train", "class0", "class1", "class2")
    whole, _ = train_here(PICTURES, tmp_path)
    train_here(PICTURES, tmp_path, tmp_path / "state", lambda e: isinstance(e[-1], Epoch))
    processes = PICTURES | {"data": {**PICTURES["data"], "num_loader_processes": 1}}
    rest, trained = train_here(processes, tmp_path, tmp_path / "state")
    assert told(rest) == told(whole)
    assert trained is not None
    assert trained.completed.trainable_percent < 100


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "timm/resnet_18"}, "unknown network 'timm/resnet_18'"),
        (TINY | {"args": {"nonsense": 1}}, "unknown argument `model.args.nonsense`"),
    ],
)
def test_a_mistake_is_told_when_the_worker_prepares(
    tmp_path: Path, model: dict[str, Any], words: str
) -> None:
    add(tmp_path, "train", "class0", "class1")
    said = list[Event]()

    class Here(Worker):
        def report(self, event: Event) -> None:
            said.append(event)

    with pytest.raises(SystemExit):
        Here(0).prepare(Prepare(config=PICTURES | {"model": model}, data_dir=str(tmp_path)))
    (failed,) = said
    assert isinstance(failed, Failed)
    assert failed.cause == "configuration"
    assert words in failed.reason
    assert "\n" not in failed.reason
