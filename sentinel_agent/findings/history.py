"""Whether this has happened before."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sentinel_agent.core.units import format_duration
from sentinel_agent.findings.base import Facts, Finding, NotKnown, finding

if TYPE_CHECKING:
    from collections.abc import Sequence


def seen_before(facts: Facts, found: Sequence[Finding]) -> Finding | NotKnown | None:
    """Earlier incidents of the same rule and role, and how many of them name the same place as the best of `found`."""
    if facts.earlier is None:
        return NotKnown("seen_before", facts.missing.get("earlier", "the store was not asked"))
    if not facts.earlier:
        return None
    subject = next((each.subject for each in found if each.subject), "")
    same = [each for each in facts.earlier if subject and each.subject == subject]
    counted = same or facts.earlier
    first = min(each.time for each in counted)
    since = format_duration(max(1.0, facts.incident.time - first))
    times = "once before" if len(counted) == 1 else f"{len(counted)} times before"
    if same:
        return finding(
            "seen_before",
            50,
            f"identical incident seen {times} since {day(first, facts.incident.time)}: {subject}",
            f"the same rule, the same role and the same place, over {since}",
            f"{len(facts.earlier)} earlier incidents of rule {facts.incident.rule} on {facts.incident.target.role.key}",
            next_step="it comes back, so it is worth fixing: compare this incident with the first one",
        )
    return finding(
        "seen_before",
        25,
        f"rule {facts.incident.rule} fired {times} on this role in the last {since}, for other or unknown reasons",
        next_step="see `sentinel-agent incidents list --rule` and compare what they name",
    )


def day(time: float, now: float) -> str:
    """`10:12 UTC` of the same day, `Tuesday 10:12 UTC` of the last week, else the date; both in seconds since the epoch."""
    then, today = (datetime.fromtimestamp(each, UTC) for each in (time, now))
    days = (today.date() - then.date()).days
    if days == 0:
        return f"{then:%H:%M} UTC"
    return f"{then:%A %H:%M} UTC" if 0 < days < 7 else f"{then:%Y-%m-%d}"
