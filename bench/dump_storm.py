"""What the agent needs under a storm of captures: `python -m bench.dump_storm [ASKED SECONDS]`, as root, from a checkout where `make containers` has run.

The image is built, four services run beside it in a pod (runc, real cgroups), each with 50 requests a second, and ASKED incidents
with stacks, tasks, process and profile are asked for over HTTP within SECONDS. Three times: services with 500 tasks each and
the limit of the tests (64 MiB), with 5000 tasks each and that limit, and with 5000 tasks where memory is not short, which
tells what to request and to allow. Every answer is accounted for: what was sealed, refused with 429, or failed with a reason;
`resident` is what the kernel could not take back, at its highest (sampled 20 times a second).
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

from tests.containers.build import ROOTFS, workshop
from tests.containers.pod import MEMORY
from tests.containers.storm import CONFIG, Outcome, storm

ROOMY = 512 * 1024**2
UNBOUNDED = CONFIG + "capture: {max_incidents_per_hour: 10000}\n"


def told(title: str, outcome: Outcome, asked: int) -> None:
    """Print one storm."""
    answers = ", ".join(f"{count} {what}" for what, count in outcome.answers.most_common())
    print(f"{title}: {answers}; in all {outcome.answers.total()} of {asked}")
    for reason, count in outcome.refusals.most_common():
        print(f"  failed: {count} x {reason}")
    print("  captures: " + ", ".join(f"{count} {what}" for what, count in sorted(outcome.captures.items())))
    print(
        f"  resident {mib(outcome.rest)} before, {mib(outcome.resident)} at most; OOM kills {outcome.oom_kills}; "
        f"{outcome.cpu_seconds:.1f} s of CPU",
        flush=True,
    )


def mib(size: float) -> str:
    """Mebibytes."""
    return f"{size / 1024**2:.1f} MiB"


def main(asked: int, seconds: float) -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory(prefix="sentinel-storm-") as name,
        workshop(Path(name, "images")) as works,
    ):
        image = works.build("agent").root
        for number, (title, tasks, memory, config) in enumerate(
            (
                ("64 MiB, 500 tasks", 500, MEMORY, CONFIG),
                ("64 MiB, 5000 tasks", 5000, MEMORY, CONFIG),
                ("not short, 5000 tasks", 5000, ROOMY, UNBOUNDED),
            )
        ):
            folder = Path(name, str(number))
            folder.mkdir()
            outcome = storm(
                image, ROOTFS, folder, asked=asked, seconds=seconds, tasks=tasks, memory=memory, config=config
            )
            told(title, outcome, asked)
    request, limit = (16 * math.ceil(size / 1024**2 / 16) for size in (outcome.rest, outcome.resident * 1.25))
    print(f"four targets: requests {{cpu: 20m, memory: {request}Mi}}, limits {{memory: {limit}Mi}}")


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:3] or ("100", "60")))
