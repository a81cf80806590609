"""Pooling kernels checked against torch: the input of an operator, torch's result, and the comparisons."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from fxprune.codegen.cpu.pool import PoolWorkload

Run = Callable[[torch.Tensor], torch.Tensor]
"""A kernel, from [N, C, H, W] to [N, C, H, W]."""


def draw(work: PoolWorkload) -> torch.Tensor:
    """Return the input of an operator, [N, C, H, W]."""
    _, height, width = work.x.spatial
    shape = (work.y.batch // work.bands, work.channels, height * work.input_bands, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) - 3


def expect(work: PoolWorkload, x: torch.Tensor, *, ceil: bool = False) -> torch.Tensor:
    """Return torch's result; `ceil`: windows may reach beyond the image's end."""
    if work.kind == "mean":
        return F.avg_pool2d(x, work.kernel, work.stride)
    return F.max_pool2d(x, work.kernel, work.stride, work.padding, ceil_mode=ceil)


def check_equals_torch(run: Run, work: PoolWorkload, *, ceil: bool) -> None:
    """Compare on random numbers."""
    x = draw(work)
    found, wanted = run(x), expect(work, x.double(), ceil=ceil)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())


def check_nan_stays(run: Run, work: PoolWorkload) -> None:
    """Compare where the result is no number if some cells of the input are none."""
    x = draw(work)
    x[0, 3, ::2, -1] = torch.nan
    assert torch.equal(run(x).isnan(), expect(work, x).isnan())
