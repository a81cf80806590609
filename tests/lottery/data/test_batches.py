"""Batches, augmentation and splits."""

from __future__ import annotations

import pytest
import torch

from fxprune.errors import TrainingError
from fxprune.lottery.data import Batches, Images, find_shared, split_images


def _make_images(count: int = 20) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 2, 5, 6), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 4)


def test_batches_have_zero_mean_and_unit_deviation_by_channel() -> None:
    images = _make_images()
    joined = torch.cat([pixels for pixels, _ in Batches(images, 7)])
    assert joined.mean((0, 2, 3)).abs().max() < 1e-5
    assert (joined.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_tests_come_in_order_with_the_statistics_of_the_training() -> None:
    train, test = _make_images(), Images(_make_images().pixels // 2, torch.arange(20) % 4)
    batches = list(Batches(test, 8, train=False, statistics=train))
    assert torch.cat([labels for _, labels in batches]).tolist() == test.labels.tolist()
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    assert torch.cat([pixels for pixels, _ in batches]).mean() < -0.5


def test_the_order_is_that_of_the_global_generator() -> None:
    batches = Batches(_make_images(), 20)
    orders = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        orders.append(next(iter(batches))[1].tolist())
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_crop_moves_the_image_and_a_flip_mirrors_it() -> None:
    image = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    image[0, 0, 1, 0] = 255
    images = Images(image, torch.zeros(1, dtype=torch.long))
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        ((pixels, _),) = Batches(images, 1, padding=1, flip=True)
        seen.add(tuple((pixels > 1).nonzero()[:, 2:].flatten().tolist()))
    assert {(1, 0), (1, 2), (0, 0), (2, 2), (1, 1), ()} <= seen


def test_a_split_is_disjoint_and_has_so_many_of_each_class() -> None:
    images = _make_images()
    train, test = split_images(images, 2, seed=1)
    assert train.labels.bincount().tolist() == [2, 2, 2, 2]
    assert (len(train), len(test), find_shared(train, test)) == (8, 12, 0)
    assert not torch.equal(train.pixels, split_images(images, 2, seed=2)[0].pixels)


def test_refuses_a_split_of_images_that_are_there_twice() -> None:
    images = _make_images()
    twice = Images(images.pixels[:1].repeat(20, 1, 1, 1), images.labels)
    with pytest.raises(TrainingError, match="12 images of the test set are in the training set too"):
        split_images(twice, 2, seed=1)


def test_refuses_a_class_with_too_few_images() -> None:
    with pytest.raises(TrainingError, match="Class 0 has 5 images; more than 5"):
        split_images(_make_images(), 5, seed=1)
