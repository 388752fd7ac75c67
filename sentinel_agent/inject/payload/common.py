"""The first part of every payload, sent before the others: answers, and clocks of what holds the GIL.

The answer is one bytes object in `sys`, under a name that the agent chose; it is read from outside and taken away again after a while.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the module `typing` may not be loaded in the target
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WINDOW = 0.25  # seconds over which the load is judged
LEAST = 0.75  # seconds that are given whatever the load
BUSY = 0.9  # of a core; a service that was brought there by what is done to it falls behind


def work(name: str, keep: float, job: Callable[..., dict[str, Any]], **arguments: Any) -> None:
    """Do the job, leave what it returns in `sys` as `name`, and take it, and a file at `path`, away after `keep` seconds."""
    import time  # noqa: PLC0415 - in the target, where this runs

    state = vars(sys)
    try:
        answer = job(time, **arguments)
    except BaseException as error:  # noqa: BLE001 - nothing may come out into the target
        answer = {"error": type(error).__name__ + ": " + str(error)[:300]}
    state[name] = in_json(answer).encode("ascii")
    time.sleep(keep)
    state.pop(name, None)
    if "path" in arguments:
        import posix  # noqa: PLC0415 - as above

        try:  # noqa: SIM105 - nothing is imported that may not be loaded
            posix.unlink(arguments["path"])
        except OSError:  # the agent has fetched it
            pass


def timer(time: Any) -> tuple[Callable[..., Any], dict[str, float]]:
    """`timed(what, call, *arguments)` makes a call; the longest of each kind is in the dictionary, in seconds.

    What is timed are single calls in C that hold the GIL from their beginning to their end.
    """
    if type(time.sleep) is not type(repr):
        raise RuntimeError("time.sleep has been replaced (gevent?)")
    clock = time.perf_counter
    holds: dict[str, float] = {}

    def timed(what: str, call: Any, *arguments: Any) -> Any:
        before = clock()
        found = call(*arguments)
        holds[what] = max(holds.get(what, 0.0), clock() - before)
        return found

    return timed, holds


def let_run(time: Any, seconds: float, dear: Callable[[], str]) -> str:
    """Let the target run for so many seconds, or until `dear` says why no longer, or it has no CPU left; what ended it."""
    clock = time.perf_counter
    began = judged = clock()
    used = time.process_time()
    while clock() - began < seconds:
        time.sleep(min(0.02, seconds))
        why = dear()
        if why:
            return why
        if clock() - judged >= WINDOW:
            busy = (time.process_time() - used) / (clock() - judged)
            judged, used = clock(), time.process_time()
            if busy > BUSY and judged - began >= LEAST:
                return "load"
    return "time"


def in_json(value: Any) -> str:
    """JSON (RFC 8259) of a document, without the module `json`, which the target may not have loaded."""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, dict):
        return "{" + ",".join([in_json(str(key)) + ":" + in_json(item) for key, item in value.items()]) + "}"
    return "[" + ",".join([in_json(item) for item in value]) + "]"


def _escaped(char: str) -> str:
    code = ord(char)
    if 32 <= code < 127 and char not in '"\\':
        return char
    if code < 0x10000:
        return "?" if 0xD800 <= code < 0xE000 else "\\u%04x" % code  # noqa: UP031 - 3.8 too
    code -= 0x10000
    return "\\u%04x\\u%04x" % (0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF))  # noqa: UP031
