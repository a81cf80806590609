"""A tile of a row-lane kernel whose pixels are pooled before they are stored: whole windows of them.

    acc[pixel][row] = ...                                                   # as of any tile
    pooled[window][row] = max or mean over the pixels of the window of activation(acc[pixel])
    Y[window][rows of block] = pooled[window]

What the layer computes stays in registers: VGG-16's first layers would write 13 MB, which their pools read again.
"""

from __future__ import annotations

from fxprune.codegen.cpu.row_tile import TileWriter


class PooledTile(TileWriter):
    """Writes the tile at `pos` of block `b`."""

    def write(self) -> None:
        """Write it all."""
        self.script.allocate("pooled", self._windows * self.schedule.height)
        self._pool()
        self._by_rows(self._store_pooled_vectors, self._store_pooled_lanes)

    @property
    def _across(self) -> int:
        """Windows side by side in the tile."""
        return self.form.shape[1] // self.work.windows.width

    @property
    def _windows(self) -> int:
        """Windows of the tile."""
        return self.form.shape[0] // self.work.windows.height * self._across

    def _cell(self, window: str) -> str:
        """Return the text of lane `v` of vector `k` of a window."""
        return f"pooled[({window} * {self.schedule.vectors} + k) * {self.schedule.lanes} + v]"

    def _pool(self) -> None:
        """Compute the tile and pool its pixels; what a window's first pixel finds there is not used."""
        tile, windows, width = self._accumulate(), self.work.windows, self.form.shape[1]
        self._temporaries()
        line, pixel = f"p // {width}", f"p % {width}"
        is_first = f"{line} % {windows.height} == 0 and {pixel} % {windows.width} == 0"
        pooled = self._cell(f"({line} // {windows.height} * {self._across} + {pixel} // {windows.width})")
        for cell in tile.cells():
            larger = f"T.Select({cell} > {pooled} or T.isnan({cell}), {cell}, {pooled})"
            value = larger if windows.kind == "max" else f"{pooled} + {cell}"
            self.script.add(*self._activation(cell), f"{pooled} = T.Select({is_first}, {cell}, {value})")

    def _store_pooled_vectors(self) -> None:
        vectors, lanes = self.schedule.vectors, self.schedule.lanes
        over = (f"for i in T.unroll({self._windows})", f"for k in T.unroll({vectors})")
        with self.script.loops(*over, f"for v in T.vectorized({lanes})"):
            target = self._target(f"CHANNEL[b] + k * {lanes} + v")
            self.script.add(f"{target} = {self._scaled(self._cell('i'))}")

    def _store_pooled_lanes(self) -> None:
        height = self.schedule.height
        with self.script.loops(f"for i in T.serial({self._windows})", "for r in T.serial(COUNT[b])"):
            target = self._target(f"ROWS[b * {height} + r]")
            self.script.add(f"{target} = {self._scaled(f'pooled[i * {height} + r]')}")

    def _target(self, channel: str) -> str:
        """Return the text of where a channel of window `i` is stored."""
        *_, h_step, w_step = self.walk.y_steps
        return f"Y[pos[1] + i // {self._across} * {h_step} + i % {self._across} * {w_step} + {channel}]"

    def _scaled(self, cell: str) -> str:
        windows = self.work.windows
        return cell if windows.kind == "max" else f"{cell} * T.float32({1 / (windows.height * windows.width)!r})"
