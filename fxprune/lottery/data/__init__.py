"""Real images for lotteries: data sets that lie on the disk, and small ones that come with a Python package."""

from fxprune.lottery.data.batches import Batches, ImageFiles, Images, find_shared, split_images
from fxprune.lottery.data.cifar import read_cifar
from fxprune.lottery.data.folders import read_imagenet, read_tiny_imagenet
from fxprune.lottery.data.packaged import read_digits, read_mnist_5k

__all__ = [
    "Batches",
    "ImageFiles",
    "Images",
    "find_shared",
    "read_cifar",
    "read_digits",
    "read_imagenet",
    "read_mnist_5k",
    "read_tiny_imagenet",
    "split_images",
]
