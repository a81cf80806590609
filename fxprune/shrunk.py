"""target="torch": the cut dense graph as a plain module that torch runs and exports; no kernel of ours, no TVM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils._pytree import TreeSpec

from fxprune.compiled import Specialisation
from fxprune.graph import Captured
from fxprune.layer import Layer, find_layer
from fxprune.model_report import report_model
from fxprune.nodes import annotation_of, copy_graph, module_path
from fxprune.passes import PassRecord
from fxprune.report import LayerReport, MaskFacts

_LIBRARIES = ("fxprune", "torch")


class DenseProgram:
    """A graph that torch runs.

    Attributes:
        graph_module: The graph with the signature of the user's model: plain ATen calls, weights as buffers named as in
            the model. It can be exported and compiled like any other module.
        library: None: there are no kernels.
        recipe: Empty: the graph is all there is.
    """

    def __init__(self, captured: Captured) -> None:
        """Take a captured graph after all passes."""
        self.library, self.recipe = None, dict[str, object]()
        self._flat = captured.graph_module
        self.graph_module = _with_signature(captured.graph_module, captured.in_spec, captured.out_spec)

    def run(self, inputs: Sequence[object]) -> list[object]:
        """Run on flat inputs of the captured shapes."""
        with torch.no_grad():
            return list(self._flat(*inputs))


def _with_signature(gm: fx.GraphModule, in_spec: TreeSpec, out_spec: TreeSpec) -> fx.GraphModule:
    """Return the graph as a module that takes and gives what the user's model does; the tensors are shared."""
    graph, _ = copy_graph(gm)
    for node in graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key in ("val", "nn_module_stack", "stack_trace")}
    names = [f"arg_{index}" for index in range(in_spec.child(0).num_children)]
    names += [str(name) for name in cast("Sequence[str]", in_spec.child(1).context)]
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, in_spec, out_spec)))
    plain = fx.GraphModule(gm, graph, class_name="ShrunkModule")
    plain.eval()
    return plain


def build(
    captured: Captured, inputs: Sequence[object], records: Sequence[PassRecord], facts: MaskFacts, start: float
) -> Specialisation:
    """Make the module and its report.

    Args:
        captured: The graph after all passes.
        inputs: Flat example inputs.
        records: What the passes did.
        facts: What the report says of the masks.
        start: `time.perf_counter` when the compilation began.
    """
    gm = captured.graph_module
    before, after = records[0].macs_before, records[-1].macs_after
    report = report_model(
        gm,
        inputs,
        records,
        facts,
        target="torch",
        threads=torch.get_num_threads(),
        layers=(layer for layer in (_report(node, facts) for node in gm.graph.nodes) if layer is not None),
        whole_model=f"dense: the cut graph on torch, {after / max(1, before):.1%} of the multiply-adds",
        libraries=_LIBRARIES,
        start=start,
    )
    return Specialisation(DenseProgram(captured), captured.out_spec, report)


def _report(node: fx.Node, facts: MaskFacts) -> LayerReport | None:
    layer, annotation = find_layer(node), annotation_of(node)
    if layer is None or annotation is None:
        return None
    return LayerReport(
        name=module_path(node),
        operator=layer.title,
        weight_shape=layer.weight_shape,
        output_shape=layer.output_shape,
        macs_dense=layer.macs,
        macs_kept=annotation.nnz * layer.positions,
        macs_run=layer.macs,
        density=annotation.density,
        stored_density=1.0,
        heights={},
        kept_weight=facts.kept_weight.get(annotation.name, 1.0),
        kernel="dense: torch",
        predicted_us=None,
        measured_us=None,
        dense_us=None,
        reason=facts.explain(annotation.name, "the target is torch"),
        parameters=annotation.nnz,
        size_bytes=_size_bytes(layer),
        dense_size_bytes=_size_bytes(layer),
    )


def _size_bytes(layer: Layer) -> int:
    weight = layer.weight.meta["val"]
    return int(weight.numel() * weight.element_size())
