"""CIFAR-10 and CIFAR-100 from their binary version, never from the pickled one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fxprune.errors import TrainingError
from fxprune.lottery.data.batches import Images

_PIXELS = 3 * 32 * 32
"""Bytes of an image: red, green and blue planes of 32 x 32."""

_FILES = {
    10: (tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",)),
    100: (("train.bin",), ("test.bin",)),
}

_LABEL_BYTES = {10: 1, 100: 2}
"""CIFAR-100 has the coarse label before the fine one."""


def read_cifar(folder: Path, classes: int) -> tuple[Images, Images]:
    """Read training and test images.

    Args:
        folder: Holds the unpacked binary version, e.g. `cifar-10-batches-bin`.
        classes: 10 or 100.

    Raises:
        TrainingError: A file is missing or has another size.
    """
    if classes not in _FILES:
        raise TrainingError(f"classes is {classes}; there are CIFAR-10 and CIFAR-100.")
    train, test = (_read_files([folder / name for name in names], classes) for names in _FILES[classes])
    return train, test


def _read_files(files: list[Path], classes: int) -> Images:
    head = _LABEL_BYTES[classes]
    records = []
    for file in files:
        if not file.is_file():
            raise TrainingError(f"{file} is missing; unpack the binary version of CIFAR-{classes} there.")
        data = np.fromfile(file, dtype=np.uint8)
        if data.size == 0 or data.size % (head + _PIXELS):
            raise TrainingError(f"{file} has {data.size} bytes, no multiple of {head + _PIXELS}: it is not whole.")
        records.append(data.reshape(-1, head + _PIXELS))
    joined = torch.from_numpy(np.concatenate(records))
    labels = joined[:, head - 1].long()
    if int(labels.max()) >= classes:
        raise TrainingError(f"{files[0]} has the label {int(labels.max())}; CIFAR-{classes} ends at {classes - 1}.")
    return Images(joined[:, head:].reshape(-1, 3, 32, 32).contiguous(), labels)
