"""What a model, a program and a call must be like to be captured; every mistake is named at the door."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten

from fxprune.errors import UnsupportedError
from fxprune.layer import find_layer
from fxprune.nodes import is_random, module_path

_TRAINED_MODULES = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
"""Modules that compute something else in training mode."""


def check_call(args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Refuse example inputs that are not a tuple of tensors and plain values, or that hold nothing.

    Raises:
        UnsupportedError: `args` is no tuple, or an input is a meta tensor or has no elements.
    """
    if not isinstance(args, tuple):
        raise UnsupportedError(
            f"example inputs are a {type(args).__name__}; they need to be a tuple of the model's positional arguments."
        )
    for index, value in enumerate(tree_flatten((args, dict(kwargs)))[0]):
        if not isinstance(value, torch.Tensor):
            continue
        if value.is_meta:
            raise UnsupportedError(f"Input {index} is a meta tensor; it needs real data. Pass a tensor on a device.")
        if value.layout is not torch.strided:
            raise UnsupportedError(f"Input {index} is stored as {value.layout}; call .to_dense() on it.")
        if value.numel() == 0:
            raise UnsupportedError(
                f"Input {index} has shape {list(value.shape)}, no elements at all; a batch needs at least one sample."
            )


def check_model(model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Refuse models that are not ready and models on another device than their inputs.

    Raises:
        UnsupportedError: As `check_ready`; or model and inputs live on different devices.
    """
    check_ready(model)
    _check_devices(dict(model.named_parameters(remove_duplicate=False)), args, kwargs)


def check_ready(model: nn.Module | ExportedProgram) -> None:
    """Refuse models in training mode and models whose tensors cannot be compiled; needs no inputs.

    Raises:
        UnsupportedError: As `check_tensors`; or the model is no module, or is in training mode.
    """
    if isinstance(model, ExportedProgram):
        check_tensors(model.state_dict)
        return
    if not isinstance(model, nn.Module):
        raise UnsupportedError(
            f"model is a {type(model).__name__}; it needs to be an nn.Module, a torch.fx.GraphModule or a "
            "torch.export.ExportedProgram."
        )
    for path, module in model.named_modules():
        plain_root = module is model and not isinstance(model, fx.GraphModule)
        if module.training and (plain_root or isinstance(module, _TRAINED_MODULES)):
            where = f"Module '{path}' ({type(module).__name__})" if path else f"{type(module).__name__}"
            raise UnsupportedError(f"{where} is in training mode; call model.eval() first.")
    check_tensors(dict(model.named_parameters(remove_duplicate=False)))
    check_tensors(dict(model.named_buffers(remove_duplicate=False)))


def check_tensors(tensors: Mapping[str, object]) -> None:
    """Refuse parameters that hold no plain numbers.

    Args:
        tensors: Parameters and buffers by name; only parameters need a floating type.

    Raises:
        UnsupportedError: Names the parameter.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        kind = "Parameter" if isinstance(tensor, nn.Parameter) else "Tensor"
        what, advice = _find_fault(tensor)
        if what:
            raise UnsupportedError(f"{kind} '{name}' is {what}; compiled weights are real floating numbers. {advice}")


def _find_fault(tensor: torch.Tensor) -> tuple[str, str]:
    if torch.nn.parameter.is_lazy(tensor):
        return "not initialised (a lazy module)", "Run the model once first."
    if tensor.is_meta:
        return "on the meta device", "Load its values first, e.g. model.to_empty(device='cpu') and load_state_dict."
    if tensor.is_complex():
        return f"complex ({tensor.dtype})", "Leave that module out of the model you compile."
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})", "Compile the floating-point model."
    if tensor.layout is not torch.strided:
        return f"stored as {tensor.layout}", "Call .to_dense() on it."
    if isinstance(tensor, nn.Parameter) and not tensor.is_floating_point():
        return f"of type {tensor.dtype}", "Convert it with model.float()."
    return "", ""


def _check_devices(tensors: Mapping[str, torch.Tensor], args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    devices = {f"parameter '{name}'": tensor.device for name, tensor in tensors.items()}
    flat = tree_flatten((args, dict(kwargs)))[0]
    devices |= {f"input {index}": value.device for index, value in enumerate(flat) if isinstance(value, torch.Tensor)}
    first = next(iter(devices), "")
    for where, device in devices.items():
        if device != devices[first]:
            raise UnsupportedError(
                f"{where} is on {device}, {first} on {devices[first]}; model and inputs need one device. "
                "Move them with .to(device)."
            )


def check_program(program: ExportedProgram, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Refuse inputs that do not fit an exported program.

    Raises:
        UnsupportedError: The structure, a shape or a type differs from what the program was exported for.
    """
    values, spec = tree_flatten((args, dict(kwargs)))
    if spec != program.call_spec.in_spec:
        raise UnsupportedError(
            f"The inputs have the structure {spec}; the program was exported for {program.call_spec.in_spec}."
        )
    names = program.graph_signature.user_inputs
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        node = by_name.get(name) if isinstance(name, str) else None
        if node is not None and isinstance(value, torch.Tensor):
            _check_shape(index, value, node.meta["val"])


def _check_shape(index: int, value: torch.Tensor, expected: torch.Tensor) -> None:
    fits = value.dtype == expected.dtype and value.ndim == expected.ndim
    fits = fits and all(
        not isinstance(needed, int) or found == needed
        for found, needed in zip(value.shape, expected.shape, strict=True)
    )
    if not fits:
        raise UnsupportedError(
            f"Input {index} is {value.dtype} {list(value.shape)}; the program was exported for {expected.dtype} "
            f"{list(expected.shape)}. Export it again for this shape, or with dynamic_shapes."
        )


def check_types(gm: fx.GraphModule) -> None:
    """Refuse a layer whose input and weight differ in type; shape propagation lets it pass, running it fails.

    Raises:
        UnsupportedError: Names the layer.
    """
    for layer in map(find_layer, gm.graph.nodes):
        if layer is None:
            continue
        found, needed = layer.input.meta["val"].dtype, layer.weight.meta["val"].dtype
        if found != needed:
            raise UnsupportedError(
                f"Layer '{module_path(layer.node)}' gets {found}, its weight is {needed}; torch cannot run that. "
                f"Convert the input with .to({needed})."
            )


def check_inference(gm: fx.GraphModule) -> None:
    """Refuse a captured graph whose result is random: dropout left in training mode.

    Raises:
        UnsupportedError: Names the node.
    """
    for node in gm.graph.nodes:
        if node.op == "call_function" and is_random(node):
            raise UnsupportedError(
                f"Node '{node.name}' ({node.target}) gives another result at every call, as dropout in training mode "
                "does; a compiled model is a fixed function. Call model.eval() before exporting or compiling."
            )
