"""What the agent's container does to the start and the answers of the service beside it: `python -m bench.pod_order [ROUNDS]`, as root.

The image is built, then each round has the five orders in turn, with runc and shared pid namespaces as in a pod: no agent, agent
never (its container cannot start), the target first, the agent first, and an agent that is killed every 5 s. Start is from
asking the runtime for the service's container to its first answered request. Then requests are sent one at a time over
one connection for SECONDS, 100 a second, and their times taken. With the agent first the service joins the agent's pid namespace, as it
joins the pod's; nothing else of it differs. Their CPU requests are 100m and the 20m of
the manifests, as the kubelet hands them to the kernel. Printed are medians over the rounds, and each against `no agent` of the same round.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.containers.build import ROOTFS, workshop
from tests.containers.bundle import Box, Container, running
from tests.containers.pod import agent_box
from tests.containers.storm import service_box

if TYPE_CHECKING:
    from collections.abc import Iterator

ORDERS = ("no agent", "agent never", "target first", "agent first", "killed every 5 s")
SECONDS, PACE, KILL_EVERY = 20.0, 0.01, 5.0
SERVICE_SHARES, AGENT_SHARES = 102, 20  # requests of 100m and, as in the manifests, 20m
PAUSE = ("/usr/bin/python3", "-S", "-c", "import signal; signal.pause()")


@contextmanager
def killed(box: Box, folder: Path) -> Iterator[None]:
    """The agent, killed every `KILL_EVERY` seconds and started again at once, as a kubelet without back-off would."""
    stop = threading.Event()

    def keep() -> None:
        while not stop.is_set():
            with running(box, folder) as container:
                stop.wait(KILL_EVERY)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(container.pid, signal.SIGKILL)
                container.process.wait(30)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def answered(connection: socket.socket) -> float:
    """Seconds of one request."""
    began = time.perf_counter()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    if not connection.recv(4096):
        raise ConnectionError("the service has closed the connection")
    return time.perf_counter() - began


def service(stack: ExitStack, folder: Path, pod: int) -> tuple[float, socket.socket, Container]:
    """The service's container: seconds to its first answer, a connection, and itself."""
    began = time.perf_counter()
    box = replace(service_box(ROOTFS, "service", tasks=100, pod=pod), cpu_shares=SERVICE_SHARES)
    container = stack.enter_context(running(box, folder))
    assert container.process.stdout
    port = int(container.process.stdout.readline())
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    answered(connection)
    return time.perf_counter() - began, connection, container


def turn(image: Path, order: str, folder: Path, seconds: float) -> tuple[float, list[float]]:
    """Seconds of the start, and those of each request."""
    with ExitStack() as stack:
        pod = stack.enter_context(running(Box(root=ROOTFS, command=PAUSE, uid=1000), folder)).pid
        box = agent_box(image, folder, "sidecar", "--listen", "off", pod=pod, cpu_shares=AGENT_SHARES)
        if order == "agent never":
            with contextlib.suppress(AssertionError):
                stack.enter_context(running(replace(box, command=("/nothing",)), folder))
        if order == "agent first":
            stack.enter_context(running(box, folder))
        started, connection, _ = service(stack, folder, pod)
        if order == "target first":
            stack.enter_context(running(box, folder))
        if order.startswith("killed"):
            stack.enter_context(killed(box, folder))
        times = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            times.append(answered(connection))
            time.sleep(PACE)
    return started, times


def main(rounds: int, seconds: float) -> None:
    """Measure and print."""
    starts: dict[str, list[float]] = defaultdict(list)
    halves: dict[str, list[float]] = defaultdict(list)
    tails: dict[str, list[float]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory(prefix="sentinel-order-") as name,
        workshop(Path(name, "images")) as works,
    ):
        image = works.build("agent").root
        for number in range(rounds):
            for order in ORDERS if number % 2 == 0 else reversed(ORDERS):
                folder = Path(name, f"{number}-{order.replace(' ', '-')}")
                folder.mkdir()
                started, times = turn(image, order, folder, seconds)
                cuts = statistics.quantiles(times, n=100)
                starts[order].append(started)
                halves[order].append(cuts[49])
                tails[order].append(cuts[98])
                print(
                    f"round {number + 1}, {order}: start {started:.3f} s, p50 {cuts[49] * 1e3:.2f} ms, "
                    f"p99 {cuts[98] * 1e3:.2f} ms, {len(times)} requests",
                    flush=True,
                )
    for order in ORDERS:
        figures = []
        for title, found, unit in (("start", starts, 1.0), ("p50", halves, 1e3), ("p99", tails, 1e3)):
            ratio = statistics.median(
                one / other for one, other in zip(found[order], found[ORDERS[0]], strict=True)
            )
            figures.append(f"{title} {statistics.median(found[order]) * unit:.2f} (x{ratio:.2f})")
        print(f"{order}: " + ", ".join(figures) + "; s, ms, ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 6, float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS)
