"""What `top` shows, put together from the files of running agents: their status, the recorder's spool, the store.

No target is read here: there is one reader of a target, the agent's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.core.model import IncidentRow
from sentinel_agent.profile.views import hottest, on_cpu_only
from sentinel_agent.recorder.deck import make_spool, recorded
from sentinel_agent.standing import rules_of_agent, running_agents
from sentinel_agent.status import TasksSeen
from sentinel_agent.store.index import IncidentFilter

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from sentinel_agent.config.settings import Settings
    from sentinel_agent.core.model import Target
    from sentinel_agent.status import AgentStatus
    from sentinel_agent.store.store import Store

HOT_SECONDS = 15.0
"""How far back the hottest functions are looked for."""
STALE_SECONDS = 5.0
"""A status that is older is no news any more."""
_HOT = 12
_STACK = 12
_RULES = 20
_INCIDENTS = 20
_QUIET = ("inactive", "warmup", "no target", "left out")


class HotLine(msgspec.Struct, frozen=True):
    """A function with its share of the samples: as the innermost one, and anywhere in the stack. 0 to 1."""

    function: str
    file: str
    line: int
    self_share: float
    total_share: float


class Hot(msgspec.Struct, frozen=True):
    """The hottest functions of the last seconds.

    `on_cpu` says whether only samples on a CPU count; where there were none, all do, and it shows where the threads wait.
    `stack` is the most frequent one, innermost first. Without samples `why_not` says why.
    """

    seconds: float
    samples: int = 0
    on_cpu: bool = True
    functions: tuple[HotLine, ...] = ()
    stack: tuple[str, ...] = ()
    why_not: str = ""


class TopTarget(msgspec.Struct, frozen=True):
    """One target as its agent last published it; `age` is of that, in seconds. `hot` is None where nobody asked for it."""

    pid: int
    target: str
    name: str
    python: str | None
    command: tuple[str, ...]
    agent_pid: int
    age: float
    readings: dict[str, float]
    errors: dict[str, str]
    recent: dict[str, tuple[float | None, ...]]
    tasks: TasksSeen | None
    hot: Hot | None = None


class TopRule(msgspec.Struct, frozen=True):
    """A rule that is not at rest on a target, and why it does not fire or did."""

    rule: str
    target: str
    pid: int
    state: str
    why: str


class TopAgent(msgspec.Struct, frozen=True):
    """A running agent: for how many seconds, and what it has used since, in cores."""

    pid: int
    age: float
    cores: float


class TopView(msgspec.Struct, frozen=True):
    """One moment. Times in seconds since the epoch."""

    time: float
    agents: tuple[TopAgent, ...]
    targets: tuple[TopTarget, ...]
    rules: tuple[TopRule, ...]
    incidents: tuple[IncidentRow, ...]
    remarks: tuple[str, ...]


class TopSource:
    """Looks at a data directory. `only`: these pids; empty: every target."""

    def __init__(self, data_dir: Path, settings: Settings, store: Store, only: Collection[int] = ()) -> None:
        self._data_dir = data_dir
        self._store = store
        self._only = frozenset(only)
        self._spool = make_spool(settings, data_dir)
        self._targets: dict[int, Target] = {}

    def look(self, now: float) -> TopView:
        """How things are, without the hottest functions.

        Raises:
            StoreError: the data directory cannot be read.
        """
        agents, remarks = running_agents(self._data_dir, now)
        found = [(agent, state) for agent in agents for state in agent.targets if self._wanted(state.target)]
        self._targets = {state.target.pid: state.target for _, state in found}
        return TopView(
            time=now,
            agents=tuple(
                TopAgent(agent.pid, max(0.0, now - agent.started), agent.cpu_ratio) for agent in agents
            ),
            targets=tuple(
                TopTarget(
                    pid=state.target.pid,
                    target=state.target.role.key,
                    name=state.target.name,
                    python=state.target.python,
                    command=state.target.command,
                    agent_pid=agent.pid,
                    age=max(0.0, now - agent.time),
                    readings=state.readings,
                    errors=state.errors,
                    recent=state.recent,
                    tasks=state.tasks,
                )
                for agent, state in found
            ),
            rules=tuple(rule for agent in agents for rule in self._rules(agent, now))[:_RULES],
            incidents=tuple(self._incidents()),
            remarks=(*remarks, *_troubles(agents, now)),
        )

    def with_hottest(self, view: TopView, pids: Collection[int]) -> TopView:
        """The last view with the hottest functions of these targets."""
        targets = tuple(
            msgspec.structs.replace(each, hot=self._hottest(self._targets[each.pid], view.time))
            if each.pid in pids and each.pid in self._targets
            else each
            for each in view.targets
        )
        return msgspec.structs.replace(view, targets=targets)

    def _wanted(self, target: Target) -> bool:
        return not self._only or target.pid in self._only

    def _rules(self, agent: AgentStatus, now: float) -> list[TopRule]:
        return [
            TopRule(view.rule, view.target or "", view.pid or 0, view.state, view.explanation.now)
            for view in rules_of_agent(agent, now)
            if view.state not in _QUIET and (not self._only or view.pid in self._only)
        ]

    def _incidents(self) -> list[IncidentRow]:
        rows = self._store.list(IncidentFilter(limit=_INCIDENTS))
        return [row for row in rows if not self._only or row.pid in self._only]

    def _hottest(self, target: Target, now: float) -> Hot:
        try:
            record = recorded(self._spool, target, (), now - HOT_SECONDS, now).record
        except ValueError:
            return Hot(HOT_SECONDS, why_not="the clock stands before the stacks")
        if not record.samples:
            return Hot(
                HOT_SECONDS, why_not="no stacks were recorded lately: the recorder, or its spool, is off"
            )
        busy = on_cpu_only(record)
        shown = busy if busy.samples else record
        counts: dict[tuple[int, ...], float] = {}
        for sample in shown.samples:
            counts[sample.stack] = counts.get(sample.stack, 0.0) + sample.weight
        frames = [record.frames[index] for index in max(counts, key=counts.__getitem__)[:_STACK]]
        return Hot(
            seconds=HOT_SECONDS,
            samples=sum(sample.count for sample in shown.samples),
            on_cpu=bool(busy.samples),
            functions=tuple(
                HotLine(each.function, each.file, each.line, each.self_share, each.total_share)
                for each in hottest(shown, _HOT)
            ),
            stack=tuple(f"{frame.function} ({frame.file}:{frame.line})" for frame in frames),
        )


def _troubles(agents: list[AgentStatus], now: float) -> list[str]:
    """What an operator should know first: an agent that is stuck, and what it complains of."""
    found = []
    for agent in agents:
        if now - agent.time > STALE_SECONDS:
            found.append(f"agent {agent.pid} has said nothing for {now - agent.time:.0f} s")
        if agent.reload_error:
            found.append(f"agent {agent.pid}: the changed settings stay out: {agent.reload_error}")
        found += [f"agent {agent.pid}: {what}" for what in list(agent.troubles)[:3]]
    return found
