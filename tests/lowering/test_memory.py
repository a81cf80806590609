"""The plan of the arena: what is alive at the same time lies apart, and buffers that take turns share their middle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fxprune.lowering.plan import Interval, plan_memory

_INTERVALS = st.lists(
    st.tuples(st.integers(1, 500), st.integers(0, 20), st.integers(0, 6)).map(
        lambda drawn: Interval(drawn[0], drawn[1], drawn[1] + drawn[2])
    ),
    max_size=25,
)


@given(_INTERVALS)
def test_no_two_live_buffers_share_a_cell(intervals: list[Interval]) -> None:
    places, size = plan_memory(intervals)
    for index, (one, start) in enumerate(zip(intervals, places, strict=True)):
        assert start % 16 == 0
        assert 0 <= start <= start + one.cells <= size
        for other, begin in list(zip(intervals, places, strict=True))[:index]:
            alive = one.first <= other.last and other.first <= one.last
            assert not alive or start >= begin + other.cells or begin >= start + one.cells


@given(_INTERVALS)
def test_the_arena_is_no_larger_than_all_buffers(intervals: list[Interval]) -> None:
    assert plan_memory(intervals)[1] <= sum(-(-interval.cells // 16) * 16 for interval in intervals)


def test_buffers_that_take_turns_share_their_middle() -> None:
    places, size = plan_memory([Interval(6400, 0, 1), Interval(1600, 2, 3), Interval(320, 4, 5)])
    assert size == 6400
    assert [place + cells / 2 for place, cells in zip(places, (6400, 1600, 320), strict=True)] == [3200, 3200, 3200]


def test_the_smallest_free_slot_is_taken() -> None:
    places, size = plan_memory([Interval(1600, 0, 1), Interval(160, 1, 1), Interval(96, 2, 3)])
    assert size == 1760
    assert places[2] == 1600 + 32


def test_of_equal_slots_the_one_used_last_is_taken() -> None:
    """Its memory is still in the cache."""
    first, second = Interval(1600, 0, 3), Interval(1600, 3, 6)
    places, _ = plan_memory([first, second, Interval(1500, 7, 8)])
    assert abs(places[2] - places[1]) < 100
    places, _ = plan_memory([second, first, Interval(1500, 7, 8)])
    assert abs(places[2] - places[0]) < 100
