"""The nodes of a program for a GPU: a launch, and a copy into a kernel's layout. They are empty until they are tied."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fxprune.codegen.workload import Layout
from fxprune.lowering.geometry import view_5d


class LaunchModule(nn.Module):
    """One layer run by a kernel whose input, output and residual lie in planned buffers.

    Attributes:
        name: The layer's module path.
    """

    def __init__(self, name: str) -> None:
        """Make an empty node.

        Args:
            name: The layer's module path.
        """
        super().__init__()
        self.name = name
        self._launch: Callable[[], None] | None = None
        self._output = torch.empty(0)

    def tie(self, launch: Callable[[], None], output: torch.Tensor) -> None:
        """Take what runs.

        Args:
            launch: Starts the kernel.
            output: The output buffer, viewed as the layer's output.
        """
        self._launch, self._output = launch, output

    def forward(self, *awaited: torch.Tensor) -> torch.Tensor:
        """Start the kernel; the arguments are in their buffers, the result lies in its own until the next call."""
        del awaited
        assert self._launch is not None
        self._launch()
        return self._output


class CopyModule(nn.Module):
    """A copy of torch's tensor into a kernel's buffer."""

    def __init__(self, layout: Layout, kind: str, dims: int) -> None:
        """Make an empty node.

        Args:
            layout: Where the kernel expects the tensor.
            kind: "conv" or "linear", the kind of the layer that reads it.
            dims: Its spatial axes.
        """
        super().__init__()
        self.layout = layout
        self._view = kind, dims
        self._buffer = torch.empty(0)

    def tie(self, buffer: torch.Tensor) -> None:
        """Take the buffer, flat and zeroed."""
        self._buffer = buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Copy the tensor into the inside of the buffer; returns it unchanged, so that the graph keeps its meaning."""
        inside, layout = view_5d(x, *self._view), self.layout
        place = self._buffer.storage_offset() + layout.origin
        self._buffer.as_strided(inside.shape, layout.strides, place).copy_(inside)
        return x
