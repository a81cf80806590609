"""A lowered graph that can be run: kernels, dense layers and plain torch operators in graph order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.codegen.ahead import look_ahead
from fxprune.codegen.build import Library
from fxprune.codegen.cpu.stage import build_stage_kernel
from fxprune.codegen.kernel import BoundKernel, LayerKernel, make_kernel
from fxprune.codegen.memory import Pool, rounded
from fxprune.codegen.row_schedules import refit
from fxprune.codegen.target import CpuTarget
from fxprune.codegen.workload import LINE_CELLS, Layout
from fxprune.debug import dump_text
from fxprune.layer import Layer
from fxprune.lowering.bands import lay_in_bands
from fxprune.lowering.chain import chain_kernels
from fxprune.lowering.choice import Case, Choice, constant
from fxprune.lowering.dense import build_dense
from fxprune.lowering.flattened import cell_positions
from fxprune.lowering.geometry import buffer_view
from fxprune.lowering.held import hold_views
from fxprune.lowering.in_place import find_last_readers, overwrite_residuals
from fxprune.lowering.modules import KernelModule, Port, StageModule
from fxprune.lowering.norm import find_norms
from fxprune.lowering.parts import join_outputs, split_inputs
from fxprune.lowering.plan import Interval, Placement, last_uses, plan_layouts, plan_memory
from fxprune.lowering.pool import find_pools
from fxprune.lowering.pooled import pool_in_kernels
from fxprune.lowering.recipe import write_recipe
from fxprune.lowering.rewrite import drop_constants, forget_replaced, place_layers
from fxprune.lowering.turn import LoweredTurn, Source, bind_turns, insert_turns, make_turns
from fxprune.lowering.unary import LoweredUnary, bind_unaries, make_norms, make_pools
from fxprune.nodes import copy_graph, module_path


class Program:
    """A model compiled for one set of input shapes; calls from several threads take turns.

    Attributes:
        graph_module: The lowered graph.
        kernels: Bytes of the packed weight of every layer that a kernel runs, by module path.
        arena_bytes: Bytes of all planned activations.
        library: The kernels; None if there are none.
        recipe: What `lower` needs besides the graph to make this program again, as JSON.
        images: Images that the graph takes, if a batch is computed in micro-batches; None = all at once.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        kernels: Mapping[str, int],
        arena: torch.Tensor,
        library: Library | None,
        recipe: Mapping[str, object],
        images: int | None = None,
    ) -> None:
        """Take the parts that `lower` made."""
        self.graph_module, self.kernels = graph_module, kernels
        self.arena_bytes = arena.numel() * arena.element_size()
        self.library, self.recipe, self.images = library, recipe, images
        self._planned = range(arena.data_ptr(), arena.data_ptr() + self.arena_bytes)
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[object]) -> list[object]:
        """Run on flat inputs of the captured shapes; the results share no memory with the program."""
        with self._lock, torch.no_grad():
            if self.images is None:
                return self._run(inputs)
            return join_outputs([self._run(part) for part in split_inputs(inputs, self.images)])

    def _run(self, inputs: Sequence[object]) -> list[object]:
        return [self._own(output) for output in self.graph_module.forward(*inputs)]

    def _own(self, output: object) -> object:
        if isinstance(output, torch.Tensor) and output.data_ptr() in self._planned:
            return output.clone(memory_format=torch.contiguous_format)
        return output


@dataclass(eq=False)
class _Lowered:
    """One kernel node while the program is assembled."""

    node: fx.Node
    new: fx.Node
    placement: Placement
    kernel: LayerKernel
    function: str


_Item = _Lowered | LoweredUnary | LoweredTurn
"""What writes a planned buffer."""

Build = Callable[[Mapping[str, str], CpuTarget], Library]
"""Makes a library from the TVMScript of its functions."""


def lower(
    gm: fx.GraphModule,
    cases: Mapping[fx.Node, Case],
    choices: Mapping[fx.Node, Choice],
    target: CpuTarget,
    build: Build = Library,
    images: int | None = None,
) -> Program:
    """Replace every layer by its kernel or by dense torch; the same arguments give the same program.

    Args:
        gm: The annotated graph; it is not changed.
        cases: Layers that kernels can compute.
        choices: What runs them; a layer without a choice stays dense.
        target: The CPU.
        build: Makes the library.
        images: Images of the graph, if it is a micro-batch.
    """
    gm, cases, choices, windows = pool_in_kernels(gm, cases, choices, target)
    lowered_graph, mapped = copy_graph(gm)
    layers = {node: case.layer for node, case in cases.items()}
    pools = find_pools(gm.graph, layers, choices)
    norms = find_norms(gm.graph, layers, choices, target.lanes)
    shapes = {node: case.shape for node, case in cases.items()}
    patterns = {node: case.pattern for node, case in cases.items()}
    placements, outputs = plan_layouts(layers, shapes, choices, patterns, pools, norms, windows, target.threads)
    placements, outputs = lay_in_bands(placements, outputs, layers, choices, pools, target.threads)
    placements = overwrite_residuals(placements, find_last_readers(gm.graph, layers), choices, target)
    scripts: dict[str, str] = {}
    lowered = _make_kernels(cases, choices, placements, outputs, scripts, target)
    tokens = {node: outputs[node] for node in (*norms, *lowered) if node in norms or layers[node].kind == "linear"}
    unaries = make_pools(pools, outputs, scripts, _ANY_NAME, target)
    unaries |= make_norms(gm, norms, tokens, scripts, _ANY_NAME, target)
    turns = make_turns(outputs, scripts, _ANY_NAME, target)
    copies = _make_copies(placements, scripts, target)
    texts = {name: _named(text, name) for text, name in scripts.items()}
    library = build(texts, target) if texts else None
    for name, text in texts.items():
        dump_text(f"kernel_{name}.txt", text)
    result = fx.GraphModule(gm, lowered_graph, class_name="LoweredGraph")
    placed = place_layers(result, gm, mapped, lowered, lambda layer: _dense_module(gm, layer), unaries)
    for node, new in placed.items():
        (lowered[node] if node in lowered else unaries[node]).new = new
    _skip_views(result, lowered, unaries)
    insert_turns(result, turns, placed)
    _read_turns(lowered, turns)
    stages = _insert_stages(result, lowered, cases, copies, library)
    arena, scratch = _allocate(result, lowered, unaries, turns)
    _bind_kernels(result, lowered, cases, stages, arena, scratch, library)
    bind_unaries(result, unaries, arena, library)
    bind_turns(result, turns, arena, library)
    drop_constants(result)
    if library is not None:
        chain_kernels(result, library)
    hold_views(result)
    forget_replaced(result)
    sizes = {module_path(item.node): item.kernel.size_bytes for item in lowered.values()}
    return Program(result, sizes, arena[""], library, write_recipe(choices, target, texts, images), images)


_ANY_NAME = "kernel_function"


def _named(text: str, name: str) -> str:
    return text.replace(_ANY_NAME, name)


def _make_kernels(
    cases: Mapping[fx.Node, Case],
    choices: Mapping[fx.Node, Choice],
    placements: Mapping[fx.Node, Placement],
    outputs: Mapping[Source, Layout],
    scripts: dict[str, str],
    target: CpuTarget,
) -> dict[fx.Node, _Lowered]:
    """Pack every lowered layer; equal texts share one function."""
    lowered: dict[fx.Node, _Lowered] = {}
    for node, placement in placements.items():
        case, schedule = cases[node], choices[node].schedule
        assert schedule is not None
        source = placement.source
        input_map = lowered[source].kernel.channel_map if source in lowered else None
        if source is not None and placement.flattened:
            input_map = cell_positions(outputs[source], placement.work.shape.channels_in)
        kernel = make_kernel(
            placement.work,
            refit(schedule, placement.work, target),
            case.weight,
            case.pattern,
            case.bias,
            input_map=input_map,
            group_order=placement.group_order,
        )
        name = scripts.setdefault(kernel.script(_ANY_NAME), f"layer_{len(scripts)}")
        lowered[node] = _Lowered(node, node, placement, kernel, name)
    return lowered


def _make_copies(
    placements: Mapping[fx.Node, Placement], scripts: dict[str, str], target: CpuTarget
) -> dict[Layout, str]:
    """Write the copy of torch's tensors into every layout with a halo; returns the functions' names."""
    layouts = dict.fromkeys(placement.work.x for placement in placements.values() if placement.staged)
    return {
        layout: scripts.setdefault(build_stage_kernel(_ANY_NAME, layout, target.threads), f"stage_{len(scripts)}")
        for layout in layouts
    }


def _dense_module(gm: fx.GraphModule, layer: Layer) -> nn.Module:
    weight = constant(gm, layer.weight)
    assert weight is not None
    return build_dense(layer, weight, constant(gm, layer.bias))


def _skip_views(
    result: fx.GraphModule, lowered: Mapping[fx.Node, _Lowered], unaries: Mapping[fx.Node, LoweredUnary]
) -> None:
    """Let a layer that reads a planned buffer read its node, not a view of it that nothing else needs."""
    for item in lowered.values():
        source = item.placement.source
        if isinstance(source, fx.Node):
            owner = unaries[source] if source in unaries else lowered[source]
            item.new.args = (owner.new, *item.new.args[1:])
    result.graph.eliminate_dead_code()


def _read_turns(lowered: Mapping[fx.Node, _Lowered], turns: Mapping[Source, LoweredTurn]) -> None:
    """Let a layer whose order is not that of a buffer read the copy's node."""
    for item in lowered.values():
        sources = (item.placement.source, item.placement.residual_source)
        for index, source in enumerate(sources):
            if source is not None and source in turns:
                item.new.update_arg(index, turns[source].new)


def _insert_stages(
    result: fx.GraphModule,
    lowered: Mapping[fx.Node, _Lowered],
    cases: Mapping[fx.Node, Case],
    copies: Mapping[Layout, str],
    library: Library | None,
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
            assert library is not None
            layout = item.placement.work.x
            module = StageModule(Port(layout, layer.kind, layer.dims), library, copies[layout])
            result.add_submodule(name, module)
            with result.graph.inserting_before(item.new):
                made[key] = result.graph.call_module(name, (source,))
            made[key].meta = {"val": source.meta.get("val")}
            stages[made[key]] = module
        item.new.args = (made[key], *item.new.args[1:])
    return {item.new: stages[item.new.args[0]] for item in lowered.values() if item.placement.staged}  # type: ignore[index]


def _allocate(
    result: fx.GraphModule,
    lowered: Mapping[fx.Node, _Lowered],
    unaries: Mapping[fx.Node, LoweredUnary],
    turns: Mapping[Source, LoweredTurn],
) -> tuple[dict[Source | str, torch.Tensor], torch.Tensor]:
    """Place every kernel's output and every copy in one arena, key "", and make the scratch that all kernels share."""
    index = {node: position for position, node in enumerate(result.graph.nodes)}
    last = last_uses(result.graph)
    layouts: dict[_Item, Layout] = {
        **{item: item.placement.work.y for item in lowered.values()},
        **{item: item.y for item in unaries.values()},
        **{item: item.y for item in turns.values()},
    }
    groups = _share_buffers(layouts)
    intervals = [
        Interval(layouts[items[0]].numel, min(index[i.new] for i in items), max(last[i.new] for i in items))
        for items in groups
    ]
    places, size = plan_memory(intervals)
    cells = max((item.kernel.scratch_cells for item in lowered.values()), default=0)
    pool = Pool(rounded(size) + cells)
    whole = pool.take(size)
    arena: dict[Source | str, torch.Tensor] = {"": whole}
    for items, place in zip(groups, places, strict=True):
        arena |= {item.node: whole[place : place + layouts[item].numel] for item in items}
    return arena, pool.take(cells)


def _share_buffers(items: Iterable[_Item]) -> list[list[_Item]]:
    """Return what writes to each buffer: an item, and those that overwrite its result as their residual."""
    owners: dict[Source, Source] = {}
    groups: dict[Source, list[_Item]] = {}
    for item in items:
        residual = item.placement.residual_source if isinstance(item, _Lowered) and item.kernel.work.in_place else None
        owner = item.node if residual is None else owners.get(residual, residual)
        owners[item.node] = owner
        groups.setdefault(owner, []).append(item)
    return list(groups.values())


def _centre(scratch: torch.Tensor, item: _Lowered) -> torch.Tensor:
    """Return the middle of the scratch, so that the parts of two threads meet at one place in all kernels.

    Lines that one core wrote last and the other writes next have to travel.
    """
    spare = (scratch.numel() - item.kernel.scratch_cells) // 2
    return scratch[spare // LINE_CELLS * LINE_CELLS :]


def _bind_kernels(
    result: fx.GraphModule,
    lowered: Mapping[fx.Node, _Lowered],
    cases: Mapping[fx.Node, Case],
    stages: Mapping[fx.Node, StageModule],
    arena: Mapping[Source | str, torch.Tensor],
    scratch: torch.Tensor,
    library: Library | None,
) -> None:
    pool = Pool(sum(item.kernel.pool_cells for item in lowered.values()))
    kernels: list[tuple[LayerKernel, BoundKernel]] = []
    for node, item in lowered.items():
        assert library is not None
        layer, placement = cases[node].layer, item.placement
        work, source, residual_source = placement.work, placement.source, placement.residual_source
        x = arena[source] if source is not None else None
        if placement.staged:
            x = stages[item.new].buffer
        residual = arena[residual_source] if residual_source is not None else None
        bound = BoundKernel(library[item.function], item.kernel, x, arena[node], residual, _centre(scratch, item), pool)
        output = buffer_view(arena[node], work.y, layer.dims, layer.output_shape)
        x_port = Port(work.x, layer.kind, layer.dims) if x is None else None
        needed = work.own_residual if residual is None else None
        residual_port = Port(needed, layer.kind, layer.dims) if needed is not None else None
        module = KernelModule(node.name, bound, output, x_port, residual_port)
        result.set_submodule(str(item.new.target), module)
        kernels.append((item.kernel, bound))
    look_ahead(kernels)
