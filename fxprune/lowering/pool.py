"""Pooling next to kernels: found in the graph, laid out as its readers want it, bound to its buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import fx

from fxprune.codegen.cpu.pool import PoolWorkload
from fxprune.codegen.workload import NO_HALO, Layout, Triple
from fxprune.layer import Layer, find_layer
from fxprune.lowering.choice import Choice
from fxprune.lowering.dense import find_packed_obstacle
from fxprune.lowering.turn import Source
from fxprune.nodes import annotation_of, bind

_aten = torch.ops.aten
_MAX = frozenset({_aten.max_pool2d.default})
_AVERAGE = frozenset({_aten.avg_pool2d.default})
_MEAN = frozenset({_aten.adaptive_avg_pool2d.default, _aten.mean.dim})
_IMAGE_AXES = ({-2, -1}, {2, 3})

Pair = tuple[int, int]


@dataclass(frozen=True)
class Pooling:
    """A pooling node that a kernel runs.

    Attributes:
        node: The node.
        input: Node of the input, [N, C, H, W].
        kind: "max" or "mean".
        kernel: Height and width of the window.
        stride: Steps of the window.
        padding: Cells before the image.
        order: How its input and output lie: channels-last or as planes.
    """

    node: fx.Node
    input: fx.Node
    kind: Literal["max", "mean"]
    kernel: Pair
    stride: Pair
    padding: Pair
    order: Literal["nhwc", "nchw"] = "nhwc"

    @property
    def batch(self) -> int:
        """N."""
        return int(self.input.meta["val"].shape[0])

    @property
    def channels(self) -> int:
        """C."""
        return int(self.input.meta["val"].shape[1])

    @property
    def spatial_in(self) -> Triple:
        """1, H, W of the input."""
        return 1, int(self.input.meta["val"].shape[2]), int(self.input.meta["val"].shape[3])

    @property
    def is_whole(self) -> bool:
        """Whether there is one window, the image."""
        return self.kernel == self.spatial_in[1:]

    @property
    def spatial_out(self) -> Triple:
        """1, H, W of the output."""
        size = tuple(self.node.meta["val"].shape[2:])
        return (1, int(size[0]), int(size[1])) if len(size) == 2 else (1, 1, 1)


def find_pools(
    graph: fx.Graph, layers: Mapping[fx.Node, Layer], choices: Mapping[fx.Node, Choice]
) -> dict[fx.Node, Pooling]:
    """Return the pooling nodes that read kernels or channels-last tensors; none where all layers stay on torch.

    Args:
        graph: The graph.
        layers: The layers that kernels could run.
        choices: What runs them.
    """
    found: dict[fx.Node, Pooling] = {}
    if all(choice.schedule is None for choice in choices.values()):
        return found
    for node in graph.nodes:
        pool = _read(node)
        if pool is None:
            continue
        source, family = pool.input, _family(pool.input, choices)
        image = family != "dense" and layers[source].kind == "conv" and layers[source].dims == 2
        if source in found:
            found[node] = replace(pool, order=found[source].order)
        elif image or (family == "dense" and _is_packed(source)):
            found[node] = replace(pool, order="nchw" if family == "pixels" else "nhwc")
    return found


def _family(node: fx.Node, choices: Mapping[fx.Node, Choice]) -> str:
    return choices[node].family if node in choices else "dense"


def _is_packed(node: fx.Node) -> bool:
    """Whether a node is a convolution that torch computes channels-last."""
    layer = find_layer(node)
    return (
        layer is not None
        and layer.kind == "conv"
        and annotation_of(node) is not None
        and find_packed_obstacle(layer) is None
    )


def _read(node: fx.Node) -> Pooling | None:
    """Return a pooling node of float32 images as a kernel can run it."""
    if node.op != "call_function" or node.target not in _MAX | _AVERAGE | _MEAN:
        return None
    fake = node.args[0].meta["val"] if isinstance(node.args[0], fx.Node) else None
    if not isinstance(fake, torch.Tensor) or fake.dtype != torch.float32 or fake.ndim != 4 or not fake.numel():
        return None
    if node.target in _MAX:
        return _read_max(node)
    return _read_average(node) if node.target in _AVERAGE else _read_mean(node)


def _read_max(node: fx.Node) -> Pooling | None:
    arguments = bind(node)
    kernel, padding, dilation = (_pair(arguments[name]) for name in ("kernel_size", "padding", "dilation"))
    stride = _pair(arguments["stride"]) if arguments["stride"] else kernel
    if dilation != (1, 1) or not node.meta["val"].numel():
        return None
    assert isinstance(node.args[0], fx.Node)
    return Pooling(node, node.args[0], "max", kernel, stride, padding)


def _read_average(node: fx.Node) -> Pooling | None:
    """Read a mean over windows that all lie inside the image."""
    arguments = bind(node)
    kernel, padding = _pair(arguments["kernel_size"]), _pair(arguments["padding"])
    stride = _pair(arguments["stride"]) if arguments["stride"] else kernel
    assert isinstance(node.args[0], fx.Node)
    sizes = zip(node.meta["val"].shape[2:], node.args[0].meta["val"].shape[2:], kernel, stride, strict=True)
    inside = all((out - 1) * step + window <= size for out, size, window, step in sizes)
    if padding != (0, 0) or arguments["divisor_override"] is not None or not inside or not node.meta["val"].numel():
        return None
    return Pooling(node, node.args[0], "mean", kernel, stride, padding)


def _read_mean(node: fx.Node) -> Pooling | None:
    """Read a mean over the whole image."""
    arguments = bind(node)
    if node.target is _aten.mean.dim:
        axes = arguments["dim"]
        whole = isinstance(axes, list | tuple) and set(axes) in _IMAGE_AXES and arguments["dtype"] is None
    else:
        whole = _pair(arguments["output_size"]) == (1, 1)
    assert isinstance(node.args[0], fx.Node)
    size = node.args[0].meta["val"].shape
    return Pooling(node, node.args[0], "mean", (int(size[2]), int(size[3])), (1, 1), (0, 0)) if whole else None


def _pair(values: object) -> Pair:
    """Return a setting for height and width; one number is for both."""
    assert isinstance(values, list | tuple), f"expected a list, found {values!r}"
    numbers = [int(value) for value in values]
    return numbers[0], numbers[-1]


def pool_workload(pool: Pooling, outputs: Mapping[Source, Layout], lanes: int, threads: int) -> PoolWorkload:
    """Return what the kernel of a pooling node computes.

    Args:
        pool: The node.
        outputs: Layouts of what kernels make, by node; another input lies as torch's channels-last does.
        lanes: float32 lanes of a vector.
        threads: Threads of the kernel.
    """
    plain = Layout(pool.order, pool.batch, pool.channels, pool.spatial_in, NO_HALO)
    x, y = outputs.get(pool.input, plain), outputs[pool.node]
    bands, window = y.batch // pool.batch, (pool.kernel, pool.stride, pool.padding)
    return PoolWorkload(pool.kind, pool.channels, x, y, *window, lanes, threads, bands)
