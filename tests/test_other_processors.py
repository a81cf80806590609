"""A network compiled for a processor with AVX2 and no wider vectors: its code runs here and is exact."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune.codegen import build
from fxprune.codegen.host import missing_features
from fxprune.codegen.target import CpuTarget, parse_target
from tests.compiling import QUICK, TOLERANCE, cells, draw_masks, everything, largest_difference, row_groups, run_masked

HASWELL = {"kind": "llvm", "mcpu": "haswell"}


class _Net(nn.Module):
    """Layers for every kernel family: row groups, a pool, a depthwise layer, single cells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.second, self.third = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 48, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.first(x)), 3, 2, 1)
        x = torch.relu(self.second(F.hardswish(self.depthwise(x))) + x)
        return F.silu(self.third(x))


def _needs_avx2() -> None:
    found = parse_target(HASWELL, 1)
    if found.machine != parse_target("cpu", 1).machine or missing_features(found.machine, found.features):
        pytest.skip("this machine has no AVX2")


@dataclass(frozen=True, eq=False)
class _Compiled:
    """A compiled network, an input, its exact output, the functions of its library and the library's bytes."""

    module: fxprune.CompiledModule
    x: torch.Tensor
    expected: object
    functions: tuple[str, ...]
    binary: bytes


@pytest.fixture(scope="module")
def compiled() -> _Compiled:
    _needs_avx2()
    torch.manual_seed(0)
    model, x = _Net().eval(), torch.randn(1, 32, 24, 24)
    masks = draw_masks(model, row_groups(16, 0.2), everything, row_groups(16, 0.2), cells(0.04))
    built: list[tuple[tuple[str, ...], bytes]] = []

    def keep(scripts: Mapping[str, str], target: CpuTarget) -> bytes:
        built.append((tuple(scripts), original(scripts, target)))
        return built[-1][1]

    original = build.build_library
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_library", keep)
        patch.setattr("fxprune.lowering.copies._GBPS", 1e6)  # copies cost nothing: every layer in its own best order
        made = fxprune.compile(model, masks, HASWELL, example_inputs=x, options=QUICK)
    return _Compiled(made, x, run_masked(model, masks, x), *built[0])


def test_every_family_is_there(compiled: _Compiled) -> None:
    kernels = [layer.kernel for layer in compiled.module.report.layers]
    assert [kernel.split()[0] for kernel in kernels] == ["rows", "depthwise", "rows", "pixels"]
    assert kernels[0].startswith("rows 8x"), "eight float32 fill a vector of AVX2"
    assert any(name.startswith("pool") for name in compiled.functions)


def test_avx2_code_is_exact(compiled: _Compiled) -> None:
    assert largest_difference(compiled.module(compiled.x), compiled.expected) <= TOLERANCE


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_the_code_holds_no_wider_vectors(compiled: _Compiled, tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(compiled.binary)
    text = subprocess.run(["objdump", "-d", tmp_path / "model.so"], capture_output=True, text=True, check=True).stdout
    assert sum("vfmadd" in line and "%ymm" in line for line in text.splitlines()) > 100
    assert "%zmm" not in text
    assert "%ymm16" not in text


def test_a_network_for_another_kind_of_machine_is_refused() -> None:
    wanted = {"kind": "llvm", "mtriple": "riscv64-linux-gnu", "mcpu": "generic-rv64"}
    with pytest.raises(fxprune.UnsupportedError, match="The target is a processor of kind riscv64, this machine is"):
        fxprune.compile(_Net().eval(), None, wanted, example_inputs=torch.randn(1, 32, 24, 24))
