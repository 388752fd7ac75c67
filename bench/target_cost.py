"""What the agent costs the target: CPU per request of a saturated asyncio service: `python bench/target_cost.py [ROUNDS]`.

The service answers HTTP over loopback, with 0.15 ms of work each so that it is the bottleneck, and is pinned to one processor; the load
(keep-alive connections that never pause) and everything else share another. One turn of SECONDS in random order makes a round for each of

- `without` and `again`: nothing beside it; how much these two differ is the noise;
- `agent`: the agent at default settings, settled, with the captures of its first minute done;
- `burner`: a process that uses as much CPU as the agent, as often, and touches nothing of the service;
- `looks`: our reader alone, as often as it can in half of the time, many times as often as the agent looks;
- `looks burner`: a process that uses as much CPU as `looks`.

Whoever has no turn is stopped (SIGSTOP). Printed is CPU per request as a ratio to the mean of `without` and `again` of its round: the mean
of all rounds without their outer tenths, and its standard error. What one look costs the service follows from `looks` less
`looks burner`, which has a hundredfold signal; times the looks that the agent takes it says what the agent costs, far below what the direct
comparison can tell. Where the two processors are threads of one core, whatever runs on the other slows the service down.
"""

from __future__ import annotations

import math
import mmap
import os
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from selectors import EVENT_READ, EpollSelector
from typing import TYPE_CHECKING, NamedTuple
from urllib.request import urlopen

from sentinel_agent.cpython.process import open_process

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS, PAUSE, ROUNDS, CONNECTIONS, SETTLE = 2.0, 0.4, 24, 16, 45.0
GOAL = 1.005
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SERVICE = """
import asyncio, os
os.sched_setaffinity(0, {0})
async def work():
    return str(sum(i * i for i in range(500)))
async def serve(reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            body = "".join([await work() for _ in range(8)]).encode()
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


class Shared:
    """A number that this process and a child of it see."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> float:
        """What was put last."""
        return float(struct.unpack("<d", self._memory[:])[0])

    @value.setter
    def value(self, value: float) -> None:
        self._memory[:] = struct.pack("<d", value)


def load(port: int, answered: Shared) -> None:
    """Ask for ever; every connection asks again when it has its answer."""
    selector, count = EpollSelector(), 0
    for _ in range(CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(REQUEST)
        selector.register(connection, EVENT_READ, connection)
    while True:
        for key, _ in selector.select():
            if key.data.recv(65536):
                count += 1
                answered.value = count
                key.data.sendall(REQUEST)


def burn(share: Shared, rate: float) -> None:
    """Use so much of a core, in some `rate` pieces a second."""
    before = time.monotonic()
    while True:
        time.sleep(1 / rate)
        now = time.monotonic()
        until = time.thread_time() + share.value * min(now - before, 4 / rate)
        before = now
        while time.thread_time() < until:
            pass


def look(pid: int, looks: Shared) -> None:
    """Look at the service's stacks for half of the time."""
    reader, count = open_process(pid), 0
    while True:
        began = time.thread_time()
        reader.sample()
        count += 1
        looks.value = count
        time.sleep(time.thread_time() - began)


def forked(work: Callable[[], None]) -> int:
    """The pid of a child that does nothing else."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            work()
        os._exit(1)
    return child


def cpu_seconds(pid: int) -> float:
    """CPU seconds that the threads of a process have used, in nanoseconds' resolution."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


class Turn(NamedTuple):
    """Of the service CPU seconds per request; of who was beside it the share of a core, and how many looks it took a second."""

    per_request: float
    share: float
    looks: float


@dataclass
class Arm:
    """What is beside the service in a turn: a process (none: 0), and how many looks it has taken."""

    pid: int = 0
    looks: Callable[[], float] = lambda: 0.0
    turns: list[Turn] = field(default_factory=list)

    def send(self, number: signal.Signals) -> None:
        """Signal the process if there is one."""
        if self.pid:
            os.kill(self.pid, number)

    def take(self, service: int, answered: Shared) -> None:
        """One turn."""
        self.send(signal.SIGCONT)
        time.sleep(PAUSE)
        before = self._now(service, answered)
        time.sleep(SECONDS)
        cpu, requests, own, looks, elapsed = (
            after - earlier for after, earlier in zip(self._now(service, answered), before, strict=True)
        )
        self.send(signal.SIGSTOP)
        self.turns.append(Turn(cpu / requests, own / elapsed, looks / elapsed))

    def _now(self, service: int, answered: Shared) -> tuple[float, ...]:
        own = cpu_seconds(self.pid) if self.pid else 0.0
        return cpu_seconds(service), answered.value, own, self.looks(), time.monotonic()


def estimate(logarithms: list[float]) -> tuple[float, float]:
    """The mean without the outer tenths, and its standard error."""
    out = len(logarithms) // 10
    kept = sorted(logarithms)[out : len(logarithms) - out]
    return statistics.mean(kept), statistics.stdev(kept) / math.sqrt(len(kept))


def recorded(url: str) -> float:
    """How many stacks the agent has recorded."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(
        float(number) for number in re.findall(r"sentinel_recorder_samples_total\{[^}]*\} (\S+)", text)
    )


def report(arms: dict[str, Arm]) -> None:
    """Print the ratios and what they say."""
    bases = [
        (one.per_request + other.per_request) / 2
        for one, other in zip(arms["without"].turns, arms["again"].turns, strict=True)
    ]
    found = {}
    for name, arm in arms.items():
        ratios = [math.log(turn.per_request / base) for turn, base in zip(arm.turns, bases, strict=True)]
        found[name] = estimate(ratios)
        mean, error = found[name]
        share = statistics.median(turn.share for turn in arm.turns)
        looks = statistics.median(turn.looks for turn in arm.turns)
        print(
            f"{name:13} {math.exp(mean):.4f} +- {error:.4f} of the CPU per request; itself {share:.2%} of a core"
            + (f", {looks:.0f} looks/s" if looks else "")
        )
    differences = [
        math.log(one.per_request / other.per_request)
        for one, other in zip(arms["again"].turns, arms["without"].turns, strict=True)
    ]
    noise, noise_error = estimate(differences)
    agent, error = found["agent"]
    within = abs(agent) <= abs(noise) + 2 * math.hypot(error, noise_error)
    print(
        f"agent / without {math.exp(agent):.4f} +- {error:.4f}, goal <= {GOAL} or within the noise: without / without "
        f"{math.exp(noise):.4f} +- {noise_error:.4f}: {'reached' if math.exp(agent) <= GOAL or within else 'missed'}"
    )
    each = statistics.median(turn.looks for turn in arms["looks"].turns)
    extra = found["looks"][0] - found["looks burner"][0]
    extra_error = math.hypot(found["looks"][1], found["looks burner"][1])
    taken = statistics.median(turn.looks for turn in arms["agent"].turns)
    print(
        f"one look costs the service {extra / each * 1e6:.0f} +- {extra_error / each * 1e6:.0f} us of CPU: the agent's {taken:.0f} a "
        f"second make {1 + extra / each * taken:.5f} +- {extra_error / each * taken:.5f}, goal <= {GOAL}"
    )


def main(rounds: int) -> None:
    """Measure and print."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two processors are needed: one for the service, one for load and agent")
    os.sched_setaffinity(0, {cores[1]})
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE.replace("{0}", f"{{{cores[0]}}}")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert service.stdout
    port = int(service.stdout.readline())
    answered, looks, agents, lookers = Shared(), Shared(), Shared(), Shared()
    asking = forked(lambda: load(port, answered))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory(prefix="sentinel-target-cost-") as folder:
        command = [sys.executable, "-m", "sentinel_agent", "attach", str(service.pid), "--data-dir", folder]
        agent = subprocess.Popen(
            [*command, "--listen", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        arms = {
            "without": Arm(),
            "again": Arm(),
            "agent": Arm(agent.pid, lambda: recorded(f"http://{address}")),
            "burner": Arm(forked(lambda: burn(agents, 20))),
            "looks": Arm(forked(lambda: look(service.pid, looks)), lambda: looks.value),
            "looks burner": Arm(forked(lambda: burn(lookers, 1000))),
        }
        children = [asking, *(arms[name].pid for name in ("burner", "looks", "looks burner"))]
        try:
            arms["looks"].send(signal.SIGSTOP)
            time.sleep(SETTLE)
            for arm in arms.values():
                arm.send(signal.SIGSTOP)
            for number in range(rounds + 1):
                for name in random.sample(list(arms), len(arms)):
                    arms[name].take(service.pid, answered)
                # The first round says how much the burners have to burn.
                agents.value = statistics.median(turn.share for turn in arms["agent"].turns)
                lookers.value = statistics.median(turn.share for turn in arms["looks"].turns)
                if not number:
                    for arm in arms.values():
                        arm.turns.clear()
                elif number % 4 == 0:
                    print(f"{number} of {rounds} rounds", file=sys.stderr, flush=True)
            report(arms)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            agent.send_signal(signal.SIGCONT)
            for process in (agent, service):
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(15)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
