"""The gathered-column kernel: strict float32 on a GPU's multiply-adders, a GEMM whose columns come from a list.

    for thread block of (block of BM rows, tile of BN pixels):                   # all of them in one launch
        acc[row][pixel] = bias[row]                                              # registers, TM x TN a thread
        for step of BK columns:                                                  # a ring of `stages` in shared memory
            shared W[BK][BM] <- weights of the block          shared X[BK][BN] <- X[offset[column] + base(pixel)]
            for k in BK:  acc += W[k][rows of the thread] x X[k][pixels of the thread]
        Y[row][pixel] = activation(acc + residual)

Activations lie "chwn", the images of a batch innermost, the input with a halo that covers the padding: neighbouring
pixels of one column are neighbours in memory whatever kernel, stride and dilation are. Copies into shared memory are
asynchronous; while one step is computed the next ones are under way.

Every kernel can be written as its twin for the CPU: the same statements, a thread block's threads as loops that end
where threads wait for each other, and their registers as arrays. What no twin shows is the order of the threads, so it
can also run them backwards.
Source: the tile is that of CUTLASS' SIMT GEMM (8 x 8 a thread, 4 x 8 threads a warp); gathered columns as in `Elsen et
al., Fast Sparse ConvNets, CVPR 2020`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from fxprune.codegen.cuda.address import input_address, output_address
from fxprune.codegen.cuda.copies import commit_call, copy_call, wait_call
from fxprune.codegen.cuda.epilogue import activation_statements
from fxprune.codegen.cuda.tile import (
    LARGEST_GRID_Y,
    WARP,
    WARP_ROWS,
    ColumnsSchedule,
    find_schedule_fault,
    load_width,
    store_width,
    tiles_of,
)
from fxprune.codegen.script import Script
from fxprune.codegen.workload import Workload
from fxprune.errors import CodegenError

Form = Literal["device", "twin", "twin_reversed"]


class _Buffers:
    """Names to (elements, dtype) in the order of the function's arguments; 0 elements = known at the call."""

    def __init__(self, work: Workload) -> None:
        self.sizes: dict[str, tuple[int, str]] = {
            "X": (work.x.numel, "float32"),
            "W": (0, "float32"),
            "OFF": (0, "int32"),
            "BEGIN": (0, "int32"),
            "STEPS": (0, "int32"),
            "BASE": (0, "int32"),
            "ROWS": (0, "int32"),
            "BIAS": (0, "float32"),
            "Y": (work.y.numel, "float32"),
        }
        if work.residual:
            self.sizes["RES"] = (work.residual.numel, "float32")


def build_columns_kernel(name: str, work: Workload, schedule: ColumnsSchedule, form: Form = "device") -> str:
    """Return the TVMScript of one layer.

    Arguments of the function, all flat: x, values, offsets, begin, steps, base, rows, bias, y and residual if there is
    one. Blocks and pixel tiles are the axes of the grid, the first of them as `schedule.order` says.

    Args:
        name: Global symbol.
        work: The layer; all layouts are "chwn".
        schedule: Options.
        form: "device" for a GPU; "twin" for a CPU; "twin_reversed" for a CPU, threads from last to first.

    Raises:
        CodegenError: The schedule does not fit the layer.
    """
    fault = find_schedule_fault(work, schedule)
    if fault is not None:
        raise CodegenError(f"Schedule '{schedule}' of {work.shape} has {fault}; choose another one.")
    return _ColumnsWriter(name, work, schedule, form).write()


class _ColumnsWriter:
    """Writes one kernel; the fields are what every part of the text needs."""

    def __init__(self, name: str, work: Workload, schedule: ColumnsSchedule, form: Form) -> None:
        self.name, self.work, self.schedule, self.form = name, work, schedule, form
        self.script = Script()
        self.row_threads = schedule.rows // schedule.thread[0]
        self.pixel_threads = schedule.pixels // schedule.thread[1]
        self.load, self.store = load_width(work), store_width(work)
        per_step = schedule.pixels // self.load
        self.bases = max(1, per_step // schedule.threads)
        """Places of a step's pixels that one thread copies to."""
        self.lines = max(1, schedule.threads // per_step)
        """Columns of a step that all threads copy at once."""

    def write(self) -> str:
        script, schedule = self.script, self.schedule
        tm, tn = schedule.thread
        with script.function(self.name, _Buffers(self.work).sizes), script.loops(*self._grid()):
            script.add("steps: T.let = STEPS[block]", "begin: T.let = BEGIN[block]", "base: T.let = BASE[block]")
            self._shared("As", schedule.stages * schedule.depth * schedule.rows)
            self._shared("Bs", schedule.stages * schedule.depth * schedule.pixels)
            self._registers("acc", tm * tn, "float32")
            self._registers("at", self.bases, "int32")
            for local, cells in (("a", tm), ("b", tn), ("r", self.store)):
                self._registers(local, cells, "float32")
            with self._phase():
                self._find_bases()
                self._start_at_bias()
                for stage in range(schedule.stages - 1):
                    with script.block(f"if {stage} < steps"):
                        self._copy_step(str(stage), str(stage))
                    self._async(commit_call())
            with script.block("for s in T.serial(steps)"):
                self._async(wait_call(schedule.stages - 2))
                self._synchronise()
                with self._phase():
                    ahead = f"(s + {schedule.stages - 1})"
                    with script.block(f"if {ahead} < steps"):
                        self._copy_step(ahead, f"{ahead} % {schedule.stages}")
                    self._async(commit_call())
                    self._multiply()
            with self._phase():
                self._finish()
        return script.text

    # What differs between a GPU and the twin.

    def _grid(self) -> tuple[str, ...]:
        tiles = tiles_of(self.work, self.schedule)
        if self.form != "device":
            return f"for tile in T.serial({tiles})", "for block in T.serial(BEGIN_size)"
        block, tile = ("x", "y") if self.schedule.order == "blocks" else ("y", "x")
        # The launch says how many blocks there are: kernels of one shape are one text whatever their masks are.
        return (
            f'for block in T.thread_binding({LARGEST_GRID_Y}, "blockIdx.{block}")',
            f'for tile in T.thread_binding({tiles}, "blockIdx.{tile}")',
            f'for tx in T.thread_binding({self.schedule.threads}, "threadIdx.x")',
        )

    def _shared(self, name: str, cells: int) -> None:
        scope = "shared" if self.form == "device" else "global"
        self.script.add(f'{name} = T.alloc_buffer(({cells},), "float32", scope="{scope}")')

    def _registers(self, name: str, cells: int, dtype: str) -> None:
        """Allocate cells that every thread has for itself."""
        if self.form == "device":
            self.script.add(f'{name} = T.alloc_buffer(({cells},), "{dtype}", scope="local")')
        else:
            total = cells * self.schedule.threads
            self.script.add(f'{name} = T.alloc_buffer(({total},), "{dtype}", scope="global")')

    def _own(self, name: str, index: str) -> str:
        """Return a thread's own cell."""
        if self.form == "device":
            return f"{name}[{index}]"
        tm, tn = self.schedule.thread
        cells = {"acc": tm * tn, "at": self.bases, "a": tm, "b": tn, "r": self.store}[name]
        return f"{name}[{self._thread} * {cells} + ({index})]"

    @property
    def _thread(self) -> str:
        """Which thread it is; backwards by an exclusive or: what TVM 0.27 made of a difference was wrong."""
        return f"T.bitwise_xor(tx, {self.schedule.threads - 1})" if self.form == "twin_reversed" else "tx"

    @contextmanager
    def _phase(self) -> Iterator[None]:
        """Write what every thread does without waiting for another."""
        if self.form == "device":
            yield
            return
        with self.script.block(f"for tx in T.serial({self.schedule.threads})"):
            yield

    def _async(self, call: str) -> None:
        if self.form == "device":
            self.script.add(call)

    def _synchronise(self) -> None:
        if self.form == "device":
            self.script.add('T.evaluate(T.tvm_storage_sync("shared"))')

    def _copy(self, to: str, source: str, width: int) -> None:
        """Copy `width` neighbouring cells into shared memory; both texts end in an open bracket's index."""
        if self.form == "device":
            self.script.add(copy_call(f"{to}]", f"{source}]", 4 * width))
            return
        with self.script.block(f"for v in T.serial({width})"):
            self.script.add(f"{to} + v] = {source} + v]")

    def _unroll(self, name: str, count: int) -> str:
        return f"for {name} in T.{'unroll' if self.form == 'device' else 'serial'}({count})"

    def _vector(self, count: int) -> str:
        return f"for v in T.{'vectorized' if self.form == 'device' and count > 1 else 'serial'}({count})"

    # What every thread does.

    @property
    def _row_thread(self) -> str:
        """Which rows of the tile are the thread's, in [0, BM / TM)."""
        across = min(WARP_ROWS, self.row_threads)
        along = WARP // across
        warps = self.pixel_threads // along
        return f"({self._thread} // {WARP * warps} * {across} + {self._thread} % {WARP} // {along})"

    @property
    def _pixel_thread(self) -> str:
        """Which pixels of the tile are the thread's, in [0, BN / TN)."""
        along = WARP // min(WARP_ROWS, self.row_threads)
        warps = self.pixel_threads // along
        return f"({self._thread} // {WARP} % {warps} * {along} + {self._thread} % {along})"

    def _row(self, index: str) -> str:
        """Return the row in the tile of the thread's row `index`."""
        return f"({index} // 4 * {4 * self.row_threads} + {self._row_thread} * 4 + {index} % 4)"

    def _find_bases(self) -> None:
        """Find the first tap of every pixel that the thread copies, in units of a copy's width."""
        per_step, last = self.schedule.pixels // self.load, self.work.shape.pixels // self.load - 1
        with self.script.block(self._unroll("i", self.bases)):
            place = f"({self._thread} + i * {self.schedule.threads}) % {per_step}"
            self.script.add(f"q: T.let = T.min(tile * {per_step} + {place}, {last})")
            self.script.add(f"{self._own('at', 'i')} = {input_address(self.work, 'q', self.load)}")

    def _start_at_bias(self) -> None:
        (tm, tn), rows = self.schedule.thread, self.schedule.rows
        with self.script.loops(self._unroll("i", tm), self._unroll("j", tn)):
            self.script.add(f"{self._own('acc', f'i * {tn} + j')} = BIAS[block * {rows} + {self._row('i')}]")

    def _copy_step(self, step: str, stage: str) -> None:
        """Start the copies of one step's weights and columns."""
        script, schedule = self.script, self.schedule
        cells = schedule.depth * schedule.rows
        vectors, threads = cells // 4, schedule.threads
        with script.block(self._unroll("i", -(-vectors // threads))):
            script.add(f"c: T.let = {self._thread} + i * {threads}")
            with script.loops(*([f"if c < {vectors}"] if vectors % threads else [])):
                weight = f"W[base + {step} * {cells} + c * 4"
                self._copy(f"As[{stage} * {cells} + c * 4", weight, 4)
        per_step = schedule.pixels // self.load
        with script.loops(self._unroll("i", schedule.depth // self.lines), self._unroll("j", self.bases)):
            script.add(f"k: T.let = i * {self.lines} + {self._thread} // {per_step if self.lines > 1 else threads}")
            place = f"(({self._thread} + j * {threads}) % {per_step}) * {self.load}"
            to = f"Bs[({stage} * {schedule.depth} + k) * {schedule.pixels} + {place}"
            column = f"OFF[begin + {step} * {schedule.depth} + k]"
            self._copy(to, f"X[{self._own('at', 'j')} * {self.load} + {column}", self.load)

    def _multiply(self) -> None:
        """Multiply one step out of shared memory."""
        script, schedule = self.script, self.schedule
        tm, tn = schedule.thread
        line = f"(s % {schedule.stages} * {schedule.depth} + k)"
        with script.block(self._unroll("k", schedule.depth)):
            with script.loops(self._unroll("i", tm // 4), self._vector(4)):
                place = f"i * {4 * self.row_threads} + {self._row_thread} * 4 + v"
                script.add(f"{self._own('a', 'i * 4 + v')} = As[{line} * {schedule.rows} + {place}]")
            with script.loops(self._unroll("j", tn // 4), self._vector(4)):
                place = f"j * {4 * self.pixel_threads} + {self._pixel_thread} * 4 + v"
                script.add(f"{self._own('b', 'j * 4 + v')} = Bs[{line} * {schedule.pixels} + {place}]")
            with script.loops(self._unroll("i", tm), self._unroll("j", tn)):
                cell = self._own("acc", f"i * {tn} + j")
                script.add(f"{cell} = {cell} + {self._own('a', 'i')} * {self._own('b', 'j')}")

    def _finish(self) -> None:
        """Add the residual, activate and store the thread's cells of rows and pixels that exist."""
        script, schedule, work, width = self.script, self.schedule, self.work, self.store
        tm, tn = schedule.thread
        chunks = self._unroll("j", tn // 4), self._unroll("u", 4 // width)
        with script.loops(*chunks):
            within = f"(j * {4 * self.pixel_threads} + {self._pixel_thread} * 4) // {width} + u"
            script.add(f"q: T.let = tile * {schedule.pixels // width} + {within}")
            with script.block(f"if q < {work.shape.pixels // width}"):
                script.add(f"y: T.let = {output_address(work, work.y, 'q', width)}")
                if work.residual is not None:
                    script.add(f"z: T.let = {output_address(work, work.residual, 'q', width)}")
                with script.block(self._unroll("i", tm)):
                    script.add(f"row: T.let = ROWS[block * {schedule.rows} + {self._row('i')}]")
                    with script.block("if row >= 0"):
                        self._store_cells(f"i * {tn} + j * 4 + u * {width} + v")

    def _store_cells(self, index: str) -> None:
        script, work, width = self.script, self.work, self.store
        cell = self._own("acc", index)
        if work.residual is not None:
            plane = work.residual.strides[1] // width
            with script.block(self._vector(width)):
                script.add(f"{self._own('r', 'v')} = RES[(row * {plane} + z) * {width} + v]")
        lines = [f"{cell} = {cell} + {self._own('r', 'v')}"] if work.residual is not None else []
        lines += activation_statements(cell, work.activation, work.activation_args)
        if lines:
            with script.block(self._unroll("v", width)):
                script.add(*lines)
        plane = work.y.strides[1] // width
        with script.block(self._vector(width)):
            script.add(f"Y[(row * {plane} + y) * {width} + v] = {cell}")
