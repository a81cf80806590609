"""Copies one of torch's contiguous tensors into a channels-last buffer with a halo; the halo stays as it is.

    for line of the images, for pixel of the line, for channel:
        Y[line][pixel][channel] = X[channel][line][pixel]

Source: torch's own `copy_` between these layouts moves one number at a time on one thread.
"""

from __future__ import annotations

from fxprune.codegen.script import Script
from fxprune.codegen.workload import Layout


def build_stage_kernel(name: str, y: Layout, threads: int) -> str:
    """Return the TVMScript of a copy; its arguments are the flat buffers X, [N, C, D, H, W], and Y.

    Args:
        name: Global symbol.
        y: Layout of the copy, channels-last.
        threads: Threads of the kernel.
    """
    script = Script()
    depth, height, width = y.spatial
    channels, lines = y.channels, y.batch * depth * height
    n, _, d, h, w = y.strides
    size = y.batch * channels * depth * height * width
    buffers = {"X": (size, "float32"), "Y": (y.numel, "float32")}
    with script.function(name, buffers), script.block(f"for t in T.parallel({threads})"):
        first, last = f"{lines} * t // {threads}", f"{lines} * (t + 1) // {threads}"
        loops = (f"for line in T.serial({first}, {last})", f"for w in T.serial({width})")
        with script.loops(*loops, f"for c in T.serial({channels})"):
            image, row = f"(line // {depth * height})", f"(line % {depth * height})"
            x = f"({image} * {channels} + c) * {depth * height * width} + {row} * {width} + w"
            at = f"{image} * {n} + {row} // {height} * {d} + {row} % {height} * {h} + w * {w} + c + {y.origin}"
            script.add(f"Y[{at}] = X[{x}]")
    return script.text
