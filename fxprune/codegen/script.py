"""Indented TVMScript text, built line by line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

ACTIVATIONS = frozenset({"X", "Y", "RES"})
"""Arguments of a layer's kernel that come as tensors, whose sizes the function checks. Its packed arrays come as bare
addresses: the checks of a dozen tensors are more code than the kernel itself."""

_ANY_SIZE = 2**31 - 1

STACK_BYTES = 1024
"""TVM 0.27 (`kMaxStackAlloca`) puts smaller buffers on the stack."""


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

    def allocate(self, name: str, cells: int, dtype: str = "float32") -> None:
        """Declare a small buffer of the thread.

        TVM puts it on the stack if its scope is "global" and it takes less than `STACK_BYTES`, where LLVM keeps cells
        with constant indices in registers. Any other comes from a heap, and LLVM keeps it in memory as soon as
        anything in the same loop may touch memory.

        Args:
            name: Its name.
            cells: Elements.
            dtype: Their type.
        """
        self.add(f'{name} = T.alloc_buffer(({cells},), "{dtype}", scope="global")')

    @contextmanager
    def loops(self, *headers: str) -> Iterator[None]:
        """Open nested blocks, outermost first."""
        for header in headers:
            self.add(f"{header}:")
            self._depth += 1
        yield
        self._depth -= len(headers)

    @contextmanager
    def function(
        self, name: str, buffers: Mapping[str, tuple[int, str]], addressed: Collection[str] = ()
    ) -> Iterator[None]:
        """Open a TIR function over flat buffers.

        Args:
            name: Global symbol.
            buffers: Name to (elements, dtype), in the order of the arguments; 0 elements = known at the call.
            addressed: Names of those that come as addresses, unchecked; TVM wants at least one that does not.
        """
        self.add("@T.prim_func(s_tir=True)")
        kinds = {buffer: f'("{dtype}")' if buffer in addressed else "" for buffer, (_, dtype) in buffers.items()}
        arguments = ", ".join(f"{buffer}_handle: T.handle{kind}" for buffer, kind in kinds.items())
        with self.block(f"def {name}({arguments})"):
            self.add(f'T.func_attr({{"global_symbol": "{name}", "tirx.noalias": True}})')
            for buffer in sorted(buffers, key=lambda buffer: buffer in addressed):  # tensors before addresses
                self._declare(buffer, *buffers[buffer], addressed=buffer in addressed)
            yield

    def _declare(self, buffer: str, elements: int, dtype: str, *, addressed: bool) -> None:
        if addressed:
            self.add(f'{buffer} = T.decl_buffer(({elements or _ANY_SIZE},), "{dtype}", data={buffer}_handle, align=4)')
            return
        if not elements:
            self.add(f"{buffer}_size = T.int32()")
        self.add(f'{buffer} = T.match_buffer({buffer}_handle, ({elements or f"{buffer}_size"},), "{dtype}", align=4)')

    @property
    def text(self) -> str:
        """The function as TVMScript."""
        return "\n".join(self._lines) + "\n"
