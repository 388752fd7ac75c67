"""Runs inside a target, in a thread of its own: count what the collector tracks by type, and again after the next full collection.

Rules as in growth.py. Counting is one call in C that holds the GIL from listing the objects to letting the list go, so that no object lives
longer for it, none of the target's finalizers runs here, and no method of the target is called: types are told apart by address, and
sizes are those of C. It costs 0.2 to 0.4 microseconds an object, so it is not begun where that would come over the cap.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the module `typing` may not be loaded in the target
if TYPE_CHECKING:
    from typing import Any

    from sentinel_agent.inject.payload.common import timer  # noqa: TC004 - it is sent before this

SECONDS_PER_OBJECT = 0.4e-6  # of the count; measured 0.2 to 0.4 on 3.8 to 3.15, the machine being busy
SECONDS_PER_BLOCK = 0.03e-6  # of listing
BYTES_PER_OBJECT = 9  # of the list
HEAD = 16  # of the collector, before each object
TYPES = 2000  # that are told
POLL = 0.05


def census(time: Any, seconds: float, most_hold: float, most_bytes: int) -> dict[str, Any]:
    """Two counts, at most `seconds` apart."""
    import gc  # noqa: PLC0415 - in the target, where this runs

    if type(gc.get_objects).__name__ != "builtin_function_or_method":
        raise RuntimeError("gc.get_objects has been replaced")
    timed, holds = timer(time)
    generations = (0, 1, 2)
    blocks = sys.getallocatedblocks()
    if not blocks:  # PYTHONMALLOC=malloc
        raise RuntimeError(
            "how many objects there are is not known, so neither is how long counting would take"
        )
    _refuse("listing", blocks * SECONDS_PER_BLOCK, most_hold)
    known = timed("list", sum, map(len, map(gc.get_objects, generations)))
    _refuse("counting " + str(known) + " objects", known * SECONDS_PER_OBJECT, most_hold)
    if known * BYTES_PER_OBJECT > most_bytes:
        raise RuntimeError("the list of " + str(known) + " objects would take too much memory")
    full = gc.get_stats()[2]["collections"]
    began = time.perf_counter()
    before = _counted(gc, time, generations, timed)
    seen = False
    while time.perf_counter() - began < seconds and not seen:
        time.sleep(POLL)
        seen = gc.get_stats()[2]["collections"] > full
    ran = time.perf_counter() - began
    return {
        "seconds": ran,
        "full_collection": seen,
        "before": before,
        "after": _counted(gc, time, generations, timed),
        "holds": holds,
    }


def _refuse(what: str, predicted: float, most_hold: float) -> None:
    if predicted > most_hold:
        raise RuntimeError(
            what
            + " would hold the GIL for some "
            + str(round(predicted * 1000))
            + " ms, max_pause allows "
            + str(round(most_hold * 1000))
            + " ms; `heap` counts from outside"
        )


def _counted(gc: Any, time: Any, generations: Any, timed: Any) -> list[Any]:
    """[name, count, bytes] of each type, the most bytes first."""
    from _collections import (  # type: ignore[import-not-found]  # noqa: PLC0415 - as above; C's part of `collections`
        _count_elements,
    )
    from itertools import chain, compress, repeat, tee  # noqa: PLC0415 - as above
    from operator import is_  # noqa: PLC0415 - as above

    def objects() -> Any:  # lazy: the list is made within the call that uses it up
        return chain.from_iterable(map(gc.get_objects, generations))

    counts: dict[int, int] = {}
    timed("count", _count_elements, counts, map(id, map(type, objects())))
    sizes = {}
    for kind in (dict, list, set, tuple):
        time.sleep(0.002)
        each, again = tee(objects())
        chosen = compress(each, map(is_, map(type, again), repeat(kind)))
        sizes[id(kind)] = timed("size", sum, map(kind.__sizeof__, chosen))
    found = []
    for kind in _types(time):
        count = counts.pop(id(kind), 0)
        if count:
            name = type.__dict__["__name__"].__get__(kind)
            basic = type.__dict__["__basicsize__"].__get__(kind)
            found.append([name[:200], count, sizes.get(id(kind), count * basic) + HEAD * count])
    rest = sum(counts.values())
    if rest:
        found.append(["<types that are gone>", rest, 0])
    found.sort(key=lambda item: -item[2])
    return found[:TYPES]


def _types(time: Any) -> list[Any]:
    """Every class there is, by way of `type.__subclasses__`, whatever its metaclass says."""
    known = {id(object): object}
    todo: list[Any] = [object]
    while todo:
        kind = todo.pop()
        for each in type.__subclasses__(kind):
            if id(each) not in known:
                known[id(each)] = each
                todo.append(each)
        if len(known) % 500 == 0:
            time.sleep(0.0003)
    return list(known.values())
