"""The pixel-lane kernel: output pixels are vector lanes, for row groups too low to fill a vector.

    for block of R rows, for tile of m vectors of output pixels:
        acc[row][m] = bias[row]
        for column in columns(block):
            x[m] = S[offset[column] + base(tile)]                 # m vector loads
            acc[row] += W[block][column][row] * x                  # R broadcasts
            tail[pixel] += W[block][column] * x                    # pixels behind the vectors: rows are lanes
        Y[rows of block][tile] = activation(acc + residual)

Activations lie as plain NCHW. The planes that the kernel reads (`planes`) are flat runs of cells, and tiles are cut
from a run without regard to its lines. Where cells between two lines are no output, the lanes of a vector are stored
line by line under a mask; elsewhere whole vectors are stored, and the last tile of a run overlaps the one before it and
writes the same values again.
Source: `Park et al., Faster CNNs with Direct Sparse Convolutions, ICLR 2017` for the premultiplied column offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxprune.codegen.cpu.accumulators import Accumulators
from fxprune.codegen.cpu.ahead import L1, ahead_cells, begin_asking, prefetch
from fxprune.codegen.cpu.columns import each_column
from fxprune.codegen.cpu.epilogue import TEMPORARIES, activation_statements
from fxprune.codegen.cpu.masked import masked_load, masked_store
from fxprune.codegen.cpu.pixel_tail import Tail
from fxprune.codegen.cpu.pixel_tiles import (
    PixelsSchedule,
    fits,
    image_cells,
    is_whole,
    last_vectors,
    planes_read,
    scratch_cells,
    tiles_of,
)
from fxprune.codegen.cpu.planes import lines_read, write_planes
from fxprune.codegen.cpu.units import own_units, own_units_swapped
from fxprune.codegen.script import ACTIVATIONS, Script
from fxprune.codegen.workload import Layout, Workload
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
    """

    blocks: int


def build_pixels_kernel(name: str, work: Workload, problem: PixelsProblem, schedule: PixelsSchedule) -> str:
    """Return the TVMScript of one layer.

    Arguments of the function, all flat: x, values, offsets, begin, length, base, rows, count, bias, cut, ahead,
    scratch, y and residual if there is one; `cut` holds the first unit of every thread, tile-major where the threads
    share the pixels of an image and block-major where they share blocks.

    Raises:
        CodegenError: The tile is larger than an output image.
    """
    if not fits(work, schedule):
        raise CodegenError(
            f"The tile of schedule '{schedule}' is larger than the output {work.y}; choose a smaller one."
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
        self.residual = "RES" if work.own_residual else "Y"
        self.all_channels = "0", str(work.shape.channels_in)
        self.all_lines = "0", str(self.planes.lines)
        self.script = Script()

    def write(self) -> str:
        work, problem, threads = self.work, self.problem, self.work.threads
        buffers = {
            "X": (work.x.numel, "float32"),
            "W": (0, "float32"),
            "OFF": (0, "int32"),
            "BEGIN": (problem.blocks, "int32"),
            "LEN": (problem.blocks, "int32"),
            "BASE": (problem.blocks, "int32"),
            "ROWS": (problem.blocks * self.schedule.rows, "int32"),
            "COUNT": (problem.blocks, "int32"),
            "BIAS": (problem.blocks * self.schedule.rows, "float32"),
            "CUT": (threads + 1, "int32"),
            "AHEAD": (ahead_cells(threads), "int32"),
            "S": (scratch_cells(work, self.schedule), "float32"),
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
        image = f"(i * {threads} + t)"
        base = f"t * {self.image_cells}"
        with self.script.block(f"for t in T.parallel({threads})"):
            begin_asking(self.script)
            with self.script.loops(f"for i in T.serial({-(-batch // threads)})", f"if {image} < {batch}"):
                self._fill(image, base, self.all_channels, self.all_lines)
                over = [f"for tile in T.serial({self.tiles})", f"for b in T.serial({self.problem.blocks})"]
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
        if not self.planes.in_place:
            with self.script.block(f"for t in T.parallel({threads})"):
                own = f"{channels} * t // {threads}", f"{channels} * (t + 1) // {threads}"
                self._fill("n", "0", own, self.all_lines)
        with self.script.block(f"for t in T.parallel({threads})"):
            begin_asking(self.script)
            with self.script.loops(*own_units(("b", self.problem.blocks), ("tile", self.tiles))):
                self._unit("n", "0")

    def _share_pixels(self) -> None:
        """Threads share the tiles of image `n`, each with a scratch of its own for the lines that its tiles read.

        A cache line that two cores write costs more than the copy of a plane.
        """
        base = f"t * {self.image_cells}"
        with self.script.block(f"for t in T.parallel({self.work.threads})"):
            begin_asking(self.script)
            self._fill("n", base, self.all_channels, self._own_lines())
            units = own_units_swapped if self.schedule.by_block else own_units
            with self.script.loops(*units(("tile", self.tiles), ("b", self.problem.blocks))):
                self._unit("n", base)

    def _fill(self, image: str, base: str, channels: tuple[str, str], lines: tuple[str, str]) -> None:
        """Fill a scratch with some lines of some channels; a kernel that reads its input in place has none."""
        if self.planes.in_place:
            return
        with self.script.block(f"for c in T.serial({channels[0]}, {channels[1]})"):
            write_planes(self.script, self.work, self.planes, "c", image, base, lines)

    def _own_lines(self) -> tuple[str, str]:
        """Return expressions of the lines that the tiles of thread `t` read."""
        cells, blocks = self.schedule.cells, self.problem.blocks
        first, stop = f"CUT[t] // {blocks} * {cells}", f"(CUT[t + 1] + {blocks - 1}) // {blocks} * {cells}"
        if is_whole(self.work, self.schedule):
            first = f"T.min({first}, {self.planes.run - cells})"
        return lines_read(self.planes, first, stop)

    def _unit(self, image: str, base: str) -> None:
        """Compute tile `tile` of block `b`; the last tile of a run may be narrower."""
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
        for cell in tile.cells():
            script.add(f"{cell} = BIAS[b * {rows} + r]")
        tail.start()
        for column in each_column(script):
            self._ask_for_cells(column, vectors)
            for cell in tile.cells():
                x = f"{self.source}[OFF[BEGIN[b] + {column}] + pos[1] + k * {lanes} + v]"
                script.add(f"{cell} = {cell} + {x} * W[BASE[b] + {column} * {rows} + r]")
            tail.add(column, self.source)
        for name in TEMPORARIES:
            script.allocate(name, lanes)
        if whole:
            self._store_whole(tile, image)
            self._store_tail(tail, image)
        else:
            self._store_lines(tile, image)

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

    def _row(self, image: str, layout: Layout) -> str:
        """Return the element offset of row `r` of the block in a buffer of the output's channels."""
        n_step, c_step, *_ = layout.strides
        return f"ROWS[b * {self.schedule.rows} + r] * {c_step} + {image} * {n_step}"

    def _store_whole(self, tile: Accumulators, image: str) -> None:
        """Store vectors whose lanes are neighbouring pixels."""
        script, schedule = self.script, self.schedule
        cell = f"pos[0] + k * {schedule.lanes} + v"
        target = f"{self._row(image, self.work.y)} + {cell}"
        heads = (f"for k in T.unroll({tile.vectors})", f"for v in T.vectorized({schedule.lanes})")
        for part in tile.parts:
            with script.loops(part.outer, "if r < COUNT[b]", *heads):
                if self.work.residual:
                    added = f"{self.residual}[{self._row(image, self.work.residual)} + {cell}]"
                    script.add(f"{part.cell} = {part.cell} + {added}")
                script.add(*activation_statements(part.cell, self.work.activation, self.work.activation_args, "v"))
                script.add(f"Y[{target}] = {part.cell}")

    def _store_tail(self, tail: Tail, image: str) -> None:
        """Store the pixels behind the vectors."""
        work = self.work
        activation = activation_statements(tail.cell, work.activation, work.activation_args, "v")
        added = (self.residual, self._row(image, work.residual)) if work.residual else None
        tail.store(self._row(image, work.y), added, activation)

    def _find_edges(self, pieces: int, vectors: int) -> None:
        """Set edge[vector][piece]: first lane of a piece of a line, one past its last, and where lane 0 would lie in Y.

        Lane v of a vector is cell `column + v` of a line, or cell `column + v - piece * pitch` of a later one.
        """
        planes, lanes = self.planes, self.schedule.lanes
        self.script.allocate("edge", vectors * pieces * 3, "int32")
        with self.script.block(f"for k in T.unroll({vectors})"):
            at = f"(pos[0] + k * {lanes})"
            line, column = f"{at} // {planes.pitch}", f"{at} % {planes.pitch}"
            for piece in range(pieces):
                low = f"{piece * planes.pitch} - {column}"
                high = f"T.min({low} + {planes.out_width}, {planes.run} - {at})"
                start = f"{line} * {planes.out_width} + {column} - {piece * (planes.pitch - planes.out_width)}"
                for part, value in enumerate((low, high, start)):
                    self.script.add(f"edge[k * {3 * pieces} + {3 * piece + part}] = {value}")

    def _store_lines(self, tile: Accumulators, image: str) -> None:
        """Store the lanes of every vector piece by piece, a piece for every line that they belong to."""
        script, lanes = self.script, self.schedule.lanes
        pieces = 1 + (lanes + self.planes.pitch - 2) // self.planes.pitch
        self._find_edges(pieces, tile.vectors)
        script.allocate("out", lanes)
        lane, whole = f"T.Ramp(0, 1, {lanes})", f"out[T.Ramp(0, 1, {lanes})]"
        edges = [[f"edge[k * {3 * pieces} + {3 * piece + part}]" for part in range(3)] for piece in range(pieces)]
        masks = [f"T.And({lane} >= T.Broadcast({a}, {lanes}), {lane} < T.Broadcast({b}, {lanes}))" for a, b, _ in edges]
        starts = [start for *_, start in edges]
        for part in tile.parts:
            with script.loops(part.outer, "if r < COUNT[b]", f"for k in T.unroll({tile.vectors})"):
                script.add(f"{whole} = {part.whole}")
                self._store_pieces(image, whole, list(zip(masks, starts, strict=True)))

    def _store_pieces(self, image: str, whole: str, pieces: Sequence[tuple[str, str]]) -> None:
        """Store the vector in `out`, each piece, (mask, offset of lane 0 within the plane), where it belongs."""
        script, lanes, work = self.script, self.schedule.lanes, self.work
        if work.residual:
            row = self._row(image, work.residual)
            for mask, start in pieces:
                script.add(f"{whole} = {whole} + {masked_load(lanes, f'{self.residual}[{row} + {start}]', mask)}")
        statements = activation_statements("out[v]", work.activation, work.activation_args, "v")
        if statements:
            with script.block(f"for v in T.vectorized({lanes})"):
                script.add(*statements)
        for mask, start in pieces:
            script.add(masked_store(lanes, whole, f"Y[{self._row(image, work.y)} + {start}]", mask))
