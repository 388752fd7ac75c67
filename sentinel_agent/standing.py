"""Where every rule stands on every target, of the agents that run on a data directory, from what they publish."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sentinel_agent.core.explain import Explanation, explain
from sentinel_agent.core.limits import fires_within
from sentinel_agent.status import AgentStatus, known_metrics
from sentinel_agent.store.status import read_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RuleView(msgspec.Struct, frozen=True):
    """One rule on one target, or a rule that is on none; what `list` and `explain` show.

    `state` is the decision's, or `no target` where an agent runs and has none for the rule, or `left out` where it
    has more states than a status holds, or `no agent`.
    """

    rule: str
    state: str
    explanation: Explanation
    source: str
    metric: str | None
    fires: int
    agent_pid: int | None = None
    target: str | None = None
    pid: int | None = None
    reason: str | None = None
    value: float | None = None
    baseline: float | None = None


class Running(NamedTuple):
    """The agents that run, and what is to be said of those that cannot be shown."""

    agents: list[AgentStatus]
    remarks: list[str]


def running_agents(data_dir: Path, now: float) -> Running:
    """The agents of a data directory. `now` is in seconds since the epoch.

    Raises:
        StoreError: it cannot be read.
    """
    found = Running([], [])
    for status in read_all(data_dir, now):
        if not status.alive:
            continue
        try:
            agent = msgspec.json.decode(status.document, type=AgentStatus)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            found.remarks.append("An agent of another version runs here; its rules are not shown.")
            continue
        if agent.states_left_out:
            found.remarks.append(
                f"{agent.states_left_out} rules on targets are not shown: the agent has more than a status holds."
            )
        found.agents.append(agent)
    return found


def rules_of_agent(status: AgentStatus, now: float) -> Iterator[RuleView]:
    """Its rules on its targets, and those that are on none."""
    metrics = known_metrics(status.metrics)
    roles = [state.role for state in status.states]
    for entry in status.rules:
        on_targets = [state for state in status.states if state.decision.rule == entry.rule.name]
        for state in on_targets:
            decision, limits = state.decision, state.limits
            yield RuleView(
                rule=entry.rule.name,
                state=decision.state,
                explanation=explain(
                    entry.rule,
                    decision,
                    limits,
                    metrics,
                    now,
                    capture_kinds=status.capture_kinds,
                    roles=roles,
                ),
                source=entry.source,
                metric=entry.rule.metric,
                fires=fires_within(limits, entry.rule.limit, now) if limits else 0,
                agent_pid=status.pid,
                target=state.role.key,
                pid=state.pid,
                reason=decision.reason,
                value=decision.value,
                baseline=decision.baseline,
            )
        if not on_targets:
            yield RuleView(
                rule=entry.rule.name,
                state="left out" if status.states_left_out else "no target",
                explanation=explain(
                    entry.rule, None, None, metrics, now, capture_kinds=status.capture_kinds, roles=roles
                ),
                source=entry.source,
                metric=entry.rule.metric,
                fires=0,
                agent_pid=status.pid,
            )
