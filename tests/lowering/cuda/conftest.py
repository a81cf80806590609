"""What the tests of programs for GPUs share."""

from __future__ import annotations

import pytest

from fxprune.codegen.cuda.build import CudaLibrary


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the machine code out: the twins run, or the text does, or only the choice matters."""
    monkeypatch.setattr("fxprune.lowering.cuda.lower.build_or_find", lambda _, arch: CudaLibrary(arch, (), {}))


@pytest.fixture
def only_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no tile in strict float32."""
    monkeypatch.setattr("fxprune.codegen.cuda.schedules.TILES", ())
