"""The Winograd kernel: dense convolutions with fewer multiply-adds, output rows as vector lanes.

    for part of the image lines:
        for line of the input, for tile of m outputs along it:
            V[line][tile][product][channel] = B (samples of the tile)
        for block of R = lanes * q rows, for line, for group of tiles:
            for kernel line, channel: acc[tile][product] += V[...][product] * U[block][kernel line][channel][product]
            Y[m pixels of each tile][rows of block] = activation(A acc + bias + residual)

Filtering is minimal along the width only (`codegen.minimal_filtering`): a line of 3 taps costs 6 products for 4
outputs instead of 12. A stride s cuts taps and samples into s phases, each a filter of stride 1 whose products are
summed in the same accumulators: 7 taps with stride 2 are 4 and 3 taps, 13 products for 4 outputs instead of 28.
Activations lie channels-last, the input with a halo that covers the padding; the last tile of a line overlaps the one
before it. A number that is infinite or none reaches all m outputs of its tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

from fxprune.codegen.cpu.epilogue import TEMPORARIES, activation_statements
from fxprune.codegen.cpu.halo import zero_halo
from fxprune.codegen.cpu.winograd_plan import WinogradSchedule, plan_winograd
from fxprune.codegen.script import ACTIVATIONS, Script
from fxprune.codegen.workload import Layout, Workload


def build_winograd_kernel(name: str, work: Workload, schedule: WinogradSchedule, channels: int) -> str:
    """Return the TVMScript of one layer; its arguments are flat: X, W, BIAS, OFF, S, Y and RES if there is a residual.

    `OFF` holds the position of every input channel in its buffer, `S` is scratch.

    Args:
        name: Global symbol.
        work: The layer; both layouts are "nhwc".
        schedule: Options of the kernel.
        channels: Channels of the input buffer, up to the last one that is read.
    """
    return _WinogradWriter(name, work, schedule, channels).write()


class _WinogradWriter:
    """Writes one kernel; the fields are what every part of the text needs."""

    def __init__(self, name: str, work: Workload, schedule: WinogradSchedule, channels: int) -> None:
        self.name, self.work, self.schedule = name, work, schedule
        self.plan = plan_winograd(work, schedule, channels)
        self.script = Script()

    def write(self) -> str:
        work, plan, threads = self.work, self.plan, self.work.threads
        shape = work.shape
        cells = plan.rows * shape.kernel[1] * shape.channels_in * plan.depth
        buffers = {
            "X": (work.x.numel, "float32"),
            "W": (cells, "float32"),
            "BIAS": (plan.rows, "float32"),
            "OFF": (shape.channels_in, "int32"),
            "S": (threads * plan.scratch, "float32"),
            "Y": (work.y.numel, "float32"),
        }
        if work.residual:
            buffers["RES"] = (work.residual.numel, "float32")
        by_lines = self.schedule.split == "pixels"
        units = self._share(plan.units) if by_lines else str(plan.units)
        blocks = str(plan.blocks) if by_lines else self._share(plan.blocks)
        with (
            self.script.function(self.name, buffers, buffers.keys() - ACTIVATIONS),
            self.script.block(f"for t in T.parallel({threads})"),
        ):
            zero_halo(self.script, work.y, threads)
            with self.script.block(f"for u in T.serial({units})"):
                self._transform()
                with self.script.loops(
                    f"for b in T.serial({blocks})",
                    f"for line in T.serial({self.schedule.lines})",
                    f"for g in T.serial({-(-plan.across // plan.tiles)})",
                ):
                    self._products()
        return self.script.text

    def _share(self, count: int) -> str:
        """Text of the first and one past the last of a thread's share."""
        threads = self.work.threads
        return f"{count} * t // {threads}, {count} * (t + 1) // {threads}"

    def _first_line(self) -> str:
        """Text of the first output line of a part; the last part of an image overlaps the one before it."""
        height, lines = self.work.shape.spatial_out[1], self.schedule.lines
        return f"T.min(u % {-(-height // lines)} * {lines}, {height - lines})"

    def _image(self) -> str:
        return f"(u // {-(-self.work.shape.spatial_out[1] // self.schedule.lines)})"

    def _transform(self) -> None:
        """Fill this thread's scratch with the products' samples, a vector of channels at a time."""
        work, plan, script, lanes = self.work, self.plan, self.script, self.schedule.lanes
        shape, (n, _, _, h, w) = work.shape, work.x.strides
        across, last = self.schedule.outputs * shape.stride[2], shape.spatial_out[2] - self.schedule.outputs
        with script.loops(f"for line in T.serial({plan.lines_in})", f"for tile in T.serial({plan.across})"):
            script.allocate("pos", 2, "int32")
            start = f"T.min(tile * {across}, {last * shape.stride[2]}) * {w}"
            line = f"({self._first_line()} * {shape.stride[1]} + line) * {h}"
            script.add(f"pos[0] = {self._image()} * {n} + {line} + {start} + {self.work.first_tap}")
            script.add(f"pos[1] = t * {plan.scratch} + (line * {plan.across} + tile) * {plan.depth * plan.channels}")
            whole, rest = divmod(plan.channels, lanes)
            if whole:
                with script.block(f"for c in T.serial({whole})"):
                    self._transform_vector(f"c * {lanes}", lanes)
            if rest:
                self._transform_vector(str(whole * lanes), rest)

    def _transform_vector(self, channel: str, lanes: int) -> None:
        script, plan, stride = self.script, self.plan, self.work.shape.stride[2]
        w_step = self.work.x.strides[4]
        samples = [(phase, i) for phase, products in enumerate(plan.products) for i in range(products)]
        script.allocate("d", len(samples) * lanes)
        with script.block(_over_lanes(lanes)):
            for number, (phase, i) in enumerate(samples):
                script.add(f"d[{number * lanes} + v] = X[pos[0] + {(i * stride + phase) * w_step} + {channel} + v]")
            for number, (phase, p) in enumerate(samples):
                first = samples.index((phase, 0))
                row = plan.filtering.samples[p][: plan.products[phase]]
                sources = [f"d[{(first + i) * lanes} + v]" for i in range(len(row))]
                script.add(f"S[pos[1] + {number * plan.channels} + {channel} + v] = {_weighted(row, sources)}")

    def _products(self) -> None:
        """Compute one group of tiles of one block."""
        script, plan, schedule, shape = self.script, self.plan, self.schedule, self.work.shape
        lanes, vectors, height, full = schedule.lanes, schedule.vectors, schedule.height, plan.products[0]
        script.allocate("at", 2, "int32")
        script.add(f"at[0] = T.min(g * {plan.tiles}, {plan.across - plan.tiles})")
        tile = f"(line * {shape.stride[1] * plan.across} + at[0])"
        script.add(f"at[1] = t * {plan.scratch} + {tile} * {plan.depth * plan.channels}")
        script.allocate("acc", plan.tiles * full * height)
        over_tile, over_rows = f"for i in T.unroll({plan.tiles})", f"for k in T.unroll({vectors})"
        lane = f"for v in T.vectorized({lanes})"
        cell = f"acc[((i * {full} + p) * {vectors} + k) * {lanes} + v]"
        with script.loops(over_tile, f"for p in T.unroll({full})", over_rows, lane):
            script.add(f"{cell} = T.float32(0.0)")
        line_step = shape.dilation[1] * plan.across * plan.depth * plan.channels
        with script.loops(f"for j in T.serial({shape.kernel[1]})", f"for c in T.serial({shape.channels_in})"):
            first = 0
            for products in plan.products:
                with script.loops(f"for p in T.unroll({products})", over_tile, over_rows, lane):
                    s = f"S[at[1] + j * {line_step} + (i * {plan.depth} + {first} + p) * {plan.channels} + OFF[c]]"
                    column = f"((b * {shape.kernel[1]} + j) * {shape.channels_in} + c) * {plan.depth} + {first} + p"
                    script.add(f"{cell} = {cell} + {s} * W[({column}) * {height} + k * {lanes} + v]")
                first += products
        self._store()

    def _store(self) -> None:
        """Store a group of tiles: whole vectors where all buffers have room for them, else the layer's rows only."""
        script, plan, work = self.script, self.plan, self.work
        for name in ("out", *TEMPORARIES):
            script.allocate(name, self.schedule.lanes)
        if all(layout.channels >= plan.rows for layout in (work.y, *([work.residual] if work.residual else []))):
            self._store_block([self.schedule.lanes] * self.schedule.vectors)
            return
        with script.block(f"if b < {plan.blocks - 1}"):
            self._store_block([self.schedule.lanes] * self.schedule.vectors)
        with script.block("else"):
            left = work.shape.channels_out - (plan.blocks - 1) * self.schedule.height
            starts = range(0, left, self.schedule.lanes)
            self._store_block([min(self.schedule.lanes, left - start) for start in starts])

    def _store_block(self, valid: Sequence[int]) -> None:
        """Store the valid lanes of each vector of a block."""
        for (k, lanes), number in itertools.product(enumerate(valid), range(self.schedule.outputs)):
            with self.script.loops(f"for i in T.unroll({self.plan.tiles})", _over_lanes(lanes)):
                self._store_vector(k, number)

    def _store_vector(self, k: int, number: int) -> None:
        """Store one of the outputs of tile i, lane v of one vector of rows."""
        script, work, full = self.script, self.work, self.plan.products[0]
        row = f"b * {self.schedule.height} + {k * self.schedule.lanes} + v"
        first = f"(i * {full} * {self.schedule.vectors} + {k}) * {self.schedule.lanes} + v"
        cells = [f"acc[{first} + {p * self.schedule.height}]" for p in range(full)]
        script.add(f"out[v] = BIAS[{row}] + {_weighted(self.plan.filtering.outputs[number], cells)}")
        if work.residual:
            script.add(f"out[v] = out[v] + RES[{self._pixel(work.residual, number)} + {row}]")
        script.add(*activation_statements("out[v]", work.activation, work.activation_args, "v"))
        script.add(f"Y[{self._pixel(work.y, number)} + {row}] = out[v]")

    def _pixel(self, layout: Layout, number: int) -> str:
        """Text of the element offset of one of the outputs of tile i."""
        n, _, _, h, w = layout.strides
        outputs, width = self.schedule.outputs, self.work.shape.spatial_out[2]
        tile = f"T.min((at[0] + i) * {outputs}, {width - outputs})"
        line = f"({self._first_line()} + line) * {h}"
        return f"{self._image()} * {n} + {line} + ({tile} + {number}) * {w} + {layout.origin}"


def _over_lanes(lanes: int) -> str:
    return f"for v in T.vectorized({lanes})" if lanes > 1 else "for v in T.serial(1)"


def _weighted(factors: Sequence[Fraction], sources: Sequence[str]) -> str:
    """Text of a sum of sources times constants, those of 0 left out."""
    return " + ".join(_terms(factors, sources))


def _terms(factors: Sequence[Fraction], sources: Sequence[str]) -> Iterator[str]:
    for factor, source in zip(factors, sources, strict=True):
        if factor:
            yield source if factor == 1 else f"{source} * T.float32({float(factor)!r})"
