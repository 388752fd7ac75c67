"""Incidents are made at once as far as the agent's own memory allows; the rest waits, and nothing that is too large is begun."""

from __future__ import annotations

import asyncio

import pytest

from sentinel_agent.capture.room import FIRST_NEEDS, LEAST_NEEDED, Room


class Memory:
    """So many bytes are left; an incident takes `takes`, which stay with the process."""

    def __init__(self, left: int | None) -> None:
        self.left = left
        self.given_back = 0

    def give_back(self) -> None:
        self.given_back += 1


def room(memory: Memory) -> Room:
    return Room(lambda: memory.left, memory.give_back)


async def turns(asyncio_room: Room, count: int) -> tuple[list[str | None], int]:
    """The value of each place, and how many were held at once."""
    inside = most = 0

    async def one() -> str | None:
        nonlocal inside, most
        async with asyncio_room.place() as lacking:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            inside -= 1
        return lacking

    return list(await asyncio.gather(*(one() for _ in range(count)))), most


async def test_without_a_limit_none_waits() -> None:
    """Where nothing limits the agent, all have a place at once and nothing is given back."""
    memory = Memory(None)
    assert await turns(room(memory), 5) == ([None] * 5, 5)
    assert memory.given_back == 0


async def test_as_many_as_have_room() -> None:
    """With room for two, the third waits until one has ended."""
    shared, done, entered = room(Memory(2 * FIRST_NEEDS)), asyncio.Event(), []

    async def one(number: int) -> None:
        async with shared.place() as lacking:
            assert lacking is None
            entered.append(number)
            await done.wait()

    tasks = [asyncio.create_task(one(number)) for number in range(3)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert entered == [0, 1]
    done.set()
    await asyncio.gather(*tasks)
    assert entered == [0, 1, 2]


async def test_where_there_is_no_room_for_one_nothing_is_captured() -> None:
    """One by one, each with the reason; the readings can still be saved."""
    found, most = await turns(room(Memory(LEAST_NEEDED - 1)), 3)
    assert most == 1
    assert all(reason and "memory limit" in reason for reason in found)


async def test_the_next_needs_what_the_last_one_took() -> None:
    """What the first leaves behind is used again: with less left than the first may need there is still room for others."""
    memory = Memory(FIRST_NEEDS)
    tight = room(memory)
    async with tight.place() as lacking:
        assert lacking is None
        memory.left = LEAST_NEEDED
    assert await turns(tight, 2) == ([None, None], 1)
    memory.left = 3 * LEAST_NEEDED
    async with tight.place() as lacking:
        assert lacking is None
        memory.left = LEAST_NEEDED
    (skipped, again), _ = await turns(tight, 2)
    assert skipped is not None, "it took two shares: the next may, too"
    assert again is None, "that is not held against the others for ever"


async def test_one_that_is_ended_leaves_its_place() -> None:
    """An incident that is cancelled, inside or while it waits, keeps nobody out."""
    tight = room(Memory(FIRST_NEEDS))
    entered = asyncio.Event()

    async def hold() -> None:
        async with tight.place():
            entered.set()
            await asyncio.Event().wait()

    holder, waiter = asyncio.create_task(hold()), None
    await entered.wait()
    waiter = asyncio.create_task(hold())
    await asyncio.sleep(0)
    for task in (waiter, holder):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await turns(tight, 1) == ([None], 1)
