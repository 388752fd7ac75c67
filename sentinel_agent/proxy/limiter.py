"""The adaptive limiter: when the worker is overloaded, the routes that made it so are held down, and no others. Pure.

After Ant's loop (sofastack.tech, "技术风口上的限流"), one step a second:

1. detect: the level (smoothed, 1 is all there is) is over the threshold for `hold` seconds;
2. blame: of the routes that make up 80 % of all use, those that clearly rose; if none did, the largest, and the next one
   three seconds after the level has ceased to fall. Use is the mean number of requests under way (Little's law): time spent in
   requests over time;
3. regulate: each blamed route has a baseline of requests under way, at first what it uses; down in proportion to the
   excess, by no more than 30 % a step, up again in proportion to the room under the threshold, never under 1;
4. decide: a request of a blamed route passes while no more than the baseline are under way.

The formulas of 2 and 3 are ours, tuned on the plant of `tests/proxy/test_limiter.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SMOOTHING: Final = 0.5
USUAL_SMOOTHING: Final = 1 / 60
SHARE: Final = 0.8
RISE: Final = 1.3
NEXT_AFTER: Final = 3
FALLING: Final = 0.99
GAIN: Final = 0.5
LARGEST_STEP: Final = 0.7
RECOVERY: Final = 0.8
MARGIN: Final = 0.05
FORGOTTEN_AT: Final = 1.5
FORGOTTEN_AFTER: Final = 5


@dataclass(slots=True)
class Held:
    """A route that is held down: `base` requests may be under way; `snapshot` is its use when it was blamed."""

    base: float
    snapshot: float
    above: int = 0


class AdaptiveLimiter:
    """Steps once a second; `held` are the routes that are held down, by their numbers."""

    def __init__(self, threshold: float, hold: int) -> None:
        """`threshold` is a level; `hold` in steps."""
        self._threshold = threshold
        self._hold = hold
        self._over = 0
        self._stuck = 0
        self._usual: dict[int, float] = {}
        self.level = 0.0
        self.held: dict[int, Held] = {}

    def step(self, level: float, use: Mapping[int, float]) -> None:
        """One second: the level at this moment, and the use of every route in the last second."""
        before = self.level
        self.level += SMOOTHING * (level - before)
        over = self.level > self._threshold
        self._over = self._over + 1 if over else 0
        if self.held:
            self._regulate()
            self._stuck = self._stuck + 1 if self.level > FALLING * before else 0
            if over and self._stuck >= NEXT_AFTER:
                self._blame(use)
        elif self._over >= self._hold:
            self._blame(use)
        if not over and not self.held:
            for route, value in use.items():
                usual = self._usual.get(route, value)
                self._usual[route] = usual + USUAL_SMOOTHING * (value - usual)

    def _blame(self, use: Mapping[int, float]) -> None:
        """Hold the routes that rose; where none did, the largest that is not held yet."""
        self._stuck = 0
        free = sorted((route for route in use if route not in self.held), key=lambda route: -use[route])
        total, covered, large = sum(use.values()), 0.0, []
        for route in sorted(use, key=lambda route: -use[route]):
            if covered >= SHARE * total:
                break
            covered += use[route]
            if route in free:
                large.append(route)
        rising = [route for route in large if self._rose(route, use[route])]
        for route in rising or large[:1]:
            if use[route] > 0:
                self.held[route] = Held(max(1.0, use[route]), max(1.0, use[route]))

    def _rose(self, route: int, value: float) -> bool:
        usual = self._usual.get(route, 0.0)
        return value > RISE * usual and value - usual > 1

    def _regulate(self) -> None:
        excess = self.level - self._threshold
        for route, each in tuple(self.held.items()):
            if excess > 0:
                each.base = max(1.0, each.base * max(LARGEST_STEP, 1 - GAIN * excess / self._threshold))
            elif excess < -MARGIN:
                each.base *= 1 + RECOVERY * (-excess - MARGIN) / self._threshold
            each.above = each.above + 1 if each.base > FORGOTTEN_AT * each.snapshot else 0
            if each.above >= FORGOTTEN_AFTER:
                del self.held[route]

    def allows(self, route: int, under_way: int) -> bool:
        """Whether a request may pass, as the `under_way`-th of its route."""
        each = self.held.get(route)
        return each is None or under_way <= each.base
