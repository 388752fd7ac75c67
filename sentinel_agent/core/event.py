"""What the agent says while it runs: each event is a fact that a terminal, a log or an exporter may show."""

from __future__ import annotations

import msgspec

from sentinel_agent.core.model import Incident, Target


class TargetAppeared(msgspec.Struct, frozen=True, tag="target_appeared"):
    """A process is watched from here on."""

    time: float
    target: Target


class TargetGone(msgspec.Struct, frozen=True, tag="target_gone"):
    """A watched process ended; `how` says what is known of it, for example `killed by SIGSEGV, core dumped`.

    `note` says why no incident was made of it, where one was due.
    """

    time: float
    target: Target
    how: str
    note: str = ""


class IncidentOpened(msgspec.Struct, frozen=True, tag="incident_opened"):
    """A rule fired and its captures have begun."""

    time: float
    id: str
    rule: str
    target: Target
    summary: str


class IncidentSealed(msgspec.Struct, frozen=True, tag="incident_sealed"):
    """An incident is whole and on disk, in `folder`."""

    time: float
    incident: Incident
    folder: str


class IncidentLost(msgspec.Struct, frozen=True, tag="incident_lost"):
    """A rule fired and nothing was kept; `why` names the budget, the disk or the fault."""

    time: float
    rule: str
    target: Target
    why: str


class LimitReached(msgspec.Struct, frozen=True, tag="limit_reached"):
    """A rule's condition is met, but its limit is used up: nothing is saved until a slot is free again."""

    time: float
    rule: str
    target: Target


class SettingsReloaded(msgspec.Struct, frozen=True, tag="settings_reloaded"):
    """A changed configuration is in force; `changes` names what differs."""

    time: float
    changes: tuple[str, ...]


class SettingsRefused(msgspec.Struct, frozen=True, tag="settings_refused"):
    """A changed configuration has faults; the old one stays in force."""

    time: float
    faults: str


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """Something of the agent's own does not work; watching goes on."""

    time: float
    what: str


Event = (
    TargetAppeared
    | TargetGone
    | IncidentOpened
    | IncidentSealed
    | IncidentLost
    | LimitReached
    | SettingsReloaded
    | SettingsRefused
    | Trouble
)
