"""Small networks through the whole compiler: the result equals the masked model in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.compiling import MASKS, Layers, check, draw_masks, everything, force_kernels, kernels, row_groups, shuffled
from tests.networks import Function, randomise_norms


def conv(inputs: int, outputs: int, size: int = 3, **options: object) -> nn.Sequential:
    """Convolution and batch normalisation."""
    settings_ = {"padding": size // 2, **options}
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, **settings_), nn.BatchNorm2d(outputs))  # type: ignore[arg-type]


def chain(*activations: nn.Module) -> nn.Module:
    """A stem and one convolution for each activation."""
    parts = [part for activation in activations for part in (conv(32, 32), activation)]
    return nn.Sequential(conv(3, 32), nn.ReLU(), *parts)


def residual() -> nn.Module:
    def forward(net: Layers, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(net.stem(x))
        x = F.relu(net.b(F.relu(net.a(x))) + x)
        short = net.short(x)
        return F.relu(short + net.d(F.relu(net.c(x))))

    return Function(
        forward,
        stem=conv(3, 32),
        a=conv(32, 48),
        b=conv(48, 32),
        c=conv(32, 64, stride=2),
        d=conv(64, 64),
        short=conv(32, 64, 1, stride=2),
    )


def concat() -> nn.Module:
    def forward(net: Layers, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(net.stem(x))
        both = torch.cat([F.relu(net.a(x)), net.b(x), F.max_pool2d(x, 3, 1, 1)], 1)
        return net.last(both)

    return Function(forward, stem=conv(3, 32), a=conv(32, 40, 1), b=conv(32, 24, 5), last=conv(96, 32))


def depthwise() -> nn.Module:
    return nn.Sequential(conv(3, 32), nn.ReLU6(), conv(32, 32, groups=32), nn.ReLU6(), conv(32, 64, 1), nn.ReLU6())


def grouped() -> nn.Module:
    return nn.Sequential(conv(4, 64), nn.ReLU(), conv(64, 64, groups=4), nn.ReLU(), conv(64, 32, groups=2, stride=2))


def squeeze() -> nn.Module:
    def forward(net: Layers, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(net.stem(x))
        gate = torch.sigmoid(net.up(F.silu(net.down(F.adaptive_avg_pool2d(x, 1)))))
        return net.last(x * gate)

    return Function(forward, stem=conv(3, 64), down=nn.Conv2d(64, 16, 1), up=nn.Conv2d(16, 64, 1), last=conv(64, 32, 1))


def one_dimension() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 48, 3, dilation=2), nn.GELU(),
        nn.Conv1d(48, 32, 1),
    )  # fmt: skip


def three_dimensions() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 32, 3, padding=1), nn.BatchNorm3d(32), nn.ReLU(), nn.Conv3d(32, 32, (1, 3, 3), padding=(0, 1, 1)),
        nn.ReLU(), nn.Conv3d(32, 32, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)),
    )  # fmt: skip


def transposed() -> nn.Module:
    up = nn.ConvTranspose2d(32, 32, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(conv(3, 32), nn.ReLU(), up, nn.ReLU(), conv(32, 32))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 64), nn.GELU("tanh"), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))


def tokens() -> nn.Module:
    def forward(net: Layers, x: torch.Tensor) -> torch.Tensor:
        x = net.norm(x + net.down(F.gelu(net.up(x))))
        return net.mix(x.transpose(1, 2)).mean(2)

    return Function(
        forward,
        up=nn.Linear(48, 96),
        down=nn.Linear(96, 48),
        norm=nn.LayerNorm(48),
        mix=nn.Conv1d(48, 32, 3, padding=1),
    )


def line_after_linear() -> nn.Module:
    """A convolution over tokens reads what a linear layer makes, without its axes being exchanged."""
    return nn.Sequential(nn.Linear(24, 36), nn.ReLU(), nn.Conv1d(32, 32, 3, padding=1), nn.ReLU(), nn.Linear(36, 32))


def classifier() -> nn.Module:
    return nn.Sequential(
        conv(3, 32), nn.ReLU(), nn.MaxPool2d(2), conv(32, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 48),
        nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip


def shared() -> nn.Module:
    def forward(net: Layers, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(net.stem(x))
        return net.again(F.relu(net.again(F.relu(net.again(x)))) + x)

    return Function(forward, stem=conv(3, 32), again=conv(32, 32))


def even_kernels() -> nn.Module:
    return nn.Sequential(
        conv(3, 32), nn.ReLU(), nn.Conv2d(32, 32, 4, padding="same"), nn.ReLU(),
        nn.Conv2d(32, 32, (2, 5), padding="same"), nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(32, 32, 3, dilation=2),
    )  # fmt: skip


def reflect() -> nn.Module:
    return nn.Sequential(
        conv(3, 32, padding_mode="reflect"), nn.ReLU(), conv(32, 32, padding_mode="circular"), nn.ReLU(),
        conv(32, 32, padding_mode="replicate"),
    )  # fmt: skip


def strided() -> nn.Module:
    parts = (conv(32, 32, 3, stride=2), conv(32, 32, 5, stride=3, padding=4), conv(32, 32, 2, padding=0, stride=2))
    return nn.Sequential(conv(3, 32, 7, stride=2), nn.ReLU(), *parts)


def many_readers() -> nn.Module:
    """One output with readers of different halos, one of them as a residual, one of them the caller."""

    def forward(net: Layers, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = F.relu(net.stem(x))
        wide, narrow = net.wide(x), net.narrow(x)
        return F.relu(net.last(F.relu(wide)) + x), narrow, x[:, :8], x

    return Function(forward, stem=conv(3, 32), wide=conv(32, 32, 5), narrow=conv(32, 32, 1), last=conv(32, 32))


def inverted() -> nn.Module:
    """A linear bottleneck: the sum has no activation and feeds the next block and its residual."""

    def forward(net: Layers, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        x = x + net.down(F.relu6(net.up(x)))
        x = x + net.down2(F.hardswish(net.up2(x)))
        return F.sigmoid(net.last(x))

    return Function(
        forward,
        stem=conv(3, 32),
        up=conv(32, 96, 1),
        down=conv(96, 32),
        up2=conv(32, 64),
        down2=conv(64, 32, 1),
        last=conv(32, 32),
    )


IMAGE, TOKENS = (2, 3, 12, 12), (2, 9, 48)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (lambda: chain(nn.ReLU(), nn.ReLU(), nn.Identity()), IMAGE),
    "activations": (lambda: chain(nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.Sigmoid(), nn.Hardtanh(-0.5, 1)), IMAGE),
    "other activations": (lambda: chain(nn.LeakyReLU(), nn.ELU(), nn.Hardsigmoid(), nn.Softplus()), IMAGE),
    "residual": (residual, IMAGE),
    "concat": (concat, IMAGE),
    "depthwise": (depthwise, IMAGE),
    "grouped": (grouped, (2, 4, 12, 12)),
    "squeeze and excitation": (squeeze, IMAGE),
    "one dimension": (one_dimension, (2, 4, 30)),
    "three dimensions": (three_dimensions, (1, 3, 5, 6, 7)),
    "transposed": (transposed, IMAGE),
    "perceptron": (perceptron, (3, 40)),
    "tokens": (tokens, TOKENS),
    "line after linear": (line_after_linear, (2, 32, 24)),
    "classifier": (classifier, IMAGE),
    "shared weights": (shared, IMAGE),
    "even kernels": (even_kernels, IMAGE),
    "padding modes": (reflect, IMAGE),
    "strides": (strided, (1, 3, 41, 37)),
    "many readers": (many_readers, IMAGE),
    "inverted": (inverted, IMAGE),
    "one image without a batch": (lambda: nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)), (3, 12, 12)),
}
NO_PIXELS = {"perceptron", "three dimensions"}


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    build, shape = NETWORKS[name]
    return randomise_norms(build()).eval(), torch.randn(shape)


@pytest.mark.parametrize(
    ("family", "turn"), [("rows", 0), ("pixels", 0), pytest.param("rows", 2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_on_kernels_is_exact(name: str, family: str, turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(monkeypatch, family)
    model, x = make(name)
    kinds = list(MASKS.values())
    compiled = check(model, draw_masks(model, *kinds[turn:], *kinds[:turn]), x)
    assert kernels(compiled) or (family == "pixels" and name in NO_PIXELS)


@pytest.mark.parametrize("families", [("winograd",), ("rows", "winograd")], ids=["between torch", "between kernels"])
@pytest.mark.parametrize("name", ["residual", "strides", "concat"])
def test_layers_of_fewer_products_are_exact(
    name: str, families: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    force_kernels(monkeypatch, *families)
    model, x = make(name)
    compiled = check(model, draw_masks(model, everything), x)
    assert sum(layer.kernel.startswith("winograd") for layer in compiled.report.layers) > 1


@pytest.mark.parametrize("kind", MASKS)
def test_every_mask_is_exact(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force_kernels(monkeypatch, "rows", "pixels")
    model, x = make("residual")
    layers = check(model, draw_masks(model, MASKS[kind]), x).report.layers
    wanted = ["none: removed"] if kind == "all pruned" else ["rows", "pixels"]
    assert len(layers) == 6
    assert all(layer.kernel.startswith(tuple(wanted)) for layer in layers)


@pytest.mark.parametrize("name", ["residual", "inverted", "classifier"])
def test_cost_model_choices_are_exact(name: str) -> None:
    model, x = make(name)
    check(model, draw_masks(model, MASKS["groups of 32"], MASKS["cells, a tenth"]), x)


@pytest.mark.parametrize("rows", [8, 32])
def test_scattered_rows_with_private_tensors_and_halos(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows lie in the order of the groups, inside halos, and residuals are added at the right places."""
    force_kernels(monkeypatch, "rows")
    model, x = make("residual")
    compiled = check(model, draw_masks(model, shuffled(row_groups(rows))), x)
    assert len(kernels(compiled)) == 6


def test_kernels_and_dense_layers_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel reads what torch made and torch reads what a kernel made."""
    force_kernels(monkeypatch, "rows")
    monkeypatch.setattr("fxprune.lowering.select._LARGEST_FULL", 0)
    turns = (everything, row_groups(16)), (row_groups(16), everything)
    names = ("residual", "many readers", "inverted", "concat")
    for name, kinds in [*zip(names, itertools.cycle(turns)), ("residual", turns[1])]:
        model, x = make(name)
        compiled = check(model, draw_masks(model, *kinds), x)
        assert 0 < len(kernels(compiled)) < len(compiled.report.layers)


@st.composite
def small_networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Draw two to four convolutions with any geometry, some with a residual, and an image that fits."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    width = draw(st.sampled_from([8, 20, 32, 48]))
    geometry = st.tuples(
        st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 1, 2]), st.sampled_from([1, 2]), st.sampled_from([1, 2, 4])
    )
    parts: list[nn.Module] = [conv(3, width), nn.ReLU()]
    for size, stride, dilation, groups in draw(st.lists(geometry, min_size=1, max_size=3)):
        options = {"stride": stride, "dilation": dilation, "groups": groups, "padding": dilation * (size // 2)}
        parts += [conv(width, width, size, **options), draw(st.sampled_from([nn.ReLU(), nn.SiLU(), nn.Identity()]))]
    image = (draw(st.integers(1, 3)), 3, draw(st.integers(17, 23)), draw(st.integers(17, 23)))
    return randomise_norms(nn.Sequential(*parts)).eval(), image


@settings(max_examples=12)
@given(
    small_networks(), st.lists(st.sampled_from(sorted(MASKS)), min_size=1, max_size=3), st.sampled_from([0, 1, 2, 3])
)
def test_drawn_networks_are_exact(drawn: tuple[nn.Module, tuple[int, ...]], kinds: list[str], which: int) -> None:
    families = (("rows",), ("pixels",), ("rows", "pixels"), ("winograd",))[which]
    model, shape = drawn
    with pytest.MonkeyPatch.context() as monkeypatch:
        force_kernels(monkeypatch, *families)
        check(model, draw_masks(model, *(MASKS[kind] for kind in kinds)), torch.randn(shape))
