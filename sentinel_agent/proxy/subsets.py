"""Servers of a cluster by their labels, and what happens where none of them can be had. Pure.

After Envoy's and MOSN's subset load balancer: a route's `metadata_match` means the servers that have all its labels.
Where there are none, or none of them is usable, the cluster's fallback decides: nobody, any server, the default subset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from sentinel_agent.proxy.balance import MeasuredHost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sentinel_agent.proxy.balance import Balancer


class LabelledHost(MeasuredHost, Protocol):
    """A server with labels."""

    @property
    def metadata(self) -> Mapping[str, str]: ...


L = TypeVar("L", bound=LabelledHost)


def matching(hosts: Sequence[L], labels: Mapping[str, str]) -> list[L]:
    """Those that have all the labels."""
    wanted = labels.items()
    return [host for host in hosts if wanted <= host.metadata.items()]


class Subset(Generic[L]):
    """The servers that have some labels, with a balancer of their own. `fallbacks` counts requests that went elsewhere."""

    def __init__(self, labels: Mapping[str, str], fallback: Subset[L] | None) -> None:
        """`fallback` is where requests go that find nobody here; the one without labels is the whole cluster."""
        self.labels = labels
        self.fallbacks = 0
        self._fallback = fallback
        self._balancer: Balancer[L] | None = None

    def take(self, balancer: Balancer[L] | None) -> None:
        """The cluster has other servers now: this is the balancer of those that are meant (see `make_own`)."""
        self._balancer = balancer

    def pick(self, key: bytes, now: float) -> L | None:
        """A usable server, by the balancer of those that are meant, else of the fallback."""
        host = None if self._balancer is None else self._balancer.pick(key, now)
        if host is None and self._fallback is not None:
            self.fallbacks += 1
            return self._fallback.pick(key, now)
        return host


def make_own(
    subset: Subset[L], hosts: Sequence[L], make: Callable[[Sequence[L]], Balancer[L]]
) -> Balancer[L] | None:
    """A balancer for those of these servers that a subset means; None if it means none of them."""
    own = matching(hosts, subset.labels)
    return make(own) if own else None
