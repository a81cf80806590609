"""What was chosen for each layer, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import fx

from fxprune.annotation import RowGroupPattern, WeightAnnotation
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.format import Float32Array
from fxprune.codegen.schedules import Schedule
from fxprune.codegen.workload import ConvShape
from fxprune.layer import Layer
from fxprune.nodes import get_tensor

NOISE = 0.03
"""Kernels must beat dense torch by this share of its time."""


def gains(ours: float, theirs: float) -> bool:
    """Whether the time with kernels is less than that on dense torch, beyond noise."""
    return ours <= theirs * (1 - NOISE)


@dataclass(frozen=True, eq=False)
class Case:
    """A layer that a kernel could compute.

    Attributes:
        layer: The layer.
        annotation: Name, mask, pattern of its weight.
        shape: Its geometry.
        weight: The 2-D view [O, K], masked; in float32 whatever the layer's type is.
        bias: [O] or None, in float32.
        pattern: The row groups; one group of all cells for a layer without a mask.
    """

    layer: Layer
    annotation: WeightAnnotation
    shape: ConvShape
    weight: Float32Array
    bias: Float32Array | None
    pattern: RowGroupPattern


class Tile(Protocol):
    """Options of a kernel, as far as every target has them."""

    @property
    def height(self) -> int:
        """Rows of a packed block."""


class Chosen(Protocol):
    """What runs a layer, for the report; `Choice` is a CPU's."""

    @property
    def schedule(self) -> Tile | None:
        """Options of the kernel; None = dense torch."""

    @property
    def reason(self) -> str:
        """A sentence with the figures."""

    @property
    def kernel(self) -> str:
        """Name of the kernel."""

    @property
    def predicted_us(self) -> float | None:
        """Predicted time, microseconds."""

    @property
    def measured_us(self) -> float | None:
        """Measured time, microseconds."""

    @property
    def dense_us(self) -> float | None:
        """Measured time of the dense layer, microseconds."""


@dataclass(frozen=True)
class Choice:
    """What runs a layer.

    Attributes:
        schedule: Options of the kernel; None = dense torch.
        reason: A sentence with the figures.
        predicted_us: Predicted time of what was chosen, microseconds; None if nothing was predicted.
        measured_us: Its measured time; None if nothing was measured.
        dense_us: Measured time of the dense layer.
        group_height: Height that its row groups are covered for; None = those of its annotation.
    """

    schedule: Schedule | None
    reason: str
    predicted_us: float | None = None
    measured_us: float | None = None
    dense_us: float | None = None
    group_height: int | None = None

    @property
    def family(self) -> str:
        """Who computes it: "dense"; "rows", channels-last, all others too; or "pixels"."""
        return "dense" if self.schedule is None else family_of(self.schedule)

    @property
    def kernel(self) -> str:
        """Name of the kernel for the report."""
        return "dense: torch" if self.schedule is None else str(self.schedule)


def family_of(schedule: Schedule) -> str:
    """Return the family of a kernel's options: "rows", channels-last, all but the "pixels" kernels."""
    return "pixels" if isinstance(schedule, PixelsSchedule) else "rows"


def constant(gm: fx.GraphModule, node: fx.Node | None) -> torch.Tensor | None:
    """Return the tensor of a `get_attr` node, None for None."""
    return None if node is None else get_tensor(gm, node)
