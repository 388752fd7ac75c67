"""Choosing an upstream server. Pure: the time, the random numbers and the state of the servers are given.

The rules are MOSN's (reference: pkg/upstream/cluster/{loadbalancer,edf}.go): round robin over equal weights, earliest
deadline first over unequal ones; least request by two random choices, or by weight over load where weights differ;
Maglev (Eisenbud et al., NSDI 2016, section 3.4) with the next usable server where the one of a key is not; peak EWMA
(Finagle's aperture papers) by latency, load and success.
"""

from __future__ import annotations

import heapq
import math
from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

TABLE_SIZE = 65537
"""Entries of a Maglev table: a prime, a hundred times the servers of a usual cluster."""
EWMA_SECONDS = 10.0
"""Time over which a server's latency is forgotten to a share of 1/e."""
_UNKNOWN = 1e9


class Host(Protocol):
    """What a balancer sees of a server. `active` requests are under way there; `usable` is the health's verdict."""

    @property
    def address(self) -> str: ...
    @property
    def weight(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def usable(self) -> bool: ...


class MeasuredHost(Host, Protocol):
    """What peak EWMA sees beside it: smoothed latency in seconds, share of successes, when it came into use."""

    @property
    def latency(self) -> float: ...
    @property
    def success(self) -> float: ...
    @property
    def since(self) -> float: ...


H = TypeVar("H", bound=Host)
M = TypeVar("M", bound=MeasuredHost)
H_co = TypeVar("H_co", bound=Host, covariant=True)


class Balancer(Protocol[H_co]):
    """Chooses one of the hosts that it was made for."""

    def pick(self, key: bytes, now: float) -> H_co | None:
        """A usable host; None if there is none. `key` is what belongs together, for balancers that keep it so."""
        ...


class RoundRobin(Generic[H]):
    """One after the other."""

    def __init__(self, hosts: Sequence[H], random: Random) -> None:
        self._hosts = hosts
        self._next = random.randrange(len(hosts))  # so that workers do not all begin with the same

    def pick(self, key: bytes, now: float) -> H | None:
        """The next usable host."""
        hosts, count = self._hosts, len(self._hosts)
        at = self._next
        for _ in range(count):
            host = hosts[at]
            at = at + 1 if at + 1 < count else 0
            if host.usable:
                self._next = at
                return host
        return None


class EarliestDeadline(Generic[H]):
    """By weight: each host's turn comes every 1/weight, so that turns are spread evenly and not in runs."""

    def __init__(self, hosts: Sequence[H], random: Random) -> None:
        self._queue = [(random.random() / host.weight, order, host) for order, host in enumerate(hosts)]
        heapq.heapify(self._queue)

    def weight(self, host: H) -> float:
        """The weight of a host just now."""
        return host.weight

    def pick(self, key: bytes, now: float) -> H | None:
        """The usable host whose turn is the earliest; those that are not usable lose their turn."""
        queue = self._queue
        for _ in range(len(queue)):
            deadline, order, host = queue[0]
            heapq.heapreplace(queue, (deadline + 1 / self.weight(host), order, host))
            if host.usable:
                return host
        # Every turn may have gone to the same few; look at each before saying that there is none.
        return next((host for _, _, host in sorted(queue, key=lambda entry: entry[0]) if host.usable), None)


class LeastRequestByWeight(EarliestDeadline[H]):
    """As by weight, but a host counts for less the more is under way there."""

    def weight(self, host: H) -> float:
        """The weight over the load."""
        return host.weight / (host.active + 1)


class LeastRequest(Generic[H]):
    """The less busy of two random choices (Mitzenmacher, The Power of Two Choices, 1996)."""

    def __init__(self, hosts: Sequence[H], random: Random) -> None:
        self._hosts = hosts
        self._random = random

    def pick(self, key: bytes, now: float) -> H | None:
        """The less busy of two usable hosts."""
        pair = _two(self._hosts, self._random)
        return min(pair, key=lambda host: host.active) if pair else None


class PeakEwma(Generic[M]):
    """The better of two random choices by latency, load and success; a new host comes in slowly."""

    def __init__(self, hosts: Sequence[M], random: Random, slow_start: float = 0.0) -> None:
        """`slow_start` is how many seconds a host takes to its full share."""
        self._hosts = hosts
        self._random = random
        self._slow_start = slow_start

    def pick(self, key: bytes, now: float) -> M | None:
        """The usable host that is likely to answer first."""
        pair = _two(self._hosts, self._random)
        return min(pair, key=lambda host: self._score(host, now)) if pair else None

    def _score(self, host: M, now: float) -> float:
        if (
            not host.latency
        ):  # never measured: one request at a time finds out (Finagle's penalty), not a flood of them
            return _UNKNOWN + host.active if host.active else 0.0
        share = float(host.weight)
        if self._slow_start:
            share *= min(1.0, max(0.1, (now - host.since) / self._slow_start))
        return host.latency * (host.active + 1) / max(0.1, host.success) / share


def ewma(before: float, value: float, elapsed: float) -> float:
    """A smoothed latency with one more value, which came `elapsed` seconds after the last: a peak counts at once."""
    if value >= before:
        return value
    share = math.exp(-elapsed / EWMA_SECONDS)
    return before * share + value * (1 - share)


def _two(hosts: Sequence[H], random: Random) -> list[H]:
    """Two usable hosts, different if there are two; all that are usable where two tries find none."""
    if len(hosts) > 2:
        first, second = random.sample(hosts, 2)
        if first.usable and second.usable:
            return [first, second]
    usable = [host for host in hosts if host.usable]
    return random.sample(usable, 2) if len(usable) > 2 else usable


class Maglev(Generic[H]):
    """The same host for the same key; when hosts come and go, few other keys move."""

    def __init__(self, hosts: Sequence[H], size: int = TABLE_SIZE) -> None:
        self._hosts = hosts
        self._table = _maglev_table(hosts, size)

    def pick(self, key: bytes, now: float) -> H | None:
        """The host of the key, or the next in the list that is usable."""
        digest = int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
        first = self._table[digest % len(self._table)]
        count = len(self._hosts)
        for step in range(count):
            host = self._hosts[(first + step) % count]
            if host.usable:
                return host
        return None


def _maglev_table(hosts: Sequence[Host], size: int) -> array[int]:
    """Hosts take turns, as often as their weight says, each along its own permutation of the table."""
    largest = max(host.weight for host in hosts)
    starts, steps = [], []
    for host in hosts:
        digest = blake2b(host.address.encode(), digest_size=16).digest()
        starts.append(int.from_bytes(digest[:8], "little") % size)
        steps.append(int.from_bytes(digest[8:], "little") % (size - 1) + 1)
    table = array("l", [-1]) * size
    nexts, credit = [0] * len(hosts), [0.0] * len(hosts)
    filled = 0
    while True:
        for index, host in enumerate(hosts):
            credit[index] += host.weight / largest
            if credit[index] < 1:
                continue
            credit[index] -= 1
            at = (starts[index] + nexts[index] * steps[index]) % size
            while table[at] >= 0:
                nexts[index] += 1
                at = (starts[index] + nexts[index] * steps[index]) % size
            table[at] = index
            nexts[index] += 1
            filled += 1
            if filled == size:
                return table


def make_balancer(kind: str, hosts: Sequence[M], random: Random, slow_start: float = 10.0) -> Balancer[M]:
    """The balancer of a configuration's word for at least one host; `slow_start` as in `PeakEwma`."""
    even = len({host.weight for host in hosts}) == 1
    if kind == "maglev":
        return Maglev(hosts)
    if kind == "peak_ewma":
        return PeakEwma(hosts, random, slow_start)
    if kind == "least_request":
        return LeastRequest(hosts, random) if even else LeastRequestByWeight(hosts, random)
    return RoundRobin(hosts, random) if even else EarliestDeadline(hosts, random)
