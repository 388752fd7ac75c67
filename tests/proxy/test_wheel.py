"""Deadlines: never early, at most a slot late, and nothing kept of what has ended."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.proxy.wheel import NOWHERE, SLOTS_PER_SECOND, Wheel


class Item:
    def __init__(self) -> None:
        self.deadline = 0.0
        self.slot = NOWHERE
        self.expired: list[float] = []

    def expire(self, now: float) -> None:
        self.expired.append(now)


@given(
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), min_size=1, max_size=20),
    st.lists(st.floats(0.01, 3), max_size=40),
)
def test_a_deadline_is_met_at_the_first_turn_after_it(
    deadlines: list[tuple[float, float]], steps: list[float]
) -> None:
    """Whatever moves: nobody expires before the last deadline given, nor later than one turn and two slots after."""
    wheel = Wheel(0.0)
    items = []
    for first, second in deadlines:
        item = Item()
        wheel.arm(item, first)
        wheel.arm(item, second)
        items.append(item)
    now = 0.0
    turns = [0.0]
    for step in steps:
        now += step
        turns.append(now)
        wheel.turn(now)
    for item in items:
        assert len(item.expired) <= 1
        if item.expired:
            assert item.expired[0] >= item.deadline
            earlier = [turn for turn in turns if turn < item.expired[0]]
            assert not earlier or earlier[-1] <= item.deadline + 2 / SLOTS_PER_SECOND
        else:
            assert item.deadline > now - 2 / SLOTS_PER_SECOND


def test_a_deadline_that_moves_on_costs_no_move() -> None:
    """The item stays where it is until its old slot comes up."""
    wheel, item = Wheel(0.0), Item()
    wheel.arm(item, 5.0)
    slot = item.slot
    wheel.arm(item, 50.0)
    assert item.slot == slot
    assert wheel.turn(6.0) == 0
    assert item.slot > slot
    assert wheel.turn(51.0) == 1


def test_what_is_dropped_is_not_kept() -> None:
    """A closed connection leaves nothing behind, however far its deadline."""
    wheel = Wheel(0.0)
    items = [Item() for _ in range(100)]
    for number, item in enumerate(items):
        wheel.arm(item, 1000.0 + number)
        wheel.arm(item, 10.0)
    assert len(wheel) == 100
    for item in items:
        wheel.drop(item)
    assert len(wheel) == 0
    assert wheel.turn(2000.0) == 0


def test_an_item_may_arm_itself_again_while_it_expires() -> None:
    """As a connection does that gets a second deadline."""
    wheel = Wheel(0.0)

    class Again(Item):
        def expire(self, now: float) -> None:
            super().expire(now)
            if len(self.expired) < 3:
                wheel.arm(self, now)

    item = Again()
    wheel.arm(item, 1.0)
    for now in (1.1, 1.3, 1.5, 1.7):
        wheel.turn(now)
    assert len(item.expired) == 3
