"""The part of a kernel that asks for the weights of later layers, so that those find them in the cache.

Weights are read once in a call of the model, and by the next call they have left the cache. A thread asks for up to
`RANGES` ranges of memory, a few cells with every pair of columns that it multiplies: a core waits for a dozen lines at
a time at most, and questions in a row would stop it. Array AHEAD holds for every thread (cells asked for with a pair,
in units of 1 / `UNITS`; cells of the first range; its first cell, counted from W; what to add to find the second range;
cells over both ranges in units); `codegen.ahead` fills it in. An address outside of W does no harm: nothing is read.
"""

from __future__ import annotations

from fxprune.codegen.script import Script
from fxprune.codegen.workload import LINE_CELLS

PAIR = 2
"""Columns that a kernel multiplies between two looks at what is due, and lines that it asks for then."""

RANGES = 2
"""Ranges of memory that a thread may ask for in one kernel."""

_PLACES = 4
UNITS = 2**_PLACES
"""Parts of a cell that a thread counts in."""

FIELDS = 5
"""Cells of AHEAD for one thread."""

RATE, FIRST_CELLS, FIRST, SECOND, END = range(FIELDS)
_ASKED = FIELDS

L1, _L2 = 3, 2
"""Localities of LLVM's prefetch: into all caches, and one that leaves the L1 cache to the layer that is running."""


def ahead_cells(threads: int) -> int:
    """Count the cells of AHEAD, int32."""
    return FIELDS * threads


def prefetch(cell: str, write: int, locality: int) -> str:
    """Return a statement that asks for a cell's cache line; an address outside the buffer does no harm.

    Args:
        cell: A buffer's element.
        write: 1 if it will be written, 0 if it will be read.
        locality: Locality of LLVM's prefetch, 3 = all caches.
    """
    return f'T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of({cell}), {write}, {locality}, 1))'


def begin_asking(script: Script) -> None:
    """Declare, inside the parallel loop over `t`, what the thread asks for, and that it has not asked yet."""
    script.allocate("ask", FIELDS + 1, "int32")
    script.add(*(f"ask[{field}] = AHEAD[t * {FIELDS} + {field}]" for field in range(FIELDS)), f"ask[{_ASKED}] = 0")


def ask_line(script: Script, number: int) -> None:
    """Ask for one of the `PAIR` lines that are due with pair `pair` of block `b`."""
    cell = f"T.shift_right(ask[{_ASKED}] + pair * ask[{RATE}], {_PLACES})"
    start = f"T.Select({cell} < ask[{FIRST_CELLS}], ask[{FIRST}], ask[{SECOND}])"
    script.add(prefetch(f"W[{cell} + {start} + {number * LINE_CELLS}]", 0, _L2))


def end_columns(script: Script) -> None:
    """Count what was asked for with the columns of block `b`, and stop at the end."""
    script.add(
        f"ask[{_ASKED}] = ask[{_ASKED}] + LEN[b] // {PAIR} * ask[{RATE}]",
        f"ask[{RATE}] = T.Select(ask[{_ASKED}] < ask[{END}], ask[{RATE}], 0)",
    )
