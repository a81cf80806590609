"""Bound kernels that run one after another by one call."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from fxprune.codegen.build import Library
from fxprune.codegen.kernel import BoundKernel, BoundUnary


class Chain:
    """Kernels in order; Python is left once for all of them."""

    def __init__(self, library: Library, members: Sequence[BoundKernel | BoundUnary]) -> None:
        """Bind the kernels' functions and arguments.

        Args:
            library: What they were built into.
            members: The kernels, each with all buffers given when it was bound.
        """
        self._members = tuple(members)  # they own what the calls borrow
        self._run = library["fxprune_run"]
        self._first = 0
        for member in reversed(self._members):
            self._first = library["fxprune_bind"](self._first, member.function, *member.arguments)
        weakref.finalize(self, library["fxprune_free"], self._first).atexit = False

    def run(self) -> None:
        """Run all kernels."""
        self._run(self._first)
