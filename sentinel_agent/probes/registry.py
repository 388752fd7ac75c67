"""Makes the probes of a target: the built-in ones and those that others plug in, all in the same way.

A plug-in is an entry point of the group `sentinel_agent.probes`: a callable that takes a `Subject` and
returns a `Probe`. One that raises is counted and shown; it stops neither the agent nor other probes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, Self

from sentinel_agent.core.model import Reading
from sentinel_agent.probes.base import Probe, Subject, in_words, reading
from sentinel_agent.probes.cgroup import MemoryEventsProbe, ThrottlingProbe
from sentinel_agent.probes.cpu import CpuProbe
from sentinel_agent.probes.fds import FdsProbe
from sentinel_agent.probes.gc import GcProbe
from sentinel_agent.probes.live import LiveReader
from sentinel_agent.probes.memory import MemoryProbe
from sentinel_agent.probes.oom import OomCount, OomKillsProbe
from sentinel_agent.probes.pulse_probe import gc_pause, gc_share, loop_stall
from sentinel_agent.probes.storage import StorageProbe, WaitProbe
from sentinel_agent.probes.switches import SwitchesProbe
from sentinel_agent.probes.tasks import TasksProbe
from sentinel_agent.probes.threads import ThreadsProbe
from sentinel_agent.target.cgroup import LimitsView
from sentinel_agent.target.procfs import ROOT, ProcDir

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint
    from pathlib import Path

    from sentinel_agent.core.model import Target
    from sentinel_agent.probes.base import Moment

GROUP = "sentinel_agent.probes"
MAX_READINGS = 64
_MAX_WORDS = 300
_METRIC = re.compile(r"[a-z][a-z0-9_]{0,63}")  # what a rule can name

ProbeFactory = Callable[[Subject], Probe]

BUILT_IN: dict[str, ProbeFactory] = {
    "cpu": CpuProbe,  # first: its figure is the one that depends on the moment
    "memory": MemoryProbe,
    "threads": ThreadsProbe,
    "fds": FdsProbe,
    "switches": SwitchesProbe,
    "storage": StorageProbe,
    "io_wait": WaitProbe,
    "throttling": ThrottlingProbe,
    "memory_events": MemoryEventsProbe,
    "oom_kills": OomKillsProbe,
    "tasks": TasksProbe,
    "loop_stall": loop_stall,
    "gc": GcProbe,
    "gc_pause": gc_pause,
    "gc_share": gc_share,
}


class ProbeFault(NamedTuple):
    """What a plug-in did wrong, and when: `load`, `make` or `read`."""

    probe: str
    stage: str
    message: str


@dataclass(slots=True)
class Registry:
    """The probes that can be made, by name, and how often each fault was met."""

    factories: dict[str, ProbeFactory]
    faults: Counter[ProbeFault] = field(default_factory=Counter)

    def blame(self, probe: str, stage: str, error: Exception) -> str:
        """Count a fault; its text. At most 1000 different ones are kept."""
        words = f"{type(error).__name__}: {in_words(error)}"[:_MAX_WORDS]
        fault = ProbeFault(probe, stage, words)
        if fault in self.faults or len(self.faults) < 1000:
            self.faults[fault] += 1
        return words


def load_registry(plugins: Iterable[EntryPoint] | None = None) -> Registry:
    """The built-in probes and the installed plug-ins; a name that is taken is a fault, not a replacement."""
    registry = Registry(dict(BUILT_IN))
    for plugin in entry_points(group=GROUP) if plugins is None else plugins:
        if plugin.name in registry.factories:
            registry.blame(plugin.name, "load", ValueError("there is a probe of this name already"))
            continue
        try:
            registry.factories[plugin.name] = plugin.load()
        except Exception as error:  # noqa: BLE001 - a stranger's module may raise anything when imported
            registry.blame(plugin.name, "load", error)
    return registry


class _Guarded:
    """A probe whose faults are readings, whatever it raises and returns."""

    def __init__(self, name: str, probe: Probe, registry: Registry) -> None:
        self.metrics = tuple(probe.metrics)[:MAX_READINGS]
        self._name = name
        self._probe = probe
        self._registry = registry

    def read(self, now: Moment) -> list[Reading]:
        try:
            return [self._checked(item, now) for item in list(self._probe.read(now))[:MAX_READINGS]]
        except Exception as error:  # noqa: BLE001 - a stranger's probe may raise anything
            words = self._registry.blame(self._name, "read", error)
            return [Reading(metric, now.wall, None, words, now.late) for metric in self.metrics]

    def _checked(self, item: object, now: Moment) -> Reading:
        if not isinstance(item, Reading) or item.metric not in self.metrics:
            raise TypeError(f"a probe of {', '.join(self.metrics)} answered {item!r:.100}")
        if item.value is None:
            return item
        # A probe may give what it read at an earlier tick, and says how late that is; never less late than the tick.
        late = max(now.late, item.late) if math.isfinite(item.late) else now.late
        return reading(item.metric, replace(now, late=late), float(item.value))


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """The probes of one target. Close it when the target is gone."""

    probes: tuple[Probe, ...]
    subject: Subject

    def close(self) -> None:
        """Give back what the probes share; later reads say that the process has ended."""
        self.subject.proc.close()
        self.subject.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build_probes(
    target: Target,
    registry: Registry,
    *,
    root: Path = ROOT,
    cpu_cores: float = 0.0,
    memory: int = 0,
) -> ProbeSet:
    """The probes of a target; `cpu_cores` and `memory` (bytes) other than 0 replace the limits that are found.

    Raises:
        ProcessLookupError: the target has ended, or its pid belongs to another process.
        OSError: it may not be looked at.
    """
    proc = ProcDir.of(target.id, root)
    limits = LimitsView(proc, cpu_cores, memory).at
    subject = Subject(target, proc, LiveReader(target.id, root), limits, OomCount(limits))
    probes: list[Probe] = []
    taken: set[str] = set()
    for name, factory in registry.factories.items():
        try:
            probe = _Guarded(name, factory(subject), registry)
            _check_names(probe.metrics, taken)
            taken.update(probe.metrics)
            probes.append(probe)
        except Exception as error:  # noqa: BLE001 - a stranger's probe may raise anything
            registry.blame(name, "make", error)
    return ProbeSet(tuple(probes), subject)


def _check_names(metrics: tuple[str, ...], taken: set[str]) -> None:
    for metric in metrics:
        if not _METRIC.fullmatch(metric):
            raise ValueError(f"{metric!r:.80} is no metric name: expected lower-case letters, digits and _")
        if metric in taken:
            raise ValueError(f"the metric {metric} is published by another probe")
