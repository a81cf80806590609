"""Hold masks during training: pruned cells get no gradient and stay zero, whatever the optimizer does."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxprune.errors import MaskError


@contextmanager
def hold_masks(model: nn.Module, optimizer: Optimizer, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Zero the pruned cells now, their gradients as they are accumulated, and their weights after every step.

    Masked gradients alone would not do: momentum and weight decay of the time before revive a cell. Masked weights
    alone would not do either: the momentum of a pruned cell would grow unseen.

    Args:
        model: The model in training; its pruned weights become zero.
        optimizer: Its optimizer.
        masks: Bool masks by parameter name, True = kept.

    Raises:
        MaskError: A mask names no parameter, or has another shape.
    """
    parameters = dict(model.named_parameters())
    pruned: list[tuple[nn.Parameter, Tensor]] = []
    for name, mask in masks.items():
        if name not in parameters:
            raise MaskError(f"The mask {name!r} names no parameter of the model that is trained.")
        parameter = parameters[name]
        if parameter.shape != mask.shape:
            raise MaskError(f"The mask {name!r} has shape {list(mask.shape)}, its weight {list(parameter.shape)}.")
        pruned.append((parameter, ~mask.to(parameter.device)))
    with ExitStack() as hooks:
        for parameter, cells in pruned:
            clear = functools.partial(_clear_grad, cells=cells)
            hooks.callback(parameter.register_post_accumulate_grad_hook(clear).remove)  # type: ignore[no-untyped-call]
        hooks.callback(optimizer.register_step_post_hook(lambda *_: _clear_weights(pruned)).remove)
        _clear_weights(pruned)
        yield


def _clear_grad(parameter: Tensor, cells: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.masked_fill_(cells, 0.0)


def _clear_weights(pruned: list[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for parameter, cells in pruned:
            parameter.masked_fill_(cells, 0.0)
