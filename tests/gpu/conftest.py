"""The GPU that all tests of this folder need."""

from __future__ import annotations

import pytest
import torch

from fxprune.codegen.cuda.device import find_gpu
from fxprune.codegen.cuda.target import find_arch
from fxprune.errors import UnsupportedError


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """Return the GPU, or skip the test with the reason why there is none."""
    try:
        return find_gpu()
    except UnsupportedError as error:
        pytest.skip(f"needs a GPU: {error}")


@pytest.fixture(scope="session")
def arch(gpu: torch.device) -> str:
    """Return the GPU's architecture."""
    return find_arch(torch.cuda.get_device_capability(gpu))
