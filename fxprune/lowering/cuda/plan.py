"""Where tensors lie on a GPU: layouts of the kernels' inputs and outputs, and the buffers that hold them in turn.

Every tensor that a kernel reads or writes lies "chwn" with the halo that the kernels reading it need. A kernel writes
the inside only; a halo is zeroed once, when the program's memory is. So a buffer is used again for tensors of exactly
the same layout and for no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxprune.codegen.workload import CellType, ConvShape, Halo, Layout, Workload
from fxprune.layer import Layer
from fxprune.lowering.choice import Case

_CELLS: dict[torch.dtype, CellType] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
KERNEL_TYPES = frozenset(_CELLS)
"""Types of the layers that kernels for GPUs compute."""


@dataclass(frozen=True)
class Placement:
    """Layouts of one lowered layer.

    Attributes:
        work: The workload with its layouts.
        input_made: Whether a kernel's buffer is the input; torch's tensors are copied into one.
        residual_made: The same for the residual.
    """

    work: Workload
    input_made: bool
    residual_made: bool


def is_made(source: fx.Node | None, reader: Layer, kernels: Mapping[fx.Node, Case]) -> bool:
    """Whether a tensor comes from a kernel for the same kind of layer, so that its reader takes it where it lies."""
    return source is not None and source in kernels and _same_kind(kernels[source].layer, reader)


def _same_kind(one: Layer, other: Layer) -> bool:
    return (one.kind, one.dims) == (other.kind, other.dims)


def trial_workload(case: Case) -> Workload:
    """Return the workload of a layer on its own: halos as it needs them itself."""
    return _workload(case, case.shape.padding, ((0, 0), (0, 0), (0, 0)), ((0, 0), (0, 0), (0, 0)))


def plan_layouts(kernels: Mapping[fx.Node, Case]) -> dict[fx.Node, Placement]:
    """Choose the layouts of every layer that a kernel computes.

    Args:
        kernels: Those layers, by node in graph order.
    """
    placements: dict[fx.Node, Placement] = {}
    for node, case in kernels.items():
        layer = case.layer
        residual_halo = _wanted_halo(layer.residual, layer, kernels) if layer.residual is not None else None
        work = _workload(
            case, _wanted_halo(layer.input, layer, kernels), _wanted_halo(node, layer, kernels), residual_halo
        )
        made = is_made(layer.input, layer, kernels), is_made(layer.residual, layer, kernels)
        placements[node] = Placement(work, *made)
    return placements


def _workload(case: Case, x_halo: Halo, y_halo: Halo, residual_halo: Halo | None) -> Workload:
    shape, layer = case.shape, case.layer
    cells = _CELLS[layer.input.meta["val"].dtype]
    x = Layout("chwn", shape.batch, shape.channels_in, shape.spatial_in, x_halo, cells)
    y = _output(shape, y_halo, cells)
    residual = (
        _output(shape, residual_halo, cells) if layer.residual is not None and residual_halo is not None else None
    )
    return Workload(shape, x, y, residual, layer.activation, layer.activation_args, 1)


def _output(shape: ConvShape, halo: Halo, cells: CellType) -> Layout:
    return Layout("chwn", shape.batch, shape.channels_out, shape.spatial_out, halo, cells)


def _wanted_halo(source: fx.Node, kind: Layer, kernels: Mapping[fx.Node, Case]) -> Halo:
    """Return the largest padding of the kernels that read a tensor as their input."""
    wanted = [
        kernels[user].shape.padding
        for user in source.users
        if user in kernels and kernels[user].layer.input is source and _same_kind(kernels[user].layer, kind)
    ]
    axes = [
        (max((halo[axis][0] for halo in wanted), default=0), max((halo[axis][1] for halo in wanted), default=0))
        for axis in range(3)
    ]
    return axes[0], axes[1], axes[2]


@dataclass(frozen=True)
class Interval:
    """When a tensor is needed.

    Attributes:
        layout: How it lies.
        first: Index of the node that writes it.
        last: Index of the last node that reads it.
    """

    layout: Layout
    first: int
    last: int


def plan_buffers(intervals: Sequence[Interval]) -> tuple[list[int], list[Layout]]:
    """Give every tensor a buffer; one that is no longer needed leaves its buffer to a tensor of the same layout.

    Returns:
        The buffer of each tensor, and the layout of each buffer.
    """
    buffers: list[Layout] = []
    busy: list[int] = []
    places: dict[int, int] = {}
    for index in sorted(range(len(intervals)), key=lambda index: intervals[index].first):
        own = intervals[index]
        free = [b for b, layout in enumerate(buffers) if layout == own.layout and busy[b] < own.first]
        if not free:
            free = [len(buffers)]
            buffers.append(own.layout)
            busy.append(-1)
        places[index] = free[0]
        busy[free[0]] = own.last
    return [places[index] for index in range(len(intervals))], buffers
