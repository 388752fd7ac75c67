"""The proxy's configuration: every key, its type, its bounds, its default and its meaning, in Envoy's and MOSN's words.

Read with the loader of the agent's settings: YAML or TOML, every fault at once, each with its place in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sentinel_agent.config.decode import Decoder
from sentinel_agent.config.document import parse_document
from sentinel_agent.config.files import read_file
from sentinel_agent.core.units import ByteSize, Duration
from sentinel_agent.errors import ConfigError, Fault, OperatorError
from sentinel_agent.proxy.config_types import (
    Address,
    FieldName,
    Labels,
    Mark,
    Name,
    Path_,
    Regex,
    Text,
    Token,
)
from sentinel_agent.proxy.config_upstream import Coloring, HealthCheck, LbSubsetConfig, OutlierDetection
from sentinel_agent.proxy.tlsconfig import DownstreamTls, UpstreamTls
from sentinel_agent.proxy.wire.trace import Format

if TYPE_CHECKING:
    from pathlib import Path


class HeaderMatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A condition on one header: one of exact, prefix, regex; none of them: that it is there."""

    name: FieldName
    exact: Annotated[Text | None, Meta(description="the whole value")] = None
    prefix: Annotated[Text | None, Meta(description="how the value begins")] = None
    regex: Annotated[Regex | None, Meta(description="what the whole value matches")] = None
    invert: Annotated[bool, Meta(description="the condition must not hold")] = False


class QueryMatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A condition on one query parameter; without `exact`: that it is there."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    exact: Text | None = None


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which requests a route takes; everything that is given must hold."""

    hosts: Annotated[
        tuple[str, ...], Meta(max_length=100, description="host names, `*.` for any in front; empty: any")
    ] = ()
    exact: Annotated[Path_ | None, Meta(description="the whole path")] = None
    prefix: Annotated[Path_ | None, Meta(description="how the path begins")] = None
    regex: Annotated[Regex | None, Meta(description="what the whole path matches")] = None
    methods: Annotated[tuple[str, ...], Meta(max_length=40, description="methods; empty: any")] = ()
    headers: Annotated[tuple[HeaderMatch, ...], Meta(max_length=20)] = ()
    query: Annotated[tuple[QueryMatch, ...], Meta(max_length=20)] = ()


class WeightedCluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cluster that gets a share of a route's requests."""

    name: Name
    weight: Annotated[int, Meta(ge=0, le=1_000_000, description="its share, relative to the others")] = 1
    metadata_match: Annotated[Labels, Meta(description="the labels of the servers that are meant")] = {}
    mark: Annotated[
        Mark | None,
        Meta(description="requests with this mark come here whatever the weights; others leave here with it"),
    ] = None


class HeaderEdits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header lines that are replaced, added and taken out."""

    set: Annotated[dict[str, str], Meta(description="replaces the header of this name or adds it")] = {}
    add: Annotated[dict[str, str], Meta(description="adds a line, beside those that are there")] = {}
    remove: Annotated[tuple[FieldName, ...], Meta(max_length=50)] = ()


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a request is tried again: only if nothing was answered yet and its body is still at hand.

    `connect`: no connection came about. `reset`: it ended before the response began, for idempotent methods only.
    `gateway_error`: 502, 503, 504. `5xx`: any of them.
    """

    attempts: Annotated[int, Meta(ge=0, le=10, description="tries after the first")] = 1
    on: Annotated[
        tuple[Literal["connect", "reset", "gateway_error", "5xx"], ...],
        Meta(description="what is tried again"),
    ] = ("connect", "reset")
    per_try_timeout: Annotated[
        Annotated[Duration, Meta(gt=0, le=3600)] | None,
        Meta(description="like `timeout`, of each try; unset: none"),
    ] = None


class DirectResponse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer that the proxy gives itself."""

    status: Annotated[int, Meta(ge=200, le=599)]
    body: Annotated[str, Meta(max_length=65536)] = ""


class RegexRewrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    r"""The path, with what matches `pattern` replaced; `\1` stands for the first group."""

    pattern: Regex
    substitution: Text


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token bucket of each worker: `rate` requests a second, `burst` at once. Observe: count, let pass."""

    rate: Annotated[float, Meta(gt=0, le=1e9, description="requests a second")]
    burst: Annotated[int, Meta(ge=1, le=1_000_000, description="requests at once")] = 1
    mode: Literal["enforce", "observe"] = "enforce"


class FilterUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A filter by the name under which it was installed (entry point `sentinel_agent.proxy_filters`)."""

    name: Name
    mode: Annotated[
        Literal["enforce", "observe"],
        Meta(description="observe: count what it would answer, change nothing"),
    ] = "enforce"
    config: Annotated[dict[str, Any], Meta(description="the options of the filter")] = {}


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of the requests that it matches: `cluster`, `clusters` or `response`. The first that matches wins.

    A route that reads and edits nothing (`trace`, `forwarded` and `request_id` off, no edits, no filters) is passed
    through: heads that may go on unchanged are forwarded as they came.
    """

    name: Name
    match: Match = Match()
    cluster: Annotated[Name | None, Meta(description="where requests go")] = None
    clusters: Annotated[
        tuple[WeightedCluster, ...], Meta(max_length=50, description="where they go, by weight")
    ] = ()
    metadata_match: Annotated[
        Labels, Meta(description="the labels of the servers of `cluster` that are meant")
    ] = {}
    response: Annotated[DirectResponse | None, Meta(description="the answer, without any upstream")] = None
    timeout: Annotated[
        Duration, Meta(gt=0, le=86400, description="from the whole request to the head of the answer")
    ] = 15.0
    idle_timeout: Annotated[
        Duration, Meta(gt=0, le=86400, description="longest silence inside a body, both ways")
    ] = 60.0
    retry: Retry = Retry()
    prefix_rewrite: Annotated[Path_ | None, Meta(description="takes the place of `match.prefix`")] = None
    regex_rewrite: RegexRewrite | None = None
    host_rewrite: Annotated[Text | None, Meta(description="the Host that the upstream gets")] = None
    auto_host_rewrite: Annotated[
        bool, Meta(description="the Host that the upstream gets is its own address")
    ] = False
    request_headers: HeaderEdits = HeaderEdits()
    response_headers: HeaderEdits = HeaderEdits()
    trace: Annotated[bool, Meta(description="take part in tracing: read and write the trace headers")] = True
    forwarded: Annotated[bool, Meta(description="write X-Forwarded-For and X-Forwarded-Proto")] = True
    request_id: Annotated[bool, Meta(description="write X-Request-Id where there is none")] = True
    upgrades: Annotated[
        tuple[Annotated[str, Meta(max_length=40)], ...],
        Meta(max_length=10, description="protocols that a client may change to"),
    ] = ("websocket",)
    rate_limit: RateLimit | None = None
    filters: Annotated[tuple[FilterUse, ...], Meta(max_length=20, description="run in this order")] = ()


class ListenerLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what a client may send."""

    head: Annotated[ByteSize, Meta(ge=1024, le=1048576, description="bytes of a request's head")] = 64 * 1024
    headers: Annotated[int, Meta(ge=10, le=1000, description="header lines of a request")] = 100
    target: Annotated[ByteSize, Meta(ge=64, le=65536, description="bytes of a request target")] = 8192
    body: Annotated[ByteSize, Meta(description="bytes of a request's body; 0: any")] = 0
    connections: Annotated[int, Meta(ge=1, le=1_000_000, description="connections of a worker")] = 20_000
    buffer: Annotated[
        ByteSize, Meta(ge=4096, le=16777216, description="bytes held for one connection, each way")
    ] = 64 * 1024


class ListenerTimeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a client may take."""

    head: Annotated[Duration, Meta(gt=0, le=3600, description="from a head's first byte to its end")] = 10.0
    idle: Annotated[Duration, Meta(gt=0, le=86400, description="between two requests")] = 75.0


class Listener(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address and what is served there: `http` with routes, or `tcp` with a cluster."""

    name: Name
    address: Annotated[Address, Meta(description="HOST:PORT; port 0: any free one")]
    protocol: Annotated[Literal["http", "tcp"], Meta(description="what is spoken there")] = "http"
    cluster: Annotated[Name | None, Meta(description="where the bytes of `tcp` go")] = None
    routes: Annotated[tuple[Route, ...], Meta(max_length=1000)] = ()
    tls: Annotated[DownstreamTls | None, Meta(description="unset: plaintext")] = None
    trust_forwarded: Annotated[
        bool, Meta(description="keep X-Forwarded-For of the client and add to it, else replace it")
    ] = False
    limits: ListenerLimits = ListenerLimits()
    timeouts: ListenerTimeouts = ListenerTimeouts()


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One upstream server, or a name that stands for some."""

    address: Address
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1
    metadata: Annotated[Labels, Meta(description="labels, for `metadata_match`")] = {}


class HashKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `maglev` keeps together: requests with the same header, cookie, or (neither given) client address."""

    header: FieldName | None = None
    cookie: Token | None = None


class CircuitBreaker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker may have open at a cluster at once; 0: no cap."""

    connections: Annotated[int, Meta(ge=0, le=1_000_000)] = 1024
    pending: Annotated[int, Meta(ge=0, le=1_000_000, description="requests that wait for a connection")] = (
        1024
    )
    requests: Annotated[int, Meta(ge=0, le=1_000_000)] = 4096
    retry_ratio: Annotated[
        float, Meta(ge=0, le=1, description="tries again under way, as a share of the requests under way")
    ] = 0.2
    retries_at_least: Annotated[
        int, Meta(ge=0, le=10_000, description="tries again that are allowed in any case")
    ] = 3


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upstream servers that do the same, and how one of them is chosen.

    `static`: the endpoints as they are written; the system looks a name up for each connection. `strict_dns`: every
    address of a name is a server. `logical_dns`: a name is one server, new connections go to its newest first address.
    """

    name: Name
    endpoints: Annotated[tuple[Endpoint, ...], Meta(max_length=10_000)]
    type: Annotated[
        Literal["static", "strict_dns", "logical_dns"], Meta(description="what an endpoint's name stands for")
    ] = "static"
    dns_refresh_rate: Annotated[
        Duration, Meta(ge=0.1, le=86400, description="between two lookups, where no TTL tells")
    ] = 5.0
    respect_dns_ttl: Annotated[
        bool, Meta(description="ask the name servers, and again when the answer's TTL is over")
    ] = False
    dns_resolvers: Annotated[
        tuple[Address, ...], Meta(max_length=10, description="name servers; empty: those of the system")
    ] = ()
    dns_lookup_family: Annotated[
        Literal["auto", "v4_only", "v6_only"], Meta(description="which addresses are wanted")
    ] = "auto"
    load_balancer: Annotated[
        Literal["round_robin", "least_request", "maglev", "peak_ewma"],
        Meta(description="round_robin goes by weight where weights differ"),
    ] = "round_robin"
    hash: HashKey = HashKey()
    connect_timeout: Annotated[Duration, Meta(gt=0, le=300)] = 2.0
    idle_timeout: Annotated[Duration, Meta(gt=0, le=86400, description="of a connection in the pool")] = 60.0
    max_idle: Annotated[
        int, Meta(ge=0, le=100_000, description="connections kept for reuse, by endpoint")
    ] = 256
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    tls: Annotated[UpstreamTls | None, Meta(description="unset: plaintext")] = None
    health_check: HealthCheck | None = None
    outlier_detection: OutlierDetection | None = None
    healthy_panic_threshold: Annotated[
        float, Meta(ge=0, le=100, description="with fewer percent of the servers fit, all are used; 0: never")
    ] = 50.0
    lb_subset_config: LbSubsetConfig = LbSubsetConfig()
    slow_start_window: Annotated[
        Duration,
        Meta(ge=0, le=3600, description="time in which a new server comes to its share; `peak_ewma` only"),
    ] = 10.0


class Tracing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which trace headers are read, in this order, which are written, and how many traces that begin here are kept."""

    sampling: Annotated[
        float, Meta(ge=0, le=100, description="percent of the traces that begin here; others' decisions hold")
    ] = 1.0
    read: tuple[Format, ...] = ("tracecontext", "b3", "b3multi", "sw8")
    write: tuple[Format, ...] = ("tracecontext",)


class AccessLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One JSON object a line for each request."""

    path: Annotated[
        Annotated[str, Meta(max_length=4096)] | None,
        Meta(description="a file; `-`: standard output; unset: none"),
    ] = None
    buffer: Annotated[
        int,
        Meta(
            ge=100, le=1_000_000, description="lines held when the disk is slow; more are dropped and counted"
        ),
    ] = 20_000


class AdaptiveLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a worker is overloaded, what made it so is held down. Observe: say so and let pass.

    The level is the largest of the worker's CPU (of one core), the delay of its event loop over `lag`, its container's
    CPU of the quota, and what the agent reads of its targets.
    """

    mode: Literal["off", "observe", "enforce"] = "off"
    threshold: Annotated[float, Meta(gt=0, le=1, description="the level over which it begins")] = 0.8
    hold: Annotated[int, Meta(ge=1, le=300, description="seconds over the threshold before it begins")] = 5
    lag: Annotated[
        Duration, Meta(gt=0, le=10, description="delay of the event loop that counts as a level of 1")
    ] = 0.05
    metrics: Annotated[
        tuple[Literal["cpu", "cpu_limit", "rss_limit", "throttled"], ...],
        Meta(description="readings of the agent's targets that count, each as a share of 100 percent"),
    ] = ("cpu", "cpu_limit")
    load_test: Annotated[
        HeaderMatch | None, Meta(description="marks the requests of a load test: the first to be refused")
    ] = None


class ProxyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    listeners: Annotated[tuple[Listener, ...], Meta(max_length=100)]
    clusters: Annotated[tuple[Cluster, ...], Meta(max_length=10_000)] = ()
    service: Annotated[Text, Meta(description="what the proxy is called in traces")] = "proxy"
    workers: Annotated[
        int,
        Meta(ge=0, le=256, description="worker processes; 0: one for each core that this container may use"),
    ] = 0
    drain: Annotated[
        Duration, Meta(ge=0, le=3600, description="how long a stop waits for requests under way")
    ] = 10.0
    adaptive_limit: AdaptiveLimit = AdaptiveLimit()
    coloring: Annotated[Coloring, Meta(description="the mark that `clusters` of a route go by")] = Coloring(
        baggage="color"
    )
    tracing: Tracing = Tracing()
    access_log: AccessLog = AccessLog()


@dataclass(frozen=True, slots=True)
class LoadedProxy:
    """A configuration without faults, and the text that it is from."""

    config: ProxyConfig
    content: bytes


def load_proxy(path: Path) -> LoadedProxy:
    """The configuration in a file.

    Raises:
        ConfigError: with every fault.
    """
    try:
        content = read_file(path)
    except OperatorError as error:
        raise ConfigError([Fault(str(path), "", error.message)]) from None
    return LoadedProxy(parse_proxy(str(path), content, files=True), content)


def parse_proxy(name: str, content: bytes, *, files: bool = False) -> ProxyConfig:
    """The configuration in the text of a file called `name`; with `files`, those that it names are looked at too.

    Raises:
        ConfigError: with every fault.
    """
    from sentinel_agent.proxy.checks import (  # noqa: PLC0415 - they check the structs of this module
        check,
        check_files,
    )

    document = parse_document(name, content, what="listeners and clusters")
    decoder = Decoder(document.where)
    config = decoder.decode(ProxyConfig, document.data)
    faults = [*document.faults, *decoder.faults]
    if config is not None:
        faults += check(document, config)
        faults += check_files(document, config) if files else []
    if faults or config is None:
        raise ConfigError(faults)
    return config
