"""The row-lane kernel: output rows are vector lanes, pixels share the weights.

    for tile of ph x pw output pixels, for block of R = lanes * q rows:
        acc[pixel][row] = bias[row]
        for column in columns(block):
            acc[pixel] += broadcast(X[offset[column] + base(pixel)]) * W[block][column]      # R weights
        Y[pixel][rows of block] = activation(acc[pixel] + residual)

Activations lie channels-last, the input with a halo that covers the padding, so alignment, kernel shifts and stride
cost nothing and no pixel is wasted: the last tile of a row overlaps the one before it and writes the same values
again. A block whose rows are neighbours in the output stores vectors (`codegen.runs`), any other block lane by lane.
Source: `Elsen et al., Fast Sparse ConvNets, CVPR 2020` for gathered columns; the tile is that of a GEMM micro-kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fxprune.codegen.cpu.accumulators import Accumulators
from fxprune.codegen.cpu.ahead import L1, PAIR, ahead_cells, begin_asking, prefetch
from fxprune.codegen.cpu.columns import each_column
from fxprune.codegen.cpu.epilogue import TEMPORARIES, activation_statements
from fxprune.codegen.cpu.halo import zero_halo
from fxprune.codegen.cpu.masked import masked_store
from fxprune.codegen.cpu.units import own_units
from fxprune.codegen.script import ACTIVATIONS, Script
from fxprune.codegen.workload import LINE_CELLS, NO_HALO, Layout, Triple, Workload
from fxprune.errors import CodegenError


@dataclass(frozen=True)
class RowsSchedule:
    """Options of one row-lane kernel.

    Attributes:
        lanes: float32 lanes of a vector.
        vectors: Vectors of rows in a tile, q; a block has lanes * vectors rows.
        tile: Output rows and columns of pixels in a tile, (ph, pw).
        split: What the threads share: "pixels" or "blocks".
        chunk: Tiles that run under one block before the next block, with split "pixels"; 0 = all of a thread's tiles.
        prefetch: Whether a tile asks for the memory of the next one: for activations that do not fit the L2 cache.
        ordered: Whether blocks are of neighbouring rows, filled up with zeros (`format.in_order`), instead of the rows
            of the layer's own groups.
    """

    lanes: int
    vectors: int
    tile: tuple[int, int]
    split: Literal["pixels", "blocks"]
    chunk: int = 1
    prefetch: bool = False
    ordered: bool = False

    @property
    def height(self) -> int:
        """Rows of a block, R."""
        return self.lanes * self.vectors

    def __str__(self) -> str:
        """Short form for the report."""
        pixels = f"{self.tile[0]}x{self.tile[1]}"
        order = f"{self.split}{self.chunk if self.split == 'pixels' else ''}"
        ends = f"{' prefetch' if self.prefetch else ''}{' in order' if self.ordered else ''}"
        return f"rows {self.lanes}x{self.vectors} tile {pixels} {order}{ends}"


@dataclass(frozen=True)
class RowsProblem:
    """Sizes of the arrays of one packed layer, known when its kernel is compiled.

    Attributes:
        blocks: Blocks of rows.
        columns: Columns of a block on average.
        has_vector_rows: Some block stores vectors.
        has_scattered_rows: Some block stores lane by lane.
        keeps_others: Vectors are stored without the zero rows of a ragged block, whose lanes belong to other blocks.
    """

    blocks: int
    columns: int
    has_vector_rows: bool
    has_scattered_rows: bool
    keeps_others: bool


@dataclass(frozen=True)
class _Grid:
    """Output positions as the kernel walks them: `lines` of `width` pixels, cut into tiles."""

    spatial: Triple
    lines: int
    width: int
    x_steps: tuple[int, int, int, int]
    y_steps: tuple[int, int, int, int]
    residual_steps: tuple[int, int, int, int] | None


def _is_flat(layout: Layout) -> bool:
    return layout.halo == NO_HALO


def _grid(work: Workload) -> _Grid:
    """Choose the walk: one long line where every pixel follows its neighbour in all tensors, else image lines."""
    shape, layouts = work.shape, [work.x, work.y, *([work.residual] if work.residual else [])]
    flat = shape.is_pointwise and all(_is_flat(layout) for layout in layouts)

    def steps(layout: Layout, stride: Triple) -> tuple[int, int, int, int]:
        n, _, d, h, w = layout.strides
        return n, d * stride[0], h * stride[1], w * stride[2]

    one: Triple = (1, 1, 1)
    depth, height, width = shape.spatial_out
    return _Grid(
        spatial=(1, 1, shape.pixels) if flat else shape.spatial_out,
        lines=1 if flat else shape.batch * depth * height,
        width=shape.pixels if flat else width,
        x_steps=steps(work.x, shape.stride),
        y_steps=steps(work.y, one),
        residual_steps=steps(work.residual, one) if work.residual else None,
    )


def tiles_of(work: Workload, tile: tuple[int, int]) -> int:
    """Count the pixel tiles of a layer; overlapping last tiles included."""
    grid = _grid(work)
    height = grid.spatial[1]
    return grid.lines // height * -(-height // tile[0]) * -(-grid.width // tile[1])


def computed_pixels(work: Workload, tile: tuple[int, int]) -> int:
    """Count the pixels a kernel computes, those that overlapping tiles compute twice included."""
    return tiles_of(work, tile) * tile[0] * tile[1]


def fits(work: Workload, tile: tuple[int, int]) -> bool:
    """Whether a tile is no larger than the output it walks over."""
    grid = _grid(work)
    return tile[0] <= grid.spatial[1] and tile[1] <= grid.width


def build_rows_kernel(name: str, work: Workload, problem: RowsProblem, schedule: RowsSchedule) -> str:
    """Return the TVMScript of one layer.

    Arguments of the function, all flat: x, values, offsets, begin, length, base, rows, count, channel, bias, cut,
    ahead, y and residual if there is one. `channel` holds the first output channel of a block with neighbouring rows
    and -1 for any other; `cut` the first unit (block-major, tile-minor) of every thread where the threads share blocks.

    Raises:
        CodegenError: The tile is larger than the output that the kernel walks over.
    """
    if not fits(work, schedule.tile):
        raise CodegenError(
            f"The tile of schedule '{schedule}' is larger than the output {work.y}; choose a smaller one."
        )
    return _RowsWriter(name, work, problem, schedule).write()


class _RowsWriter:
    """Writes one kernel; the fields are what every part of the text needs."""

    def __init__(self, name: str, work: Workload, problem: RowsProblem, schedule: RowsSchedule) -> None:
        self.name, self.work, self.problem, self.schedule = name, work, problem, schedule
        self.grid = _grid(work)
        self.tiles = tiles_of(work, schedule.tile)
        self.pixels = schedule.tile[0] * schedule.tile[1]
        self.residual = "RES" if work.own_residual else "Y"
        self.script = Script()

    def write(self) -> str:
        work, problem, threads = self.work, self.problem, self.work.threads
        height = self.schedule.height
        buffers = {
            "X": (work.x.numel, "float32"),
            "W": (0, "float32"),
            "OFF": (0, "int32"),
            "BEGIN": (problem.blocks, "int32"),
            "LEN": (problem.blocks, "int32"),
            "BASE": (problem.blocks, "int32"),
            "ROWS": (problem.blocks * height, "int32"),
            "COUNT": (problem.blocks, "int32"),
            "CHANNEL": (problem.blocks, "int32"),
            "BIAS": (problem.blocks * height, "float32"),
            "CUT": (threads + 1, "int32"),
            "AHEAD": (ahead_cells(threads), "int32"),
            "Y": (work.y.numel, "float32"),
        }
        if work.own_residual:
            buffers["RES"] = (work.own_residual.numel, "float32")
        with (
            self.script.function(self.name, buffers, buffers.keys() - ACTIVATIONS),
            self.script.block(f"for t in T.parallel({threads})"),
        ):
            zero_halo(self.script, work.y, threads)
            begin_asking(self.script)
            if self.schedule.split == "blocks":
                self._split_blocks()
            else:
                self._split_pixels()
        return self.script.text

    def _split_blocks(self) -> None:
        with self.script.loops(*own_units(("b", self.problem.blocks), ("tile", self.tiles))):
            self._tile()

    def _split_pixels(self) -> None:
        tiles, threads, chunk = self.tiles, self.work.threads, self.schedule.chunk
        first, last = f"({tiles} * t // {threads})", f"({tiles} * (t + 1) // {threads})"
        longest = -(-tiles // threads)
        chunk = min(chunk or longest, longest)
        start = f"{first} + c * {chunk}"
        with self.script.loops(
            f"for c in T.serial({-(-longest // chunk)})",
            f"for b in T.serial({self.problem.blocks})",
            f"for tile in T.serial({start}, T.min({start} + {chunk}, {last}))",
        ):
            self._tile()

    def _tile(self) -> None:
        """Compute tile `tile` of block `b`."""
        script, schedule = self.script, self.schedule
        lanes, vectors = schedule.lanes, schedule.vectors
        script.allocate("pos", 3, "int32")
        self._positions()
        if schedule.prefetch:
            self._prefetch_next()
        tile = Accumulators(script, ("p", self.pixels), vectors, lanes)
        for cell in tile.cells():
            script.add(f"{cell} = BIAS[b * {schedule.height} + k * {lanes} + v]")
        for column in each_column(script, self._ask_input):
            for cell in tile.cells():
                x = f"X[OFF[BEGIN[b] + {column}] + pos[0] + {self._pixel(self.grid.x_steps)}]"
                w = f"W[BASE[b] + {column} * {schedule.height} + k * {lanes} + v]"
                script.add(f"{cell} = {cell} + {x} * {w}")
        self._store(tile)

    def _prefetch_next(self) -> None:
        """Ask for the next tile's lines: this block's part of the output and the residual; find where its input is."""
        script, schedule, grid = self.script, self.schedule, self.grid
        width, lines = schedule.tile[1], -(-schedule.height // LINE_CELLS)
        targets = [("Y", "pos[1]", grid.y_steps, 1)]
        if grid.residual_steps is not None and self.work.own_residual:
            targets.append(("RES", "pos[2]", grid.residual_steps, 0))
        over_lines = (f"for p in T.unroll({self.pixels})", f"for k in T.unroll({lines})")
        with script.loops("if CHANNEL[b] >= 0", *over_lines):
            for buffer, start, steps, write in targets:
                at = f"{start} + {width * steps[3]} + {self._pixel(steps)} + CHANNEL[b] + k * {LINE_CELLS}"
                script.add(prefetch(f"{buffer}[{at}]", write, L1))
        if not self._input_lines:
            return
        script.allocate("next", 1, "int32")
        script.add(f"next[0] = pos[0] + {width * grid.x_steps[3]} + b * {self._input_lines * LINE_CELLS}")

    @property
    def _input_lines(self) -> int:
        """Lines of every pixel of the next tile's input that one block asks for; kernels of one tap ask for them."""
        asks = self.schedule.prefetch and self.work.shape.is_pointwise and _is_flat(self.work.x)
        return -(-self.work.x.channels // (LINE_CELLS * self.problem.blocks)) if asks else 0

    def _ask_input(self, number: int) -> Iterator[str]:
        """Ask, with column `number` of a pair, for some of the next tile's input: all at once would stop the core."""
        step = self.grid.x_steps[3]
        pixels = -(-self.schedule.tile[1] // max(1, self.problem.columns // PAIR))
        asked = [pixel * step + line * LINE_CELLS for pixel in range(pixels) for line in range(self._input_lines)]
        for cell in asked[number::PAIR]:
            yield prefetch(f"X[next[0] + pair * {pixels * step} + {cell}]", 0, L1)

    def _pixel(self, steps: tuple[int, int, int, int]) -> str:
        """Return the element offset of pixel p inside its tile."""
        width = self.schedule.tile[1]
        return f"(p // {width} * {steps[2]} + p % {width} * {steps[3]})"

    def _positions(self) -> None:
        """Set pos[0], pos[1], pos[2]: first cell of the tile in x, y and the residual, as element offsets."""
        grid, (ph, pw) = self.grid, self.schedule.tile
        depth, height, _ = grid.spatial
        across, down = -(-grid.width // pw), -(-height // ph)
        w = f"T.min(tile % {across} * {pw}, {grid.width - pw})"
        h = f"T.min(tile // {across} % {down} * {ph}, {height - ph})"
        plane = f"(tile // {across * down})"
        d, n = f"({plane} % {depth})", f"({plane} // {depth})"
        origins = [self.work.first_tap, self.work.y.origin, self.work.residual.origin if self.work.residual else 0]
        all_steps = [grid.x_steps, grid.y_steps, grid.residual_steps]
        for index, (origin, steps) in enumerate(zip(origins, all_steps, strict=True)):
            if steps is not None:
                offset = " + ".join(f"{i} * {step}" for i, step in zip((n, d, h, w), steps, strict=True))
                self.script.add(f"pos[{index}] = {offset} + {origin}")

    def _store(self, tile: Accumulators) -> None:
        script, problem = self.script, self.problem
        if problem.has_vector_rows and problem.has_scattered_rows:
            with script.block("if CHANNEL[b] >= 0"):
                self._store_vectors(tile)
            with script.block("else"):
                self._store_lanes(tile)
        elif problem.has_vector_rows:
            self._store_vectors(tile)
        else:
            self._store_lanes(tile)

    def _activation(self, cell: str) -> list[str]:
        return activation_statements(cell, self.work.activation, self.work.activation_args, "v")

    def _temporaries(self) -> None:
        for name in TEMPORARIES:
            self.script.allocate(name, self.schedule.lanes)

    def _store_vectors(self, tile: Accumulators) -> None:
        lanes, grid = self.schedule.lanes, self.grid
        self._temporaries()
        at = f"CHANNEL[b] + k * {lanes}"
        target = f"pos[1] + {self._pixel(grid.y_steps)} + {at}"
        for cell in tile.cells():
            if grid.residual_steps is not None:
                residual = f"{self.residual}[pos[2] + {self._pixel(grid.residual_steps)} + {at} + v]"
                self.script.add(f"{cell} = {cell} + {residual}")
            self.script.add(*self._activation(cell))
            if not self.problem.keeps_others:
                self.script.add(f"Y[{target} + v] = {cell}")
        if self.problem.keeps_others:
            self._store_real_lanes(tile, target)

    def _store_real_lanes(self, tile: Accumulators, target: str) -> None:
        """Store vectors without the lanes of zero rows."""
        lanes = self.schedule.lanes
        mask = f"T.Ramp(k * {lanes}, 1, {lanes}) < T.Broadcast(COUNT[b], {lanes})"
        for part in tile.parts:
            with self.script.loops(part.outer, f"for k in T.unroll({self.schedule.vectors})"):
                self.script.add(masked_store(lanes, part.whole, f"Y[{target}]", mask))

    def _store_lanes(self, tile: Accumulators) -> None:
        """Store lane by lane: values go to memory first, a block's real rows from there to their channels."""
        script, height, grid, lanes = self.script, self.schedule.height, self.grid, self.schedule.lanes
        cells = self.pixels * height
        target = f"Y[pos[1] + {self._pixel(grid.y_steps)} + ROWS[b * {height} + r]]"
        script.allocate("out", cells)
        self._temporaries()
        if grid.residual_steps is None:
            for cell in tile.cells():
                script.add(*self._activation(cell), f"out[(p * {self.schedule.vectors} + k) * {lanes} + v] = {cell}")
            self._move_lanes(target, f"out[p * {height} + r]")
            return
        with script.loops(f"for p in T.serial({self.pixels})", f"for r in T.serial({height})"):
            script.add(f"out[p * {height} + r] = T.float32(0.0)")
        residual = f"{self.residual}[pos[2] + {self._pixel(grid.residual_steps)} + ROWS[b * {height} + r]]"
        self._move_lanes(f"out[p * {height} + r]", residual)
        for cell in tile.cells():
            script.add(f"{cell} = {cell} + out[(p * {self.schedule.vectors} + k) * {lanes} + v]")
            script.add(*self._activation(cell), f"out[(p * {self.schedule.vectors} + k) * {lanes} + v] = {cell}")
        self._move_lanes(target, f"out[p * {height} + r]")

    def _move_lanes(self, target: str, source: str) -> None:
        with self.script.loops(f"for p in T.serial({self.pixels})", "for r in T.serial(COUNT[b])"):
            self.script.add(f"{target} = {source}")
