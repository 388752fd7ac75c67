"""Targets for the probe tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.core.model import Role, Target
from sentinel_agent.target.identity import identify
from sentinel_agent.target.procfs import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def target_of(pid: int, root: Path = ROOT) -> Target:
    """A target for a process that is there."""
    return Target(id=identify(pid, root), role=Role("service", "host"), name="x", command=())
