"""The pool of large pages: zeroed, aligned pieces that do not overlap."""

from __future__ import annotations

import gc

import pytest
import torch

from fxprune.codegen.memory import Pool, rounded

CACHE_LINE = 64


def test_pieces_are_zero_aligned_and_apart() -> None:
    sizes = (1, 16, 17, 0, 5000)
    pool = Pool(sum(rounded(size) for size in sizes))
    pieces = [pool.take(size) for size in sizes]
    assert [piece.numel() for piece in pieces] == list(sizes)
    for number, piece in enumerate(pieces):
        assert piece.data_ptr() % CACHE_LINE == 0 or not piece.numel()
        assert not piece.any(), "an earlier piece reaches into this one"
        piece.fill_(number + 1)
    assert all(bool((piece == number + 1).all()) for number, piece in enumerate(pieces))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_a_copy_keeps_its_bits(dtype: torch.dtype) -> None:
    pool = Pool(64)
    pool.take(3)
    numbers = torch.tensor([-1, 0, 2**24 + 1, -(2**30)], dtype=dtype)
    copied = pool.copy(numbers)
    assert copied.dtype == dtype
    assert torch.equal(copied, numbers)
    assert copied.data_ptr() != numbers.data_ptr()


def test_a_pool_that_is_used_up_says_so() -> None:
    pool = Pool(1)
    whole = pool.cells.numel()
    pool.take(whole - 16)
    with pytest.raises(ValueError, match="the pool has 16 cells left, 17 were asked for"):
        pool.take(17)


def test_pieces_outlive_their_pool() -> None:
    pool = Pool(100)
    piece = pool.take(100)
    del pool
    gc.collect()
    assert float(piece.fill_(2).sum()) == 200


def test_rounding_is_to_whole_cache_lines() -> None:
    assert [rounded(cells) for cells in (0, 1, 16, 17)] == [0, 16, 16, 32]
