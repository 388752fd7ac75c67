"""A blocked event loop, as the operator sees it: the metric in the readings, the rule, the callback's name."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support import attached, sentinel, started, until

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.e2e

PROGRAM = Path(__file__).parents[1] / "cpython" / "pulse_program.py"
RULES = (
    "rule_packs: []\nrules:\n  - {name: loop-stall, metric: loop_stall, trigger: {abs: 0.5}, cooldown: 0s}\n"
)


def test_stalls_of_a_third_of_a_second_one_and_three_are_measured_and_named(tmp_path: Path) -> None:
    """At default settings each is in the readings, short of the truth by a few looks at most and never longer; a loop that
    is only busy is none; the incident names the function that blocked."""
    words = ("many 1.5", "burn 0.3", "burn 1", "block 3")
    with started((sys.executable, str(PROGRAM)), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        assert target.stdin is not None
        assert target.stdout is not None
        assert target.stdout.readline() == "{}\n"
        with attached(str(target.pid), data_dir=tmp_path, config=RULES) as agent:
            until(lambda: any(tmp_path.glob("recorder/*/*.seg")), 30, "a recording")
            offset = time.time() - time.monotonic()  # noqa: TID251 - the target stamps by the other clock
            truth = []
            for word in words:
                target.stdin.write(f"{word}\n")
                target.stdin.flush()
                truth.append(json.loads(target.stdout.readline()))
                time.sleep(2.2)  # two readings in which nothing happens
            fired = agent.wait_for("incident_sealed", lambda found: found["incident"]["value"] > 2)[
                "incident"
            ]
            target.kill()
            died = agent.wait_for("incident_sealed", lambda found: found["incident"]["rule"] == "target-died")
        folder = tmp_path / "incidents" / died["incident"]["id"]
        series: dict[str, Any] = json.loads((folder / "series.json").read_text())["metrics"]["loop_stall"]
    readings = list(zip(series["times"], series["values"], strict=True))
    for word, (start, end) in zip(words, truth, strict=True):
        seen = max(value for when, value in readings if start < when - offset < end + 2)
        assert seen <= end - start, word
        # A few looks short, on a loaded machine; one that is only busy may have been pushed off its core.
        assert word.startswith("many") or seen > max(0.0, end - start - 0.5), word
    assert fired["metric"] == "loop_stall"
    shown = sentinel("incidents", "show", fired["id"], "--data-dir", str(tmp_path)).stdout
    assert "timed" in shown
