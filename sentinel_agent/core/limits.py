"""How often a rule may fire on a role: cooldown, count in a sliding window, and the worse spike that may pass.

Pure functions over `LimitRecord`, the one thing about a rule that outlives the agent. All times are wall-clock
seconds, because a record is read again after a restart; what a jump of that clock may do is bounded here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from sentinel_agent.core.rule import Limit

FIRES_KEPT = 256
"""At most so many firings are remembered for one rule on one role; a larger `count` means this one."""

Permission = Literal["free", "rearmed", "cooldown", "limit"]


class LimitRecord(msgspec.Struct, frozen=True):
    """What a rule on a role has used of its limits.

    `role` is the role's key. `fires` are the (time, value) of its firings within `per`, oldest first. Until
    `cooldown_until` it may not fire; `cooldown` is the length that was in force when that was set.
    """

    role: str
    rule: str
    fires: tuple[tuple[float, float | None], ...] = ()
    cooldown_until: float = 0.0
    cooldown: float = 0.0


def settled(record: LimitRecord, now: float) -> LimitRecord:
    """The record after a look at the clock: unchanged, unless the clock has jumped back.

    Then the cooldown ends at most its own length from `now`, and firings more than that ahead are forgotten.
    The answer must be kept, or the cooldown would be moved again by the next look.
    """
    horizon = now + record.cooldown
    if record.cooldown_until <= horizon and not (record.fires and record.fires[-1][0] > horizon):
        return record
    return msgspec.structs.replace(
        record,
        fires=tuple(fire for fire in record.fires if fire[0] <= horizon),
        cooldown_until=min(record.cooldown_until, horizon),
    )


def fires_within(record: LimitRecord, limit: Limit, now: float) -> int:
    """How many firings the last `per` seconds have seen."""
    return sum(1 for time, _ in record.fires if now - time < limit.per)


def used_up(record: LimitRecord, limit: Limit, now: float) -> bool:
    """Whether one more firing would be one too many."""
    if limit.count is None:
        return False
    return fires_within(record, limit, now) >= min(limit.count, FIRES_KEPT)


def free_again(record: LimitRecord, limit: Limit, now: float) -> float | None:
    """When a used-up limit allows the next firing: seconds on the wall clock, None for never (`count: 0`)."""
    count = min(limit.count or 0, FIRES_KEPT)
    recent = [time for time, _ in record.fires if now - time < limit.per]
    return recent[-count] + limit.per if 0 < count <= len(recent) else None


def high_water(record: LimitRecord, limit: Limit, now: float) -> float | None:
    """The highest value of the firings within `per`."""
    values = [value for time, value in record.fires if value is not None and now - time < limit.per]
    return max(values, default=None)


def permission(record: LimitRecord, limit: Limit, now: float, rising: float | None = None) -> Permission:
    """May it fire at `now`? The cooldown is over at its end, not after it.

    `rising` is the value that would fire; None where higher is not worse. It passes the cooldown (`rearmed`)
    when it reaches `rearm_above` times the high water. Nothing passes the count.
    """
    if now >= record.cooldown_until:
        return "limit" if used_up(record, limit, now) else "free"
    if limit.rearm_above is None or rising is None or used_up(record, limit, now):
        return "cooldown"
    highest = high_water(record, limit, now)
    if highest is None or rising < highest * limit.rearm_above or rising <= highest:
        return "cooldown"
    return "rearmed"


def fired(record: LimitRecord, limit: Limit, cooldown: float, now: float, value: float | None) -> LimitRecord:
    """The record after a firing.

    The cooldown runs from here until the capture's end is known, so that an agent that dies in between comes
    back to a rule that cools.
    """
    recent = [fire for fire in record.fires if now - fire[0] < limit.per]
    in_order = sorted(
        [*recent, (now, value)], key=lambda fire: fire[0]
    )  # the clock may have jumped back a little
    return msgspec.structs.replace(
        record,
        fires=tuple(in_order[-FIRES_KEPT:]),
        cooldown_until=now + cooldown,
        cooldown=cooldown,
    )


def finished(record: LimitRecord, now: float) -> LimitRecord:
    """The record after the capture has ended: the cooldown that was in force at the firing counts from here."""
    return msgspec.structs.replace(record, cooldown_until=now + record.cooldown)
