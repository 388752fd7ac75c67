"""How much of a short burst an incident shows: `python bench/bursts.py [ROUNDS]`.

A service that is otherwise idle burns for each of BURSTS seconds, ROUNDS times, and logs on its own clock when it began and
ended. The agent beside it has default settings; only the rule is other than the default pack's: quicker (it fires on 0.3 s in one
reading of a second), and its stacks go on for TAIL seconds after the trigger: what comes after an incident's end is in no incident.
Printed is the share of the
burst's wall time for which the timeline of one incident, the one that shows most, has the burning function, and for comparison
what that would be with one sampling period missing. A burst that no incident shows counts as 0.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sentinel_agent.profile import speedscope

BURSTS = (0.3, 1.2, 5.0)
ROUNDS = 5
WARM_UP, PAUSE = 14.0, 7.3
TAIL, GOAL = 5.0, 0.95
LATEST = 2.5
"""Seconds after the end of a burst in which an incident of it fires at the latest."""
SERVICE = """
import sys, time
def burn(until):
    while time.perf_counter() < until:
        sum(range(500))
print("ready", flush=True)
for line in sys.stdin:
    seconds = float(line)
    began = time.time()
    burn(time.perf_counter() + seconds)
    print(began, time.time(), flush=True)
"""
RULES = """
rules:
  - name: burst
    metric: cpu
    trigger: {min: 8, diff: 100}
    baseline: {kind: median, window: 1m}
    cooldown: 1s
    limit: {count: 1000, per: 1h}
    capture: [{kind: stacks, duration: {TAIL}s}]
""".replace("{TAIL}", str(TAIL))


def shown(folder: Path) -> list[tuple[float, list[tuple[float, float]]]]:
    """Of each incident its trigger's time and the stretches (seconds since the epoch) in which it shows the burning function."""
    incidents = []
    for file in folder.glob("incidents/*/stacks.speedscope.json"):
        record = speedscope.decode(file.read_bytes())
        stretches = [
            (record.start + sample.offset, record.start + sample.offset + sample.weight)
            for sample in record.samples
            if any(record.frames[index].function == "burn" for index in sample.stack)
        ]
        incidents.append((json.loads((file.parent / "incident.json").read_bytes())["time"], stretches))
    return incidents


def covered(stretches: list[tuple[float, float]], began: float, ended: float) -> float:
    """Share of the time from `began` to `ended` that lies in a stretch."""
    total, reached = 0.0, began
    for start, end in sorted(stretches):
        total += max(0.0, min(end, ended) - max(start, reached))
        reached = max(reached, min(end, ended))
    return total / (ended - began)


def run(folder: Path, rounds: int) -> dict[float, list[tuple[float, float]]]:
    """When each burst of each length began and ended."""
    rules = folder / "rules.yaml"
    rules.write_text(RULES)
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert service.stdin
    assert service.stdout
    service.stdout.readline()
    command = [sys.executable, "-m", "sentinel_agent", "attach", str(service.pid)]
    agent = subprocess.Popen(
        [*command, "--data-dir", str(folder), "--rules", str(rules)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    times: dict[float, list[tuple[float, float]]] = {seconds: [] for seconds in BURSTS}
    try:
        time.sleep(WARM_UP)
        for number in range(rounds):
            for seconds in BURSTS:
                # Not in step with the agent's readings.
                time.sleep(PAUSE + 0.37 * number)
                service.stdin.write(f"{seconds}\n")
                service.stdin.flush()
                began, ended = map(float, service.stdout.readline().split())
                times[seconds].append((began, ended))
        time.sleep(TAIL + 4)
    finally:
        for process in (agent, service):
            process.terminate()
            process.wait(15)
    return times


def main(rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="sentinel-bursts-") as name:
        folder = Path(name)
        times = run(folder, rounds)
        incidents = shown(folder)
        for seconds, bursts in times.items():
            shares = [
                max(
                    (
                        covered(stretches, began, ended)
                        for trigger, stretches in incidents
                        if began <= trigger <= ended + LATEST
                    ),
                    default=0.0,
                )
                for began, ended in bursts
            ]
            least = 1 - 1 / 19 / seconds
            print(
                f"{seconds:.1f} s: median {statistics.median(shares):.1%} of its time is shown "
                f"({min(shares):.1%} to {max(shares):.1%}), goal >= {min(GOAL, least):.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
