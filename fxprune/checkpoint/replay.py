"""Cut a network once more as a record says, with the weights that it has now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from fxprune.arguments import read_example_inputs
from fxprune.channels.record import LayerCut, compose_all, compose_cuts, read_cuts, whole_cut
from fxprune.errors import ArtifactError, UnsupportedError
from fxprune.graph import annotate, capture, check_ready, get_tensor
from fxprune.layer import Layer, find_layer
from fxprune.masks import open_masks
from fxprune.passes import EliminateChannels, FoldBatchNorm, run_passes
from fxprune.passes.fold_batch_norm import BatchNorm, find_batch_norm


@dataclass(frozen=True, eq=False)
class Origin:
    """A layer of the network as its state dict knows it.

    Attributes:
        weight: Name of the weight.
        weight_shape: Its sizes.
        bias: Name of the bias, or None.
        scale: What batch normalisation multiplies the rows by, [O], float64; None if none was folded in.
        shift: Name of the batch normalisation's bias, or None.
    """

    weight: str
    weight_shape: tuple[int, ...]
    bias: str | None
    scale: torch.Tensor | None
    shift: str | None


@dataclass(frozen=True, eq=False)
class Replay:
    """A network cut as a record says.

    Attributes:
        gm: The small graph.
        cuts: What was cut from every layer that is left, by the name of its node.
        origins: The layers of the network by the name of their node.
    """

    gm: fx.GraphModule
    cuts: Mapping[str, LayerCut]
    origins: Mapping[str, Origin]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the constants of the small graph by name."""
        return {str(node.target): get_tensor(self.gm, node) for node in self.gm.graph.nodes if node.op == "get_attr"}

    def layers(self) -> list[Layer]:
        """Return the layers of the small graph."""
        return [layer for node in self.gm.graph.nodes if (layer := find_layer(node)) is not None]

    def cut_of(self, layer: Layer) -> LayerCut:
        """Return what was cut from a layer of the small graph."""
        return self.cuts.get(layer.node.name) or whole_cut(layer)

    def origin_of(self, layer: Layer) -> Origin:
        """Return the layer of the network; that with the same weight for a copy that took over some of the rows."""
        if layer.node.name in self.origins:
            return self.origins[layer.node.name]
        weight = self.cut_of(layer).weight
        return next(origin for origin in self.origins.values() if origin.weight == weight)


def replay(
    model: nn.Module,
    channels: Sequence[Mapping[str, object]],
    masks: Mapping[str, object] | str | None,
    example_inputs: torch.Tensor | tuple[object, ...],
) -> Replay:
    """Cut a network as a record says.

    Args:
        model: The network.
        channels: The record, `report.channels`.
        masks: As `compile` takes them.
        example_inputs: As `compile` takes them.

    Raises:
        ArtifactError: With the weights that the network has now something else would have to be cut.
    """
    record = read_cuts(channels)
    inputs = read_example_inputs(example_inputs)
    if inputs is None:
        raise UnsupportedError("example_inputs is None; pass the inputs that the small model was compiled for.")
    kept = open_masks(model, masks)
    check_ready(model)
    gm = capture(model, inputs, {}, kept).graph_module
    annotate(gm, kept)
    norms = {norm.input: norm for node in gm.graph.nodes if (norm := find_batch_norm(node)) is not None}
    layers = [layer for node in gm.graph.nodes if (layer := find_layer(node)) is not None]
    both = [
        (layer.node.name, norms.get(layer.node), _find_origins(gm, layer, norms.get(layer.node))) for layer in layers
    ]
    run_passes(gm, (FoldBatchNorm(),))
    left = set(gm.graph.nodes)
    origins = {name: plain if norm is None or norm.node in left else folded for name, norm, (plain, folded) in both}
    run_passes(gm, (EliminateChannels(follow=record),))
    _check_same(record, compose_cuts(gm))
    return Replay(gm, compose_all(gm), origins)


def _find_origins(gm: fx.GraphModule, layer: Layer, norm: BatchNorm | None) -> tuple[Origin, Origin]:
    """Return a layer as it is, and as it is with the batch normalisation behind it."""
    bias = None if layer.bias is None else str(layer.bias.target)
    plain = Origin(str(layer.weight.target), layer.weight_shape, bias, None, None)
    if norm is None or any(node.op != "get_attr" for node in norm.statistics):
        return plain, plain
    scale = torch.rsqrt(get_tensor(gm, norm.var).double() + norm.eps)
    if norm.weight is not None:
        scale = scale * get_tensor(gm, norm.weight).double()
    return plain, replace(plain, scale=scale, shift=None if norm.bias is None else str(norm.bias.target))


def _check_same(record: Sequence[LayerCut], found: Sequence[LayerCut]) -> None:
    """Refuse a checkpoint that would have to be cut in another way.

    Raises:
        ArtifactError: Names the first layer, what the record keeps of it and what would have to be kept.
    """
    wanted, made = ({cut.layer: cut for cut in cuts} for cuts in (record, found))
    for name in dict.fromkeys((*wanted, *made)):
        one, other = wanted.get(name), made.get(name)
        if one is None or other is None or (one.rows, one.channels) != (other.rows, other.channels):
            raise ArtifactError(
                f"Layer '{name}': the record keeps {_describe(one)}; with the weights that the model has now, its "
                f"masks and these inputs it needs {_describe(other)}. Pass the model, the masks and inputs of the "
                "shapes that the small model was compiled from; if a dead channel came alive or a constant became "
                "another number than 0, compile the model again."
            )


def _describe(cut: LayerCut | None) -> str:
    if cut is None:
        return "all channels"
    rows, channels = f"{len(cut.rows)} of {cut.out_channels} rows", f"{len(cut.channels)} of {cut.in_channels} inputs"
    return f"{rows} (from {cut.rows[:3]}) and {channels} (from {cut.channels[:3]})"
