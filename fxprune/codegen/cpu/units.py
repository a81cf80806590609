"""The loops over the units, tiles of blocks, that belong to one thread."""

from __future__ import annotations


def own_units(outer: tuple[str, int], inner: tuple[str, int]) -> tuple[str, str]:
    """Return the headers of two loops over a thread's units; array CUT holds the first unit of every thread.

    Args:
        outer: Name and number of values of the index that changes slowly.
        inner: The same of the one that changes fast.
    """
    low, high = (f"T.max(T.min({cut} - {outer[0]} * {inner[1]}, {inner[1]}), 0)" for cut in ("CUT[t]", "CUT[t + 1]"))
    return f"for {outer[0]} in T.serial({outer[1]})", f"for {inner[0]} in T.serial({low}, {high})"


def own_units_swapped(outer: tuple[str, int], inner: tuple[str, int]) -> tuple[str, str]:
    """Return the headers of two loops over the units of `own_units` with the inner index in the outer loop.

    Args:
        outer: As in `own_units`.
        inner: As in `own_units`.
    """
    low, high = (f"({cut} - {inner[0]} + {inner[1] - 1}) // {inner[1]}" for cut in ("CUT[t]", "CUT[t + 1]"))
    return f"for {inner[0]} in T.serial({inner[1]})", f"for {outer[0]} in T.serial({low}, {high})"
