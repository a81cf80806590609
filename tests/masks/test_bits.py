"""Masks at one bit a cell come back as they were."""

from __future__ import annotations

import pytest
import torch

from fxprune.masks.bits import MaskBits

SHAPES = [(), (1,), (8,), (9,), (0, 3), (5, 3, 3, 3), (16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_comes_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.5
    found = MaskBits({"a": mask, "b": ~mask}).unpack()
    assert list(found) == ["a", "b"]
    assert torch.equal(found["a"], mask)
    assert torch.equal(found["b"], ~mask)
    assert found["a"].dtype == torch.bool


def test_strides_do_not_matter() -> None:
    mask = (torch.rand(4, 6, 3, 3) < 0.5).to(memory_format=torch.channels_last)
    assert torch.equal(MaskBits({"a": mask}).unpack()["a"], mask)


def test_nothing_is_shared() -> None:
    mask = torch.ones(10, dtype=torch.bool)
    bits = MaskBits({"a": mask})
    mask[0] = False
    bits.unpack()["a"][1] = False
    assert bool(bits.unpack()["a"].all())


def test_a_cell_takes_a_bit() -> None:
    assert MaskBits({"a": torch.ones(80, 10, dtype=torch.bool), "b": torch.ones(3, dtype=torch.bool)}).size_bytes == 101
