"""Flame graphs, read back by a reader that works as Grafana's does: it finds a bar's parent by where it lies."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.profile.flamegraph import FlameGraph, Folded, below, difference, flame_graph, unfold

STACKS = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "c", "other", "d"]), min_size=1, max_size=6).map(tuple),
    st.integers(0, 1000),
    max_size=25,
)
ALL = 1 << 20


def read(graph: FlameGraph | None, stride: int = 4, side: int = 0) -> Folded:
    """Stacks of one side: bars are placed by the sums of their deltas, and hung under what lies above them."""
    found: Folded = {}
    if graph is None:
        return found
    above: list[tuple[int, int, tuple[str, ...]]] = []
    for depth, level in enumerate(graph.levels):
        row, at = [], 0
        for number in range(0, len(level), stride):
            delta, total, own = level[number + 3 * side : number + 3 * side + 3]
            name = graph.names[level[number + stride - 1]]
            begin, at = at + delta, at + delta + total
            if depth == 0:
                stack: tuple[str, ...] = ()
            elif total == 0:
                continue
            else:
                (parent,) = [path for left, right, path in above if left <= begin and begin + total <= right]
                stack = (*parent, name)
            row.append((begin, begin + total, stack))
            if own and stack:
                found[stack] = found.get(stack, 0) + own
        above = row
    return found


def without_nothing(stacks: Folded) -> Folded:
    return {stack: value for stack, value in stacks.items() if value}


@given(STACKS)
def test_every_stack_comes_back(stacks: Folded) -> None:
    """With its cost; the root is called `total` and is as wide as everything."""
    graph = flame_graph(stacks, ALL)
    assert read(graph) == without_nothing(stacks)
    if graph:
        assert unfold(graph.names, graph.levels, 1) == (without_nothing(stacks),)
        assert graph.names[0] == "total"
        assert graph.levels[0] == (0, sum(stacks.values()), 0, 0)
        assert graph.max_self == max(stacks.values())
        assert all(total for level in graph.levels for total in level[1::4])


@given(STACKS, st.integers(1, 12))
def test_what_is_left_out_is_in_other(stacks: Folded, most: int) -> None:
    """However few nodes are asked for, nothing of the whole is lost, and the widest stay."""
    graph = flame_graph(stacks, most)
    found = read(graph)
    assert sum(found.values()) == sum(stacks.values())
    if graph:
        kept = sum(len(level) // 4 for level in graph.levels)
        assert kept <= 2 * most + 1


@given(STACKS, STACKS)
def test_a_difference_holds_both_sides(left: Folded, right: Folded) -> None:
    """Each side read by itself gives its stacks."""
    graph = difference(left, right, ALL)
    if graph is None:
        assert not without_nothing(left)
        assert not without_nothing(right)
        return
    assert (graph.left_ticks, graph.right_ticks) == (sum(left.values()), sum(right.values()))
    assert read(graph, 7, 0) == without_nothing(left)
    assert read(graph, 7, 1) == without_nothing(right)
    assert unfold(graph.names, graph.levels, 2) == (without_nothing(left), without_nothing(right))


@given(st.lists(st.lists(st.integers(-3, 12), max_size=12), max_size=5), st.sampled_from([1, 2]))
def test_what_is_no_flame_graph_is_refused(levels: list[list[int]], sides: int) -> None:
    """By an error that its reader knows, or it is read; never by another."""
    with contextlib.suppress(ValueError, IndexError):
        unfold(["total", "a"], levels, sides)


def test_a_flame_graph_that_would_fill_the_memory_is_refused() -> None:
    """A few kilobytes can describe gigabytes of stacks."""
    with pytest.raises(ValueError, match="larger"):
        unfold(["total"], [[0, 1, 0, 0]] * 5000, 1)


def test_nothing_is_no_graph() -> None:
    """Grafana's reader wants none rather than an empty one."""
    assert flame_graph({}, 10) is None
    assert flame_graph({("a",): 0}, 10) is None


def test_a_call_site() -> None:
    """It keeps what was called from it, whole."""
    stacks: Folded = {("a", "b"): 1, ("a", "c"): 2, ("b",): 4}
    assert below(stacks, ["a"]) == {("a", "b"): 1, ("a", "c"): 2}
