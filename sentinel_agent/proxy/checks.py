"""What no single value of the proxy's configuration shows: names that must exist, choices that exclude each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sentinel_agent.config.decode import close_match
from sentinel_agent.config.hints import Place, format_path
from sentinel_agent.errors import Fault
from sentinel_agent.proxy.filters.loading import try_filter
from sentinel_agent.proxy.tls import file_faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sentinel_agent.config.document import Document
    from sentinel_agent.proxy.config import Cluster, HeaderEdits, Listener, ProxyConfig, RegexRewrite, Route
    from sentinel_agent.proxy.tlsconfig import DownstreamTls, SanMatch, UpstreamTls


def check(document: Document, config: ProxyConfig) -> list[Fault]:
    """Every fault between the values of a configuration."""
    return _Checks(document, config).faults()


def check_files(document: Document, config: ProxyConfig) -> list[Fault]:
    """Every fault of the files that a configuration names."""
    return _faults(document, file_faults(config))


def _faults(document: Document, found: Iterable[tuple[Place, str]]) -> list[Fault]:
    return [Fault(document.where(path), format_path(path), message) for path, message in found]


class _Checks:
    """What no single value shows: names that must exist or be one of a kind, choices that exclude each other."""

    def __init__(self, document: Document, config: ProxyConfig) -> None:
        self._document = document
        self._config = config
        self._filters: list[Fault] = []
        self._clusters = [cluster.name for cluster in config.clusters]

    def faults(self) -> list[Fault]:
        """All of them."""
        return _faults(self._document, self._found()) + self._filters

    def _found(self) -> Iterator[tuple[Place, str]]:
        config = self._config
        if not config.listeners:
            yield ("listeners",), "expected at least one listener"
        yield from _twice("listeners", [each.name for each in config.listeners])
        yield from _twice("clusters", self._clusters)
        addresses = [each.address for each in config.listeners]
        for index, address in enumerate(addresses):
            if not address.endswith(":0") and address in addresses[:index]:
                yield (
                    ("listeners", index, "address"),
                    f"{address} is already that of listeners[{addresses.index(address)}]",
                )
        for index, cluster in enumerate(config.clusters):
            yield from _cluster(("clusters", index), cluster)
            if cluster.tls is not None:
                yield from _upstream_tls(("clusters", index, "tls"), cluster.tls)
        if (config.coloring.header is None) == (config.coloring.baggage is None):
            yield ("coloring",), "expected one of header and baggage"
        for index, listener in enumerate(config.listeners):
            yield from self._listener(("listeners", index), listener)

    def _listener(self, place: Place, listener: Listener) -> Iterator[tuple[Place, str]]:
        if listener.tls is not None:
            yield from _downstream_tls((*place, "tls"), listener.tls)
        if listener.protocol == "tcp":
            if listener.cluster is None:
                yield (*place, "cluster"), "missing: a tcp listener sends its bytes to a cluster"
            else:
                yield from self._known((*place, "cluster"), listener.cluster)
            if listener.routes:
                yield (*place, "routes"), "a tcp listener has no routes: expected a cluster"
            return
        if listener.cluster is not None:
            yield (*place, "cluster"), "an http listener has routes: name the cluster there"
        if not listener.routes:
            yield (*place, "routes"), "expected at least one route"
        names = [route.name for route in listener.routes]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield (
                    (*place, "routes", index, "name"),
                    f"the name {name} is already that of routes[{names.index(name)}]",
                )
        for index, route in enumerate(listener.routes):
            yield from self._route((*place, "routes", index), route)

    def _route(self, place: Place, route: Route) -> Iterator[tuple[Place, str]]:
        yield from self._way(place, route)
        yield from _conditions(place, route)
        if route.regex_rewrite is not None:
            yield from _template((*place, "regex_rewrite"), route.regex_rewrite)
        yield from _edits((*place, "request_headers"), route.request_headers)
        yield from _edits((*place, "response_headers"), route.response_headers)
        if route.host_rewrite is not None and route.auto_host_rewrite:
            yield (*place, "auto_host_rewrite"), "host_rewrite says what Host is"
        for index, use in enumerate(route.filters):
            at = (*place, "filters", index)
            hooks, faults = try_filter(use, self._document.where, at)
            self._filters += faults
            for cluster in hooks.clusters if hooks is not None else ():
                yield from self._known((*at, "config"), cluster)

    def _way(self, place: Place, route: Route) -> Iterator[tuple[Place, str]]:
        ways = [route.cluster is not None, bool(route.clusters), route.response is not None]
        if sum(ways) != 1:
            yield place, "expected one of cluster, clusters and response"
        if route.cluster is not None:
            yield from self._known((*place, "cluster"), route.cluster)
        if route.metadata_match and route.cluster is None:
            yield (*place, "metadata_match"), "goes with cluster; each of clusters has its own"
        marks = [cluster.mark for cluster in route.clusters]
        for index, cluster in enumerate(route.clusters):
            yield from self._known((*place, "clusters", index, "name"), cluster.name)
            if cluster.mark is not None and cluster.mark in marks[:index]:
                yield (
                    (*place, "clusters", index, "mark"),
                    f"the mark {cluster.mark} is already that of clusters[{marks.index(cluster.mark)}]",
                )
        if route.clusters and not any(cluster.weight for cluster in route.clusters):
            yield (*place, "clusters"), "expected a weight over 0"

    def _known(self, place: Place, name: str) -> Iterator[tuple[Place, str]]:
        if name not in self._clusters:
            yield place, f"there is no cluster {name!r}{close_match(name, self._clusters)}"


def _downstream_tls(place: Place, tls: DownstreamTls) -> Iterator[tuple[Place, str]]:
    if not tls.certificates:
        yield (*place, "certificates"), "expected at least one certificate"
    if tls.require_client_certificate and tls.client_ca is None:
        yield (
            (*place, "client_ca"),
            "missing: clients' certificates are required, and nobody vouches for them",
        )
    if tls.match_san and not tls.require_client_certificate:
        yield (*place, "match_san"), "needs require_client_certificate: true: who shows none would be let in"
    yield from _names(place, tls.match_san)


def _upstream_tls(place: Place, tls: UpstreamTls) -> Iterator[tuple[Place, str]]:
    if not tls.verify and (tls.match_san or tls.ca is not None):
        yield (*place, "verify"), "is off: ca and match_san would check nothing"
    yield from _names(place, tls.match_san)


def _names(place: Place, names: tuple[SanMatch, ...]) -> Iterator[tuple[Place, str]]:
    for index, name in enumerate(names):
        if sum(bool(each) for each in (name.exact, name.prefix, name.suffix)) != 1:
            yield (*place, "match_san", index), "expected one of exact, prefix and suffix"


_NOT_OURS = frozenset(
    ("content-length", "transfer-encoding", "connection", "upgrade", "host", "te", "trailer")
)


def _cluster(place: Place, cluster: Cluster) -> Iterator[tuple[Place, str]]:
    if not cluster.endpoints:
        yield (*place, "endpoints"), "expected at least one endpoint"
    for index, endpoint in enumerate(cluster.endpoints):
        if not 0 < int(endpoint.address.rpartition(":")[2]) < 65536:
            yield (*place, "endpoints", index, "address"), "expected a port from 1 to 65535"
    check = cluster.health_check
    if check is not None and (check.http_health_check is None) == (check.tcp_health_check is None):
        yield (*place, "health_check"), "expected one of http_health_check and tcp_health_check"
    if cluster.type == "static" and (cluster.respect_dns_ttl or cluster.dns_resolvers):
        yield (*place, "type"), "a static cluster looks nothing up: expected strict_dns or logical_dns"
    subsets = cluster.lb_subset_config
    if (subsets.fallback_policy == "default_subset") != bool(subsets.default_subset):
        yield (*place, "lb_subset_config"), "fallback_policy: default_subset and default_subset go together"


def _conditions(place: Place, route: Route) -> Iterator[tuple[Place, str]]:
    match = route.match
    if sum(each is not None for each in (match.exact, match.prefix, match.regex)) > 1:
        yield (*place, "match"), "expected at most one of exact, prefix and regex"
    if route.prefix_rewrite is not None and match.prefix is None:
        yield (*place, "prefix_rewrite"), "replaces match.prefix, which is not given"
    for index, header in enumerate(match.headers):
        if sum(each is not None for each in (header.exact, header.prefix, header.regex)) > 1:
            yield (*place, "match", "headers", index), "expected at most one of exact, prefix and regex"


def _edits(place: Place, edits: HeaderEdits) -> Iterator[tuple[Place, str]]:
    for key, name, value in (*_named("set", edits.set), *_named("add", edits.add)):
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", name):
            yield (*place, key, name), "expected the name of a header"
        if not value.isprintable() or not value.isascii() or len(value) > 4000:
            yield (*place, key, name), "expected printable ASCII, at most 4000 characters"
    for name in (*edits.set, *edits.add, *edits.remove):
        if name.lower() in _NOT_OURS:
            yield place, f"{name} frames the message and cannot be edited"


def _named(key: str, lines: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    return ((key, name, value) for name, value in lines.items())


def _template(place: Place, rewrite: RegexRewrite) -> Iterator[tuple[Place, str]]:
    try:
        re.compile(rewrite.pattern.encode()).sub(rewrite.substitution.encode(), b"")
    except (re.error, IndexError) as error:
        yield (*place, "substitution"), f"does not fit the pattern: {error}"


def _twice(where: str, names: list[str]) -> Iterator[tuple[Place, str]]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield (where, index, "name"), f"the name {name} is already that of {where}[{names.index(name)}]"
