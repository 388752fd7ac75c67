"""The linked lists in which CPython 3.14 and later keep the tasks that are not done.

Each thread has a list of the tasks made in it, each interpreter one for those whose threads have ended (`asyncio_tasks_head`,
Include/internal/pycore_tstate.h and pycore_interp_structs.h; `register_task`, Modules/_asynciomodule.c). A list is a ring
through its head; a task that ends is taken out, its links set to 0; a new one comes last (pycore_llist.h).

So a count costs a walk over all tasks. The walk can be done in parts, goes on at the last task that is still listed, and believes
a link only if it is there in both directions.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sentinel_agent.cpython.layouts import TASK_OFFSETS_SIZE, told_of_tasks
from sentinel_agent.cpython.memory import UnreadableError, must_read

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.cpython.layouts.model import Layout
    from sentinel_agent.cpython.objects import Objects
    from sentinel_agent.cpython.threads import Threads

MAX_TASKS = 1 << 22
_BLOCK = 1 << 14  # read at once: several tasks lie in as much, and more of it would cost more than it saves
_TEARS = 100  # how often one call may find a task taken out under it before it gives up
_LINKS = struct.Struct("<QQ")


class TaskLists:
    """The lists of all threads. `find_offsets` gives the address of what `_asyncio` tells of its structs, None if that is not there."""

    def __init__(self, objects: Objects, threads: Threads, find_offsets: Callable[[], int | None]) -> None:
        self._objects = objects
        self._threads = threads
        self._find_offsets = find_offsets
        self._layout: Layout | None = None
        self._under_way: _Pass | None = None
        self.steps = 0

    def addresses(self) -> list[int]:
        """Addresses of all listed tasks.

        Raises:
            UnreadableError: a list cannot be followed.
        """
        walk = self._new_pass()
        if not walk.go_on(MAX_TASKS):
            raise UnreadableError(f"there are more than {MAX_TASKS} asyncio tasks")
        node_at = self._told_layout().task.node
        return [node - node_at for node in walk.nodes]

    def count(self, most: int) -> int | None:
        """How many tasks are listed, following at most `most` links; None if that was not enough: the next call goes on.

        Raises:
            UnreadableError: a list cannot be followed; the next call begins anew.
        """
        walk, self._under_way = self._under_way or self._new_pass(), None
        before = walk.followed
        try:
            finished = walk.go_on(most)
        finally:
            self.steps = walk.followed - before
        if not finished:
            self._under_way = walk
        return len(walk.nodes) if finished else None

    def _new_pass(self) -> _Pass:
        layout = self._told_layout()
        heads = []
        for interp, threads in self._threads.states():
            heads.append(interp + layout.interp.tasks_head)
            heads += [thread + layout.thread.tasks_head for thread in threads]
        return _Pass(self._objects, heads)

    def _told_layout(self) -> Layout:
        if self._layout is None:
            objects, address = self._objects, self._find_offsets()
            self._layout = objects.layout
            if address is not None:
                told = must_read(objects.memory, address, TASK_OFFSETS_SIZE)
                self._layout = told_of_tasks(objects.layout, told)
        return self._layout


class _Pass:
    """One walk over all lists. `nodes` are those met so far that are still believed, `followed` is how many links it took."""

    def __init__(self, objects: Objects, heads: list[int]) -> None:
        self.nodes: list[int] = []
        self.followed = 0
        self._memory = objects.memory
        self._heads = heads[::-1]
        self._all_heads = frozenset(heads)
        self._start = 0  # how many nodes the lists before this one have

    def go_on(self, most: int) -> bool:
        """Follow at most `most` links more; whether all lists were followed to their ends."""
        blocks: dict[int, bytes] = {}
        tears = 0
        while self._heads:
            before = len(self.nodes)
            ended = self._follow(before + most, blocks)
            followed = len(self.nodes) - before
            self.followed, most = self.followed + followed, most - followed
            if ended:
                self._heads.pop()
                self._start = len(self.nodes)
            elif most <= 0:
                return False
            elif tears == _TEARS:
                raise UnreadableError(
                    "the list of asyncio tasks changes faster than it can be read, or is corrupt"
                )
            else:
                tears += 1
                self._step_back(blocks)
        return True

    def _follow(self, last: int, blocks: dict[int, bytes]) -> bool:
        """Follow the present list until `last` nodes are met or a link is there in one direction only; whether it ended."""
        nodes, heads, unpack = self.nodes, self._all_heads, _LINKS.unpack_from
        here = nodes[-1] if len(nodes) > self._start else self._heads[-1]
        node = self._links(here, blocks)[0]
        if not node and here in heads:
            return True  # the thread has not made its list yet
        while node not in heads:
            if len(nodes) >= last:
                return False
            try:
                following, previous = unpack(blocks.get(node // _BLOCK, b""), node % _BLOCK)
            except struct.error:
                following, previous = self._links(node, blocks)
            if previous != here:
                return False
            nodes.append(node)
            here, node = node, following
        return True

    def _links(self, node: int, blocks: dict[int, bytes]) -> tuple[int, int]:
        """Next and previous node, 0 where there is none to be read."""
        number, at = divmod(node, _BLOCK)
        block = blocks.get(number)
        if block is None:
            block = blocks[number] = self._memory.read(number * _BLOCK, _BLOCK) or b""
        if at + 16 > len(block):
            block, at = self._memory.read(node, 16) or bytes(16), 0
        following, previous = _LINKS.unpack_from(block, at)
        return following, previous

    def _step_back(self, blocks: dict[int, bytes]) -> None:
        """Forget what was read, and the last nodes until one is still listed; farther back each time, since many may be gone."""
        blocks.clear()
        farther = 1
        while len(self.nodes) > self._start:
            here = self.nodes[-1]
            following = self._links(here, blocks)[0]
            if following and self._links(following, blocks)[1] == here:
                break
            del self.nodes[max(self._start, len(self.nodes) - farther) :]
            farther *= 2
