"""A lowered graph that can be run: kernels, dense layers and plain torch operators in graph order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.codegen.build import Library
from fxprune.codegen.kernel import BoundKernel, LayerKernel, make_kernel
from fxprune.codegen.memory import Pool
from fxprune.codegen.schedules import refit
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import Layout
from fxprune.debug import dump_text
from fxprune.layer import Layer, find_layer
from fxprune.lowering.choice import Case, Choice, constant
from fxprune.lowering.dense import build_dense
from fxprune.lowering.geometry import buffer_view
from fxprune.lowering.modules import KernelModule, Port, StageModule
from fxprune.lowering.plan import Interval, Placement, last_uses, plan_layouts, plan_memory
from fxprune.lowering.recipe import write_recipe
from fxprune.nodes import annotation_of, module_path

_VIEWS = frozenset({torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default})
"""Operators that take their input to lie in order; channels-last it does not, and reshape copies where it must."""


class Program:
    """A model compiled for one set of input shapes; calls from several threads take turns.

    Attributes:
        graph_module: The lowered graph.
        kernels: Bytes of the packed weight of every layer that a kernel runs, by module path.
        arena_bytes: Bytes of all planned activations.
        library: The kernels; None if there are none.
        recipe: What `lower` needs besides the graph to make this program again, as JSON.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        kernels: Mapping[str, int],
        arena: torch.Tensor,
        library: Library | None,
        recipe: Mapping[str, object],
    ) -> None:
        """Take the parts that `lower` made."""
        self.graph_module, self.kernels = graph_module, kernels
        self.arena_bytes = arena.numel() * arena.element_size()
        self.library, self.recipe = library, recipe
        self._arena = arena
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[object]) -> list[object]:
        """Run on flat inputs of the captured shapes; the results share no memory with the program."""
        with self._lock, torch.no_grad():
            outputs = self.graph_module.forward(*inputs)
            return [self._own(output) for output in outputs]

    def _own(self, output: object) -> object:
        if isinstance(output, torch.Tensor) and _storage(output) == _storage(self._arena):
            return output.clone(memory_format=torch.contiguous_format)
        return output


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass
class _Lowered:
    """One kernel node while the program is assembled."""

    node: fx.Node
    new: fx.Node
    placement: Placement
    kernel: LayerKernel
    function: str


Build = Callable[[Mapping[str, str], CpuTarget], Library]
"""Makes a library from the TVMScript of its functions."""


def lower(
    gm: fx.GraphModule,
    cases: Mapping[fx.Node, Case],
    choices: Mapping[fx.Node, Choice],
    target: CpuTarget,
    build: Build = Library,
) -> Program:
    """Replace every layer by its kernel or by dense torch; the same arguments give the same program.

    Args:
        gm: The annotated graph; it is not changed.
        cases: Layers that kernels can compute.
        choices: What runs them; a layer without a choice stays dense.
        target: The CPU.
        build: Makes the library.
    """
    lowered_graph, mapped = _copy_graph(gm)
    placements = plan_layouts(
        {node: case.layer for node, case in cases.items()},
        {node: case.shape for node, case in cases.items()},
        choices,
        {node: case.pattern for node, case in cases.items()},
        target.threads,
    )
    scripts: dict[str, str] = {}
    lowered = _make_kernels(cases, choices, placements, scripts, target)
    texts = {name: _named(text, name) for text, name in scripts.items()}
    library = build(texts, target) if texts else None
    for name, text in texts.items():
        dump_text(f"kernel_{name}.txt", text)
    result = fx.GraphModule(gm, lowered_graph, class_name="LoweredGraph")
    _place_nodes(result, gm, mapped, lowered)
    stages = _insert_stages(result, lowered, cases)
    arena, scratch = _allocate(result, lowered)
    _bind_kernels(result, lowered, cases, stages, arena, scratch, library)
    _drop_constants(result)
    result.recompile()
    sizes = {module_path(item.node): item.kernel.packed.size_bytes for item in lowered.values()}
    return Program(result, sizes, arena[""], library, write_recipe(choices, target, texts))


def _copy_graph(gm: fx.GraphModule) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    graph, mapped = fx.Graph(), dict[fx.Node, fx.Node]()
    output = graph.graph_copy(gm.graph, mapped)
    graph.output(output)
    return graph, mapped


_ANY_NAME = "kernel_function"


def _named(text: str, name: str) -> str:
    return text.replace(_ANY_NAME, name)


def _make_kernels(
    cases: Mapping[fx.Node, Case],
    choices: Mapping[fx.Node, Choice],
    placements: Mapping[fx.Node, Placement],
    scripts: dict[str, str],
    target: CpuTarget,
) -> dict[fx.Node, _Lowered]:
    """Pack every lowered layer; equal texts share one function."""
    lowered: dict[fx.Node, _Lowered] = {}
    for node, placement in placements.items():
        case, schedule = cases[node], choices[node].schedule
        assert schedule is not None
        source = placement.source
        kernel = make_kernel(
            placement.work,
            refit(schedule, placement.work, target),
            case.weight,
            case.pattern,
            case.bias,
            input_map=None if source is None else lowered[source].kernel.channel_map,
            group_order=placement.group_order,
        )
        name = scripts.setdefault(kernel.script(_ANY_NAME), f"layer_{len(scripts)}")
        lowered[node] = _Lowered(node, node, placement, kernel, name)
    return lowered


def _place_nodes(
    result: fx.GraphModule,
    gm: fx.GraphModule,
    mapped: Mapping[fx.Node, fx.Node],
    lowered: Mapping[fx.Node, _Lowered],
) -> None:
    """Put a module call in the place of every layer: an empty one for kernels, the dense layer for the others."""
    for number, node in enumerate(gm.graph.nodes):
        if node.target is torch.ops.aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            _use_mean(result, mapped[node])
        if node.target in _VIEWS:
            mapped[node].target = torch.ops.aten.reshape.default
        layer = find_layer(node)
        if layer is None or layer.kind == "conv_transpose" or annotation_of(node) is None:
            continue
        name = f"kernel_{number}" if node in lowered else f"dense_{number}"
        result.add_submodule(name, nn.Module() if node in lowered else _dense_module(gm, layer))
        new = _replace(result, mapped[node], layer, mapped, name)
        if node in lowered:
            lowered[node].new = new


def _use_mean(result: fx.GraphModule, pool: fx.Node) -> None:
    """Take the mean of the image in the place of a pool to one pixel: ten times faster channels-last on torch 2.15."""
    with result.graph.inserting_before(pool):
        mean = result.graph.call_function(torch.ops.aten.mean.dim, (_current(pool.args[0]), [-1, -2], True))  # type: ignore[arg-type]
    mean.meta = dict(pool.meta)
    pool.replace_all_uses_with(mean)
    pool.meta["replacement"] = mean
    result.graph.erase_node(pool)


def _dense_module(gm: fx.GraphModule, layer: Layer) -> nn.Module:
    weight = constant(gm, layer.weight)
    assert weight is not None
    return build_dense(layer, weight, constant(gm, layer.bias))


def _replace(
    result: fx.GraphModule, old: fx.Node, layer: Layer, mapped: Mapping[fx.Node, fx.Node], name: str
) -> fx.Node:
    arguments = [mapped[layer.input]] if layer.residual is None else [mapped[layer.input], mapped[layer.residual]]
    current = [_current(argument) for argument in arguments]
    with result.graph.inserting_before(old):
        new = result.graph.call_module(name, tuple(current))
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    old.meta["replacement"] = new
    result.graph.erase_node(old)
    return new


def _current(node: fx.Node) -> fx.Node:
    """Return the node that stands for a copied node now."""
    replacement = node.meta.get("replacement")
    return replacement if isinstance(replacement, fx.Node) and replacement is not node else node


def _insert_stages(
    result: fx.GraphModule, lowered: Mapping[fx.Node, _Lowered], cases: Mapping[fx.Node, Case]
) -> dict[fx.Node, StageModule]:
    """Copy torch's tensors into buffers with a halo, one buffer for all kernels that read it alike."""
    made: dict[tuple[fx.Node, Layout], fx.Node] = {}
    stages: dict[fx.Node, StageModule] = {}
    for node, item in lowered.items():
        if not item.placement.staged:
            continue
        layer = cases[node].layer
        source = item.new.args[0]
        assert isinstance(source, fx.Node)
        key = (source, item.placement.work.x)
        if key not in made:
            name = f"stage_{len(made)}"
            module = StageModule(Port(item.placement.work.x, layer.kind, layer.dims))
            result.add_submodule(name, module)
            with result.graph.inserting_before(item.new):
                made[key] = result.graph.call_module(name, (source,))
            made[key].meta = {"val": source.meta.get("val")}
            stages[made[key]] = module
        item.new.args = (made[key], *item.new.args[1:])
    return {item.new: stages[item.new.args[0]] for item in lowered.values() if item.placement.staged}  # type: ignore[index]


def _allocate(
    result: fx.GraphModule, lowered: Mapping[fx.Node, _Lowered]
) -> tuple[dict[fx.Node | str, torch.Tensor], torch.Tensor]:
    """Place every kernel's output in one arena; key "" is the arena itself."""
    index = {node: position for position, node in enumerate(result.graph.nodes)}
    last = last_uses(result.graph)
    items = list(lowered.values())
    intervals = [Interval(item.placement.work.y.numel, index[item.new], last[item.new]) for item in items]
    places, size = plan_memory(intervals)
    whole = Pool(size).cells
    arena: dict[fx.Node | str, torch.Tensor] = {"": whole}
    for item, place in zip(items, places, strict=True):
        arena[item.node] = whole[place : place + item.placement.work.y.numel]
    scratch = torch.zeros(max((item.kernel.scratch_cells for item in items), default=0), dtype=torch.float32)
    return arena, scratch


def _bind_kernels(
    result: fx.GraphModule,
    lowered: Mapping[fx.Node, _Lowered],
    cases: Mapping[fx.Node, Case],
    stages: Mapping[fx.Node, StageModule],
    arena: Mapping[fx.Node | str, torch.Tensor],
    scratch: torch.Tensor,
    library: Library | None,
) -> None:
    pool = Pool(sum(item.kernel.pool_cells for item in lowered.values()))
    for node, item in lowered.items():
        assert library is not None
        layer, placement = cases[node].layer, item.placement
        work, source, residual_source = placement.work, placement.source, placement.residual_source
        x = arena[source] if source is not None else None
        if placement.staged:
            x = stages[item.new].buffer
        residual = arena[residual_source] if residual_source is not None else None
        bound = BoundKernel(library[item.function], item.kernel, x, arena[node], residual, scratch, pool)
        output = buffer_view(arena[node], work.y, layer.dims, layer.output_shape)
        x_port = Port(work.x, layer.kind, layer.dims) if x is None else None
        needs_port = work.residual is not None and residual is None
        residual_port = Port(work.residual, layer.kind, layer.dims) if needs_port and work.residual else None
        module = KernelModule(module_path(node), bound, output, x_port, residual_port)
        result.set_submodule(str(item.new.target), module)


def _drop_constants(result: fx.GraphModule) -> None:
    """Remove what no node reads any more."""
    for node in reversed(list(result.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            result.graph.erase_node(node)
    result.delete_all_unused_submodules()
    read = {str(node.target) for node in result.graph.nodes if node.op == "get_attr"}
    for name, _ in [*result.named_buffers(), *result.named_parameters()]:
        if name in read or name.split(".")[0].startswith(("stage_", "kernel_", "dense_")):
            continue
        *path, leaf = name.split(".")
        delattr(result.get_submodule(".".join(path)), leaf)
