"""What the tests of programs for GPUs share."""

from __future__ import annotations

import pytest


@pytest.fixture
def only_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no tile in strict float32."""
    monkeypatch.setattr("fxprune.codegen.cuda.schedules.TILES", ())
