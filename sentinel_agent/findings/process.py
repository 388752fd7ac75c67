"""Findings about the process as the kernel sees it: how it died, whom its connections are with."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sentinel_agent.findings.base import Facts, Finding, NotKnown, ProcessFacts, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

_AFTER_DEATH = {
    "oom": "compare rss with the memory limit in the readings, and look at what grew before the end",
    "signal": "the last stacks show what it did; a core dump, if there is one, shows more",
    "nonzero": "look at its log just before the end; the last stacks show which code ended it",
    "unknown": "start it with `sentinel-agent run` to learn its exit status",
}


def death(facts: Facts) -> Finding | None:
    """How the target ended, where the incident is about that."""
    incident = facts.incident
    if incident.rule != "target-died":
        return None
    how, _, last = incident.summary.partition("; ")
    return finding(
        "death",
        100,
        f"the process is dead: {how}",
        last,
        next_step=_AFTER_DEATH.get(incident.reason, _AFTER_DEATH["unknown"]),
        subject=how,
    )


def connections(facts: Facts) -> Finding | NotKnown | None:
    """With whom most connections are, where the incident is about descriptors."""
    if not facts.about("fds"):
        return None
    if facts.process is None:
        return facts.not_known("connections", "process")
    most = list(peers(facts.process, 4))
    if not most:
        return None
    return finding(
        "connections",
        70,
        f"most connections: {most[0]}",
        *most[1:],
        next_step="see who opens them in the stacks, and whether every response and session is closed",
        subject=most[0].partition(" ")[2],
    )


def peers(found: ProcessFacts, most: int) -> Iterator[str]:
    """With whom the process has the most connections, and in which state they are."""
    counts = Counter(
        (file.socket.state, file.socket.remote)
        for file in found.files.listed
        if file.socket is not None and file.socket.remote and file.socket.state != "listen"
    )
    for (state, remote), count in counts.most_common(most):
        yield f"{count} {state} with {remote}"
