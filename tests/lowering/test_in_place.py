"""Layers that overwrite their residual, in whole compiled models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.lowering import in_place, program
from fxprune.lowering.plan import Placement
from tests.compiling import check, draw_masks, force_kernels, row_groups


class _Blocks(nn.Module):
    """Residual blocks of two layers; the first sum is read again after the second block if `late`."""

    def __init__(self, *, late: bool, kernel: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.one, self.two, self.three, self.four = (nn.Conv2d(32, 32, kernel, padding="same") for _ in range(4))
        self.late = late

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = torch.relu(self.stem(x))
        first = torch.relu(self.two(torch.relu(self.one(start))) + start)
        second = torch.relu(self.four(torch.relu(self.three(first))) + first)
        return second + first.sin() if self.late else second.cos()


def _spy(monkeypatch: pytest.MonkeyPatch) -> list[list[bool]]:
    """Record which layers with a residual overwrite it, in graph order."""
    found: list[list[bool]] = []

    def spied(*args: object) -> dict[object, Placement]:
        placed = in_place.overwrite_residuals(*args)  # type: ignore[arg-type]
        found.append([one.work.in_place for one in placed.values() if one.work.residual is not None])
        return placed  # type: ignore[return-value]

    monkeypatch.setattr(program, "overwrite_residuals", spied)
    return found


def _lowered(monkeypatch: pytest.MonkeyPatch) -> list[program.Program]:
    """Record the programs that are made from now on."""
    made: list[program.Program] = []

    def spied(*args: object, **options: object) -> program.Program:
        made.append(program.lower(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("fxprune.backend.lower", spied)
    return made


@pytest.mark.parametrize(
    ("family", "late", "kernel", "size", "wanted"),
    [
        pytest.param("rows", False, 1, (8, 8), [True, True], id="last reader-rows"),
        pytest.param("pixels", False, 1, (8, 8), [True, True], id="last reader-pixels"),
        pytest.param("rows", True, 1, (8, 8), [True, False], id="read later-rows"),
        pytest.param("pixels", True, 1, (8, 8), [True, False], id="read later-pixels"),
        pytest.param("rows", False, 1, (7, 11), [True, True], id="even tiles"),
        pytest.param("rows", False, 3, (7, 37), [False, False], id="overlapping tiles-rows"),
        pytest.param("pixels", False, 1, (7, 11), [True, True], id="tiles to the end of a cache line"),
        pytest.param("pixels", False, 1, (16, 67), [False, False], id="overlapping tiles-pixels"),
    ],
)
def test_only_the_last_reader_overwrites(
    monkeypatch: pytest.MonkeyPatch, family: str, late: bool, kernel: int, size: tuple[int, int], wanted: list[bool]
) -> None:
    force_kernels(monkeypatch, family)
    found = _spy(monkeypatch)
    model = _Blocks(late=late, kernel=kernel).eval()
    compiled = check(model, draw_masks(model, row_groups(8)), torch.randn(1, 3, *size))
    x = torch.randn(1, 3, *size)
    once, again = compiled(x), compiled(x)
    assert torch.equal(once, again)
    assert found[0] == wanted


def test_a_block_needs_one_buffer_less(monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(monkeypatch, "rows")
    model = _Blocks(late=False).eval()
    masks, x = draw_masks(model, row_groups(8)), torch.randn(1, 3, 8, 8)
    sizes = []
    for function in (in_place.overwrite_residuals, lambda placements, *_rest: dict(placements)):
        monkeypatch.setattr(program, "overwrite_residuals", function)
        made = _lowered(monkeypatch)
        check(model, masks, x)
        sizes.append(made[0].arena_bytes)
    assert sizes[0] < sizes[1]


def test_ragged_blocks_leave_the_residual_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in groups of 12 leave zero rows in blocks of whole vectors, whose lanes are rows of the next block."""
    force_kernels(monkeypatch, "rows")
    found = _spy(monkeypatch)
    model = _Blocks(late=False).eval()
    check(model, draw_masks(model, row_groups(12)), torch.randn(1, 3, 8, 8))
    assert found[0] == [True, True]
