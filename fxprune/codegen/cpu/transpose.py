"""Copies an activation from channels-last into planes or back: square blocks of cells, turned within registers.

    for line of pixels, for block of L pixels, for block of L channels:
        r[i] = X[pixel i][L channels]                      # L vector loads
        r = transposed(r)                                  # log2(L) steps of L shuffles
        Y[channel i][L pixels] = r[i]                      # L vector stores

A line is a whole image, or one line of it where the channels-last buffer has a halo, which is set to zero if it is the
copy's. The last block of a line and of the channels overlaps the one before it and writes the same values again.
Source: the network is that of J. O. Eklundh, A fast computer method for matrix transposing, IEEE Trans. Comput. 1972.
"""

from __future__ import annotations

from fxprune.codegen.cpu.halo import zero_halo
from fxprune.codegen.script import Script
from fxprune.codegen.workload import NO_HALO, Layout


def build_transpose_kernel(name: str, x: Layout, y: Layout, channels: int, lanes: int, threads: int) -> str:
    """Return the TVMScript of a copy; its arguments are the flat buffers X and Y.

    Args:
        name: Global symbol.
        x: Layout of the input.
        y: Layout of the copy; one of the two is channels-last, the other one planes.
        channels: C, those of them that are no padding.
        lanes: float32 lanes of a vector, a power of two.
        threads: Threads of the kernel.
    """
    script = Script()
    rows = x if x.order == "nhwc" else y
    depth, height, width = y.spatial
    lines, pixels = (1, depth * height * width) if rows.halo == NO_HALO else (depth * height, width)
    side = min(lanes, 2 ** (min(channels, pixels).bit_length() - 1))
    parts, blocks = -(-channels // side), -(-pixels // side)
    units = y.batch * lines * blocks * parts
    buffers = {"X": (x.numel, "float32"), "Y": (y.numel, "float32")}
    with script.function(name, buffers), script.block(f"for t in T.parallel({threads})"):
        if y.order == "nhwc":
            zero_halo(script, y, threads)
        script.allocate("pos", 4, "int32")
        script.allocate("cells", 2 * side * side)
        with script.block(f"for u in T.serial({units} * t // {threads}, {units} * (t + 1) // {threads})"):
            line = f"(u // {blocks * parts} % {lines})"
            script.add(
                f"pos[0] = T.min(u % {parts} * {side}, {channels - side})",
                f"pos[1] = T.min(u // {parts} % {blocks} * {side}, {pixels - side})",
                f"pos[2] = {_start(x, line, lines * blocks * parts)}",
                f"pos[3] = {_start(y, line, lines * blocks * parts)}",
            )
            _turn_block(script, _step(x), _step(y), side)
    return script.text


def _start(layout: Layout, line: str, per_image: int) -> str:
    """Return the element offset of the first cell of block `u`; an image has `per_image` of them."""
    n, c, d, h, w = layout.strides
    height = layout.spatial[1]
    image = f"u // {per_image} * {n} + {line} // {height} * {d} + {line} % {height} * {h}"
    return f"{image} + pos[0] * {c} + pos[1] * {w} + {layout.origin}"


def _step(layout: Layout) -> int:
    """Return the cells from one vector of a block to the next."""
    return layout.strides[4] if layout.order == "nhwc" else layout.strides[1]


def _turn_block(script: Script, x_step: int, y_step: int, side: int) -> None:
    """Load a square block, turn it, store it; the vectors wander between two halves of `cells`."""

    def run(start: str) -> str:
        return f"T.Ramp({start}, 1, {side})" if side > 1 else start

    def cells(half: int, row: int) -> str:
        return f"cells[{run(str((half * side + row) * side))}]"

    for row in range(side):
        script.add(f"{cells(0, row)} = X[{run(f'pos[2] + {row * x_step}')}]")
    half, gap = 0, 1
    while gap < side:
        low = [i if not i & gap else i - gap + side for i in range(side)]
        for row in range(side):
            first = row & ~gap
            pair = f"[{cells(half, first)}, {cells(half, first + gap)}]"
            script.add(f"{cells(1 - half, row)} = T.Shuffle({pair}, {[i + (gap if row & gap else 0) for i in low]})")
        half, gap = 1 - half, gap * 2
    for row in range(side):
        script.add(f"Y[{run(f'pos[3] + {row * y_step}')}] = {cells(half, row)}")
