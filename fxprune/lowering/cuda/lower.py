"""From an annotated graph to a program for a GPU: kernels in the place of layers, copies before them, buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from fxprune.codegen.cuda.build import CudaLibrary
from fxprune.codegen.cuda.cache import open_library as build_or_find
from fxprune.codegen.cuda.kernel import CudaKernel, make_kernel
from fxprune.codegen.cuda.target import CudaTarget
from fxprune.codegen.workload import Layout
from fxprune.debug import dump_text
from fxprune.layer import Layer
from fxprune.lowering.choice import Case, constant
from fxprune.lowering.cuda.choice import CudaChoice
from fxprune.lowering.cuda.modules import CopyModule, LaunchModule
from fxprune.lowering.cuda.plan import Interval, Placement, plan_buffers, plan_layouts
from fxprune.lowering.cuda.pool import swap_around_pools
from fxprune.lowering.cuda.program import CudaProgram, Parts, Step
from fxprune.lowering.cuda.recipe import write_recipe
from fxprune.lowering.dense import DenseLayer
from fxprune.lowering.plan import last_uses
from fxprune.lowering.rewrite import drop_constants, forget_replaced, place_layers
from fxprune.nodes import copy_graph, module_path

OpenLibrary = Callable[[Mapping[str, str], str], CudaLibrary]
"""Makes the library of TVMScript by global symbol, for an architecture."""


@dataclass
class _Lowered:
    """One launch while the program is assembled.

    Attributes:
        case: The layer.
        new: Its node.
        placement: Its layouts.
        kernel: Its packed weight.
        function: Name of its kernel.
        sources: Nodes whose buffers it reads by role, "x" and "residual".
    """

    case: Case
    new: fx.Node
    placement: Placement
    kernel: CudaKernel
    function: str
    sources: dict[str, fx.Node] = field(default_factory=dict)


def lower(
    gm: fx.GraphModule,
    cases: Mapping[fx.Node, Case],
    choices: Mapping[fx.Node, CudaChoice],
    target: CudaTarget,
    open_library: OpenLibrary | None = None,
    *,
    guarded: bool = False,
) -> CudaProgram:
    """Replace every layer by its kernel or by dense torch.

    Args:
        gm: The annotated graph; it is not changed.
        cases: Layers that kernels can compute.
        choices: What runs them; a layer without a choice stays dense.
        target: The GPU.
        open_library: Makes the library of the kernels' texts; None = compile them, or find them in the cache.
        guarded: Whether the first run is to decide between the kernels and dense torch.
    """
    graph, mapped = copy_graph(gm)
    chosen = {node: case for node, case in cases.items() if choices[node].schedule is not None}
    result = fx.GraphModule(gm, graph, class_name="LoweredGraph")
    placed = place_layers(result, gm, mapped, chosen, lambda layer: _dense_module(gm, layer))
    scripts: dict[str, str] = {}
    lowered = _make_kernels(chosen, choices, placed, scripts)
    named = {name: text.replace(_ANY_NAME, name) for text, name in scripts.items()}
    for name, text in named.items():
        dump_text(f"kernel_{name}.txt", text)
    library = (open_library or build_or_find)(named, target.arch) if named else None
    swap_around_pools(result.graph, placed.values())
    copies = _insert_copies(result, lowered)
    places, buffers = _plan_buffers(result, lowered, copies)
    steps = tuple(_make_step(result, node, item, places) for node, item in lowered.items())
    drop_constants(result)
    forget_replaced(result)
    numbered = tuple((module, places[node]) for node, module in copies.items())
    recipe = write_recipe({node: choices[node].schedule for node in chosen}, target, named, guarded=guarded)
    return CudaProgram(Parts(result, steps, numbered, buffers, library, target, recipe))


def _dense_module(gm: fx.GraphModule, layer: Layer) -> nn.Module:
    weight = constant(gm, layer.weight)
    assert weight is not None
    return DenseLayer(layer, weight, constant(gm, layer.bias))


_ANY_NAME = "kernel_function"


def _make_kernels(
    cases: Mapping[fx.Node, Case],
    choices: Mapping[fx.Node, CudaChoice],
    placed: Mapping[fx.Node, fx.Node],
    scripts: dict[str, str],
) -> dict[fx.Node, _Lowered]:
    """Pack every layer; equal texts share one function."""
    lowered: dict[fx.Node, _Lowered] = {}
    for node, placement in plan_layouts(cases).items():
        case, schedule = cases[node], choices[node].schedule
        assert schedule is not None
        kernel = make_kernel(placement.work, schedule, case.weight, case.pattern, case.bias)
        name = scripts.setdefault(kernel.script(_ANY_NAME), f"layer_{len(scripts)}")
        lowered[node] = _Lowered(case, placed[node], placement, kernel, name)
    return lowered


def _insert_copies(result: fx.GraphModule, lowered: Mapping[fx.Node, _Lowered]) -> dict[fx.Node, CopyModule]:
    """Copy torch's tensors into kernels' buffers, one buffer for all kernels that read it alike."""
    made: dict[tuple[fx.Node, Layout, str], fx.Node] = {}
    modules: dict[fx.Node, CopyModule] = {}
    for item in lowered.values():
        layer, placement = item.case.layer, item.placement
        roles = [("x", layer.input, placement.work.x, placement.input_made)]
        if layer.residual is not None and placement.work.residual is not None:
            roles.append(("residual", layer.residual, placement.work.residual, placement.residual_made))
        for place, (role, captured, layout, is_made) in enumerate(roles):
            if is_made:
                item.sources[role] = lowered[captured].new
                continue
            source = item.new.args[place]
            assert isinstance(source, fx.Node)
            key = (source, layout, layer.kind)
            if key not in made:
                module, name = CopyModule(layout, layer.kind, layer.dims), f"stage_{len(made)}"
                result.add_submodule(name, module)
                made[key] = _insert_copy(result, item.new, source, name)
                modules[made[key]] = module
            item.sources[role] = made[key]
        item.new.args = tuple(item.sources[role] for role, *_ in roles)
    return modules


def _insert_copy(result: fx.GraphModule, reader: fx.Node, source: fx.Node, name: str) -> fx.Node:
    with result.graph.inserting_before(reader):
        node = result.graph.call_module(name, (source,))
    node.meta = {"val": source.meta.get("val")}
    return node


def _plan_buffers(
    result: fx.GraphModule, lowered: Mapping[fx.Node, _Lowered], copies: Mapping[fx.Node, CopyModule]
) -> tuple[dict[fx.Node, int], tuple[Layout, ...]]:
    """Return the buffer of every copy's and every kernel's output, and the buffers' layouts."""
    index = {node: position for position, node in enumerate(result.graph.nodes)}
    last = last_uses(result.graph)
    layouts = {node: module.layout for node, module in copies.items()}
    layouts |= {item.new: item.placement.work.y for item in lowered.values()}
    places, buffers = plan_buffers([Interval(layout, index[node], last[node]) for node, layout in layouts.items()])
    return dict(zip(layouts, places, strict=True)), tuple(buffers)


def _make_step(result: fx.GraphModule, node: fx.Node, item: _Lowered, places: Mapping[fx.Node, int]) -> Step:
    module = LaunchModule(module_path(node))
    result.set_submodule(str(item.new.target), module)
    residual = places[item.sources["residual"]] if "residual" in item.sources else None
    x, y = places[item.sources["x"]], places[item.new]
    return Step(module, item.kernel, item.function, item.case.layer, x, y, residual)
