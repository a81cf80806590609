"""What kernels run besides layers: pools and layer normalisations, written and bound to their buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.layer_norm import NormWorkload, build_norm_kernel
from fxprune.codegen.cpu.pool import build_pool_kernel
from fxprune.codegen.cpu.pool_planes import build_plane_pool_kernel
from fxprune.codegen.kernel import BoundUnary
from fxprune.codegen.memory import Pool, rounded
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Layout
from fxprune.lowering.choice import constant
from fxprune.lowering.geometry import buffer_view
from fxprune.lowering.modules import Port, UnaryModule
from fxprune.lowering.norm import Normalisation
from fxprune.lowering.plan import POOL_KIND, TOKENS, Kind
from fxprune.lowering.pool import Pooling, pool_workload
from fxprune.lowering.turn import Source


@dataclass(eq=False)
class LoweredUnary:
    """A node with one input that a kernel runs, while the program is assembled.

    Attributes:
        node: The node.
        new: Its node in the lowered graph.
        x: Layout of the input.
        y: Layout of the output.
        source: The buffer that is the input; None if torch makes it.
        kind: Kind and spatial axes of the layers that see such tensors.
        function: The kernel's name.
        constants: Flat tensors that the kernel takes between input and output.
    """

    node: fx.Node
    new: fx.Node
    x: Layout
    y: Layout
    source: fx.Node | None
    kind: Kind
    function: str
    constants: tuple[torch.Tensor, ...] = ()


def make_pools(
    pools: Mapping[fx.Node, Pooling],
    outputs: Mapping[Source, Layout],
    scripts: dict[str, str],
    any_name: str,
    target: CpuTarget,
) -> dict[fx.Node, LoweredUnary]:
    """Write the kernel of every pooling node; equal texts share one function.

    Args:
        pools: The nodes.
        outputs: Layouts of all planned buffers.
        scripts: Names of functions by their text under `any_name`, added to.
        any_name: Global symbol of all texts.
        target: The CPU.
    """
    made: dict[fx.Node, LoweredUnary] = {}
    for node, pool in pools.items():
        work = pool_workload(pool, outputs, target.lanes, target.threads)
        text = (build_pool_kernel if pool.order == "nhwc" else build_plane_pool_kernel)(any_name, work)
        name = scripts.setdefault(text, f"pool_{len(scripts)}")
        source = pool.input if pool.input in outputs else None
        made[node] = LoweredUnary(node, node, work.x, work.y, source, POOL_KIND, name)
    return made


def make_norms(
    gm: fx.GraphModule,
    norms: Mapping[fx.Node, Normalisation],
    linear: Mapping[fx.Node, Layout],
    scripts: dict[str, str],
    any_name: str,
    target: CpuTarget,
) -> dict[fx.Node, LoweredUnary]:
    """Write the kernel of every layer normalisation; equal texts share one function.

    Args:
        gm: The captured graph, which holds the constants.
        norms: The nodes.
        linear: Layouts of the planned buffers of tokens: their own, and those that linear layers write.
        scripts: Names of functions by their text under `any_name`, added to.
        any_name: Global symbol of all texts.
        target: The CPU.
    """
    made: dict[fx.Node, LoweredUnary] = {}
    pool = Pool(sum(2 * rounded(norm.channels) for norm in norms.values()))
    for node, norm in norms.items():
        source = norm.input if norm.input in linear else None
        x = norm.layout() if source is None else linear[source]
        work = NormWorkload(norm.channels, x, linear[node], norm.eps, target.lanes, target.threads)
        name = scripts.setdefault(build_norm_kernel(any_name, work), f"norm_{len(scripts)}")
        weight, bias = constant(gm, norm.weight), constant(gm, norm.bias)
        gamma = pool.copy(torch.ones(norm.channels) if weight is None else weight.contiguous())
        beta = pool.copy(torch.zeros(norm.channels) if bias is None else bias.contiguous())
        made[node] = LoweredUnary(node, node, x, work.y, source, TOKENS, name, (gamma, beta))
    return made


def bind_unaries(
    result: fx.GraphModule,
    unaries: Mapping[fx.Node, LoweredUnary],
    arena: Mapping[Source | str, torch.Tensor],
    library: Library | None,
) -> None:
    """Bind every kernel to its buffers.

    Args:
        result: The lowered graph, changed in place.
        unaries: What they run.
        arena: The planned buffers.
        library: The kernels.
    """
    for node, item in unaries.items():
        assert library is not None
        shape, (kind, dims) = tuple(node.meta["val"].shape), item.kind
        whole = shape if dims == 0 else (*shape, 1, 1)[: dims + 2]
        output = buffer_view(arena[node], item.y, dims, whole)
        if whole != shape:
            output = output.reshape(shape)
        x = None if item.source is None else arena[item.source]
        bound = BoundUnary(library[item.function], x, arena[node], item.constants)
        port = Port(item.x, kind, dims) if x is None else None
        result.set_submodule(str(item.new.target), UnaryModule(bound, output, port))
