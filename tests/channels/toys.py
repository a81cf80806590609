"""Toy networks with masks, and the check that channel elimination keeps their output and takes what it should."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from fxprune.graph import annotate, capture
from fxprune.nodes import annotation_of
from fxprune.passes import EliminateChannels, FoldBatchNorm, PassRecord, run_passes
from tests.networks import Function, apply_masks, double, layers

GATE = 1e-9
"""Largest difference allowed, as a share of the largest reference value."""

WRONG = 6e-3
"""A wrong rule errs by more than this, so that the gate leaves no doubt."""

Indices = Sequence[int]


class Masked(TypedDict, total=False):
    """What a table says of a toy besides its network; the fields are those of `Toy`."""

    rows: Mapping[str, Indices]
    columns: Mapping[str, Indices]
    zeros: Mapping[str, Indices]
    kept: Mapping[str, tuple[int, int] | None]
    refusal: str
    options: EliminateChannels


@dataclass(frozen=True)
class Toy:
    """One toy network.

    Attributes:
        forward: Connects the layers: `forward(network, *inputs)`.
        layers: Builds the layers.
        shapes: Shapes of the inputs.
        rows: Layer to output channels whose weights are masked; their biases stay.
        columns: Layer to input channels whose weights are masked.
        zeros: Parameter to indices that are zero in the model.
        kept: Layer to (rows, columns) of its weight afterwards, as it is stored; None if the layer has to be gone.
        refusal: Part of a reason why something stayed; empty if no reason is expected.
        options: The pass, with its options.
    """

    forward: Callable[..., object]
    layers: Callable[[], Mapping[str, nn.Module]]
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, 7, 6),)
    rows: Mapping[str, Indices] = field(default_factory=dict)
    columns: Mapping[str, Indices] = field(default_factory=dict)
    zeros: Mapping[str, Indices] = field(default_factory=dict)
    kept: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)
    refusal: str = ""
    options: EliminateChannels = field(default_factory=EliminateChannels)

    def build(self) -> nn.Module:
        """Return the network in float64, with random statistics."""
        model = double(Function(self.forward, **self.layers()))
        with torch.no_grad():
            for name, indices in self.zeros.items():
                model.get_parameter(name)[list(indices)] = 0
        return model

    def masks(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the masks of the rows and columns."""
        masks: dict[str, torch.Tensor] = {}
        for chosen, is_row in ((self.rows, True), (self.columns, False)):
            for name, indices in chosen.items():
                weight, path = _weight_of(model, name)
                mask = masks.setdefault(path, torch.ones(weight.shape, dtype=torch.bool))
                axis = int(is_row == _is_transposed(model, name))
                mask.index_fill_(axis, torch.tensor(indices, dtype=torch.long), value=False)
        return masks

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Return random inputs."""
        return tuple(torch.randn(shape, dtype=torch.float64) for shape in self.shapes)


def _weight_of(model: nn.Module, name: str) -> tuple[torch.Tensor, str]:
    """Return a weight and its path: of a layer, or a parameter with its own name."""
    path = name if name in dict(model.named_parameters()) else f"{name}.weight"
    return model.get_parameter(path), path


def _is_transposed(model: nn.Module, name: str) -> bool:
    modules = dict(model.named_modules())
    return isinstance(modules.get(name), nn.modules.conv._ConvTransposeNd)


def eliminate(
    model: nn.Module,
    masks: Mapping[str, torch.Tensor],
    inputs: tuple[torch.Tensor, ...],
    options: EliminateChannels | None = None,
) -> tuple[fx.GraphModule, PassRecord, float]:
    """Mask, capture and shrink a model; a second run has to change nothing.

    Returns:
        The graph, the record of the pass, and the largest difference as a share of the largest reference value.
    """
    apply_masks(model, masks)
    with torch.no_grad():
        expected = tree_leaves(model(*inputs))
    gm = capture(model, inputs, {}, masks).graph_module
    annotate(gm, masks)
    step = options or EliminateChannels()
    _, record = run_passes(gm, (FoldBatchNorm(), step))
    with torch.no_grad():
        found = tree_leaves(gm(*inputs))
    (again,) = run_passes(gm, (step,))
    assert not again.modified, "a second run changes the graph again"
    assert record.macs_after <= record.macs_before
    return gm, record, max(map(error_of, found, expected))


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest expected value; of 1 if that is 0."""
    assert found.shape == expected.shape
    assert bool(expected.isfinite().all())
    return float((found - expected).abs().max()) / (float(expected.abs().max()) or 1.0)


def kept_shapes(gm: fx.GraphModule) -> dict[str, tuple[int, int]]:
    """Return for every weight of a layer its first two sizes, by the name of its mask."""
    found = {}
    for layer in layers(gm):
        note = annotation_of(layer.node)
        assert note is not None
        found[note.name.removesuffix(".weight")] = (layer.weight_shape[0], layer.weight_shape[1])
    return found


def check_toy(toy: Toy) -> None:
    """Check that the output is kept, that what can go went, and that what stayed has its reason."""
    model, inputs = toy.build(), toy.inputs()
    gm, record, error = eliminate(model, toy.masks(model), inputs, toy.options)
    assert error <= GATE, f"error {error:.1e}"
    shapes = kept_shapes(gm)
    reasons = " | ".join(f"{refusal.node}: {refusal.reason}" for refusal in record.refusals)
    kept = {name: shapes.get(name) for name in toy.kept}
    assert kept == toy.kept, f"kept {kept}, not {dict(toy.kept)}; {reasons}"
    assert toy.refusal in reasons, reasons
