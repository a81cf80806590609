"""From a later checkpoint of a network to the state dict of its small model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fxprune.channels.record import read_cuts
from fxprune.checkpoint.replay import replay
from fxprune.errors import ArtifactError
from fxprune.layer import name_bias


def shrink_state(
    model: nn.Module,
    channels: Sequence[Mapping[str, object]],
    masks: Mapping[str, object] | str | None = None,
    *,
    example_inputs: torch.Tensor | tuple[object, ...],
) -> dict[str, torch.Tensor]:
    """Return what the small model needs to compute what a network computes with the weights that it has now.

    The network may have been trained on since the small model was compiled, as long as the same channels are dead.
    Batch normalisation is folded, rows and columns are cut as the record says, and the constants of dead channels are
    found anew and folded again, into biases and into the columns of channels that carry others.

    Args:
        model: The network with a later checkpoint loaded; it is not changed.
        channels: The record: `report.channels` of the small model, or what JSON made of it.
        masks: As `compile` takes them.
        example_inputs: Inputs of the shapes that the small model was compiled for.

    Returns:
        A state dict for the `graph_module` of `compile(..., target="torch")`.

    Raises:
        ArtifactError: With these weights something else would have to be cut, or the small model has no place for a
            constant.
        MaskError: A mask does not fit the model.
        UnsupportedError: The model cannot be captured.

    Example:
        small = fxprune.compile(model, masks, target="torch", example_inputs=x)
        model.load_state_dict(torch.load("later.pt"))
        state = fxprune.shrink_state(model, small.report.channels, masks, example_inputs=x)
        small.graph_module.load_state_dict(state)
    """
    found = replay(model, channels, masks, example_inputs)
    state = found.state()
    for cut in read_cuts(channels):
        now = found.cuts[cut.layer]
        if now.biased and not cut.biased:
            raise ArtifactError(
                f"Layer '{cut.layer}': the constants of dead channels add up to a bias now, and the small layer has "
                "none, for they were all 0 when it was cut. Compile the model again."
            )
        if cut.biased and not now.biased:
            weight = next(layer.weight for layer in found.layers() if layer.node.name == cut.layer)
            tensor = state[str(weight.target)]
            state[name_bias(str(weight.target))] = tensor.new_zeros(len(cut.rows))
    return {name: tensor.detach().clone() for name, tensor in state.items()}
