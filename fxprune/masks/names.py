"""Names: which weights of a model can carry a mask, and which of them a key of the user's mapping means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fxprune.errors import MaskError, UnsupportedError

_LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
# Modules of torch.nn whose parameters have two or more axes and are no weights of a convolution or linear layer.
_NOT_LAYERS = (nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)

# ATen operators, by name without overload, that a layer's weight goes into, and those that it may pass before.
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d")
_LAYER_OPERATORS = frozenset([*_CONVOLUTIONS, "conv_transpose3d", "linear", "addmm", "mm", "matmul"])
_TRANSPOSITIONS = frozenset(["t", "transpose", "permute"])

_PARAMETRIZED = re.compile(r"(?P<module>(?:.+\.)?)parametrizations\.(?P<name>[^.]+)\.original\d*")


@dataclass(frozen=True)
class Weights:
    """What a mask can name in one model. Names are those of the model without pruning machinery.

    Attributes:
        tensors: Name to weight of everything that may carry a mask.
        layers: The names among them known to be the weight of a convolution or linear layer.
        attached: Name to the buffer in which `torch.nn.utils.prune` keeps the mask of that weight.
        others: Name of every other parameter to a phrase about it, e.g. "has shape [8] and is part of BatchNorm2d".
    """

    tensors: dict[str, Tensor]
    layers: tuple[str, ...]
    attached: dict[str, Tensor]
    others: dict[str, str]


def find_weights(model: nn.Module | ExportedProgram | fx.GraphModule) -> Weights:
    """Find everything in a model that a mask can name.

    Raises:
        UnsupportedError: If the model is of another type, or a weight has no shape yet.
    """
    if isinstance(model, ExportedProgram):
        return _find_in_program(model)
    if isinstance(model, nn.Module):
        return _find_in_module(model)
    raise UnsupportedError(
        f"model is of type {type(model).__name__}; give a torch.nn.Module, torch.export.ExportedProgram or "
        "torch.fx.GraphModule."
    )


def find_name(key: object, weights: Weights) -> str:
    """Return the name of the weight that a key of the user's mapping means.

    Args:
        key: The name of a weight ("conv1.weight") or of its module ("conv1").
        weights: What can be named.

    Raises:
        MaskError: If it names no weight; the message goes on from the key ("names no weight ...").
    """
    if not isinstance(key, str):
        raise MaskError(f"has a name of type {type(key).__name__}; use that of the parameter, e.g. 'conv1.weight'")
    meant = (key, _join(key, "weight"))
    for name in meant:
        if name in weights.tensors:
            return name
    if key.rpartition(".")[2] == "bias":
        raise MaskError("names a bias, and only weights are masked; leave it out and multiply it into the bias")
    for name in meant:
        if name in weights.others:
            raise MaskError(
                f"names a parameter that {weights.others[name]}; only weights of convolution and linear layers are "
                "masked: leave it out"
            )
    raise MaskError(f"names no weight of the model; {_format_known(key, weights.tensors)}")


def _format_known(key: str, names: Mapping[str, object]) -> str:
    if not names:
        return "it has no convolution or linear layer: check that this is the pruned model"
    nearest = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    if nearest:
        return f"did you mean {' or '.join(map(repr, nearest))}? Names are those of model.named_parameters()"
    first = ", ".join(map(repr, list(names)[:3]))
    return f"its {len(names)} weights are {first}, ...; use the names of model.named_parameters()"


def _find_in_module(model: nn.Module) -> Weights:
    stored: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    for path, module in modules.items():
        if isinstance(module, _LAYERS):
            tensors[_join(path, "weight")] = module.weight
            _check_initialized(_join(path, "weight"), module.weight)
    layers = dict.fromkeys(tensors)
    others: dict[str, str] = {}
    for raw, tensor in model.named_parameters(remove_duplicate=False):
        name, owner = _strip_machinery(raw, stored), modules[raw.rpartition(".")[0]]
        if name in tensors:
            continue
        _check_initialized(name, tensor)
        if tensor.dim() < 2 or isinstance(owner, _NOT_LAYERS):
            others[name] = f"has shape {list(tensor.shape)} and is part of {type(owner).__name__}"
        else:
            tensors[name] = tensor
    if isinstance(model, fx.GraphModule):
        read = {node: str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
        layers |= dict.fromkeys(name for name in _find_read_by_layers(read) if name in tensors)
    attached = _find_attached(stored, tensors)
    tensors |= {name: stored[f"{name}_orig"] for name in attached}  # `weight` itself is as old as the last call
    return Weights(tensors, tuple(layers), attached, others)


def _find_in_program(program: ExportedProgram) -> Weights:
    stored: dict[str, Tensor] = dict(program.state_dict)
    buffers = set(program.graph_signature.buffers)
    parameters = {_strip_machinery(raw, stored): tensor for raw, tensor in stored.items() if raw not in buffers}
    tensors = {name: tensor for name, tensor in parameters.items() if tensor.dim() >= 2}
    others = {name: f"has shape {list(parameters[name].shape)}" for name in parameters if name not in tensors}
    inputs = program.graph_signature.inputs_to_parameters
    read = {node: inputs[node.name] for node in program.graph.nodes if node.name in inputs}
    layers = dict.fromkeys(name for name in _find_read_by_layers(read) if name in tensors)
    return Weights(tensors, tuple(layers), _find_attached(stored, tensors), others)


def _find_read_by_layers(parameters: Mapping[fx.Node, str]) -> Iterable[str]:
    """Yield the names of those parameters that a convolution or linear operator reads, as they are or transposed.

    Whatever else lies between, e.g. a multiplication by a mask, changes the values: their zeros say nothing.
    """
    for node, name in parameters.items():
        users = list(node.users)
        while users:
            user = users.pop()
            operator = str(user.target).removeprefix("aten.").partition(".")[0]
            if operator in _LAYER_OPERATORS:
                yield name
                break
            if operator in _TRANSPOSITIONS:
                users += user.users


def _find_attached(stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks of `torch.nn.utils.prune`: buffer `name_mask` beside the parameter `name_orig`."""
    names = [name for name in tensors if f"{name}_mask" in stored and f"{name}_orig" in stored]
    return {name: stored[f"{name}_mask"] for name in names}


def _strip_machinery(name: str, stored: Mapping[str, Tensor]) -> str:
    """Return the name that a parameter has without pruning hooks and parametrizations."""
    plain = name.removesuffix("_orig")
    if plain != name and f"{plain}_mask" in stored:
        return plain
    match = _PARAMETRIZED.fullmatch(name)
    return match["module"] + match["name"] if match else name


def _check_initialized(name: str, tensor: Tensor) -> None:
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        raise UnsupportedError(
            f"The parameter {name!r} has no shape yet. Run the model once on an example input, then compile it."
        )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
