"""What tensor cores do, as statements of a kernel: PTX's `mma.sync`, and cells on their way to it and back.

`mma.sync.m16n8k16` adds the product of a [16, 16] and b [16, 8] of 16-bit cells to d [16, 8]; a warp's 32 threads hold
the three together. Thread t, with g = t / 4 and q = t % 4, holds (PTX ISA, "Matrix Fragments for mma.m16n8k16"):

    a: 4 registers of two cells: rows g, g + 8, g, g + 8; columns 2q, 2q + 1, in the last two registers 8 columns on
    b: 2 registers of two cells: rows 2q, 2q + 1, in the second register 8 rows on; column g
    d: 4 floats: rows g, g, g + 8, g + 8; columns 2q, 2q + 1, 2q, 2q + 1

`mma.sync.m16n8k8` does the same with float32 cells rounded to TF32, 10 bits of fraction, and half as many columns of a:

    a: 4 registers of a cell: rows g, g + 8, g, g + 8; column q, in the last two registers 4 columns on
    b: 2 registers of a cell: row q, in the second register 4 rows on; column g
"""

from __future__ import annotations

from fxprune.codegen.cuda.copies import call
from fxprune.codegen.workload import CELL_BYTES, CellType

ROWS, COLUMNS = 16, 8
"""Sizes of d."""

_SUMMED_BYTES = 32
"""Bytes of a row of a, whatever its cells are."""

_PTX: dict[CellType, str] = {"float16": "f16", "bfloat16": "bf16", "float32": "tf32"}
"""Names of what is multiplied."""

_STORED: dict[CellType, str] = {**_PTX, "float32": "f32"}
"""Names of what lies in memory."""

_MULTIPLY = """
__forceinline__ __device__ void fxprune_multiply_{cells}(float* d, const unsigned* a, const unsigned* b) {{
  asm volatile("mma.sync.aligned.m16n8k{step}.row.col.f32.{cells}.{cells}.f32 "
               "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}}
"""
_LOAD = """
__forceinline__ __device__ void fxprune_load_transposed(unsigned* to, const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)) : "memory");
}
"""
_ROUND = """
__forceinline__ __device__ void fxprune_load_rounded(unsigned* to, const float* from, int next) {
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(to[0]) : "f"(from[0]));
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(to[1]) : "f"(from[next]));
}
"""
_MOVE = """
__forceinline__ __device__ void fxprune_move2(void* to, const void* from) {
  *(unsigned short*)to = *(const unsigned short*)from;
}
"""
_READ = """
__forceinline__ __device__ void fxprune_read{width}_{cells}(float* to, const void* from) {{
  {body}
}}
"""
_WRITE = """
__forceinline__ __device__ void fxprune_write{width}_{cells}(void* to, {values}) {{
  {body}
}}
"""
_READ_BODIES: dict[CellType, tuple[str, str]] = {
    "bfloat16": (
        "to[0] = __uint_as_float((unsigned)*(const unsigned short*)from << 16);",
        "unsigned both = *(const unsigned*)from;\n"
        "  to[0] = __uint_as_float(both << 16), to[1] = __uint_as_float(both & 0xffff0000u);",
    ),
    "float16": (
        'asm("cvt.f32.f16 %0, %1;" : "=f"(to[0]) : "h"(*(const unsigned short*)from));',
        "unsigned both = *(const unsigned*)from;\n"
        '  asm("cvt.f32.f16 %0, %1;" : "=f"(to[0]) : "h"((unsigned short)both));\n'
        '  asm("cvt.f32.f16 %0, %1;" : "=f"(to[1]) : "h"((unsigned short)(both >> 16)));',
    ),
    "float32": (
        "to[0] = *(const float*)from;",
        "float2 both = *(const float2*)from;\n  to[0] = both.x, to[1] = both.y;",
    ),
}
"""How 1 or 2 neighbouring cells become floats."""

_ROUNDED = (
    "unsigned both;\n"
    '  asm("cvt.rn.{cells}x2.f32 %0, %1, %2;" : "=r"(both) : "f"(x), "f"(x));\n'
    "  *(unsigned short*)to = (unsigned short)both;",
    "unsigned both;\n"
    '  asm("cvt.rn.{cells}x2.f32 %0, %1, %2;" : "=r"(both) : "f"(y), "f"(x));\n'
    "  *(unsigned*)to = both;",
)
_WRITE_BODIES: dict[CellType, tuple[str, str]] = {
    "bfloat16": _ROUNDED,
    "float16": _ROUNDED,
    "float32": ("*(float*)to = x;", "*(float2*)to = make_float2(x, y);"),
}
"""How 1 or 2 floats become neighbouring cells, x before y."""


def summed_columns(cell_bytes: int) -> int:
    """Return the columns of a that one product sums over, for cells of 2 or 4 bytes."""
    return _SUMMED_BYTES // cell_bytes


def multiply_call(cells: CellType, d: str, a: str, b: str) -> str:
    """Return the statement d += a x b.

    Args:
        cells: Type of a and b; float32 is rounded to TF32 already. d is float32.
        d: First of a thread's 4 floats.
        a: First of its 4 registers.
        b: First of its 2 registers.
    """
    name, step = f"fxprune_multiply_{_PTX[cells]}", summed_columns(CELL_BYTES[cells])
    text = _MULTIPLY.format(cells=_PTX[cells], step=step)
    return call(name, text, *(f"T.address_of({cell})" for cell in (d, a, b)))


def load_call(to: str, source: str) -> str:
    """Return the statement that fetches b of two products of 16-bit cells from shared memory.

    Args:
        to: First of a thread's 4 registers: b of the first product, b of the second.
        source: What the thread points at: 8 neighbouring cells, aligned to 16 bytes, of row t % 16 of b; of the first
            product in the lower half of the warp, of the second one in the upper half.
    """
    return call("fxprune_load_transposed", _LOAD, f"T.address_of({to})", f"T.address_of({source})")


def load_rounded_call(to: str, source: str, line: int) -> str:
    """Return the statement that fetches b of one product from shared memory and rounds it to TF32.

    Args:
        to: First of a thread's 2 registers.
        source: The thread's cell of float32 in row q and column g of b.
        line: Cells from one row of b to the next one.
    """
    arguments = f"T.address_of({to})", f"T.address_of({source})", f"{4 * line}"
    return call("fxprune_load_rounded", _ROUND, *arguments)


def move_call(to: str, source: str) -> str:
    """Return the statement that copies one cell of 16 bits: asynchronous copies have 4 bytes at least."""
    return call("fxprune_move2", _MOVE, f"T.address_of({to})", f"T.address_of({source})")


def read_call(cells: CellType, to: str, source: str, width: int) -> str:
    """Return the statement that reads 1 or 2 neighbouring cells into floats."""
    name, body = _STORED[cells], _READ_BODIES[cells][width - 1]
    text = _READ.format(width=width, cells=name, body=body)
    return call(f"fxprune_read{width}_{name}", text, f"T.address_of({to})", f"T.address_of({source})")


def write_call(cells: CellType, to: str, *values: str) -> str:
    """Return the statement that rounds 1 or 2 floats to the nearest cells and writes them, neighbours."""
    width, name = len(values), _STORED[cells]
    body = _WRITE_BODIES[cells][width - 1].replace("{cells}", name)
    text = _WRITE.format(width=width, cells=name, values=("float x", "float x, float y")[width - 1], body=body)
    return call(f"fxprune_write{width}_{name}", text, f"T.address_of({to})", *values)
