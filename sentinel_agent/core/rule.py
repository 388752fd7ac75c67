"""What a rule is: data, not code (the shape of section 4.2 of the design).

A rule says which metric is watched, which tests make it fire, how long the condition must hold, how often
it may fire, and what is captured. How it is judged is in `trigger`, `state` and `engine`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sentinel_agent.core.units import ByteSize, Duration

RuleName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
CaptureKind = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$", max_length=32)]
Pattern = Annotated[str, Meta(min_length=1, max_length=1000, extra={"unit": "regex"})]


class Trigger(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Threshold tests on one metric; a key left out switches that test off.

    Judged in this order, the first that matches decides (holmes' order): `min` (a value under it never
    fires), `max` (a value at or over it never fires: the guard for captures that would hurt), `abs` (fires
    above it), `diff` (fires at or above the baseline plus so many percent), `below` (fires under it).
    """

    min: float | None = None
    max: float | None = None
    abs: float | None = None
    diff: float | None = None
    below: float | None = None


BaselineKind = Literal["mean", "median", "holmes"]


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `diff` compares with.

    `mean` and `median` of the readings of the last `window`, the current one left out. `holmes`: a ring of
    10, integer floor, the current value included, all tests in integers.
    """

    kind: BaselineKind = "mean"
    window: Annotated[Duration, Meta(gt=0, le=3600)] = 60.0


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a rule may fire on one role: at most `count` times in any stretch of `per`.

    `rearm_above` lets a spike that is that many times higher than the highest so far (within `per`) pass the
    cooldown.
    """

    count: Annotated[int, Meta(ge=0)] | None = None
    per: Annotated[Duration, Meta(gt=0)] = 3600.0
    rearm_above: Annotated[float, Meta(gt=1)] | None = None


class CaptureSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One capture of a rule; written as its kind alone, or as a mapping with these keys. None: the kind's default.

    The captures of a rule are steps, run in their order, so the light ones stand first. A step is skipped while `skip_when` holds or
    cannot be judged (`core.guard`), and where one like it stopped this target for longer than `max_pause` before. It is ended
    after `timeout` and its duration.
    """

    kind: CaptureKind
    duration: Annotated[Duration, Meta(gt=0, le=60)] | None = None
    rate: Annotated[int, Meta(ge=1, le=1000)] | None = None
    max_bytes: Annotated[ByteSize, Meta(ge=1024)] | None = None
    pause: bool = False
    frames: Annotated[int, Meta(ge=1, le=32)] | None = None
    skip_when: Annotated[str, Meta(min_length=1, max_length=1000)] | None = None
    timeout: Annotated[Duration, Meta(gt=0, le=300)] | None = None
    max_pause: Annotated[Duration, Meta(gt=0, le=5)] | None = None


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which targets a rule is for: regular expressions searched in the role's parts; left out means all."""

    service: Pattern | None = None
    worker: Pattern | None = None


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Trigger + hold time + limits + what to capture.

    `trigger` is a mapping of threshold tests on `metric`, or a CEL expression over any metrics; with an
    expression, `metric` only says which value is shown. `warmup` is how many readings must be there before a
    rule with `diff` decides anything.
    """

    name: RuleName
    trigger: Trigger | Annotated[str, Meta(min_length=1, max_length=1000)]
    metric: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)] | None = None
    description: Annotated[str, Meta(max_length=500)] = ""
    enabled: bool = True
    match: Match = Match()
    baseline: Baseline = Baseline()
    warmup: Annotated[int, Meta(ge=1, le=600)] = 10
    hold: Duration = 0.0
    cooldown: Duration = 60.0
    limit: Limit = Limit()
    capture: tuple[CaptureSpec | CaptureKind, ...] = ("stacks",)

    def captures(self) -> tuple[CaptureSpec, ...]:
        """The captures with every short form written out."""
        return tuple(CaptureSpec(item) if isinstance(item, str) else item for item in self.capture)

    def thresholds(self) -> dict[str, float | str | None]:
        """The trigger as it is kept in an incident."""
        if isinstance(self.trigger, str):
            return {"expression": self.trigger}
        tests: dict[str, Any] = msgspec.to_builtins(self.trigger)
        return tests


class RuleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of rules."""

    rules: tuple[Rule, ...] = ()
