"""Where a position of the output lies in a plane of a "chwn" buffer, as text of an expression in its number."""

from __future__ import annotations

from fxprune.codegen.cuda.tile import is_flat
from fxprune.codegen.workload import Layout, Triple, Workload


def input_address(work: Workload, q: str, width: int) -> str:
    """Return where the first tap of an output position lies in the input's plane of a channel.

    Args:
        work: The layer.
        q: The position's number over images, rows and columns, in units of `width`.
        width: Neighbouring cells that are moved at once; the address is in units of it, too.
    """
    flat = work.shape.is_pointwise and is_flat(work.x)
    return f"({q})" if flat else _address(work, work.x, q, width, work.shape.stride, work.first_tap)


def output_address(work: Workload, layout: Layout, q: str, width: int) -> str:
    """Return where an output position lies in a plane of the output or of the residual.

    Args:
        work: The layer.
        layout: Of the output or of the residual.
        q: The position's number, in units of `width`.
        width: Neighbouring cells that are moved at once; the address is in units of it, too.
    """
    return f"({q})" if is_flat(layout) else _address(work, layout, q, width, (1, 1, 1), layout.origin)


def _address(work: Workload, layout: Layout, q: str, width: int, stride: Triple, start: int) -> str:
    n, (depth, height, columns) = layout.batch // width, work.shape.spatial_out
    steps = [size // width * s for size, s in zip(layout.strides[2:], stride, strict=True)]
    w, h, d = f"{q} // {n} % {columns}", f"{q} // {n * columns} % {height}", f"{q} // {n * columns * height}"
    terms = [f"{q} % {n}", f"{w} * {steps[2]}"]
    terms += [f"{h} * {steps[1]}"] if height > 1 else []
    terms += [f"{d} * {steps[0]}"] if depth > 1 else []
    return f"({' + '.join(terms)} + {start // width})"
