"""Randomness as a function of a seed and a label, so that no generator's state has to be saved.

Every epoch begins with all generators seeded anew from (seed, epoch). A training that is resumed at an epoch goes on as
if it had never stopped, and all tickets of one seed see the batches in one order.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fxprune.errors import TrainingError


def derive_seed(seed: int, label: str) -> int:
    """Return a seed in [0, 2**32) of its own for each label."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{label}".encode()).digest()[:4], "little")


@contextmanager
def seeded(seed: int, label: str) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python; give them back as they were.

    Args:
        seed: The seed of the lottery.
        label: What is done, e.g. "epoch 3".
    """
    number = derive_seed(seed, label)
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002  # users' data sets draw from it
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002
        random.seed(number)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def seed_loader(loader: object, seed: int, epoch: int) -> None:
    """Seed the generators that a data loader and its samplers own, and tell the samplers the epoch.

    Args:
        loader: A `DataLoader`, or any iterable.
        seed: The seed of the lottery.
        epoch: The epoch that begins.

    Raises:
        TrainingError: The loader keeps its workers from epoch to epoch: their generators cannot be reached.
    """
    if getattr(loader, "persistent_workers", False):
        raise TrainingError(
            "The loader has persistent_workers=True: what its workers draw would depend on the epochs before, and a "
            "resumed training would differ. Make it with persistent_workers=False."
        )
    for part in _find_parts(loader):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(derive_seed(seed, f"loader, epoch {epoch}"))
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def _find_parts(loader: object) -> Iterable[object]:
    """Yield the loader and the samplers inside it, each once."""
    seen: list[object] = []
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        if part is None or any(part is other for other in seen):
            continue
        seen.append(part)
        waiting += [getattr(part, name, None) for name in ("sampler", "batch_sampler")]
    return seen
