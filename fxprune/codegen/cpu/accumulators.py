"""The accumulators of a tile, held in registers over the whole column loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxprune.codegen.script import STACK_BYTES, Script


@dataclass(frozen=True)
class Part:
    """Accumulators in one buffer.

    Attributes:
        outer: The loop over its share of the tile's outer index.
        cell: Text of lane `v` of vector `k` at the outer index.
        whole: Text of that vector.
    """

    outer: str
    cell: str
    whole: str


class Accumulators:
    """Vectors for every value of an outer index, e.g. a pixel; as many buffers as the stack asks for.

    Attributes:
        parts: The buffers.
        vectors: Vectors for each value of the outer index.
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
        self.vectors = vectors
        for number, first in enumerate(range(0, count, most)):
            last = min(first + most, count)
            buffer, vector = f"acc{number}", f"(({index} - {first}) * {vectors} + k) * {lanes}"
            script.allocate(buffer, (last - first) * cells)
            outer_loop = f"for {index} in T.unroll({first}, {last})"
            self.parts.append(Part(outer_loop, f"{buffer}[{vector} + v]", f"{buffer}[T.Ramp({vector}, 1, {lanes})]"))
        self._script = script
        self._inner = (f"for k in T.unroll({vectors})", f"for v in T.vectorized({lanes})")

    def cells(self) -> Iterator[str]:
        """Open the loops over all accumulators, a part at a time; yields the text of the cell inside them."""
        for part in self.parts:
            with self._script.loops(part.outer, *self._inner):
                yield part.cell
