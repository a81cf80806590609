"""Keep the size of the signal in a network with random weights and masks."""

from __future__ import annotations

import torch
from torch import nn

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def keep_signal(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Scale every conv and linear weight, in place, so that what it adds to the bias has a spread of about one.

    A pruned network that was trained keeps its signal. Random weights lose it or blow it up layer by layer, until the
    output no longer depends on the input and a comparison of outputs sees nothing.
    """
    seen: set[int] = set()

    def scale(module: nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
        if id(weight) in seen:
            return output
        seen.add(id(weight))
        shift = torch.zeros(()) if bias is None else _along_channels(bias, module)
        signal = output - shift
        alive = signal[signal.abs() > 1e-12]
        spread = float(alive.std()) if alive.numel() > 1 else 0.0
        if spread < 1e-6:
            return output
        weight.data.div_(spread)
        return signal / spread + shift

    handles = [module.register_forward_hook(scale) for module in model.modules() if isinstance(module, _LAYERS)]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()


def _along_channels(bias: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """Return a bias that adds to the output as the layer adds it."""
    if isinstance(module, nn.Linear):
        return bias
    planes = len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0
    return bias.reshape(-1, *[1] * planes)
