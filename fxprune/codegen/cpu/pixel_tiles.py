"""How a pixel-lane kernel cuts the run of an image into tiles, and who computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fxprune.annotation import IndexArray
from fxprune.codegen.cpu.planes import Planes, count_cells, planes_of
from fxprune.codegen.workload import Workload

_WORTH = 32
"""A last tile of its own size is worth its code where it saves this part of the vectors."""


@dataclass(frozen=True)
class PixelsSchedule:
    """Options of one pixel-lane kernel.

    Attributes:
        lanes: float32 lanes of a vector.
        rows: Rows of a block, R.
        vectors: Vectors of a tile, m.
        split: What the threads share within an image: "pixels" or "blocks".
        by_block: Whether a thread computes a block for all its pixels before the next block, and so writes few long
            runs; else a tile for all blocks, and so finds its inputs in the L1 cache.
        tail: Pixels of a tile behind its vectors; their lanes are the rows of the block. With one, 7x7 images fill
            their vectors.
        gapless: Whether the planes of a layer with taps have no gaps between lines.
    """

    lanes: int
    rows: int
    vectors: int
    split: Literal["pixels", "blocks"]
    by_block: bool = False
    tail: int = 0
    gapless: bool = False

    @property
    def height(self) -> int:
        """Rows of a block, R."""
        return self.rows

    @property
    def cells(self) -> int:
        """Cells of a tile."""
        return self.vectors * self.lanes + self.tail

    def __str__(self) -> str:
        """Short form for the report."""
        order = f"{self.split}{' by block' if self.by_block else ''}"
        tail = f"+{self.tail}" if self.tail else ""
        return f"pixels R{self.rows} tile {self.vectors}x{self.lanes}{tail} {order}{' gapless' if self.gapless else ''}"


def supports(work: Workload) -> bool:
    """Whether the family can compute a layer: no depth axis, unless the layer is pointwise."""
    shape = work.shape
    return shape.is_pointwise or (shape.spatial_in[0] == shape.kernel[0] == 1 and shape.padding[0] == (0, 0))


def scratch_cells(work: Workload, schedule: PixelsSchedule) -> int:
    """Count the scratch cells that a kernel needs, float32; one scratch a thread unless threads share blocks."""
    copies = 1 if _shares_scratch(work, schedule) else work.threads
    return max(1, copies * image_cells(work, schedule))


def _shares_scratch(work: Workload, schedule: PixelsSchedule) -> bool:
    return schedule.split == "blocks" and work.shape.batch < work.threads


def image_cells(work: Workload, schedule: PixelsSchedule) -> int:
    """Count the scratch cells of one image."""
    return count_cells(work.shape, planes_read(work, schedule), _computed_cells(work, schedule))


def planes_read(work: Workload, schedule: PixelsSchedule) -> Planes:
    """Lay out the planes that a kernel reads; a tail is there to end with the image."""
    return planes_of(work, gapless=schedule.gapless, exact=schedule.tail > 0)


def reads_behind(work: Workload, schedule: PixelsSchedule) -> bool:
    """Whether tiles go on behind the image, so that no vector crosses a cache line."""
    return planes_read(work, schedule).behind > 0


def most_vectors(work: Workload, lanes: int) -> int:
    """Count the vectors of the largest tile: it may read behind the run of an image only in a scratch."""
    usual = planes_of(work, gapless=False, exact=False)
    return usual.run // lanes if usual.in_place else -(-usual.run // lanes)


def fits(work: Workload, schedule: PixelsSchedule) -> bool:
    """Whether a tile is no larger than an image's run; one with a tail has nothing but output, and a vector of rows."""
    if schedule.tail and (schedule.rows > schedule.lanes or not is_whole(work, schedule)):
        return False
    return schedule.vectors <= most_vectors(work, schedule.lanes)


def computed_pixels(work: Workload, schedule: PixelsSchedule) -> int:
    """Count the lanes computed, wasted and overlapping ones included."""
    return work.shape.batch * _computed_cells(work, schedule)


def tiles_of(work: Workload, schedule: PixelsSchedule) -> int:
    """Count the tiles of one image; overlapping last tiles included."""
    return -(-planes_read(work, schedule).run // schedule.cells)


def last_vectors(work: Workload, schedule: PixelsSchedule) -> int:
    """Count the vectors of the last tile: those that the run still needs, if that leaves enough of them out.

    A tile with a tail is always whole.
    """
    if schedule.tail:
        return schedule.vectors
    tiles = tiles_of(work, schedule)
    needed = -(-(planes_read(work, schedule).run - (tiles - 1) * schedule.cells) // schedule.lanes)
    return needed if (schedule.vectors - needed) * _WORTH >= tiles * schedule.vectors else schedule.vectors


def tile_widths(work: Workload, schedule: PixelsSchedule) -> IndexArray:
    """Return the vectors of every tile of one image, [tiles]."""
    widths = np.full(tiles_of(work, schedule), schedule.vectors, np.int32)
    widths[-1] = last_vectors(work, schedule)
    return widths


def _computed_cells(work: Workload, schedule: PixelsSchedule) -> int:
    return int(tile_widths(work, schedule).sum()) * schedule.lanes + tiles_of(work, schedule) * schedule.tail


def computes_once(work: Workload, schedule: PixelsSchedule) -> bool:
    """Whether no tile overlaps another: the last one of a run that is all output is moved back to the run's end."""
    return not is_whole(work, schedule) or _computed_cells(work, schedule) == planes_read(work, schedule).run


def is_whole(work: Workload, schedule: PixelsSchedule) -> bool:
    """Whether all cells of a run are output, and a tile is no longer than a run."""
    read = planes_read(work, schedule)
    return read.pitch == read.out_width and schedule.cells <= read.run
