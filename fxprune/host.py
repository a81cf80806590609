"""Models, masks and inputs brought to the CPU, where everything is compiled, whatever device it will run on."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

T = TypeVar("T")


def on_host(value: T) -> T:
    """Return a value whose tensors are on the CPU: itself where they are, else a copy.

    Args:
        value: A module, or anything made of tensors, tuples, lists and dictionaries.
    """
    if isinstance(value, nn.Module):
        tensors = [*value.parameters(), *value.buffers()]
        return value if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(value).cpu()
    moved: T = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, value)
    return moved
