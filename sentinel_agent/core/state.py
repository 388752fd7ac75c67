"""The states of a rule on one role, and every way from one to another, as a table."""

from __future__ import annotations

from typing import Literal

State = Literal["warmup", "inactive", "pending", "firing", "cooling"]
Event = Literal["unready", "quiet", "holding", "fire", "busy", "finished", "blocked"]

STATES: dict[State, str] = {
    "warmup": "too few readings so far to know what is usual",
    "inactive": "watching; the condition is false",
    "pending": "the condition is true, but not yet for the hold time",
    "firing": "fired; the capture is under way",
    "cooling": "fired lately: waiting for the cooldown to end, or the limit is used up",
}

EVENTS: dict[Event, str] = {
    "unready": "a reading came or was missing, and too few are there",
    "quiet": "the condition is false, or there is no reading to judge",
    "holding": "the condition is true, the hold time not over",
    "fire": "the condition has held, and the limits allow it",
    "busy": "the capture of the last firing is under way",
    "finished": "the capture has ended, well or not",
    "blocked": "the cooldown is not over, or the limit is used up",
}

TRANSITIONS: dict[tuple[State, Event], State] = {
    ("warmup", "unready"): "warmup",
    ("warmup", "quiet"): "inactive",
    ("warmup", "holding"): "pending",
    ("warmup", "fire"): "firing",
    ("warmup", "busy"): "firing",
    ("warmup", "finished"): "warmup",
    ("warmup", "blocked"): "cooling",
    ("inactive", "quiet"): "inactive",
    ("inactive", "holding"): "pending",
    ("inactive", "fire"): "firing",
    ("inactive", "busy"): "firing",
    ("inactive", "finished"): "cooling",
    ("inactive", "blocked"): "cooling",
    ("pending", "quiet"): "inactive",
    ("pending", "holding"): "pending",
    ("pending", "fire"): "firing",
    ("pending", "blocked"): "cooling",
    ("firing", "busy"): "firing",
    ("firing", "finished"): "cooling",
    ("cooling", "quiet"): "inactive",
    ("cooling", "holding"): "pending",
    ("cooling", "fire"): "firing",
    ("cooling", "blocked"): "cooling",
}
"""(state, event) -> next state. A pair that is not here cannot happen.

`busy` and `finished` outside `firing` come after a role was started afresh, or its rule changed, during a
capture. `cooling` to `firing` directly is the spike that passes the cooldown because it is worse.
"""


def advance(state: State, event: Event) -> State:
    """The next state.

    Raises:
        KeyError: the event cannot happen in this state, a fault of the program.
    """
    return TRANSITIONS[state, event]
