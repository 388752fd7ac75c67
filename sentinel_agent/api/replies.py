"""The replies to Grafana's calls: made of stacks, and made one of those of several agents.

An agent that is asked for its peers' data too answers as if their stores were its own. What they watch are other
processes, so costs and counts add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentinel_agent.profile.flamegraph import FlameGraph, Folded, difference, flame_graph, unfold

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Merge = Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], Mapping[str, Any]]
    """A request and its replies, at least one -> the reply."""
    Labels = tuple[tuple[str, str], ...]

DEFAULT_NODES = 8192


def encoded(graph: FlameGraph) -> dict[str, Any]:
    """A flame graph as a message."""
    return {
        "names": graph.names,
        "levels": [{"values": level} for level in graph.levels],
        "total": graph.total,
        "max_self": graph.max_self,
    }


def encoded_difference(graph: FlameGraph) -> dict[str, Any]:
    """A difference as a message."""
    return {**encoded(graph), "leftTicks": graph.left_ticks, "rightTicks": graph.right_ticks}


def encoded_pprof(stacks: Folded, kind: Sequence[str], start: float, seconds: float) -> dict[str, Any]:
    """A perftools.profiles.Profile of stacks; `kind` is type, unit, period type and its unit."""
    strings: dict[str, int] = {"": 0}
    places: dict[str, int] = {}
    sample, unit, period, period_unit = kind

    def text(word: str) -> int:
        return strings.setdefault(word, len(strings))

    samples = [
        {
            "location_id": [places.setdefault(name, len(places) + 1) for name in reversed(stack)],
            "value": [value],
        }
        for stack, value in stacks.items()
    ]
    return {
        "sample_type": [{"type": text(sample), "unit": text(unit)}],
        "sample": samples,
        "mapping": [{"id": 1, "has_functions": True, "has_filenames": True}],
        "location": [
            {"id": number, "mapping_id": 1, "line": [{"function_id": number}]} for number in places.values()
        ],
        "function": [{"id": number, "name": text(name)} for name, number in places.items()],
        "time_nanos": round(start * 1e9),
        "duration_nanos": round(seconds * 1e9),
        "period_type": {"type": text(period), "unit": text(period_unit)},
        "period": 1,
        "string_table": list(strings),
    }


def widest(sums: Mapping[Labels, dict[int, float]], limit: int) -> list[tuple[Labels, dict[int, float]]]:
    """Series by their labels; with a limit those with the highest sum, the highest first."""
    found = sorted(sums.items())
    if limit > 0:
        found = sorted(found, key=lambda each: -sum(each[1].values()))[:limit]
    return found


def merge(method: str, request: Mapping[str, Any], replies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """One reply of several, the first of which is our own.

    Raises:
        ValueError, IndexError, KeyError: one contradicts itself.
    """
    return MERGES[method](request, replies)


def _values(request: Mapping[str, Any], replies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    names = {name for reply in replies for name in reply["names"]}
    return {
        "names": sorted(names, reverse=request["name"] == "dump_id")
    }  # ids sort by time: the newest first


def _sets(_: Mapping[str, Any], replies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    found = {_labels(each): each for reply in replies for each in reply["labels_set"]}
    return {"labels_set": list(found.values())}


def _labels(message: Mapping[str, Any]) -> Labels:
    return tuple((label["name"], label["value"]) for label in message["labels"])


def _series(request: Mapping[str, Any], replies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    sums: dict[Labels, dict[int, float]] = {}
    for reply in replies:
        for series in reply["series"]:
            points = sums.setdefault(_labels(series), {})
            for point in series["points"]:
                points[point["timestamp"]] = points.get(point["timestamp"], 0.0) + point["value"]
    return {
        "series": [
            {
                "labels": [{"name": name, "value": value} for name, value in labels],
                "points": [{"value": value, "timestamp": at} for at, value in sorted(points.items())],
            }
            for labels, points in widest(sums, request["limit"])
        ]
    }


def _flame_graphs(request: Mapping[str, Any], replies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    (stacks,) = _unfolded(replies, 1)
    graph = flame_graph(stacks, request["max_nodes"] or DEFAULT_NODES)
    return {"flamegraph": encoded(graph)} if graph else {}


def _differences(request: Mapping[str, Any], replies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    left, right = _unfolded(replies, 2)
    most = max(request["left"]["max_nodes"], request["right"]["max_nodes"]) or DEFAULT_NODES
    graph = difference(left, right, most)
    return {"flamegraph": encoded_difference(graph)} if graph else {}


def _unfolded(replies: Sequence[Mapping[str, Any]], sides: int) -> tuple[Folded, ...]:
    merged: tuple[Folded, ...] = tuple({} for _ in range(sides))
    for reply in replies:
        graph = reply.get("flamegraph")
        if graph:
            levels = [level["values"] for level in graph["levels"]]
            for into, stacks in zip(merged, unfold(graph["names"], levels, sides), strict=True):
                _add(into, stacks)
    return merged


def _add(into: Folded, stacks: Folded) -> None:
    for stack, value in stacks.items():
        into[stack] = into.get(stack, 0) + value


def _profiles(_: Mapping[str, Any], replies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    merged: Folded = {}
    for reply in replies:
        _add(merged, _stacks_of(reply))
    own = replies[0]
    text = own["string_table"]
    of = (own["sample_type"][0], own["period_type"])
    kind = [text[each[key]] for each in of for key in ("type", "unit")]
    return encoded_pprof(merged, kind, own["time_nanos"] / 1e9, own["duration_nanos"] / 1e9)


def _stacks_of(profile: Mapping[str, Any]) -> Folded:
    """What `encoded_pprof` was given."""
    text = profile["string_table"]
    functions = {each["id"]: text[each["name"]] for each in profile["function"]}
    names = {each["id"]: functions[each["line"][0]["function_id"]] for each in profile["location"]}
    found: Folded = {}
    for sample in profile["sample"]:
        stack = tuple(names[each] for each in reversed(sample["location_id"]))
        if stack:
            found[stack] = found.get(stack, 0) + sample["value"][0]
    return found


def _stats(_: Mapping[str, Any], replies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return dict(replies[0]) | {"newest_profile_time": max(reply["newest_profile_time"] for reply in replies)}


MERGES: dict[str, Merge] = {
    "LabelValues": _values,
    "Series": _sets,
    "SelectSeries": _series,
    "SelectMergeStacktraces": _flame_graphs,
    "SelectMergeSpanProfile": _flame_graphs,
    "SelectMergeProfile": _profiles,
    "Diff": _differences,
    "GetProfileStats": _stats,
}
"""What peers are asked for; of the other calls their answer is ours."""
