"""What neighbouring cells of the matrix share: the masked model of a kind, and the captured graph of an input shape.

A graph is captured once for all kinds of mask if every number in it is a named tensor of the model: then it is the
same graph for each of them, read with other tensors. Where the capture evaluates constants (position biases of Swin,
which may hold masked weights), every cell captures anew.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx, nn

from benchmarks.zoo.kinds import Masks, apply_masks, draw_masks
from benchmarks.zoo.models import Problem, Shape, build_problem, draw_inputs, reads_image_size
from fxprune.graph import capture


class Bench:
    """Makes problems and graphs; cells that follow each other get what they have in common."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._kept: tuple[object, Problem, Masks] | None = None
        self._graphs: dict[object, tuple[fx.Graph, dict[str, object]]] = {}

    def set_up(self, name: str, kind: str, shape: Shape, batch: int) -> tuple[Problem, Masks]:
        """Return a masked model with inputs, and its masks.

        Raises:
            NotApplicableError: The model has nothing that this kind of mask could be drawn for.
        """
        known = (name, kind, shape if reads_image_size(name) else None)
        if self._kept is not None and self._kept[0] == known:
            problem = replace(self._kept[1], inputs=draw_inputs(name, shape, batch))
            return problem, self._kept[2]
        self._kept = None
        problem = build_problem(name, shape, batch)
        masks = draw_masks(kind, problem)
        apply_masks(problem.model, masks)
        self._kept = (known, problem, masks)
        return problem, masks

    def capture(self, name: str, problem: Problem, masks: Masks) -> fx.GraphModule:
        """Return the captured graph of a masked model."""
        key = (name, *(tuple(x.shape) for x in problem.inputs))
        if key in self._graphs:
            graph, meta = self._graphs[key]
            gm = fx.GraphModule(_tensors(problem.model), _copy(graph))
            gm.meta.update(meta)
            return gm
        gm = capture(problem.model, problem.inputs, {}, masks).graph_module
        if _constants(gm) <= _tensors(problem.model).keys():
            self._graphs[key] = _copy(gm.graph), dict(gm.meta)
        return gm


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, detached."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}


def _constants(gm: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}


def _copy(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied
