"""Errors, split by whose fault they are.

A message says what was found and what was expected; `hint` says what to do next. `exit_code` is the
command line's contract: 1 failed, 2 bad usage or configuration, 3 no such target or incident, 4 not permitted.
"""

from __future__ import annotations

from dataclasses import dataclass


class SentinelError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class OperatorError(SentinelError):
    """What the operator wrote cannot be used: an option, a configuration, a rule."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a configuration: `where` is the file with the line, if known, `path` the place in the document."""

    where: str
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.where}: {self.path}" if self.path else self.where
        return f"{place}: {self.message}"


class ConfigError(OperatorError):
    """A configuration with one or more faults, all of them in `faults`."""

    def __init__(self, faults: list[Fault], *, hint: str | None = None) -> None:
        count = len(faults)
        head = f"{count} fault{'s' if count != 1 else ''} in the configuration"
        super().__init__("\n".join([head, *(f"  {fault}" for fault in faults)]), hint=hint)
        self.faults = faults


class NoSuchIncidentError(OperatorError):
    """The incident that was asked for is not in the store."""

    exit_code = 3


class TargetError(SentinelError):
    """The watched process is not as it must be."""


class NoSuchTargetError(TargetError):
    """The process is not there, has ended, or is nothing that can be watched (zombie, kernel thread)."""

    exit_code = 3


class NotPermittedError(TargetError):
    """The process is there but may not be read; `hint` names the remedy."""

    exit_code = 4


class NotAllowedError(NotPermittedError):
    """The settings do not allow it: nothing was tried; `hint` names the setting."""


class PeerError(SentinelError):
    """A program or server that we use (py-spy, a backend) failed or answered nonsense."""


class StoreError(SentinelError):
    """The data directory cannot be used: read-only, full, removed, or not ours."""


class StoreNotPermittedError(StoreError):
    """The data directory is there, but this user may not use it."""

    exit_code = 4
