"""Constants that differ over space: what zero padding makes of a channel that does not depend on the input.

Such a channel takes few values: those of the corners, the edges and the interior. It is kept as a table over classes of
positions, one list of classes an axis, so that the cost does not depend on the resolution.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.channels.grid import IntArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpatialMap:
    """The values of one channel (or of several with the same classes) over space.

    Attributes:
        classes: For each spatial axis the class of every position, [H], [W], ...
        table: Values by class, [..., classes of H, classes of W, ...], float64.
    """

    classes: tuple[IntArray, ...]
    table: FloatArray

    def full(self) -> FloatArray:
        """Return the values at every position, [..., H, W, ...]."""
        values = self.table
        for axis, classes in enumerate(self.classes):
            values = values.take(classes, axis=axis - len(self.classes))
        return values

    def mean(self) -> FloatArray:
        """Return the mean over all positions, [...]."""
        values = self.table
        for classes in reversed(self.classes):
            counts = np.bincount(classes, minlength=values.shape[-1])
            values = values @ (counts / counts.sum())
        return values

    def is_flat(self) -> bool:
        """Return whether every position has the same value."""
        axes = tuple(range(-len(self.classes), 0))
        return bool((self.table.min(axis=axes) == self.table.max(axis=axes)).all())


def constant_map(value: float, sizes: Sequence[int]) -> SpatialMap:
    """Return the map of a plain constant over a plane of the given sizes."""
    classes = tuple(np.zeros(size, dtype=np.int64) for size in sizes)
    return SpatialMap(classes, np.full((1,) * len(sizes), value))


def combine(maps: Sequence[SpatialMap], function: Callable[[Sequence[FloatArray]], FloatArray]) -> SpatialMap:
    """Apply a pointwise function to maps over the same plane.

    Args:
        maps: One or more maps of one channel each.
        function: Takes the tables, refined to common classes, and returns the new table.
    """
    classes, tables = _refine(maps)
    return SpatialMap(classes, function(tables))


def stack_maps(maps: Sequence[SpatialMap]) -> SpatialMap:
    """Return maps over one plane as one, with table [maps, ...]."""
    classes, tables = _refine(maps)
    return SpatialMap(classes, np.stack(tables))


def _refine(maps: Sequence[SpatialMap]) -> tuple[tuple[IntArray, ...], list[FloatArray]]:
    classes: list[IntArray] = []
    tables = [item.table for item in maps]
    axes = len(maps[0].classes)
    for axis in range(axes):
        keys = np.stack([item.classes[axis] for item in maps], axis=1)
        unique, inverse = np.unique(keys, axis=0, return_inverse=True)
        classes.append(inverse.reshape(-1).astype(np.int64))
        tables = [table.take(unique[:, index], axis=axis - axes) for index, table in enumerate(tables)]
    return tuple(classes), tables


@dataclass(frozen=True)
class Window:
    """How a convolution walks over its input.

    Attributes:
        kernel: Taps an axis.
        stride: Step an axis.
        padding: Zeros at the low end, an axis.
        dilation: Distance of taps, an axis.
        output: Output size an axis.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output: tuple[int, ...]


def convolve(weight: FloatArray, maps: Sequence[SpatialMap], window: Window) -> SpatialMap:
    """Convolve input-independent channels, exactly, at every position.

    Two output positions are of one class if their taps meet the same classes of the input; a tap in the padding meets
    the class "zero".

    Args:
        weight: [O, C, *kernel], float64.
        maps: One map a channel, [C].
        window: The convolution's geometry.

    Returns:
        The maps of all O outputs, with table [O, ...].
    """
    axes = len(window.kernel)
    classes, tables = _refine(maps)
    values = np.stack(tables)
    letters = string.ascii_lowercase
    kernel_letters, class_letters = letters[2 : 2 + axes], letters[2 + axes : 2 + 2 * axes]
    result_classes: list[IntArray] = []
    for axis in range(axes):
        unique, inverse = np.unique(_meet(classes[axis], window, axis), axis=0, return_inverse=True)
        result_classes.append(inverse.reshape(-1).astype(np.int64))
        padded = np.concatenate([values, np.zeros_like(values.take([0], axis=1 + 2 * axis))], axis=1 + 2 * axis)
        values = padded.take(unique, axis=1 + 2 * axis)
    pairs = "".join(x + y for x, y in zip(class_letters, kernel_letters, strict=True))
    table = np.einsum(f"ab{kernel_letters},b{pairs}->a{class_letters}", weight, values, optimize=True)
    return SpatialMap(tuple(result_classes), table)


def _meet(classes: IntArray, window: Window, axis: int) -> IntArray:
    """Return for every output position the input class of each tap, [output, kernel]; -1 is the padding."""
    starts = np.arange(window.output[axis]) * window.stride[axis] - window.padding[axis]
    taps = starts[:, None] + np.arange(window.kernel[axis])[None, :] * window.dilation[axis]
    inside = (taps >= 0) & (taps < classes.size)
    return np.where(inside, classes[np.clip(taps, 0, classes.size - 1)], -1)
