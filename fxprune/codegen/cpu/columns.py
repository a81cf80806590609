"""The loop over the columns of a block.

Two columns at a time, and what serves both is computed once. Of four columns LLVM loads so many weights early that
accumulators leave their registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from fxprune.codegen.cpu.ahead import PAIR, ask_line, end_columns
from fxprune.codegen.script import Script


def each_column(script: Script, also: Callable[[int], Iterable[str]] = lambda _number: ()) -> Iterator[str]:
    """Open the loops over the columns of block `b`, which also ask for later weights; yields a column's number.

    Args:
        script: The text.
        also: Returns what else is to be done with a column of pair `pair`, given its number in the pair.
    """
    with script.block(f"for pair in T.serial(LEN[b] // {PAIR})"):
        for number in range(PAIR):
            ask_line(script, number)
            script.add(*also(number))
            yield f"(pair * {PAIR} + {number})"
    with script.block(f"for rest in T.serial(LEN[b] % {PAIR})"):
        yield f"(LEN[b] // {PAIR} * {PAIR} + rest)"
    end_columns(script)
