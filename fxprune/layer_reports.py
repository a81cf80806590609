"""What the report says of every layer: its work before and after, what runs it, and why."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from fxprune.codegen.format import padded_stored
from fxprune.codegen.schedules import executed_share, stored_pattern
from fxprune.layer import find_layer
from fxprune.lowering.choice import Case, Choice, Chosen
from fxprune.nodes import annotation_of, module_path
from fxprune.report import LayerReport, MaskFacts


def report_layers(
    gm: fx.GraphModule,
    cases: Mapping[fx.Node, Case],
    choices: Mapping[fx.Node, Chosen],
    obstacles: Mapping[fx.Node, str],
    facts: MaskFacts,
    sizes: Mapping[str, int],
) -> list[LayerReport]:
    """Report every layer.

    Args:
        gm: The graph after all passes.
        cases: Layers that kernels could compute.
        choices: What runs them.
        obstacles: Why no kernel could compute the others.
        facts: What the report says of the masks.
        sizes: Bytes of the packed weight of every layer that a kernel runs, by module path.
    """
    reports = []
    for node in gm.graph.nodes:
        layer, annotation = find_layer(node), annotation_of(node)
        if layer is None or annotation is None:
            continue
        choice: Chosen = choices.get(node) or Choice(None, obstacles[node])
        case, packed_bytes = cases.get(node), sizes.get(module_path(node))
        schedule = choice.schedule
        stored, heights, share = case.weight.size if case else annotation.mask.numel(), dict[int, int](), 1.0
        if case is not None and schedule is not None:
            pattern = stored_pattern(case.pattern, schedule, layer.groups)
            stored, heights = padded_stored(pattern, schedule.height), pattern.heights()
            share = executed_share(schedule, case.shape)
        dense_bytes = annotation.mask.numel() * layer.weight.meta["val"].element_size()
        reports.append(
            LayerReport(
                name=module_path(node),
                operator=layer.title,
                weight_shape=layer.weight_shape,
                output_shape=layer.output_shape,
                macs_dense=layer.macs,
                macs_kept=annotation.nnz * layer.positions,
                macs_run=round(stored * layer.positions * share),
                density=annotation.density,
                stored_density=stored / max(1, annotation.mask.numel()),
                heights=heights,
                kept_weight=facts.kept_weight.get(annotation.name, 1.0),
                kernel=choice.kernel,
                predicted_us=choice.predicted_us,
                measured_us=choice.measured_us,
                dense_us=choice.dense_us,
                reason=facts.explain(annotation.name, choice.reason),
                parameters=annotation.nnz,
                size_bytes=dense_bytes if packed_bytes is None else packed_bytes,
                dense_size_bytes=dense_bytes,
            )
        )
    return reports
