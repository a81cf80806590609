"""From an ExportedProgram to a graph module with named constants and flat inputs and outputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind, OutputSpec
from torch.fx.node import Argument

from fxprune.errors import UnsupportedError

logger = logging.getLogger(__name__)

NAMES_KEY = "fxprune_names"
"""The key of `gm.meta` under which the captured graph keeps the names of the user's model."""

_CONSTANT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_ASSERTIONS = frozenset(
    {
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten.sym_constrain_range_for_size.default,
        torch.ops.aten.sym_constrain_range.default,
    }
)
"""Checks that export leaves behind; shapes are static here and CompiledModule checks its inputs."""
_IDENTITIES = frozenset({torch.ops.aten.detach.default, torch.ops.aten.alias.default})
"""Operators that say something to autograd only; in a functional graph without gradients they do nothing."""
_ADAPTIVE_MEANS = frozenset(
    {
        torch.ops.aten.adaptive_avg_pool1d.default,
        torch.ops.aten.adaptive_avg_pool2d.default,
        torch.ops.aten.adaptive_avg_pool3d.default,
        torch.ops.aten._adaptive_avg_pool2d.default,
        torch.ops.aten._adaptive_avg_pool3d.default,
    }
)
"""Pools that do nothing where the input has the wanted size already: each mean is one cell's. torch takes them all the
same: in VGG, for example, where they stand between the last convolution and the first linear layer."""


@dataclass
class ModelNames:
    """The tensors of the user's model by name.

    Attributes:
        aliases: Every parameter and buffer name to the one name its tensor has in the graph (tied tensors share one).
        folded: Names that went into constant arithmetic, to the names of the constants that came out.
        masked: Names of tensors that went into constant arithmetic with their masks multiplied in.
    """

    aliases: dict[str, str] = field(default_factory=dict)
    folded: dict[str, set[str]] = field(default_factory=dict)
    masked: set[str] = field(default_factory=set)


def import_program(program: ExportedProgram) -> fx.GraphModule:
    """Rebuild an exported program with weights, buffers and constants as `get_attr` nodes.

    Args:
        program: A functional program (after `run_decompositions`).

    Returns:
        A graph module: placeholders are the flattened user inputs in order, the output is a flat tuple, and
        `gm.meta["fxprune_names"]` holds its `ModelNames`. Tensors share storage with the program.

    Raises:
        UnsupportedError: The program changes a buffer, takes objects or tokens, or holds control flow.
    """
    tensors = _named_tensors(program)
    names = ModelNames(aliases=find_aliases(tensors))
    graph = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    inputs, constants = _split_inputs(placeholders, specs)
    for node in inputs:
        mapped[node] = graph.node_copy(node)
    for node, name in constants:
        if node.users:
            mapped[node] = _constant(graph, mapped, names.aliases[name])
    for node in program.graph.nodes:
        if node.op in ("call_function", "get_attr"):
            _copy_call(graph, node, mapped)
    graph.output(tuple(_outputs(program, mapped)))
    targets = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    gm = fx.GraphModule({name: tensors[name].detach() for name in targets}, graph, class_name="CapturedGraph")
    gm.meta[NAMES_KEY] = names
    return gm


def find_aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Map every name to the first name of the same tensor (same storage, offset, sizes and strides)."""
    first: dict[object, str] = {}
    return {name: first.setdefault(_identity(name, tensor), name) for name, tensor in tensors.items()}


def _identity(name: str, tensor: torch.Tensor) -> object:
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return name
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _named_tensors(program: ExportedProgram) -> dict[str, torch.Tensor]:
    tensors = dict(program.state_dict)
    tensors.update((name, value) for name, value in program.constants.items() if isinstance(value, torch.Tensor))
    return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def _split_inputs(
    placeholders: list[fx.Node], specs: list[InputSpec]
) -> tuple[list[fx.Node], list[tuple[fx.Node, str]]]:
    """Part the placeholders into user inputs and (placeholder, tensor name) of constants."""
    inputs: list[fx.Node] = []
    constants: list[tuple[fx.Node, str]] = []
    for node, spec in zip(placeholders, specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
            continue
        if spec.kind not in _CONSTANT_KINDS or spec.target is None:
            raise UnsupportedError(
                f"Input '{spec.target or node.name}' of the exported program is a {spec.kind.name}; "
                "only tensors and plain Python numbers are supported. Take the object out of forward."
            )
        constants.append((node, spec.target))
    return inputs, constants


def _constant(graph: fx.Graph, mapped: Mapping[fx.Node, fx.Node], name: str) -> fx.Node:
    for node in mapped.values():
        if node.op == "get_attr" and node.target == name:
            return node
    return graph.create_node("get_attr", name, name=name.replace(".", "_"))


def _copy_call(graph: fx.Graph, node: fx.Node, mapped: dict[fx.Node, fx.Node]) -> None:
    if node.op == "get_attr" or node.target in _ASSERTIONS:
        return
    if _does_nothing(node):
        mapped[node] = mapped[node.all_input_nodes[0]]
        return
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise UnsupportedError(
            f"Node '{node.name}' is control flow ({node.target}); a captured graph holds plain operators only. "
            "Replace torch.cond, torch.map, ... or the context manager in forward by ordinary operators."
        )
    mapped[node] = graph.node_copy(node, lambda argument: mapped[argument])


def _does_nothing(node: fx.Node) -> bool:
    if node.target in _ADAPTIVE_MEANS:
        return bool(node.all_input_nodes[0].meta["val"].shape == node.meta["val"].shape)
    return node.target in _IDENTITIES


def _outputs(program: ExportedProgram, mapped: Mapping[fx.Node, fx.Node]) -> list[Argument]:
    """Return the user's flat outputs; refuse buffers that change, say that inputs are no longer changed."""
    output = program.graph.output_node()
    values: list[Argument] = []
    results = output.args[0]
    assert isinstance(results, (list, tuple))
    for spec, value in zip(program.graph_signature.output_specs, results, strict=True):
        if spec.kind is OutputKind.USER_OUTPUT:
            constant = isinstance(spec.arg, ConstantArgument)
            values.append(spec.arg.value if constant else mapped[value] if isinstance(value, fx.Node) else value)
            continue
        _check_mutation(spec)
    return values


def _check_mutation(spec: OutputSpec) -> None:
    if spec.kind is OutputKind.USER_INPUT_MUTATION:
        logger.warning(
            "the model writes into its input '%s' in place; the compiled model leaves it as it is", spec.target
        )
        return
    raise UnsupportedError(
        f"The model changes '{spec.target}' while it runs ({spec.kind.name}); only models whose state stays as it is "
        "are supported. Call model.eval() first, or take the update out of forward."
    )
