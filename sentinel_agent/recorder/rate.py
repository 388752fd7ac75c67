"""How often to sample each target: as often as it deserves, as far as the budget goes.

What a target deserves follows from how busy it is, and whether that is new: what a service does all day is known from a few looks
a second, what has just begun is not. So a rate is raised while a target uses more than it usually does, and a part of the
budget is kept for that. The budget is shared by max-min fairness over CPU time: nobody gets
more than it wants, and what is left is shared equally among the others (Bertsekas and Gallager, Data Networks, 6.5.2).
A rate is a step of a ladder without round numbers, so that it keeps no step with what the target does every 100 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

_Key = TypeVar("_Key")

LADDER = (1.03, 1.3, 1.7, 2.3, 3.1, 4.3, 5.9, 7.9, 9.7, 13.0, 19.0, 23.0, 31.0, 43.0, 53.0, 67.0, 79.0, 97.0)
"""Samples a second that are ever taken."""
RAISE_ABOVE = 1.1
"""A rate goes up only if the budget allows this much more than the next step, so that it does not flutter."""
_BUSY, _STILL_BUSY = 0.5, 0.3
_NEW, _STILL_NEW = 0.25, 0.1
"""So many cores more than usual are new; the level is left at less."""
_STILL_IDLE, _IDLE = 0.05, 0.02
_BISECTIONS = 60

Level = Literal["idle", "base", "raised"]


@dataclass(frozen=True, slots=True)
class RateSettings:
    """`budget` in cores for all targets together, `calm` while none is raised; rates in samples a second per level, and the least one."""

    budget: float = 0.01
    calm: float = 0.01
    idle: float = 9.7
    base: float = 19.0
    raised: float = 97.0
    least: float = 1.03


@dataclass(frozen=True, slots=True)
class Load:
    """What a target's samples cost (CPU seconds for one, of all its threads), how many cores it uses itself, and usually."""

    cost: float
    cores: float
    usual: float = 0.0


@dataclass(frozen=True, slots=True)
class Rate:
    """The level that a target's activity deserves, and the samples a second that it gets."""

    level: Level
    rate: float


def smoothed(average: float | None, value: float, weight: float = 0.1) -> float:
    """The exponentially weighted mean, for costs; the first value stands for itself."""
    return value if average is None else average + weight * (value - average)


def level(previous: Level | None, cores: float, usual: float = 0.0) -> Level:
    """How much attention a target deserves that uses `cores`, and usually `usual`; it leaves a level later than it enters it."""
    busy, new = (_STILL_BUSY, _STILL_NEW) if previous == "raised" else (_BUSY, _NEW)
    if cores >= busy and cores - usual >= new:
        return "raised"
    if cores < (_STILL_IDLE if previous == "idle" else _IDLE):
        return "idle"
    return "base"


def plan(
    loads: Mapping[_Key, Load], settings: RateSettings, previous: Mapping[_Key, Rate] | None = None
) -> dict[_Key, Rate]:
    """The rate of every target. Their cost together is within the budget in force, unless even the least rates cost more.

    Everyone gets at least the least rate. A target that costs more never gets a higher rate for it.
    """
    before = previous or {}
    levels = {key: level(_level_of(before.get(key)), load.cores, load.usual) for key, load in loads.items()}
    budget = settings.budget if "raised" in levels.values() else min(settings.calm, settings.budget)
    wanted = {"idle": settings.idle, "base": settings.base, "raised": settings.raised}
    wants = {key: max(wanted[levels[key]], settings.least) for key in loads}
    share = _share(loads, wants, budget, settings.least)
    answer: dict[_Key, Rate] = {}
    for key, load in loads.items():
        affordable = _granted(share, load.cost, wants[key], settings.least)
        held = before[key].rate if key in before else None
        answer[key] = Rate(levels[key], _step(affordable, wants[key], held, settings.least))
    return answer


def _level_of(rate: Rate | None) -> Level | None:
    return rate.level if rate else None


def _granted(share: float, cost: float, want: float, least: float) -> float:
    """The rate for `share` cores at most, between the least one and the one wanted."""
    return want if want * cost <= share else max(share / cost, least)


def _share(loads: Mapping[_Key, Load], wants: Mapping[_Key, float], budget: float, least: float) -> float:
    """The greatest share, in cores, that everyone may take without all together taking more than the budget."""

    def total(share: float) -> float:
        return sum(load.cost * _granted(share, load.cost, wants[key], least) for key, load in loads.items())

    if total(budget) <= budget:
        return budget
    low, high = 0.0, budget
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) <= budget else (low, middle)
    return low


def _step(affordable: float, want: float, held: float | None, least: float) -> float:
    """The highest step that is affordable; above the one held only if well affordable, or wanted exactly."""
    best = least
    for rung in LADDER:
        enough = rung if held is None or rung <= held else min(rung * RAISE_ABOVE, want)
        if best < rung <= affordable and enough <= affordable:
            best = rung
    return best
