"""The accumulators of a tile, held in registers over the whole column loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxprune.codegen.script import STACK_BYTES, Script


@dataclass(frozen=True)
class Part:
    """Accumulators in one buffer.

    Attributes:
        buffer: Its name.
        outer: The loop over its share of the tile's outer index.
        vector: Text of the first cell of vector `k` at the outer index.
    """

    buffer: str
    outer: str
    vector: str


class Accumulators:
    """Vectors for every value of an outer index, e.g. a pixel; as many buffers as the stack asks for.

    Attributes:
        parts: The buffers.
    """

    def __init__(self, script: Script, outer: tuple[str, int], vectors: int, lanes: int) -> None:
        """Declare the buffers.

        Args:
            script: The text that uses them.
            outer: Name and number of values of the outer index.
            vectors: Vectors `k` for each of its values.
            lanes: float32 lanes `v` of a vector.
        """
        (index, count), cells = outer, vectors * lanes
        most = max(1, (STACK_BYTES - 1) // (4 * cells))
        self.parts: list[Part] = []
        for number, first in enumerate(range(0, count, most)):
            last = min(first + most, count)
            vector = f"(({index} - {first}) * {vectors} + k) * {lanes}"
            self.parts.append(Part(f"acc{number}", f"for {index} in T.unroll({first}, {last})", vector))
            script.allocate(f"acc{number}", (last - first) * cells)
        self._script = script
        self._inner = (f"for k in T.unroll({vectors})", f"for v in T.vectorized({lanes})")

    def cells(self) -> Iterator[str]:
        """Open the loops over all accumulators, a part at a time; yields the text of the cell inside them."""
        for part in self.parts:
            with self._script.loops(part.outer, *self._inner):
                yield f"{part.buffer}[{part.vector} + v]"
