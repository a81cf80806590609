"""What can go is found by brute force, without the analysis, and compared with what the pass takes.

A channel of a layer is live if it changes with the input and the output changes with it. Each is tried: the input is
drawn anew, the channel alone is disturbed. Live rows times live columns give the fewest multiply-adds that exact rules
allow; where zero padding bends constants, one more channel carries them, as the rules say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxprune.passes import EliminateChannels
from tests.channels.toys import GATE, eliminate
from tests.networks import Function, apply_masks, double, image

WIDTH = 24
SHAPE = (2, 3, 6, 5)
ROOM = 1.02
"""The pass may need this much more than the best."""


def conv(inputs: int, outputs: int, size: int = 1, *, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=padding, groups=groups)


def act(x: torch.Tensor) -> torch.Tensor:
    """Return an activation that is never flat: a relu that a sample leaves at zero would look dead."""
    return F.leaky_relu(x, 0.1)


@dataclass(frozen=True)
class Case:
    """A network whose layers all have rows to lose, but the last one, `z`.

    Attributes:
        forward: Connects the layers.
        layers: Builds the layers.
        carriers: Padded layer to the layer whose dead channels it would read.
    """

    forward: Callable[..., object]
    layers: Callable[[], Mapping[str, nn.Module]]
    carriers: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "chain": Case(
        lambda m, x: m.z(m.b(act(m.a(x))).sigmoid()),
        lambda: {"a": conv(3, WIDTH), "b": conv(WIDTH, WIDTH, 3), "z": conv(WIDTH, 4)},
    ),
    "padded chain": Case(
        lambda m, x: m.z(act(m.b(m.a(x).sigmoid()))),
        lambda: {"a": conv(3, WIDTH), "b": conv(WIDTH, WIDTH, 3, padding=1), "z": conv(WIDTH, 4)},
        carriers={"b": "a"},
    ),
    "residual": Case(
        lambda m, x: m.z(act(m.c(act(m.b(y := act(m.a(x))))) + y)),
        lambda: {"a": conv(3, WIDTH), "b": conv(WIDTH, WIDTH), "c": conv(WIDTH, WIDTH), "z": conv(WIDTH, 4)},
    ),
    "two branches": Case(
        lambda m, x: m.z((m.a(x) + m.b(x.sin())).sigmoid()),
        lambda: {"a": conv(3, WIDTH), "b": conv(3, WIDTH), "z": conv(WIDTH, 4)},
    ),
    "concat": Case(
        lambda m, x: m.z(torch.cat([y := act(m.a(x)), m.b(y), m.c(x)], 1)),
        lambda: {"a": conv(3, WIDTH), "b": conv(WIDTH, WIDTH), "c": conv(3, WIDTH), "z": conv(3 * WIDTH, 4)},
    ),
    "depthwise": Case(
        lambda m, x: m.z(F.silu(m.d(act(m.a(x))))),
        lambda: {"a": conv(3, WIDTH), "d": conv(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), "z": conv(WIDTH, 4)},
    ),
    "gate": Case(
        lambda m, x: m.z((y := act(m.a(x))) * m.f(act(m.e(y.mean((2, 3), keepdim=True)))).sigmoid()),
        lambda: {"a": conv(3, WIDTH), "e": conv(WIDTH, WIDTH), "f": conv(WIDTH, WIDTH), "z": conv(WIDTH, 4)},
    ),
    "flatten": Case(
        lambda m, x: m.z(act(m.f(act(m.a(x)).flatten(1)))),
        lambda: {"a": conv(3, WIDTH), "f": nn.Linear(WIDTH * 30, WIDTH), "z": nn.Linear(WIDTH, 4)},
    ),
    "split": Case(
        lambda m, x: m.z(torch.cat([act(m.b((y := act(m.a(x)).chunk(2, 1))[0])), y[1]], 1)),
        lambda: {"a": conv(3, WIDTH), "b": conv(WIDTH // 2, WIDTH), "z": conv(WIDTH + WIDTH // 2, 4)},
    ),
    "three consumers": Case(
        lambda m, x: m.z(torch.cat([m.b(y := act(m.a(x))), m.c(y), m.d(y)], 1)),
        lambda: {"a": conv(3, WIDTH), **{n: conv(WIDTH, WIDTH) for n in "bcd"}, "z": conv(3 * WIDTH, 4)},
    ),
}

Hook = Callable[[torch.Tensor], torch.Tensor]


def run_with(
    model: nn.Module, x: torch.Tensor, name: str, *, before: Hook | None = None, after: Hook | None = None
) -> torch.Tensor:
    """Run the model with the input or the output of a layer changed."""
    layer = model.get_submodule(name)
    handles = []
    if before is not None:
        handles.append(layer.register_forward_pre_hook(lambda _, inputs: (before(inputs[0]),)))
    if after is not None:
        handles.append(layer.register_forward_hook(lambda _, __, output: after(output)))
    with torch.no_grad():
        found = model(x)
    for handle in handles:
        handle.remove()
    assert isinstance(found, torch.Tensor)
    return found


def disturb(channel: int) -> Hook:
    """Return a hook that adds noise to a channel."""

    def add(x: torch.Tensor) -> torch.Tensor:
        changed = x.clone()
        changed[:, channel] += torch.randn_like(changed[:, channel])
        return changed

    return add


def find_live(model: nn.Module, x: torch.Tensor, name: str, *, inputs: bool) -> torch.Tensor:
    """Return which input or output channels of a layer change with the input and change the output."""
    seen: list[torch.Tensor] = []

    def look(value: torch.Tensor) -> torch.Tensor:
        seen.append(value.clone())
        return value

    side = "before" if inputs else "after"
    expected = run_with(model, x, name, **{side: look})
    for _ in range(3):
        run_with(model, torch.randn_like(x), name, **{side: look})
    axes = [axis for axis in range(1, seen[0].ndim + 1) if axis != 2]
    planes = torch.stack(seen)
    varies = (planes - planes[:1]).abs().amax((0, *axes)) > 1e-12  # [runs, N, C, ...]
    reads = [
        float((run_with(model, x, name, **{side: disturb(channel)}) - expected).abs().max()) > 1e-12
        for channel in range(len(varies))
    ]
    return varies & torch.tensor(reads)


def needs_carrier(model: nn.Module, x: torch.Tensor, name: str, live: torch.Tensor) -> bool:
    """Return whether a padded layer reads constants that are not zero."""
    seen: list[torch.Tensor] = []
    run_with(model, x, name, before=lambda value: seen.append(value) or value)  # type: ignore[func-returns-value]
    constants = seen[0].abs().amax((0, 2, 3)) > 0
    reads = model.get_parameter(f"{name}.weight").abs().amax((0, 2, 3)) > 0
    return bool((constants & reads & ~live).any())


def count_best(case: Case, model: nn.Module, x: torch.Tensor) -> int:
    """Return the fewest multiply-adds."""
    names = [name for name, _ in model.named_children()]
    rows = {name: int(find_live(model, x, name, inputs=False).sum()) for name in names}
    rows["z"] = model.get_parameter("z.weight").shape[0]
    live = {name: find_live(model, x, name, inputs=True) for name in names}
    columns = {name: int(found.sum()) for name, found in live.items()}
    for name, producer in case.carriers.items():
        if needs_carrier(model, x, name, live[name]):
            columns[name] += 1
            rows[producer] += 1
    planes: dict[str, int] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: planes.__setitem__(name, output[0, 0].numel() * output.shape[0])
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    total = 0
    for name in names:
        weight = model.get_parameter(f"{name}.weight")
        width = min(columns[name], weight.shape[1]) if weight.shape[1] > 1 else 1
        total += rows[name] * width * weight[0, 0].numel() * planes[name]
    return total


def draw_filters(model: nn.Module, share: float) -> dict[str, torch.Tensor]:
    """Return masks without a share of the rows of every layer but the last."""
    masks = {}
    for name, module in model.named_children():
        weight = module.get_parameter("weight")
        mask = torch.ones(weight.shape, dtype=torch.bool)
        if name != "z":
            mask[torch.randperm(weight.shape[0])[: round(share * weight.shape[0])]] = False
        masks[f"{name}.weight"] = mask
    return masks


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", list(CASES))
def test_pass_reaches_what_the_rules_allow(name: str, share: float) -> None:
    case = CASES[name]
    model, x = double(Function(case.forward, **case.layers())), image(*SHAPE)
    masks = draw_filters(model, share)
    apply_masks(model, masks)
    best = count_best(case, model, x)
    _, record, error = eliminate(model, masks, (x,), EliminateChannels(adds="compact"))
    assert error <= GATE
    assert record.macs_after <= ROOM * best, f"{record.macs_after} multiply-adds, best {best}: {record.refusals}"
    assert record.macs_after < record.macs_before
    assert record.macs_after >= best / ROOM, f"{record.macs_after} multiply-adds, fewer than the best {best}"
