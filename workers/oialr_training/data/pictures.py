"""Pictures of classes: found in folders, tar files or torchvision's CIFAR, and read one by one.

Only their names and classes are in memory; a picture is read when it is its turn.
"""

from __future__ import annotations

import os
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data.dataset_factory import create_dataset
from timm.utils.misc import natural_key
from torch import Tensor

from oialr_training.errors import DataError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation"),
    "test": ("test",),
}


P = TypeVar("P", "FilePictures", "DecodedPictures")


class Pictures(Protocol):
    """Some pictures and their classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        ...

    @property
    def targets(self) -> Tensor:
        """(N,) numbers of their classes."""
        ...

    def image(self, index: int, mode: str) -> Image.Image:
        """One of them, in a mode of Pillow's.

        Raises:
            DataError: when it is damaged.
        """
        ...

    def part(self, indices: Tensor) -> Pictures:
        """Those that (M,) indices name."""
        ...


@dataclass(frozen=True)
class FilePictures:
    """Pictures in files of their own, or one behind the other in a tar file."""

    root: Path
    """A folder, or the tar file."""
    names: np.ndarray[Any, Any]
    """(N,) bytes: the paths below the root; no Python objects, which loader processes copy."""
    places: Tensor | None
    """(N, 2) first byte and number of bytes in the tar file; None: in files."""
    targets: Tensor
    classes: tuple[str, ...]

    def image(self, index: int, mode: str) -> Image.Image:
        """See `Pictures.image`."""
        try:
            return _opened(self._content(index)).convert(mode)
        # Pillow's decoders raise whatever they stumble over.
        except Exception as error:
            raise DataError(f"damaged image {self._path(index)}: {_reason(error)}") from None

    def part(self, indices: Tensor) -> FilePictures:
        """See `Pictures.part`."""
        places = None if self.places is None else self.places[indices]
        names = self.names[indices.numpy()]
        return replace(self, names=names, places=places, targets=self.targets[indices])

    def _path(self, index: int) -> Path:
        return self.root / os.fsdecode(bytes(self.names[index]))

    def _content(self, index: int) -> bytes:
        if self.places is None:
            return self._path(index).read_bytes()
        start, size = self.places[index].tolist()
        with self.root.open("rb") as file:
            file.seek(start)
            return file.read(size)


@dataclass(frozen=True)
class DecodedPictures:
    """Pictures of one size in memory."""

    pixels: Tensor
    """(N, height, width, 3) bytes."""
    targets: Tensor
    classes: tuple[str, ...]

    def image(self, index: int, mode: str) -> Image.Image:
        """See `Pictures.image`."""
        return Image.fromarray(self.pixels[index].numpy()).convert(mode)

    def part(self, indices: Tensor) -> DecodedPictures:
        """See `Pictures.part`."""
        return replace(self, pixels=self.pixels[indices], targets=self.targets[indices])


def _opened(content: bytes) -> Image.Image:
    """The picture, decoded; of more than 8 bits a channel the upper ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which matter to nobody here
        image = Image.open(BytesIO(content))
        image.load()
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels of floating point have no brightest one")
    if "transparency" in image.info:
        return image.convert("RGBA")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture"
    shown = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown.partition("\n")[0] or type(error).__name__


def find(roots: Sequence[Path], part: str, names: Sequence[str] = ()) -> FilePictures | None:
    """The pictures of a part in the first of some folders that has them; None: no folder does.

    Raises:
        DataError: when they are there but are no pictures of classes, or are packed.
    """
    for root in roots:
        for name in names or PART_NAMES[part]:
            if (root / f"{name}.tar").is_file():
                return in_tar(root / f"{name}.tar")
            if (root / name).is_dir():
                return in_folder(root / name)
        for packed in (root / f"{part}.tar.{ending}" for ending in ("xz", "gz", "bz2", "zst")):
            if packed.is_file():
                raise DataError(
                    f"{packed} is packed: unpack it once, e.g. `xz -dc {packed} > DIR/{part}.tar`, "
                    "and name DIR by --data-dir or OIALR_DATA"
                )
    return None


def in_folder(root: Path) -> FilePictures:
    """The pictures below `root/CLASS/`, however deep; a hidden file or folder is none of them.

    Raises:
        DataError: when there is none.
    """
    try:
        folders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    except OSError as error:
        raise DataError(f"cannot read the images in {root}: {error.strerror}") from None
    classes = [name for name in folders if not _hidden(name)]
    return _listed(root, classes, [(path, name) for name in classes for path in _below(root, name)])


def _below(root: Path, folder: str) -> Iterator[str]:
    """Paths, relative to the root, of the pictures in one of its folders."""
    for place, inside, files in os.walk(root / folder, followlinks=True):
        inside[:] = [name for name in inside if not _hidden(name)]
        below = os.path.relpath(place, root)
        yield from (f"{below}/{name}" for name in files if _is_picture(name))


def in_tar(path: Path) -> FilePictures:
    """The pictures of a tar file; each one's class is the folder that it lies in.

    Raises:
        DataError: when there is none, or it is no tar file.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = [m for m in tar if m.isreg() and _is_picture(m.name) and _class_of(m.name)]
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"cannot read the images in {path}: {error}") from None
    found = [(m.name, _class_of(m.name)) for m in members]
    pictures = _listed(path, sorted({name for _, name in found}), found)
    places = {os.fsencode(m.name): (m.offset_data, m.size) for m in members}
    in_order = [places[bytes(name)] for name in pictures.names]
    return replace(pictures, places=torch.tensor(in_order))


def _listed(root: Path, classes: Sequence[str], found: Sequence[tuple[str, str]]) -> FilePictures:
    """Of paths and class names; classes and pictures are in the order in which people count."""
    if not found:
        raise DataError(
            f"no class folders with pictures in {root}: {', '.join(EXTENSIONS)} are read"
        )
    classes = sorted(classes, key=natural_key)
    number = {name: n for n, name in enumerate(classes)}
    found = sorted(found, key=lambda pair: natural_key(pair[0]))  # type: ignore[no-untyped-call]
    return FilePictures(
        root=root,
        names=np.array([os.fsencode(path) for path, _ in found]),
        places=None,
        targets=torch.tensor([number[name] for _, name in found]),
        classes=tuple(classes),
    )


def _class_of(path: str) -> str:
    """The name of the folder that a file in a tar file lies in; empty where in none."""
    return PurePosixPath(path).parent.name


def _is_picture(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS) and not _hidden(os.path.basename(path))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def of_torchvision(folder: Path, dataset: str, part: str) -> DecodedPictures:
    """CIFAR in the folder that torchvision unpacks, in memory: 150 MB to train with.

    Raises:
        DataError: when it is damaged.
    """
    try:
        images = create_dataset(f"torch/{dataset}", root=str(folder.parent), split=part)
    except RuntimeError as error:
        raise DataError(f"damaged data in {folder}: {error}") from None
    return DecodedPictures(
        torch.from_numpy(images.data), torch.tensor(images.targets), tuple(images.classes)
    )


def as_trained(part: P, training: Pictures, place: Path | None) -> P:
    """A part of the data with its classes numbered as the training pictures' are.

    Raises:
        DataError: when it has a class that they do not have.
    """
    number = {name: n for n, name in enumerate(training.classes)}
    if odd := sorted(set(part.classes) - set(number)):
        raise DataError(
            f"the classes of training and other images differ in {place}: "
            f"nothing to train for {', '.join(odd)}"
        )
    numbers = torch.tensor([number[name] for name in part.classes])
    return replace(part, targets=numbers[part.targets], classes=training.classes)
