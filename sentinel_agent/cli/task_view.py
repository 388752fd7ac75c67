"""asyncio tasks as a person reads them: groups with the most tasks first, or the await chains merged into a tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sentinel_agent.cli.output import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentinel_agent.capture.stacks import StackFrame
    from sentinel_agent.capture.tasks import TasksDocument

_DEEPEST = 30
_WIDEST = 200


def groups(document: TasksDocument, most: int | None) -> Iterator[str]:
    """Each group once: how many, which coroutine, what it waits on, its await chain from the outside in."""
    shown = document.groups if most is None else document.groups[:most]
    for group in shown:
        states = ", ".join(f"{count} {state}" for state, count in sorted(group.states.items()))
        names = ", ".join(group.names[:3]) + (", ..." if group.count > 3 else "")
        yield clean(f"{group.count} x {group.coroutine}  ({states})  {names}", _WIDEST)
        for frame in group.frames[:_DEEPEST]:
            yield f"    {_place(frame)}"
        if group.waiting_on:
            yield clean(f"    waiting on {group.waiting_on}", _WIDEST)
    if len(shown) < len(document.groups):
        yield f"... {len(document.groups) - len(shown)} more groups"
    yield from _doubts(document)


@dataclass(slots=True)
class _Node:
    count: int = 0
    inner: dict[str, _Node] = field(default_factory=dict)


def tree(document: TasksDocument) -> Iterator[str]:
    """The await chains of all tasks, merged where they are alike, with the number of tasks on each branch."""
    root = _Node()
    for group in document.groups:
        node = root
        node.count += group.count
        for frame in group.frames[:_DEEPEST]:
            node = node.inner.setdefault(_place(frame), _Node())
            node.count += group.count
    yield f"{root.count} tasks"
    yield from _branches(root, "")
    yield from _doubts(document)


def _branches(node: _Node, indent: str) -> Iterator[str]:
    children = sorted(node.inner.items(), key=lambda item: (-item[1].count, item[0]))
    for number, (place, child) in enumerate(children):
        last = number == len(children) - 1
        yield f"{indent}{'└─' if last else '├─'} {child.count} {place}"
        yield from _branches(child, indent + ("   " if last else "│  "))


def _place(frame: StackFrame) -> str:
    return clean(f"{frame.function} ({frame.file}:{frame.line})", _WIDEST)


def _doubts(document: TasksDocument) -> Iterator[str]:
    if document.unreadable:
        yield f"{document.unreadable} tasks changed while they were read and are left out"
    if document.truncated:
        yield "there are more tasks than were read"
