"""How a pixel-lane kernel cuts the run of an image into tiles, and who computes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fxprune.annotation import IndexArray
from fxprune.codegen.cpu.planes import Planes, count_cells, lines_shared, planes_of
from fxprune.codegen.workload import LINE_CELLS, Workload

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
        channels: Input channels that a thread copies to its scratch and multiplies with all rows before the next ones,
            so that the planes of a tile stay in the L1 cache; 0 = all at once. The sums of a tile wait in the scratch.
    """

    lanes: int
    rows: int
    vectors: int
    split: Literal["pixels", "blocks"]
    by_block: bool = False
    tail: int = 0
    gapless: bool = False
    channels: int = 0

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
        copied = f"{' gapless' if self.gapless else ''}{f' {self.channels} channels' if self.channels else ''}"
        return f"pixels R{self.rows} tile {self.vectors}x{self.lanes}{tail} {order}{copied}"


def supports(work: Workload) -> bool:
    """Whether the family can compute a layer: no depth axis, unless the layer is pointwise."""
    shape = work.shape
    return shape.is_pointwise or (shape.spatial_in[0] == shape.kernel[0] == 1 and shape.padding[0] == (0, 0))


def scratch_cells(work: Workload, schedule: PixelsSchedule, blocks: int) -> int:
    """Count the scratch cells that a kernel of so many blocks needs, float32: planes, then sums.

    Every thread has planes of its own unless threads share blocks, and sums of its own if it computes whole images.
    """
    planes = 1 if _shares_scratch(work, schedule) else work.threads
    sums = work.threads if work.shape.batch >= work.threads else 1
    return max(1, planes * image_cells(work, schedule) + sums * sum_cells(work, schedule, blocks))


def sum_cells(work: Workload, schedule: PixelsSchedule, blocks: int) -> int:
    """Count the cells of the sums of an image that wait for the next channels."""
    return tiles_of(work, schedule) * blocks * schedule.rows * schedule.cells if schedule.channels else 0


def _shares_scratch(work: Workload, schedule: PixelsSchedule) -> bool:
    return schedule.split == "blocks" and work.shape.batch < work.threads


def copied_channels(work: Workload, schedule: PixelsSchedule) -> int:
    """Count the input channels whose planes lie in the scratch at a time."""
    return schedule.channels or work.shape.channels_in


def image_cells(work: Workload, schedule: PixelsSchedule) -> int:
    """Count the scratch cells of the planes of one image, whole cache lines."""
    planes, computed = planes_read(work, schedule), _computed_cells(work, schedule)
    return -(-count_cells(copied_channels(work, schedule), planes, computed) // LINE_CELLS) * LINE_CELLS


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
    """Whether a kernel can compute a layer.

    A tile is no larger than an image's run; one with a tail has nothing but output, and a vector of rows. Channels are
    copied some at a time only where they are copied at all, and threads share no planes.
    """
    if schedule.tail and (schedule.rows > schedule.lanes or not is_whole(work, schedule)):
        return False
    if schedule.channels and not _may_part(work, schedule):
        return False
    return schedule.vectors <= most_vectors(work, schedule.lanes)


def in_parts(work: Workload, schedule: PixelsSchedule, lines: int) -> PixelsSchedule | None:
    """Return the schedule with channels copied some at a time, as many as fit so many cache lines, in equal parts.

    None: all channels fit, or none is read by more than one tap, or the kernel cannot copy them so.
    """
    channels = work.shape.channels_in
    planes = planes_read(work, schedule)
    shared = 0 if planes.in_place else lines_shared(work, planes, schedule.cells)
    parts = -(-channels // max(1, lines // shared)) if shared else 1
    fitting = replace(schedule, channels=-(-channels // parts))
    return fitting if parts > 1 and fits(work, fitting) else None


def _may_part(work: Workload, schedule: PixelsSchedule) -> bool:
    copies = not planes_read(work, schedule).in_place
    return copies and work.shape.groups == 1 and schedule.split == "pixels" and not schedule.tail


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
