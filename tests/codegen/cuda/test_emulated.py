"""The CUDA that goes to nvcc, run on a CPU in changing orders and with copies that arrive as late as they may."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.codegen.cuda.emulated import Emulated
from tests.codegen.cuda.test_columns import CASES, SCHEDULES

_QUICK = ("several_tiles", "columns_13_negative", "halos_4", "batch_2", "flat_residual", "no_cells", "activation_gelu")
_ALL = {**CASES, **SCHEDULES}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated({name: _ALL[name] for name in _QUICK}, tmp_path_factory.mktemp("emulated"))


@pytest.mark.parametrize("name", _QUICK)
def test_the_cuda_text_equals_torch(emulated: Emulated, name: str) -> None:
    emulated.check(name)


@pytest.mark.parametrize("line", ["fxprune_wait0();", "__syncthreads();"])
def test_a_kernel_that_does_not_wait_is_seen(tmp_path: Path, line: str) -> None:
    broken = Emulated({"several_tiles": CASES["several_tiles"]}, tmp_path, (f"    {line}\n", ""))
    with pytest.raises(AssertionError, match="several_tiles"):
        broken.check("several_tiles")


@pytest.mark.slow
def test_every_cuda_text_equals_torch(tmp_path: Path) -> None:
    everything = Emulated(_ALL, tmp_path)
    for name in _ALL:
        everything.check(name)
