"""The pixel-lane kernel: output pixels are vector lanes, for row groups too low to fill a vector.

    for block of R rows, for tile of m vectors of output pixels:
        acc[row][m] = bias[row]
        for column in columns(block):
            x[m] = S[offset[column] + base(tile)]                 # m vector loads
            acc[row] += W[block][column][row] * x                  # R broadcasts
            tail[pixel] += W[block][column] * x                    # pixels behind the vectors: rows are lanes
        Y[rows of block][tile] = activation(acc + residual)

Activations lie as plain NCHW. The planes that the kernel reads (`planes`) are flat runs of cells, and tiles are cut
from a run without regard to its lines (`pixel_results` stores them).

The planes of all channels that a tile reads are too many for the L1 cache: of 256 channels at 14x14, each used by a
twentieth of the rows, every vector came from the L2 and took three cycles. A kernel may copy some channels at a time
and multiply them with all rows before the next ones; the sums wait in the scratch in between.
Source: `Park et al., Faster CNNs with Direct Sparse Convolutions, ICLR 2017` for the premultiplied column offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.codegen.cpu.accumulators import Accumulators
from fxprune.codegen.cpu.ahead import L1, ahead_cells, begin_asking, prefetch
from fxprune.codegen.cpu.columns import each_column
from fxprune.codegen.cpu.pixel_results import Results
from fxprune.codegen.cpu.pixel_tail import Tail
from fxprune.codegen.cpu.pixel_tiles import (
    PixelsSchedule,
    copied_channels,
    fits,
    image_cells,
    is_whole,
    last_vectors,
    planes_read,
    scratch_cells,
    sum_cells,
    tiles_of,
)
from fxprune.codegen.cpu.planes import lines_read, write_planes
from fxprune.codegen.cpu.units import own_units, own_units_swapped
from fxprune.codegen.script import ACTIVATIONS, Script
from fxprune.codegen.workload import Workload
from fxprune.errors import CodegenError

COLUMNS_AHEAD = 12
"""Columns between asking for cells and multiplying them; twice as many were no better. The list of offsets goes on for
as many behind the last column."""

_LEAST_ROWS = 8
"""Rows of a block that leave time for it: with fewer the loads themselves are what takes longest."""


@dataclass(frozen=True)
class PixelsProblem:
    """Sizes of the arrays of one packed layer, known when its kernel is compiled.

    Attributes:
        blocks: Blocks of rows.
        parts: Parts of the columns; block b of part p is number p * blocks + b of the arrays.
    """

    blocks: int
    parts: int = 1


def build_pixels_kernel(name: str, work: Workload, problem: PixelsProblem, schedule: PixelsSchedule) -> str:
    """Return the TVMScript of one layer.

    Arguments of the function, all flat: x, values, offsets, begin, length, base, rows, count, bias, cut, ahead,
    scratch, y and residual if there is one; `cut` holds the first unit of every thread, tile-major where the threads
    share the pixels of an image and block-major where they share blocks.

    Raises:
        CodegenError: The schedule does not fit the layer.
    """
    if not fits(work, schedule):
        raise CodegenError(
            f"The schedule '{schedule}' does not fit {work.shape} with the output {work.y}: its tile is larger than an "
            "image, or it asks for what the layer has not. Choose one of `pixel_schedules`."
        )
    return _PixelsWriter(name, work, problem, schedule).write()


class _PixelsWriter:
    """Writes one kernel; the fields are what every part of the text needs."""

    def __init__(self, name: str, work: Workload, problem: PixelsProblem, schedule: PixelsSchedule) -> None:
        self.name, self.work, self.problem, self.schedule = name, work, problem, schedule
        self.planes = planes_read(work, schedule)
        self.image_cells = image_cells(work, schedule)
        self.tiles = tiles_of(work, schedule)
        self.last = last_vectors(work, schedule)
        self.source = "X" if self.planes.in_place else "S"
        copied = copied_channels(work, schedule)
        self.all_channels = "0", f"T.min({copied}, {work.shape.channels_in} - part * {copied})"
        self.all_lines = "0", str(self.planes.lines)
        self.blocks_over = "block", problem.blocks
        self.parts = f"for part in T.serial({problem.parts})"
        self.script = Script()

    def write(self) -> str:
        work, threads, blocks = self.work, self.work.threads, self.problem.blocks * self.problem.parts
        buffers = {
            "X": (work.x.numel, "float32"),
            "W": (0, "float32"),
            "OFF": (0, "int32"),
            "BEGIN": (blocks, "int32"),
            "LEN": (blocks, "int32"),
            "BASE": (blocks, "int32"),
            "ROWS": (blocks * self.schedule.rows, "int32"),
            "COUNT": (blocks, "int32"),
            "BIAS": (blocks * self.schedule.rows, "float32"),
            "CUT": (threads + 1, "int32"),
            "AHEAD": (ahead_cells(threads), "int32"),
            "S": (scratch_cells(work, self.schedule, self.problem.blocks), "float32"),
            "Y": (work.y.numel, "float32"),
        }
        if work.own_residual:
            buffers["RES"] = (work.own_residual.numel, "float32")
        with self.script.function(self.name, buffers, buffers.keys() - ACTIVATIONS):
            if work.shape.batch >= threads:
                self._images_by_thread()
            else:
                self._threads_by_image()
        return self.script.text

    def _images_by_thread(self) -> None:
        """Each thread computes whole images with a scratch of its own."""
        batch, threads = self.work.shape.batch, self.work.threads
        image, base = f"(i * {threads} + t)", f"t * {self.image_cells}"
        over = [f"for tile in T.serial({self.tiles})", "for {} in T.serial({})".format(*self.blocks_over)]
        with self.script.block(f"for t in T.parallel({threads})"):
            begin_asking(self.script)
            with self.script.loops(f"for i in T.serial({-(-batch // threads)})", f"if {image} < {batch}", self.parts):
                self._fill(image, base, self.all_channels, self.all_lines)
                with self.script.loops(*(reversed(over) if self.schedule.by_block else over)):
                    self._unit(image, base)

    def _threads_by_image(self) -> None:
        """All threads work on one image and share its tiles or its blocks."""
        with self.script.block(f"for n in T.serial({self.work.shape.batch})"):
            if self.schedule.split == "blocks":
                self._share_blocks()
            else:
                self._share_pixels()

    def _share_blocks(self) -> None:
        """Threads fill one scratch together, for each of them reads all lines, then share the blocks of image `n`."""
        channels, threads = self.work.shape.channels_in, self.work.threads
        share = f"for t in T.parallel({threads})"
        if not self.planes.in_place:
            with self.script.loops(share, self.parts):
                own = f"{channels} * t // {threads}", f"{channels} * (t + 1) // {threads}"
                self._fill("n", "0", own, self.all_lines)
        with self.script.block(share):
            begin_asking(self.script)
            with self.script.loops(self.parts, *own_units(self.blocks_over, ("tile", self.tiles))):
                self._unit("n", "0")

    def _share_pixels(self) -> None:
        """Threads share the tiles of image `n`, each with a scratch of its own for the lines that its tiles read.

        A cache line that two cores write costs more than the copy of a plane.
        """
        base = f"t * {self.image_cells}"
        units = own_units_swapped if self.schedule.by_block else own_units
        with self.script.block(f"for t in T.parallel({self.work.threads})"):
            begin_asking(self.script)
            with self.script.loops(self.parts):
                self._fill("n", base, self.all_channels, self._own_lines())
                with self.script.loops(*units(("tile", self.tiles), self.blocks_over)):
                    self._unit("n", base)

    def _fill(self, image: str, base: str, channels: tuple[str, str], lines: tuple[str, str]) -> None:
        """Fill a scratch with some lines of some channels; a kernel that reads its input in place has none.

        Args:
            image: Expression of the image.
            base: Expression of the first cell of the scratch.
            channels: Expressions of the first channel of those that lie there at a time, and one past the last.
            lines: Expressions of the first line of a plane, and one past the last.
        """
        if self.planes.in_place:
            return
        channel = f"(part * {copied_channels(self.work, self.schedule)} + c)"
        with self.script.block(f"for c in T.serial({channels[0]}, {channels[1]})"):
            write_planes(self.script, self.work, self.planes, image, (channel, "c"), base, lines)

    def _own_lines(self) -> tuple[str, str]:
        """Return expressions of the lines that the tiles of thread `t` read."""
        cells, blocks = self.schedule.cells, self.problem.blocks
        first, stop = f"CUT[t] // {blocks} * {cells}", f"(CUT[t + 1] + {blocks - 1}) // {blocks} * {cells}"
        if is_whole(self.work, self.schedule):
            first = f"T.min({first}, {self.planes.run - cells})"
        return lines_read(self.planes, first, stop)

    def _unit(self, image: str, base: str) -> None:
        """Compute tile `tile` of block `block`, `b` with the part; the last tile of a run may be narrower.

        A loop of one turn would not do for `b`: TVM 0.27 puts its value in without the first one of the loop around it.
        """
        self.script.add(f"b = T.bind(part * {self.problem.blocks} + block)")
        if self.last == self.schedule.vectors:
            self._tile(image, base, self.last)
            return
        with self.script.block(f"if tile < {self.tiles - 1}"):
            self._tile(image, base, self.schedule.vectors)
        with self.script.block("else"):
            self._tile(image, base, self.last)

    def _tile(self, image: str, base: str, vectors: int) -> None:
        """Compute one tile of so many vectors."""
        script, planes, schedule = self.script, self.planes, self.schedule
        lanes, rows = schedule.lanes, schedule.rows
        whole = is_whole(self.work, schedule)
        script.allocate("pos", 2, "int32")
        first, start = f"tile * {schedule.cells}", f"{image} * {self.work.x.strides[0]}" if planes.in_place else base
        script.add(
            f"pos[0] = T.min({first}, {planes.run - vectors * lanes - schedule.tail})"
            if whole
            else f"pos[0] = {first}",
            f"pos[1] = pos[0] + {start}",
        )
        tile = Accumulators(script, ("r", rows), vectors, lanes)
        tail = Tail(script, schedule.tail, rows, vectors * lanes)
        self._begin(tile)
        tail.start()
        for column in each_column(script):
            self._ask_for_cells(column, vectors)
            for cell in tile.cells():
                x = f"{self.source}[OFF[BEGIN[b] + {column}] + pos[1] + k * {lanes} + v]"
                script.add(f"{cell} = {cell} + {x} * W[BASE[b] + {column} * {rows} + r]")
            tail.add(column, self.source)
        results = Results(script, self.work, schedule, image)
        if self.problem.parts == 1:
            results.store(tile, tail)
            return
        with script.block(f"if part < {self.problem.parts - 1}"):
            for cell in tile.cells():
                script.add(f"{self._sum()} = {cell}")
        with script.block("else"):
            results.store(tile, tail)

    def _begin(self, tile: Accumulators) -> None:
        """Begin with the bias, and with later channels where those before them ended."""
        bias = f"BIAS[b * {self.schedule.rows} + r]"
        if self.problem.parts == 1:
            for cell in tile.cells():
                self.script.add(f"{cell} = {bias}")
            return
        for header, value in (("if part == 0", bias), ("else", self._sum())):
            with self.script.block(header):
                for cell in tile.cells():
                    self.script.add(f"{cell} = {value}")

    def _sum(self) -> str:
        """Return where lane `v` of vector `k` of row `r` waits for the next channels."""
        work, schedule, blocks = self.work, self.schedule, self.problem.blocks
        own = f"t * {sum_cells(work, schedule, blocks)} + " if work.shape.batch >= work.threads else ""
        unit = f"((tile * {blocks} + block) * {schedule.rows} + r) * {schedule.cells}"
        return f"S[{work.threads * self.image_cells} + {own}{unit} + k * {schedule.lanes} + v]"

    def _ask_for_cells(self, column: str, vectors: int) -> None:
        """Ask for the cells of a later column, of this block or of the next.

        Columns lie far apart, and multiply-adds that wait for one keep the processor from looking further than a few.
        """
        if self.schedule.rows < _LEAST_ROWS:
            return
        lanes = self.schedule.lanes
        with self.script.block(f"for k in T.unroll({vectors})"):
            later = f"OFF[BEGIN[b] + {column} + {COLUMNS_AHEAD}]"
            self.script.add(prefetch(f"{self.source}[{later} + pos[1] + k * {lanes}]", 0, L1))
