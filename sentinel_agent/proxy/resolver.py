"""Looks names up, for clusters whose endpoints are names. Bounded in time; whatever goes wrong is one kind of error.

By the system (`getaddrinfo`: hosts file, search list, whatever the machine has) where the cluster only asks now and then;
it tells no TTL. By the name servers themselves with dnspython where the TTL is wanted or name servers are given: 7 MiB in
memory, so it is imported only then.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Protocol

from sentinel_agent.errors import OperatorError, PeerError
from sentinel_agent.proxy.endpoints import Answer, split_address

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver as DnsResolver

    from sentinel_agent.proxy.config import Cluster

LOOKUP_SECONDS = 5.0


class Resolver(Protocol):
    """Something that looks names up."""

    async def look_up(self, host: str) -> Answer:
        """The addresses of a name.

        Raises:
            PeerError: there are none to be had now; its message says why.
        """
        ...


class SystemResolver:
    """What the machine is set up with. One lookup of a name at a time: one that hangs holds one thread and no more."""

    def __init__(self) -> None:
        self._under_way: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    async def look_up(self, host: str) -> Answer:
        """The addresses of a name, in the order in which the system prefers them. Raises as `Resolver.look_up`."""
        task = self._under_way.get(host)
        if task is None:
            task = self._under_way[host] = asyncio.create_task(_system(host), name=f"look up {host}")
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await asyncio.shield(task)
        except TimeoutError:
            raise PeerError(f"{host}: no answer in {LOOKUP_SECONDS:.0f} s") from None
        except (OSError, UnicodeError) as error:  # a name that IDNA refuses is a UnicodeError
            self._under_way.pop(host, None)
            raise PeerError(f"{host}: {error}") from None
        self._under_way.pop(host, None)
        return Answer(found)

    async def close(self) -> None:
        """Wait for nothing any more."""
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        self._under_way.clear()


async def _system(host: str) -> tuple[str, ...]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


class NameServerResolver:
    """Asks name servers: those given, or those of the system's resolv.conf."""

    def __init__(self, servers: tuple[str, ...], families: tuple[str, ...]) -> None:
        """`servers` are HOST:PORT, `families` are of `A` and `AAAA`.

        Raises:
            OperatorError: dnspython is not installed, or there is no name server.
        """
        self._families = families
        self._resolver = _dns_resolver(servers)

    async def look_up(self, host: str) -> Answer:
        """The addresses of a name, with the shortest TTL of the chain. Raises as `Resolver.look_up`."""
        from dns.exception import DNSException  # noqa: PLC0415 - only where it is used

        found: list[str] = []
        ttls: list[float] = []
        faults: list[str] = []
        asked = [self._resolver.resolve(host, family, search=True) for family in self._families]
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(outcome, DNSException | OSError | ValueError | RecursionError):
                faults.append(f"{type(outcome).__name__}: {outcome}"[:200])
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                found += [str(each.address) for each in outcome]
                ttls.append(float(outcome.chaining_result.minimum_ttl))
        if not found:
            raise PeerError(f"{host}: {'; '.join(faults) or 'no addresses'}")
        return Answer(tuple(found), min(ttls))


def _dns_resolver(servers: tuple[str, ...]) -> DnsResolver:
    try:
        from dns.asyncresolver import Resolver as Found  # noqa: PLC0415 - heavy, for these clusters only
        from dns.nameserver import Do53Nameserver  # noqa: PLC0415
        from dns.resolver import NoResolverConfiguration  # noqa: PLC0415
    except ImportError:
        raise OperatorError(
            "respect_dns_ttl and dns_resolvers need dnspython, not installed here",
            hint="pip install 'sentinel-agent[dns]'",
        ) from None
    try:
        resolver = Found(configure=not servers)
    except NoResolverConfiguration as error:
        raise OperatorError(f"there is no name server: {error}", hint="set dns_resolvers") from None
    if servers:
        resolver.nameservers = [Do53Nameserver(*split_address(each)) for each in servers]
    resolver.lifetime = LOOKUP_SECONDS
    return resolver


def resolver_for(cluster: Cluster, system: SystemResolver) -> Resolver:
    """The resolver that a cluster asks for.

    Raises:
        OperatorError: it cannot be had.
    """
    if not (cluster.respect_dns_ttl or cluster.dns_resolvers):
        return system
    wanted = {"auto": ("A", "AAAA"), "v4_only": ("A",), "v6_only": ("AAAA",)}[cluster.dns_lookup_family]
    return NameServerResolver(cluster.dns_resolvers, wanted)
