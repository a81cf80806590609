"""The layer-norm kernel against torch: channel counts, padding, uneven threads, tokens far from zero, NaN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxprune.codegen.build import Library
from fxprune.codegen.cpu.layer_norm import NormWorkload, build_norm_kernel
from fxprune.codegen.kernel import BoundUnary
from fxprune.codegen.target import parse_target
from fxprune.codegen.workload import Layout
from tests.codegen.suite import guards_are_intact, place, poisoned, view


def _norm(tokens: int, channels: int, *, spare: tuple[int, int] = (0, 0), eps: float = 1e-5) -> NormWorkload:
    x, y = (Layout("nhwc", 1, channels + more, (1, 1, tokens)) for more in spare)
    return NormWorkload(channels, x, y, eps, 16, 2)


CASES = {
    "vit": _norm(197, 768, spare=(16, 16), eps=1e-6),
    "narrow": _norm(5, 16),
    "half_vectors": _norm(3, 24, spare=(0, 8)),
    "three_vectors": _norm(4, 48, spare=(8, 0)),
    "one_token": _norm(1, 64),
    "one_channel": _norm(6, 1),
    "odd_channels": _norm(9, 13),
}


@pytest.fixture(scope="module")
def library() -> Library:
    return Library({name: build_norm_kernel(name, work) for name, work in CASES.items()}, parse_target("cpu", 2))


def _draw(work: NormWorkload) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tokens, [T, C], and both weights, [C]."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(work.x.spatial[-1], work.channels, generator=generator) * 2 + 3
    return x, *torch.randn(2, work.channels, generator=generator)


def _run(library: Library, name: str, x: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    work = CASES[name]
    buffer = place(torch.full((1, work.x.channels, 1, 1, x.shape[0]), torch.nan), work.x)
    view(buffer, work.x)[0, : work.channels, 0, 0] = x.t()
    y = poisoned(work.y.numel)
    BoundUnary(library[name], buffer, y, weights).run()
    assert guards_are_intact(y), "written outside the output"
    return view(y, work.y)[0, : work.channels, 0, 0].t()


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(library: Library, name: str) -> None:
    x, weight, bias = _draw(CASES[name])
    found = _run(library, name, x, (weight, bias))
    wanted = F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), CASES[name].eps)
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_tokens_far_from_zero_keep_their_variance(library: Library) -> None:
    x, weight, bias = _draw(CASES["vit"])
    x = x + 4096
    wanted = F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), CASES["vit"].eps)
    found = _run(library, "vit", x, (weight, bias))
    assert float((found - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max())


def test_a_token_without_variance_is_its_bias(library: Library) -> None:
    _, weight, bias = _draw(CASES["vit"])
    assert torch.equal(_run(library, "vit", torch.zeros(197, 768), (weight, bias)), bias.expand(197, 768))


def test_a_number_that_is_none_spoils_its_token_alone(library: Library) -> None:
    x, weight, bias = _draw(CASES["vit"])
    x[7, 5] = torch.nan
    bad = _run(library, "vit", x, (weight, bias)).isnan().any(1)
    assert bad.nonzero().flatten().tolist() == [7]
