"""What is brought to the CPU to be compiled: the same object where nothing has to move."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.host import on_host


def test_what_is_on_the_cpu_stays_the_same_object() -> None:
    model, x = nn.Linear(2, 3), torch.randn(2)
    assert on_host(model) is model
    assert on_host({"a": [x]})["a"][0] is x


@pytest.mark.parametrize("value", [None, "masks.safetensors", (3, {"x": 2.5})])
def test_plain_values_are_kept(value: object) -> None:
    assert on_host(value) == value


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_copied_and_not_changed() -> None:
    model = nn.Linear(2, 3).cuda()
    moved = on_host(model)
    assert moved is not model
    assert (moved.weight.device.type, model.weight.device.type) == ("cpu", "cuda")
    assert on_host([torch.ones(1, device="cuda")])[0].device.type == "cpu"
