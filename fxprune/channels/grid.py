"""Grids of channel ids, and arrangements: which cells of a grid a cut tensor still holds, and in which order.

A tensor of shape [2, 64, 7, 7] whose values depend on the channel only has the grid [1, 64, 1, 1]: one cell a channel.
Grids have the tensor's rank; an axis on which the ids do not depend has size 1. A cell is named by its position in the
flattened grid. An arrangement is an int array of cells with the grid's rank: the cut tensor's own grid.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Shape = tuple[int, ...]


def compress(full: IntArray) -> IntArray:
    """Reduce every axis along which an array does not change to size 1.

    Args:
        full: Any array.

    Returns:
        An array of the same rank that broadcasts to `full`.
    """
    for axis in range(full.ndim):
        first = full.take([0], axis=axis) if full.shape[axis] else full
        if full.shape[axis] > 1 and bool((full == first).all()):
            full = first
    return np.ascontiguousarray(full)


def all_cells(grid: Shape) -> IntArray:
    """Return the arrangement that holds every cell of a grid in order."""
    return np.arange(math.prod(grid), dtype=np.int64).reshape(grid)


def arrange(kept: BoolArray) -> IntArray | None:
    """Return the arrangement of the kept cells, every line packed towards its start.

    Args:
        kept: Which cells stay, in the grid's shape.

    Returns:
        The cells in order, or None if they do not fill a box: all lines along the last axis that keep something must
        keep equally many (not the same ones), and so must the lines of such lines.
    """
    sizes = box_sizes(kept)
    cells = np.flatnonzero(kept)
    if math.prod(sizes) != cells.size:
        return None
    return cells.reshape(sizes).astype(np.int64)


def box_sizes(kept: BoolArray) -> Shape:
    """Return the box that the kept cells would fill: cells of the fullest line of the last axis, lines, and so on."""
    if kept.ndim == 0:
        return ()
    return (*box_sizes(np.asarray(kept.any(axis=-1))), int(kept.sum(axis=-1).max(initial=0)))


def even_lines(kept: BoolArray) -> BoolArray:
    """Return the cells with the fewest more that make `arrange` possible.

    Lines along the innermost axis that keep something are filled up, first dead cells first, to the longest one; if
    that is not yet a box, the product of all indices in use is taken.

    Args:
        kept: Which cells stay, in the grid's shape.
    """
    if arrange(kept) is not None:
        return kept
    last = max((axis for axis, size in enumerate(kept.shape) if size > 1), default=0)
    turned = np.moveaxis(kept, last, -1)
    lines = np.moveaxis(fill_lines(turned.reshape(-1, turned.shape[-1])).reshape(turned.shape), -1, last)
    if arrange(lines) is not None:
        return lines
    box = np.ones_like(kept)
    for axis in range(kept.ndim):
        others = tuple(other for other in range(kept.ndim) if other != axis)
        box &= kept.any(axis=others, keepdims=True)
    return box


def fill_lines(kept: BoolArray) -> BoolArray:
    """Fill the non-empty rows of a [lines, cells] array up to the longest, first dead cells first."""
    counts = kept.sum(axis=1)
    missing = np.where(counts > 0, counts.max(initial=0) - counts, 0)
    dead_rank = np.cumsum(~kept, axis=1)
    return kept | (dead_rank <= missing[:, None])


def spread(cells: IntArray, shape: Shape, grid: Shape) -> IntArray:
    """Return the cut tensor's elements as positions in the flattened original tensor.

    Args:
        cells: An arrangement of `grid`.
        shape: The original tensor's shape.
        grid: The original tensor's grid.

    Returns:
        An int array of the cut tensor's shape: `cells.shape` on grid axes, the original size elsewhere.
    """
    coordinates = np.unravel_index(cells, grid)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    elements = np.zeros((1,) * len(shape), dtype=np.int64)
    for axis, stride in enumerate(strides):
        if grid[axis] == 1:
            line = np.arange(shape[axis], dtype=np.int64)
            elements = elements + (line * stride).reshape([-1 if other == axis else 1 for other in range(len(shape))])
        else:
            elements = elements + coordinates[axis] * stride
    return elements


def cells_of_elements(shape: Shape, grid: Shape) -> IntArray:
    """Return for every element of a tensor the cell that it belongs to, flattened."""
    return np.broadcast_to(all_cells(grid), shape).reshape(-1)


def gather(elements: IntArray, shape: Shape, grid: Shape) -> IntArray | None:
    """Return the arrangement that a tensor of original positions shows, or None if it shows none.

    Args:
        elements: Positions in the flattened original tensor, in the cut tensor's shape.
        shape: The original tensor's shape.
        grid: The original tensor's grid.
    """
    if elements.ndim != len(shape) or elements.size == 0:
        return None
    index = tuple(slice(None) if size > 1 else slice(0, 1) for size in grid)
    cells = cells_of_elements(shape, grid)[elements[index].reshape(-1)].reshape(elements[index].shape)
    return cells if np.array_equal(spread(cells, shape, grid), elements) else None


def project(cells: IntArray, grid: Shape, smaller: Shape) -> IntArray | None:
    """Return the arrangement of an operand that broadcasts into a result with arrangement `cells`.

    Args:
        cells: An arrangement of `grid`.
        grid: The result's grid.
        smaller: The operand's grid, of the same rank; its axes are as long as the result's or 1.

    Returns:
        The operand's arrangement, or None if it would differ along an axis on which the operand has no ids.
    """
    owners = np.broadcast_to(all_cells(smaller), grid).reshape(-1)[cells]
    index = tuple(slice(None) if size > 1 else slice(0, 1) for size in smaller)
    found = owners[index]
    return found if bool((owners == found).all()) else None
