"""The pixel-lane kernel: output pixels are vector lanes, for row groups too low to fill a vector.

    for block of R rows, for tile of m vectors of output pixels:
        acc[row][m] = bias[row]
        for column in columns(block):
            x[m] = S[offset[column] + base(tile)]                 # m vector loads
            acc[row] += W[block][column][row] * x                  # R broadcasts
        Y[rows of block][tile] = activation(acc + residual)

Activations lie as plain NCHW. A 1x1 layer reads its input in place, an image as one line of pixels. Any other layer
first copies one image into a scratch S of zero-padded planes, one plane for every phase of the stride, so that each
tap of each output line is one run of neighbouring cells. The last tile of a line overlaps the one before it and writes
the same values again; only lines shorter than a vector waste lanes.
Source: `Park et al., Faster CNNs with Direct Sparse Convolutions, ICLR 2017` for the premultiplied column offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fxprune.annotation import IndexArray
from fxprune.codegen.cpu.ahead import ahead_cells, ask_ahead, begin_asking
from fxprune.codegen.cpu.epilogue import TEMPORARIES, activation_statements
from fxprune.codegen.script import ACTIVATIONS, Script
from fxprune.codegen.workload import Workload
from fxprune.errors import CodegenError

_LONGEST_VECTOR = 64
"""Longest line, in cells, that is copied as one vector; longer ones are left to LLVM's own vectoriser."""


@dataclass(frozen=True)
class PixelsSchedule:
    """Options of one pixel-lane kernel.

    Attributes:
        lanes: float32 lanes of a vector.
        rows: Rows of a block, R.
        tile: Output lines and vectors a line in a tile.
        split: What the threads share within an image: "pixels" or "blocks".
    """

    lanes: int
    rows: int
    tile: tuple[int, int]
    split: Literal["pixels", "blocks"]

    @property
    def height(self) -> int:
        """Rows of a block, R."""
        return self.rows

    def __str__(self) -> str:
        """Short form for the report."""
        return f"pixels R{self.rows} tile {self.tile[0]}x{self.tile[1]}x{self.lanes} {self.split}"


@dataclass(frozen=True)
class PixelsProblem:
    """Sizes of the arrays of one packed layer, known when its kernel is compiled.

    Attributes:
        blocks: Blocks of rows.
    """

    blocks: int


@dataclass(frozen=True)
class Scratch:
    """Padded planes of one image, [C][phase h][phase w][lines][pitch], or the image itself for 1x1 layers.

    Attributes:
        phases: Stride of height and width.
        lines: Lines of a plane.
        pitch: Cells of a line.
        cells: Cells of one image's scratch; 0 where the input is read in place.
    """

    phases: tuple[int, int]
    lines: int
    pitch: int
    cells: int


def supports(work: Workload) -> bool:
    """Whether the family can compute a layer: no depth axis, unless the layer is pointwise."""
    shape = work.shape
    return shape.is_pointwise or (shape.spatial_in[0] == shape.kernel[0] == 1 and shape.padding[0] == (0, 0))


def scratch_of(work: Workload, lanes: int) -> Scratch:
    """Lay out the scratch of one image."""
    shape = work.shape
    if shape.is_pointwise:
        return Scratch((1, 1), 1, 0, 0)
    (_, stride_h, stride_w), (_, out_h, out_w) = shape.stride, shape.spatial_out
    reach_h, reach_w = ((k - 1) * d for k, d in zip(shape.kernel[1:], shape.dilation[1:], strict=True))
    lines = out_h + reach_h // stride_h
    pitch = max(out_w, lanes) + reach_w // stride_w
    cells = shape.channels_in * stride_h * stride_w * lines * pitch + lanes
    return Scratch((stride_h, stride_w), lines, pitch, cells)


def scratch_cells(work: Workload, lanes: int) -> int:
    """Count the scratch cells that a kernel needs, float32; one scratch a thread where threads share a batch."""
    copies = work.threads if work.shape.batch >= work.threads else 1
    return max(1, copies * scratch_of(work, lanes).cells)


def pixel_offsets(columns: IndexArray, group: int, work: Workload, lanes: int) -> IndexArray:
    """Turn columns of the weight's 2-D view into element offsets from the first tap of an output position.

    Args:
        columns: Column indices, [C].
        group: The convolution group whose input channels they count from.
        work: The layer.
        lanes: float32 lanes of a vector.
    """
    shape = work.shape
    per_group = shape.channels_in // shape.groups
    channel, _, height, width = np.unravel_index(columns, (per_group, *shape.kernel))
    channel = channel + group * per_group
    if shape.is_pointwise:
        return (channel * work.x.strides[1]).astype(np.int32)
    scratch = scratch_of(work, lanes)
    height, width = height * shape.dilation[1], width * shape.dilation[2]
    phase_h, phase_w = scratch.phases
    plane = (channel * phase_h + height % phase_h) * phase_w + width % phase_w
    offset = (plane * scratch.lines + height // phase_h) * scratch.pitch + width // phase_w
    return offset.astype(np.int32)


def _line_shape(work: Workload) -> tuple[int, int]:
    """Return lines and pixels a line of one output image."""
    shape = work.shape
    depth, height, width = shape.spatial_out
    return (1, depth * height * width) if shape.is_pointwise else (height, width)


def fits(work: Workload, schedule: PixelsSchedule) -> bool:
    """Whether the tile is no larger than an output image; a line shorter than a vector takes one vector."""
    lines, width = _line_shape(work)
    if schedule.tile[0] > lines:
        return False
    if work.shape.is_pointwise or width >= schedule.lanes:
        return schedule.tile[1] * schedule.lanes <= width or (
            not work.shape.is_pointwise and schedule.tile[1] == -(-width // schedule.lanes)
        )
    return schedule.tile[1] == 1


def computed_pixels(work: Workload, schedule: PixelsSchedule) -> int:
    """Count the lanes computed, wasted and overlapping ones included."""
    return work.shape.batch * tiles_of(work, schedule) * schedule.tile[0] * schedule.tile[1] * schedule.lanes


def tiles_of(work: Workload, schedule: PixelsSchedule) -> int:
    """Count the tiles of one image; overlapping last tiles included."""
    lines, width = _line_shape(work)
    return -(-lines // schedule.tile[0]) * -(-width // (schedule.tile[1] * schedule.lanes))


def questions(work: Workload, schedule: PixelsSchedule, blocks: tuple[int, int], thread: int) -> int:
    """Count how often a thread asks for memory ahead.

    Args:
        work: The layer.
        schedule: Options.
        blocks: First block of the thread, and one past its last, where threads share blocks; else all blocks.
        thread: Which of the threads.
    """
    tiles, threads = tiles_of(work, schedule), work.threads
    if work.shape.batch >= threads:
        return len(range(thread, work.shape.batch, threads)) * (blocks[1] - blocks[0])
    if schedule.split == "blocks":
        return blocks[1] - blocks[0]
    return tiles * (thread + 1) // threads - tiles * thread // threads


def build_pixels_kernel(name: str, work: Workload, problem: PixelsProblem, schedule: PixelsSchedule) -> str:
    """Return the TVMScript of one layer.

    Arguments of the function, all flat: x, values, offsets, begin, length, base, rows, count, bias, cut, ahead,
    scratch, y and residual if there is one; `cut` holds the first unit (block-major, tile-minor) of every thread where
    the threads share the blocks of an image.

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
        self.scratch = scratch_of(work, schedule.lanes)
        self.lines, self.width = _line_shape(work)
        self.tiles = tiles_of(work, schedule)
        self.source = "S" if self.scratch.cells else "X"
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
            "S": (scratch_cells(work, self.schedule.lanes), "float32"),
            "Y": (work.y.numel, "float32"),
        }
        if work.residual:
            buffers["RES"] = (work.residual.numel, "float32")
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
        base = f"t * {self.scratch.cells}"
        with self.script.block(f"for t in T.parallel({threads})"):
            begin_asking(self.script)
            with self.script.loops(f"for i in T.serial({-(-batch // threads)})", f"if {image} < {batch}"):
                if self.scratch.cells:
                    with self.script.block(f"for c in T.serial({self.work.shape.channels_in})"):
                        self._pack("c", image, base)
                with self.script.block(f"for b in T.serial({self.problem.blocks})"):
                    ask_ahead(self.script)
                    with self.script.block(f"for tile in T.serial({self.tiles})"):
                        self._tile(image, base)

    def _threads_by_image(self) -> None:
        """All threads work on one image: they fill its scratch, then share its tiles or its blocks."""
        channels, threads, blocks = self.work.shape.channels_in, self.work.threads, self.problem.blocks
        with self.script.block(f"for n in T.serial({self.work.shape.batch})"):
            if self.scratch.cells:
                with self.script.loops(
                    f"for t in T.parallel({threads})",
                    f"for c in T.serial({channels} * t // {threads}, {channels} * (t + 1) // {threads})",
                ):
                    self._pack("c", "n", "0")
            with self.script.block(f"for t in T.parallel({threads})"):
                begin_asking(self.script)
                if self.schedule.split == "pixels":
                    first, last = f"{self.tiles} * t // {threads}", f"{self.tiles} * (t + 1) // {threads}"
                    outer: tuple[str, ...] = (f"for tile in T.serial({first}, {last})",)
                    inner = f"for b in T.serial({blocks})"
                else:
                    low = f"T.max(T.min(CUT[t] - b * {self.tiles}, {self.tiles}), 0)"
                    high = f"T.max(T.min(CUT[t + 1] - b * {self.tiles}, {self.tiles}), 0)"
                    outer = (f"for b in T.serial({blocks})", f"if {low} < {high}")
                    inner = f"for tile in T.serial({low}, {high})"
                with self.script.loops(*outer):
                    ask_ahead(self.script)
                    with self.script.block(inner):
                        self._tile("n", "0")

    def _pack(self, channel: str, image: str, base: str) -> None:
        """Copy one channel of one image into its padded planes, phase by phase."""
        scratch = self.scratch
        for phase_h in range(scratch.phases[0]):
            for phase_w in range(scratch.phases[1]):
                plane = f"(({channel} * {scratch.phases[0]} + {phase_h}) * {scratch.phases[1]} + {phase_w})"
                target = f"{base} + {plane} * {scratch.lines * scratch.pitch}"
                self._pack_plane(target, channel, image, phase_h, phase_w)

    def _pack_plane(self, target: str, channel: str, image: str, phase_h: int, phase_w: int) -> None:
        shape, scratch, script = self.work.shape, self.scratch, self.script
        n_step, c_step, _, h_step, _ = self.work.x.strides
        (stride_h, stride_w), (top, left) = scratch.phases, (shape.padding[1][0], shape.padding[2][0])
        first_line, last_line = _inside(shape.spatial_in[1], stride_h, top, phase_h, scratch.lines)
        first, last = _inside(shape.spatial_in[2], stride_w, left, phase_w, scratch.pitch)
        pieces = ((0, first), (last, scratch.pitch))
        with script.block(f"for line in T.serial({scratch.lines})"):
            cell = f"{target} + line * {scratch.pitch}"
            with script.block(f"if line >= {first_line} and line < {last_line}"):
                for start, stop in pieces:
                    if stop > start:
                        with script.block(f"for v in T.serial({stop - start})"):
                            script.add(f"S[{cell} + {start} + v] = T.float32(0.0)")
                source = f"{image} * {n_step} + {channel} * {c_step} + (line * {stride_h} + {phase_h - top}) * {h_step}"
                shift = first * stride_w + phase_w - left
                kind = "vectorized" if stride_w == 1 and 1 < last - first <= _LONGEST_VECTOR else "serial"
                if last > first:
                    with script.block(f"for v in T.{kind}({last - first})"):
                        script.add(f"S[{cell} + {first} + v] = X[{source} + {shift} + v * {stride_w}]")
            with script.loops("else", f"for v in T.serial({scratch.pitch})"):
                script.add(f"S[{cell} + v] = T.float32(0.0)")

    def _tile(self, image: str, base: str) -> None:
        """Compute one tile of one block."""
        script, schedule = self.script, self.schedule
        (lines, vectors), lanes, rows = schedule.tile, schedule.lanes, schedule.rows
        script.add('pos = T.alloc_buffer((2,), "int32", scope="local")')
        self._positions(image, base)
        script.add(f'acc = T.alloc_buffer(({rows * lines * vectors * lanes},), "float32", scope="local")')
        over_tile = (
            f"for r in T.unroll({rows})",
            f"for i in T.unroll({lines})",
            f"for k in T.unroll({vectors})",
            f"for v in T.vectorized({lanes})",
        )
        cell = f"acc[((r * {lines} + i) * {vectors} + k) * {lanes} + v]"
        with script.loops(*over_tile):
            script.add(f"{cell} = BIAS[b * {rows} + r]")
        with script.loops("for j in T.serial(LEN[b])", *over_tile):
            x = f"{self.source}[OFF[BEGIN[b] + j] + pos[0] + {self._vector(self.scratch.pitch)} + v]"
            script.add(f"{cell} = {cell} + {x} * W[BASE[b] + j * {rows} + r]")
        self._store(cell, over_tile)

    def _vector(self, pitch: int) -> str:
        """Return the element offset of vector (i, k) of a tile; vectors that cover a whole line overlap at its end."""
        lanes, vectors = self.schedule.lanes, self.schedule.tile[1]
        start = f"k * {lanes}"
        if self.width >= lanes and vectors * lanes > self.width:
            start = f"T.min({start}, {self.width - lanes})"
        return f"(i * {pitch} + {start})"

    def _positions(self, image: str, base: str) -> None:
        """Set pos[0], pos[1]: first cell of the tile in the source and in y, as element offsets."""
        (lines, vectors), lanes = self.schedule.tile, self.schedule.lanes
        across = -(-self.width // (vectors * lanes))
        line = f"T.min(tile // {across} * {lines}, {self.lines - lines})"
        column = f"T.min(tile % {across} * {vectors * lanes}, {max(0, self.width - vectors * lanes)})"
        y_line = self.width
        if self.scratch.cells:
            source = f"{base} + {line} * {self.scratch.pitch} + {column}"
        else:
            source = f"{image} * {self.work.x.strides[0]} + {column}"
        self.script.add(f"pos[0] = {source}")
        self.script.add(f"pos[1] = {image} * {self.work.y.strides[0]} + {line} * {y_line} + {column}")

    def _store(self, cell: str, over_tile: tuple[str, ...]) -> None:
        script, schedule = self.script, self.schedule
        lanes = schedule.lanes
        for name in TEMPORARIES:
            script.add(f'{name} = T.alloc_buffer(({lanes},), "float32", scope="local")')
        valid = min(lanes, self.width)
        target = f"ROWS[b * {schedule.rows} + r] * {self.work.y.strides[1]} + pos[1] + {self._vector(self.width)}"
        if valid == lanes:
            loops = (over_tile[0], "if r < COUNT[b]", *over_tile[1:])
            with script.loops(*loops):
                self._finish(cell, target)
                script.add(f"Y[{target} + v] = {cell}")
            return
        script.add(f'out = T.alloc_buffer(({lanes},), "float32", scope="local")')
        with script.loops(over_tile[0], "if r < COUNT[b]", *over_tile[1:3]):
            with script.block(over_tile[3]):
                script.add(f"out[v] = {cell}")
            with script.block(f"for v in T.vectorized({valid})" if valid > 1 else "for v in T.serial(1)"):
                self._finish("out[v]", target)
                script.add(f"Y[{target} + v] = out[v]")

    def _finish(self, cell: str, target: str) -> None:
        if self.work.residual:
            self.script.add(f"{cell} = {cell} + RES[{target} + v]")
        self.script.add(*activation_statements(cell, self.work.activation, self.work.activation_args, "v"))


def _inside(size: int, stride: int, padding: int, phase: int, cells: int) -> tuple[int, int]:
    """Return the cells of a phase line that lie inside the image: first and one past the last.

    Cell i of the line is image position i * stride + phase - padding.
    """
    first = max(0, -((phase - padding) // stride)) if phase < padding else 0
    last = max(first, min(cells, -((phase - padding - size) // stride)))
    return min(first, cells), last
