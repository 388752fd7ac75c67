"""Stacks merged into a flame graph: levels of bars as Pyroscope's API has them, and the difference of two.

Layout: grafana/pyroscope, api/querier/v1/querier.proto, message FlameGraph. A level is a flat list, left to right, of
(gap to the end of the previous bar, total, self, index of the name) for each bar; of a difference, seven numbers:
gap, total and self of the left one, the same of the right one, index. The root's name is `total`. A bar without
width is never written: a reader would hang it under the wrong parent.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Folded = dict[tuple[str, ...], int]
"""What each stack (root first, never empty) costs, in the profile type's unit."""

OTHER = "other"
"""The child that holds what was left out under its parent."""
MAX_NODES = 1 << 20
_MAX_UNFOLDED = 4_000_000
"""The frames of all its bars' stacks together: 32 MiB."""


@dataclass(frozen=True, slots=True)
class FlameGraph:
    """`levels` has the root first; `max_self` is the highest self value. The ticks are those of a difference."""

    names: tuple[str, ...]
    levels: tuple[tuple[int, ...], ...]
    total: int
    max_self: int
    left_ticks: int = 0
    right_ticks: int = 0


@dataclass(slots=True)
class _Node:
    """A place in the tree; `own` and `total` have one value for each side."""

    name: str
    own: list[int]
    total: list[int]
    children: dict[str, _Node] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return sum(self.total)


def flame_graph(stacks: Folded, max_nodes: int) -> FlameGraph | None:
    """The widest `max_nodes` nodes; what is left out is in a child `other` of its parent. None for no stacks."""
    return _encode((stacks,), max_nodes)


def difference(left: Folded, right: Folded, max_nodes: int) -> FlameGraph | None:
    """Both side by side: a bar has the width of left and right together."""
    return _encode((left, right), max_nodes)


def below(stacks: Folded, call_site: Sequence[str]) -> Folded:
    """The stacks that begin with `call_site` (root first), whole."""
    site, depth = tuple(call_site), len(call_site)
    return {stack: value for stack, value in stacks.items() if stack[:depth] == site}


def unfold(names: Sequence[str], levels: Sequence[Sequence[int]], sides: int) -> tuple[Folded, ...]:
    """The stacks of an encoded flame graph (`sides` 1) or difference (2), which somebody else may have written.

    Raises:
        ValueError, IndexError: it is none: a bar without a parent, of negative width, or with a name that is not there; or it
            is so large that its stacks would take much memory.
    """
    room = _MAX_UNFOLDED
    found: tuple[Folded, ...] = tuple({} for _ in range(sides))
    size = 3 * sides + 1
    parents: list[tuple[int, tuple[str, ...]]] = []  # where each bar of the level above ends, and its path
    for depth, values in enumerate(levels):
        if len(values) % size:
            raise ValueError("a level of a flame graph has half a bar")
        row: list[tuple[int, tuple[str, ...]]] = []
        above, at = 0, 0
        for begin in range(0, len(values), size):
            *figures, name = values[begin : begin + size]
            width = sum(figures[1::3])
            at += sum(figures[0::3])
            if min(figures) < 0 or width <= 0 or name < 0:
                raise ValueError("a bar of a flame graph has no width")
            path: tuple[str, ...] = ()
            if depth:
                while at >= parents[above][0]:
                    above += 1
                path = (*parents[above][1], names[name])
                room -= depth
                if room < 0:
                    raise ValueError("a flame graph is larger than any of ours")
            at += width
            row.append((at, path))
            for side, own in zip(found, figures[2::3], strict=True):
                if own and path:
                    side[path] = side.get(path, 0) + own
        parents = row
    return found


def _encode(sides: Sequence[Folded], max_nodes: int) -> FlameGraph | None:
    root = _tree(sides)
    if root.width <= 0:
        return None
    _fold(root, min(max(max_nodes, 1), MAX_NODES))
    names: dict[str, int] = {"total": 0}
    levels: list[tuple[int, ...]] = []
    max_self = 0
    # (node, where it begins on each side); a whole level at a time
    row: list[tuple[_Node, list[int]]] = [(root, [0] * len(sides))]
    while row:
        values: list[int] = []
        ends = [0] * len(sides)
        below_row: list[tuple[_Node, list[int]]] = []
        for node, starts in row:
            max_self = max(max_self, sum(node.own))
            for side, start in enumerate(starts):
                values += (start - ends[side], node.total[side], node.own[side])
                ends[side] = start + node.total[side]
            values.append(names.setdefault(node.name, len(names)))
            at = [start + own for start, own in zip(starts, node.own, strict=True)]
            for child in sorted(node.children.values(), key=lambda child: (child.name == OTHER, child.name)):
                below_row.append((child, at))
                at = [start + total for start, total in zip(at, child.total, strict=True)]
        levels.append(tuple(values))
        row = below_row
    left, right = (root.total[0], root.total[1]) if len(sides) == 2 else (0, 0)
    return FlameGraph(tuple(names), tuple(levels), root.width, max_self, left, right)


def _tree(sides: Sequence[Folded]) -> _Node:
    zero = [0] * len(sides)
    root = _Node("total", [*zero], [*zero])
    for side, stacks in enumerate(sides):
        for stack, value in stacks.items():
            if value <= 0:
                continue
            node = root
            node.total[side] += value
            for name in stack:
                child = node.children.get(name)
                if child is None:
                    child = node.children[name] = _Node(name, [*zero], [*zero])
                child.total[side] += value
                node = child
            node.own[side] += value
    return root


def _fold(root: _Node, most: int) -> None:
    """Keep the `most` widest nodes. A parent is never narrower than its child, so no kept node loses its parent."""
    heap: list[tuple[int, int, _Node]] = [(-root.width, 0, root)]
    kept: set[int] = set()
    order = 1
    while heap and len(kept) < most:
        _, _, node = heapq.heappop(heap)
        kept.add(id(node))
        for child in node.children.values():
            heapq.heappush(heap, (-child.width, order, child))
            order += 1
    if not heap:
        return
    todo = [root]
    while todo:
        node = todo.pop()
        out = [child for child in node.children.values() if id(child) not in kept]
        if out:
            _put_aside(node, out)
        todo += [child for child in node.children.values() if id(child) in kept]


def _put_aside(node: _Node, out: Iterable[_Node]) -> None:
    sums = [0] * len(node.total)
    for child in out:
        del node.children[child.name]
        sums = [a + b for a, b in zip(sums, child.total, strict=True)]
    other = node.children.get(OTHER)
    if other is None:
        node.children[OTHER] = _Node(OTHER, sums, [*sums])
    else:  # a function of that name, wide enough to stay: both are one bar
        other.own = [a + b for a, b in zip(other.own, sums, strict=True)]
        other.total = [a + b for a, b in zip(other.total, sums, strict=True)]
