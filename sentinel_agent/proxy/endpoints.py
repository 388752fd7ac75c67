"""The servers of a cluster as names become addresses: what a DNS answer changes, and what it must not. Pure.

`strict_dns`: every address of every name is a server (Envoy, "Service discovery": strict DNS). `logical_dns`: one server
for each name, and new connections go to the first address of the newest answer. A lookup that fails, times out, or has
no address of the wanted family changes nothing: the servers stay as they were, and the failure is counted.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from sentinel_agent.proxy.config import Endpoint

Family = Literal["auto", "v4_only", "v6_only"]

MAX_ADDRESSES: Final = 256
"""Addresses taken of one name; what is beyond is counted."""
MIN_TTL: Final = 1.0
MAX_TTL: Final = 3600.0
_BACK_OFF: Final = 2.0
_LONGEST_BACK_OFF: Final = 60.0
_JITTER: Final = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """What a lookup brought: addresses as text, and for how many seconds they hold where that was told."""

    addresses: tuple[str, ...]
    ttl: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A server: `address` is what it is called, `host` and `port` are where connections go."""

    address: str
    host: str
    port: int
    weight: int = 1
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, brackets taken off."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The opposite."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def static_places(endpoints: Sequence[Endpoint]) -> list[Place]:
    """The servers of a cluster whose addresses are as they were written."""
    return [_named(each) for each in endpoints]


def _named(endpoint: Endpoint) -> Place:
    host, port = split_address(endpoint.address)
    return Place(endpoint.address, host, port, endpoint.weight, endpoint.metadata, host)


@dataclass(slots=True)
class DnsStatistics:
    """What happened to the lookups of a cluster, in Envoy's words for it."""

    update_attempt: int = 0
    update_success: int = 0
    update_failure: int = 0
    update_no_change: int = 0
    ignored_addresses: int = 0


@dataclass(slots=True)
class _Name:
    """A name of a cluster: its addresses by the newest good answer, and when it is asked for again."""

    endpoint: Endpoint
    host: str
    port: int
    literal: bool
    due: float
    addresses: tuple[str, ...] = ()
    failures: int = 0


class DnsEndpoints:
    """The names of a cluster. `due` says whom to look up, `learned` and `failed` take what came of it.

    `rate` is how many seconds pass between two lookups of a name where no TTL says otherwise.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        logical: bool,
        family: Family,
        rate: float,
        random: Random,
        now: float,
    ) -> None:
        self._logical = logical
        self._family = family
        self._rate = rate
        self._random = random
        self.statistics = DnsStatistics()
        self._names: list[_Name] = []
        for each in endpoints:
            host, port = split_address(each.address)
            literal = _is_address(host)
            known = (host,) if literal else ()
            self._names.append(_Name(each, host, port, literal, float("inf") if literal else now, known))

    def due(self, now: float) -> list[str]:
        """The names whose time has come."""
        return list(dict.fromkeys(each.host for each in self._names if each.due <= now))

    @property
    def next_due(self) -> float:
        """When the next name is to be looked up; never: infinity."""
        return min(each.due for each in self._names)

    def learned(self, host: str, answer: Answer, now: float) -> bool:
        """Take an answer; whether it changes any server."""
        good = [each for each in dict.fromkeys(answer.addresses) if self._wanted(each)]
        self.statistics.ignored_addresses += len(answer.addresses) - len(good[:MAX_ADDRESSES])
        if not good:
            self.failed(host, now)
            return False
        self.statistics.update_attempt += 1
        self.statistics.update_success += 1
        taken = tuple(good[:MAX_ADDRESSES])
        wait = self._rate if answer.ttl is None else min(MAX_TTL, max(MIN_TTL, answer.ttl))
        changed = False
        for each in self._of(host):
            each.failures = 0
            each.due = now + self._spread(wait)
            same = taken[:1] == each.addresses[:1] if self._logical else set(taken) == set(each.addresses)
            if not same:
                each.addresses, changed = taken, True
        self.statistics.update_no_change += not changed
        return changed

    def failed(self, host: str, now: float) -> None:
        """A lookup brought nothing: the servers stay; it is asked again, ever later but within a minute."""
        self.statistics.update_attempt += 1
        self.statistics.update_failure += 1
        for each in self._of(host):
            wait = min(self._rate * _BACK_OFF ** min(each.failures, 10), max(self._rate, _LONGEST_BACK_OFF))
            each.failures += 1
            each.due = now + self._spread(wait)

    def places(self) -> list[Place]:
        """The servers, none twice; of names that were never found, none."""
        found: dict[str, Place] = {}
        for each in self._names:
            spec = each.endpoint
            for address in each.addresses[:1] if self._logical else each.addresses:
                called = spec.address if self._logical else join_address(address, each.port)
                place = Place(called, address, each.port, spec.weight, spec.metadata, each.host)
                found.setdefault(called, place)
        return list(found.values())

    def _of(self, host: str) -> list[_Name]:
        return [each for each in self._names if each.host == host and not each.literal]

    def _spread(self, seconds: float) -> float:
        """So that the workers and the clusters of a machine do not all ask at once."""
        return seconds * (1 + _JITTER * self._random.random())

    def _wanted(self, address: str) -> bool:
        try:
            version = ipaddress.ip_address(address.partition("%")[0]).version
        except ValueError:
            return False
        return self._family == "auto" or version == (4 if self._family == "v4_only" else 6)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
