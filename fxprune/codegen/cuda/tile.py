"""The tile of a gathered-column kernel: its sizes, what a thread moves at once, and which tiles can work.

A thread block computes BM rows and BN pixels, a thread TM x TN of them; a warp is 4 threads of rows by 8 of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal, Protocol

from fxprune.codegen.workload import NO_HALO, Layout, Workload

WARP = 32
WARP_ROWS = 4
"""Threads of a warp that share a pixel, as far as there are so many: 4 x 8 reads shared memory without conflicts."""

SHARED_BYTES = 49152
"""Shared memory that every launch may take without asking for more."""

LARGEST_GRID_Y = 65535
"""Thread blocks on the second axis of a grid."""


Order = Literal["blocks", "pixels"]
"""What neighbouring thread blocks share: the pixels of different blocks, so that the input is read once; or the weights
of a block."""


class CudaSchedule(Protocol):
    """Options of a kernel for a GPU, as far as all kinds of them have the same."""

    @property
    def rows(self) -> int:
        """Rows of a thread block's tile, the height of a packed block."""

    @property
    def pixels(self) -> int:
        """Pixels of its tile."""

    @property
    def depth(self) -> int:
        """Columns of a step."""

    @property
    def stages(self) -> int:
        """Steps that shared memory holds."""

    @property
    def order(self) -> Order:
        """What neighbouring thread blocks share."""

    @property
    def height(self) -> int:
        """Rows of a packed block."""

    @property
    def threads(self) -> int:
        """Threads of a thread block."""

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a thread block."""


@dataclass(frozen=True)
class ColumnsSchedule:
    """Options of one gathered-column kernel; all sizes are powers of two.

    Attributes:
        rows: Rows of a thread block's tile, BM; the height of a packed block.
        pixels: Pixels of its tile, BN.
        depth: Columns of a step, BK.
        stages: Steps that shared memory holds.
        thread: Rows and pixels of a thread, (TM, TN).
        order: What neighbouring thread blocks share.
    """

    rows: int
    pixels: int
    depth: int
    stages: int
    thread: tuple[int, int] = (8, 8)
    order: Order = "pixels"

    @property
    def height(self) -> int:
        """Rows of a packed block."""
        return self.rows

    @property
    def threads(self) -> int:
        """Threads of a thread block."""
        return (self.rows // self.thread[0]) * (self.pixels // self.thread[1])

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a thread block."""
        return 4 * self.stages * self.depth * (self.rows + self.pixels)

    def __str__(self) -> str:
        """Short form for the report."""
        tile, thread = f"{self.rows}x{self.pixels}x{self.depth}", f"{self.thread[0]}x{self.thread[1]}"
        return f"columns {tile} thread {thread} stages {self.stages} {self.order}"


def is_flat(layout: Layout | None) -> bool:
    """Whether neighbouring pixels of a plane are neighbours in memory throughout; no layout is."""
    return layout is None or layout.halo == NO_HALO


MOST_BYTES = 16
"""Bytes that a thread moves at once."""


def _widest(cells: int, most: int) -> int:
    """Return how many neighbours of so many a thread moves at once."""
    return gcd(cells, most)


def load_width(work: Workload) -> int:
    """Return the cells that one copy of the input moves: neighbours that are aligned for every column."""
    flat = work.shape.is_pointwise and is_flat(work.x)
    return _widest(work.shape.pixels if flat else work.shape.batch, MOST_BYTES // work.x.cell_bytes)


def store_width(work: Workload, most: int = MOST_BYTES // 4) -> int:
    """Return the cells that one store moves, `most` at most, which is a power of two."""
    flat = is_flat(work.y) and is_flat(work.residual)
    return _widest(work.shape.pixels if flat else work.shape.batch, most)


def tiles_of(work: Workload, schedule: CudaSchedule) -> int:
    """Count the pixel tiles of a layer."""
    return -(-work.shape.pixels // schedule.pixels)


def find_schedule_fault(work: Workload, schedule: ColumnsSchedule) -> str | None:
    """Return why a schedule cannot compute a layer, or None."""
    (tm, tn), threads = schedule.thread, schedule.threads
    sizes = (schedule.rows, schedule.pixels, schedule.depth, tm, tn)
    if any(size < 1 or size & (size - 1) for size in sizes) or min(tm, tn) < 4:
        return f"sizes {sizes} have to be powers of two and a thread's at least 4 x 4"
    if threads % WARP or threads > 1024 or schedule.stages < 2:
        return f"{threads} threads and {schedule.stages} stages; whole warps up to 1024 threads and 2 stages are needed"
    across = min(WARP_ROWS, schedule.rows // tm)
    if schedule.pixels // tn % (WARP // across):
        return f"{schedule.pixels // tn} threads along the pixels; {WARP // across} of them are in a warp"
    if schedule.shared_bytes > SHARED_BYTES:
        return f"{schedule.shared_bytes} bytes of shared memory; a thread block has {SHARED_BYTES}"
    if threads > schedule.depth * schedule.pixels // load_width(work):
        return f"{threads} threads for {schedule.depth} x {schedule.pixels} cells a step; some would have none to copy"
    return None
