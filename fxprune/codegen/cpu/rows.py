"""The row-lane kernel: output rows are vector lanes, pixels share the weights.

    for tile of ph x pw output pixels, for block of R = lanes * q rows:
        acc[pixel][row] = bias[row]
        for column in columns(block):
            acc[pixel] += broadcast(X[offset[column] + base(pixel)]) * W[block][column]      # R weights
        Y[pixel][rows of block] = activation(acc[pixel] + residual)

Activations lie channels-last, the input with a halo that covers the padding, so alignment, kernel shifts and stride
cost nothing. The last tile of a line overlaps the one before it and writes the same values again, or tiles are cut
evenly (`row_walk`). A block whose rows are neighbours in the output stores vectors (`codegen.runs`), any other block
lane by lane.
Source: `Elsen et al., Fast Sparse ConvNets, CVPR 2020` for gathered columns; the tile is that of a GEMM micro-kernel.
"""

from __future__ import annotations

from itertools import accumulate

from fxprune.codegen.cpu.ahead import ahead_cells, begin_asking
from fxprune.codegen.cpu.halo import zero_halo
from fxprune.codegen.cpu.row_pool import PooledTile
from fxprune.codegen.cpu.row_tile import RowsProblem, TileWriter
from fxprune.codegen.cpu.row_walk import RowsSchedule, find_forms, fits, tile_origin, tiles_of, walk_over
from fxprune.codegen.cpu.units import own_units
from fxprune.codegen.script import ACTIVATIONS, Script
from fxprune.codegen.workload import NO_WINDOWS, Workload
from fxprune.errors import CodegenError


def build_rows_kernel(name: str, work: Workload, problem: RowsProblem, schedule: RowsSchedule) -> str:
    """Return the TVMScript of one layer.

    Arguments of the function, all flat: x, values, offsets, begin, length, base, rows, count, channel, bias, cut,
    ahead, y and residual if there is one. `channel` holds the first output channel of a block with neighbouring rows
    and -1 for any other; `cut` the first unit (block-major, tile-minor) of every thread where the threads share blocks.

    Raises:
        CodegenError: The tile is larger than the output that the kernel walks over.
    """
    if not fits(work, schedule):
        raise CodegenError(
            f"The tile of schedule '{schedule}' is larger than the output {work.y}; choose a smaller one."
        )
    return _RowsWriter(name, work, problem, schedule).write()


class _RowsWriter:
    """Writes one kernel; the fields are what every part of the text needs."""

    def __init__(self, name: str, work: Workload, problem: RowsProblem, schedule: RowsSchedule) -> None:
        self.name, self.work, self.problem, self.schedule = name, work, problem, schedule
        self.tiles = tiles_of(work, schedule)
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
        """Compute tile `tile` of block `b`, whose form its number tells."""
        script, forms = self.script, find_forms(self.work, self.schedule)
        script.allocate("pos", 3, "int32")
        self._positions()
        kind = TileWriter if self.work.windows == NO_WINDOWS else PooledTile
        writers = [kind(script, self.work, self.problem, self.schedule, form) for form in forms]
        if len(forms) == 1:
            writers[0].write()
            return
        *stops, count = accumulate(form.tiles for form in forms)
        headers = [f"{'elif' if index else 'if'} tile % {count} < {stop}" for index, stop in enumerate(stops)]
        for header, writer in zip([*headers, "else"], writers, strict=True):
            with script.block(header):
                writer.write()

    def _positions(self) -> None:
        """Set pos[0], pos[1], pos[2]: where the tile begins in x, y and the residual, as element offsets."""
        work, walk = self.work, walk_over(self.work)
        n, d, h, w = tile_origin(work, self.schedule)
        pixel, window = (n, d, h, w), (n, d, f"({h} // {work.windows.height})", f"({w} // {work.windows.width})")
        parts = [(pixel, walk.x_steps, work.first_tap), (window, walk.y_steps, work.y.origin)]
        if work.residual is not None and walk.residual_steps is not None:
            parts.append((pixel, walk.residual_steps, work.residual.origin))
        for index, (place, steps, origin) in enumerate(parts):
            offset = " + ".join(f"{i} * {step}" for i, step in zip(place, steps, strict=True))
            self.script.add(f"pos[{index}] = {offset} + {origin}")
