"""The tile of a gathered-column kernel on tensor cores: its sizes, and which tiles can work.

A thread block computes BM rows and BN pixels; its warps cut them into WM x WN rectangles, and those are cut into
products of 16 rows, 8 pixels and 16 columns, 8 columns where cells are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.codegen.cuda.products import COLUMNS, ROWS, summed_columns
from fxprune.codegen.cuda.tile import MOST_BYTES, SHARED_BYTES, WARP, ColumnsSchedule, Order, load_width, store_width
from fxprune.codegen.workload import Workload

SPACE = 8
"""Unused cells behind every line of activations in shared memory, so that the 8 lines of 16 bytes that `ldmatrix` reads
at once, or the 4 lines of 8 floats that a warp reads for a product in TF32, begin in different banks."""

_MOST_HELD = 16
"""Offsets that a thread holds in registers."""


@dataclass(frozen=True)
class TensorSchedule:
    """Options of one kernel on tensor cores; all sizes are powers of two.

    Attributes:
        rows: Rows of a thread block's tile, BM; the height of a packed block.
        pixels: Pixels of its tile, BN.
        depth: Columns of a step, BK.
        stages: Steps that shared memory holds.
        warp: Rows and pixels of a warp, (WM, WN).
        order: What neighbouring thread blocks share.
        cell_bytes: Bytes of an activation and of a weight: 2 for bfloat16 and float16, 4 for float32, which is
            multiplied as TF32.
    """

    rows: int
    pixels: int
    depth: int
    stages: int
    warp: tuple[int, int]
    order: Order = "pixels"
    cell_bytes: int = 2

    @property
    def height(self) -> int:
        """Rows of a packed block."""
        return self.rows

    @property
    def threads(self) -> int:
        """Threads of a thread block."""
        return (self.rows // self.warp[0]) * (self.pixels // self.warp[1]) * WARP

    @property
    def step(self) -> int:
        """Columns of one product."""
        return summed_columns(self.cell_bytes)

    @property
    def pitch(self) -> int:
        """Cells from one line of activations in shared memory to the next one."""
        return self.pixels + SPACE

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a thread block."""
        return self.cell_bytes * self.stages * self.depth * (self.rows + self.pitch)

    def __str__(self) -> str:
        """Short form for the report."""
        tile, warp = f"{self.rows}x{self.pixels}x{self.depth}", f"{self.warp[0]}x{self.warp[1]}"
        unit = "tensor" if self.cell_bytes == 2 else "tensor tf32"
        return f"{unit} {tile} warp {warp} stages {self.stages} {self.order}"


AnySchedule = ColumnsSchedule | TensorSchedule
"""Options of a kernel of either kind."""


def pair_width(work: Workload) -> int:
    """Return the cells that one store moves: a thread has two neighbouring pixels."""
    return store_width(work, 2)


def held_offsets(work: Workload, schedule: TensorSchedule) -> int:
    """Return the columns of a step that one thread copies."""
    together = max(1, schedule.threads * load_width(work) // schedule.pixels)
    return schedule.depth // together


def find_tensor_fault(work: Workload, schedule: TensorSchedule) -> str | None:
    """Return why a schedule cannot compute a layer, or None."""
    (wm, wn), threads = schedule.warp, schedule.threads
    sizes = (schedule.rows, schedule.pixels, schedule.depth, wm, wn)
    if work.x.cell_bytes != schedule.cell_bytes:
        return f"cells of {work.x.cells}; they have {work.x.cell_bytes} bytes, this one takes {schedule.cell_bytes}"
    if any(size < 1 or size & (size - 1) for size in sizes) or schedule.depth < schedule.step:
        return f"sizes {sizes} have to be powers of two and the step at least {schedule.step}"
    if wm < ROWS or wn < 2 * COLUMNS or wm > schedule.rows or wn > schedule.pixels:
        return f"warps of {wm} x {wn}; one takes at least {ROWS} x {2 * COLUMNS} and at most its tile"
    if threads > 1024 or schedule.stages < 2:
        return f"{threads} threads and {schedule.stages} stages; up to 1024 threads and 2 stages are needed"
    if schedule.shared_bytes > SHARED_BYTES:
        return f"{schedule.shared_bytes} bytes of shared memory; a thread block has {SHARED_BYTES}"
    if threads * load_width(work) > schedule.depth * schedule.pixels:
        return f"{threads} threads for {schedule.depth} x {schedule.pixels} cells a step; some would have none to copy"
    if held_offsets(work, schedule) > _MOST_HELD:
        return f"{held_offsets(work, schedule)} columns for each thread to copy; it holds {_MOST_HELD} offsets"
    return None


def weight_vectors(schedule: TensorSchedule) -> int:
    """Return the copies that bring the weights of one step."""
    return schedule.cell_bytes * schedule.depth * schedule.rows // MOST_BYTES
