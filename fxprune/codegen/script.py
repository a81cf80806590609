"""Indented TVMScript text, built line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Script:
    """The text of one TIR function while it is written."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def add(self, *lines: str) -> None:
        """Append lines at the present depth."""
        self._lines.extend("    " * self._depth + line for line in lines)

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """Open an indented block, e.g. `for i in T.serial(4)`."""
        self.add(f"{header}:")
        self._depth += 1
        yield
        self._depth -= 1

    @contextmanager
    def loops(self, *headers: str) -> Iterator[None]:
        """Open nested blocks, outermost first."""
        for header in headers:
            self.add(f"{header}:")
            self._depth += 1
        yield
        self._depth -= len(headers)

    @contextmanager
    def function(self, name: str, buffers: Mapping[str, tuple[int, str]]) -> Iterator[None]:
        """Open a TIR function over flat buffers.

        Args:
            name: Global symbol.
            buffers: Name to (elements, dtype), in the order of the arguments; 0 elements = known at the call.
        """
        self.add("@T.prim_func(s_tir=True)")
        arguments = ", ".join(f"{buffer}_handle: T.handle" for buffer in buffers)
        with self.block(f"def {name}({arguments})"):
            self.add(f'T.func_attr({{"global_symbol": "{name}", "tirx.noalias": True}})')
            for buffer, (elements, dtype) in buffers.items():
                if not elements:
                    self.add(f"{buffer}_size = T.int32()")
                size = elements or f"{buffer}_size"
                self.add(f'{buffer} = T.match_buffer({buffer}_handle, ({size},), "{dtype}", align=4)')
            yield

    @property
    def text(self) -> str:
        """The function as TVMScript."""
        return "\n".join(self._lines) + "\n"
