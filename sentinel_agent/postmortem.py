"""A target that died is an incident without any rule: this says whether it is one, and which.

It is limited as a rule is, per role, so that a crash loop fills no store. What outlives the agent (`LimitRecord`)
is handed out and taken back, as the rule engine does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.core import limits as limiting
from sentinel_agent.core.engine import RECORDS_KEPT
from sentinel_agent.core.limits import LimitRecord
from sentinel_agent.core.metrics import unit_of
from sentinel_agent.core.rule import CaptureSpec, Limit
from sentinel_agent.core.sentence import format_value
from sentinel_agent.core.units import format_duration
from sentinel_agent.responder import Firing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sentinel_agent.config.settings import PostmortemSettings
    from sentinel_agent.core.ending import Ending
    from sentinel_agent.core.model import Reading, Role

RULE = "target-died"
"""Stands in an incident where the name of a rule does."""

LAST_SECONDS = 5.0
"""What is shown first of the recording is so much of the time before the end."""

_SHOWN = ("cpu", "rss", "rss_limit", "tasks")


class Postmortem:
    """Decides for each end of a target."""

    def __init__(self, settings: PostmortemSettings) -> None:
        self.settings = settings
        self._records: dict[str, LimitRecord] = {}
        self._changed: set[str] = set()

    def judge(
        self, role: Role, ending: Ending, now: float, last: Mapping[str, Reading]
    ) -> tuple[Firing | None, str]:
        """The incident to make, or None; in the second case why one that was due is not made, empty if none was.

        `now` is in seconds since the epoch, `last` the last readings by metric. After an incident `finished` must
        follow.
        """
        settings = self.settings
        if not settings.enabled or ending.kind not in settings.on:
            return None, ""
        record = limiting.settled(self._records.get(role.key) or LimitRecord(role.key, RULE), now)
        refusal = self._refusal(record, now)
        if refusal:
            return None, refusal
        self._keep(limiting.fired(record, self._limit, settings.cooldown, now, None))
        shown = [
            f"{name} {format_value(found.value, unit_of(name))}"
            for name in _SHOWN
            if (found := last.get(name)) and found.value is not None
        ]
        firing = Firing(
            rule=RULE,
            reason=ending.kind,
            summary=ending.words + (f"; last seen with {', '.join(shown)}" if shown else ""),
            metric="",
            value=None,
            baseline=None,
            thresholds={},
            time=now,
            captures=(CaptureSpec("stacks"),),
            cooldown=settings.cooldown,
            since=now - LAST_SECONDS,
            ended=ending.words,
        )
        return firing, ""

    def finished(self, role: Role, now: float) -> None:
        """The incident of this role is saved, or lost: the cooldown counts from here."""
        if role.key in self._records:
            self._keep(limiting.finished(self._records[role.key], now))

    def load_limits(self, records: Iterable[LimitRecord]) -> None:
        """Take records back from the store; those of rules are left out."""
        self._records |= {record.role: record for record in records if record.rule == RULE}

    def changed_limits(self) -> list[LimitRecord]:
        """The records that changed since this was last asked; they are to be stored."""
        changed = [self._records[role] for role in sorted(self._changed)]
        self._changed.clear()
        return changed

    @property
    def _limit(self) -> Limit:
        return Limit(count=self.settings.max_incidents_per_hour)

    def _refusal(self, record: LimitRecord, now: float) -> str:
        limit = self._limit
        match limiting.permission(record, limit, now, None):
            case "cooldown":
                left = format_duration(max(1.0, round(record.cooldown_until - now)))
                return (
                    f"no incident, the last one of this role is too fresh: postmortem.cooldown ends in {left}"
                )
            case "limit":
                count = limiting.fires_within(record, limit, now)
                return (
                    f"no incident, this role had {count} in the last hour (postmortem.max_incidents_per_hour)"
                )
            case _:
                return ""

    def _keep(self, record: LimitRecord) -> None:
        self._records.pop(record.role, None)  # so that it becomes the newest of the dictionary
        self._records[record.role] = record
        self._changed.add(record.role)
        if len(self._records) > RECORDS_KEPT:
            oldest = next(iter(self._records))
            del self._records[oldest]
            self._changed.discard(oldest)
