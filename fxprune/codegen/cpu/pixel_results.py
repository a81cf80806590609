"""How a pixel-lane kernel stores the results of a tile: a block's rows of some vectors of output pixels.

Where all cells of a run are output, whole vectors are stored, and the last tile of a run overlaps the one before it and
writes the same values again. Where cells between two lines are no output, the lanes of a vector are stored line by line
under a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.codegen.cpu.accumulators import Accumulators
from fxprune.codegen.cpu.epilogue import TEMPORARIES, activation_statements
from fxprune.codegen.cpu.masked import masked_load, masked_store
from fxprune.codegen.cpu.pixel_tail import Tail
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule, is_whole, planes_read
from fxprune.codegen.script import Script
from fxprune.codegen.workload import Layout, Workload


class Results:
    """Writes the end of a tile: residual, activation, store."""

    def __init__(self, script: Script, work: Workload, schedule: PixelsSchedule, image: str) -> None:
        """Take what the text needs.

        Args:
            script: The text; `pos[0]` is the tile's first cell of the run, and `b` its block.
            work: The layer.
            schedule: Options of the kernel.
            image: Expression of the image.
        """
        self.script, self.work, self.schedule, self.image = script, work, schedule, image
        self.planes = planes_read(work, schedule)
        self.residual = "RES" if work.own_residual else "Y"

    def store(self, tile: Accumulators, tail: Tail) -> None:
        """Store the vectors of a tile and the pixels behind them."""
        for name in TEMPORARIES:
            self.script.allocate(name, self.schedule.lanes)
        if is_whole(self.work, self.schedule):
            self._store_whole(tile)
            self._store_tail(tail)
        else:
            self._store_lines(tile)

    def _row(self, layout: Layout) -> str:
        """Return the element offset of row `r` of the block in a buffer of the output's channels."""
        n_step, c_step, *_ = layout.strides
        return f"ROWS[b * {self.schedule.rows} + r] * {c_step} + {self.image} * {n_step}"

    def _store_whole(self, tile: Accumulators) -> None:
        """Store vectors whose lanes are neighbouring pixels."""
        script, schedule = self.script, self.schedule
        cell = f"pos[0] + k * {schedule.lanes} + v"
        target = f"{self._row(self.work.y)} + {cell}"
        heads = (f"for k in T.unroll({tile.vectors})", f"for v in T.vectorized({schedule.lanes})")
        for part in tile.parts:
            with script.loops(part.outer, "if r < COUNT[b]", *heads):
                if self.work.residual:
                    added = f"{self.residual}[{self._row(self.work.residual)} + {cell}]"
                    script.add(f"{part.cell} = {part.cell} + {added}")
                script.add(*activation_statements(part.cell, self.work.activation, self.work.activation_args, "v"))
                script.add(f"Y[{target}] = {part.cell}")

    def _store_tail(self, tail: Tail) -> None:
        """Store the pixels behind the vectors."""
        work = self.work
        activation = activation_statements(tail.cell, work.activation, work.activation_args, "v")
        added = (self.residual, self._row(work.residual)) if work.residual else None
        tail.store(self._row(work.y), added, activation)

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

    def _store_lines(self, tile: Accumulators) -> None:
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
                self._store_pieces(whole, list(zip(masks, starts, strict=True)))

    def _store_pieces(self, whole: str, pieces: Sequence[tuple[str, str]]) -> None:
        """Store the vector in `out`, each piece, (mask, offset of lane 0 within the plane), where it belongs."""
        script, lanes, work = self.script, self.schedule.lanes, self.work
        if work.residual:
            row = self._row(work.residual)
            for mask, start in pieces:
                script.add(f"{whole} = {whole} + {masked_load(lanes, f'{self.residual}[{row} + {start}]', mask)}")
        statements = activation_statements("out[v]", work.activation, work.activation_args, "v")
        if statements:
            with script.block(f"for v in T.vectorized({lanes})"):
                script.add(*statements)
        for mask, start in pieces:
            script.add(masked_store(lanes, whole, f"Y[{self._row(work.y)} + {start}]", mask))
