"""Routes, compiled: which one takes a request, and what is to be done to its head. Pure.

The first route that matches wins. The paths of all routes are one expression with a group for each, so that a table of
twenty costs one match; conditions on methods, headers and queries are looked at only where the path fits.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl

from sentinel_agent.proxy.coloring import Color
from sentinel_agent.proxy.matching import header_test
from sentinel_agent.proxy.routeframe import caller, waiter
from sentinel_agent.proxy.stats import RouteStats
from sentinel_agent.proxy.wire.edit import lines_pattern
from sentinel_agent.proxy.wire.head import FORWARDED_FIELDS, REQUEST_FIELDS, TRACE_FIELDS, fields_pattern
from sentinel_agent.proxy.wire.trace import HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sentinel_agent.proxy.bucket import TokenBucket
    from sentinel_agent.proxy.cluster import ClusterPool, Server
    from sentinel_agent.proxy.config import HeaderEdits, HeaderMatch, Listener, ProxyConfig, QueryMatch, Route
    from sentinel_agent.proxy.config_upstream import Coloring
    from sentinel_agent.proxy.filters.loading import RouteFilter
    from sentinel_agent.proxy.limiter import Held
    from sentinel_agent.proxy.subsets import Subset
    from sentinel_agent.proxy.wire.head import RequestHead


_PATH: Final = re.compile(rb"/[\x21\x22\x24-\x7e]*")
_MAX_QUERY = 100


class Way(NamedTuple):
    """Where some of a route's requests go: a cluster, or servers of it. `end` is the end of its share of 1.

    Requests with the mark `mark` come here whatever the shares. `stats` count what was sent this way.
    """

    end: float
    pool: ClusterPool
    subset: Subset[Server] | None
    mark: bytes | None
    stats: RouteStats


class CompiledRoute:
    """A route and what can be known of it before any request. `removed` holds the fields that ours take the place of.

    `bucket`, `filters` and `ways` are filled in by the worker, `number` is its place among all routes of the worker, `held`
    what the adaptive limiter lets it have; its `key` stays over a reload. `stats` are of requests that were sent to no
    cluster, but for `inflight`, which is of all; `color` reads and writes marks, where the route goes by them, and
    `unmarked` are the ways of requests whose mark no way has. `call` and `wait` leave the route's name in the stack.
    """

    __slots__ = (
        "added",
        "bucket",
        "call",
        "color",
        "conditions",
        "filters",
        "held",
        "key",
        "lean",
        "lean_answer",
        "listener",
        "name",
        "number",
        "passthrough",
        "removed",
        "removed_pattern",
        "response_added",
        "response_names",
        "response_removed",
        "spec",
        "stats",
        "unmarked",
        "wait",
        "ways",
    )

    def __init__(self, listener: Listener, spec: Route, config: ProxyConfig) -> None:
        self.name = spec.name
        self.call = caller(spec.name)
        self.wait = waiter(spec.name)
        self.number = 0
        self.listener = listener.name
        self.key = f"{listener.name}/{spec.name}"
        self.spec = spec
        self.stats = RouteStats()
        self.bucket: TokenBucket | None = None
        self.held: Held | None = None
        self.filters: tuple[RouteFilter, ...] = ()
        self.ways: tuple[Way, ...] = ()
        self.unmarked: tuple[Way, ...] = ()
        marked = any(each.mark is not None for each in spec.clusters)
        self.color = Color(config.coloring) if marked else None
        self.conditions = _conditions(spec)
        self.added = _lines(spec.request_headers)
        removed = {
            name.encode().lower() for name in (*spec.request_headers.set, *spec.request_headers.remove)
        }
        if spec.trace:
            for each in config.tracing.write:
                removed.update(HEADERS[each])
        if spec.forwarded:
            removed.update((b"x-forwarded-for", b"x-forwarded-proto"))
        self.removed = frozenset(removed)
        self.removed_pattern = lines_pattern(removed) if removed else None
        self.response_added = _lines(spec.response_headers)
        edits = spec.response_headers
        names = self.response_names = frozenset(name.encode().lower() for name in (*edits.set, *edits.remove))
        self.response_removed = lines_pattern(names) if names else None
        self.lean = not (
            spec.response
            or spec.filters
            or spec.host_rewrite
            or spec.auto_host_rewrite
            or spec.prefix_rewrite
            or spec.regex_rewrite
        )
        self.lean_answer = not (names or self.response_added)
        self.passthrough = not (
            removed
            or self.added
            or names
            or self.response_added
            or spec.request_id
            or spec.filters
            or spec.host_rewrite
            or spec.auto_host_rewrite
            or spec.prefix_rewrite
            or spec.regex_rewrite
            or marked
        )

    def take_counts(self, before: CompiledRoute) -> None:
        """Go on with the counts of the route in whose place this one is; those of clusters that it left are gone."""
        self.stats, known = before.stats, before.all_stats
        self.ways = tuple(way._replace(stats=known.get(way.pool.name, way.stats)) for way in self.ways)
        self.unmarked = tuple(
            way._replace(stats=known.get(way.pool.name, way.stats)) for way in self.unmarked
        )

    @property
    def all_stats(self) -> dict[str, RouteStats]:
        """By the name of the cluster; by none, of requests that were sent nowhere."""
        return {"": self.stats} | {way.pool.name: way.stats for way in self.ways}

    def rewritten(self, target: bytes) -> bytes | None:
        """The target as the upstream gets it; None where it stays. What a rewrite makes of it may be no path: b""."""
        spec = self.spec
        if spec.prefix_rewrite is not None:
            prefix = (spec.match.prefix or "").encode()
            target = spec.prefix_rewrite.encode() + target[len(prefix) :]
        elif spec.regex_rewrite is not None:
            path, question, query = target.partition(b"?")
            rewrite = spec.regex_rewrite
            target = re.sub(rewrite.pattern.encode(), rewrite.substitution.encode(), path) + question + query
        else:
            return None
        return target if _PATH.fullmatch(target) else b""


def _lines(edits: HeaderEdits) -> bytes:
    lines = (*edits.set.items(), *edits.add.items())
    return b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in lines)


def request_pattern(listener: Listener, coloring: Coloring, *others: str) -> re.Pattern[bytes]:
    """The expression that takes out of a head every field that some route of the listener reads or replaces, and `others`."""
    names: dict[bytes, None] = dict.fromkeys((*REQUEST_FIELDS, *(name.lower().encode() for name in others)))
    for route in listener.routes:
        if route.trace:
            names |= dict.fromkeys(TRACE_FIELDS)
        if route.forwarded or route.request_id:
            names |= dict.fromkeys(FORWARDED_FIELDS)
        edits = route.request_headers
        used = (*edits.set, *edits.remove, *(header.name for header in route.match.headers))
        names |= dict.fromkeys(name.lower().encode() for name in used)
        if any(each.mark is not None for each in route.clusters):
            names |= {Color(coloring).field: None}
    return fields_pattern(names)


class RouteTable:
    """The routes of a listener."""

    def __init__(self, routes: Sequence[CompiledRoute]) -> None:
        self._default = _Paths([route for route in routes if not route.spec.match.hosts])
        self._exact: dict[bytes, _Paths] = {}
        self._suffixes: dict[bytes, _Paths] = {}
        hosts = {host.lower() for route in routes for host in route.spec.match.hosts}
        for host in hosts:
            paths = _Paths([route for route in routes if _takes_host(route, host)])
            if host.startswith("*."):
                self._suffixes[host[1:].encode()] = paths
            else:
                self._exact[host.encode()] = paths

    def match(self, head: RequestHead) -> CompiledRoute | None:
        """The first route that takes the request."""
        if self._exact or self._suffixes:
            return self._paths(head.fields.get(b"host", b"")).match(head)
        return self._default.match(head)

    @property
    def plain(self) -> Callable[[bytes], CompiledRoute | None]:
        """Tells the route of a path where nothing else decides; None where something might."""
        return (lambda _: None) if self._exact or self._suffixes else self._default.plain

    def _paths(self, host: bytes) -> _Paths:
        host = host.lower()
        if not host.endswith(b"]"):
            name, colon, port = host.rpartition(b":")
            if colon and (port.isdigit() or not port):
                host = name
        found = self._exact.get(host)
        at = -1
        while found is None and (at := host.find(b".", at + 1)) >= 0:
            found = self._suffixes.get(host[at:])
        return found or self._default


def _takes_host(route: CompiledRoute, host: str) -> bool:
    """Whether a route takes all of `host`, which may itself be a pattern."""
    patterns = [pattern.lower() for pattern in route.spec.match.hosts]
    name = host.removeprefix("*")
    return not patterns or any(
        pattern == host or (pattern.startswith("*.") and name.endswith(pattern[1:])) for pattern in patterns
    )


class _Paths:
    """Routes in order, with their paths as one expression."""

    def __init__(self, routes: list[CompiledRoute]) -> None:
        self._routes = routes
        branches = []
        for route in routes:
            match = route.spec.match
            if match.exact is not None:
                branches.append(rb"(%b(?:\?|\Z))" % re.escape(match.exact.encode()))
            else:
                branches.append(b"(%b)" % re.escape((match.prefix or "").encode()))
        self._pattern = re.compile(b"|".join(branches)) if routes else re.compile(rb"(?!)")

    def match(self, head: RequestHead) -> CompiledRoute | None:
        found = self._pattern.match(head.target)
        if found is None:
            return None
        assert found.lastindex is not None, "every branch is a group"
        first = found.lastindex - 1
        route = self._routes[first]
        if not route.conditions:
            return route
        for route in self._routes[first:]:
            if _path_fits(route, head.target) and all(condition(head) for condition in route.conditions):
                return route
        return None

    def plain(self, target: bytes) -> CompiledRoute | None:
        found = self._pattern.match(target)
        if found is None or found.lastindex is None:
            return None
        route = self._routes[found.lastindex - 1]
        return None if route.conditions else route


def _path_fits(route: CompiledRoute, target: bytes) -> bool:
    match = route.spec.match
    if match.exact is not None:
        return target.partition(b"?")[0] == match.exact.encode()
    return match.prefix is None or target.startswith(match.prefix.encode())


def _conditions(route: Route) -> tuple[Callable[[RequestHead], bool], ...]:
    match = route.match
    found: list[Callable[[RequestHead], bool]] = []
    if match.methods:
        methods = frozenset(method.upper().encode() for method in match.methods)
        found.append(lambda head: head.method in methods)
    if match.regex is not None:
        pattern = re.compile(match.regex.encode())
        found.append(lambda head: pattern.fullmatch(head.target.partition(b"?")[0]) is not None)
    found += [_header_condition(header) for header in match.headers]
    found += [_query_condition(query) for query in match.query]
    return tuple(found)


def _header_condition(header: HeaderMatch) -> Callable[[RequestHead], bool]:
    name, test = header.name.lower().encode(), header_test(header)
    return lambda head: test(head.fields.get(name))


def _query_condition(query: QueryMatch) -> Callable[[RequestHead], bool]:
    def holds(head: RequestHead) -> bool:
        text = head.target.partition(b"?")[2].decode("ascii", "replace")
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_QUERY)
        except ValueError:  # more fields than that
            return False
        return any(name == query.name and query.exact in (None, value) for name, value in pairs)

    return holds
