"""A child that has ended and that nobody waits for is taken notice of, and no other."""

from __future__ import annotations

import subprocess
import sys

from sentinel_agent.target.discover import glance
from sentinel_agent.target.orphans import GRACE, Orphans
from tests.e2e.support import until


def test_a_zombie_is_reaped_after_its_grace() -> None:
    """Not at once, when who started it may still ask for its status; and never one that lives."""
    orphans = Orphans()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as lives:
        ended = subprocess.Popen(["/bin/true"])
        until(lambda: (stat := glance(ended.pid)) and stat.ended, 20, "the zombie")
        assert orphans.reap(100.0) == 0
        assert orphans.reap(100.0 + GRACE / 2) == 0
        assert glance(ended.pid) is not None
        assert orphans.reap(100.0 + GRACE) == 1
        assert glance(ended.pid) is None
        assert orphans.reap(200.0) == 0
        assert lives.poll() is None
        lives.communicate("\n")
    ended.wait()  # Popen finds it gone, and says 0
