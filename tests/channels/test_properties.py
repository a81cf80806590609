"""Random networks and masks: the output stays, a second run changes nothing, multiply-adds never grow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxprune.passes import EliminateChannels
from fxprune.passes.eliminate_channels import ADDS
from tests.channels.drawn import BLOCKS, HEADS, PLANE, draw_masks, draw_network
from tests.channels.toys import GATE, eliminate
from tests.networks import image

CASES = {
    "blocks": st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=5),
    "head": st.sampled_from(sorted(HEADS)),
    "share": st.sampled_from([0.2, 0.5, 0.8, 1.0]),
    "options": st.builds(EliminateChannels, round_to=st.sampled_from([1, 1, 4]), adds=st.sampled_from(ADDS)),
    "seed": st.integers(0, 2**31),
}
_SLOW_EXAMPLES = [HealthCheck.too_slow]


def check(blocks: list[str], head: str, share: float, options: EliminateChannels, seed: int) -> None:
    """Check one network; `eliminate` checks the second run and the multiply-adds."""
    torch.manual_seed(seed)
    model, x = draw_network(blocks, head), image(2, 3, *PLANE)
    *_, error = eliminate(model, draw_masks(model, share), (x,), options)
    assert error <= GATE, f"error {error:.1e}"


@given(**CASES)
@settings(max_examples=100, suppress_health_check=_SLOW_EXAMPLES)
def test_random_networks(blocks: list[str], head: str, share: float, options: EliminateChannels, seed: int) -> None:
    check(blocks, head, share, options, seed)


@pytest.mark.slow
@given(**CASES)
@settings(max_examples=10_000, derandomize=False, suppress_health_check=_SLOW_EXAMPLES)
def test_many_random_networks(
    blocks: list[str], head: str, share: float, options: EliminateChannels, seed: int
) -> None:
    check(blocks, head, share, options, seed)
