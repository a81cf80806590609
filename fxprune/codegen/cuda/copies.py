"""Asynchronous copies from a GPU's memory into shared memory, as statements of a kernel: PTX's `cp.async`.

A thread's copies up to a commit are a group; a wait lets so many of its youngest groups be under way still.
"""

from __future__ import annotations

_COPY = """
__forceinline__ __device__ void fxprune_copy{bytes}(void* to, const void* from) {{
  asm volatile("cp.async.{cache}.shared.global [%0], [%1], {bytes};"
               :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}}
"""
_COMMIT = """
__forceinline__ __device__ void fxprune_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
"""
_WAIT = """
__forceinline__ __device__ void fxprune_wait{left}() {{ asm volatile("cp.async.wait_group {left};" ::: "memory"); }}
"""


def call(function: str, source: str, *arguments: str) -> str:
    """Return the statement that calls a function of CUDA text."""
    return f"T.evaluate(T.cuda.func_call({', '.join((repr(function), *arguments))}, source_code={source!r}))"


def copy_call(to: str, source: str, size: int) -> str:
    """Return the statement that starts a copy.

    Args:
        to: A cell in shared memory.
        source: A cell in global memory.
        size: Bytes, 4, 8 or 16; both cells are aligned to it.
    """
    text = _COPY.format(bytes=size, cache="cg" if size == 16 else "ca")
    return call(f"fxprune_copy{size}", text, f"T.address_of({to})", f"T.address_of({source})")


def commit_call() -> str:
    """Return the statement that ends a group of copies."""
    return call("fxprune_commit", _COMMIT)


def wait_call(left: int) -> str:
    """Return the statement that waits until `left` groups at most are under way."""
    return call(f"fxprune_wait{left}", _WAIT.format(left=left))
