"""Tiny-ImageNet and ImageNet from their folders; Pillow decodes the images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import TrainingError, UnsupportedError
from fxprune.lottery.data.batches import ImageFiles, Images

if TYPE_CHECKING:
    from PIL.Image import Image

_SIZE = 224
_SHORT_SIDE = 256
"""Pixels of the crop, and of the short side that a test image is brought to before it."""

# Mean and deviation of ImageNet's training images by channel, as torchvision and the published code have them.
_MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
_DEVIATION = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def read_tiny_imagenet(folder: Path) -> tuple[Images, Images]:
    """Read training and validation images of Tiny-ImageNet, 64 x 64, into memory.

    Args:
        folder: Holds `train/<class>/images/*.JPEG`, `val/images/*.JPEG` and `val/val_annotations.txt`.

    Raises:
        TrainingError: Something is missing.
        UnsupportedError: Pillow is not installed.
    """
    classes = _list_classes(folder / "train")
    train = [(file, label) for name, label in classes.items() for file in _list_images(folder / "train" / name)]
    notes = folder / "val" / "val_annotations.txt"
    if not notes.is_file():
        raise TrainingError(f"{notes} is missing; it says which class a validation image has.")
    rows = [line.split("\t") for line in notes.read_text().splitlines() if line]
    test = [(folder / "val" / "images" / row[0], classes[row[1]]) for row in rows]
    return _read_all(train), _read_all(test)


def read_imagenet(folder: Path) -> tuple[ImageFiles, ImageFiles]:
    """List training and validation images of ImageNet; they are decoded when they are needed.

    Training images are cropped at random to 224 x 224 (area 8 to 100 %, aspect 3/4 to 4/3) and flipped; validation
    images are cropped from the middle.

    Args:
        folder: Holds `train/<class>/` and `val/<class>/`.

    Raises:
        TrainingError: Something is missing, or the two have other classes.
    """
    classes = _list_classes(folder / "train")
    if _list_classes(folder / "val") != classes:
        raise TrainingError(f"{folder}/val has other classes than train; sort its images into folders by class.")
    parts = []
    for part, read in (("train", _read_random_crop), ("val", _read_middle)):
        files = [(file, label) for name, label in classes.items() for file in _list_images(folder / part / name)]
        parts.append(ImageFiles([file for file, _ in files], [label for _, label in files], read))
    return parts[0], parts[1]


def _list_classes(folder: Path) -> dict[str, int]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not names:
        raise TrainingError(f"{folder} has no folder of a class; unpack the data set there.")
    return {name: label for label, name in enumerate(names)}


def _list_images(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    if not found:
        raise TrainingError(f"{folder} has no image.")
    return found


def _read_all(files: list[tuple[Path, int]]) -> Images:
    pixels = torch.stack([_to_tensor(_open(file)) for file, _ in files])
    return Images(pixels, torch.tensor([label for _, label in files]))


def _open(file: Path) -> Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise UnsupportedError("Reading images needs Pillow: pip install pillow.") from error
    with Image.open(file) as image:
        return image.convert("RGB")


def _to_tensor(image: Image) -> Tensor:
    """Return uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _normalise(image: Image) -> Tensor:
    return (_to_tensor(image).float() / 255.0 - _MEAN) / _DEVIATION


def _read_middle(file: Path) -> Tensor:
    image = _open(file)
    scale = _SHORT_SIDE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    left, top = (image.width - _SIZE) // 2, (image.height - _SIZE) // 2
    return _normalise(image.crop((left, top, left + _SIZE, top + _SIZE)))


def _read_random_crop(file: Path) -> Tensor:
    image = _open(file)
    area, aspect, x, y, mirrored = torch.rand(5).tolist()
    cells = (0.08 + 0.92 * area) * image.width * image.height
    ratio = math.exp((2 * aspect - 1) * math.log(4 / 3))
    width = min(image.width, max(1, round(math.sqrt(cells * ratio))))
    height = min(image.height, max(1, round(math.sqrt(cells / ratio))))
    left, top = int(x * (image.width - width + 1)), int(y * (image.height - height + 1))
    pixels = _normalise(image.resize((_SIZE, _SIZE), box=(left, top, left + width, top + height)))
    return pixels.flip(2) if mirrored < 0.5 else pixels
