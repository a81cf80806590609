"""The statements that compute one tile of a row-lane kernel: `pixels` accumulators of a block's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fxprune.codegen.cpu.accumulators import Accumulators
from fxprune.codegen.cpu.ahead import L1, PAIR, prefetch
from fxprune.codegen.cpu.columns import each_column
from fxprune.codegen.cpu.epilogue import TEMPORARIES, activation_statements
from fxprune.codegen.cpu.masked import masked_store
from fxprune.codegen.cpu.row_walk import Form, RowsSchedule, walk_over
from fxprune.codegen.script import Script
from fxprune.codegen.workload import LINE_CELLS, NO_HALO, Workload


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


class TileWriter:
    """Writes the tile at `pos` of block `b`; the fields are what every part of the text needs."""

    def __init__(
        self, script: Script, work: Workload, problem: RowsProblem, schedule: RowsSchedule, form: Form
    ) -> None:
        """Set what is to be computed.

        Args:
            script: The text; `pos` holds where the tile begins in input, output and residual.
            work: The layer.
            problem: Its packed arrays.
            schedule: Options of the kernel.
            form: How the tile's pixels lie.
        """
        self.script, self.work, self.problem, self.schedule, self.form = script, work, problem, schedule, form
        self.walk = walk_over(work)
        self.residual = "RES" if work.own_residual else "Y"

    def write(self) -> None:
        """Write it all."""
        if self.schedule.prefetch:
            self._prefetch_next()
        tile = self._accumulate()
        self._by_rows(lambda: self._store_vectors(tile), lambda: self._store_lanes(tile))

    def _accumulate(self) -> Accumulators:
        """Multiply the tile at `pos`."""
        script, schedule = self.script, self.schedule
        lanes = schedule.lanes
        tile = Accumulators(script, ("p", self.form.pixels), schedule.vectors, lanes)
        for cell in tile.cells():
            script.add(f"{cell} = BIAS[b * {schedule.height} + k * {lanes} + v]")
        for column in each_column(script, self._ask_input):
            for cell in tile.cells():
                x = f"X[OFF[BEGIN[b] + {column}] + pos[0] + {self.form.cell(self.walk.x_steps)}]"
                w = f"W[BASE[b] + {column} * {schedule.height} + k * {lanes} + v]"
                script.add(f"{cell} = {cell} + {x} * {w}")
        return tile

    def _prefetch_next(self) -> None:
        """Ask for the next tile's lines: this block's part of the output and the residual; find where its input is."""
        script, schedule, walk = self.script, self.schedule, self.walk
        width, lines = schedule.tile[1], -(-schedule.height // LINE_CELLS)
        targets = [("Y", "pos[1]", walk.y_steps, 1)]
        if walk.residual_steps is not None and self.work.own_residual:
            targets.append(("RES", "pos[2]", walk.residual_steps, 0))
        over_lines = (f"for p in T.unroll({self.form.pixels})", f"for k in T.unroll({lines})")
        with script.loops("if CHANNEL[b] >= 0", *over_lines):
            for buffer, start, steps, write in targets:
                at = f"{start} + {width * steps[3]} + {self.form.cell(steps)} + CHANNEL[b] + k * {LINE_CELLS}"
                script.add(prefetch(f"{buffer}[{at}]", write, L1))
        if not self._input_lines:
            return
        script.allocate("next", 1, "int32")
        script.add(f"next[0] = pos[0] + {width * walk.x_steps[3]} + b * {self._input_lines * LINE_CELLS}")

    @property
    def _input_lines(self) -> int:
        """Lines of every pixel of the next tile's input that one block asks for; kernels of one tap ask for them."""
        asks = self.schedule.prefetch and self.work.shape.is_pointwise and self.work.x.halo == NO_HALO
        return -(-self.work.x.channels // (LINE_CELLS * self.problem.blocks)) if asks else 0

    def _ask_input(self, number: int) -> Iterator[str]:
        """Ask, with column `number` of a pair, for some of the next tile's input: all at once would stop the core."""
        step = self.walk.x_steps[3]
        pixels = -(-self.schedule.tile[1] // max(1, self.problem.columns // PAIR))
        asked = [pixel * step + line * LINE_CELLS for pixel in range(pixels) for line in range(self._input_lines)]
        for cell in asked[number::PAIR]:
            yield prefetch(f"X[next[0] + pair * {pixels * step} + {cell}]", 0, L1)

    def _by_rows(self, vectors: Callable[[], None], lanes: Callable[[], None]) -> None:
        """Write what a block with neighbouring rows does and what any other does, as far as there are such blocks."""
        script, problem = self.script, self.problem
        if problem.has_vector_rows and problem.has_scattered_rows:
            with script.block("if CHANNEL[b] >= 0"):
                vectors()
            with script.block("else"):
                lanes()
        elif problem.has_vector_rows:
            vectors()
        else:
            lanes()

    def _activation(self, cell: str) -> list[str]:
        return activation_statements(cell, self.work.activation, self.work.activation_args, "v")

    def _temporaries(self) -> None:
        for name in TEMPORARIES:
            self.script.allocate(name, self.schedule.lanes)

    def _store_vectors(self, tile: Accumulators) -> None:
        lanes, walk = self.schedule.lanes, self.walk
        self._temporaries()
        at = f"CHANNEL[b] + k * {lanes}"
        target = f"pos[1] + {self.form.cell(walk.y_steps)} + {at}"
        for cell in tile.cells():
            if walk.residual_steps is not None:
                residual = f"{self.residual}[pos[2] + {self.form.cell(walk.residual_steps)} + {at} + v]"
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
        script, height, walk, lanes = self.script, self.schedule.height, self.walk, self.schedule.lanes
        cells = self.form.pixels * height
        target = f"Y[pos[1] + {self.form.cell(walk.y_steps)} + ROWS[b * {height} + r]]"
        script.allocate("out", cells)
        self._temporaries()
        if walk.residual_steps is None:
            for cell in tile.cells():
                script.add(*self._activation(cell), f"out[(p * {self.schedule.vectors} + k) * {lanes} + v] = {cell}")
            self._move_lanes(target, f"out[p * {height} + r]")
            return
        with script.loops(f"for p in T.serial({self.form.pixels})", f"for r in T.serial({height})"):
            script.add(f"out[p * {height} + r] = T.float32(0.0)")
        residual = f"{self.residual}[pos[2] + {self.form.cell(walk.residual_steps)} + ROWS[b * {height} + r]]"
        self._move_lanes(f"out[p * {height} + r]", residual)
        for cell in tile.cells():
            script.add(f"{cell} = {cell} + out[(p * {self.schedule.vectors} + k) * {lanes} + v]")
            script.add(*self._activation(cell), f"out[(p * {self.schedule.vectors} + k) * {lanes} + v] = {cell}")
        self._move_lanes(target, f"out[p * {height} + r]")

    def _move_lanes(self, target: str, source: str) -> None:
        with self.script.loops(f"for p in T.serial({self.form.pixels})", "for r in T.serial(COUNT[b])"):
            self.script.add(f"{target} = {source}")
