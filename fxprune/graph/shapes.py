"""Propagate shapes through a graph and clean up after a rewrite."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxprune.nodes import get_tensor


class _ShapeInterpreter(fx.Interpreter):
    """Runs a graph on FakeTensors and writes each result into `meta["val"]`."""

    def __init__(self, gm: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(gm)
        self._gm = gm
        self._mode = mode

    def run_node(self, n: fx.Node) -> object:
        """Run one node and keep its value."""
        if n.op == "get_attr":
            n.meta["val"] = self._mode.from_tensor(get_tensor(self._gm, n), static_shapes=True)
            return n.meta["val"]
        result = super().run_node(n)
        if n.op != "output":
            n.meta["val"] = result
        return result


def propagate_shapes(gm: fx.GraphModule, inputs: tuple[object, ...] | None = None) -> None:
    """Set `meta["val"]` of every node anew, with static shapes and without computing anything.

    Args:
        gm: A graph whose constants are real tensors.
        inputs: One value a placeholder: tensors (only their shape, strides, dtype and device count) or constants.
            None takes what stands in the placeholders' `meta["val"]`.
    """
    if inputs is None:
        inputs = tuple(node.meta["val"] for node in gm.graph.nodes if node.op == "placeholder")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        fakes = [_to_fake(value) for value in inputs]
        _ShapeInterpreter(gm, mode).run(*fakes, enable_io_processing=False)


def _to_fake(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    sizes, strides = [int(size) for size in value.shape], [int(step) for step in value.stride()]
    return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)


def tidy(gm: fx.GraphModule) -> None:
    """Remove dead nodes and unused constants, check the graph's form, recompile, propagate shapes.

    Args:
        gm: The graph module; changed in place.
    """
    gm.graph.eliminate_dead_code()
    _remove_unused_tensors(gm)
    gm.graph.lint()
    gm.recompile()
    propagate_shapes(gm)


def _remove_unused_tensors(gm: fx.GraphModule) -> None:
    used = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in gm.named_buffers(remove_duplicate=False) if name not in used]:
        path, _, leaf = name.rpartition(".")
        delattr(gm.get_submodule(path), leaf)
    _remove_empty_modules(gm)


def _remove_empty_modules(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        _remove_empty_modules(child)
        if not child._buffers and not child._modules:
            delattr(module, name)
