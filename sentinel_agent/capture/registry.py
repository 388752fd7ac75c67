"""Which captures there are: the built-in ones and strangers', by one function.

A stranger's package names a class without arguments in the entry point group `sentinel_agent.captures`. One that
cannot be used is kept with the reason, and named in the report of a rule that asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from sentinel_agent.capture.gc_census import GcCapture
from sentinel_agent.capture.heap import HeapCapture
from sentinel_agent.capture.memray import MemrayCapture
from sentinel_agent.capture.process import ProcessCapture
from sentinel_agent.capture.profile import ProfileCapture
from sentinel_agent.capture.series import SeriesCapture
from sentinel_agent.capture.stacks import StacksCapture, look
from sentinel_agent.capture.tasks import TasksCapture
from sentinel_agent.capture.tracemalloc import TracemallocCapture
from sentinel_agent.clock import Clock, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sentinel_agent.capture.base import Capture

GROUP = "sentinel_agent.captures"

PLANNED = {
    "memory": "the memory captures are `heap` (only reads), `tracemalloc`, `memray` and `gc` (run code in the target)"
}
"""Kinds that the design names and this build does not have, each with the words for a report."""


class Plug(Protocol):
    """What is used of an entry point."""

    @property
    def name(self) -> str: ...

    def load(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class LoadedCaptures:
    """The captures by kind, and why each broken plug-in is not among them."""

    captures: dict[str, Capture]
    broken: dict[str, str] = field(default_factory=dict)

    def missing(self, kind: str) -> str:
        """Why there is no capture of this kind, in words."""
        if kind in self.broken:
            return self.broken[kind]
        if kind in PLANNED:
            return PLANNED[kind]
        return f"there is no capture {kind!r}; there are {', '.join(sorted(self.captures))}"


def load_captures(*, clock: Clock | None = None, plugs: Iterable[Plug] | None = None) -> LoadedCaptures:
    """The built-in captures and those of installed packages; never raises for a package's fault."""
    clock = clock or SystemClock()
    factories: list[tuple[str, Callable[[], Any]]] = [
        ("stacks", lambda: StacksCapture(clock=clock, look=look)),
        ("profile", lambda: ProfileCapture(clock=clock)),
        ("tasks", TasksCapture),
        ("process", lambda: ProcessCapture(clock=clock)),
        ("series", SeriesCapture),
        ("heap", lambda: HeapCapture(clock=clock)),
        ("gc", lambda: GcCapture(clock=clock)),
        ("memray", lambda: MemrayCapture(clock=clock)),
        ("tracemalloc", lambda: TracemallocCapture(clock=clock)),
    ]
    strangers = entry_points(group=GROUP) if plugs is None else plugs
    factories += [(plug.name, partial(_construct, plug)) for plug in strangers]
    loaded = LoadedCaptures({})
    for name, make in factories:
        try:
            _add(loaded.captures, make())
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's code may raise anything
            loaded.broken[name] = f"the plug-in {name!r} cannot be used: {type(error).__name__}: {error}"[
                :500
            ]
    return loaded


def _construct(plug: Plug) -> Any:
    return plug.load()()


def _add(captures: dict[str, Capture], capture: Any) -> None:
    kind = capture.kind
    if not isinstance(kind, str) or not callable(capture.capture) or not isinstance(capture.attaches, bool):
        raise TypeError("a capture has a `kind`, an `attaches` and a `capture(plan)`")
    if kind in captures:
        raise ValueError(f"the kind {kind!r} is taken")
    captures[kind] = capture
