"""Name the structure of a mask: the family that pruning methods of the literature leave behind, as a sentence.

Source:
    The families are those of method.md, section 11: channels; row groups, among them kernel-wise blocks (HRBP, CPAL
    2024), shuffled blocks (NeurIPS 2022) and column vectors (OVW, NeurIPS 2022); N:M; complementary patterns (TMLR
    2023); constant fan-in (SRigL); dead channels with an unstructured rest (Chase, NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

RUNS = (2, 4, 8, 16, 32)
"""Lengths M of the runs that N:M patterns and complementary patterns are tried with."""

LEAST_GROUPED = 0.9
"""Share of the kept cells that lie in rows with equals, for a mask to count as row groups."""


def name_family(mask: BoolArray, conv_groups: int = 1, kernel: int = 1) -> str:
    """Return the structure of a mask in a sentence without a full stop.

    Args:
        mask: True = kept, the 2-D view, [O, n].
        conv_groups: Conv groups.
        kernel: Columns of one input channel, kh * kw.
    """
    if mask.all():
        return "dense"
    if not mask.any():
        return "empty: nothing is kept"
    for find in _FINDERS:
        found = find(mask, conv_groups, kernel)
        if found:
            return found
    return _describe_rest(mask, conv_groups, kernel)


def _find_channels(mask: BoolArray, conv_groups: int, kernel: int) -> str:
    rows, channels = _find_live(mask, kernel)
    if conv_groups > 1 and not channels.all():
        return ""
    if not mask[np.ix_(rows, np.repeat(channels, kernel))].all():
        return ""
    return (
        f"channels: {rows.sum()} of {len(rows)} outputs and {channels.sum()} of {len(channels)} inputs, dense between "
        "them"
    )


def _find_row_groups(mask: BoolArray, conv_groups: int, kernel: int) -> str:
    """Recognise rows that come in groups of two and more with one column list, but for a few strays."""
    if len(mask) == conv_groups:
        return ""
    heights, widths, whole = _gather_groups(mask, conv_groups, kernel)
    stored = heights * widths
    if stored[heights > 1].sum() < LEAST_GROUPED * stored.sum():
        return ""
    low, high = int(heights.min()), int(heights.max())
    rows = f"{low}" if low == high else f"{low} to {high}"
    count = f"{len(heights)} of {rows} rows, {widths.mean():.0f} of {mask.shape[1]} columns on average"
    if kernel > 1 and whole:
        return f"row groups of whole kernels: {count}"
    if low == high and low > 2 and not (widths % low).any():
        return f"row groups of {low}x{low} blocks, shuffled: {count}"
    return f"row groups of column vectors: {count}"


def _gather_groups(mask: BoolArray, conv_groups: int, kernel: int) -> tuple[IntArray, IntArray, bool]:
    """Return height and width of every set of equal rows of one conv group, and whether all keep whole kernels."""
    heights: list[int] = []
    kept: list[BoolArray] = []
    for part in np.split(mask, conv_groups):
        live = part[part.any(axis=1)]
        if len(live):
            distinct, counts = np.unique(np.packbits(live, axis=1), axis=0, return_counts=True)
            heights += counts.tolist()
            kept.append(np.unpackbits(distinct, axis=1, count=mask.shape[1]).astype(np.bool_))
    if not heights:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), False
    rows = np.concatenate(kept)
    by_kernel = rows.reshape(len(rows), -1, kernel)
    whole = bool((by_kernel.all(axis=2) == by_kernel.any(axis=2)).all())
    return np.array(heights), rows.sum(axis=1), whole


def _find_runs(mask: BoolArray, _: int, kernel: int) -> str:
    """Recognise N kept cells in every run of M, along the columns or along the input channels of each tap."""
    rows = mask[mask.any(axis=1)]
    orders = {"columns": rows, "input channels": rows.reshape(len(rows), -1, kernel).transpose(0, 2, 1)}
    for along, cells in orders.items():
        for run in RUNS:
            if cells.shape[-1] % run:
                continue
            counts = cells.reshape(-1, run).sum(axis=1)
            if counts.min() == counts.max() < run:
                return f"{counts[0]}:{run} along the {along}{_count_dead(mask)}"
    return ""


def _find_complementary(mask: BoolArray, _conv_groups: int, _kernel: int) -> str:
    """Recognise one kept cell among every M at equal distance."""
    rows = mask[mask.any(axis=1)]
    for run in RUNS:
        if (
            mask.shape[1] % run == 0
            and mask.shape[1] > run
            and bool((rows.reshape(len(rows), run, -1).sum(axis=1) == 1).all())
        ):
            return f"complementary: one of {run} at a distance of {mask.shape[1] // run} columns{_count_dead(mask)}"
    return ""


def _find_constant_fan_in(mask: BoolArray, _conv_groups: int, _kernel: int) -> str:
    counts = mask.sum(axis=1)
    live = counts[counts > 0]
    if len(live) < 2 or live.min() != live.max():
        return ""
    return f"constant fan-in: {live[0]} of {mask.shape[1]} columns in each row{_count_dead(mask)}"


_FINDERS: tuple[Callable[[BoolArray, int, int], str], ...] = (
    _find_channels,
    _find_row_groups,
    _find_complementary,
    _find_runs,
    _find_constant_fan_in,
)
"""The more a family saves, the earlier it is tried."""


def _describe_rest(mask: BoolArray, _: int, kernel: int) -> str:
    rows, channels = _find_live(mask, kernel)
    if rows.all() and channels.all():
        return "unstructured"
    inside = mask[np.ix_(rows, np.repeat(channels, kernel))].mean()
    return (
        f"unstructured, density {inside:.2f} between {rows.sum()} of {len(rows)} outputs and {channels.sum()} of "
        f"{len(channels)} inputs that are alive"
    )


def _find_live(mask: BoolArray, kernel: int) -> tuple[BoolArray, BoolArray]:
    """Return which rows and which input channels keep a cell."""
    rows: BoolArray = np.any(mask, axis=1)
    channels: BoolArray = np.any(np.any(mask, axis=0).reshape(-1, kernel), axis=1)
    return rows, channels


def _count_dead(mask: BoolArray) -> str:
    dead = int((~mask.any(axis=1)).sum())
    return f", {dead} of {len(mask)} rows dead" if dead else ""
