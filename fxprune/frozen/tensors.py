"""Tensors on disk: masks as bits, pruned weights as their kept values, equal tensors once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from fxprune.errors import ArtifactError
from fxprune.masks import pack_bits, unpack_bits

Form = dict[str, object]
"""How one tensor is stored, as JSON."""


class TensorStore:
    """Collects tensors to be written.

    Attributes:
        tensors: What to write, by a name made of the contents: contiguous, no two sharing memory.
    """

    def __init__(self, *, keep: bool = True) -> None:
        """Begin.

        Args:
            keep: Keep the tensors; False only names them.
        """
        self.tensors: dict[str, torch.Tensor] = {}
        self._keeps = keep

    def add_mask(self, mask: torch.Tensor) -> Form:
        """Take a bool tensor, eight cells a byte."""
        return {"bits": self._take(pack_bits(mask)), "shape": list(mask.shape)}

    def add_array(self, array: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> str:
        """Take an index array; returns its name."""
        return self._take(torch.from_numpy(np.ascontiguousarray(array)))

    def add(self, tensor: torch.Tensor, mask: torch.Tensor | None = None) -> Form:
        """Take a constant.

        Args:
            tensor: Any dense tensor.
            mask: Its mask, if it has one: only kept values are stored if all others are exactly +0.
        """
        tensor = tensor.detach().cpu()
        if mask is not None and _is_zero(tensor, ~mask):
            return {"values": self._take(tensor.contiguous()[mask]), "mask": self.add_mask(mask)}
        order = _memory_order(tensor)
        form: Form = {"tensor": self._take(tensor.permute(order).contiguous())}
        return form if order == sorted(order) else {**form, "order": order}

    def _take(self, tensor: torch.Tensor) -> str:
        name = _digest(tensor)
        if self._keeps and name not in self.tensors:
            shared = any(tensor.untyped_storage().data_ptr() == other.data_ptr() for other in self.tensors.values())
            self.tensors[name] = tensor.clone() if shared or not _owns_memory(tensor) else tensor
        return name


def _is_zero(tensor: torch.Tensor, cells: torch.Tensor) -> bool:
    """Whether all these cells have no bit set: a negative zero is not stored as nothing."""
    if not tensor.is_floating_point() or tensor.shape != cells.shape:
        return False
    rest = tensor[cells]
    return bool((rest == 0).all()) and not bool(rest.signbit().any())


def _memory_order(tensor: torch.Tensor) -> list[int]:
    """Return the axes from the outermost to the innermost if the tensor has no gaps, else as they are."""
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda axis: (-strides[axis], axis))
    return order if tensor.permute(order).is_contiguous() and not tensor.is_contiguous() else list(range(tensor.ndim))


def _owns_memory(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _digest(tensor: torch.Tensor) -> str:
    """Return a name made of type, shape and bytes of a contiguous tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def read_mask(form: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a mask from its form."""
    return unpack_bits(tensors[str(form["bits"])], read_shape(form["shape"]))


def read_tensor(form: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a constant from its form.

    Raises:
        ArtifactError: Values and mask do not fit.
    """
    if "values" not in form:
        stored = tensors[str(form["tensor"])]
        order = read_shape(form.get("order", list(range(stored.ndim))))
        return stored.permute([order.index(axis) for axis in range(stored.ndim)])
    values, inner = tensors[str(form["values"])], form["mask"]
    assert isinstance(inner, Mapping)
    mask = read_mask(inner, tensors)
    if values.numel() != int(mask.count_nonzero()):
        raise ArtifactError(f"A stored mask keeps {int(mask.count_nonzero())} cells, its values are {values.numel()}.")
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[mask] = values
    return dense


def read_shape(value: object) -> tuple[int, ...]:
    """Return a list of whole numbers as a tuple.

    Raises:
        ArtifactError: It is none.
    """
    if not isinstance(value, list) or not all(isinstance(size, int) and size >= 0 for size in value):
        raise ArtifactError(f"The file holds {value!r} where a list of sizes belongs; it is damaged.")
    return tuple(value)
