"""The tail of a pixel-lane kernel's tile: pixels behind its vectors, each a vector whose lanes are the block's rows.

An image of 7x7 pixels is three vectors of 16 lanes and one pixel. Of a block of 8 rows that pixel takes one
multiply-add a column here, and 8 as a fourth vector.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.codegen.script import Script


class Tail:
    """The accumulators of a tail; a tile without one has a tail of no pixels, which writes nothing.

    Attributes:
        cell: Text of the accumulator of pixel `p` and row `v`.
    """

    def __init__(self, script: Script, pixels: int, rows: int, first: int) -> None:
        """Declare the accumulators.

        Args:
            script: The text that uses them.
            pixels: Pixels of the tail.
            rows: Rows of a block.
            first: Cells of the tile before the tail.
        """
        self._script, self._pixels, self._rows, self._first = script, pixels, rows, first
        self.cell = f"tail[p * {rows} + v]"
        if pixels:
            script.allocate("tail", pixels * rows)

    def start(self) -> None:
        """Begin with the bias of block `b`."""
        self._each_vector(f"{self.cell} = BIAS[b * {self._rows} + v]")

    def add(self, column: str, source: str) -> None:
        """Add the products of a column.

        Args:
            column: Its number in block `b`.
            source: Buffer of the planes.
        """
        x = f"{source}[OFF[BEGIN[b] + {column}] + pos[1] + {self._first} + p]"
        self._each_vector(f"{self.cell} = {self.cell} + {x} * W[BASE[b] + {column} * {self._rows} + v]")

    def store(self, row: str, residual: tuple[str, str] | None, statements: Sequence[str]) -> None:
        """Add the residual, apply the activation and store one cell of every row.

        Args:
            row: Element offset of the output line of row `r`.
            residual: Buffer of the residual and the element offset of row `r` in it, or None.
            statements: The activation of `cell`.
        """
        pixel, cell = f"pos[0] + {self._first} + p", f"tail[p * {self._rows} + r]"
        if residual:
            self._each_cell(f"{cell} = {cell} + {residual[0]}[{residual[1]} + {pixel}]")
        self._each_vector(*statements)
        self._each_cell(f"Y[{row} + {pixel}] = {cell}")

    def _each_vector(self, *statements: str) -> None:
        self._each(statements, f"for v in T.vectorized({self._rows})")

    def _each_cell(self, statement: str) -> None:
        self._each([statement], f"for r in T.unroll({self._rows})", "if r < COUNT[b]")

    def _each(self, statements: Sequence[str], *heads: str) -> None:
        """Write statements for every pixel `p`; a loop without any is no TVMScript."""
        if statements and self._pixels:
            with self._script.loops(f"for p in T.unroll({self._pixels})", *heads):
                self._script.add(*statements)
