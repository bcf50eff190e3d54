"""Pictures of classes as any network sees them: found, split, resized, augmented, standardised."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from timm.data.transforms_factory import create_transform

from oialr_training.data import Cut, LoadSettings, Splits, held_out_indices, test_indices
from oialr_training.data.cifar10 import open_cifar
from oialr_training.data.picture_batches import PictureBatches, Transform, mixing, num_processes
from oialr_training.data.pictures import PART_NAMES, FilePictures, as_trained, find
from oialr_training.errors import ConfigError, DataError, DataSettingsError
from oialr_training.models.by_name import PictureFormat
from oialr_training.sections import PicturesData

log = logging.getLogger("oialr_training")
MODES = {1: "L", 3: "RGB"}


def load(
    config: PicturesData, wanted: PictureFormat, data_dir: Path | None, *, validate_on_test: bool
) -> Cut:
    """Find and split the pictures for a network; the function returned cuts them into batches.

    Raises:
        DataError: when they are missing, or their parts do not fit together.
        ConfigError: when the augmentation is none that timm knows.
    """
    train, measured, test = _parts(config, data_dir, validate_on_test)
    num_classes = _num_classes(config, len(train.classes))
    chosen, held_out = held_out_indices(
        len(train.targets), config, whole=validate_on_test or measured is not None
    )
    validation = train.part(held_out) if measured is None else measured
    if test is None:
        log.warning("no test pictures: the test metrics are those of the validation pictures")
    else:
        test = test.part(test_indices(len(test.targets), config))
    if validate_on_test:
        validation = test
    train, test = train.part(chosen), test or validation
    in_training, in_validation = (transform(config, wanted, training=t) for t in (True, False))
    mix = mixing(
        num_classes=num_classes,
        off_epoch=config.mixup_off_epoch,
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        cutmix_minmax=config.cutmix_minmax,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        mode=config.mixup_mode,
    )

    def batches(settings: LoadSettings) -> Splits:
        shared: dict[str, Any] = {
            "settings": settings,
            "mode": MODES[channels(config, wanted)],
            "num_loader_processes": num_processes(config.num_loader_processes, settings),
        }
        return Splits(
            train=PictureBatches(
                train, in_training, shuffle=True, mix=mix, lone_last=False, **shared
            ),
            validation=PictureBatches(validation, in_validation, **shared),
            test=PictureBatches(test, in_validation, **shared),
            sizes={"classes": num_classes},
        )

    return batches


def _parts(config: PicturesData, data_dir: Path | None, validate_on_test: bool) -> Any:
    """Training, validation and test pictures; None where there is no such part."""
    if data_dir is None:
        raise DataError("no data folder given: name it by --data-dir or OIALR_DATA")
    root = data_dir / config.folder
    if config.dataset != "images":
        train, validation = open_cifar(root, config.dataset, "train"), None
        test = open_cifar(root, config.dataset, "test")
    else:
        found = {part: find([root], part) for part in PART_NAMES}
        train, validation, test = (found[part] for part in ("train", "val", "test"))
    if train is None:
        names = ", ".join(f"{name}.tar or {name}/" for name in PART_NAMES["train"])
        raise DataError(
            f"no training images: looked for {names} in {root}; name the folder that holds train/ "
            "by --data-dir, OIALR_DATA or `data.folder`"
        )
    _refuse_empty_classes(train)
    validation, test = (as_trained(p, train, root) if p else None for p in (validation, test))
    if validate_on_test and test is None:
        if validation is None:
            raise DataSettingsError(
                f"`validation: test` needs test pictures: there is no test/ and no val/ in {root}"
            )
        test = validation
    return train, validation, test


def _refuse_empty_classes(train: Any) -> None:
    counts = torch.bincount(train.targets, minlength=len(train.classes)).tolist()
    place = train.root if isinstance(train, FilePictures) else "CIFAR"
    if len(counts) < 2:
        raise DataError(f"two or more class folders are expected in {place}, got {len(counts)}")
    if empty := [name for name, n in zip(train.classes, counts, strict=True) if n == 0]:
        raise DataError(f"no pictures in the class folder {empty[0]} of {place}")


def _num_classes(config: PicturesData, found: int) -> int:
    if config.num_classes is not None and config.num_classes < found:
        raise DataSettingsError(
            f"`data.num_classes` is at least the {found} classes of the training pictures, "
            f"got {config.num_classes}"
        )
    return config.num_classes or found


def channels(config: PicturesData, wanted: PictureFormat) -> int:
    """Of the pictures that the network sees."""
    return config.in_chans or wanted.channels


def transform(config: PicturesData, wanted: PictureFormat, *, training: bool) -> Transform:
    """A picture of any size → (channels, height, width), standardised.

    Raises:
        ConfigError: when timm refuses the settings.
    """
    size = config.img_size or wanted.size
    count = channels(config, wanted)
    shared: dict[str, Any] = {
        "mean": _for_channels(config.mean or wanted.mean, count, "mean"),
        "std": _for_channels(config.std or wanted.std, count, "std"),
    }
    try:
        if not training:
            return create_transform(  # type: ignore[no-any-return]
                **shared,
                input_size=config.val_img_size or size,
                is_training=False,
                interpolation=config.interpolation or wanted.interpolation,
                crop_pct=config.crop_pct or wanted.crop_pct,
                crop_mode=config.crop_mode or wanted.crop_mode,
            )
        return create_transform(  # type: ignore[no-any-return]
            **shared,
            input_size=size,
            is_training=True,
            no_aug=config.no_aug,
            train_crop_mode=config.train_crop_mode,
            scale=config.scale,
            ratio=config.ratio,
            hflip=config.hflip,
            vflip=config.vflip,
            color_jitter=config.color_jitter,
            color_jitter_prob=config.color_jitter_prob,
            grayscale_prob=config.grayscale_prob,
            gaussian_blur_prob=config.gaussian_blur_prob,
            auto_augment=config.aa,
            interpolation=config.train_interpolation,
            re_prob=config.reprob,
            re_mode=config.remode,
            re_count=config.recount,
        )
    except Exception as error:  # whatever timm raises for a policy that it does not know
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
        raise ConfigError(
            f"timm refuses the settings of `data`, `data.aa` = {config.aa!r:.60}: {reason}"
        ) from None


def _for_channels(values: tuple[float, ...], count: int, name: str) -> tuple[float, ...]:
    """A value for each channel: one for all of them, or their mean where the picture is grey."""
    if len(values) == count:
        return values
    if len(values) == 1 or count == 1:
        return (sum(values) / len(values),) * count
    raise ConfigError(f"`data.{name}` has a value for each of {count} channels, got {values}")
