"""Which kernel of a model asks for which weights: those of the layers after it, as early as the caches allow.

The kernel right before a layer asks for as much of its weights as it has time for; what is left is asked for by the
kernels before that one. Without it ResNet-50 at 0.8 waits for memory a sixth of its time. What nobody had time for a
kernel asks for itself, a block of rows ahead, if several tiles share a block: the first of them reads it, the others
have it in the cache. Of 512 dense channels a 3x3 layer at 7x7 then takes 0.8 to 1.1 ms from memory, else 1.3 to 1.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fxprune.codegen.cpu.ahead import END, FIELDS, FIRST, FIRST_CELLS, PAIR, RANGES, RATE, SECOND, UNITS
from fxprune.codegen.kernel import BoundKernel, LayerKernel
from fxprune.codegen.reading import blocks_read, pairs_read, tiles_in_turn
from fxprune.codegen.workload import LINE_CELLS

_LINE_BYTES = 4 * LINE_CELLS

_MACS_PER_LINE = 512
"""Multiply-adds of a thread to each line it asks for: 64 bytes every 32 cycles at one of AVX-512 a cycle, 7 GB/s. With
twice as many ResNet-50 at 0.8 took 1.5 % longer on a Zen 4."""

_MOST_LINES = 2**14
"""Lines that a kernel asks for at most: 1 MB, half of a large L2 cache."""

_LEAST_OWN = 2**12
"""Lines of its own weights, 256 kB, that a kernel asks for at least: fewer are still in the L2 cache."""

_MOST_OWN = 2**22
"""Lines of its own weights, 256 MB, that a kernel asks for at most: it counts parts of a cell in 32 bits."""

_DEPTH = 8
"""Kernels between asking and reading, at most: what is asked for too early is evicted again."""


@dataclass
class _Asker:
    """A kernel as one of its threads sees it.

    Attributes:
        pairs: Pairs of columns that the thread reads; it asks with each of them.
        lines: Lines that it still has time to ask for.
        ranges: What it asks for: (address in bytes, lines).
        rate: Cells that it asks for with every pair at least, in units of 1 / `UNITS`.
    """

    pairs: int
    lines: int
    ranges: list[tuple[int, int]] = field(default_factory=list)
    rate: int = 0


def look_ahead(kernels: Sequence[tuple[LayerKernel, BoundKernel]]) -> None:
    """Fill in what every kernel asks for.

    Args:
        kernels: The kernels of a model in the order in which they run, packed into one pool.
    """
    sparse = [(kernel, bound) for kernel, bound in kernels if kernel.packed is not None]
    threads = sparse[0][0].work.threads if sparse else 0
    for thread in range(threads):
        askers = [_asker(kernel, thread) for kernel, _ in sparse]
        for number, (kernel, bound) in enumerate(sparse):
            needs = _needs(kernel, bound, thread)
            _share_out(needs, askers[max(0, number - _DEPTH) : number])
            if needs:
                _ask_itself(askers[number], needs[0], kernel, bound, thread)
        for (_, bound), asker in zip(sparse, askers, strict=True):
            _write(bound, thread, asker)


def _asker(kernel: LayerKernel, thread: int) -> _Asker:
    assert kernel.packed is not None
    pairs = pairs_read(kernel, thread)
    macs = kernel.packed.stored * kernel.computed_pixels // kernel.work.threads
    lines = min(PAIR * pairs - RANGES + 1, macs // _MACS_PER_LINE, _MOST_LINES)  # ranges overlap by a line
    return _Asker(pairs, max(0, lines))


def _needs(kernel: LayerKernel, bound: BoundKernel, thread: int) -> list[tuple[int, int]]:
    """Return the memory that a thread reads of a kernel's values and column lists, (address in bytes, lines)."""
    packed = kernel.packed
    assert packed is not None
    first, stop = blocks_read(kernel, thread)
    if first == stop:
        return []
    needs = []
    for array, starts, height in zip(bound.arrays, (packed.base, packed.begin), (packed.height, 1), strict=False):
        begin, end = int(starts[first]), int(starts[stop - 1]) + int(packed.length[stop - 1]) * height
        line = begin // LINE_CELLS
        if end > begin:
            needs.append((array.data_ptr() + _LINE_BYTES * line, -(-end // LINE_CELLS) - line))
    return needs


def _share_out(needs: list[tuple[int, int]], before: Sequence[_Asker]) -> None:
    """Give memory to the kernels before its reader, the last of them first."""
    for asker in reversed(before):
        while needs and asker.lines and len(asker.ranges) < RANGES:
            address, lines = needs.pop(0)
            taken = min(lines, asker.lines)
            asker.ranges.append((address, taken))
            asker.lines -= taken
            if taken < lines:
                needs.insert(0, (address + taken * _LINE_BYTES, lines - taken))


def _ask_itself(asker: _Asker, left: tuple[int, int], kernel: LayerKernel, bound: BoundKernel, thread: int) -> None:
    """Let a thread ask for what is left of the values that it reads, as fast as it reads them and a block ahead.

    Args:
        asker: The thread.
        left: Memory of its kernel that nobody asks for, (address in bytes, lines); all values, or the last of them.
        kernel: The kernel.
        bound: Its arrays.
        thread: Its number.
    """
    packed, tiles, (first, stop) = kernel.packed, tiles_in_turn(kernel, thread), blocks_read(kernel, thread)
    assert packed is not None
    address, lines = left
    if tiles < 2 or stop - first < 2 or not asker.pairs or not _is_inside(address, bound.arrays[0]):
        return
    second = bound.arrays[0].data_ptr() + 4 * int(packed.base[first + 1])
    read = max(0, (second - address) // _LINE_BYTES)
    if lines - read < _LEAST_OWN:
        return
    asker.ranges.append((address + read * _LINE_BYTES, min(lines - read, _MOST_OWN)))
    asker.rate = min(PAIR * LINE_CELLS * UNITS, -(-PAIR * packed.height * UNITS // tiles))
    asker.lines = max(0, asker.lines - lines)


def _is_inside(address: int, array: torch.Tensor) -> bool:
    return array.data_ptr() <= address < array.data_ptr() + array.nbytes


def _write(bound: BoundKernel, thread: int, asker: _Asker) -> None:
    if not asker.ranges:
        return
    values, ahead = bound.arrays[0], bound.arrays[-1]
    starts = [(address - values.data_ptr()) // 4 for address, _ in asker.ranges]
    sizes = [lines * LINE_CELLS for _, lines in asker.ranges]
    for later in range(1, len(sizes)):  # the pair that crosses from the range before passes its first line by
        starts[later], sizes[later] = starts[later] - LINE_CELLS, sizes[later] + LINE_CELLS
    end = sum(sizes) * UNITS
    fields = ahead[thread * FIELDS : (thread + 1) * FIELDS]
    fields[RATE], fields[END] = max(asker.rate, -(-end // asker.pairs)), end
    fields[FIRST_CELLS], fields[FIRST], fields[SECOND] = sizes[0], starts[0], starts[-1] - sum(sizes[:-1])
