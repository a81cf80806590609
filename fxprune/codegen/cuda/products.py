"""What tensor cores do, as statements of a kernel: PTX's `mma.sync` and `ldmatrix`; cells of 16 bits to and from float.

`mma.sync.m16n8k16` adds the product of a [16, 16] and b [16, 8] to d [16, 8]; a warp's 32 threads hold the three
together. Thread t, with g = t / 4 and q = t % 4, holds (PTX ISA, "Matrix Fragments for mma.m16n8k16"):

    a: 4 registers of two cells: rows g, g + 8, g, g + 8; columns 2q, 2q + 1, in the last two registers 8 columns on
    b: 2 registers of two cells: rows 2q, 2q + 1, in the second register 8 rows on; column g
    d: 4 floats: rows g, g, g + 8, g + 8; columns 2q, 2q + 1, 2q, 2q + 1
"""

from __future__ import annotations

from fxprune.codegen.cuda.copies import call
from fxprune.codegen.workload import CellType

ROWS, COLUMNS, STEP = 16, 8, 16
"""Sizes of d, and of the axis that is summed over."""

_PTX: dict[CellType, str] = {"float16": "f16", "bfloat16": "bf16"}

CELL_TYPES = tuple(_PTX)
"""Types of cells that these products take."""

_MULTIPLY = """
__forceinline__ __device__ void fxprune_multiply_{cells}(float* d, const unsigned* a, const unsigned* b) {{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{cells}.{cells}.f32 "
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
_MOVE = """
__forceinline__ __device__ void fxprune_move2(void* to, const void* from) {
  *(unsigned short*)to = *(const unsigned short*)from;
}
"""
_READ = {
    1: """
__forceinline__ __device__ void fxprune_read1_{cells}(float* to, const void* from) {{
  {one}
}}
""",
    2: """
__forceinline__ __device__ void fxprune_read2_{cells}(float* to, const void* from) {{
  unsigned both = *(const unsigned*)from;
  {two}
}}
""",
}
_WIDEN: dict[CellType, dict[str, str]] = {
    "bfloat16": {
        "one": "to[0] = __uint_as_float((unsigned)*(const unsigned short*)from << 16);",
        "two": "to[0] = __uint_as_float(both << 16), to[1] = __uint_as_float(both & 0xffff0000u);",
    },
    "float16": {
        "one": 'asm("cvt.f32.f16 %0, %1;" : "=f"(to[0]) : "h"(*(const unsigned short*)from));',
        "two": 'asm("cvt.f32.f16 %0, %1;" : "=f"(to[0]) : "h"((unsigned short)both));\n'
        '  asm("cvt.f32.f16 %0, %1;" : "=f"(to[1]) : "h"((unsigned short)(both >> 16)));',
    },
}
_WRITE = {
    1: """
__forceinline__ __device__ void fxprune_write1_{cells}(void* to, float x) {{
  unsigned both;
  asm("cvt.rn.{cells}x2.f32 %0, %1, %2;" : "=r"(both) : "f"(x), "f"(x));
  *(unsigned short*)to = (unsigned short)both;
}}
""",
    2: """
__forceinline__ __device__ void fxprune_write2_{cells}(void* to, float low, float high) {{
  unsigned both;
  asm("cvt.rn.{cells}x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  *(unsigned*)to = both;
}}
""",
}


def multiply_call(cells: CellType, d: str, a: str, b: str) -> str:
    """Return the statement d += a x b.

    Args:
        cells: Type of a and b; d is float32.
        d: First of a thread's 4 floats.
        a: First of its 4 registers.
        b: First of its 2 registers.
    """
    name = f"fxprune_multiply_{_PTX[cells]}"
    return call(name, _MULTIPLY.format(cells=_PTX[cells]), *(f"T.address_of({cell})" for cell in (d, a, b)))


def load_call(to: str, source: str) -> str:
    """Return the statement that fetches b of two products from shared memory.

    Args:
        to: First of a thread's 4 registers: b of the first product, b of the second.
        source: What the thread points at: 8 neighbouring cells, aligned to 16 bytes, of row t % 16 of b; of the first
            product in the lower half of the warp, of the second one in the upper half.
    """
    return call("fxprune_load_transposed", _LOAD, f"T.address_of({to})", f"T.address_of({source})")


def move_call(to: str, source: str) -> str:
    """Return the statement that copies one cell of 16 bits: asynchronous copies have 4 bytes at least."""
    return call("fxprune_move2", _MOVE, f"T.address_of({to})", f"T.address_of({source})")


def read_call(cells: CellType, to: str, source: str, width: int) -> str:
    """Return the statement that reads 1 or 2 neighbouring cells into floats."""
    text = _READ[width].format(cells=_PTX[cells], **_WIDEN[cells])
    return call(f"fxprune_read{width}_{_PTX[cells]}", text, f"T.address_of({to})", f"T.address_of({source})")


def write_call(cells: CellType, to: str, *values: str) -> str:
    """Return the statement that rounds 1 or 2 floats to the nearest cells and writes them, neighbours."""
    width = len(values)
    text = _WRITE[width].format(cells=_PTX[cells])
    return call(f"fxprune_write{width}_{_PTX[cells]}", text, f"T.address_of({to})", *values)
