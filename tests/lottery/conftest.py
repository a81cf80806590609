"""What the tests of the lottery share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def torch_threads() -> None:
    """Use one thread: sums depend on the number, programs that are killed have one, and tiny nets are faster so."""
    torch.set_num_threads(1)
