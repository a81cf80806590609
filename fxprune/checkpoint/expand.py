"""From a trained small model back to a state dict of the network that it was cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from fxprune.channels.analysis import analyse
from fxprune.channels.facts import Kind
from fxprune.channels.rules.layer import input_ids
from fxprune.checkpoint.places import Place, find_places
from fxprune.checkpoint.replay import Replay, replay
from fxprune.errors import ArtifactError, UnsupportedError
from fxprune.graph.program import NAMES_KEY, ModelNames
from fxprune.masks import open_masks
from fxprune.nodes import store_tensor

State = dict[str, torch.Tensor]


def expand_state(
    model: nn.Module,
    channels: Sequence[Mapping[str, object]],
    state: Mapping[str, torch.Tensor],
    masks: Mapping[str, object] | str | None = None,
    *,
    example_inputs: torch.Tensor | tuple[object, ...],
) -> State:
    """Return a state dict in the network's shapes with which it computes what the small model computes.

    What training changed in the small model is added to the network's own numbers, at the places that the record names;
    everything that was cut stays as it was. So the state of a small model that was not trained gives the network's own
    weights back, pruned ones as 0.

    Args:
        model: The network with the weights that the small model was made from; it is not changed.
        channels: The record: `report.channels` of the small model, or what JSON made of it.
        state: The state dict of the small model, the `graph_module` of `compile(..., target="torch")`.
        masks: As `compile` takes them.
        example_inputs: Inputs of the shapes that the small model was compiled for.

    Returns:
        A state dict of the network.

    Raises:
        ArtifactError: The state is not one of this small model, or a channel that carries the constants of others
            changed.
        UnsupportedError: A number changed that has no place of its own in the network.
    """
    found = replay(model, channels, masks, example_inputs)
    before = found.state()
    _check_names(before, state)
    changes = {name: state[name].detach().to(tensor.device).double() - tensor for name, tensor in before.items()}
    changes = {name: change for name, change in changes.items() if bool((change != 0).any())}
    places = find_places(found)
    _check_apart(places, changes)
    _check_carriers(found, state)
    full = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, mask in open_masks(model, masks).items():
        full[name].masked_fill_(~mask.to(full[name].device), 0)
    for name, change in changes.items():
        _add(full, name, change, places.get(name))
    names = cast("ModelNames", found.gm.meta[NAMES_KEY])
    return full | {name: full[target] for name, target in names.aliases.items() if name in full and target in full}


def _check_names(wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a state dict with other names or shapes.

    Raises:
        ArtifactError: Names what is missing, not known, or of another shape.
    """
    for name in dict.fromkeys((*wanted, *state)):
        have, need = (None if name not in tensors else tuple(tensors[name].shape) for tensors in (state, wanted))
        if have != need:
            raise ArtifactError(
                f"The state of the small model has '{name}' {_describe(have)}; the record and the network give it "
                f"{_describe(need)}. Pass the state dict of the `graph_module` that belongs to this record."
            )


def _describe(shape: tuple[int, ...] | None) -> str:
    return "not at all" if shape is None else f"with shape {list(shape)}"


def _check_apart(places: Mapping[str, Place], changes: Mapping[str, torch.Tensor]) -> None:
    """Refuse changes of a number that the small model holds several times: a shared weight cut in several ways.

    Raises:
        UnsupportedError: Names the layer and the tensor.
    """
    owners: dict[str, list[Place]] = {}
    for place in places.values():
        if place.original is not None:
            owners.setdefault(place.original, []).append(place)
    for name, parts in owners.items():
        cells = torch.cat([part.cells.reshape(-1) for part in parts])
        changed = [part for part in parts if part.small in changes]
        if changed and torch.unique(cells).numel() < cells.numel():
            raise UnsupportedError(
                f"Layer '{changed[0].layer}': '{changed[0].small}' changed, and the small model holds '{name}', from "
                f"which it was cut, {len(parts)} times. Train the network itself, or leave this layer as it is."
            )


def _check_carriers(found: Replay, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a state in which a channel that stands for others with its constant has another value.

    Raises:
        ArtifactError: Names the layer that reads it and the channel.
    """
    values = [_carried_values(found)]
    for name, tensor in found.state().items():
        store_tensor(found.gm, name, state[name].to(tensor))
    values.append(_carried_values(found))
    for (name, channel), value in values[0].items():
        if values[1][name, channel] != value:
            raise ArtifactError(
                f"Layer '{name}': its input channel {channel} is the constant {value:.6g} and carries the constants of "
                "channels that were cut; in this state it is "
                + ("another number. " if values[1][name, channel] is not None else "no constant any more. ")
                + "Keep the rows and the bias of dead channels fixed while the small model is trained."
            )


def _carried_values(found: Replay) -> dict[tuple[str, int], float | None]:
    """Return the constants of all carriers by layer and input channel; None for those that vary."""
    facts = analyse(found.gm)
    values: dict[tuple[str, int], float | None] = {}
    for layer in found.layers():
        cut = found.cut_of(layer)
        if not cut.carriers:
            continue
        ids = input_ids(layer, facts.of(layer.input))
        for channel in cut.carriers:
            identity = ids[np.flatnonzero(np.asarray(cut.channels) == channel)[0]]
            known = facts.kind[identity] == Kind.CONST
            values[layer.node.name, channel] = float(facts.value[identity]) if known else None
    return values


def _add(full: State, name: str, change: torch.Tensor, place: Place | None) -> None:
    """Add what changed in a small tensor to the tensor of the network."""
    if place is None and name in full and full[name].shape == change.shape:
        full[name] = (full[name].double() + change).to(full[name].dtype)
        return
    if place is None or place.original not in full:
        raise UnsupportedError(
            f"'{name}' of the small model changed, and no tensor of the network holds its numbers: "
            + ("it was made from several, or cut by something else than a layer. " if place is None else "")
            + "Leave it as it is while the small model is trained."
        )
    if place.scale is not None:
        scale = place.scale.to(change.device)
        if bool(((scale == 0) & (change != 0)).any()):
            raise UnsupportedError(
                f"'{name}' of the small model changed in rows that the network's batch normalisation multiplies by 0. "
                "Leave them at 0 while the small model is trained."
            )
        change = torch.where(scale == 0, change, change / torch.where(scale == 0, 1.0, scale))
    target = full[place.original]
    flat = target.double().reshape(-1)
    flat[place.cells.reshape(-1).to(flat.device)] += change.reshape(-1)
    full[place.original] = flat.view(target.shape).to(target.dtype)
