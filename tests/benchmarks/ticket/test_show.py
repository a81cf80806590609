"""The ticket that lies with the code: its files fit together, and the demonstration shows it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

pytest.importorskip("mlxtend", reason="the extra `bench` is not installed")

from benchmarks.ticket.preset import PRESETS
from benchmarks.ticket.shipped import load_ticket
from benchmarks.ticket.show import show_ticket
from fxprune.lottery import measure_accuracy, measure_density


def test_the_shipped_ticket_is_as_sparse_and_as_right_as_its_recipe_says() -> None:
    ticket = load_ticket()
    _, tests = PRESETS[ticket.preset].read_images()
    assert measure_density(ticket.masks) == ticket.density < 0.3
    assert measure_accuracy(ticket.model, tests) == pytest.approx(ticket.accuracy, abs=2 / 4000)
    for name, mask in ticket.masks.items():
        assert not bool(ticket.model.get_parameter(name)[~mask].any())


@pytest.mark.slow
def test_the_shipped_ticket_is_compiled_and_timed() -> None:
    text = io.StringIO()
    show_ticket(Console(file=text, width=200), 8, 1)
    assert "Batch 8: fxprune" in text.getvalue()
    assert "regroup 8, round 7" in text.getvalue()
