"""The nodes of a lowered graph: a kernel bound to its buffers, and a copy into a kernel's layout."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from fxprune.codegen.build import Library
from fxprune.codegen.kernel import BoundKernel, BoundUnary
from fxprune.codegen.memory import Pool
from fxprune.codegen.workload import Layout
from fxprune.lowering.geometry import view_5d

_CACHE_LINE = 64
"""Alignment in bytes that TVM asks of a tensor."""


@dataclass(frozen=True)
class Port:
    """How a tensor made by torch enters a kernel.

    Attributes:
        layout: Where the kernel expects it.
        kind: "conv" or "linear", the kind of the layer.
        dims: Spatial axes of the layer.
    """

    layout: Layout
    kind: str
    dims: int

    def flatten(self, tensor: torch.Tensor, spare: list[torch.Tensor]) -> torch.Tensor:
        """Return the flat buffer of a tensor, copied only if it lies otherwise.

        Args:
            tensor: The tensor, in the layer's own shape.
            spare: Holds the buffer for copies once one was needed.
        """
        tensor = view_5d(tensor, self.kind, self.dims)
        if _lies_as(tensor, self.layout) and _is_aligned(tensor):
            return tensor.as_strided((self.layout.numel,), (1,), tensor.storage_offset())
        if not spare:
            spare.append(torch.empty(self.layout.numel, dtype=torch.float32))
        fill(spare[0], self.layout, tensor)
        return spare[0]


def _lies_as(tensor: torch.Tensor, layout: Layout) -> bool:
    """Whether a 5-D tensor has exactly the layout's strides; an axis of size 1 may have any."""
    return all(
        size == 1 or found == wanted
        for size, found, wanted in zip(tensor.shape, tensor.stride(), layout.strides, strict=True)
    )


def _is_aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % _CACHE_LINE == 0


def fill(buffer: torch.Tensor, layout: Layout, tensor: torch.Tensor) -> None:
    """Copy a 5-D tensor into the inside of a flat buffer; its halo stays as it is."""
    buffer.as_strided(tensor.shape, layout.strides, buffer.storage_offset() + layout.origin).copy_(tensor)


class KernelModule(nn.Module):
    """One layer run by a kernel.

    Args of forward: x and residual, the tensors of the graph; those that lie in a planned buffer are only awaited.

    Attributes:
        name: The layer's node in the graph that was lowered.
        bound: The kernel.
        output: The output buffer, viewed as the layer's output.
        is_static: Whether all that it reads lies in planned buffers.
    """

    def __init__(
        self,
        name: str,
        bound: BoundKernel,
        output: torch.Tensor,
        x_port: Port | None,
        residual_port: Port | None,
    ) -> None:
        """Bind a kernel to its place in the graph.

        Args:
            name: The layer's node in the graph that was lowered.
            bound: The kernel.
            output: The output buffer, viewed as the layer's output.
            x_port: How the input enters, None if it lies in a planned buffer.
            residual_port: The same for the residual.
        """
        super().__init__()
        self.name = name
        self.bound = bound
        self.output = output
        self._ports = (x_port, residual_port)
        self._spare: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        self.is_static = x_port is None and residual_port is None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Run the kernel; the result lies in the planned buffer and is overwritten by the next call."""
        if self.is_static:
            self.bound.run()
            return self.output
        self.bound.run_with(*self._flatten(x, residual))
        return self.output

    def run_timed(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
        """Run the kernel; returns the result and the seconds of the kernel alone, without layout conversions."""
        flat = self._flatten(x, residual)
        start = time.perf_counter()
        self.bound.run_with(*flat)
        return self.output, time.perf_counter() - start

    def _flatten(
        self, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the flat buffers of what torch made; None for what lies in a planned buffer."""
        x_port, residual_port = self._ports
        flat = None if x_port is None else x_port.flatten(x, self._spare[0])
        if residual_port is None or residual is None:
            return flat, None
        return flat, residual_port.flatten(residual, self._spare[1])


class UnaryModule(nn.Module):
    """A pooling operator, a layer normalisation, or a copy in another order, run by a kernel.

    Args of forward: x, the tensor of the graph; one that lies in a planned buffer is only awaited.

    Attributes:
        bound: The kernel.
        output: The output buffer, viewed as the node's output.
        is_static: Whether its input lies in a planned buffer.
    """

    def __init__(self, bound: BoundUnary, output: torch.Tensor, port: Port | None) -> None:
        """Bind a kernel to its place in the graph.

        Args:
            bound: The kernel.
            output: The output buffer, viewed as the node's output.
            port: How the input enters, None if it lies in a planned buffer.
        """
        super().__init__()
        self.bound, self.output, self.is_static = bound, output, port is None
        self._port = port
        self._spare: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the kernel; the result lies in the planned buffer and is overwritten by the next call."""
        if self._port is None:
            self.bound.run()
        else:
            self.bound.run_with(self._port.flatten(x, self._spare))
        return self.output


class StageModule(nn.Module):
    """A copy of a torch tensor into a buffer whose halo is zero."""

    def __init__(self, port: Port, library: Library, name: str) -> None:
        """Make the buffer.

        Args:
            port: Layout and kind of the tensor.
            library: Holds the kernel that copies a contiguous tensor; torch copies any other.
            name: Its function.
        """
        super().__init__()
        layout = port.layout
        self.buffer = Pool(layout.numel).take(layout.numel)
        self._port = port
        self._copy = BoundUnary(library[name], None, self.buffer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Copy the tensor; returns it unchanged, so that the graph keeps its meaning."""
        if self._port.kind == "conv" and x.is_contiguous() and _is_aligned(x):
            self._copy.run_with(x.view(-1))
        else:
            fill(self.buffer, self._port.layout, view_5d(x, self._port.kind, self._port.dims))
        return x
