"""Buffers of one order of activations that kernels of the other order read: each is copied once, by a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.bands import cut_layout
from fxprune.codegen.cpu.transpose import build_transpose_kernel
from fxprune.codegen.kernel import BoundUnary
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Layout
from fxprune.lowering.geometry import buffer_view
from fxprune.lowering.modules import UnaryModule


@dataclass(frozen=True)
class Turned:
    """The copy of a buffer in the other order: planes of a channels-last one, or the other way round.

    Attributes:
        node: The layer or pool whose buffer it is.
        dims: Spatial axes of its image.
    """

    node: fx.Node
    dims: int

    @property
    def channels(self) -> int:
        """C, without channels of padding."""
        return int(self.node.meta["val"].shape[-1 - self.dims])


Source = fx.Node | Turned
"""A planned buffer: what a layer or a pool writes, by its node, or its copy."""


@dataclass(eq=False)
class LoweredTurn:
    """A copy while the program is assembled.

    Attributes:
        node: What is copied.
        new: Its node in the lowered graph.
        x: Layout of the buffer.
        y: Layout of the copy.
        function: The kernel's name.
    """

    node: Turned
    new: fx.Node
    x: Layout
    y: Layout
    function: str


def make_turns(
    outputs: Mapping[Source, Layout], scripts: dict[str, str], any_name: str, target: CpuTarget
) -> dict[Source, LoweredTurn]:
    """Write the kernel of every copy; equal texts share one function.

    Args:
        outputs: Layouts of all planned buffers.
        scripts: Names of functions by their text under `any_name`, added to.
        any_name: Global symbol of all texts.
        target: The CPU.
    """
    turns: dict[Source, LoweredTurn] = {}
    for turned, y in outputs.items():
        if isinstance(turned, fx.Node):
            continue
        x = outputs[turned.node]
        x_bands, y_bands = (cut_layout(one, max(x.batch, y.batch) // one.batch) for one in (x, y))
        text = build_transpose_kernel(any_name, x_bands, y_bands, turned.channels, target.lanes, target.threads)
        name = scripts.setdefault(text, f"turn_{len(scripts)}")
        turns[turned] = LoweredTurn(turned, turned.node, x, y, name)
    return turns


def insert_turns(
    result: fx.GraphModule, turns: Mapping[Source, LoweredTurn], placed: Mapping[fx.Node, fx.Node]
) -> None:
    """Call every copy behind the kernel that writes its buffer, while the buffer is in the cache.

    Args:
        result: The lowered graph, changed in place.
        turns: The copies; each gets its node.
        placed: The module call of every node that a kernel runs.
    """
    for number, turn in enumerate(turns.values()):
        source, name = placed[turn.node.node], f"turn_{number}"
        result.add_submodule(name, nn.Module())
        with result.graph.inserting_after(source):
            turn.new = result.graph.call_module(name, (source,))
        turn.new.meta = dict(source.meta)


def bind_turns(
    result: fx.GraphModule,
    turns: Mapping[Source, LoweredTurn],
    arena: Mapping[Source | str, torch.Tensor],
    library: Library | None,
) -> None:
    """Bind every copy to its buffers.

    Args:
        result: The lowered graph, changed in place.
        turns: The copies.
        arena: The planned buffers.
        library: The kernels.
    """
    for turned, turn in turns.items():
        assert library is not None
        shape = tuple(turn.node.node.meta["val"].shape)
        output = buffer_view(arena[turned], turn.y, turn.node.dims, shape)
        bound = BoundUnary(library[turn.function], arena[turn.node.node], arena[turned])
        result.set_submodule(str(turn.new.target), UnaryModule(bound, output, None))
