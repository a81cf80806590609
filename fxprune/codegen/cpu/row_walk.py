"""How a row-lane kernel walks over what it computes: lines of pixels, cut into tiles.

Tiles are rectangles, and the last one of a line overlaps the one before it; or they go on from one line of the image to
the next, all of nearly one size (`RowsSchedule.even`). Seven lines of seven pixels, for example, are seven tiles of one
line, which read every weight seven times, or four even ones of twelve and thirteen pixels. Where lines end differs
from tile to tile, so an even tile has code of its own (`Form`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Literal

import numpy as np

from fxprune.annotation import IndexArray
from fxprune.codegen.workload import NO_HALO, NO_WINDOWS, Layout, Triple, Workload

_MOST_TILES = 4
"""Even tiles of an image, at most: each has a column loop of its own."""


@dataclass(frozen=True)
class RowsSchedule:
    """Options of one row-lane kernel.

    Attributes:
        lanes: float32 lanes of a vector.
        vectors: Vectors of rows in a tile, q; a block has lanes * vectors rows.
        tile: Output rows and columns of pixels in a tile, (ph, pw); (1, most pixels) of even tiles.
        split: What the threads share: "pixels" or "blocks".
        chunk: Tiles that run under one block before the next block, with split "pixels"; 0 = all of a thread's tiles.
        prefetch: Whether a tile asks for the memory of the next one: for activations that do not fit the L2 cache.
        ordered: Whether blocks are of neighbouring rows, filled up with zeros (`format.in_order`), instead of the rows
            of the layer's own groups.
        even: Whether tiles go on from one line of the image to the next, all of nearly one size, none overlapping.
    """

    lanes: int
    vectors: int
    tile: tuple[int, int]
    split: Literal["pixels", "blocks"]
    chunk: int = 1
    prefetch: bool = False
    ordered: bool = False
    even: bool = False

    @property
    def height(self) -> int:
        """Rows of a block, R."""
        return self.lanes * self.vectors

    @property
    def pixels(self) -> int:
        """Pixels of a tile; of the largest even one at most."""
        return self.tile[0] * self.tile[1]

    def __str__(self) -> str:
        """Short form for the report."""
        pixels = f"{self.tile[0]}x{self.tile[1]}{' even' if self.even else ''}"
        order = f"{self.split}{self.chunk if self.split == 'pixels' else ''}"
        ends = f"{' prefetch' if self.prefetch else ''}{' in order' if self.ordered else ''}"
        return f"rows {self.lanes}x{self.vectors} tile {pixels} {order}{ends}"


Steps = tuple[int, int, int, int]
"""Elements from one image, depth, line and pixel of the output to the next."""


@dataclass(frozen=True)
class Walk:
    """Positions as a kernel walks them: `lines` of `width` pixels.

    Attributes:
        spatial: Depth, height and width of what it walks over, without pixels that belong to no window; one long line
            where every pixel follows its neighbour.
        lines: Lines over depth and batch.
        x_steps: In the input.
        y_steps: In the output, from window to window.
        residual_steps: In the residual, if there is one.
    """

    spatial: Triple
    lines: int
    x_steps: Steps
    y_steps: Steps
    residual_steps: Steps | None

    @property
    def width(self) -> int:
        """Pixels of a line."""
        return self.spatial[2]

    @property
    def planes(self) -> int:
        """Images over depth and batch."""
        return self.lines // self.spatial[1]

    @property
    def plane_pixels(self) -> int:
        """Pixels of an image."""
        return self.spatial[1] * self.width


@dataclass(frozen=True)
class Form:
    """Neighbouring tiles of an image whose pixels lie alike.

    Attributes:
        tiles: How many there are in an image.
        shape: Lines and pixels of a rectangle; (1, pixels) of even tiles.
        start: Where in its line an even tile's first pixel lies.
        width: Pixels of a line for an even tile; 0 for a rectangle.
    """

    tiles: int
    shape: tuple[int, int]
    start: int = 0
    width: int = 0

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""
        return self.shape[0] * self.shape[1]

    def cell(self, steps: Steps) -> str:
        """Text of the element offset of pixel p from the tile's position."""
        index, width = (f"({self.start} + p)", self.width) if self.width else ("p", self.shape[1])
        return f"({index} // {width} * {steps[2]} + {index} % {width} * {steps[3]})"


def walk_over(work: Workload) -> Walk:
    """Choose the walk: one long line where every pixel follows its neighbour in all tensors, else image lines."""
    shape, layouts = work.shape, [work.x, work.y, *([work.residual] if work.residual else [])]
    flat = shape.is_pointwise and work.windows == NO_WINDOWS and all(layout.halo == NO_HALO for layout in layouts)

    def steps(layout: Layout, stride: Triple) -> Steps:
        n, _, d, h, w = layout.strides
        return n, d * stride[0], h * stride[1], w * stride[2]

    one: Triple = (1, 1, 1)
    depth, height, width = work.windows.covered(shape.spatial_out)
    return Walk(
        spatial=(1, 1, shape.pixels) if flat else (depth, height, width),
        lines=1 if flat else shape.batch * depth * height,
        x_steps=steps(work.x, shape.stride),
        y_steps=steps(work.y, one),
        residual_steps=steps(work.residual, one) if work.residual else None,
    )


@dataclass(frozen=True)
class _EvenCut:
    """An image cut into `count` even tiles: `larger` tiles of one pixel more than `small`, then the others."""

    count: int
    small: int
    larger: int

    @property
    def most(self) -> int:
        """Pixels of the largest."""
        return self.small + (self.larger > 0)

    def first(self, tile: str) -> str:
        """Text of the first pixel of a tile of the image, given its number."""
        return f"({tile} * {self.small} + T.min({tile}, {self.larger}))"


def _cut_evenly(walk: Walk, most: int) -> _EvenCut:
    """Cut an image into as few tiles as there can be of so many pixels at most."""
    count = -(-walk.plane_pixels // most)
    small, larger = divmod(walk.plane_pixels, count)
    return _EvenCut(count, small, larger)


def find_forms(work: Workload, schedule: RowsSchedule) -> list[Form]:
    """Return the forms of the tiles of an image, in their order."""
    walk, tile = walk_over(work), schedule.tile
    if not schedule.even:
        across, down = -(-walk.width // tile[1]), -(-walk.spatial[1] // tile[0])
        return [Form(across * down, tile)]
    cut = _cut_evenly(walk, tile[1])
    if walk.spatial[1] == 1:
        both = [(cut.larger, cut.small + 1), (cut.count - cut.larger, cut.small)]
        return [Form(count, (1, size), 0, walk.width) for count, size in both if count]
    sizes = [cut.small + (number < cut.larger) for number in range(cut.count)]
    starts = accumulate(sizes, initial=0)
    return [Form(1, (1, size), start % walk.width, walk.width) for size, start in zip(sizes, starts, strict=False)]


def tiles_of(work: Workload, schedule: RowsSchedule) -> int:
    """Count the pixel tiles of a layer; overlapping last tiles included."""
    return walk_over(work).planes * sum(form.tiles for form in find_forms(work, schedule))


def pixels_read(work: Workload, schedule: RowsSchedule) -> int:
    """Count the input pixels that a tile reads; of an even one on the safe side."""
    shape, walk, (ph, pw) = work.shape, walk_over(work), schedule.tile
    height, width = walk.spatial[1:]
    lines, across = (min(height, -(-pw // width) + 1), min(pw, width)) if schedule.even else (ph, pw)
    taps = zip((1, lines, across), shape.stride, shape.kernel, shape.dilation, strict=True)
    region = prod((size - 1) * stride + (kernel - 1) * dilation + 1 for size, stride, kernel, dilation in taps)
    return min(region, schedule.pixels * prod(shape.kernel))


def tile_widths(work: Workload, schedule: RowsSchedule) -> IndexArray:
    """Return the pixels of every tile, [tiles]."""
    forms = find_forms(work, schedule)
    image = np.repeat([form.pixels for form in forms], [form.tiles for form in forms])
    return np.tile(image, walk_over(work).planes).astype(np.int32)


def computed_pixels(work: Workload, schedule: RowsSchedule) -> int:
    """Count the pixels a kernel computes, those that overlapping tiles compute twice included."""
    return walk_over(work).planes * sum(form.tiles * form.pixels for form in find_forms(work, schedule))


def fits(work: Workload, schedule: RowsSchedule) -> bool:
    """Whether a tile is no larger than what it walks over, and of whole windows where that is pooled.

    Even tiles are few in an image, as each has code of its own, and differ from rectangles; the schedule says how many
    pixels the largest of them really has. They do not ask for the next tile's memory, which lies elsewhere each time.
    Nor do kernels that pool: they write little.
    """
    walk, windows, (height, width) = walk_over(work), work.windows, schedule.tile
    if height % windows.height or width % windows.width:
        return False
    if windows != NO_WINDOWS and (schedule.even or schedule.prefetch):
        return False
    if not schedule.even:
        return height <= walk.spatial[1] and width <= walk.width
    cut = _cut_evenly(walk, width)
    few = walk.spatial[1] == 1 or cut.count <= _MOST_TILES
    return few and height == 1 and width == cut.most and walk.width % width != 0 and not schedule.prefetch


def tile_origin(work: Workload, schedule: RowsSchedule) -> tuple[str, str, str, str]:
    """Return the texts of image, depth, line and pixel where tile `tile` begins; of an even one its line begins."""
    walk, (ph, pw) = walk_over(work), schedule.tile
    depth, height, _ = walk.spatial
    if schedule.even:
        cut = _cut_evenly(walk, pw)
        count, pixel = cut.count, cut.first(f"tile % {cut.count}")
        h, w = (f"({pixel} // {walk.width})", "0") if height > 1 else ("0", pixel)
    else:
        across, down = -(-walk.width // pw), -(-height // ph)
        w = f"T.min(tile % {across} * {pw}, {walk.width - pw})"
        h = f"T.min(tile // {across} % {down} * {ph}, {height - ph})"
        count = across * down
    plane = f"(tile // {count})"
    return f"({plane} // {depth})", f"({plane} % {depth})", h, w
