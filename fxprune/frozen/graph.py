"""A captured graph after all passes as JSON and tensors, and back: nodes, constants, masks, row groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import fx, nn

from fxprune.annotation import META_KEY, RowGroup, RowGroupPattern, WeightAnnotation
from fxprune.errors import ArtifactError
from fxprune.frozen.tensors import Form, TensorStore, read_mask, read_shape, read_tensor
from fxprune.frozen.values import read_target, read_value, write_target, write_value
from fxprune.graph import propagate_shapes
from fxprune.layer import find_layer
from fxprune.nodes import annotation_of, get_tensor, module_path, store_tensor

Tensors = Mapping[str, torch.Tensor]


def write_graph(gm: fx.GraphModule, store: TensorStore) -> dict[str, object]:
    """Return a graph as JSON; its tensors go into the store.

    Args:
        gm: A captured graph; it is not changed.
        store: Where tensors are collected.

    Raises:
        UnsupportedError: A node calls or holds what cannot be stored.
    """
    masks = _masks_of_constants(gm)
    constants: dict[str, Form] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in constants:
            constants[str(node.target)] = store.add(get_tensor(gm, node), masks.get(str(node.target)))
    return {"nodes": [_write_node(node, store) for node in gm.graph.nodes], "constants": constants}


def _masks_of_constants(gm: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Return the mask of every constant that exactly one layer reads as its weight."""
    found: dict[str, list[torch.Tensor]] = {}
    for node in gm.graph.nodes:
        layer, annotation = find_layer(node), annotation_of(node)
        if layer is not None and annotation is not None:
            found.setdefault(str(layer.weight.target), []).append(annotation.mask)
    return {name: masks[0] for name, masks in found.items() if len(masks) == 1}


def _write_node(node: fx.Node, store: TensorStore) -> dict[str, object]:
    written: dict[str, object] = {"name": node.name, "op": node.op}
    if node.op == "get_attr":
        written["target"] = str(node.target)
    if node.op == "call_function":
        written["target"] = write_target(node)
    if node.op in ("call_function", "output"):
        written["args"] = write_value(tuple(node.args), node)
        written["kwargs"] = write_value(dict(node.kwargs), node)
    if module_path(node) != node.name:
        written["path"] = module_path(node)
    annotation = annotation_of(node)
    if annotation is not None:
        written["annotation"] = _write_annotation(annotation, store)
    return written


def _write_annotation(annotation: WeightAnnotation, store: TensorStore) -> dict[str, object]:
    pattern = annotation.pattern
    return {
        "name": annotation.name,
        "mask": store.add_mask(annotation.mask),
        "pattern": None if pattern is None else _write_pattern(pattern, store),
    }


def _write_pattern(pattern: RowGroupPattern, store: TensorStore) -> dict[str, object]:
    """Return a pattern: all rows and all columns as one array each, and how many belong to each group."""
    rows, columns = [group.rows for group in pattern.groups], [group.columns for group in pattern.groups]
    none = np.zeros(0, dtype=np.int32)
    return {
        "shape": list(pattern.shape),
        "rows": store.add_array(np.concatenate([none, *rows])),
        "columns": store.add_array(np.concatenate([none, *columns])),
        "sizes": store.add_array(np.array([(r.size, c.size) for r, c in zip(rows, columns, strict=True)], np.int32)),
    }


def read_graph(written: Mapping[str, object], tensors: Tensors, inputs: Sequence[object]) -> fx.GraphModule:
    """Return the graph that `write_graph` wrote, shapes propagated.

    Args:
        written: Its JSON.
        tensors: The stored tensors by name.
        inputs: Flat example inputs; of tensors only shape, strides and type count.

    Raises:
        ArtifactError: An operator is not there, or the parts do not fit together.
    """
    gm = fx.GraphModule(nn.Module(), fx.Graph(), class_name="CapturedGraph")
    for name, form in cast("Mapping[str, Form]", written["constants"]).items():
        store_tensor(gm, name, read_tensor(form, tensors))
    nodes: dict[str, fx.Node] = {}
    for entry in cast("Sequence[Mapping[str, object]]", written["nodes"]):
        nodes[str(entry["name"])] = _read_node(gm.graph, entry, nodes, tensors)
    gm.graph.lint()
    gm.recompile()
    propagate_shapes(gm, tuple(inputs))
    return gm


def _read_node(graph: fx.Graph, entry: Mapping[str, object], nodes: Mapping[str, fx.Node], tensors: Tensors) -> fx.Node:
    name, op = str(entry["name"]), str(entry["op"])
    args = cast("tuple[object, ...]", read_value(entry.get("args", {"tuple": []}), nodes))
    kwargs = cast("dict[str, object]", read_value(entry.get("kwargs", {"dict": []}), nodes))
    if op == "output":
        return cast("fx.Node", graph.output(args[0]))  # type: ignore[arg-type]
    if op not in ("placeholder", "get_attr", "call_function"):
        raise ArtifactError(f"The stored graph holds a node of kind {op!r}; the file is damaged. Save the model again.")
    stored = str(entry.get("target", name))
    target = read_target(stored) if op == "call_function" else stored
    node = graph.create_node(op, target, args, kwargs, name=name)  # type: ignore[arg-type]
    if "path" in entry:
        node.meta["nn_module_stack"] = {"": (str(entry["path"]), "")}
    if "annotation" in entry:
        node.meta[META_KEY] = _read_annotation(cast("Mapping[str, object]", entry["annotation"]), tensors)
    return node


def _read_annotation(entry: Mapping[str, object], tensors: Tensors) -> WeightAnnotation:
    pattern = cast("Mapping[str, object] | None", entry["pattern"])
    mask = read_mask(cast("Form", entry["mask"]), tensors)
    return WeightAnnotation(str(entry["name"]), mask, None if pattern is None else _read_pattern(pattern, tensors))


def _read_pattern(entry: Mapping[str, object], tensors: Tensors) -> RowGroupPattern:
    rows, columns = tensors[str(entry["rows"])].numpy(), tensors[str(entry["columns"])].numpy()
    sizes = tensors[str(entry["sizes"])].numpy().reshape(-1, 2)
    cuts = np.cumsum(sizes, axis=0)[:-1]
    parts = zip(np.split(rows, cuts[:, 0]), np.split(columns, cuts[:, 1]), strict=True)
    groups = tuple(RowGroup(r, c) for r, c in parts) if sizes.size else ()
    shape = read_shape(entry["shape"])
    return RowGroupPattern((shape[0], shape[1]), groups)
