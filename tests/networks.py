"""Small networks and the way from a network to an annotated graph, shared by the tests of graph and passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import fx, nn

from fxprune.graph import annotate, capture
from fxprune.layer import Layer, find_layer
from fxprune.passes import Pass, PassRecord, default_pipeline, run_passes

PIPELINE = default_pipeline(((1, 0.22), (2, 0.39), (4, 0.65), (8, 0.85), (16, 0.9), (32, 0.97)))
"""The pipeline for a target with these rates, each as (group height in rows, share of the dense rate)."""


class Function(nn.Module):
    """Named layers and a function that connects them: the shortest way to write a network."""

    def __init__(self, forward: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.connect = forward

    def forward(self, *inputs: torch.Tensor, **options: object) -> object:
        """Call the function on the network and its inputs."""
        return self.connect(self, *inputs, **options)


def randomise_norms(model: nn.Module) -> nn.Module:
    """Give every batch normalisation statistics and weights that change something; returns the model."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.4, 2.0),
                (module.weight, 0.3, 1.3),
                (module.bias, -0.2, 0.2),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high)
    return model


def double(model: nn.Module) -> nn.Module:
    """Return the model in eval mode and float64, with random statistics."""
    return randomise_norms(model).double().eval()


def image(*shape: int) -> torch.Tensor:
    """Return a random float64 input."""
    return torch.randn(shape, dtype=torch.float64)


def random_masks(model: nn.Module, density: float = 0.6) -> dict[str, torch.Tensor]:
    """Return a random mask for every convolution and linear weight."""
    owners = (nn.modules.conv._ConvNd, nn.Linear)
    return {
        f"{name}.weight".lstrip("."): torch.rand(module.weight.shape) < density
        for name, module in model.named_modules()
        if isinstance(module, owners)
    }


def apply_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """Multiply masks into the model's own weights: the reference of every equality; returns the model."""
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask)
    return model


def build(model: nn.Module, *inputs: torch.Tensor, masks: Mapping[str, torch.Tensor] | None = None) -> fx.GraphModule:
    """Capture and annotate a model."""
    gm = capture(model, inputs, {}).graph_module
    annotate(gm, masks or {})
    return gm


def run(gm: fx.GraphModule, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Run a captured graph without gradients; the flat outputs."""
    with torch.no_grad():
        outputs = gm(*inputs)
    assert isinstance(outputs, tuple)
    return outputs


def reference(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """Run a model of one output without gradients."""
    with torch.no_grad():
        output = model(*inputs)
    assert isinstance(output, torch.Tensor)
    return output


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def run_twice(gm: fx.GraphModule, step: Pass) -> tuple[PassRecord, PassRecord]:
    """Run a pass two times through the runner; the second is there to change nothing."""
    (first,) = run_passes(gm, (step,))
    (second,) = run_passes(gm, (step,))
    return first, second


def layers(gm: fx.GraphModule) -> list[Layer]:
    """Return the views of all layers in order."""
    return [layer for layer in map(find_layer, gm.graph.nodes) if layer is not None]


def targets(gm: fx.GraphModule) -> list[object]:
    """Return what the calls of a graph call, in order."""
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


def find_call(gm: fx.GraphModule, target: object) -> fx.Node:
    """Return the first call of a function."""
    nodes: list[fx.Node] = [node for node in gm.graph.nodes if node.op == "call_function" and node.target is target]
    return nodes[0]
