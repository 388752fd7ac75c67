"""Targets for the probe tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.target.identity import identify
from sentinel_agent.target.procfs import ROOT
from sentinel_agent.testing import make_target

if TYPE_CHECKING:
    from pathlib import Path

    from sentinel_agent.core.model import Target


def target_of(pid: int, root: Path = ROOT) -> Target:
    """A target for a process that is there."""
    return make_target(identify(pid, root))
