"""Channels that lie in the order of a kernel's blocks, in whole compiled models."""

from __future__ import annotations

import torch
from torch import nn

import fxprune


class _Residual(nn.Module):
    """A residual whose sum is read by two sparse layers and by nothing else, as between the stages of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 64, 3, padding=1)
        self.inner = nn.Conv2d(64, 64, 3, padding=1)
        self.wide = nn.Conv2d(64, 48, 3, padding=1)
        self.point = nn.Conv2d(64, 48, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.inner(y) + y)
        z: torch.Tensor = self.wide(y) + self.point(y)
        return z


def _mask_scattered_groups(weight: torch.Tensor, height: int) -> torch.Tensor:
    """Give random rows a common random column list, `height` rows at a time."""
    mask = torch.zeros(weight.shape[0], weight[0].numel(), dtype=torch.bool)
    for rows in torch.split(torch.randperm(weight.shape[0]), height):
        columns = torch.randperm(mask.shape[1])[: mask.shape[1] // 8]
        mask[rows[:, None], columns[None, :]] = True
    return mask.reshape(weight.shape)


def test_a_layer_with_a_residual_keeps_its_channels_in_order() -> None:
    model = _Residual().eval()
    weights = {f"{name}.weight": layer.weight for name, layer in model.named_children() if isinstance(layer, nn.Conv2d)}
    masks = {name: _mask_scattered_groups(weight, 32) for name, weight in weights.items()}
    x = torch.randn(1, 8, 7, 7)
    compiled = fxprune.compile(model, masks, example_inputs=x, options={"measure": False})
    found = compiled(x).clone()
    assert [layer.kernel.split()[0] for layer in compiled.report.layers] == ["rows"] * 4, "the case needs row lanes"
    for name, weight in weights.items():
        weight.data *= masks[name]
    wanted = model.double()(x.double()).detach()
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
