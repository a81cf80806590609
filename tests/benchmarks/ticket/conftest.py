"""What the tests of the ticket experiment share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def torch_threads() -> None:
    """Use one thread, as the seeds do: threads that wait for each other make tiny networks slow."""
    torch.set_num_threads(1)
