"""From a model and example inputs to one functional ATen graph whose weights are named constants."""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.node import Argument, map_arg
from torch.utils._pytree import TreeSpec, tree_flatten

from fxprune.errors import UnsupportedError
from fxprune.graph.constants import fold_constants, mask_constants, rewrite_products
from fxprune.graph.door import check_call, check_inference, check_model, check_program, check_tensors, check_types
from fxprune.graph.fills import rewrite_fills
from fxprune.graph.program import import_program
from fxprune.graph.shapes import propagate_shapes, tidy

logger = logging.getLogger(__name__)

_EXPORTING = threading.Lock()
"""Held while torch exports: that changes warning filters and torch's switches for the whole process."""

_EXPORT_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ArithmeticError)
"""What `torch.export` and the user's forward raise; the errors of `torch._dynamo` are RuntimeErrors."""

_EXPORT_WARNINGS = (
    r"The tensor attributes? .* assigned during export",  # prune hooks write module.weight at every call; it is undone
    r"Using padding='same' with even kernel lengths",
)

_NOISY_LOGGERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
"""They print the traceback of an error that is raised anyway."""


@dataclass(frozen=True)
class Captured:
    """A captured model.

    Attributes:
        graph_module: Functional ATen; placeholders are the flattened inputs in order, the output is a flat tuple,
            weights, buffers and constants are `get_attr` nodes named as in the user's model, `meta["val"]` is set.
        in_spec: How (args, kwargs) flatten to the placeholders.
        out_spec: How the flat output becomes what the model returns.
    """

    graph_module: fx.GraphModule
    in_spec: TreeSpec
    out_spec: TreeSpec


def capture(
    model: nn.Module | ExportedProgram | fx.GraphModule,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    masks: Mapping[str, torch.Tensor] | None = None,
) -> Captured:
    """Capture a model in eval mode at the shapes of its example inputs; the model is not changed.

    Args:
        model: A module, a graph module, or an exported program.
        args: Example positional inputs.
        kwargs: Example keyword inputs.
        masks: Masks by parameter name. Here they go into weights of layers whose input is constant, which are evaluated
            once and for all; `annotate` takes care of the others.

    Returns:
        The graph with static shapes; its tensors share storage with the model.

    Raises:
        UnsupportedError: The model is in training mode, cannot be exported, changes its state, or holds tensors that
            are meta, complex, quantised or not floating where they need to be.
    """
    check_call(args, kwargs)
    with _EXPORTING:
        if isinstance(model, ExportedProgram):
            check_program(model, args, kwargs)
        else:
            check_model(model, args, kwargs)
            model = _export(model, args, kwargs)
        program = _decompose(model)
    check_tensors(program.state_dict)
    gm = import_program(program)
    propagate_shapes(gm, tuple(tree_flatten((args, dict(kwargs)))[0]))
    _specialise(gm)
    rewrite_products(gm)
    rewrite_fills(gm)
    mask_constants(gm, masks or {})
    fold_constants(gm)
    tidy(gm)
    check_inference(gm)
    check_types(gm)
    call_spec = program.call_spec
    assert call_spec.in_spec is not None
    assert call_spec.out_spec is not None
    return Captured(gm, call_spec.in_spec, call_spec.out_spec)


def _export(model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> ExportedProgram:
    try:
        with _quiet_export(), torch.no_grad():
            return torch.export.export(model, args, dict(kwargs), strict=False)
    except _EXPORT_ERRORS as error:
        raise UnsupportedError(
            f"torch.export cannot capture {type(model).__name__} with inputs {_describe_inputs(args, kwargs)}"
            f"{_find_module(error, model)}: {_first_line(error)}. Call the model once with the same inputs; if that "
            "fails too, change their number, shape or type; if it works, take data-dependent Python out of forward, "
            "or export it yourself and pass the ExportedProgram."
        ) from error


def _describe_inputs(args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    """Return types and shapes in a few words, e.g. "(float32 [1, 3, 8, 8])"."""
    words = [
        f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        if isinstance(value, torch.Tensor)
        else type(value).__name__
        for value in tree_flatten((args, dict(kwargs)))[0]
    ]
    return f"({', '.join(words)})"


def _find_module(error: Exception, model: nn.Module) -> str:
    """Return where in the model an error was raised, e.g. ", at 'layer1.0.conv1' (Conv2d)"."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in paths:
            found = f", at '{paths[id(owner)]}' ({type(owner).__name__})"
    return found


def _decompose(program: ExportedProgram) -> ExportedProgram:
    """Make a program functional; nothing else is decomposed."""
    try:
        with _quiet_export(), torch.no_grad():
            return cast("ExportedProgram", program.run_decompositions({}))
    except _EXPORT_ERRORS as error:
        raise UnsupportedError(f"The exported program cannot be made functional: {_first_line(error)}.") from error


@contextlib.contextmanager
def _quiet_export() -> Iterator[None]:
    """Silence known warnings and tracebacks, and keep attention on its ordinary path (the fused one hides weights)."""
    fast = torch.backends.mha.get_fastpath_enabled()
    noisy = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    disabled = [log.disabled for log in noisy]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for log in noisy:
            log.disabled = True
        with warnings.catch_warnings():
            for message in _EXPORT_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for log, state in zip(noisy, disabled, strict=True):
            log.disabled = state


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next((line for line in lines if line), 'no message').rstrip('.')}"


def _specialise(gm: fx.GraphModule) -> None:
    """Write sizes that static shapes have made numbers as numbers."""
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and isinstance(node.meta.get("val"), (int, float, bool)):
            for user in list(node.users):
                _write_number(user, node, node.meta["val"])
            gm.graph.erase_node(node)


def _write_number(user: fx.Node, node: fx.Node, number: float) -> None:
    def write(other: fx.Node) -> Argument:
        return number if other is node else other

    user.args = map_arg(user.args, write)
    user.kwargs = map_arg(user.kwargs, write)
