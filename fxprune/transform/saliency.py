"""What a row is worth by what it does on data: the size of its activations, or of activation times gradient.

Source:
    The criteria that "Coarsening the Granularity" (arXiv 2202.04736), figure A8, compares with |w|; activation times
    gradient is the first-order Taylor term of Molchanov et al., ICLR 2017. Here the channel axis is that of the layer's
    output, whatever the layer; the published code views [N, C, H, W] as (C, -1), which mixes channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fxprune.errors import UnsupportedError
from fxprune.masks import resolve_masks

Kind = Literal["activation_l1", "activation_l2", "taylor"]
Step = Callable[[nn.Module, object], object]

_KINDS = ("activation_l1", "activation_l2", "taylor")
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def saliency(
    model: nn.Module,
    batches: Iterable[object],
    kind: Kind = "activation_l1",
    *,
    masks: Mapping[str, object] | None = None,
    step: Step | None = None,
) -> dict[str, Tensor]:
    """Score the rows of all convolution and linear layers on calibration batches.

    Args:
        model: The model in eval mode; neither it nor its gradients are changed.
        batches: Calibration batches; each a tensor or a tuple of positional inputs, or whatever `step` takes.
        kind: "activation_l1" or "activation_l2": mean of |a|, root of the mean of a**2, over all samples and places.
            "taylor": mean over samples of |sum over places of a * dL/da|.
        masks: Masks multiplied in for the measurement, in any form that `compile` takes a mapping; None: none.
        step: Runs the model it is given on one batch; for "taylor" it returns the loss. None: `model(*batch)`.

    Returns:
        Weight name to the score of each row, [O], float64; for `refill(..., scores=)`.

    Raises:
        UnsupportedError: The model is in training mode, no batch was given, or "taylor" has no loss.
        MaskError: A mask does not fit the model.
    """
    if kind not in _KINDS:
        raise UnsupportedError(f"kind is {kind!r}; it needs to be one of {', '.join(map(repr, _KINDS))}.")
    if not isinstance(model, nn.Module) or model.training:
        raise UnsupportedError("saliency needs an nn.Module in eval mode; call model.eval() first.")
    if kind == "taylor" and step is None:
        raise UnsupportedError("kind='taylor' needs step=: a function of (model, batch) that returns the loss.")
    meter = _Meter(kind)
    masked = _Masked(model, {} if masks is None else resolve_masks(model, masks), gradients=kind == "taylor")
    handles = [
        module.register_forward_hook(meter.hook(f"{path}.weight".lstrip(".")))
        for path, module in model.named_modules()
        if isinstance(module, _LAYERS)
    ]
    try:
        count = 0
        for batch in batches:
            _run(masked, batch, step, gradients=kind == "taylor")
            count += 1
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise UnsupportedError("saliency got no batch; give at least one (a generator can be used up).")
    return meter.scores()


class _Masked(nn.Module):
    """The user's model with masked copies of its weights."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], *, gradients: bool) -> None:
        super().__init__()
        self._call: Callable[..., object] = lambda *args, **kwargs: torch.func.functional_call(
            model, self.tensors, args, kwargs
        )
        self.tensors = {
            name: (value.detach() * masks[name].to(value.device) if name in masks else value.detach()).requires_grad_(
                gradients and value.is_floating_point()
            )
            for name, value in model.named_parameters()
        }
        self.eval()

    def forward(self, *args: object, **kwargs: object) -> object:
        return self._call(*args, **kwargs)


class _Meter:
    """Adds up what the layers put out.

    Attributes:
        kind: What is measured.
        sums: Weight name to the sum over samples, [O].
        counts: Weight name to the number of samples (for "taylor"), or of samples times places.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def hook(self, name: str) -> Callable[[nn.Module, tuple[object, ...], Tensor], None]:
        """Return a forward hook of the layer whose weight has this name."""

        def see(module: nn.Module, _: tuple[object, ...], output: Tensor) -> None:
            values = _rows_last(module, output.detach()).double()
            if self.kind != "taylor":
                flat = values.flatten(0, -2)
                self._add(name, (flat.abs() if self.kind == "activation_l1" else flat.square()).sum(0), len(flat))
                return
            values = values.clone()  # an activation may work in place

            def see_gradient(gradient: Tensor) -> None:
                terms = values * _rows_last(module, gradient).double()
                samples = terms.reshape(len(terms), -1, terms.shape[-1]).sum(1)
                self._add(name, samples.abs().sum(0), len(samples))

            output.register_hook(see_gradient)  # type: ignore[no-untyped-call]  # torch's own, without annotations

        return see

    def scores(self) -> dict[str, Tensor]:
        """Return the mean over everything seen."""
        means = {name: (total / max(1, self.counts[name])).cpu() for name, total in self.sums.items()}
        return {name: mean.sqrt() for name, mean in means.items()} if self.kind == "activation_l2" else means

    def _add(self, name: str, values: Tensor, count: int) -> None:
        self.sums[name] = self.sums[name] + values if name in self.sums else values
        self.counts[name] = self.counts.get(name, 0) + count


def _rows_last(module: nn.Module, output: Tensor) -> Tensor:
    """Return an output as [N, places..., O]; one without a batch gets one."""
    if isinstance(module, nn.Linear):
        return output.unsqueeze(0) if output.dim() == 1 else output
    axes = module.weight.dim() - 2 if isinstance(module.weight, Tensor) else 0
    batched = output if output.dim() == axes + 2 else output.unsqueeze(0)
    return batched.movedim(1, -1)


def _run(model: nn.Module, batch: object, step: Step | None, *, gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        if step is None:
            model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
            return
        loss = step(model, batch)
    if not gradients:
        return
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise UnsupportedError("kind='taylor' needs step= to return the loss, one number with a gradient.")
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own, without annotations
