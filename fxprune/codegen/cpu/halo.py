"""Zeros around the images of a channels-last output, written by the kernel that fills the inside."""

from __future__ import annotations

from fxprune.codegen.script import Script
from fxprune.codegen.workload import NO_HALO, Layout


def zero_halo(script: Script, y: Layout, threads: int) -> None:
    """Write zeros around every image of `Y`; thread `t` takes every threads-th image line.

    Args:
        script: The text, inside the parallel loop over `t`.
        y: Layout of the output.
        threads: Threads of the kernel.
    """
    if y.halo == NO_HALO:
        return
    (_, depth, height), (n_step, _, d_step, h_step, w_step) = (0, *y.padded[:2]), y.strides
    (d0, _), (h0, _), (w0, w1) = y.halo
    lines = y.batch * depth * height
    per_thread = -(-lines // threads)
    line_cells, before, after = y.padded[2] * w_step, w0 * w_step, w1 * w_step
    with script.loops(f"for s in T.serial({per_thread})", f"if s * {threads} + t < {lines}"):
        line = f"(s * {threads} + t)"
        depth_index, height_index = f"({line} // {height} % {depth})", f"({line} % {height})"
        base = f"{line} // {height * depth} * {n_step} + {depth_index} * {d_step} + {height_index} * {h_step}"
        inside = (
            f"{depth_index} >= {d0} and {depth_index} < {d0 + y.spatial[0]} and "
            f"{height_index} >= {h0} and {height_index} < {h0 + y.spatial[1]}"
        )
        ends = [(start, cells) for start, cells in ((0, before), (line_cells - after, after)) if cells]
        for start, cells in ends:
            with script.loops(f"if {inside}", f"for v in T.serial({cells})"):
                script.add(f"Y[{base} + {start} + v] = T.float32(0.0)")
        with script.loops(f"if not ({inside})", f"for v in T.serial({line_cells})"):
            script.add(f"Y[{base} + v] = T.float32(0.0)")
