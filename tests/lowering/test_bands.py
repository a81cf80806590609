"""Which activations of whole compiled models lie in bands, and that the numbers stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import fxprune
from fxprune.layer import Layer
from fxprune.lowering import bands, program
from fxprune.lowering.plan import Placement
from tests.compiling import (
    QUICK,
    TOLERANCE,
    cells,
    check,
    draw_masks,
    force_families,
    force_kernels,
    largest_difference,
    run_masked,
)

Forward = Callable[["_Net", torch.Tensor], torch.Tensor]

SIZE = 24
"""Lines of the images, and cells of a line: those of an image halved twice are too few for bands."""


class _Net(nn.Module):
    """Pixel-lane layers of every kind, connected by a function; `end` is one whose output torch reads."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.enter, self.same = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.one, self.two, self.end = (nn.Conv2d(24, 24, 1) for _ in range(3))
        self.halve, self.narrow = nn.Conv2d(24, 24, 3, padding=1, stride=2), nn.Conv2d(24, 24, 3)
        self.connect = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.connect(self, x).sin()


def _compile(
    monkeypatch: pytest.MonkeyPatch, forward: Forward, images: torch.Tensor | None = None
) -> tuple[fxprune.CompiledModule, dict[str, str]]:
    """Compile and compare; returns the model, and what of every layer lies in bands: "x", "y", both or nothing."""
    found: dict[str, str] = {}

    def spied(
        placements: Mapping[fx.Node, Placement], outputs: object, layers: Mapping[fx.Node, Layer], *rest: object
    ) -> object:
        laid, layouts = bands.lay_in_bands(placements, outputs, layers, *rest)  # type: ignore[arg-type]
        for node, item in laid.items():
            cut = {"x": item.work.input_bands, "y": item.work.bands}
            found[layers[node].weight.name.removesuffix("_weight")] = "".join(
                name for name, count in cut.items() if count > 1
            )
        return laid, layouts

    monkeypatch.setattr(program, "lay_in_bands", spied)
    net = _Net(forward).eval()
    x = torch.randn(1, 3, SIZE, SIZE) if images is None else images
    return check(net, draw_masks(net, cells(0.3)), x), found


GRAPHS: dict[str, tuple[Forward, dict[str, str]]] = {
    "chain": (
        lambda net, x: net.end(net.two(net.same(net.one(net.enter(x))))),
        {"enter": "y", "one": "xy", "same": "x", "two": "", "end": ""},
    ),
    "residual": (
        lambda net, x: net.narrow(net.two(net.same(y := net.enter(x))) + y),
        {"enter": "y", "same": "xy", "two": "xy", "narrow": "x"},
    ),
    "halved": (
        lambda net, x: net.narrow(net.one(net.halve(net.enter(x)))),
        {"enter": "y", "halve": "xy", "one": "xy", "narrow": "x"},
    ),
    "twice halved": (
        lambda net, x: net.end(net.halve(net.halve(net.enter(x)))),
        {"enter": "y", "halve": "x", "end": ""},
    ),
    "pool": (
        lambda net, x: net.narrow(F.max_pool2d(net.two(net.same(net.one(net.enter(x)))), 3, 1, 1)),
        {"enter": "y", "one": "xy", "same": "xy", "two": "xy", "narrow": "x"},
    ),
    "pool that halves": (
        lambda net, x: net.narrow(net.one(F.max_pool2d(net.enter(x), 2))),
        {"enter": "y", "one": "xy", "narrow": "x"},
    ),
    "pool to small images": (
        lambda net, x: net.narrow(net.one(F.avg_pool2d(net.enter(x), 3, 3))),
        {"enter": "y", "one": "", "narrow": ""},
    ),
    "mean": (
        lambda net, x: net.narrow(net.one(net.enter(x)).mean((2, 3), keepdim=True).expand(-1, -1, 5, 5)),
        {"enter": "", "one": "", "narrow": ""},
    ),
    "read by torch too": (
        lambda net, x: net.narrow(net.same(y := net.enter(x))) + y.mean(),
        {"enter": "", "same": "y", "narrow": "x"},
    ),
    "residual of torch": (
        lambda net, x: net.narrow(net.two(net.same(net.enter(x))) + x.mean(1, keepdim=True).expand(-1, 24, -1, -1)),
        {"enter": "y", "same": "x", "two": "", "narrow": ""},
    ),
    "residual and input": (
        lambda net, x: net.narrow(net.one(y := net.enter(x)) + y.tanh()),
        {"enter": "", "one": "", "narrow": ""},
    ),
}
"""What connects the layers, and what of each lies in bands."""


@pytest.mark.parametrize("name", GRAPHS)
def test_what_lies_in_bands(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A 1x1 layer and a residual lie as the output does; torch and means of images read no bands."""
    force_kernels(monkeypatch, "pixels")
    forward, wanted = GRAPHS[name]
    assert _compile(monkeypatch, forward)[1] == wanted


@pytest.mark.parametrize(
    ("images", "lies"),
    [((1, 3, 24, 17), True), ((1, 3, 23, 24), False), ((2, 3, 24, 24), False), ((1, 3, 6, 9), False)],
    ids=["odd_width", "odd_height", "batch", "small"],
)
def test_images_that_are_cut(monkeypatch: pytest.MonkeyPatch, images: tuple[int, ...], lies: bool) -> None:
    force_kernels(monkeypatch, "pixels")
    _, found = _compile(monkeypatch, lambda net, x: net.narrow(net.one(net.enter(x))), torch.randn(images))
    assert found == ({"enter": "y", "one": "xy", "narrow": "x"} if lies else dict.fromkeys(found, ""))


COPIES: dict[str, tuple[Forward, str]] = {
    "both ways": (lambda net, x: net.narrow(net.one(net.enter(x))), "xy"),
    "into a halo": (lambda net, x: net.narrow(net.same(net.one(net.enter(x)))), ""),
    "from a halo": (lambda net, x: net.narrow(net.one(y := net.enter(x))).mean() + net.same(y), ""),
}
"""Layers of 3x3 are channels-last, and what of the 1x1 layer between them lies in bands."""


@pytest.mark.parametrize("name", COPIES)
def test_copies_in_the_other_order(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Channels-last images without a halo are the same memory in bands and whole."""
    force_families(monkeypatch, lambda shape: not shape.is_pointwise)
    forward, wanted = COPIES[name]
    found = _compile(monkeypatch, forward)[1]
    assert found.pop("one") == wanted
    assert not any(found.values())


STEPS: dict[str, Forward] = {
    "same": lambda net, x: net.same(x).relu(),
    "one": lambda net, x: net.one(x).relu(),
    "halve": lambda net, x: net.halve(x),
    "bottleneck": lambda net, x: (net.two(net.same(net.one(x).relu()).relu()) + x).relu(),
    "pool": lambda _, x: F.max_pool2d(x, 3, 1, 1),
    "torch": lambda _, x: x.tanh(),
    "torch beside it": lambda net, x: net.same(x) + x.sin(),
}


@settings(deadline=None, max_examples=8)
@given(
    steps=st.lists(st.sampled_from(list(STEPS)), min_size=2, max_size=5),
    image=st.tuples(st.integers(1, 2), st.just(3), st.sampled_from([16, 24, 30]), st.integers(9, 34)),
    threads=st.integers(1, 4),
    rows=st.sampled_from([0, 1, 3]),
)
def test_every_network_keeps_its_numbers(steps: list[str], image: tuple[int, ...], threads: int, rows: int) -> None:
    """Layers with this many taps are channels-last: none, those of 1x1, those of 3x3."""

    def forward(net: _Net, x: torch.Tensor) -> torch.Tensor:
        x = net.enter(x)
        for step in steps:
            x = STEPS[step](net, x)
        end: torch.Tensor = net.end(x)
        return end

    with pytest.MonkeyPatch.context() as patch:
        force_families(patch, lambda shape: shape.kernel[2] == rows)
        net, x = _Net(forward).eval(), torch.randn(image)
        masks = draw_masks(net, cells(0.3))
        compiled = fxprune.compile(net, masks, example_inputs=(x,), options={**QUICK, "threads": threads})
        assert largest_difference(compiled(x), run_masked(net, masks, x)) <= TOLERANCE
