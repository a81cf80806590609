"""The planes that a pixel-lane kernel reads: each is one flat run of cells, so that vectors need not end with a line.

A 1x1 layer of stride 1 reads its input in place. Any other layer first copies one image into a scratch of zero-padded
planes, one for every phase of the stride that some tap reads: every tap of all output positions is then one run of
cells, at a fixed offset. Where a line ends and the next one begins with zeros, both share those cells. Gapless planes
have one copy for every tap of a line instead, and lines as wide as the output's: more cells to copy, none to skip.

Planes begin on cache lines. A run that is all output and reads one line for each goes on behind the image to the end
of a cache line, if input and output have cells there: vectors that cross none took half the time at 7x7 and two thirds
at 14x14.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from fxprune.annotation import IndexArray
from fxprune.codegen.cpu.bands import line_offset
from fxprune.codegen.script import Script
from fxprune.codegen.workload import LINE_CELLS, Workload, spread_cells

_LONGEST_VECTOR = 64
"""Longest line, in cells, that is copied as one vector; longer ones are left to LLVM's own vectoriser."""

_PICKED = 16
"""Cells that are picked at a time where the stride leaves some out."""

Phase = tuple[int, int]
"""Rest of a tap's height and width divided by the stride; of gapless planes the width itself."""


@dataclass(frozen=True)
class Planes:
    """The planes of one image, [C][phase][line][pitch], and the output positions among their cells.

    Attributes:
        phases: Phases of the stride that some tap reads, or of gapless planes every tap of a line.
        lines: Lines of a plane.
        pitch: Cells from one line to the next.
        shared: Zeros at the end of a line that are the first ones of the next.
        out_lines: Lines of the output.
        out_width: Pixels of an output line; the other cells of a line are no output.
        last_tap: Cells from an output position to the last one that it reads of a line.
        in_place: Whether the planes are those of the input.
        behind: Cells behind the last output position that are computed as well; they have no meaning.
    """

    phases: tuple[Phase, ...]
    lines: int
    pitch: int
    shared: int
    out_lines: int
    out_width: int
    last_tap: int
    in_place: bool
    behind: int = 0

    @property
    def run(self) -> int:
        """Cells from the first output position to the last that is computed."""
        return (self.out_lines - 1) * self.pitch + self.out_width + self.behind

    @property
    def cells(self) -> int:
        """Cells of a plane."""
        return self.lines * self.pitch

    @property
    def plane(self) -> int:
        """Cells from one plane of the scratch to the next."""
        return spread_cells(self.cells)


def planes_of(work: Workload, *, gapless: bool, exact: bool) -> Planes:
    """Lay out the planes of one image; a 1x1 layer of stride 1 has one long line.

    Args:
        work: The layer.
        gapless: Whether lines lie without gaps, a copy for every tap of a line.
        exact: Whether runs end with the image, even if there are cells behind it.
    """
    shape = work.shape
    depth, height, width = shape.spatial_out
    image = depth * height * width
    room = min(layout.plane for layout in (work.y, work.residual or work.y)) - image
    behind = 0 if exact else min(room, -image % LINE_CELLS)
    if shape.is_pointwise:
        behind = min(behind, work.x.plane - image)
        return Planes(((0, 0),), 1, image, 0, 1, image, 0, in_place=True, behind=behind)
    (_, stride_h, stride_w), (_, dilation_h, dilation_w) = shape.stride, shape.dilation
    reach_h, reach_w = ((k - 1) * d for k, d in zip(shape.kernel[1:], shape.dilation[1:], strict=True))
    phases_h = sorted({tap * dilation_h % stride_h for tap in range(shape.kernel[1])})
    lines = height + reach_h // stride_h
    if gapless:
        every = tuple((phase, tap * dilation_w) for phase in phases_h for tap in range(shape.kernel[2]))
        behind = behind if lines == height else 0
        return Planes(every, lines, width, 0, height, width, 0, in_place=False, behind=behind)
    phases_w = sorted({tap * dilation_w % stride_w for tap in range(shape.kernel[2])})
    cells = width + reach_w // stride_w
    ends = [_inside(shape.spatial_in[2], stride_w, shape.padding[2][0], phase, cells) for phase in phases_w]
    shared = min(cells - width, *(min(first, cells - last) for first, last in ends))
    phases = tuple((phase_h, phase_w) for phase_h in phases_h for phase_w in phases_w)
    behind = behind if (lines, cells - shared) == (height, width) else 0
    reach = reach_w // stride_w
    return Planes(phases, lines, cells - shared, shared, height, width, reach, in_place=False, behind=behind)


def count_cells(channels: int, planes: Planes, computed: int) -> int:
    """Count the scratch cells of one image.

    Args:
        channels: Input channels that lie in the scratch at a time.
        planes: The planes.
        computed: Cells computed from the first output position on, those behind the last one included.
    """
    if planes.in_place:
        return 0
    whole = channels * len(planes.phases) * planes.plane
    return whole + max(planes.shared, planes.last_tap + computed - planes.out_lines * planes.pitch)


def plane_offsets(columns: IndexArray, group: int, work: Workload, planes: Planes, channels: int) -> IndexArray:
    """Turn columns of the weight's 2-D view into element offsets from the first cell of an output position.

    Args:
        columns: Column indices, [C].
        group: The convolution group whose input channels they count from.
        work: The layer.
        planes: Its planes.
        channels: Input channels that lie in the scratch at a time.
    """
    shape = work.shape
    per_group = shape.channels_in // shape.groups
    channel, _, height, width = np.unravel_index(columns, (per_group, *shape.kernel))
    channel = channel + group * per_group
    if planes.in_place:
        return (channel * work.x.strides[1]).astype(np.int32)
    (_, stride_h, stride_w), (_, dilation_h, dilation_w) = shape.stride, shape.dilation
    height, width = height * dilation_h, width * dilation_w
    skipped = (width // stride_w).clip(max=planes.last_tap)
    numbers = np.zeros((stride_h, 1 + max(wide for _, wide in planes.phases)), np.int64)
    for number, phase in enumerate(planes.phases):
        numbers[phase] = number
    number = channel % channels * len(planes.phases) + numbers[height % stride_h, width - skipped * stride_w]
    offset: IndexArray = (number * planes.plane + height // stride_h * planes.pitch + skipped).astype(np.int32)
    return offset


def lines_shared(work: Workload, planes: Planes, cells: int) -> int:
    """Count the cache lines of a channel that a tile of so many output positions reads with more than one tap."""
    taps = np.arange(prod(work.shape.kernel), dtype=np.int32)
    phase, offset = np.divmod(plane_offsets(taps, 0, work, planes, 1), planes.plane)
    shared = np.flatnonzero(np.bincount(phase) > 1).size
    return shared * -(-(cells + int(offset.max())) // LINE_CELLS)


def lines_read(planes: Planes, first: str, stop: str) -> tuple[str, str]:
    """Return expressions of the first line of a plane that some output positions read, and one past the last.

    Args:
        planes: Its planes.
        first: Expression of the first position, a cell of the run.
        stop: Expression of one past the last; it may lie behind the run.
    """
    reach = planes.last_tap + (planes.lines - planes.out_lines) * planes.pitch
    return f"{first} // {planes.pitch}", f"T.min(({stop} + {reach - 1}) // {planes.pitch} + 1, {planes.lines})"


def write_planes(
    script: Script,
    work: Workload,
    planes: Planes,
    image: str,
    channel: tuple[str, str],
    base: str,
    lines: tuple[str, str],
) -> None:
    """Write the copy of one channel of one image from X into its planes in S.

    Args:
        script: The text.
        work: The layer.
        planes: Its planes.
        image: Expression of the image, which is a band of one if the workload has bands.
        channel: Expressions of the channel in X and of its place in the scratch, counted in channels.
        base: Expression of the first cell of the scratch.
        lines: Expressions of the first line of every plane that is written, and one past the last.
    """
    count, (source, place), (n_step, c_step, *_) = len(planes.phases), channel, work.x.strides
    start = f"{image} // {work.bands} * {work.input_bands * n_step} + {source} * {c_step}"
    above = f"{image} % {work.bands} * {work.shape.spatial_in[1]}"
    for number, phase in enumerate(planes.phases):
        target = f"{base} + ({place} * {count} + {number}) * {planes.plane}"
        with script.block(f"for line in T.serial({lines[0]}, {lines[1]})"):
            _write_line(script, work, planes, phase, target, (start, above))
        if planes.shared:
            _write_zeros(script, f"{target} + {planes.cells}", planes.shared)


def _write_line(
    script: Script, work: Workload, planes: Planes, phase: Phase, target: str, image: tuple[str, str]
) -> None:
    """Write the copy of `line` of one phase of a channel to its plane at S[target].

    Args:
        script: The text.
        work: The layer.
        planes: Its planes.
        phase: The phase.
        target: Expression of the plane's first cell in S.
        image: Expressions of the channel's first cell in X, and of the lines of the whole image above this band of it.
    """
    shape, pitch, (start, above) = work.shape, planes.pitch, image
    (_, stride_h, stride_w), (top, left) = shape.stride, (shape.padding[1][0], shape.padding[2][0])
    first, last = _inside(shape.spatial_in[2], stride_w, left, phase[1], pitch)
    cell, found = f"{target} + line * {pitch}", f"({above} + line * {stride_h} + {phase[0] - top})"
    with script.block(f"if {found} >= 0 and {found} < {shape.spatial_in[1] * work.bands}"):
        for low, high in ((0, first), (last, pitch)):
            if high > low:
                _write_zeros(script, f"{cell} + {low}", high - low)
        source = f"{start} + {line_offset(work.x, work.input_bands, found)}"
        shift = first * stride_w + phase[1] - left
        if stride_w > 1:
            _pick_cells(script, f"{cell} + {first}", last - first, source, (shift, stride_w, shape.spatial_in[2]))
        elif last > first:
            kind = "vectorized" if last - first <= _LONGEST_VECTOR else "serial"
            with script.block(f"for v in T.{kind}({last - first})"):
                script.add(f"S[{cell} + {first} + v] = X[{source} + {shift} + v]")
    with script.block("else"):
        _write_zeros(script, cell, pitch)


def _pick_cells(script: Script, target: str, count: int, line: str, steps: tuple[int, int, int]) -> None:
    """Copy every stride-th cell of a line of X to neighbouring cells of S.

    LLVM loads a strided vector cell by cell, so whole vectors are loaded and their cells picked.

    Args:
        script: The text.
        target: Expression of the first cell of S.
        count: Cells to copy.
        line: Expression of the first cell of the line.
        steps: First cell within the line, stride, and cells of the line.
    """
    shift, stride, width = steps
    for done in range(0, count, _PICKED):
        picked = min(_PICKED, count - done)
        start = (shift // stride + done) * stride
        loaded = min(picked * stride, width - start)
        lanes = [shift % stride + i * stride for i in range(picked)]
        whole = f"X[{line} + {start}]" if loaded == 1 else f"X[T.Ramp({line} + {start}, 1, {loaded})]"
        cells = f"S[{target} + {done}]" if picked == 1 else f"S[T.Ramp({target} + {done}, 1, {picked})]"
        script.add(f"{cells} = {whole if loaded == 1 else f'T.Shuffle([{whole}], {lanes})'}")


def _write_zeros(script: Script, start: str, count: int) -> None:
    with script.block(f"for v in T.serial({count})"):
        script.add(f"S[{start} + v] = T.float32(0.0)")


def _inside(size: int, stride: int, padding: int, phase: int, cells: int) -> tuple[int, int]:
    """Return the cells of a phase line that lie inside the image: first and one past the last.

    Cell i of the line is image position i * stride + phase - padding.
    """
    first = max(0, -((phase - padding) // stride)) if phase < padding else 0
    last = max(first, min(cells, -((phase - padding - size) // stride)))
    return min(first, cells), last
