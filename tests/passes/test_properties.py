"""What holds for every network: rules kept, output kept, a second run changes nothing, the printer never fails."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxprune.passes import EliminateChannels, run_passes
from fxprune.printer import format_graph
from fxprune.verify import verify
from tests.networks import PIPELINE, apply_masks, build, difference, double, image, random_masks, reference, run

CHANNELS = 4

BLOCKS: dict[str, list[nn.Module]] = {
    "conv": [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)],
    "conv norm relu": [nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)],
    "depthwise": [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS), nn.BatchNorm2d(CHANNELS), nn.ReLU6()],
    "grouped": [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2), nn.Hardswish()],
    "up": [nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.SiLU()],
    "norm first": [nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 1)],
    "shuffle": [nn.ChannelShuffle(2)],
}


class Drawn(nn.Module):
    """Blocks in a row, some with a shortcut, some on half of a concatenation, and a classifier."""

    def __init__(self, plan: list[tuple[str, str]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(*(fresh(layer) for layer in BLOCKS[name])) for name, _ in plan)
        self.joins = [join for _, join in plan]
        self.fc = nn.Linear(CHANNELS, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, join in zip(self.blocks, self.joins, strict=True):
            y = block(x)
            if join == "add":
                y = torch.relu(y + x)
            if join == "cat":
                y = torch.cat([y[:, ::2], x[:, 1::2]], 1)
            x = y
        result: torch.Tensor = self.fc(x.mean((2, 3)))
        return result


def fresh(layer: nn.Module) -> nn.Module:
    """Return a new layer of the same kind, with new random numbers."""
    clone = nn.Module.__new__(type(layer))
    clone.__dict__ = {**layer.__dict__, "_parameters": {}, "_buffers": {}}
    clone._parameters = {
        name: None if value is None else nn.Parameter(torch.randn_like(value))
        for name, value in layer._parameters.items()
    }
    clone._buffers = {name: None if value is None else value.clone() for name, value in layer._buffers.items()}
    return clone


PLANS = st.lists(
    st.tuples(st.sampled_from(sorted(BLOCKS)), st.sampled_from(["", "add", "cat"])), min_size=1, max_size=4
)


@settings(max_examples=settings().max_examples // 3)
@given(plan=PLANS, density=st.sampled_from([0.0, 0.3, 1.0]))
def test_pipeline(plan: list[tuple[str, str]], density: float) -> None:
    model, x = double(Drawn(plan)), image(2, CHANNELS, 5, 5)
    masks = random_masks(model, density)
    gm = build(model, x, masks=masks)
    expected = reference(apply_masks(model, masks), x)

    for step in PIPELINE:
        first, second = run_passes(gm, (step, step))
        verify(gm)
        assert difference(run(gm, x)[0], expected) < 1e-9
        assert not second.modified
        counts = [(first.nnz_before, first.macs_before), (first.nnz_after, first.macs_after)]
        assert counts[0] == counts[1] or (isinstance(step, EliminateChannels) and min(counts) == counts[1])
        assert format_graph(gm)
