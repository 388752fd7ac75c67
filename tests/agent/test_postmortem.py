"""Which ends of a target become an incident, and how many of them."""

from __future__ import annotations

import msgspec
import pytest

from sentinel_agent.config.settings import PostmortemSettings
from sentinel_agent.core.ending import Ending
from sentinel_agent.core.limits import LimitRecord
from sentinel_agent.core.model import Reading, Role
from sentinel_agent.postmortem import RULE, Postmortem

ROLE = Role("shop", "here", "worker-1")
OTHER = Role("shop", "here", "worker-2")
KILLED = Ending(-9)


def fires(postmortem: Postmortem, role: Role, now: float, ending: Ending = KILLED) -> bool:
    """Judge one end; what fires is saved at once."""
    firing, note = postmortem.judge(role, ending, now, {})
    if firing is not None:
        postmortem.finished(role, now)
        assert note == ""
    return firing is not None


@pytest.mark.parametrize(
    ("ending", "by_default"),
    [
        (KILLED, True),
        (Ending(3), True),
        (Ending(), True),
        (Ending(-9, oom_kills=1), True),
        (Ending(0), False),
        (Ending(-15), False),
        (Ending(143), False),
    ],
)
def test_a_death_is_an_incident_and_a_stop_is_none(ending: Ending, by_default: bool) -> None:
    """Without any setting; each kind can be switched on and off by name, and all of it at once."""
    assert fires(Postmortem(PostmortemSettings()), ROLE, 1000.0, ending) == by_default
    assert fires(Postmortem(PostmortemSettings(on=(ending.kind,))), ROLE, 1000.0, ending)
    assert not fires(Postmortem(PostmortemSettings(on=())), ROLE, 1000.0, ending)
    assert not fires(Postmortem(PostmortemSettings(enabled=False)), ROLE, 1000.0, ending)


def test_a_crash_loop_makes_as_many_incidents_as_its_limit_says_and_says_why_no_more() -> None:
    """One end a second for an hour: five incidents, a minute apart at least; the others say what refuses them."""
    postmortem = Postmortem(PostmortemSettings())
    saved = [now for now in range(1000, 4600) if fires(postmortem, ROLE, float(now))]
    assert saved == [1000, 1060, 1120, 1180, 1240]
    assert "postmortem.max_incidents_per_hour" in postmortem.judge(ROLE, KILLED, 4599.0, {})[1]
    assert fires(postmortem, OTHER, 4599.0)  # another role has its own limit
    assert "postmortem.cooldown" in postmortem.judge(OTHER, KILLED, 4600.0, {})[1]


def test_limits_outlive_the_agent() -> None:
    """What a new agent takes back from the store refuses what the old one would have refused."""
    settings = PostmortemSettings(max_incidents_per_hour=1)
    old, new = Postmortem(settings), Postmortem(settings)
    assert fires(old, ROLE, 1000.0)
    (record,) = old.changed_limits()
    assert old.changed_limits() == []
    rule = LimitRecord(OTHER.key, "cpu-spike", cooldown_until=9e9)
    new.load_limits([msgspec.json.decode(msgspec.json.encode(record), type=LimitRecord), rule])
    assert not fires(new, ROLE, 1100.0)
    assert fires(new, OTHER, 1100.0)


def test_the_cooldown_counts_from_the_end_of_the_capture() -> None:
    """As it does for a rule."""
    postmortem = Postmortem(PostmortemSettings())
    assert postmortem.judge(ROLE, KILLED, 1000.0, {})[0]
    postmortem.finished(ROLE, 1030.0)
    assert not fires(postmortem, ROLE, 1089.0)
    assert fires(postmortem, ROLE, 1090.0)


def test_the_incident_says_how_it_ended_and_what_it_was_doing() -> None:
    """The last readings are in the line that is read first; a reading that failed is not."""
    last = {
        "cpu": Reading("cpu", 1.0, 97.5),
        "rss": Reading("rss", 1.0, 64.0 * 1024**2),
        "tasks": Reading("tasks", 1.0, None, "gone"),
    }
    firing, _ = Postmortem(PostmortemSettings()).judge(ROLE, Ending(-11), 1000.0, last)
    assert firing is not None
    assert firing.summary == "killed by SIGSEGV; last seen with cpu 97.5%, rss 64.0 MiB"
    assert (firing.rule, firing.reason, firing.time) == (RULE, "signal", 1000.0)
    assert [spec.kind for spec in firing.captures] == ["stacks"]
