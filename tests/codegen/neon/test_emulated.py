"""NEON code of every kernel family, run under user-mode emulation, against torch in float64."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fxprune.codegen.cpu.pool import build_pool_kernel
from fxprune.codegen.cpu.stage import build_stage_kernel
from fxprune.codegen.kernel import LayerKernel
from fxprune.codegen.pixel_schedules import pixels_candidates
from fxprune.codegen.row_schedules import rows_candidates
from fxprune.codegen.schedules import Candidate, depthwise_candidates
from fxprune.codegen.winograd_schedules import winograd_candidates
from tests.codegen import pooling, test_depthwise, test_pixels, test_pool, test_rows, test_stage, test_winograd
from tests.codegen.neon.emulator import Addressed, Argument, Array, Emulated, aarch64, needs_emulator
from tests.codegen.suite import (
    TOLERANCE,
    Buffers,
    Case,
    Tensors,
    check_halo,
    conv,
    draw_pattern,
    draw_tensors,
    full_pattern,
    in_order,
    largest_error,
    make,
    poisoned,
    view,
)

pytestmark = needs_emulator

OBJDUMP = "aarch64-linux-gnu-objdump"


def _best(case: Case, found: Iterator[Candidate]) -> Case:
    """Return a case with the schedule that comes first."""
    return replace(case, schedule=next(found).schedule)


def _chosen() -> dict[str, Case]:
    """Return a layer of each family with the schedule that is chosen for NEON."""
    target, shape = aarch64(), conv(12, 40, (9, 10), 3, padding=1)
    dense = Case(shape, test_winograd.FOUR, full_pattern(shape), residual=True)
    rows = Case(shape, test_rows.WIDE, draw_pattern(shape, (16, 8)), residual=True, activation="relu")
    pixels = Case(shape, test_pixels.LOW, draw_pattern(shape, (2, 1)), activation="silu")
    depthwise = test_depthwise.CASES["mobilenet"]
    return {
        "rows_chosen": _best(rows, rows_candidates(rows.workload(), rows.pattern, target)),
        "pixels_chosen": _best(pixels, pixels_candidates(pixels.workload(), pixels.pattern, target)),
        "depthwise_chosen": _best(depthwise, depthwise_candidates(depthwise.workload(), target)),
        "winograd_chosen": _best(dense, winograd_candidates(dense.workload(), target)),
    }


_FAMILIES: dict[str, tuple[Mapping[str, Case], Sequence[str]]] = {
    "rows": (
        test_rows.CASES,
        ("primes", "conv_groups_4", "kernel_7_stride_2", "scattered_halos", "axes_3", "ragged_5", "prefetch_line"),
    ),
    "pixels": (test_pixels.CASES, ("full_mask", "stride_2", "conv_groups_2", "padding_uneven", "batch_5")),
    "depthwise": (test_depthwise.CASES, ("stride", "dilated", "odd", "residual")),
    "winograd": (test_winograd.CASES, ("outputs_5", "stem_narrow", "rows_ragged", "halos")),
}
"""All cases of each family of layer kernels, and the names of those that the fast tests run."""

_POOLS = ("resnet", "odd_channels", "wide_window", "mean")


def _quick() -> dict[str, Case]:
    named = {f"{family}_{name}": cases[name] for family, (cases, names) in _FAMILIES.items() for name in names}
    return named | _chosen()


def _all() -> dict[str, Case]:
    named = {f"{family}_{name}": cases[name] for family, (cases, _) in _FAMILIES.items() for name in cases}
    return named | _chosen()


class _Checked:
    """Cases and pools, all run in one emulated process."""

    def __init__(
        self, cases: Mapping[str, Case], pools: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._tensors = {name: draw_tensors(case, name) for name, case in cases.items()}
        self._cases, self._pools = cases, pools
        self._kernels = {name: make(case, self._tensors[name]) for name, case in cases.items()}
        scripts = {name: kernel.script(name) for name, kernel in self._kernels.items()}
        scripts |= {f"pool_{name}": build_pool_kernel(f"pool_{name}", test_pool.CASES[name]) for name in pools}
        self.emulated = Emulated(scripts, folder, monkeypatch)

    def errors(self) -> dict[str, float]:
        """Run everything; return the largest error of each as a share of its largest output."""
        layers = {name: _arguments(kernel, self._tensors[name]) for name, kernel in self._kernels.items()}
        drawn = {name: pooling.draw(test_pool.CASES[name]) for name in self._pools}
        calls: list[tuple[str, Sequence[Argument]]] = [*layers.items()]
        calls += [(f"pool_{name}", [one.numpy() for one in test_pool.buffers(name, x)]) for name, x in drawn.items()]
        found = dict(zip((name for name, _ in calls), self.emulated.run(calls), strict=True))
        return {name: self._error(name, found[name]) for name in layers} | {
            f"pool_{name}": largest_error(
                test_pool.inside(name, torch.from_numpy(found[f"pool_{name}"][-1])),
                pooling.expect(test_pool.CASES[name], x.double(), ceil=name in test_pool.CEIL),
            )
            for name, x in drawn.items()
        }

    def _error(self, name: str, found: Sequence[Array]) -> float:
        kernel, case = self._kernels[name], self._cases[name]
        y = torch.from_numpy(found[-2 if case.residual else -1])
        check_halo(y, kernel.work.y)
        return largest_error(in_order(kernel, y), self._tensors[name].reference(case))


def _arguments(kernel: LayerKernel, tensors: Tensors) -> list[Argument]:
    """Return the arguments of a kernel in its order."""
    buffers = Buffers.of(kernel, tensors)
    ends = [one.numpy() for one in (buffers.y, buffers.residual) if one is not None]
    scratch = [] if buffers.scratch is None else [buffers.scratch.numpy()]
    return [buffers.x.numpy(), *map(Addressed, [*kernel.arrays, *scratch]), *ends]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Checked]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield _Checked(_quick(), _POOLS, tmp_path_factory.mktemp("neon"), monkeypatch)


def test_neon_code_of_every_family_equals_torch(checked: _Checked) -> None:
    errors = checked.errors()
    assert {name.split("_")[0] for name in errors} == {"rows", "pixels", "depthwise", "winograd", "pool"}
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


def test_neon_code_of_the_copy_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = test_stage.LAYOUTS
    emulated = Emulated({name: build_stage_kernel(name, y, 2) for name, y in layouts.items()}, tmp_path, monkeypatch)
    xs = {name: torch.randn(y.batch, y.channels, *y.spatial) for name, y in layouts.items()}
    calls = [(name, [xs[name].flatten().numpy(), poisoned(y.numel).numpy()]) for name, y in layouts.items()]
    for (name, x), (_, found) in zip(xs.items(), emulated.run(calls), strict=True):
        assert torch.equal(view(torch.from_numpy(found), layouts[name]), x), name


@pytest.mark.skipif(shutil.which(OBJDUMP) is None, reason=f"{OBJDUMP} is not installed")
def test_the_library_holds_multiply_adds_of_neon(checked: _Checked, tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(checked.emulated.binary)
    text = subprocess.run([OBJDUMP, "-d", tmp_path / "model.so"], capture_output=True, text=True, check=True).stdout
    assert "file format elf64-littleaarch64" in text
    assert sum("fmla" in line and ".4s" in line for line in text.splitlines()) > 100


def test_a_write_outside_an_argument_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _FAMILIES["depthwise"][0]["residual"]
    tensors = draw_tensors(case, "broken")
    kernel = make(case, tensors)
    script = kernel.script("broken").replace("Y[pos[2]", f"Y[{kernel.work.y.numel} - 1 + pos[2]")
    emulated = Emulated({"broken": script}, tmp_path, monkeypatch)
    with pytest.raises(AssertionError, match="broken: written outside an argument"):
        emulated.run([("broken", _arguments(kernel, tensors))])


@pytest.mark.slow
def test_all_neon_code_equals_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = _Checked(_all(), list(test_pool.CASES), tmp_path, monkeypatch).errors()
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}
