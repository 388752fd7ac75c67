"""The adaptive limiter: when the worker is overloaded, what made it so is held down, and nothing else. Pure.

After Ant's loop (sofastack.tech, "技术风口上的限流"), one step a second:

1. detect: the level (smoothed, 1 is all there is) is over the threshold for `hold` seconds;
2. relieve, one measure at a time, the next one three seconds after the level has ceased to fall:
   - requests that are marked as load test are refused, where there are any;
   - of the routes that make up 80 % of all use, those that clearly rose are held: those that are asked more often, if there
     are such, since all that wait for the same rise with them; if none rose, the largest. Use is the mean number of requests
     under way (Little's law): time spent in requests over time;
   - where nobody can be blamed (none rose, and the largest has less than a fifth of all use; or all are held to
     the least already), the global gate (`gate.py`) bounds what is under way on all routes together;
3. regulate: each held route has a baseline of requests under way, at first what it uses; down in proportion to the
   excess, by no more than 30 % a step, up again in proportion to the room under the threshold. Under 1 it is
   the share of requests that pass, one at a time, and never under a twentieth: a probe must pass. A tenth of
   the load test comes back with each second that has room. The gate is open while the level is under the threshold, and gone
   after ten seconds of that;
4. decide: a request of a held route passes while no more than the baseline are under way.

The formulas of 2 and 3 are ours, tuned on the plant of `tests/proxy/test_limiter.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

SMOOTHING: Final = 0.5
USUAL_SMOOTHING: Final = 1 / 60
SHARE: Final = 0.8
RISE: Final = 1.3
BLAMED_FROM: Final = 0.2
NEXT_AFTER: Final = 3
FALLING: Final = 0.99
GAIN: Final = 0.5
LARGEST_STEP: Final = 0.7
RECOVERY: Final = 0.8
MARGIN: Final = 0.06
"""Room under the threshold that is left alone, as a share of it."""
FORGOTTEN_AT: Final = 1.5
FORGOTTEN_AFTER: Final = 5
BACK_STEP: Final = 0.1
GATE_FORGOTTEN_AFTER: Final = 10
FLOOR: Final = 0.05


@dataclass(slots=True)
class Held:
    """A route that is held down: `base` requests may be under way; `snapshot` is its use when it was blamed, and `why`."""

    base: float
    snapshot: float
    why: str = ""
    above: int = 0

    def allows(self, under_way: int, draw: float) -> bool:
        """Whether a request may pass as the `under_way`-th of its route; `draw` is a random number under 1."""
        return under_way <= max(1.0, self.base) and (self.base >= 1 or draw < self.base)


class Change(NamedTuple):
    """A decision: which measure, on a route, by its key, or on all (None)."""

    measure: Literal["load_test", "held", "gate"]
    route: str | None
    words: str


class HeldState(msgspec.Struct, frozen=True):
    """A route that is held: requests that it may have under way, and why."""

    listener: str
    route: str
    base: float
    in_flight: int
    why: str


class Decided(msgspec.Struct, frozen=True):
    """A decision of the limiter; `time` in seconds since the epoch, `route` empty where it is for all."""

    time: float
    route: str
    words: str


class LimitState(msgspec.Struct, frozen=True):
    """What the limiter does, and why. `gate` is how many requests may be under way in all, None while it is open.

    `load_test` is the share of marked requests that pass.
    """

    mode: str
    level: float
    source: str
    threshold: float
    held: tuple[HeldState, ...]
    load_test: float
    gate: int | None
    recent: tuple[Decided, ...]


class AdaptiveLimiter:
    """Steps once a second. `held` are the routes that are held down, by their keys.

    `load_test` is the share of marked requests that pass, `gated` whether the global gate decides.
    """

    def __init__(self, threshold: float, hold: int) -> None:
        """`threshold` is a level; `hold` in steps."""
        self._threshold = threshold
        self._hold = hold
        self._over = 0
        self._under = 0
        self._stuck = 0
        self._usual: dict[str, float] = {}
        self._usual_rate: dict[str, float] = {}
        self._gate = False
        self.gated = False
        self.load_test = 1.0
        self.level = 0.0
        self.held: dict[str, Held] = {}

    def step(
        self,
        level: float,
        use: Mapping[str, float],
        rate: Mapping[str, float] | None = None,
        *,
        marked: float = 0.0,
        source: str = "level",
    ) -> list[Change]:
        """One second: what was decided.

        `level` is that of this moment and `source` what it is of; `use` and `rate` are those of every route in the last
        second, `marked` how many requests with the mark of a load test came in it.
        """
        rate = rate or {}
        before = self.level
        self.level += SMOOTHING * (level - before)
        over = self.level > self._threshold
        self._over = self._over + 1 if over else 0
        self._under = 0 if over else self._under + 1
        acting = bool(self.held) or self._gate or self.load_test < 1
        changes: list[Change] = []
        if acting:
            self._regulate(changes)
            self._come_back(changes, over=over)
            self._stuck = self._stuck + 1 if self.level > FALLING * before else 0
            if over and self._stuck >= NEXT_AFTER:
                self._relieve(use, rate, marked, source, changes)
        elif self._over >= self._hold:
            self._relieve(use, rate, marked, source, changes)
        if not over and not self.held:
            for usual, now in ((self._usual, use), (self._usual_rate, rate)):
                for route, value in now.items():
                    before = usual.get(route, value)
                    usual[route] = before + USUAL_SMOOTHING * (value - before)
        self.gated = self._gate and self._under <= 1
        return changes

    # -- measures ------------------------------------------------------------------------------------------------

    def _relieve(
        self,
        use: Mapping[str, float],
        rate: Mapping[str, float],
        marked: float,
        source: str,
        changes: list[Change],
    ) -> None:
        self._stuck = 0
        over = f"{source} {self.level:.2f}, over {self._threshold:.2f} for {self._over} s"
        if marked and self.load_test > 0:
            self.load_test = 0.0
            changes.append(
                Change("load_test", None, f"the load test is refused, {marked:.0f} requests a second: {over}")
            )
        elif (
            not self._blame(use, rate, over, changes)
            and not self._gate
            and all(each.base <= FLOOR for each in self.held.values())
        ):
            self._gate = True
            changes.append(Change("gate", None, f"the global gate is shut, no route is to blame: {over}"))

    def _blame(
        self, use: Mapping[str, float], rate: Mapping[str, float], over: str, changes: list[Change]
    ) -> bool:
        """Hold the routes that rose; where none did, the largest that is not held yet. Whether there was one."""
        total, covered, large = sum(use.values()), 0.0, []
        for route in sorted(use, key=lambda route: -use[route]):
            if covered >= SHARE * total:
                break
            covered += use[route]
            if route not in self.held and use[route] > 0:
                large.append(route)
        least = min(1.0, BLAMED_FROM * total)
        rising = [route for route in large if self._rose(route, use[route], least)]
        asked_more = [
            route for route in rising if rate.get(route, 0.0) > RISE * self._usual_rate.get(route, 0.0)
        ]
        if asked_more:  # the others rose because they wait for these
            rising = asked_more
        elif any(each.base > FLOOR for each in self.held.values()):
            return False  # what is held can still be held more
        blamed = rising or [route for route in large[:1] if use[route] >= BLAMED_FROM * total]
        for route in blamed:
            reason = f"rose from {self._usual.get(route, 0.0):.1f}" if rising else "is the largest"
            why = f"{over}; its use of {use[route]:.1f} requests under way {reason}"
            self.held[route] = Held(max(1.0, use[route]), max(1.0, use[route]), why)
            changes.append(
                Change("held", route, f"held to {self.held[route].base:.1f} requests under way: {why}")
            )
        return bool(blamed)

    def _rose(self, route: str, value: float, least: float) -> bool:
        usual = self._usual.get(route, 0.0)
        return value > RISE * usual and value - usual > least

    # -- and their end -------------------------------------------------------------------------------------------

    def _regulate(self, changes: list[Change]) -> None:
        excess, margin = self.level - self._threshold, MARGIN * self._threshold
        for route, each in tuple(self.held.items()):
            if excess > 0:
                each.base = max(FLOOR, each.base * max(LARGEST_STEP, 1 - GAIN * excess / self._threshold))
            elif excess < -margin:
                each.base *= 1 + RECOVERY * (-excess - margin) / self._threshold
            each.above = each.above + 1 if each.base > FORGOTTEN_AT * each.snapshot else 0
            if each.above >= FORGOTTEN_AFTER:
                del self.held[route]
                changes.append(
                    Change(
                        "held", route, f"let go: level {self.level:.2f}, it may have {each.base:.1f} requests"
                    )
                )

    def _come_back(self, changes: list[Change], *, over: bool) -> None:
        if self._gate and self._under >= GATE_FORGOTTEN_AFTER:
            self._gate = False
            changes.append(Change("gate", None, f"the global gate is gone: level {self.level:.2f}"))
        if self.load_test == 1 or self.held or self._gate:
            return
        if over:
            self.load_test = 0.0
        elif self.level < (1 - MARGIN) * self._threshold:
            self.load_test = min(1.0, self.load_test + BACK_STEP)
            if self.load_test == 1:
                changes.append(
                    Change("load_test", None, f"the load test is let pass: level {self.level:.2f}")
                )
