"""Images and their batches: in memory with the usual augmentation, or file by file for what does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from fxprune.errors import TrainingError


@dataclass(frozen=True, eq=False)
class Images:
    """Images with labels, in memory.

    Attributes:
        pixels: uint8 [N, C, H, W].
        labels: int64 [N].
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Return some of the images, in the order of the indices."""
        return Images(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of images, float32 [N, C, H, W] with zero mean and unit deviation a channel, and labels [N].

    The order and the augmentation are drawn from torch's global generator, anew in each iteration.

    Attributes:
        images: The images.
        size: Images a batch; the last may be shorter.
        train: Shuffle, crop and flip; otherwise the images come in order, as they are.
        padding: Pixels around an image out of which the crop is taken.
        flip: Mirror every other image.
        statistics: Images whose mean and deviation are used (those of the training); None: the same images.
    """

    images: Images
    size: int
    train: bool = True
    padding: int = 0
    flip: bool = False
    statistics: Images | None = None

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.images) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch."""
        mean, deviation = _find_statistics(self.statistics or self.images)
        count = len(self.images)
        order = torch.randperm(count) if self.train else torch.arange(count)
        for indices in torch.split(order, self.size):
            batch = self.images.take(indices)
            pixels = (batch.pixels.float() - mean) / deviation
            yield (self._augment(pixels) if self.train else pixels), batch.labels

    def _augment(self, pixels: Tensor) -> Tensor:
        """Crop and flip each image by itself, [N, C, H, W]."""
        N, _, H, W = pixels.shape
        if self.padding:
            padded = F.pad(pixels, (self.padding,) * 4)
            offsets = torch.randint(0, 2 * self.padding + 1, (N, 2)).tolist()
            crops = [padded[i, :, top : top + H, left : left + W] for i, (top, left) in enumerate(offsets)]
            pixels = torch.stack(crops)
        if self.flip:
            mirrored = torch.rand(N) < 0.5
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
        return pixels


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images decoded when they are needed, for a `torch.utils.data.DataLoader` with workers."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int], read: Callable[[Path], Tensor]) -> None:
        """Make a data set.

        Args:
            files: One file an image.
            labels: Their labels.
            read: Decodes and transforms one image, [C, H, W].
        """
        self._files = tuple(files)
        self._labels = tuple(labels)
        self._read = read

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image and label."""
        return self._read(self._files[index]), self._labels[index]


def split_images(images: Images, per_class: int, seed: int) -> tuple[Images, Images]:
    """Split off as many images of each class for training; the rest is the test set.

    Args:
        images: All images.
        per_class: Training images of each class.
        seed: Seed of the draw.

    Returns:
        Training and test images; no image of one, by its pixels, is in the other.

    Raises:
        TrainingError: A class has not enough images, or an image is there twice and would be in both.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    chosen = []
    for label in sorted(set(images.labels.tolist())):
        members = order[images.labels[order] == label]
        if len(members) <= per_class:
            raise TrainingError(f"Class {label} has {len(members)} images; more than {per_class} are needed.")
        chosen.append(members[:per_class])
    train = torch.zeros(len(images), dtype=torch.bool)
    train[torch.cat(chosen)] = True
    parts = images.take(train.nonzero()[:, 0]), images.take((~train).nonzero()[:, 0])
    if shared := find_shared(*parts):
        raise TrainingError(f"{shared} images of the test set are in the training set too, pixel by pixel.")
    return parts


def find_shared(train: Images, test: Images) -> int:
    """Count the test images that are in the training set too, by a hash of their pixels."""
    known = {_hash(pixels) for pixels in train.pixels}
    return sum(_hash(pixels) in known for pixels in test.pixels)


def _hash(pixels: Tensor) -> bytes:
    return hashlib.sha256(pixels.numpy().tobytes()).digest()


def _find_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel, [1, C, 1, 1]."""
    C = images.pixels.shape[1]
    counts = torch.stack([torch.bincount(images.pixels[:, c].reshape(-1), minlength=256) for c in range(C)]).double()
    values, total = torch.arange(256, dtype=torch.float64), counts.sum(1)
    mean = (counts @ values) / total
    deviation = ((counts @ values**2) / total - mean**2).clamp(min=1e-12).sqrt()
    return mean.float().reshape(1, C, 1, 1), deviation.float().reshape(1, C, 1, 1)
