"""Loads and stores of the lanes of a vector that a mask names; LLVM knows them on every processor."""

from __future__ import annotations


def masked_load(lanes: int, cell: str, mask: str) -> str:
    """Return an expression for a float32 vector, 0 in lanes that are not loaded.

    Args:
        lanes: Lanes of the vector.
        cell: Element of a buffer, that of lane 0.
        mask: Expression of a vector of truth values.
    """
    name = f'"float32x{lanes}", "llvm.masked.load.v{lanes}f32.p0"'
    zeros = f"T.Broadcast(T.float32(0.0), {lanes})"
    return f"T.call_llvm_pure_intrin({name}, T.address_of({cell}), {mask}, {zeros})"


def masked_store(lanes: int, vector: str, cell: str, mask: str) -> str:
    """Return a statement that stores a vector's lanes.

    Args:
        lanes: Lanes of the vector.
        vector: Expression of the float32 vector.
        cell: Element of a buffer, that of lane 0.
        mask: Expression of a vector of truth values.
    """
    name = f'"void", "llvm.masked.store.v{lanes}f32.p0"'
    return f"T.evaluate(T.call_llvm_intrin({name}, {vector}, T.address_of({cell}), {mask}))"
