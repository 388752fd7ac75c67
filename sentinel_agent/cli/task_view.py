"""asyncio tasks as a person reads them: groups with what has grown or is largest first, or the tree of who awaits whom."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.capture.task_groups import context_in_words
from sentinel_agent.cli.output import clean, short_path, show_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sentinel_agent.capture.stacks import StackFrame
    from sentinel_agent.capture.task_groups import Origin, TaskEntry, TaskGroup, TasksDocument

_DEEPEST = 30
_WIDEST = 200
_BRANCHES = 200
"""Most lines of a tree."""
_LONGEST_NAME = 60
_ROOT = 0


def groups(document: TasksDocument, most: int | None) -> Iterator[str]:
    """Each group once: how many, which coroutine, what it waits on, its await chain from the outside in."""
    yield from _compared(document)
    shown = document.groups if most is None else document.groups[:most]
    for group in shown:
        yield clean(_first_line(group), _WIDEST)
        for frame in group.frames[:_DEEPEST]:
            yield f"    {place(frame)}"
        if group.waiting_on:
            yield clean(f"    waiting on {group.waiting_on}", _WIDEST)
        if group.context:
            yield clean(f"    for {context_in_words(group)}", _WIDEST)
        names = ", ".join(group.names[:3]) + (", ..." if group.count > 3 else "")
        yield clean(f"    {'named' if group.count > 1 else 'name'} {names}", _WIDEST)
    if len(shown) < len(document.groups):
        rest = sum(group.count for group in document.groups[len(shown) :])
        yield f"... {rest} more tasks in {len(document.groups) - len(shown)} more groups"
    yield from _doubts(document)


def _first_line(group: TaskGroup) -> str:
    """`500 x leak, was 0  (500 waiting)`."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(group.states.items()))
    was = f", was {group.was}" if group.was is not None else ""
    return f"{group.count} x {group.coroutine}{was}  ({states})"


def _compared(document: TasksDocument) -> Iterator[str]:
    before = document.compared_with
    if before is None:
        return
    sampled = f", of which each {before.every}th was read: counts are estimates" if before.every > 1 else ""
    yield f"compared with {show_time(before.time)[:19]}, when all was well: {before.count} tasks then{sampled}"
    if not document.grown:
        yield "no coroutine has more tasks than then, as far as that can be told"


def origins(document: TasksDocument, most: int | None = None) -> Iterator[str]:
    """Where the tasks come from, as far as it is known: first of the coroutines that have grown."""
    if not document.origins:
        return
    grown = {each.coroutine for each in document.grown}
    order = sorted(document.origins, key=lambda origin: origin.coroutine not in grown)
    yield "Where they come from (CPython does not keep who created a task):"
    for origin in order[:most]:
        yield clean(f"    {origin.count} x {origin.coroutine}: {_origin(origin)}", _WIDEST)


def _origin(origin: Origin) -> str:
    if origin.awaited_by is not None:
        return f"awaited by {place(origin.awaited_by)}"
    if origin.defined is not None:
        return f"awaited by nobody that is known; written in {short_path(origin.defined.file)}:{origin.defined.line}"
    return "not known"


@dataclass(frozen=True, slots=True)
class _Like:
    """What makes tasks alike in the tree: they stand under alike ones, and are at the same place."""

    coroutine: str
    frames: tuple[StackFrame, ...]


def tree(document: TasksDocument) -> Iterator[str]:
    """The tasks under those that await them, alike ones together; who is awaited by nobody that is known stands at the root.

    The links are the reader's, by identity: names may repeat. A task with several awaiters stands under the first one. What is
    awaited in a circle stands at the root, once.
    """
    parents = _parents(document.tasks)
    children: defaultdict[int, list[TaskEntry]] = defaultdict(list)
    for task in document.tasks:
        children[parents.get(task.id, _ROOT)].append(task)
    yield f"{document.count} tasks"
    left = [_BRANCHES]
    yield from _branches(children[_ROOT], children, "", left, _DEEPEST)
    if left[0] <= 0:
        yield "... the rest is left out; --json has every task"
    if len(document.tasks) < document.count:
        yield f"{document.count - len(document.tasks)} tasks are not in the tree"
    yield from _doubts(document)


def _parents(tasks: Sequence[TaskEntry]) -> dict[int, int]:
    """The first awaiter of each task that has one; a circle is cut open at one of its tasks."""
    known = {task.id for task in tasks}
    parents = {
        task.id: parent
        for task in tasks
        for parent in [next((each for each in task.awaited_by if each in known), None)]
        if parent is not None
    }
    sound: set[int] = set()
    for task in tasks:
        path: dict[int, None] = {}
        at = task.id
        while at in parents and at not in sound:
            if at in path:
                del parents[at]
                break
            path[at] = None
            at = parents[at]
        sound.update(path)
    return parents


def _branches(
    tasks: Sequence[TaskEntry],
    children: dict[int, list[TaskEntry]],
    indent: str,
    left: list[int],
    depth: int,
) -> Iterator[str]:
    alike: defaultdict[_Like, list[TaskEntry]] = defaultdict(list)
    for task in tasks:
        alike[_Like(task.coroutine, task.frames)].append(task)
    groups = sorted(alike.items(), key=lambda item: (-len(item[1]), item[0].coroutine))
    for number, (like, members) in enumerate(groups):
        if left[0] <= 0:
            return
        left[0] -= 1
        last = number == len(groups) - 1
        yield clean(f"{indent}{'└─' if last else '├─'} {_node(like, members)}", _WIDEST)
        deeper = [child for member in members for child in children.get(member.id, ())]
        if deeper and depth > 1:
            yield from _branches(deeper, children, indent + ("   " if last else "│  "), left, depth - 1)
        elif deeper:
            yield f"{indent}   ... deeper ones are left out"


def _node(like: _Like, members: Sequence[TaskEntry]) -> str:
    """`300 x handler (a.py:12) > backend (a.py:5), waiting on Future`."""
    states = Counter(member.state for member in members)
    waits = {member.waiting_on for member in members}
    chain = " > ".join(
        [place(frame) for frame in like.frames[:1]] + [frame.function for frame in like.frames[1:4]]
    )
    if len(like.frames) > 4:
        chain += " > ..."
    on = f", waiting on {waits.pop()}" if len(waits) == 1 and None not in waits else ""
    state = (
        ""
        if set(states) == {"waiting"}
        else f", {', '.join(f'{count} {state}' for state, count in states.items())}"
    )
    who = f"{clean(members[0].name, _LONGEST_NAME)}: " if len(members) == 1 else f"{len(members)} x "
    first = members[0].context
    same = first and all(member.context == first for member in members)
    what = f", for {' '.join(f'{name}={value}' for name, value in first.items())}" if same else ""
    return f"{who}{chain or like.coroutine}{on}{state}{what}"


def place(frame: StackFrame) -> str:
    """`function (file:line)`, safe to show."""
    return clean(f"{frame.function} ({short_path(frame.file)}:{frame.line})", _WIDEST)


def _doubts(document: TasksDocument) -> Iterator[str]:
    if document.unreadable:
        yield f"{document.unreadable} tasks changed while they were read and are left out"
    if document.truncated:
        yield "there are more tasks than were read"
