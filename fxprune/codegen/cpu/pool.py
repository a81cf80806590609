"""Pooling on channels-last activations: channels are vector lanes, the output has the halo that its readers need.

    for image line, for part of the channels, for pixel of the line:
        Y[pixel][part] = max or mean over the window of X[tap][part]

A tap outside the image is moved to the nearest one inside, which the window holds as well: its maximum stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Literal

from fxprune.codegen.cpu.halo import zero_halo
from fxprune.codegen.script import Script
from fxprune.codegen.workload import Layout

_MOST_VECTORS = 4
"""Vectors of channels that one unit of work holds in registers: four cache lines in a row from every pixel."""

_MOST_UNROLLED = 9
"""Taps of a window that are written out; a larger window is a loop."""


@dataclass(frozen=True)
class PoolWorkload:
    """One pooling operator as a kernel sees it.

    Attributes:
        kind: "max", or "mean" over windows that lie inside the image.
        channels: C, those of them that are no padding.
        x: Layout of the input, channels-last or planes.
        y: Layout of the output, in the same order.
        kernel: Height and width of the window.
        stride: Steps of the window.
        padding: Cells before the image that the first windows reach to, less than the window.
        lanes: float32 lanes of a vector.
        threads: Threads the kernel splits its work over.
        bands: Bands that every image of the output is cut into (see `codegen.cpu.bands`), only of planes; the input may
            be cut or not.
    """

    kind: Literal["max", "mean"]
    channels: int
    x: Layout
    y: Layout
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    lanes: int
    threads: int
    bands: int = 1

    @property
    def input_bands(self) -> int:
        """Bands that every image of the input is cut into."""
        return self.x.batch * self.bands // self.y.batch


def build_pool_kernel(name: str, work: PoolWorkload) -> str:
    """Return the TVMScript of a pooling operator; its arguments are the flat buffers X and Y.

    Args:
        name: Global symbol.
        work: The operator.
    """
    script = Script()
    lanes, channels = _fit_lanes(work)
    vectors = max(count for count in range(1, _MOST_VECTORS + 1) if channels // lanes % count == 0)
    parts = channels // (lanes * vectors)
    _, height, width = work.y.spatial
    units = work.y.batch * height * parts
    buffers = {"X": (work.x.numel, "float32"), "Y": (work.y.numel, "float32")}
    with script.function(name, buffers), script.block(f"for t in T.parallel({work.threads})"):
        zero_halo(script, work.y, work.threads)
        first, last = f"{units} * t // {work.threads}", f"{units} * (t + 1) // {work.threads}"
        with script.loops(f"for u in T.serial({first}, {last})", f"for w in T.serial({width})"):
            line = f"(u // {parts})"
            place = _Place(f"({line} // {height})", f"({line} % {height})", "w", f"u % {parts} * {lanes * vectors}")
            _write_window(script, work, place, lanes, vectors)
    return script.text


def _fit_lanes(work: PoolWorkload) -> tuple[int, int]:
    """Return lanes and channels: whole vectors where both buffers have room for them, else narrower ones."""
    whole = -(-work.channels // work.lanes) * work.lanes
    if min(work.x.channels, work.y.channels) >= whole:
        return work.lanes, whole
    return gcd(work.channels, work.lanes), work.channels


@dataclass(frozen=True)
class _Place:
    """TIR texts: image, line, column and first channel of what is computed."""

    n: str
    h: str
    w: str
    c: str


def _write_window(script: Script, work: PoolWorkload, place: _Place, lanes: int, vectors: int) -> None:
    """Compute one output pixel of `vectors` vectors of channels."""
    over_lanes = (f"for k in T.unroll({vectors})", f"for v in T.vectorized({lanes})")
    cell, taps = f"acc[k * {lanes} + v]", prod(work.kernel)
    script.allocate("acc", lanes * vectors)
    script.allocate("tap", 1, "int32")
    x = f"X[tap[0] + k * {lanes} + v]"
    script.add(f"tap[0] = {_tap(work, place, '0')}")
    with script.loops(*over_lanes):
        script.add(f"{cell} = {x}")
    loop = "unroll" if taps <= _MOST_UNROLLED else "serial"
    with script.block(f"for i in T.{loop}({taps - 1})"):
        script.add(f"tap[0] = {_tap(work, place, '(i + 1)')}")
        with script.loops(*over_lanes):
            nan_or_larger = f"T.Select({x} > {cell} or T.isnan({x}), {x}, {cell})"
            script.add(f"{cell} = {nan_or_larger if work.kind == 'max' else f'{cell} + {x}'}")
    n, _, _, h, w = work.y.strides
    scale = "" if work.kind == "max" else f" * T.float32({1 / taps!r})"
    with script.loops(*over_lanes):
        at = f"{place.n} * {n} + {place.h} * {h} + {place.w} * {w} + {work.y.origin} + {place.c} + k * {lanes} + v"
        script.add(f"Y[{at}] = {cell}{scale}")


def _tap(work: PoolWorkload, place: _Place, tap: str) -> str:
    """Return the element offset of a tap of the window."""
    n, _, _, h_step, w_step = work.x.strides
    _, height, width = work.x.spatial
    offsets = (f"{tap} // {work.kernel[1]}", f"{tap} % {work.kernel[1]}")
    h, w = (
        f"T.max(0, T.min({at} * {stride} - {padding} + {offset}, {size - 1}))"
        for at, stride, padding, offset, size in zip(
            (place.h, place.w), work.stride, work.padding, offsets, (height, width), strict=True
        )
    )
    return f"{place.n} * {n} + {h} * {h_step} + {w} * {w_step} + {work.x.origin} + {place.c}"
