"""Randomness is a function of seed and label, and leaves the caller's generators alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from fxprune.errors import TrainingError
from fxprune.lottery.seeding import derive_seed, seed_loader, seeded


def _draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002  # the global one is meant


def test_the_same_label_gives_the_same_numbers_and_another_one_others() -> None:
    with seeded(1, "epoch 0"):
        first = _draw()
    with seeded(1, "epoch 0"):
        again = _draw()
    with seeded(1, "epoch 1"):
        other = _draw()
    assert first == again
    assert not set(first) & set(other)


def test_the_callers_generators_go_on_as_if_nothing_had_been() -> None:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    expected = _draw()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
    with seeded(1, "epoch 0"):
        _draw()
    assert _draw() == expected


def test_seeds_differ_by_label_and_seed() -> None:
    assert len({derive_seed(seed, label) for seed in range(10) for label in ("a", "b")}) == 20


def test_generators_of_a_loader_and_its_sampler_are_seeded_by_epoch() -> None:
    data = TensorDataset(torch.arange(50))
    sampler = RandomSampler(data, generator=torch.Generator())
    loader = DataLoader(data, batch_size=5, sampler=sampler, generator=torch.Generator())

    def order(epoch: int) -> list[int]:
        seed_loader(loader, 3, epoch)
        return [int(value) for (batch,) in loader for value in batch]

    first, second, again = order(0), order(1), order(0)
    assert first == again
    assert first != second


def test_samplers_are_told_the_epoch() -> None:
    class Sampler:
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    class Loader:
        sampler = Sampler()

    seed_loader(Loader(), 0, 7)
    assert Loader.sampler.epoch == 7


def test_refuses_workers_that_outlive_the_epoch() -> None:
    loader = DataLoader(TensorDataset(torch.arange(4)), num_workers=1, persistent_workers=True)
    with pytest.raises(TrainingError, match="persistent_workers=False"):
        seed_loader(loader, 0, 0)
