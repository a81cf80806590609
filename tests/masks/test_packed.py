"""Packed masks: one bit a cell, and the same masks again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.masks import PackedMasks, pack_bits, unpack_bits


@given(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**32 - 1))
def test_unpacking_gives_what_was_packed(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    found = unpack_bits(pack_bits(mask), mask.shape)
    assert found.dtype == torch.bool
    assert found.shape == mask.shape
    assert torch.equal(found, mask)


def test_masks_in_any_memory_order_keep_their_cells() -> None:
    mask = (torch.rand(8, 4, 3, 3) < 0.5).to(memory_format=torch.channels_last)
    masks = PackedMasks({"turned": mask, "every_second": mask[::2]})
    assert list(masks) == ["turned", "every_second"]
    assert torch.equal(masks["turned"], mask)
    assert torch.equal(masks["every_second"], mask[::2])


def test_they_are_a_copy_and_readers_get_copies() -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    masks = PackedMasks({"weight": mask})
    mask[0, 0] = False
    masks["weight"][1, 1] = False
    assert bool(masks["weight"].all())


def test_packed_masks_are_not_packed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = PackedMasks({"weight": torch.rand(3, 5) < 0.5})
    monkeypatch.delattr("fxprune.masks.packed.pack_bits")
    again = PackedMasks(masks)
    assert list(again) == ["weight"]
    assert torch.equal(again["weight"], masks["weight"])


def test_a_cell_takes_a_bit() -> None:
    assert pack_bits(torch.ones(10, 10, dtype=torch.bool)).nbytes == 13


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        PackedMasks({})["weight"]
