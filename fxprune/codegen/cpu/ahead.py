"""The part of a kernel that asks for the weights of later layers, so that those find them in the cache.

Weights are read once in a call of the model, and by the next call they have left the cache. Array AHEAD holds
`RANGES` ranges of memory for every thread, each as its first cell, counted from W, and the lines to ask for with every
tile of a block; `codegen.ahead` fills it in. An address that lies outside of W does no harm: nothing is read.
"""

from __future__ import annotations

from fxprune.codegen.script import Script
from fxprune.codegen.workload import LINE_CELLS

RANGES = 2
"""Ranges of memory that a thread may ask for in one kernel."""

_L2 = 2
"""Locality of LLVM's prefetch that leaves the L1 cache to the layer that is running."""


def ahead_cells(threads: int) -> int:
    """Count the cells of AHEAD, int32."""
    return 2 * RANGES * threads


def prefetch(cell: str, write: int, locality: int) -> str:
    """Return a statement that asks for a cell's cache line; an address outside the buffer does no harm.

    Args:
        cell: A buffer's element.
        write: 1 if it will be written, 0 if it will be read.
        locality: Locality of LLVM's prefetch, 3 = all caches.
    """
    return f'T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of({cell}), {write}, {locality}, 1))'


def begin_asking(script: Script) -> None:
    """Declare, inside the parallel loop over `t`, where the thread's next question of every range begins."""
    script.add(f'ask = T.alloc_buffer(({RANGES},), "int32", scope="local")')
    for number in range(RANGES):
        script.add(f"ask[{number}] = AHEAD[t * {2 * RANGES} + {2 * number}]")


def ask_ahead(script: Script) -> None:
    """Ask for the next lines of every range."""
    for number in range(RANGES):
        lines = f"AHEAD[t * {2 * RANGES} + {2 * number + 1}]"
        with script.block(f"for k in T.serial({lines})"):
            script.add(prefetch(f"W[ask[{number}] + k * {LINE_CELLS}]", 0, _L2))
        script.add(f"ask[{number}] = ask[{number}] + {lines} * {LINE_CELLS}")
