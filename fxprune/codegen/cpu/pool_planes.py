"""Pooling on planes: neighbouring pixels of a line are vector lanes, or cells of a plane that becomes one pixel.

    for plane of an image or of a band of it, for line of the output, for pixel of the line:
        Y[pixel] = max or mean over the window of X[tap]

    for plane, to one pixel:
        acc[lanes] = sum over whole vectors of X[plane]
        acc[half] = acc[half] + acc[other half] (+ X[half])  # down to one lane; as much as is left of the plane
        Y[plane] = acc[0] / cells

A tap outside the image is moved to the nearest one inside, which the window holds as well: its maximum stays. Only the
pixels at the ends of a line have such columns; the others between them are left to LLVM's own vectoriser.
"""

from __future__ import annotations

from math import prod

from fxprune.codegen.cpu.bands import line_offset
from fxprune.codegen.cpu.pool import PoolWorkload
from fxprune.codegen.script import Script

_MOST_UNROLLED = 9
"""Taps of a window that are written out; a larger window is a loop."""


def build_plane_pool_kernel(name: str, work: PoolWorkload) -> str:
    """Return the TVMScript of a pooling operator on planes; its arguments are the flat buffers X and Y.

    Args:
        name: Global symbol.
        work: The operator.
    """
    script = Script()
    whole = work.kind == "mean" and work.kernel == work.x.spatial[1:]
    planes, threads = work.y.batch * work.y.channels, work.threads
    units = planes if whole else planes * work.y.spatial[1]
    buffers = {"X": (work.x.numel, "float32"), "Y": (work.y.numel, "float32")}
    share = f"for u in T.serial({units} * t // {threads}, {units} * (t + 1) // {threads})"
    with script.function(name, buffers), script.loops(f"for t in T.parallel({threads})", share):
        if whole:
            _write_plane(script, work)
        else:
            _write_line(script, work)
    return script.text


def _write_plane(script: Script, work: PoolWorkload) -> None:
    """Compute the mean of plane `u`."""
    cells, plane = prod(work.kernel), work.x.plane
    lanes = min(work.lanes, 2 ** (cells.bit_length() - 1))
    vectors, rest = divmod(cells, lanes)
    script.allocate("acc", lanes)
    with script.block(_vector(lanes)):
        script.add(f"acc[v] = X[u * {plane} + v]")
    if vectors > 1:
        loop = "unroll" if vectors <= _MOST_UNROLLED else "serial"
        with script.loops(f"for i in T.{loop}({vectors - 1})", _vector(lanes)):
            script.add(f"acc[v] = acc[v] + X[u * {plane} + (i + 1) * {lanes} + v]")
    read = vectors * lanes
    while lanes > 1:
        lanes //= 2
        more = f" + X[u * {plane} + {read} + v]" if rest & lanes else ""
        read += rest & lanes
        with script.block(_vector(lanes)):
            script.add(f"acc[v] = acc[v] + acc[{lanes} + v]{more}")
    script.add(f"Y[u * {work.y.plane}] = acc[0] * T.float32({1 / cells!r})")


def _vector(lanes: int) -> str:
    """Return the header of a loop over the lanes of a vector, which may be a single one."""
    return f"for v in T.vectorized({lanes})" if lanes > 1 else "for v in T.unroll(1)"


def _write_line(script: Script, work: PoolWorkload) -> None:
    """Compute output line `u`, counted over all planes."""
    first, last = _without_clamp(work)
    for start, stop, clamp in ((0, first, True), (first, last, False), (last, work.y.spatial[2], True)):
        if stop > start:
            with script.block(f"for w in T.serial({start}, {stop})"):
                _write_pixel(script, work, clamp=clamp)


def _without_clamp(work: PoolWorkload) -> tuple[int, int]:
    """Return the pixels of an output line whose windows lie inside the image's lines: first and one past the last."""
    width, size, stride, padding = work.y.spatial[2], work.x.spatial[2], work.stride[1], work.padding[1]
    first = min(width, -(-padding // stride))
    return first, max(first, min(width, (size - work.kernel[1] + padding) // stride + 1))


def _write_pixel(script: Script, work: PoolWorkload, *, clamp: bool) -> None:
    """Compute pixel `w` of output line `u`."""
    taps = prod(work.kernel)
    script.allocate("acc", 1)
    script.add(f"acc[0] = X[{_tap(work, '0', clamp=clamp)}]")
    with script.block(f"for i in T.{'unroll' if taps <= _MOST_UNROLLED else 'serial'}({taps - 1})"):
        x = f"X[{_tap(work, '(i + 1)', clamp=clamp)}]"
        nan_or_larger = f"T.Select({x} > acc[0] or T.isnan({x}), {x}, acc[0])"
        script.add(f"acc[0] = {nan_or_larger if work.kind == 'max' else f'acc[0] + {x}'}")
    scale = "" if work.kind == "max" else f" * T.float32({1 / taps!r})"
    _, lines, width = work.y.spatial
    script.add(f"Y[u // {lines} * {work.y.plane} + u % {lines} * {width} + w] = acc[0]{scale}")


def _tap(work: PoolWorkload, tap: str, *, clamp: bool) -> str:
    """Return the element offset of a tap of the window."""
    (_, height, width), (n_step, c_step, *_) = work.x.spatial, work.x.strides
    channels, lines, bands = work.y.channels, work.y.spatial[1], work.input_bands
    band = f"u // {lines * channels}"
    start = f"{band} // {work.bands} * {bands * n_step} + u // {lines} % {channels} * {c_step}"
    line = f"({band} % {work.bands} * {lines} + u % {lines})"
    h = f"{line} * {work.stride[0]} - {work.padding[0]} + {tap} // {work.kernel[1]}"
    w = f"w * {work.stride[1]} - {work.padding[1]} + {tap} % {work.kernel[1]}"
    column = f"T.max(0, T.min({w}, {width - 1}))" if clamp else f"({w})"
    clamped = f"T.max(0, T.min({h}, {height * bands - 1}))"
    return f"{start} + {line_offset(work.x, bands, clamped)} + {column}"
