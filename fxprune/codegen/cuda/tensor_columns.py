"""The gathered-column kernel on tensor cores: cells of 16 bits or in TF32, sums in float32, columns from a list.

    for thread block of (block of BM rows, tile of BN pixels):                   # all of them in one launch
        acc[row][pixel] = bias[row]                                              # registers, a WM x WN rectangle a warp
        for step of BK columns:                                                  # a ring of `stages` in shared memory
            shared W[BK / K][BM / 16][thread][4 registers] <- weights of the block, in fragment order
            shared X[BK][BN + 8] <- X[offset[column] + base(pixel)]
            for K columns of BK:  acc += W x X                                   # products of 16 x 8 x K
        Y[row][pixel] = activation(acc + residual)

A product has K = 16 columns of 16-bit cells, or 8 of float32, which is rounded to TF32 on its way out of shared memory.
It differs from the kernel of `columns` in what a warp does with a step; where tensors lie, the table of blocks and the
ring are the same. The offsets of the next step are fetched while this one is computed: a step takes less time than the
way to the L2 cache and back. Weights pass through shared memory though every thread could read its own from the cache:
the warps side by side along the pixels need the same ones, and a copy under way takes no register.

Shared memory stays within what every launch has without asking for more, which leaves two thread blocks or more for a
multiprocessor to change between.
Source: fragments as in the PTX ISA (see `products`); the ring as in CUTLASS' `MmaMultistage`.
"""

from __future__ import annotations

from fxprune.codegen.cuda.address import input_address, output_address
from fxprune.codegen.cuda.copies import commit_call, copy_call, wait_call
from fxprune.codegen.cuda.epilogue import activation_statements
from fxprune.codegen.cuda.products import (
    COLUMNS,
    ROWS,
    load_call,
    load_rounded_call,
    move_call,
    multiply_call,
    read_call,
    write_call,
)
from fxprune.codegen.cuda.tensor_tile import (
    TensorSchedule,
    find_tensor_fault,
    held_offsets,
    pair_width,
    weight_vectors,
)
from fxprune.codegen.cuda.tile import LARGEST_GRID_Y, MOST_BYTES, WARP, load_width, tiles_of
from fxprune.codegen.script import Script
from fxprune.codegen.workload import Workload
from fxprune.errors import CodegenError

_WORDS = MOST_BYTES // 4
"""Registers of a thread's part of a product's weights."""


def build_tensor_kernel(name: str, work: Workload, schedule: TensorSchedule) -> str:
    """Return the TVMScript of one layer.

    Arguments of the function, all flat: x, values, offsets, begin, steps, base, rows, bias, y and residual if there is
    one; activations are cells of the layer's type, values are words, `base` counts in words, bias is float32.

    Args:
        name: Global symbol.
        work: The layer; all layouts are "chwn".
        schedule: Options.

    Raises:
        CodegenError: The schedule does not fit the layer.
    """
    fault = find_tensor_fault(work, schedule)
    if fault is not None:
        raise CodegenError(f"Schedule '{schedule}' of {work.shape} has {fault}; choose another one.")
    return _TensorWriter(name, work, schedule).write()


def _buffers(work: Workload) -> dict[str, tuple[int, str]]:
    """Return names to (elements, dtype) in the order of the function's arguments; 0 elements = known at the call."""
    cell = _cell_text(work)
    sizes = {"X": (work.x.numel, cell), "W": (0, "uint32")}
    sizes |= dict.fromkeys(("OFF", "BEGIN", "STEPS", "BASE", "ROWS"), (0, "int32"))
    sizes |= {"BIAS": (0, "float32"), "Y": (work.y.numel, cell)}
    return sizes | ({"RES": (work.residual.numel, cell)} if work.residual else {})


def _cell_text(work: Workload) -> str:
    """Return the type of a buffer's cells in TVMScript: 16 bits are handed on as they are."""
    return "uint16" if work.x.cell_bytes == 2 else work.x.cells


class _TensorWriter:
    """Writes one kernel; the fields are what every part of the text needs."""

    def __init__(self, name: str, work: Workload, schedule: TensorSchedule) -> None:
        self.name, self.work, self.schedule = name, work, schedule
        self.script = Script()
        self.down, self.across = schedule.warp[0] // ROWS, schedule.warp[1] // COLUMNS
        """Products of a warp along the rows and along the pixels."""
        self.load, self.pair = load_width(work), pair_width(work)
        self.per_line = schedule.pixels // self.load
        """Copies of a column of a step."""
        self.bases = max(1, self.per_line // schedule.threads)
        """Places of a step's pixels that one thread copies to."""
        self.lines = max(1, schedule.threads // self.per_line)
        """Columns of a step that all threads copy at once."""
        warps = schedule.pixels // schedule.warp[1]
        self.lane = f"(tx % {WARP})"
        self.first_row = f"(tx // {WARP * warps} * {schedule.warp[0]})"
        self.first_pixel = f"(tx // {WARP} % {warps} * {schedule.warp[1]})"

    def write(self) -> str:
        script, stages = self.script, self.schedule.stages
        with script.function(self.name, _buffers(self.work)), script.loops(*self._grid()):
            script.add("steps: T.let = STEPS[block]", "begin: T.let = BEGIN[block]", "base: T.let = BASE[block]")
            self._allocate()
            self._find_bases()
            self._start_at_bias()
            self._fetch_offsets("0")
            for stage in range(stages - 1):
                with script.block(f"if {stage} < steps"):
                    self._copy_step(str(stage), str(stage))
                script.add(commit_call())
            with script.block("for s in T.serial(steps)"):
                script.add(wait_call(stages - 2), 'T.evaluate(T.tvm_storage_sync("shared"))')
                ahead = f"(s + {stages - 1})"
                with script.block(f"if {ahead} < steps"):
                    self._copy_step(ahead, f"{ahead} % {stages}")
                script.add(commit_call())
                self._multiply(f"s % {stages}")
            self._finish()
        return script.text

    def _grid(self) -> tuple[str, ...]:
        block, tile = ("x", "y") if self.schedule.order == "blocks" else ("y", "x")
        # The launch says how many blocks there are: kernels of one shape are one text whatever their masks are.
        return (
            f'for block in T.thread_binding({LARGEST_GRID_Y}, "blockIdx.{block}")',
            f'for tile in T.thread_binding({tiles_of(self.work, self.schedule)}, "blockIdx.{tile}")',
            f'for tx in T.thread_binding({self.schedule.threads}, "threadIdx.x")',
        )

    def _allocate(self) -> None:
        schedule = self.schedule
        lines = schedule.stages * schedule.depth
        cells = {
            "As": (lines * schedule.rows * schedule.cell_bytes // 4, "uint32", "shared"),
            "Bs": (lines * schedule.pitch, _cell_text(self.work), "shared"),
            "acc": (self.down * self.across * 4, "float32", "local"),
            "at": (self.bases, "int32", "local"),
            "off": (held_offsets(self.work, schedule), "int32", "local"),
            "a": (self.down * _WORDS, "uint32", "local"),
            "b": (self.across * 2, "uint32", "local"),
            "r": (2, "float32", "local"),
            "rows": (self.down * 2, "int32", "local"),
        }
        for name, (count, dtype, scope) in cells.items():
            self.script.add(f'{name} = T.alloc_buffer(({count},), "{dtype}", scope="{scope}")')
        # TVM cuts a buffer behind the last cell that it sees used; it does not see how far a product's reach.
        for name in ("Bs", "b"):
            count, dtype, _ = cells[name]
            self.script.add(f"{name}[{count - 1}] = T.{dtype}(0)")

    def _find_bases(self) -> None:
        """Find the first tap of every pixel that the thread copies, in units of a copy's width."""
        last = self.work.shape.pixels // self.load - 1
        with self.script.block(f"for i in T.unroll({self.bases})"):
            place = f"(tx + i * {self.schedule.threads}) % {self.per_line}"
            self.script.add(f"q: T.let = T.min(tile * {self.per_line} + {place}, {last})")
            self.script.add(f"at[i] = {input_address(self.work, 'q', self.load)}")

    def _start_at_bias(self) -> None:
        with self.script.loops(f"for i in T.unroll({self.down})", "for h in T.unroll(2)"):
            self.script.add(f"bias: T.let = BIAS[{self._row('i', 'h')}]")
            with self.script.loops(f"for j in T.unroll({self.across})", "for e in T.unroll(2)"):
                self.script.add(f"acc[(i * {self.across} + j) * 4 + h * 2 + e] = bias")

    def _row(self, i: str, lower: str) -> str:
        """Return the lane of the table that belongs to the thread's row in the upper or lower half of a product."""
        within = f"{self.first_row} + {i} * {ROWS} + {lower} * {ROWS // 2} + {self.lane} // 4"
        return f"block * {self.schedule.rows} + {within}"

    def _fetch_offsets(self, step: str) -> None:
        """Fetch the offsets of the columns that the thread copies in a step, none behind the end of the list."""
        with self.script.loops(f"if {step} < steps", f"for i in T.unroll({self.schedule.depth // self.lines})"):
            self.script.add(f"off[i] = OFF[begin + {step} * {self.schedule.depth} + {self._line('i')}]")

    def _line(self, i: str) -> str:
        """Return which column of a step the thread copies in turn `i`."""
        return f"{i} * {self.lines} + tx // {self.per_line}" if self.lines > 1 else i

    def _copy_step(self, step: str, stage: str) -> None:
        """Start the copies of one step's weights and columns, then fetch the offsets of the next step."""
        script, schedule = self.script, self.schedule
        vectors, threads = weight_vectors(schedule), schedule.threads
        words = vectors * _WORDS
        with script.block(f"for i in T.unroll({-(-vectors // threads)})"):
            script.add(f"c: T.let = tx + i * {threads}")
            with script.loops(*([f"if c < {vectors}"] if vectors % threads else [])):
                to, source = f"As[{stage} * {words} + c * {_WORDS}]", f"W[base + {step} * {words} + c * {_WORDS}]"
                script.add(copy_call(to, source, MOST_BYTES))
        with script.loops(f"for i in T.unroll({schedule.depth // self.lines})", f"for j in T.unroll({self.bases})"):
            place = f"((tx + j * {threads}) % {self.per_line}) * {self.load}"
            to = f"Bs[({stage} * {schedule.depth} + {self._line('i')}) * {schedule.pitch} + {place}]"
            source = f"X[at[j] * {self.load} + off[i]]"
            size = schedule.cell_bytes * self.load
            script.add(copy_call(to, source, size) if size > 2 else move_call(to, source))
        self._fetch_offsets(f"({step} + 1)")

    def _multiply(self, stage: str) -> None:
        """Multiply one step out of shared memory."""
        script, schedule, lane = self.script, self.schedule, self.lane
        with script.block(f"for k in T.unroll({schedule.depth // schedule.step})"):
            with script.loops(f"for i in T.unroll({self.down})", f"for v in T.vectorized({_WORDS})"):
                block = f"({stage} * {schedule.depth // schedule.step} + k) * {schedule.rows // ROWS}"
                part = f"({block} + {self.first_row} // {ROWS} + i) * {WARP} + {lane}"
                script.add(f"a[i * {_WORDS} + v] = As[({part}) * {_WORDS} + v]")
            self._load_pixels(f"{stage} * {schedule.depth} + k * {schedule.step}")
            with script.loops(f"for i in T.unroll({self.down})", f"for j in T.unroll({self.across})"):
                place = f"acc[(i * {self.across} + j) * 4]"
                script.add(multiply_call(self.work.x.cells, place, f"a[i * {_WORDS}]", "b[j * 2]"))

    def _load_pixels(self, first: str) -> None:
        """Fetch the columns of a product from line `first` on, for all pixels of the warp."""
        script, pitch, lane = self.script, self.schedule.pitch, self.lane
        if self.schedule.cell_bytes == 4:
            with script.block(f"for j in T.unroll({self.across})"):
                pixel = f"{self.first_pixel} + j * {COLUMNS} + {lane} // 4"
                script.add(load_rounded_call("b[j * 2]", f"Bs[({first} + {lane} % 4) * {pitch} + {pixel}]", pitch))
            return
        with script.block(f"for j in T.unroll({self.across // 2})"):
            line = f"{first} + {lane} % {self.schedule.step}"
            pixel = f"{self.first_pixel} + j * {2 * COLUMNS} + {lane} // {self.schedule.step} * {COLUMNS}"
            script.add(load_call("b[j * 4]", f"Bs[({line}) * {pitch} + {pixel}]"))

    def _finish(self) -> None:
        """Add the residual, activate and store the thread's cells of rows and pixels that exist."""
        script, schedule, work, width = self.script, self.schedule, self.work, self.pair
        with script.loops(f"for i in T.unroll({self.down})", "for h in T.unroll(2)"):
            script.add(f"rows[i * 2 + h] = ROWS[{self._row('i', 'h')}]")
        with script.loops(f"for j in T.unroll({self.across})", f"for u in T.unroll({2 // width})"):
            within = f"({self.first_pixel} + j * {COLUMNS} + {self.lane} % 4 * 2) // {width} + u"
            script.add(f"q: T.let = tile * {schedule.pixels // width} + {within}")
            with script.block(f"if q < {work.shape.pixels // width}"):
                script.add(f"y: T.let = {output_address(work, work.y, 'q', width)}")
                if work.residual is not None:
                    script.add(f"z: T.let = {output_address(work, work.residual, 'q', width)}")
                with script.loops(f"for i in T.unroll({self.down})", "for h in T.unroll(2)"):
                    script.add("row: T.let = rows[i * 2 + h]")
                    with script.block("if row >= 0"):
                        self._store_cells(f"(i * {self.across} + j) * 4 + h * 2 + u")

    def _store_cells(self, first: str) -> None:
        script, work, width = self.script, self.work, self.pair
        if work.residual is not None:
            plane = work.residual.strides[1] // width
            script.add(read_call(work.x.cells, "r[0]", f"RES[(row * {plane} + z) * {width}]", width))
        for v in range(width):
            cell = f"acc[{first} + {v}]"
            if work.residual is not None:
                script.add(f"{cell} = {cell} + r[{v}]")
            script.add(*activation_statements(cell, work.activation, work.activation_args))
        plane = work.y.strides[1] // width
        values = [f"acc[{first} + {v}]" for v in range(width)]
        script.add(write_call(work.x.cells, f"Y[(row * {plane} + y) * {width}]", *values))
