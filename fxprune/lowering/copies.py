"""What it costs to copy activations between channels-last and planes: measured once for every size, or predicted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from math import prod

from torch import fx

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.transpose import build_transpose_kernel
from fxprune.codegen.kernel import BoundUnary
from fxprune.codegen.memory import Pool, rounded
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Layout, Triple, spread_cells
from fxprune.lowering.known import Known
from fxprune.lowering.measure import time_calls
from fxprune.records.record import Record

_IN_MODEL = 2.0
"""A copy in a model over one that runs again and again: neither end is where it left them. In ResNet-50 1.4 to 3."""

_GBPS = 8.0
"""Rate that predictions assume, gigabytes read and written a second."""

_CANDIDATE = "copy"
"""How records name what ran."""

Size = tuple[int, int, Triple]
"""Images, channels and the image's axes."""


def copy_costs(
    nodes: Iterable[fx.Node], target: CpuTarget, known: Known | None, *, measure: bool
) -> Callable[[fx.Node], float]:
    """Return what it costs to copy the result of a node into the other order, microseconds.

    Args:
        nodes: The nodes that will be asked for.
        target: The CPU.
        known: Records, which are used first and, if it says so, added to.
        measure: Time the copies that have no record; False predicts them.
    """
    sizes = list(dict.fromkeys(_size(node) for node in nodes))
    times = {} if known is None else _recall(sizes, known)
    rest = [size for size in sizes if size not in times and _cells(size)]
    if measure and rest:
        found = _measure(rest, target)
        times |= found
        if known is not None and known.fills:
            known.write([Record(known.context, _text(size), _CANDIDATE, seconds) for size, seconds in found.items()])
    return lambda node: 1e6 * _IN_MODEL * times.get(_size(node), _predict(_size(node)))


def _size(node: fx.Node) -> Size:
    """Return the sizes of a result as an image; one of fewer than three axes has one pixel, or a line of them."""
    shape = tuple(int(size) for size in node.meta["val"].shape)
    batch, channels, *image = (1,) * (2 - len(shape)) + shape
    depth, height, width = (*(1,) * (3 - len(image)), *image) if len(image) <= 3 else (1, 1, prod(image))
    return batch, channels, (depth, height, width)


def _predict(size: Size) -> float:
    return 2 * 4 * _cells(size) / (_GBPS * 1e9)


def _cells(size: Size) -> int:
    batch, channels, image = size
    return batch * channels * prod(image)


def _text(size: Size) -> str:
    return json.dumps({"copy": size}, separators=(",", ":"))


def _recall(sizes: Iterable[Size], known: Known) -> dict[Size, float]:
    records = {size: known.of(_text(size)).get(_CANDIDATE) for size in sizes}
    return {size: found.seconds for size, found in records.items() if found is not None and found.seconds is not None}


def _measure(sizes: list[Size], target: CpuTarget) -> dict[Size, float]:
    """Time the copy of every size into planes, seconds; the way back moves the same cells."""
    pairs = []
    for batch, channels, image in sizes:
        x = Layout("nhwc", batch, spread_cells(channels), image)
        pairs.append((x, Layout("nchw", batch, channels, image, spread=True)))
    scripts = {
        f"copy_{number}": build_transpose_kernel(f"copy_{number}", x, y, y.channels, target.lanes, target.threads)
        for number, (x, y) in enumerate(pairs)
    }
    library = Library(scripts, target)
    most = [max(pair[end].numel for pair in pairs) for end in (0, 1)]
    pool = Pool(sum(rounded(cells) for cells in most))
    first, second = (pool.take(cells).zero_() for cells in most)
    bound = [
        BoundUnary(library[name], first[: x.numel], second[: y.numel])
        for name, (x, y) in zip(scripts, pairs, strict=True)
    ]
    return dict(zip(sizes, (time_calls([one.run])[0] for one in bound), strict=True))
