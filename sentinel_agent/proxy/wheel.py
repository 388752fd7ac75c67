"""Deadlines of many connections at the price of one timer. Pure: the time is given.

Each connection is in one slot, never after its deadline. A deadline that moves into the future costs one assignment:
the connection is found in its old slot, and put where it belongs then. Most deadlines only ever move that way.
"""

from __future__ import annotations

from typing import Final, Protocol

SLOTS_PER_SECOND: Final = 20
NOWHERE: Final = 1 << 62
"""The slot of what is not in the wheel."""


class Timed(Protocol):
    """What has a deadline. The wheel keeps both fields; begin with `slot = NOWHERE`."""

    deadline: float
    slot: int

    def expire(self, now: float) -> None:
        """The deadline has passed; it is out of the wheel."""
        ...


class Wheel:
    """Who must be looked at when."""

    def __init__(self, now: float) -> None:
        self._slots: dict[int, dict[Timed, None]] = {}
        self._at = int(now * SLOTS_PER_SECOND)

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def arm(self, item: Timed, deadline: float) -> None:
        """Give `item` a deadline, in place of any earlier one."""
        item.deadline = deadline
        if deadline * SLOTS_PER_SECOND < item.slot - 1:
            self._move(item, int(deadline * SLOTS_PER_SECOND) + 1)

    def _move(self, item: Timed, slot: int) -> None:
        self.drop(item)
        slot = max(slot, self._at + 1)
        item.slot = slot
        items = self._slots.get(slot)
        if items is None:
            items = self._slots[slot] = {}
        items[item] = None

    def drop(self, item: Timed) -> None:
        """Take `item` out, if it is in."""
        items = self._slots.get(item.slot)
        if items is not None:
            items.pop(item, None)
            if not items:
                del self._slots[item.slot]
        item.slot = NOWHERE

    def turn(self, now: float) -> int:
        """Expire all whose deadline has passed; how many."""
        end = int(now * SLOTS_PER_SECOND)
        if end - self._at > len(self._slots):
            due = sorted(slot for slot in self._slots if slot <= end)
        else:
            due = [slot for slot in range(self._at + 1, end + 1) if slot in self._slots]
        self._at = end
        count = 0
        for slot in due:
            for item in self._slots.pop(slot):
                item.slot = NOWHERE
                if item.deadline > now:
                    self._move(item, int(item.deadline * SLOTS_PER_SECOND) + 1)
                else:
                    count += 1
                    item.expire(now)
        return count
