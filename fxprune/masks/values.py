"""One mask: from the tensor or array that the user gives to bool, True = kept."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.errors import MaskError

_COMPRESSED = frozenset([torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc])
_INTEGERS = frozenset(
    [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
)


def convert_mask(value: object, weight: Tensor) -> Tensor:
    """Return a mask as a new bool tensor on the CPU.

    Args:
        value: Tensor or NumPy array of zeros and ones, or a sparse tensor, whose stored positions are kept.
        weight: The weight that the mask belongs to; gives the shape, and the values for the check of polarity.

    Raises:
        MaskError: If the value is no such thing; the message goes on from the mask's name ("has shape ...").
    """
    mask = _read_tensor(value)
    if mask.shape != weight.shape:
        hint = _format_shape_hint(mask, weight)
        raise MaskError(f"has shape {list(mask.shape)}, its weight has {list(weight.shape)}; {hint}")
    if mask.device.type == "meta":
        raise MaskError("is on the meta device, so it holds no values; give a mask that does")
    kept = _read_bits(mask)
    _check_polarity(kept, weight)
    return kept


def convert_values(value: object) -> Tensor:
    """Return a mask as a new bool tensor on the CPU, whatever its shape.

    Args:
        value: Tensor or NumPy array of zeros and ones, or a sparse tensor, whose stored positions are kept.

    Raises:
        MaskError: If the value is no such thing; the message goes on from the mask's name ("has dtype ...").
    """
    mask = _read_tensor(value)
    if mask.device.type == "meta":
        raise MaskError("is on the meta device, so it holds no values; give a mask that does")
    return _read_bits(mask)


def _read_bits(mask: Tensor) -> Tensor:
    """Return zeros and ones as a new bool tensor on the CPU."""
    if mask.dtype != torch.bool:
        _check_values(mask)
    return mask.detach().to("cpu", torch.bool, copy=True).contiguous()


def _read_tensor(value: object) -> Tensor:
    """Return a strided tensor with the cells of the mask; of a sparse tensor, the stored positions."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(_read_array(value))
    if not isinstance(value, Tensor):
        raise MaskError(
            f"is of type {type(value).__name__}; give a torch tensor or NumPy array, or leave out a dense layer"
        )
    if value.layout == torch.sparse_coo:
        ones = torch.ones_like(value._values(), dtype=torch.int32)
        return torch.sparse_coo_tensor(value._indices(), ones, value.shape, check_invariants=True).to_dense() != 0
    if value.layout in _COMPRESSED:
        return _find_stored(value)
    if value.layout != torch.strided or value.is_nested:
        raise MaskError(f"has layout {value.layout}; give a plain or sparse tensor, e.g. mask.to_dense()")
    if not (value.dtype == torch.bool or value.dtype.is_floating_point or value.dtype in _INTEGERS):
        raise MaskError(f"has dtype {value.dtype}; give bool, integer or float values that are 0 or 1")
    return value


def _read_array(value: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a copy in native byte order; floats become float64, the widest that torch knows."""
    if value.dtype.kind not in "biuf":
        raise MaskError(f"has dtype {value.dtype}; give bool, integer or float values that are 0 or 1")
    wanted = np.dtype(np.float64) if value.dtype.kind == "f" else value.dtype.newbyteorder("=")
    return np.array(value, dtype=wanted, order="C")


def _find_stored(value: Tensor) -> Tensor:
    """Return the stored positions of a CSR, CSC, BSR or BSC tensor as a dense bool tensor."""
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        compressed, plain = value.crow_indices(), value.col_indices()
    else:
        compressed, plain = value.ccol_indices(), value.row_indices()
    ones = torch.ones_like(value.values(), dtype=torch.int32)
    stored = torch.sparse_compressed_tensor(
        compressed, plain, ones, value.shape, layout=value.layout, check_invariants=True
    )
    return stored.to_dense() != 0


def _format_shape_hint(mask: Tensor, weight: Tensor) -> str:
    if mask.numel() == weight.numel():
        return f"if its cells are in the right order, reshape it to {list(weight.shape)}"
    if weight.dim() > 0 and mask.numel() == weight.shape[0]:
        return "if it is a mask of output channels, expand it over the other axes"
    return "give one value for each weight"


def _check_values(mask: Tensor) -> None:
    wrong = (mask != 0) & (mask != 1)
    count = int(wrong.count_nonzero())
    if count == 0:
        return
    position = wrong.nonzero()[0].tolist()
    found = mask[tuple(position)].item()
    rest = f" and {count - 1} more values that are neither 0 nor 1" if count > 1 else ", which is neither 0 nor 1"
    raise MaskError(f"holds {found} at {position}{rest}; make it bool first, e.g. scores > threshold")


def _check_polarity(kept: Tensor, weight: Tensor) -> None:
    """Refuse a mask under which the weight would lose exactly its non-zero values: its True means pruned."""
    if weight.device.type == "meta" or not bool(kept.any()):
        return
    nonzero = (weight.detach() != 0).cpu()
    if bool(nonzero.any()) and not bool((kept & nonzero).any()):
        raise MaskError("keeps only weights that are zero and none of the others; if its 1 means pruned, give 1 - mask")
