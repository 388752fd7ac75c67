"""Collections and stalls as readings: the target's own counts from tick to tick, and reasons where there is no figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.probes.base import Moment
from sentinel_agent.probes.pulse import NOT_RECORDED
from sentinel_agent.probes.registry import build_probes, load_registry
from tests.probes.subjects import target_of
from tests.target.fakeproc import line, running, tell

if TYPE_CHECKING:
    from sentinel_agent.core.model import Reading
    from sentinel_agent.probes.registry import ProbeSet

COLLECTS = """
import gc
gc.disable()
print("up", flush=True)
while True:
    input()
    for _ in range(50):
        cycle = []
        cycle.append(cycle)
    del cycle
    print(gc.collect(), gc.collect(0), gc.collect(0), flush=True)
"""


def readings(probes: ProbeSet) -> dict[str, Reading]:
    found = [reading for probe in probes.probes for reading in probe.read(Moment(1.0, 1.0))]
    return {reading.metric: reading for reading in found if reading.metric.startswith(("gc_", "loop_"))}


def test_collections_are_counted_from_tick_to_tick_by_generation() -> None:
    """The first tick has no reading; then what the target's own calls to `gc.collect` did, and 0 when they did nothing."""
    with running(COLLECTS) as child, build_probes(target_of(child.pid), load_registry([])) as probes:
        line(child)
        probes.subject.reader.open()
        assert not any(name.endswith("_gen2") for name in readings(probes))
        tell(child)
        full, young, _ = map(int, line(child).split())
        values = {name: reading.value for name, reading in readings(probes).items()}
        assert (values["gc_collections_gen0"], values["gc_collections_gen2"]) == (2, 1)
        assert values["gc_collections_gen1"] == 0
        assert (values["gc_collected_gen2"], values["gc_collected_gen0"]) == (full, young)
        assert full >= 50
        assert values["gc_uncollectable_gen2"] == 0
        again = readings(probes)
        assert {again[f"gc_collections_gen{number}"].value for number in range(3)} == {0}


def test_without_the_recorder_the_readings_say_why() -> None:
    """A stall and a pause come from the recorder's looks: where it is off, the metric has that as its reason."""
    with running(COLLECTS) as child, build_probes(target_of(child.pid), load_registry([])) as probes:
        line(child)
        assert {reading.error for reading in readings(probes).values()} == {
            "the reader of its memory is not open yet"
        }
        probes.subject.reader.open()
        found = readings(probes)
        assert found["loop_stall"].error == found["gc_pause"].error == NOT_RECORDED
        assert found["gc_share"].error == NOT_RECORDED
