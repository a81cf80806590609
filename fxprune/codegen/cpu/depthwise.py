"""The depthwise kernel: channels are vector lanes, every channel has taps of its own.

    for image line, for part of the channels, for tile of pixels of the line:
        acc[pixel][part] = bias[part]
        for tap: acc[pixel] += X[tap + pixel][part] * W[tap][part]
        Y[pixel][part] = activation(acc[pixel] + residual)

Activations lie channels-last, the input with a halo that covers the padding. Pruned taps are multiplied as zeros: a
layer of so few weights waits for its activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from fxprune.codegen.cpu.accumulators import Accumulators
from fxprune.codegen.cpu.epilogue import TEMPORARIES, activation_statements
from fxprune.codegen.cpu.halo import zero_halo
from fxprune.codegen.format import Float32Array
from fxprune.codegen.script import ACTIVATIONS, Script
from fxprune.codegen.workload import ConvShape, Layout, Workload


@dataclass(frozen=True)
class DepthwiseSchedule:
    """Options of one depthwise kernel.

    Attributes:
        lanes: float32 lanes of a vector.
        vectors: Vectors of channels in a tile, at most.
        pixels: Neighbouring pixels of a line in a tile.
    """

    lanes: int
    vectors: int
    pixels: int

    height = 1
    """Rows that share columns: none."""

    def __str__(self) -> str:
        """Short form for the report."""
        return f"depthwise {self.lanes}x{self.vectors} tile 1x{self.pixels}"


def is_depthwise(shape: ConvShape) -> bool:
    """Whether every channel is convolved with taps of its own, one output for one input."""
    return shape.groups > 1 and shape.groups == shape.channels_in == shape.channels_out


@dataclass(frozen=True)
class _Tile:
    """Lanes of a vector, vectors and pixels of a tile, and channels over all parts."""

    lanes: int
    vectors: int
    pixels: int
    channels: int


def _tile(work: Workload, schedule: DepthwiseSchedule) -> _Tile:
    """Fit the schedule to the layouts: whole vectors where all buffers have room for them, else narrower ones."""
    channels = work.shape.channels_out
    whole = -(-channels // schedule.lanes) * schedule.lanes
    layouts = [work.x, work.y, *([work.residual] if work.residual else [])]
    roomy = all(layout.channels >= whole for layout in layouts)
    lanes, channels = (schedule.lanes, whole) if roomy else (gcd(channels, schedule.lanes), channels)
    vectors = max(count for count in range(1, schedule.vectors + 1) if channels // lanes % count == 0)
    return _Tile(lanes, vectors, min(schedule.pixels, work.shape.spatial_out[2]), channels)


def pack_depthwise(
    work: Workload, schedule: DepthwiseSchedule, weight: Float32Array, bias: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Return the weight, tap-major, and the bias, both with zeros for channels of padding, flat.

    Args:
        work: Shapes and layouts.
        schedule: Options of the kernel.
        weight: The 2-D view, [C, taps].
        bias: [C].
    """
    channels = work.shape.channels_out
    spare = _tile(work, schedule).channels - channels
    taps = np.pad(weight.T, ((0, 0), (0, spare))).astype(np.float32)
    return np.ascontiguousarray(taps).reshape(-1), np.pad(bias, (0, spare)).astype(np.float32)


def build_depthwise_kernel(name: str, work: Workload, schedule: DepthwiseSchedule) -> str:
    """Return the TVMScript of one layer; its arguments are flat: X, W, BIAS, Y and RES if there is a residual.

    Args:
        name: Global symbol.
        work: The layer.
        schedule: Options of the kernel.
    """
    script, tile = Script(), _tile(work, schedule)
    depth, height, width = work.shape.spatial_out
    parts, across = tile.channels // (tile.lanes * tile.vectors), -(-width // tile.pixels)
    units = work.shape.batch * depth * height * parts
    buffers = {
        "X": (work.x.numel, "float32"),
        "W": (prod(work.shape.kernel) * tile.channels, "float32"),
        "BIAS": (tile.channels, "float32"),
        "Y": (work.y.numel, "float32"),
    }
    if work.residual:
        buffers["RES"] = (work.residual.numel, "float32")
    with (
        script.function(name, buffers, buffers.keys() - ACTIVATIONS),
        script.block(f"for t in T.parallel({work.threads})"),
    ):
        zero_halo(script, work.y, work.threads)
        first, last = f"{units} * t // {work.threads}", f"{units} * (t + 1) // {work.threads}"
        with script.loops(f"for u in T.serial({first}, {last})", f"for s in T.serial({across})"):
            _write_tile(script, work, tile, parts)
    return script.text


def _write_tile(script: Script, work: Workload, tile: _Tile, parts: int) -> None:
    """Compute one tile: some pixels of a line, one part of the channels."""
    lanes, vectors, (depth, height, width) = tile.lanes, tile.vectors, work.shape.spatial_out
    line = f"(u // {parts})"
    place = (
        f"({line} // {depth * height})",
        f"({line} // {height} % {depth})",
        f"({line} % {height})",
        f"T.min(s * {tile.pixels}, {width - tile.pixels})",
    )
    script.allocate("pos", 4, "int32")
    script.add(f"pos[0] = u % {parts} * {lanes * vectors}")
    starts = {1: (work.x, work.shape.stride, work.first_tap), 2: (work.y, (1, 1, 1), work.y.origin)}
    if work.residual:
        starts[3] = (work.residual, (1, 1, 1), work.residual.origin)
    for index, (layout, stride, origin) in starts.items():
        script.add(f"pos[{index}] = {_offset(place, layout, stride)} + {origin} + pos[0]")
    accumulators, lane = Accumulators(script, ("p", tile.pixels), vectors, lanes), f"k * {lanes} + v"
    for cell in accumulators.cells():
        script.add(f"{cell} = BIAS[pos[0] + {lane}]")
    _write_taps(script, work, tile, accumulators)
    for name in TEMPORARIES:
        script.allocate(name, lanes)
    for cell in accumulators.cells():
        if work.residual:
            script.add(f"{cell} = {cell} + RES[pos[3] + p * {work.residual.strides[4]} + {lane}]")
        script.add(*activation_statements(cell, work.activation, work.activation_args, "v"))
        script.add(f"Y[pos[2] + p * {work.y.strides[4]} + {lane}] = {cell}")


def _write_taps(script: Script, work: Workload, tile: _Tile, accumulators: Accumulators) -> None:
    """Add up the taps; those of one kernel line are written out."""
    (kd, kh, kw), (d_gap, h_gap, w_gap) = work.shape.kernel, work.shape.dilation
    _, _, d_step, h_step, w_step = work.x.strides
    stride, lane = work.shape.stride[2] * w_step, f"k * {tile.lanes} + v"
    tap = f"i // {kh} * {d_gap * d_step} + i % {kh} * {h_gap * h_step} + j * {w_gap * w_step}"
    x = f"X[pos[1] + {tap} + p * {stride} + {lane}]"
    with script.loops(f"for i in T.serial({kd * kh})", f"for j in T.unroll({kw})"):
        for cell in accumulators.cells():
            script.add(f"{cell} = {cell} + {x} * W[(i * {kw} + j) * {tile.channels} + pos[0] + {lane}]")


def _offset(place: tuple[str, str, str, str], layout: Layout, stride: tuple[int, int, int]) -> str:
    """Return the element offset of an output position, its spatial indices times the stride."""
    n, _, *spatial = layout.strides
    steps = (n, *(step * by for step, by in zip(spatial, stride, strict=True)))
    return " + ".join(f"{index} * {step}" for index, step in zip(place, steps, strict=True))
